//! A bpffs for a container.

/// Why a bpffs could not be made for a container.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {}
