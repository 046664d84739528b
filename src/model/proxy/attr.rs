//! The layout of `union bpf_attr` for the notified commands, and a copy of one.
//!
//! Offsets and sizes are those of uapi/linux/bpf.h, Linux 7.2. Fields are only ever added behind the last one of a
//! command. What lies behind the last field that this table knows must be zero, so a newer field is never passed on
//! unread.

use super::{ProxyErrno, ProxyRefusal};

/// Size of the copy: `union bpf_attr` up to the last field of BPF_PROG_LOAD.
pub const ATTR_SIZE: usize = 168;
/// The kernel refuses a larger `size` (kernel/bpf/syscall.c, `bpf_check_uarg_tail_zero`).
pub const CALLER_SIZE_MAX: u64 = 4096;

/// Limits in bytes of what one call makes the proxy copy.
const INSTRUCTIONS_MAX: u64 = 1_000_000;
/// BTF, and each kind of record.
const BYTES_MAX: u64 = 16 << 20;
/// The size of a buffer for a log. libbpf's default is one byte less.
pub const LOG_MAX: u64 = 16 << 20;
/// The kernel copies 127 bytes of a license and a NUL.
const LICENSE_MAX: u64 = 128;
/// Functions that one link probes. The kernel allows 1 048 576 (MAX_KPROBE_MULTI_CNT); it has some 60 000 that can be probed.
const PROBES_MAX: u64 = 1 << 16;
/// The path of a file, with its NUL.
const PATH_MAX: u64 = 4096;
/// The name of a function of the kernel, with its NUL: KSYM_NAME_LEN since Linux 6.1.
pub const FUNCTION_NAME_MAX: usize = 512;
/// The name of a raw tracepoint: the kernel's buffer has 128 bytes.
const TRACEPOINT_MAX: u64 = 128;

/// `BPF_COMMON_ATTRS`, Linux 7.2: two more arguments follow.
pub const COMMON_ATTRS: u64 = 1 << 16;

/// Offsets of BPF_MAP_CREATE.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod map {
    pub const TYPE: usize = 0;
    pub const KEY_SIZE: usize = 4;
    pub const VALUE_SIZE: usize = 8;
    pub const MAX_ENTRIES: usize = 12;
    pub const FLAGS: usize = 16;
    pub const INNER_MAP_FD: usize = 20;
    pub const NAME: usize = 28;
    pub const IFINDEX: usize = 44;
    pub const BTF_FD: usize = 48;
    pub const BTF_KEY_TYPE: usize = 52;
    pub const BTF_VALUE_TYPE: usize = 56;
    pub const VMLINUX_VALUE_TYPE: usize = 60;
    pub const VALUE_BTF_FD: usize = 72;
    pub const TOKEN_FD: usize = 76;
    pub const PROGRAM_HASH: usize = 80;
    pub const PROGRAM_HASH_SIZE: usize = 88;
}

/// Offsets of BPF_PROG_LOAD.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod prog {
    pub const TYPE: usize = 0;
    pub const INSN_CNT: usize = 4;
    pub const INSNS: usize = 8;
    pub const LICENSE: usize = 16;
    pub const LOG_LEVEL: usize = 24;
    pub const LOG_SIZE: usize = 28;
    pub const LOG_BUF: usize = 32;
    pub const FLAGS: usize = 44;
    pub const NAME: usize = 48;
    pub const IFINDEX: usize = 64;
    pub const EXPECTED_ATTACH_TYPE: usize = 68;
    pub const BTF_FD: usize = 72;
    pub const FUNC_INFO_REC_SIZE: usize = 76;
    pub const FUNC_INFO: usize = 80;
    pub const FUNC_INFO_CNT: usize = 88;
    pub const LINE_INFO_REC_SIZE: usize = 92;
    pub const LINE_INFO: usize = 96;
    pub const LINE_INFO_CNT: usize = 104;
    pub const ATTACH_BTF_ID: usize = 108;
    pub const ATTACH_FD: usize = 112;
    pub const CORE_RELO_CNT: usize = 116;
    pub const FD_ARRAY: usize = 120;
    pub const CORE_RELOS: usize = 128;
    pub const CORE_RELO_REC_SIZE: usize = 136;
    pub const LOG_TRUE_SIZE: usize = 140;
    pub const TOKEN_FD: usize = 144;
    pub const FD_ARRAY_CNT: usize = 148;
    pub const SIGNATURE: usize = 152;
    pub const SIGNATURE_SIZE: usize = 160;
    pub const KEYRING_ID: usize = 164;
}

/// Offsets of BPF_BTF_LOAD.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod btf {
    pub const DATA: usize = 0;
    pub const LOG_BUF: usize = 8;
    pub const SIZE: usize = 16;
    pub const LOG_SIZE: usize = 20;
    pub const LOG_LEVEL: usize = 24;
    pub const LOG_TRUE_SIZE: usize = 28;
    pub const FLAGS: usize = 32;
    pub const TOKEN_FD: usize = 36;
}

/// Offsets of BPF_LINK_CREATE. What follows depends on the attach type.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod link {
    pub const PROG_FD: usize = 0;
    pub const TARGET: usize = 4;
    pub const ATTACH_TYPE: usize = 8;
    pub const FLAGS: usize = 12;
    /// A program or link before or behind which a tcx, netkit or cgroup link goes: a descriptor, or with BPF_F_ID an id.
    pub const RELATIVE: usize = 16;
    /// Iterators: a pointer to what is iterated over, and its size.
    pub const ITER_INFO: usize = 16;
    pub const ITER_INFO_SIZE: usize = 24;
}

/// Offsets of BPF_LINK_CREATE for kprobe_multi and kprobe_session.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod kprobe_multi {
    pub const FLAGS: usize = 16;
    pub const COUNT: usize = 20;
    pub const SYMBOLS: usize = 24;
    pub const ADDRESSES: usize = 32;
    pub const COOKIES: usize = 40;
}

/// Offsets of BPF_LINK_CREATE for uprobe_multi and uprobe_session.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod uprobe_multi {
    pub const PATH: usize = 16;
    pub const OFFSETS: usize = 24;
    pub const REF_CTR_OFFSETS: usize = 32;
    pub const COOKIES: usize = 40;
    pub const COUNT: usize = 48;
    pub const FLAGS: usize = 52;
    pub const PID: usize = 56;
}

/// Attach types trace_kprobe_multi, trace_kprobe_session.
pub const KPROBE_MULTI: [u32; 2] = [42, 56];
/// Attach types trace_uprobe_multi, trace_uprobe_session.
pub const UPROBE_MULTI: [u32; 2] = [48, 57];
/// Attach type trace_iter.
pub const ITERATOR: u32 = 28;

/// Offsets of BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod attach {
    pub const TARGET: usize = 0;
    pub const PROG_FD: usize = 4;
    pub const ATTACH_TYPE: usize = 8;
    pub const FLAGS: usize = 12;
    pub const REPLACE_FD: usize = 16;
    pub const RELATIVE: usize = 20;
}

/// Offsets of BPF_RAW_TRACEPOINT_OPEN.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod raw_tracepoint {
    pub const NAME: usize = 0;
    pub const PROG_FD: usize = 8;
}

/// Offsets of BPF_BTF_GET_FD_BY_ID.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod by_id {
    pub const ID: usize = 0;
    pub const NEXT_ID: usize = 4;
    pub const FLAGS: usize = 8;
    pub const TOKEN_FD: usize = 12;
}

/// A command of `enum bpf_cmd` that creates or attaches, or gives a right. Others either need a descriptor or a path
/// that the caller has, so that the kernel checks the caller, or are refused by the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the command with its name")]
pub enum NotifiedCommand {
    MapCreate,
    ProgLoad,
    ProgAttach,
    ProgDetach,
    RawTracepointOpen,
    BtfLoad,
    BtfGetFdById,
    LinkCreate,
    TokenCreate,
}

impl NotifiedCommand {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::MapCreate,
        Self::ProgLoad,
        Self::ProgAttach,
        Self::ProgDetach,
        Self::RawTracepointOpen,
        Self::BtfLoad,
        Self::BtfGetFdById,
        Self::LinkCreate,
        Self::TokenCreate,
    ];

    /// Its value in `enum bpf_cmd`.
    pub const fn number(self) -> u32 {
        match self {
            Self::MapCreate => 0,
            Self::ProgLoad => 5,
            Self::ProgAttach => 8,
            Self::ProgDetach => 9,
            Self::RawTracepointOpen => 17,
            Self::BtfLoad => 18,
            Self::BtfGetFdById => 19,
            Self::LinkCreate => 28,
            Self::TokenCreate => 36,
        }
    }

    /// The command of a call, from its first argument. The kernel's parameter is an int, so the upper half is ignored.
    ///
    /// # Errors
    /// EINVAL with [`COMMON_ATTRS`], as a kernel answers that does not know the flag; EPERM for other commands.
    pub fn of(argument: u64) -> Result<Self, ProxyRefusal> {
        let number = u32::try_from(argument & 0xffff_ffff).unwrap_or(u32::MAX);
        if u64::from(number) & COMMON_ATTRS != 0 {
            return Err(ProxyRefusal::CommonAttrs);
        }
        let known = Self::ALL.into_iter().find(|command| command.number() == number);
        known.ok_or(ProxyRefusal::Command { number })
    }

    /// Bytes of `union bpf_attr` that the command reads.
    pub const fn size(self) -> usize {
        match self {
            Self::MapCreate => 96,
            Self::ProgLoad => ATTR_SIZE,
            Self::ProgAttach | Self::ProgDetach => 32,
            Self::RawTracepointOpen => 24,
            Self::BtfLoad => 40,
            Self::BtfGetFdById => 16,
            // The largest variant whose layout is known: tcx, netkit and cgroup end with `expected_revision`.
            Self::LinkCreate => 32,
            Self::TokenCreate => 8,
        }
    }

    /// As [`Self::size`], of a call with an attach type: that of BPF_LINK_CREATE decides what follows it.
    fn size_with(self, attach_type: u32) -> usize {
        match self {
            Self::LinkCreate if KPROBE_MULTI.contains(&attach_type) => 48,
            Self::LinkCreate if UPROBE_MULTI.contains(&attach_type) => 60,
            _ => self.size(),
        }
    }

    /// The pointers of the command, each with what it points to; those of BPF_LINK_CREATE depend on its attach type. A
    /// pointer that is not listed must be zero.
    pub fn pointers(self, attach_type: u32) -> &'static [AttrPointer] {
        const fn pointer(at: usize, extent: Extent) -> AttrPointer {
            AttrPointer { at, extent }
        }
        const MAP_CREATE: &[AttrPointer] = &[pointer(map::PROGRAM_HASH, Extent::Bytes { size_at: map::PROGRAM_HASH_SIZE })];
        const PROG_LOAD: &[AttrPointer] = &[
            pointer(prog::INSNS, Extent::Instructions { count_at: prog::INSN_CNT }),
            pointer(prog::LICENSE, Extent::Text { max: LICENSE_MAX }),
            pointer(prog::LOG_BUF, Extent::Log { size_at: prog::LOG_SIZE }),
            pointer(prog::FUNC_INFO, Extent::Records { size_at: prog::FUNC_INFO_REC_SIZE, count_at: prog::FUNC_INFO_CNT }),
            pointer(prog::LINE_INFO, Extent::Records { size_at: prog::LINE_INFO_REC_SIZE, count_at: prog::LINE_INFO_CNT }),
            pointer(prog::CORE_RELOS, Extent::Records { size_at: prog::CORE_RELO_REC_SIZE, count_at: prog::CORE_RELO_CNT }),
        ];
        const BTF_LOAD: &[AttrPointer] = &[
            pointer(btf::DATA, Extent::Bytes { size_at: btf::SIZE }),
            pointer(btf::LOG_BUF, Extent::Log { size_at: btf::LOG_SIZE }),
        ];
        const RAW_TRACEPOINT: &[AttrPointer] = &[pointer(raw_tracepoint::NAME, Extent::Text { max: TRACEPOINT_MAX })];
        const KPROBES: &[AttrPointer] = &[
            pointer(kprobe_multi::SYMBOLS, Extent::Names { count_at: kprobe_multi::COUNT }),
            pointer(kprobe_multi::ADDRESSES, Extent::Words { count_at: kprobe_multi::COUNT }),
            pointer(kprobe_multi::COOKIES, Extent::Words { count_at: kprobe_multi::COUNT }),
        ];
        const UPROBES: &[AttrPointer] = &[
            pointer(uprobe_multi::PATH, Extent::File),
            pointer(uprobe_multi::OFFSETS, Extent::Words { count_at: uprobe_multi::COUNT }),
            pointer(uprobe_multi::REF_CTR_OFFSETS, Extent::Words { count_at: uprobe_multi::COUNT }),
            pointer(uprobe_multi::COOKIES, Extent::Words { count_at: uprobe_multi::COUNT }),
        ];
        match self {
            Self::LinkCreate if KPROBE_MULTI.contains(&attach_type) => KPROBES,
            Self::LinkCreate if UPROBE_MULTI.contains(&attach_type) => UPROBES,
            Self::MapCreate => MAP_CREATE,
            Self::ProgLoad => PROG_LOAD,
            Self::BtfLoad => BTF_LOAD,
            Self::RawTracepointOpen => RAW_TRACEPOINT,
            Self::ProgAttach | Self::ProgDetach | Self::BtfGetFdById | Self::LinkCreate | Self::TokenCreate => &[],
        }
    }
}

/// A pointer in `union bpf_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttrPointer {
    /// Its offset.
    pub at: usize,
    /// What it points to.
    pub extent: Extent,
}

/// How much memory a pointer refers to. The offsets are those of 32-bit fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Input of a size in bytes.
    Bytes {
        /// The size's offset.
        size_at: usize,
    },
    /// Instructions of eight bytes.
    Instructions {
        /// The count's offset.
        count_at: usize,
    },
    /// Records.
    Records {
        /// The offset of the size in bytes of one.
        size_at: usize,
        /// The count's offset.
        count_at: usize,
    },
    /// Text with a NUL.
    Text {
        /// Its size in bytes at most, with the NUL.
        max: u64,
    },
    /// 64-bit words.
    Words {
        /// The count's offset.
        count_at: usize,
    },
    /// Pointers to texts with a NUL: names of functions.
    Names {
        /// The count's offset.
        count_at: usize,
    },
    /// The path of a file, with a NUL.
    File,
    /// Output: the verifier's log.
    Log {
        /// The offset of its size in bytes.
        size_at: usize,
    },
}

/// What one pointer of a call refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedCopy {
    /// The pointer.
    pub pointer: AttrPointer,
    /// The address in the caller.
    pub address: u64,
    /// Size in bytes; of a text at most.
    pub length: u64,
}

/// A copy of a caller's `union bpf_attr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedAttr {
    /// The command.
    pub command: NotifiedCommand,
    bytes: [u8; ATTR_SIZE],
    size: u64,
}

impl CopiedAttr {
    /// Takes the bytes of a call: all that the caller's `size` covers.
    ///
    /// # Errors
    /// E2BIG for a byte that is not zero behind [`ATTR_SIZE`], EINVAL for one behind the command's last field, like the
    /// kernel.
    pub fn new(command: NotifiedCommand, given: &[u8]) -> Result<Self, ProxyRefusal> {
        let (known, beyond) = given.split_at(given.len().min(ATTR_SIZE));
        if beyond.iter().any(|byte| *byte != 0) {
            return Err(ProxyRefusal::UnknownField { errno: ProxyErrno::TOO_BIG });
        }
        let mut bytes = [0; ATTR_SIZE];
        bytes[..known.len()].copy_from_slice(known);
        let copied = Self { command, bytes, size: given.len() as u64 };
        if bytes[command.size_with(copied.u32(link::ATTACH_TYPE))..].iter().any(|byte| *byte != 0) {
            return Err(ProxyRefusal::UnknownField { errno: ProxyErrno::INVALID });
        }
        Ok(copied)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; ATTR_SIZE] {
        &self.bytes
    }

    /// The pointers, also those that are zero.
    pub fn pointers(&self) -> &'static [AttrPointer] {
        self.command.pointers(self.u32(link::ATTACH_TYPE))
    }

    /// The caller's size: the kernel writes results only within it.
    pub fn covers(&self, at: usize) -> bool {
        self.size >= at as u64 + 4
    }

    /// A 32-bit field.
    pub fn u32(&self, at: usize) -> u32 {
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_ne_bytes)
    }

    /// A 64-bit field.
    pub fn u64(&self, at: usize) -> u64 {
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_ne_bytes)
    }

    /// A descriptor.
    pub fn fd(&self, at: usize) -> i32 {
        self.u32(at).cast_signed()
    }

    /// The name of the map or program, for messages.
    pub fn name(&self) -> String {
        let at = match self.command {
            NotifiedCommand::MapCreate => map::NAME,
            NotifiedCommand::ProgLoad => prog::NAME,
            _ => return String::new(),
        };
        let field = &self.bytes[at..at + 16];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        field[..end].iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
    }

    /// What the pointers that are not zero refer to.
    ///
    /// # Errors
    /// E2BIG for more than the limits of this module.
    pub fn copies(&self) -> Result<Vec<WantedCopy>, ProxyRefusal> {
        let mut wanted = Vec::new();
        for pointer in self.pointers() {
            let address = self.u64(pointer.at);
            if address == 0 {
                continue;
            }
            let field = |at| u64::from(self.u32(at));
            let (length, max, what) = match pointer.extent {
                Extent::Bytes { size_at } => (field(size_at), BYTES_MAX, "data"),
                Extent::Instructions { count_at } => (field(count_at).saturating_mul(8), INSTRUCTIONS_MAX * 8, "instructions"),
                Extent::Records { size_at, count_at } => {
                    (field(size_at).saturating_mul(field(count_at)), BYTES_MAX, "records of functions, lines or relocations")
                }
                Extent::Text { max } => (max, max, "text"),
                Extent::Words { count_at } | Extent::Names { count_at } => {
                    (field(count_at).saturating_mul(8), PROBES_MAX * 8, "places of a probe")
                }
                Extent::File => (PATH_MAX, PATH_MAX, "path"),
                // The kernel also accepts a larger buffer; `log_true_size` then says how much it would have used.
                Extent::Log { size_at } => (field(size_at).min(LOG_MAX), LOG_MAX, "log"),
            };
            if length > max {
                return Err(ProxyRefusal::TooLarge { what, bytes: length, max });
            }
            wanted.push(WantedCopy { pointer: *pointer, address, length });
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_compared_like_the_kernel_does() {
        for command in NotifiedCommand::ALL {
            let number = u64::from(command.number());
            assert_eq!(NotifiedCommand::of(number), Ok(command));
            assert_eq!(NotifiedCommand::of(number | 0xdead_0000_0000_0000), Ok(command));
            assert_eq!(NotifiedCommand::of(number | COMMON_ATTRS), Err(ProxyRefusal::CommonAttrs));
            assert!(command.size() <= ATTR_SIZE);
        }
        for other in [1, 7, 13, 40, 0x2_0005, !COMMON_ATTRS] {
            assert!(matches!(NotifiedCommand::of(other), Err(ProxyRefusal::Command { .. })), "{other:#x}");
        }
    }

    #[test]
    fn what_lies_behind_the_known_fields_must_be_zero() {
        let command = NotifiedCommand::BtfLoad;
        let mut bytes = vec![0; 4096];
        assert!(CopiedAttr::new(command, &bytes).is_ok());
        bytes[command.size() - 1] = 1;
        assert!(CopiedAttr::new(command, &bytes).is_ok());
        bytes[command.size()] = 1;
        let refused = |bytes: &[u8]| CopiedAttr::new(command, bytes).unwrap_err().errno();
        assert_eq!(refused(&bytes), ProxyErrno::INVALID);
        bytes[command.size()] = 0;
        bytes[4095] = 1;
        assert_eq!(refused(&bytes), ProxyErrno::TOO_BIG);
        assert_eq!(refused(&[1; ATTR_SIZE]), ProxyErrno::INVALID);
        // A caller of an older kernel's header passes less.
        let short = CopiedAttr::new(NotifiedCommand::MapCreate, &[2, 0, 0, 0, 4]).unwrap();
        assert_eq!((short.u32(map::TYPE), short.u32(map::KEY_SIZE), short.u32(map::FLAGS)), (2, 4, 0));
        assert!(!short.covers(map::FLAGS) && short.covers(map::TYPE));
    }

    #[test]
    fn pointers_are_within_the_command_and_have_limits() {
        for command in NotifiedCommand::ALL {
            for attach_type in 0..64 {
                let (pointers, size) = (command.pointers(attach_type), command.size_with(attach_type));
                assert!(size <= ATTR_SIZE && pointers.iter().all(|pointer| pointer.at + 8 <= size && pointer.at % 8 == 0));
            }
        }
        let with = |fields: &[(usize, u64)]| {
            let mut bytes = [0; ATTR_SIZE];
            for (at, value) in fields {
                let width = if *value > u64::from(u32::MAX) { 8 } else { 4 };
                bytes[*at..at + width].copy_from_slice(&value.to_ne_bytes()[..width]);
            }
            CopiedAttr::new(NotifiedCommand::ProgLoad, &bytes).unwrap().copies()
        };
        const FAR: u64 = 0x7fff_0000_0000;
        assert_eq!(with(&[(prog::INSN_CNT, 2)]), Ok(Vec::new()));
        let copies =
            with(&[(prog::INSN_CNT, 2), (prog::INSNS, FAR), (prog::LOG_BUF, FAR), (prog::LOG_SIZE, 0xffff_ffff)]).unwrap();
        let lengths: Vec<_> = copies.iter().map(|copy| (copy.pointer.at, copy.length)).collect();
        assert_eq!(lengths, [(prog::INSNS, 16), (prog::LOG_BUF, LOG_MAX)]);
        for fields in [
            &[(prog::INSN_CNT, 1_000_001), (prog::INSNS, FAR)][..],
            &[(prog::FUNC_INFO, FAR), (prog::FUNC_INFO_CNT, 0xffff_ffff), (prog::FUNC_INFO_REC_SIZE, 0xffff_ffff)],
            &[(prog::LINE_INFO, FAR), (prog::LINE_INFO_CNT, 1 << 21), (prog::LINE_INFO_REC_SIZE, 16)],
        ] {
            assert_eq!(with(fields).unwrap_err().errno(), ProxyErrno::TOO_BIG);
        }
    }

    #[test]
    fn names_are_printable() {
        let mut bytes = [0; ATTR_SIZE];
        bytes[prog::NAME..prog::NAME + 6].copy_from_slice(b"co\nunt");
        assert_eq!(CopiedAttr::new(NotifiedCommand::ProgLoad, &bytes).unwrap().name(), "co?unt");
    }
}
