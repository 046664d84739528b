//! The declarations of an ELF object that plans need. Parsed by `kernel::object`, used by `model::plan`.

use std::collections::BTreeSet;

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName};
use crate::model::gate::ExecutableDigest;

/// The declarations of one object file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectFacts {
    /// Programs in the order of the file.
    pub programs: Vec<ProgramFacts>,
    /// Maps, including the data sections (`.rodata`, `.data`, `.bss`).
    pub maps: Vec<MapFacts>,
    /// Variables in `.rodata` and `.data` that the object's BTF describes.
    pub globals: Vec<GlobalFacts>,
    /// True if the object has CO-RE relocation records, which require reading the kernel's BTF.
    pub core: bool,
    /// True if the object has signatures of its programs.
    pub signed: bool,
    /// The executables that may load programs where the policy takes them from images.
    pub executables: BTreeSet<ExecutableDigest>,
}

/// One program of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramFacts {
    /// The function's name.
    pub function: String,
    /// Its ELF section as written by the author: `xdp`, `cgroup/connect4`.
    pub section: String,
    /// Kind and attach point according to the section's name; None if the name is not a known one.
    pub declared: Option<SectionAttach>,
}

/// The meaning of a libbpf section name: the kind of program and, if the name has it, the attach point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SectionAttach {
    /// `xdp`, `xdp.frags`
    Xdp,
    /// `tcx/ingress`, `tcx/egress`; `tc` and `classifier` have no direction
    Tcx(Option<Direction>),
    /// `cgroup_skb/egress`, `cgroup/connect4`, `sockops`; None if the name has only the kind (`cgroup/skb`)
    Cgroup(ProgramKind, Option<CgroupAttach>),
    /// `tracepoint/sched/sched_switch`, `tp/…`; None for a bare `tracepoint`
    Tracepoint(Option<TracepointName>),
    /// `raw_tracepoint/sched_switch`, `raw_tp/…`; None for a bare `raw_tracepoint`
    RawTracepoint(Option<String>),
    /// `kprobe/function`, `fentry/function`, `lsm/hook` and similar ones; None if the name has only the kind
    Function(ProgramKind, Option<String>),
    /// `uprobe//bin/sh:main`, `uretprobe/libc.so.6:malloc`; None if the name has only the kind
    Uprobe(ProgramKind, Option<(String, String)>),
    /// Any other kind, and what follows it in the section's name: `iter/task`, `struct_ops/member`, `usdt/…`.
    Other(ProgramKind, Option<String>),
}

impl SectionAttach {
    /// The kind of program.
    pub fn kind(&self) -> ProgramKind {
        match self {
            Self::Xdp => ProgramKind::Xdp,
            Self::Tcx(_) => ProgramKind::Tcx,
            Self::Cgroup(kind, _) | Self::Function(kind, _) | Self::Uprobe(kind, _) | Self::Other(kind, _) => *kind,
            Self::Tracepoint(_) => ProgramKind::Tracepoint,
            Self::RawTracepoint(_) => ProgramKind::RawTracepoint,
        }
    }
}

/// One map of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapFacts {
    /// The name in the object; `.rodata` and the like for data sections.
    pub name: String,
    /// `enum bpf_map_type` of uapi/linux/bpf.h.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Maximum number of entries; bytes for ring buffers.
    pub max_entries: u32,
    /// `map_flags` of BPF_MAP_CREATE.
    pub flags: u32,
    /// True for `.rodata`, `.data`, `.bss` and similar sections.
    pub data_section: bool,
}

impl MapFacts {
    /// A lower bound, in bytes, of the map's kernel memory: keys and values of all entries, ring buffers at their size;
    /// per-CPU maps count once per CPU. It is computed without the kernel.
    pub fn memory(&self, cpus: u64) -> u64 {
        const RINGBUF: u32 = 27;
        const USER_RINGBUF: u32 = 31;
        const PERCPU: [u32; 4] = [5, 6, 10, 21];
        let entries = u64::from(self.max_entries);
        match self.map_type {
            RINGBUF | USER_RINGBUF => entries,
            kind => {
                let per_cpu = if PERCPU.contains(&kind) { cpus.max(1) } else { 1 };
                let value = u64::from(self.value_size).div_ceil(8).saturating_mul(8).saturating_mul(per_cpu);
                u64::from(self.key_size).saturating_add(value).saturating_mul(entries)
            }
        }
    }
}

/// A variable that `globals` may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalFacts {
    /// The variable's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u32,
    /// Its type according to the object's BTF.
    pub ty: GlobalType,
    /// True for a variable in `.rodata` (`const volatile`).
    pub read_only: bool,
}

/// The types of variables that a `globals` entry can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GlobalType {
    /// An integer or enum of 1, 2, 4 or 8 bytes.
    Int {
        /// Bytes.
        size: u32,
        /// True for a signed type.
        signed: bool,
    },
    /// `bool`.
    Bool,
    /// `char[N]`: takes strings, NUL-terminated.
    Chars {
        /// N.
        len: u32,
    },
    /// An array of one of the above.
    Array {
        /// The element.
        of: Box<GlobalType>,
        /// Elements.
        len: u32,
    },
    /// Any other type: takes `hex:` bytes of exactly its size.
    Opaque,
}
