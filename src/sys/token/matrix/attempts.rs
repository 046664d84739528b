//! Maps, and the smallest objects of each kind.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::attr::RawAttr;
use super::{Lab, needs_token, smallest};
use crate::model::delegation::Category;
use crate::model::token_matrix::{MatrixRow, MatrixSet};
use crate::sys::machine::page_size;

/// `enum bpf_cmd`
pub(super) const MAP_CREATE: u32 = 0;
pub(super) const PROG_LOAD: u32 = 5;
pub(super) const BTF_LOAD: u32 = 18;
/// `enum bpf_map_type`
pub(super) const SOCKMAP: u32 = 15;
/// `BPF_F_TOKEN_FD`
pub(super) const TOKEN_FD: u32 = 1 << 16;
/// `BPF_F_NO_PREALLOC`
const NO_PREALLOC: u32 = 1;
/// `BPF_F_LINK`
const LINK: u32 = 1 << 13;
/// `BPF_F_MMAPABLE`
const MMAPABLE: u32 = 1 << 10;

/// Types of a local storage: an int of four bytes as the key, one of eight as the value.
const BTF: [u32; 6 + 8 + 2] = [
    // struct btf_header: magic, version and flags; lengths and offsets.
    0x0001_eb9f,
    24,
    0,
    32,
    32,
    8,
    // BTF_KIND_INT of 4 bytes, named "int", signed, 32 bits.
    1,
    1 << 24,
    4,
    1 << 24 | 32,
    // BTF_KIND_INT of 8 bytes, named "u8", 64 bits.
    5,
    1 << 24,
    8,
    64,
    u32::from_le_bytes(*b"\0int"),
    u32::from_le_bytes(*b"\0u8\0"),
];

/// Loads [`BTF`].
pub(super) fn btf(token: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
    let mut attr = RawAttr::new().reads(0, &BTF).u32(16, size_of_val(&BTF) as u32);
    if let Some(token) = token {
        attr = attr.u32(32, TOKEN_FD).fd(36, token);
    }
    attr.open(BTF_LOAD)
}

/// Creates the smallest map of a type.
pub(super) fn map(lab: &Lab, map_type: u32, token: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
    let page = page_size();
    let (key, value, entries, mut flags) = match map_type {
        1 | 2 | 5 | 6 | 7 | 9 | 10 | 20 | 25 => (4, 8, 1, 0),
        3 | 4 | 8 | 12..=18 => (4, 4, 1, 0),
        11 => (8, 8, 1, NO_PREALLOC),
        // struct bpf_cgroup_storage_key
        19 | 21 => (16, 8, 0, 0),
        22 | 23 | 30 => (0, 8, 1, 0),
        24 | 28 | 29 | 32 => (4, 8, 0, NO_PREALLOC),
        26 => (4, lab.types.struct_ops_size, 1, LINK),
        27 | 31 => (0, 0, page, 0),
        33 => (0, 0, 1, MMAPABLE),
        // struct bpf_insn_array_value
        34 => (4, 16, 1, 0),
        35 => (4, 8, 1, NO_PREALLOC),
        _ => (4, 8, 1, 0),
    };
    if token.is_some() {
        flags |= TOKEN_FD;
    }
    let mut attr = RawAttr::new().u32(0, map_type).u32(4, key).u32(8, value).u32(12, entries).u32(16, flags);
    let inner = match map_type {
        12 | 13 => Some(map(lab, 2, Some(lab.token()))?),
        _ => None,
    };
    if let Some(inner) = &inner {
        attr = attr.fd(20, inner.as_fd());
    }
    let types = match map_type {
        24 | 26 | 28 | 29 | 32 => Some(btf(Some(lab.token()))?),
        _ => None,
    };
    if let Some(types) = &types {
        attr = attr.fd(48, types.as_fd());
        attr = match map_type {
            // The value is a type of the kernel's BTF; the object's is needed all the same.
            26 => attr.u32(60, lab.id("bpf_struct_ops_tcp_congestion_ops").ok_or(Errno::NOENT)?),
            _ => attr.u32(52, 1).u32(56, 2),
        };
    }
    if let Some(token) = token {
        attr = attr.fd(76, token);
    }
    attr.open(MAP_CREATE)
}

/// One row for each known map type.
pub(super) fn map_rows(lab: &Lab) -> Vec<MatrixRow> {
    let types = (1..64).map_while(|map_type| Some((map_type, Category::Maps.name(map_type)?)));
    let row = |(map_type, name): (u32, &str)| {
        let outcome = smallest(|| map(lab, map_type, Some(lab.token())).map(drop));
        let token = needs_token(&outcome, || map(lab, map_type, None).map(drop));
        MatrixRow { set: MatrixSet::Maps, name: name.to_owned(), program: None, token, outcome, attach: None }
    };
    types.map(row).collect()
}

/// The parameters of a program.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Smallest {
    /// `enum bpf_prog_type`
    pub(super) program_type: u32,
    /// `enum bpf_attach_type`
    pub(super) attach_type: u32,
    /// Id of the function or type in the kernel's BTF; 0 for none.
    pub(super) attach_btf_id: u32,
}

/// Loads a program that returns a value which its type allows: `r0 = 1; exit`, or 0 where 1 would change something.
pub(super) fn program(program: Smallest, token: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
    const SYSCALL: u32 = 31;
    /// `BPF_F_SLEEPABLE`
    const SLEEPABLE: u32 = 1 << 4;
    const LSM: u32 = 29;
    const LSM_CGROUP: u32 = 43;
    let value = match (program.program_type, program.attach_type) {
        (LSM, LSM_CGROUP) => 1,
        (26..=29, _) => 0,
        _ => 1u8,
    };
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, value, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut flags = if program.program_type == SYSCALL { SLEEPABLE } else { 0 };
    if token.is_some() {
        flags |= TOKEN_FD;
    }
    let license = c"GPL".to_bytes_with_nul();
    let mut attr = RawAttr::new().u32(0, program.program_type).u32(4, 2).reads(8, &instructions).reads(16, license);
    attr = attr.u32(44, flags).u32(68, program.attach_type).u32(108, program.attach_btf_id);
    if let Some(token) = token {
        attr = attr.fd(144, token);
    }
    attr.open(PROG_LOAD)
}
