//! The OCI hook stages that runtimes run: a failing stage prints one line of at most 300 bytes on standard error.

pub mod create_runtime;
pub mod poststop;
pub mod precreate;
pub mod stage;
