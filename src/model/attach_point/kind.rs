//! Kinds of programs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program type as users write it in `programs` and in policy files; the names are those of bpfman and the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// BPF_PROG_TYPE_XDP on one interface.
    Xdp,
    /// BPF_PROG_TYPE_SCHED_CLS through a tcx link (kernel 6.6).
    Tcx,
    /// BPF_PROG_TYPE_SCHED_CLS through tcx, or through clsact on kernels without it.
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

/// The reach of a program. Container scope needs no special policy; host scope is refused unless the policy allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Only the container: its network namespace, its cgroup.
    Container,
    /// Every process of the host.
    Host,
}

impl ProgramKind {
    /// Every kind with its name, in the order of the documentation.
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

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(kind, _)| *kind)
    }

    /// The name that users write for this kind.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map(|(_, w)| *w).expect("ALL lists every kind")
    }

    /// The scope of a program of this kind that is attached to the container's own network namespace or cgroup.
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

    /// True if the program attaches to the container's cgroup.
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

    /// True if the program attaches to the container's network namespace or one of its interfaces.
    pub fn on_netns(self) -> bool {
        use ProgramKind as K;
        matches!(self, K::Xdp | K::Tcx | K::Tc | K::SkLookup | K::FlowDissector | K::Netfilter)
    }

    /// True if the kernel function of the program is specified when it is loaded, not when it is attached.
    pub fn fixed_at_load(self) -> bool {
        matches!(self, Self::Fentry | Self::Fexit | Self::Lsm)
    }

    /// True if a program of this kind can be loaded as the other kind: a classifier works for tc and tcx, and a program
    /// for a function's entry can also run at its return.
    pub fn loads_as(self, other: Self) -> bool {
        let class = |kind| match kind {
            Self::Tc => Self::Tcx,
            Self::Kretprobe => Self::Kprobe,
            Self::Uretprobe => Self::Uprobe,
            kind => kind,
        };
        class(self) == class(other)
    }

    /// True if several programs may share one interface, so that `priority` and `proceed-on` have a meaning.
    pub fn has_order(self) -> bool {
        matches!(self, Self::Xdp | Self::Tcx | Self::Tc)
    }

    /// True if the kind can be loaded and attached without a container.
    pub fn manual(self) -> bool {
        use ProgramKind as K;
        matches!(
            self,
            K::Xdp
                | K::Tcx
                | K::Tc
                | K::Tracepoint
                | K::Kprobe
                | K::Kretprobe
                | K::Uprobe
                | K::Uretprobe
                | K::Fentry
                | K::Fexit
                | K::Lsm
        )
    }

    /// True if this version loads and attaches the kind; the others are parsed and refused by name.
    pub fn supported(self) -> bool {
        use ProgramKind as K;
        matches!(
            self,
            K::Xdp
                | K::Tcx
                | K::Tc
                | K::CgroupSkb
                | K::CgroupSock
                | K::CgroupSockAddr
                | K::SockOps
                | K::Tracepoint
                | K::RawTracepoint
                | K::Kprobe
                | K::Kretprobe
                | K::Uprobe
                | K::Uretprobe
                | K::Fentry
                | K::Fexit
                | K::Lsm
        )
    }
}

impl fmt::Display for ProgramKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
