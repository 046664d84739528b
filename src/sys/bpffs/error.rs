//! Errors of creating a bpffs for a container, with remedies.

use std::io;

use crate::model::delegation::ShownError;
use crate::sys::SysError;
use crate::sys::token::TokenError;

/// Maximum number of components of a target.
pub(super) const MAX_DEPTH: usize = 16;

/// Why a bpffs could not be created for a container. Except where a variant says otherwise, everything has been
/// undone.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    /// Tokens exist only below the initial user namespace.
    #[error(
        "delegate BPF to the container: it has no user namespace, and tokens exist only in user namespaces; \
         give it one, under podman with --userns=auto or --uidmap"
    )]
    NoUserNamespace,
    /// The container's user namespace has no root user, who would own the bpffs.
    #[error("become root of the container: its user namespace does not map user or group 0; add the mapping")]
    NoRootUser {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// An earlier run for the same container was killed after it had mounted the bpffs.
    #[error("mount a bpffs at {target}: the container already has a bpffs from an interrupted start; recreate the container")]
    MountedBefore {
        /// The mount point.
        target: String,
    },
    /// The mount namespace is the calling process's own.
    #[error("mount a bpffs for the container: it has no mount namespace of its own; give it one")]
    HostMountNamespace,
    /// `fsopen` needs a mount namespace that belongs to the user namespace.
    #[error(
        "open a bpffs in the container's namespaces: its mount namespace does not belong to its user namespace; \
         create both with the container"
    )]
    NamespacesApart {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The runtime is rootless, or the hook lacks capabilities.
    #[error(
        "{doing} of the container's bpffs: this needs CAP_SYS_ADMIN in the initial user namespace; \
         run the runtime as root"
    )]
    NotAdministrator {
        /// The step: `set the option delegate_cmds`, `create the file system`.
        doing: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The kernel does not have BPF tokens.
    #[error("delegate BPF to the container: the kernel does not have BPF tokens; Linux 6.9 or newer is needed")]
    KernelTooOld,
    /// The kernel does not accept the value of an option.
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
    /// The target does not exist, and the container's root user cannot create it.
    #[error(
        "mount a bpffs at {target}: the directory is missing and the container's root user cannot create it; \
         add it to the image or choose another bpffs-path"
    )]
    TargetMissing {
        /// The target.
        target: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A component of the target is a symbolic link, which could lead elsewhere.
    #[error(
        "mount a bpffs at {target}: a component of the path is a symbolic link in the container; \
         replace it with a directory or choose another bpffs-path"
    )]
    TargetLink {
        /// The target.
        target: String,
    },
    /// The target or an ancestor is not a directory.
    #[error("mount a bpffs at {target}: it, or one of its parents, is not a directory; choose another bpffs-path")]
    TargetNotDirectory {
        /// The target.
        target: String,
    },
    /// The target is not on a mount that belongs to the container.
    #[error(
        "mount a bpffs at {target}: it lies on a mount from outside the container ({mount}); \
         choose a bpffs-path on the container's root, /sys or a tmpfs of its own"
    )]
    TargetHostMount {
        /// The target.
        target: String,
        /// The mount: kind of file system and mount point.
        mount: String,
    },
    /// The mount would propagate to other mount namespaces.
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
    /// Another process mounted something over it in the meantime.
    #[error("reopen the bpffs at {target}: another mount covers it")]
    Covered {
        /// The target.
        target: String,
    },
    /// The kernel ignores unknown keys, so the options that it shows are compared with the requested ones.
    #[error("check the bpffs at {target}: it delegates {found} instead of {wanted}")]
    OptionsDiffer {
        /// The target.
        target: String,
        /// The requested delegation.
        wanted: String,
        /// The delegation that mountinfo shows.
        found: String,
    },
    /// Mountinfo shows an option that cannot be parsed.
    #[error("check the bpffs at {target}")]
    OptionsUnread {
        /// The target.
        target: String,
        /// The option.
        #[source]
        source: ShownError,
    },
    /// A map could not be pinned, or its owner could not be changed to the container's user.
    #[error("pin the map {name} in the container's bpffs")]
    Map {
        /// The file's name.
        name: String,
        /// The errno: EINVAL where the container's user namespace does not map the owner.
        #[source]
        source: io::Error,
    },
    /// The check failed: a token cannot be minted from the bpffs.
    #[error("verify the delegation at {target}")]
    Token {
        /// The target.
        target: String,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// An operation failed, and then the mount or a directory could not be removed.
    #[error("remove the bpffs at {target} after a failure: it stays until the container ends")]
    LeftBehind {
        /// The target.
        target: String,
        /// The failure.
        #[source]
        source: Box<SysError>,
    },
}
