//! containerd's configuration: what it says about us, what `install --containerd` changes in it and `uninstall` takes back.

pub mod base_spec;
pub mod config;
pub mod error;
pub mod examine;
pub mod install;
pub mod plugin_file;
mod present;
