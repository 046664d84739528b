//! Doors: input, one call into the lifecycle, output. No decisions.

pub mod at_once;
pub mod by_hand;
pub mod containerd;
pub mod ctl;
pub mod detail;
pub mod doctor;
pub mod documents;
pub mod events;
pub mod finding;
pub mod gc_files;
pub mod hook;
pub mod hook_files;
pub mod hooks_dir;
pub mod image;
pub mod install;
pub mod install_check;
mod install_policy;
pub mod list;
pub mod list_json;
pub mod logging;
pub mod metrics;
pub mod metrics_files;
pub mod nri;
pub mod output;
pub mod policy;
pub mod precreate;
pub mod report;
pub mod request;
pub mod select;
pub mod service;
pub mod service_files;
pub mod table;
pub mod token;
mod token_here;
pub mod view;

pub use output::{fail, print};
