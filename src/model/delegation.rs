//! BPF delegation: the rights that one bpffs grants to the user namespace it belongs to.

use serde::{Deserialize, Serialize};

/// What one bpffs delegates: four masks over the kernel's enums, bit n for value n.
///
/// Spelled out as names only at the edges: in annotations, policy files and mount options (kernel/bpf/inode.c,
/// `bpf_parse_param`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delegation {
    /// `enum bpf_cmd`: BPF_MAP_CREATE is bit 0.
    pub cmds: u64,
    /// `enum bpf_map_type`.
    pub maps: u64,
    /// `enum bpf_prog_type`.
    pub progs: u64,
    /// `enum bpf_attach_type`.
    pub attachs: u64,
}

/// What a container asks to have delegated, before the policy's ceiling is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DelegationRequest {
    /// The bits that presets and lists name.
    pub named: Delegation,
    /// Which of the four lists said `any`, which asks for exactly the policy's ceiling.
    pub any: AnyOf,
}

/// The lists in which `any` was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnyOf {
    /// `delegate-cmds=any`
    pub cmds: bool,
    /// `delegate-maps=any`
    pub maps: bool,
    /// `delegate-progs=any`
    pub progs: bool,
    /// `delegate-attachs=any`
    pub attachs: bool,
}
