//! bpfman-hook: loads eBPF programs for one container, delegates BPF to it, and undoes both when it stops.

pub mod cli;
pub mod commands;
pub mod doctor;
pub mod grpc;
#[cfg(test)]
#[path = "../tests/support/helper_process.rs"]
mod helper_process;
pub mod hooks;
pub mod image;
pub mod kernel;
pub mod lifecycle;
pub mod metrics;
pub mod model;
pub mod nri;
pub mod output;
pub mod paths;
pub mod proxy;
pub mod setup;
pub mod store;
pub mod sys;
