//! The texts of the systemd units that `install` writes, and how they are installed.

pub mod gc;
pub mod metrics;
pub mod nri;
pub mod service;
