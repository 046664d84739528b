//! containerd's configuration: checking it, and the changes that `install --containerd` makes and `uninstall` reverts.

pub mod base_spec;
pub mod config;
pub mod error;
pub mod examine;
pub mod install;
pub mod plugin_file;
mod present;
