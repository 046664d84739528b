//! Doors: input, one call into the lifecycle, output. No decisions.

pub mod finding;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub mod install_check;
