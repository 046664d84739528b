//! `install`, `uninstall` and `install --check`.

pub mod check;
pub(crate) mod compare;
pub mod containerd;
mod error;
pub mod first_policy;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub(crate) mod kubelet_profile;
pub mod package;
pub mod place;
mod policy_dir;
mod registries_dir;
mod steps;
pub mod units;
