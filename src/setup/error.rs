//! Why an installation stopped.

use std::io;
use std::path::PathBuf;

use crate::image::UnusableSigner;
use crate::lifecycle::policy_files::PolicyFilesError;
use crate::setup::containerd::error::ContainerdError;
use crate::setup::hooks_dir::HooksDirError;
use crate::sys::error::SysError;
use crate::sys::mounts::MountError;

/// Why an installation stopped. What was done until then stays, is harmless, and is done again by the next run.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("{doing} {}", .path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be written or removed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// podman's configuration is not what podman would read.
    #[error("find the directories where podman looks for hooks")]
    HooksDir(#[from] HooksDirError),
    /// A link leads out of the directory below which files are staged.
    #[error("write below {}: {} leads to {}, which is outside of it; install from within that root, or make the link relative", .destdir.display(), .path.display(), .target.display())]
    Outside {
        /// The directory of --destdir.
        destdir: PathBuf,
        /// What was to be written to.
        path: PathBuf,
        /// Where that is.
        target: PathBuf,
    },
    /// Our bpffs could not be mounted.
    #[error("mount the bpffs for our pins")]
    Mount(#[from] MountError),
    /// systemd refused.
    #[error("run {command}: it ended with {outcome}")]
    Run {
        /// The program and what it was asked.
        command: String,
        /// How it ended.
        outcome: String,
    },
    /// A policy file that was to be installed is wrong, so nothing of it is.
    #[error("install the policy {}", .path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PolicyFilesError>,
    },
    /// A key or trusted root that was to be installed is of no use, so nothing of the policy is installed.
    #[error("install the policy: {0}")]
    Signer(UnusableSigner),
    /// A file of the node's administrator is where one that is handed out would go.
    #[error("write {}: it is there already, and was not written by install; move it away, or leave it out of --registries", .0.display())]
    Foreign(PathBuf),
    /// containerd's part.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// Programs are still loaded.
    #[error("remove {}: programs are still pinned there; stop the containers, let `bpfman-hook gc` release what dead ones left, and run uninstall again", .0.display())]
    InUse(PathBuf),
}
