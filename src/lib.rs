//! bpfman-hook: loads eBPF programs for one container, delegates BPF to it, and undoes both when it stops.

pub mod cli;
pub mod frontend;
pub mod image;
pub mod kernel;
pub mod lifecycle;
pub mod model;
pub mod paths;
pub mod store;
pub mod sys;
