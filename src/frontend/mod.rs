//! Doors: input, one call into the lifecycle, output. No decisions.

<<<CONFLICT
pub mod documents;
pub mod finding;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub mod install_check;
pub mod output;
pub mod report;
pub mod table;
pub mod token;
pub mod view;

pub use output::{fail, print};
pub mod policy;
