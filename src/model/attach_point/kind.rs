//! Kinds of programs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::is_told;

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
    /// BPF_PROG_TYPE_TRACING that replaces a kernel function's return value.
    FmodRet,
    /// BPF_PROG_TYPE_TRACING at both ends of a kernel function (kernel 7.0).
    Fsession,
    /// BPF_PROG_TYPE_KPROBE on many kernel functions.
    KprobeMulti,
    /// BPF_PROG_TYPE_KPROBE on the returns of many kernel functions.
    KretprobeMulti,
    /// BPF_PROG_TYPE_KPROBE at both ends of many kernel functions.
    KprobeSession,
    /// BPF_PROG_TYPE_KPROBE on many places of one file.
    UprobeMulti,
    /// BPF_PROG_TYPE_KPROBE on the returns of many functions of one file.
    UretprobeMulti,
    /// BPF_PROG_TYPE_KPROBE at both ends of many functions of one file.
    UprobeSession,
    /// BPF_PROG_TYPE_KPROBE on the probes that a program or library declares.
    Usdt,
    /// BPF_PROG_TYPE_KPROBE on the entry of a system call.
    Ksyscall,
    /// BPF_PROG_TYPE_KPROBE on the return of a system call.
    Kretsyscall,
    /// BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE.
    RawTracepointWritable,
    /// BPF_PROG_TYPE_LSM for the processes of a cgroup.
    LsmCgroup,
    /// BPF_PROG_TYPE_STRUCT_OPS.
    StructOps,
    /// BPF_PROG_TYPE_EXT, which replaces a function of another program.
    Ext,
    /// BPF_PROG_TYPE_SYSCALL, which runs when a process asks for it.
    Syscall,
    /// BPF_PROG_TYPE_SOCKET_FILTER, which a process attaches to a socket of its own.
    SocketFilter,
    /// BPF_PROG_TYPE_SK_REUSEPORT, which a process attaches to a socket of its own.
    SkReuseport,
    /// BPF_PROG_TYPE_SK_MSG on the sockets of a map.
    SkMsg,
    /// BPF_PROG_TYPE_SK_SKB on the sockets of a map.
    SkSkb,
    /// BPF_PROG_TYPE_SCHED_ACT, which `tc` attaches.
    SchedAct,
    /// BPF_PROG_TYPE_SCHED_CLS on a netkit device.
    Netkit,
    /// BPF_PROG_TYPE_LWT_IN on a route.
    LwtIn,
    /// BPF_PROG_TYPE_LWT_OUT on a route.
    LwtOut,
    /// BPF_PROG_TYPE_LWT_XMIT on a route.
    LwtXmit,
    /// BPF_PROG_TYPE_LWT_SEG6LOCAL on a route.
    LwtSeg6local,
    /// BPF_PROG_TYPE_LIRC_MODE2 on an infrared receiver.
    LircMode2,
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
    pub const ALL: [(ProgramKind, &'static str); 52] = [
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
        (Self::FmodRet, "fmod_ret"),
        (Self::Fsession, "fsession"),
        (Self::KprobeMulti, "kprobe_multi"),
        (Self::KretprobeMulti, "kretprobe_multi"),
        (Self::KprobeSession, "kprobe_session"),
        (Self::UprobeMulti, "uprobe_multi"),
        (Self::UretprobeMulti, "uretprobe_multi"),
        (Self::UprobeSession, "uprobe_session"),
        (Self::Usdt, "usdt"),
        (Self::Ksyscall, "ksyscall"),
        (Self::Kretsyscall, "kretsyscall"),
        (Self::RawTracepointWritable, "raw_tracepoint_writable"),
        (Self::LsmCgroup, "lsm_cgroup"),
        (Self::StructOps, "struct_ops"),
        (Self::Ext, "ext"),
        (Self::Syscall, "syscall"),
        (Self::SocketFilter, "socket_filter"),
        (Self::SkReuseport, "sk_reuseport"),
        (Self::SkMsg, "sk_msg"),
        (Self::SkSkb, "sk_skb"),
        (Self::SchedAct, "sched_act"),
        (Self::Netkit, "netkit"),
        (Self::LwtIn, "lwt_in"),
        (Self::LwtOut, "lwt_out"),
        (Self::LwtXmit, "lwt_xmit"),
        (Self::LwtSeg6local, "lwt_seg6local"),
        (Self::LircMode2, "lirc_mode2"),
    ];

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(kind, _)| *kind)
    }

    /// The name that users write for this kind.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map(|(_, w)| *w).expect("ALL lists every kind")
    }

    /// The scope of a program of this kind that is attached to the container's own network namespace, cgroup or sockets.
    pub fn scope(self) -> Scope {
        use ProgramKind as K;
        let sockets = matches!(
            self,
            K::SocketFilter
                | K::SkReuseport
                | K::SkMsg
                | K::SkSkb
                | K::SchedAct
                | K::LwtIn
                | K::LwtOut
                | K::LwtXmit
                | K::LwtSeg6local
        );
        if self.on_cgroup() && self != K::LsmCgroup || self.on_netns() || sockets { Scope::Container } else { Scope::Host }
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
                | K::LsmCgroup
        )
    }

    /// True if the program attaches to the container's network namespace or one of its interfaces.
    pub fn on_netns(self) -> bool {
        use ProgramKind as K;
        matches!(self, K::Xdp | K::Tcx | K::Tc | K::Netkit | K::SkLookup | K::FlowDissector | K::Netfilter)
    }

    /// True if what the program attaches to is specified when it is loaded, not when it is attached: a kernel function, a
    /// hook, a tracepoint, an iterator, a function of another program.
    pub fn fixed_at_load(self) -> bool {
        use ProgramKind as K;
        matches!(self, K::Fentry | K::Fexit | K::FmodRet | K::Fsession | K::Lsm | K::LsmCgroup | K::TpBtf | K::Iter | K::Ext)
    }

    /// True if a program of this kind can be loaded as the other kind: a classifier works for tc and tcx, and a program
    /// for a function's entry can also run at its return.
    pub fn loads_as(self, other: Self) -> bool {
        let class = |kind| match kind {
            Self::Tc => Self::Tcx,
            Self::Kretprobe | Self::Ksyscall | Self::Kretsyscall => Self::Kprobe,
            Self::Uretprobe => Self::Uprobe,
            Self::KretprobeMulti => Self::KprobeMulti,
            Self::UretprobeMulti => Self::UprobeMulti,
            kind => kind,
        };
        class(self) == class(other)
    }

    /// True if several programs may share one interface, so that `priority` and `proceed-on` have a meaning.
    pub fn has_order(self) -> bool {
        matches!(self, Self::Xdp | Self::Tcx | Self::Tc)
    }

    /// True if a program of the kind is attached by annotations of a container; the others are loaded by hand.
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
                | K::CgroupSockopt
                | K::CgroupSysctl
                | K::CgroupDevice
        ) || is_told(self)
    }
}

impl fmt::Display for ProgramKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
