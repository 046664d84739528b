//! Attach types of cgroups.

use serde::{Deserialize, Serialize};

use super::ProgramKind;

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
    /// BPF_CGROUP_DEVICE
    Device = 6,
    /// BPF_CGROUP_SYSCTL
    Sysctl = 18,
    /// BPF_CGROUP_GETSOCKOPT
    Getsockopt = 21,
    /// BPF_CGROUP_SETSOCKOPT
    Setsockopt = 22,
    /// BPF_CGROUP_UNIX_CONNECT (kernel 6.7)
    ConnectUnix = 49,
    /// BPF_CGROUP_UNIX_SENDMSG
    SendmsgUnix = 50,
    /// BPF_CGROUP_UNIX_RECVMSG
    RecvmsgUnix = 51,
    /// BPF_CGROUP_UNIX_GETPEERNAME
    GetpeernameUnix = 52,
    /// BPF_CGROUP_UNIX_GETSOCKNAME
    GetsocknameUnix = 53,
}

impl CgroupAttach {
    /// Every attach type: its name in `attach=` and in the ELF section, and its program kind.
    pub const ALL: [(CgroupAttach, &'static str, ProgramKind); 28] = [
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
        (Self::ConnectUnix, "connect_unix", ProgramKind::CgroupSockAddr),
        (Self::SendmsgUnix, "sendmsg_unix", ProgramKind::CgroupSockAddr),
        (Self::RecvmsgUnix, "recvmsg_unix", ProgramKind::CgroupSockAddr),
        (Self::GetpeernameUnix, "getpeername_unix", ProgramKind::CgroupSockAddr),
        (Self::GetsocknameUnix, "getsockname_unix", ProgramKind::CgroupSockAddr),
        (Self::Getsockopt, "getsockopt", ProgramKind::CgroupSockopt),
        (Self::Setsockopt, "setsockopt", ProgramKind::CgroupSockopt),
        (Self::Sysctl, "sysctl", ProgramKind::CgroupSysctl),
        (Self::Device, "device", ProgramKind::CgroupDevice),
    ];

    /// The name that users write, as in libbpf's section names (`cgroup/connect4`).
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(a, ..)| *a == self).map(|(_, w, _)| *w).expect("ALL lists every attach type")
    }

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w, _)| *w == word).map(|(a, ..)| *a)
    }

    /// The kind of program for this attach type.
    pub fn kind(self) -> ProgramKind {
        Self::ALL.iter().find(|(a, ..)| *a == self).map(|(.., k)| *k).expect("ALL lists every attach type")
    }

    /// The kernel's number, `enum bpf_attach_type`.
    pub fn raw(self) -> u32 {
        self as u32
    }
}
