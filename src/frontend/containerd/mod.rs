//! containerd's configuration: what it says about us, what `install --containerd` changes in it and `uninstall` takes back.

pub mod config;
