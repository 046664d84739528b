//! The OCI hook stages that runtimes run: one line of at most 300 bytes on standard error says what failed.

pub mod create_runtime;
pub mod poststop;
pub mod precreate;
pub mod stage;
