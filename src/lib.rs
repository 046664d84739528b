//! bpfman-hook: loads eBPF programs for one container, delegates BPF to it, and undoes both when it stops.

pub mod kernel;
pub mod model;
