//! Doors: input, one call into the lifecycle, output. No decisions.

pub mod doctor;
pub mod documents;
pub mod finding;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub mod install_check;
pub mod output;
pub mod policy;
pub mod precreate;
pub mod token;

pub use output::{fail, print};
