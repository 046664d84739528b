//! The systemd units that `install` writes, as text, and what belongs to each.

pub mod gc;
pub mod metrics;
pub mod nri;
pub mod service;
