//! Kinds of programs and their attach points.

mod cgroup;
mod kernel_type;
mod kind;
mod order;
mod place;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use cgroup::CgroupAttach;
pub use kernel_type::{TypeFilter, kernel_type_word};
pub use kind::{ProgramKind, Scope};
pub use order::{Order, OrderError};
pub use place::{PacketFamily, PacketHook, PlaceOptions, is_told, told_place};

/// The direction of the traffic that a tcx program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Incoming packets.
    Ingress,
    /// Outgoing packets.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Where in the network stack an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// In the driver (XDP_FLAGS_DRV_MODE).
    Native,
    /// In the generic path (XDP_FLAGS_SKB_MODE).
    Skb,
}

/// A network interface in the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interface {
    /// The name, at most 15 bytes.
    pub name: String,
    /// The index in that namespace.
    pub index: u32,
}

/// A kernel tracepoint, `category/name` below tracefs' `events`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TracepointName {
    /// The subsystem, such as `sched`.
    pub category: String,
    /// The event, such as `sched_switch`.
    pub name: String,
}

/// A network namespace, recorded so that attachments without a link can be found again after the process that made them
/// has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsRecord {
    /// The kernel's cookie, unique within a boot (SO_NETNS_COOKIE).
    pub cookie: u64,
    /// The file that names it, such as `/run/netns/blue`; None for the namespace of a container or of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// The processes that a uprobe sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbedProcess {
    /// Every process that maps the file, in any container.
    Any,
    /// The container's init.
    Init,
    /// One process, by its pid on the host.
    Pid(u32),
}

/// A place in a user-space program or library.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserProbe {
    /// An absolute path or the name of a library, in the root that is searched.
    pub target: String,
    /// The function; None if `offset` counts from the start of the file.
    pub symbol: Option<String>,
    /// Bytes from the function, or from the start of the file.
    pub offset: u64,
    /// The processes.
    pub process: ProbedProcess,
    /// The process in whose root the target is searched, by its pid on the host: `--container-pid`. None for the
    /// container of the request, or the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_pid: Option<u32>,
}

impl fmt::Display for UserProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target)?;
        match (&self.symbol, self.offset) {
            (Some(symbol), 0) => write!(f, ":{symbol}"),
            (Some(symbol), offset) => write!(f, ":{symbol}+{offset:#x}"),
            (None, offset) => write!(f, ":{offset:#x}"),
        }
    }
}

/// A complete attach point: one variant for each kind of link, with exactly its fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AttachPoint {
    /// An XDP link on an interface of the container's network namespace.
    Xdp {
        /// The interface.
        iface: Interface,
        /// The mode; None leaves the choice to the driver.
        mode: Option<XdpMode>,
    },
    /// A tcx link on an interface of the container's network namespace.
    Tcx {
        /// The interface.
        iface: Interface,
        /// The direction.
        direction: Direction,
    },
    /// A classifier on an interface: a tcx link if the kernel supports it, otherwise a clsact filter.
    Tc {
        /// The interface.
        iface: Interface,
        /// The direction.
        direction: Direction,
        /// The filter's `pref`, if it is a filter: lower values run first.
        priority: u16,
    },
    /// A cgroup link on the container's cgroup.
    Cgroup {
        /// The attach type.
        attach: CgroupAttach,
    },
    /// A perf link on a tracepoint; host-wide.
    Tracepoint {
        /// The tracepoint.
        tracepoint: TracepointName,
    },
    /// A raw tracepoint link; host-wide.
    RawTracepoint {
        /// The tracepoint's name without its category.
        name: String,
    },
    /// A perf link on a kernel function; host-wide.
    Kprobe {
        /// The function.
        function: String,
        /// Bytes from its start; 0 for returns.
        offset: u64,
        /// True if the program runs when the function returns.
        ret: bool,
    },
    /// A perf link on a place in a file, for every process that maps it or for one process.
    Uprobe {
        /// The place.
        probe: UserProbe,
        /// True if the program runs when the function returns.
        ret: bool,
    },
    /// A trampoline at a kernel function's entry; host-wide.
    Fentry {
        /// The function.
        function: String,
    },
    /// A trampoline at a kernel function's exit; host-wide.
    Fexit {
        /// The function.
        function: String,
    },
    /// A trampoline at an LSM hook; host-wide.
    Lsm {
        /// The hook, without `bpf_lsm_`.
        hook: String,
    },
    /// A link on a network namespace: sk_lookup, flow_dissector.
    Netns {
        /// The kind of program.
        kind: ProgramKind,
    },
    /// A netfilter link in a network namespace.
    Netfilter {
        /// The packets.
        family: PacketFamily,
        /// The hook.
        hook: PacketHook,
        /// Lower values run first.
        priority: i32,
    },
    /// What the program was loaded for: a tracepoint, an iterator, a kernel function; host-wide.
    Loaded {
        /// The kind of program.
        kind: ProgramKind,
        /// The name.
        target: String,
    },
    /// A link on many kernel functions; host-wide.
    KprobeMulti {
        /// kprobe_multi, kretprobe_multi or kprobe_session.
        kind: ProgramKind,
        /// Their name, or a pattern with `*` for any characters.
        functions: String,
    },
    /// A link on functions of one file, for every process that maps it or for one process.
    UprobeMulti {
        /// uprobe_multi, uretprobe_multi or uprobe_session.
        kind: ProgramKind,
        /// The file; its symbol is a list of functions, separated by commas.
        probe: UserProbe,
    },
    /// A perf link on the entry or the return of a system call; host-wide.
    Syscall {
        /// The system call, without the prefix of its architecture.
        name: String,
        /// True if the program runs when it returns.
        ret: bool,
    },
    /// A perf link on the clock of one processor.
    PerfEvent {
        /// The processor.
        cpu: u32,
        /// Samples per second.
        frequency: u32,
    },
}

impl AttachPoint {
    /// The kind of link, as `list links` prints it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Xdp { .. } => "xdp",
            Self::Tcx { .. } => "tcx",
            Self::Cgroup { attach } => attach.kind().word(),
            Self::Tracepoint { .. } => "tracepoint",
            Self::RawTracepoint { .. } => "raw_tracepoint",
            Self::Tc { .. } => "tc",
            Self::Kprobe { ret, .. } => {
                if *ret {
                    "kretprobe"
                } else {
                    "kprobe"
                }
            }
            Self::Uprobe { ret, .. } => {
                if *ret {
                    "uretprobe"
                } else {
                    "uprobe"
                }
            }
            Self::Fentry { .. } => "fentry",
            Self::Fexit { .. } => "fexit",
            Self::Lsm { .. } => "lsm",
            Self::Netfilter { .. } => "netfilter",
            Self::Netns { kind }
            | Self::Loaded { kind, .. }
            | Self::KprobeMulti { kind, .. }
            | Self::UprobeMulti { kind, .. } => kind.word(),
            Self::Syscall { ret: false, .. } => "ksyscall",
            Self::Syscall { ret: true, .. } => "kretsyscall",
            Self::PerfEvent { .. } => "perf_event",
        }
    }

    /// The interface and, if it matters, the direction.
    pub fn interface(&self) -> Option<(&Interface, Option<Direction>)> {
        match self {
            Self::Xdp { iface, .. } => Some((iface, None)),
            Self::Tcx { iface, direction } | Self::Tc { iface, direction, .. } => Some((iface, Some(*direction))),
            _ => None,
        }
    }
}

impl fmt::Display for AttachPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp { iface, .. } => f.write_str(&iface.name),
            Self::Tcx { iface, direction } => write!(f, "{} {direction}", iface.name),
            Self::Cgroup { attach } => f.write_str(attach.word()),
            Self::Tracepoint { tracepoint } => write!(f, "{}/{}", tracepoint.category, tracepoint.name),
            Self::RawTracepoint { name } => f.write_str(name),
            Self::Tc { iface, direction, .. } => write!(f, "{} {direction}", iface.name),
            Self::Kprobe { function, offset: 0, .. } => f.write_str(function),
            Self::Kprobe { function, offset, .. } => write!(f, "{function}+{offset:#x}"),
            Self::Uprobe { probe, .. } => probe.fmt(f),
            Self::Fentry { function } | Self::Fexit { function } => f.write_str(function),
            Self::Lsm { hook } => f.write_str(hook),
            Self::Netns { .. } => f.write_str("network namespace"),
            Self::Netfilter { family, hook, priority } => write!(f, "{family} {hook} priority {priority}"),
            Self::Loaded { target, .. } => f.write_str(target),
            Self::KprobeMulti { functions, .. } => f.write_str(functions),
            Self::UprobeMulti { probe, .. } => probe.fmt(f),
            Self::Syscall { name, .. } => f.write_str(name),
            Self::PerfEvent { cpu, frequency } => write!(f, "cpu {cpu}, {frequency} Hz"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip_through_their_names() {
        for (kind, word) in ProgramKind::ALL {
            assert_eq!(ProgramKind::from_word(word), Some(kind));
            assert_eq!(kind.word(), word);
            assert!(!(kind.on_cgroup() && kind.on_netns()), "{word}");
            let inside = kind.on_cgroup() && kind != ProgramKind::LsmCgroup || kind.on_netns();
            assert!(!inside || kind.scope() == Scope::Container, "{word}");
        }
        for (attach, word, kind) in CgroupAttach::ALL {
            assert_eq!(CgroupAttach::from_word(word), Some(attach));
            assert_eq!((attach.word(), attach.kind()), (word, kind));
        }
    }
}
