//! Why containerd's part of an installation stopped.

use std::path::PathBuf;

use crate::setup::containerd::base_spec::BaseSpecError;
use crate::setup::containerd::config::ConfigError;

/// Why containerd's part of an installation stopped.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Its configuration cannot be read or changed.
    #[error("edit {}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// The file is a link, which a rename would replace.
    #[error("edit {}: it is a symbolic link to {}; name that with --containerd-config", .path.display(), .target.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// There is no base spec.
    #[error("make the base spec")]
    BaseSpec(#[from] BaseSpecError),
    /// containerd still has the configuration in which our hooks are.
    #[error(
        "remove the program: containerd still starts containers with its hooks; restart containerd, then run uninstall again"
    )]
    StillRead,
}
