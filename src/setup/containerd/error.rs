//! Errors of the containerd part of an installation.

use std::path::PathBuf;

use crate::setup::containerd::base_spec::BaseSpecError;
use crate::setup::containerd::config::ConfigError;

/// Why the containerd part of an installation stopped.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// The configuration cannot be read or changed.
    #[error("edit {}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: ConfigError,
    },
    /// The file is a symbolic link, which a rename would replace.
    #[error("edit {}: it is a symbolic link to {}; pass that path with --containerd-config", .path.display(), .target.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// The link's target.
        target: PathBuf,
    },
    /// The base spec cannot be created.
    #[error("create the base spec")]
    BaseSpec(#[from] BaseSpecError),
    /// containerd may still run with the configuration that contains our hooks.
    #[error(
        "remove the binary: containerd still starts containers with its hooks; restart containerd, then run uninstall again"
    )]
    StillRead,
}
