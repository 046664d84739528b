//! Errors of `install` and `uninstall`.

use std::io;
use std::path::PathBuf;

use crate::image::UnusableSigner;
use crate::kernel::KernelError;
use crate::kernel::gate::GateError;
use crate::kernel::guard::GuardError;
use crate::lifecycle::policy_files::PolicyFilesError;
use crate::lifecycle::program_keyring::ProgramKeyringError;
use crate::setup::containerd::error::ContainerdError;
use crate::setup::hooks_dir::HooksDirError;
use crate::sys::error::SysError;
use crate::sys::mounts::MountError;

/// Why an installation stopped. The steps completed before stay, are harmless, and are repeated by the next run.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("{doing} {}", .path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A file could not be written or removed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// podman's configuration cannot be evaluated.
    #[error("determine podman's hook directories")]
    HooksDir(#[from] HooksDirError),
    /// A link leads out of the directory in which files are staged.
    #[error("write below {}: {} leads to {}, which is outside of it; run install inside that root, or make the link relative", .destdir.display(), .path.display(), .target.display())]
    Outside {
        /// The directory of --destdir.
        destdir: PathBuf,
        /// The path that was to be written.
        path: PathBuf,
        /// The link's target.
        target: PathBuf,
    },
    /// Our bpffs could not be mounted.
    #[error("mount the bpffs for our pins")]
    Mount(#[from] MountError),
    /// The guard could not be put in force.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The policy's gate cannot be read.
    #[error("put the gate in force: {0}")]
    GateRules(String),
    /// The gate could not be put in force.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The node's keyring could not be made.
    #[error(transparent)]
    Keyring(#[from] ProgramKeyringError),
    /// The gate could not be ended.
    #[error("end the gate")]
    EndGate(#[source] KernelError),
    /// The guard could not be ended.
    #[error("end the guard")]
    Unload(#[from] KernelError),
    /// A program of systemd failed.
    #[error("run {command}: it exited with {outcome}")]
    Run {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        outcome: String,
    },
    /// A policy file that was to be installed is invalid, so no policy file is installed.
    #[error("install the policy {}", .path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PolicyFilesError>,
    },
    /// A key or trusted root that was to be installed cannot be used, so no policy file is installed.
    #[error("install the policy: {0}")]
    Signer(UnusableSigner),
    /// The administrator's own file is where a file of `--registries` would be written.
    #[error("write {}: it exists and was not written by install; move it away, or remove it from the --registries directory", .0.display())]
    Foreign(PathBuf),
    /// An error of the containerd part.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// A seccomp profile cannot be made.
    #[error("write {}: {problem}", .path.display())]
    Profile {
        /// The profile.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The package that is installed here has another program, or another file in this place.
    #[error("write {}: the package bpfman-hook is installed here, with another version or other options; upgrade or remove the package", .0.display())]
    Packaged(PathBuf),
    /// Programs are still loaded.
    #[error("uninstall the rest: containers still have programs below {}, which poststop and gc release when they stop; then run uninstall again", .0.display())]
    InUse(PathBuf),
}
