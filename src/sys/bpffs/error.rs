//! Why a container gets no bpffs, with the remedy where there is one.

use std::io;

use super::inside::MAX_DEPTH;
use crate::model::delegation::ShownError;
use crate::sys::SysError;
use crate::sys::token::TokenError;

/// Why a bpffs could not be made for a container. Where nothing else is said, nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    /// Tokens exist only below the initial user namespace.
    #[error(
        "delegate BPF to the container: it has no user namespace, and a token is possible only in one; \
         give it one, under podman with --userns=auto or --uidmap"
    )]
    NoUserNamespace,
    /// Its user namespace has no root, so nobody could own the bpffs.
    #[error("become root of the container: its user namespace maps no user or group 0; map one")]
    NoRootUser {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A run for the same container was killed after it had mounted the bpffs.
    #[error(
        "mount a bpffs at {target}: the container has one of ours already, from a start that was broken off; make the container anew"
    )]
    MountedBefore {
        /// Where.
        target: String,
    },
    /// The mount namespace is our own.
    #[error("mount a bpffs for the container: it has no mount namespace of its own; give it one")]
    HostMountNamespace,
    /// `fsopen` needs both namespaces to belong together.
    #[error(
        "open a bpffs in the container's namespaces: its mount namespace does not belong to its user namespace; \
         create both with the container"
    )]
    NamespacesApart {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A rootless runtime, or a hook without capabilities.
    #[error(
        "{doing} of the container's bpffs: that takes CAP_SYS_ADMIN in the initial user namespace; \
         run the runtime as root, or use the broker"
    )]
    NotAdministrator {
        /// The step: `set the option delegate_cmds`, `create the file system`.
        doing: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// No BPF tokens.
    #[error("delegate BPF to the container: the kernel has no BPF tokens; Linux 6.9 or newer is needed")]
    KernelTooOld,
    /// A value that this kernel does not take.
    #[error("set the option {key}={value} of the container's bpffs: the kernel refuses the value")]
    OptionRefused {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The target is not an absolute, normal path below the root.
    #[error("mount a bpffs at {target}: the path is not absolute and normal, or has more than {MAX_DEPTH} components")]
    TargetPath {
        /// The target.
        target: String,
    },
    /// Not there, and container root may not make it.
    #[error(
        "mount a bpffs at {target}: the directory is missing and the container's root user cannot make it; \
         add it to the image or choose another bpffs-path"
    )]
    TargetMissing {
        /// The target.
        target: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A symbolic link on the way, which would lead elsewhere.
    #[error(
        "mount a bpffs at {target}: a symbolic link of the container's root file system is on the way; \
         replace it by a directory or choose another bpffs-path"
    )]
    TargetLink {
        /// The target.
        target: String,
    },
    /// A file.
    #[error("mount a bpffs at {target}: it, or what it lies in, is not a directory; choose another bpffs-path")]
    TargetNotDirectory {
        /// The target.
        target: String,
    },
    /// Not on the container's own ground.
    #[error(
        "mount a bpffs at {target}: it lies on a mount from outside the container ({mount}); \
         choose a bpffs-path on the container's root, /sys or a tmpfs of its own"
    )]
    TargetHostMount {
        /// The target.
        target: String,
        /// The mount: its point and kind of file system.
        mount: String,
    },
    /// The mount would appear elsewhere too.
    #[error(
        "mount a bpffs at {target}: mounts below {mount} are shared with other mount namespaces; \
         make it private or a slave (rootfsPropagation), or choose another bpffs-path"
    )]
    TargetShared {
        /// The target.
        target: String,
        /// The mount point.
        mount: String,
    },
    /// Somebody mounted something over it meanwhile.
    #[error("open the bpffs at {target} anew: another mount is there")]
    Covered {
        /// The target.
        target: String,
    },
    /// The kernel ignores keys that it does not know, so what it shows is compared with what was asked.
    #[error("check the bpffs at {target}: it delegates {found} instead of {wanted}")]
    OptionsDiffer {
        /// The target.
        target: String,
        /// What was asked.
        wanted: String,
        /// What mountinfo shows.
        found: String,
    },
    /// Mountinfo shows an option that we cannot read.
    #[error("check the bpffs at {target}")]
    OptionsUnread {
        /// The target.
        target: String,
        /// The option.
        #[source]
        source: ShownError,
    },
    /// A map could not be pinned, or not be given to the container's user.
    #[error("show the map {name} in the container's bpffs")]
    Map {
        /// The file's name.
        name: String,
        /// The errno: EINVAL where the container's user namespace does not map the owner.
        #[source]
        source: io::Error,
    },
    /// The proof failed: no token can be minted from the bpffs.
    #[error("prove the delegation at {target}")]
    Token {
        /// The target.
        target: String,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// Something failed, and then the mount or a directory could not be taken away again.
    #[error("take the bpffs at {target} away again after a failure: it stays until the container ends")]
    LeftBehind {
        /// The target.
        target: String,
        /// The failure.
        #[source]
        source: Box<SysError>,
    },
}
