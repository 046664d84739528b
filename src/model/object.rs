//! What an ELF object declares, as far as plans need it. Read by `kernel::object`, used by `model::plan`.

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName};

/// The declarations of one object file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectFacts {
    /// Programs in the order of the file.
    pub programs: Vec<ProgramFacts>,
    /// Maps, the data sections (`.rodata`, `.data`, `.bss`) included.
    pub maps: Vec<MapFacts>,
    /// Variables in `.rodata` and `.data` that the object's BTF describes.
    pub globals: Vec<GlobalFacts>,
    /// True where the object has CO-RE relocation records, which cost a look into the kernel's BTF.
    pub core: bool,
}

/// One program of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramFacts {
    /// The function's name.
    pub function: String,
    /// The ELF section it stands in, as the author wrote it: `xdp`, `cgroup/connect4`.
    pub section: String,
    /// What the section's name says about kind and place; None where it says nothing we know.
    pub declared: Option<SectionAttach>,
}

/// What a libbpf section name says: the kind of program and, where it does, the attach point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SectionAttach {
    /// `xdp`, `xdp.frags`
    Xdp,
    /// `tcx/ingress`, `tcx/egress`; `tc`, `classifier` say no direction
    Tcx(Option<Direction>),
    /// `cgroup_skb/egress`, `cgroup/connect4`, `sockops`; None where only the kind is said (`cgroup/skb`)
    Cgroup(ProgramKind, Option<CgroupAttach>),
    /// `tracepoint/sched/sched_switch`, `tp/…`; None for a bare `tracepoint`
    Tracepoint(Option<TracepointName>),
    /// `raw_tracepoint/sched_switch`, `raw_tp/…`; None for a bare `raw_tracepoint`
    RawTracepoint(Option<String>),
    /// `kprobe/function`, `fentry/function`, `lsm/hook` and their like; None where only the kind is said
    Function(ProgramKind, Option<String>),
    /// `uprobe//bin/sh:main`, `uretprobe/libc.so.6:malloc`; None where only the kind is said
    Uprobe(ProgramKind, Option<(String, String)>),
    /// A kind that this version parses and refuses.
    Other(ProgramKind),
}

impl SectionAttach {
    /// The kind of program.
    pub fn kind(&self) -> ProgramKind {
        match self {
            Self::Xdp => ProgramKind::Xdp,
            Self::Tcx(_) => ProgramKind::Tcx,
            Self::Cgroup(kind, _) | Self::Function(kind, _) | Self::Uprobe(kind, _) | Self::Other(kind) => *kind,
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
    /// Entries at most; bytes for ring buffers.
    pub max_entries: u32,
    /// `map_flags` of BPF_MAP_CREATE.
    pub flags: u32,
    /// True for `.rodata`, `.data`, `.bss` and their kin.
    pub data_section: bool,
}

impl MapFacts {
    /// Bytes that the map may take in the kernel: keys and values of all entries, ring buffers as they are. A lower bound
    /// that needs no kernel; per-CPU maps count once per CPU.
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
    /// Bytes it takes.
    pub size: u32,
    /// Its type as the object's BTF has it.
    pub ty: GlobalType,
    /// True for a variable in `.rodata` (`const volatile`).
    pub read_only: bool,
}

/// The types that a `globals` entry can be written for.
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
    /// Anything else: takes `hex:` bytes of exactly its size.
    Opaque,
}
