//! Kinds of programs and the places where they attach.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program type as users write it in `programs` and in policy files; the words are bpfman's and the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// BPF_PROG_TYPE_XDP on one interface.
    Xdp,
    /// BPF_PROG_TYPE_SCHED_CLS through a tcx link (kernel 6.6).
    Tcx,
    /// BPF_PROG_TYPE_SCHED_CLS through clsact and bpfman's dispatcher.
    Tc,
    /// BPF_PROG_TYPE_CGROUP_SKB.
    CgroupSkb,
    /// BPF_PROG_TYPE_CGROUP_SOCK.
    CgroupSock,
    /// BPF_PROG_TYPE_CGROUP_SOCK_ADDR.
    CgroupSockAddr,
    /// BPF_PROG_TYPE_CGROUP_SOCKOPT.
    CgroupSockopt,
    /// BPF_PROG_TYPE_CGROUP_SYSCTL.
    CgroupSysctl,
    /// BPF_PROG_TYPE_CGROUP_DEVICE.
    CgroupDevice,
    /// BPF_PROG_TYPE_SOCK_OPS.
    SockOps,
    /// BPF_PROG_TYPE_SK_LOOKUP.
    SkLookup,
    /// BPF_PROG_TYPE_FLOW_DISSECTOR.
    FlowDissector,
    /// BPF_PROG_TYPE_NETFILTER.
    Netfilter,
    /// BPF_PROG_TYPE_KPROBE on a user-space function.
    Uprobe,
    /// BPF_PROG_TYPE_KPROBE on the return of a user-space function.
    Uretprobe,
    /// BPF_PROG_TYPE_TRACEPOINT.
    Tracepoint,
    /// BPF_PROG_TYPE_RAW_TRACEPOINT.
    RawTracepoint,
    /// BPF_PROG_TYPE_TRACING on a BTF-typed raw tracepoint.
    TpBtf,
    /// BPF_PROG_TYPE_KPROBE on a kernel function.
    Kprobe,
    /// BPF_PROG_TYPE_KPROBE on the return of a kernel function.
    Kretprobe,
    /// BPF_PROG_TYPE_TRACING at a kernel function's entry.
    Fentry,
    /// BPF_PROG_TYPE_TRACING at a kernel function's exit.
    Fexit,
    /// BPF_PROG_TYPE_LSM.
    Lsm,
    /// BPF_PROG_TYPE_PERF_EVENT.
    PerfEvent,
    /// BPF_PROG_TYPE_TRACING as an iterator.
    Iter,
}

/// What a program can reach. Container scope needs no special policy; host scope is refused unless policy allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The container alone: its network namespace, its cgroup.
    Container,
    /// Every process of the host.
    Host,
}

impl ProgramKind {
    /// Every kind with its word, in the order of the documentation.
    pub const ALL: [(ProgramKind, &'static str); 25] = [
        (Self::Xdp, "xdp"),
        (Self::Tcx, "tcx"),
        (Self::Tc, "tc"),
        (Self::CgroupSkb, "cgroup_skb"),
        (Self::CgroupSock, "cgroup_sock"),
        (Self::CgroupSockAddr, "cgroup_sock_addr"),
        (Self::CgroupSockopt, "cgroup_sockopt"),
        (Self::CgroupSysctl, "cgroup_sysctl"),
        (Self::CgroupDevice, "cgroup_device"),
        (Self::SockOps, "sock_ops"),
        (Self::SkLookup, "sk_lookup"),
        (Self::FlowDissector, "flow_dissector"),
        (Self::Netfilter, "netfilter"),
        (Self::Uprobe, "uprobe"),
        (Self::Uretprobe, "uretprobe"),
        (Self::Tracepoint, "tracepoint"),
        (Self::RawTracepoint, "raw_tracepoint"),
        (Self::TpBtf, "tp_btf"),
        (Self::Kprobe, "kprobe"),
        (Self::Kretprobe, "kretprobe"),
        (Self::Fentry, "fentry"),
        (Self::Fexit, "fexit"),
        (Self::Lsm, "lsm"),
        (Self::PerfEvent, "perf_event"),
        (Self::Iter, "iter"),
    ];

    /// The kind that a word names, or None.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(kind, _)| *kind)
    }

    /// The word that users write for this kind.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map(|(_, w)| *w).expect("ALL lists every kind")
    }

    /// How far a program of this kind reaches when it sits on the container's own network namespace or cgroup.
    pub fn scope(self) -> Scope {
        use ProgramKind as K;
        match self {
            K::Xdp
            | K::Tcx
            | K::Tc
            | K::CgroupSkb
            | K::CgroupSock
            | K::CgroupSockAddr
            | K::CgroupSockopt
            | K::CgroupSysctl
            | K::CgroupDevice
            | K::SockOps
            | K::SkLookup
            | K::FlowDissector
            | K::Netfilter => Scope::Container,
            K::Uprobe
            | K::Uretprobe
            | K::Tracepoint
            | K::RawTracepoint
            | K::TpBtf
            | K::Kprobe
            | K::Kretprobe
            | K::Fentry
            | K::Fexit
            | K::Lsm
            | K::PerfEvent
            | K::Iter => Scope::Host,
        }
    }

    /// True where the program sits on the container's cgroup.
    pub fn on_cgroup(self) -> bool {
        use ProgramKind as K;
        matches!(
            self,
            K::CgroupSkb
                | K::CgroupSock
                | K::CgroupSockAddr
                | K::CgroupSockopt
                | K::CgroupSysctl
                | K::CgroupDevice
                | K::SockOps
        )
    }

    /// True where the program sits on the container's network namespace or one of its interfaces.
    pub fn on_netns(self) -> bool {
        use ProgramKind as K;
        matches!(self, K::Xdp | K::Tcx | K::Tc | K::SkLookup | K::FlowDissector | K::Netfilter)
    }

    /// True where this version loads and attaches the kind; the others are parsed and refused by name.
    pub fn supported(self) -> bool {
        use ProgramKind as K;
        matches!(
            self,
            K::Xdp | K::Tcx | K::CgroupSkb | K::CgroupSock | K::CgroupSockAddr | K::SockOps | K::Tracepoint | K::RawTracepoint
        )
    }
}

impl fmt::Display for ProgramKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The side of an interface that a tcx program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
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

/// An attach type of the cgroup family; the numbers are `enum bpf_attach_type` of uapi/linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum CgroupAttach {
    /// BPF_CGROUP_INET_INGRESS
    Ingress = 0,
    /// BPF_CGROUP_INET_EGRESS
    Egress = 1,
    /// BPF_CGROUP_INET_SOCK_CREATE
    SockCreate = 2,
    /// BPF_CGROUP_SOCK_OPS
    SockOps = 3,
    /// BPF_CGROUP_INET4_BIND
    Bind4 = 8,
    /// BPF_CGROUP_INET6_BIND
    Bind6 = 9,
    /// BPF_CGROUP_INET4_CONNECT
    Connect4 = 10,
    /// BPF_CGROUP_INET6_CONNECT
    Connect6 = 11,
    /// BPF_CGROUP_INET4_POST_BIND
    PostBind4 = 12,
    /// BPF_CGROUP_INET6_POST_BIND
    PostBind6 = 13,
    /// BPF_CGROUP_UDP4_SENDMSG
    Sendmsg4 = 14,
    /// BPF_CGROUP_UDP6_SENDMSG
    Sendmsg6 = 15,
    /// BPF_CGROUP_UDP4_RECVMSG
    Recvmsg4 = 19,
    /// BPF_CGROUP_UDP6_RECVMSG
    Recvmsg6 = 20,
    /// BPF_CGROUP_INET4_GETPEERNAME
    Getpeername4 = 29,
    /// BPF_CGROUP_INET6_GETPEERNAME
    Getpeername6 = 30,
    /// BPF_CGROUP_INET4_GETSOCKNAME
    Getsockname4 = 31,
    /// BPF_CGROUP_INET6_GETSOCKNAME
    Getsockname6 = 32,
    /// BPF_CGROUP_INET_SOCK_RELEASE
    SockRelease = 34,
}

impl CgroupAttach {
    /// Every attach type: the word of `attach=` and of the ELF section, and the program kind it belongs to.
    pub const ALL: [(CgroupAttach, &'static str, ProgramKind); 19] = [
        (Self::Ingress, "ingress", ProgramKind::CgroupSkb),
        (Self::Egress, "egress", ProgramKind::CgroupSkb),
        (Self::SockCreate, "sock_create", ProgramKind::CgroupSock),
        (Self::SockRelease, "sock_release", ProgramKind::CgroupSock),
        (Self::PostBind4, "post_bind4", ProgramKind::CgroupSock),
        (Self::PostBind6, "post_bind6", ProgramKind::CgroupSock),
        (Self::SockOps, "sock_ops", ProgramKind::SockOps),
        (Self::Bind4, "bind4", ProgramKind::CgroupSockAddr),
        (Self::Bind6, "bind6", ProgramKind::CgroupSockAddr),
        (Self::Connect4, "connect4", ProgramKind::CgroupSockAddr),
        (Self::Connect6, "connect6", ProgramKind::CgroupSockAddr),
        (Self::Sendmsg4, "sendmsg4", ProgramKind::CgroupSockAddr),
        (Self::Sendmsg6, "sendmsg6", ProgramKind::CgroupSockAddr),
        (Self::Recvmsg4, "recvmsg4", ProgramKind::CgroupSockAddr),
        (Self::Recvmsg6, "recvmsg6", ProgramKind::CgroupSockAddr),
        (Self::Getpeername4, "getpeername4", ProgramKind::CgroupSockAddr),
        (Self::Getpeername6, "getpeername6", ProgramKind::CgroupSockAddr),
        (Self::Getsockname4, "getsockname4", ProgramKind::CgroupSockAddr),
        (Self::Getsockname6, "getsockname6", ProgramKind::CgroupSockAddr),
    ];

    /// The word users write, as in libbpf's section names (`cgroup/connect4`).
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(a, ..)| *a == self).map(|(_, w, _)| *w).expect("ALL lists every attach type")
    }

    /// The attach type that a word names, or None.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w, _)| *w == word).map(|(a, ..)| *a)
    }

    /// The kind of program that this attach type takes.
    pub fn kind(self) -> ProgramKind {
        Self::ALL.iter().find(|(a, ..)| *a == self).map(|(.., k)| *k).expect("ALL lists every attach type")
    }

    /// The kernel's number, `enum bpf_attach_type`.
    pub fn raw(self) -> u32 {
        self as u32
    }
}

/// A network interface as it was found in the container's network namespace.
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
    /// The subsystem, as `sched`.
    pub category: String,
    /// The event, as `sched_switch`.
    pub name: String,
}

/// Where a program attaches, complete: one variant per kind of link, with exactly its own fields.
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
        /// The side of it.
        direction: Direction,
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
}

impl AttachPoint {
    /// The kind of link, in the word that `list links` prints.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Xdp { .. } => "xdp",
            Self::Tcx { .. } => "tcx",
            Self::Cgroup { attach } => attach.kind().word(),
            Self::Tracepoint { .. } => "tracepoint",
            Self::RawTracepoint { .. } => "raw_tracepoint",
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_to_their_kind() {
        for (kind, word) in ProgramKind::ALL {
            assert_eq!(ProgramKind::from_word(word), Some(kind));
            assert_eq!(kind.word(), word);
            assert!(!(kind.on_cgroup() && kind.on_netns()), "{word}");
            assert_eq!(kind.on_cgroup() || kind.on_netns(), kind.scope() == Scope::Container, "{word}");
        }
        for (attach, word, kind) in CgroupAttach::ALL {
            assert_eq!(CgroupAttach::from_word(word), Some(attach));
            assert_eq!((attach.word(), attach.kind()), (word, kind));
        }
    }
}
