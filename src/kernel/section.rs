//! What ELF section names declare about programs, as defined by libbpf (Linux
//! `Documentation/bpf/libbpf/program_types.rst`) and as older compilers and aya write them.

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName};
use crate::model::delegation::section_load;
use crate::model::object::SectionAttach;

/// What a section name declares about its programs; None for a name that is not known.
///
/// A leading `?` (libbpf's "do not load by default") changes nothing: only requested programs are loaded.
pub fn declared(section: &str) -> Option<SectionAttach> {
    use ProgramKind as K;
    let section = section.strip_prefix('?').unwrap_or(section);
    let (first, rest) = match section.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (section, None),
    };
    let other = |kind| SectionAttach::Other(kind, function(rest));
    Some(match first {
        // The programs of cpumap and devmap run after a redirect, not on an interface.
        "xdp" | "xdp.frags" if matches!(rest, Some("cpumap" | "devmap")) => other(K::Xdp),
        "xdp" | "xdp.frags" => SectionAttach::Xdp,
        // Old names, which libbpf no longer accepts: xdp-tools, xdp-tutorial and many others have `xdp_pass` and the like.
        _ if first.starts_with("xdp_") => SectionAttach::Xdp,
        "tc" | "tcx" | "classifier" => SectionAttach::Tcx(match rest {
            Some("ingress") => Some(Direction::Ingress),
            Some("egress") => Some(Direction::Egress),
            _ => None,
        }),
        "netkit" => other(K::Netkit),
        "action" => other(K::SchedAct),
        "cgroup_skb" => cgroup_skb(rest),
        "cgroup" => return cgroup(rest?),
        "sockops" => SectionAttach::Cgroup(K::SockOps, Some(CgroupAttach::SockOps)),
        "tracepoint" | "tp" | "tracepoint.s" | "tp.s" => SectionAttach::Tracepoint(rest.and_then(|rest| {
            let (category, name) = rest.split_once('/')?;
            Some(TracepointName { category: category.to_owned(), name: name.to_owned() })
        })),
        "raw_tracepoint" | "raw_tp" | "raw_tracepoint.s" | "raw_tp.s" => SectionAttach::RawTracepoint(rest.map(str::to_owned)),
        "raw_tracepoint.w" | "raw_tp.w" => other(K::RawTracepointWritable),
        "sk_lookup" => other(K::SkLookup),
        "flow_dissector" => other(K::FlowDissector),
        "netfilter" => other(K::Netfilter),
        "uprobe" | "uprobe.s" => SectionAttach::Uprobe(K::Uprobe, user_function(rest)),
        "uretprobe" | "uretprobe.s" => SectionAttach::Uprobe(K::Uretprobe, user_function(rest)),
        "uprobe.multi" | "uprobe.multi.s" => other(K::UprobeMulti),
        "uretprobe.multi" | "uretprobe.multi.s" => other(K::UretprobeMulti),
        "uprobe.session" | "uprobe.session.s" => other(K::UprobeSession),
        "usdt" | "usdt.s" => other(K::Usdt),
        "tp_btf" | "tp_btf.s" => other(K::TpBtf),
        "kprobe" => SectionAttach::Function(K::Kprobe, function(rest)),
        "kretprobe" => SectionAttach::Function(K::Kretprobe, function(rest)),
        "kprobe.multi" => other(K::KprobeMulti),
        "kretprobe.multi" => other(K::KretprobeMulti),
        "kprobe.session" => other(K::KprobeSession),
        "ksyscall" => other(K::Ksyscall),
        "kretsyscall" => other(K::Kretsyscall),
        "fentry" | "fentry.s" => SectionAttach::Function(K::Fentry, function(rest)),
        "fexit" | "fexit.s" => SectionAttach::Function(K::Fexit, function(rest)),
        "fmod_ret" | "fmod_ret.s" => SectionAttach::Function(K::FmodRet, function(rest)),
        "fsession" | "fsession.s" => SectionAttach::Function(K::Fsession, function(rest)),
        "freplace" => SectionAttach::Function(K::Ext, function(rest)),
        "lsm" | "lsm.s" => SectionAttach::Function(K::Lsm, function(rest)),
        "lsm_cgroup" => SectionAttach::Function(K::LsmCgroup, function(rest)),
        "perf_event" => other(K::PerfEvent),
        "iter" | "iter.s" => other(K::Iter),
        "struct_ops" | "struct_ops.s" => other(K::StructOps),
        "syscall" => other(K::Syscall),
        "socket" => other(K::SocketFilter),
        "sk_reuseport" => other(K::SkReuseport),
        "sk_msg" => other(K::SkMsg),
        "sk_skb" => other(K::SkSkb),
        "lwt_in" => other(K::LwtIn),
        "lwt_out" => other(K::LwtOut),
        "lwt_xmit" => other(K::LwtXmit),
        "lwt_seg6local" => other(K::LwtSeg6local),
        "lirc_mode2" => other(K::LircMode2),
        _ => return None,
    })
}

/// The `expected_attach_type` of BPF_PROG_LOAD for the programs of a section; None if the name is not known. Devices maps
/// and cpumaps run XDP programs of attach types of their own.
pub fn attach_type(section: &str) -> Option<u32> {
    const BPF_XDP: u32 = 37;
    let old_xdp = || section.trim_start_matches('?').starts_with("xdp_").then_some(BPF_XDP);
    section_load(section).map(|load| load.attach_type).or_else(old_xdp)
}

/// True for sleepable programs (BPF_F_SLEEPABLE): `fentry.s`, `lsm.s`, `uprobe.s`, and those that a process runs.
pub fn is_sleepable(section: &str) -> bool {
    let section = section.strip_prefix('?').unwrap_or(section);
    section == "syscall" || section.split('/').next().is_some_and(|first| first.ends_with(".s"))
}

fn function(rest: Option<&str>) -> Option<String> {
    rest.filter(|rest| !rest.is_empty()).map(str::to_owned)
}

/// `path:symbol`; the path begins with a slash of its own, or is the name of a library.
fn user_function(rest: Option<&str>) -> Option<(String, String)> {
    let (path, symbol) = rest?.rsplit_once(':')?;
    (!path.is_empty() && !symbol.is_empty()).then(|| (path.to_owned(), symbol.to_owned()))
}

/// True for XDP programs that support packets in several buffers (BPF_F_XDP_HAS_FRAGS).
pub fn has_frags(section: &str) -> bool {
    let section = section.strip_prefix('?').unwrap_or(section);
    section == "xdp.frags" || section.starts_with("xdp.frags/")
}

fn cgroup_skb(rest: Option<&str>) -> SectionAttach {
    // aya appends the program's name to the direction.
    let attach = match rest.and_then(|rest| rest.split('/').next()) {
        Some("ingress") => Some(CgroupAttach::Ingress),
        Some("egress") => Some(CgroupAttach::Egress),
        _ => None,
    };
    SectionAttach::Cgroup(ProgramKind::CgroupSkb, attach)
}

fn cgroup(rest: &str) -> Option<SectionAttach> {
    use ProgramKind as K;
    let word = rest.split('/').next().unwrap_or(rest);
    Some(match word {
        "skb" => SectionAttach::Cgroup(K::CgroupSkb, None),
        "sock" => SectionAttach::Cgroup(K::CgroupSock, Some(CgroupAttach::SockCreate)),
        "dev" => SectionAttach::Cgroup(K::CgroupDevice, Some(CgroupAttach::Device)),
        word => {
            let attach = CgroupAttach::from_word(word)?;
            let kind = attach.kind();
            // `cgroup/ingress` and `cgroup/sock_ops` are our own names, which no loader accepts as sections.
            if !matches!(kind, K::CgroupSock | K::CgroupSockAddr | K::CgroupSockopt | K::CgroupSysctl) {
                return None;
            }
            SectionAttach::Cgroup(kind, Some(attach))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_declare_kind_and_place() {
        use ProgramKind as K;
        use SectionAttach as S;
        let tracepoint = |c: &str, n: &str| S::Tracepoint(Some(TracepointName { category: c.into(), name: n.into() }));
        let table = [
            ("xdp", S::Xdp),
            ("?xdp", S::Xdp),
            ("xdp.frags", S::Xdp),
            ("xdp/pass", S::Xdp),
            ("tc", S::Tcx(None)),
            ("classifier", S::Tcx(None)),
            ("classifier/count", S::Tcx(None)),
            ("tc/egress", S::Tcx(Some(Direction::Egress))),
            ("tcx/ingress", S::Tcx(Some(Direction::Ingress))),
            ("cgroup_skb", S::Cgroup(K::CgroupSkb, None)),
            ("cgroup/skb", S::Cgroup(K::CgroupSkb, None)),
            ("cgroup_skb/ingress", S::Cgroup(K::CgroupSkb, Some(CgroupAttach::Ingress))),
            ("cgroup_skb/egress/name", S::Cgroup(K::CgroupSkb, Some(CgroupAttach::Egress))),
            ("cgroup/sock", S::Cgroup(K::CgroupSock, Some(CgroupAttach::SockCreate))),
            ("cgroup/sock_create", S::Cgroup(K::CgroupSock, Some(CgroupAttach::SockCreate))),
            ("cgroup/sock_release", S::Cgroup(K::CgroupSock, Some(CgroupAttach::SockRelease))),
            ("cgroup/post_bind6", S::Cgroup(K::CgroupSock, Some(CgroupAttach::PostBind6))),
            ("cgroup/bind4", S::Cgroup(K::CgroupSockAddr, Some(CgroupAttach::Bind4))),
            ("cgroup/connect4", S::Cgroup(K::CgroupSockAddr, Some(CgroupAttach::Connect4))),
            ("cgroup/getsockname6", S::Cgroup(K::CgroupSockAddr, Some(CgroupAttach::Getsockname6))),
            ("sockops", S::Cgroup(K::SockOps, Some(CgroupAttach::SockOps))),
            ("tp/sched/sched_switch", tracepoint("sched", "sched_switch")),
            ("tracepoint/syscalls/sys_enter_openat", tracepoint("syscalls", "sys_enter_openat")),
            ("tracepoint", S::Tracepoint(None)),
            ("tracepoint/sched", S::Tracepoint(None)),
            ("raw_tp/sched_switch", S::RawTracepoint(Some("sched_switch".into()))),
            ("raw_tracepoint", S::RawTracepoint(None)),
            ("cgroup/dev", S::Cgroup(K::CgroupDevice, Some(CgroupAttach::Device))),
            ("cgroup/getsockopt", S::Cgroup(K::CgroupSockopt, Some(CgroupAttach::Getsockopt))),
            ("cgroup/sysctl", S::Cgroup(K::CgroupSysctl, Some(CgroupAttach::Sysctl))),
            ("cgroup/connect_unix", S::Cgroup(K::CgroupSockAddr, Some(CgroupAttach::ConnectUnix))),
            ("xdp_pass", S::Xdp),
            ("xdp/cpumap", S::Other(K::Xdp, Some("cpumap".into()))),
            ("action", S::Other(K::SchedAct, None)),
            ("kprobe.multi/tcp_*", S::Other(K::KprobeMulti, Some("tcp_*".into()))),
            ("usdt/libc.so.6:libc:setjmp", S::Other(K::Usdt, Some("libc.so.6:libc:setjmp".into()))),
            ("lsm_cgroup/socket_bind", S::Function(K::LsmCgroup, Some("socket_bind".into()))),
            ("freplace/handle", S::Function(K::Ext, Some("handle".into()))),
            ("?struct_ops/ssthresh", S::Other(K::StructOps, Some("ssthresh".into()))),
            ("socket", S::Other(K::SocketFilter, None)),
            ("netkit/peer", S::Other(K::Netkit, Some("peer".into()))),
            ("lsm.s/bpf", S::Function(K::Lsm, Some("bpf".into()))),
            ("fentry/do_unlinkat", S::Function(K::Fentry, Some("do_unlinkat".into()))),
            ("fexit", S::Function(K::Fexit, None)),
            ("kprobe/vfs_read+0x10", S::Function(K::Kprobe, Some("vfs_read+0x10".into()))),
            ("uprobe//bin/sh:main", S::Uprobe(K::Uprobe, Some(("/bin/sh".into(), "main".into())))),
            ("uretprobe/libc.so.6:malloc", S::Uprobe(K::Uretprobe, Some(("libc.so.6".into(), "malloc".into())))),
            ("uprobe/nothing", S::Uprobe(K::Uprobe, None)),
            ("iter/task", S::Other(K::Iter, Some("task".into()))),
        ];
        for (section, expected) in table {
            assert_eq!(declared(section), Some(expected), "{section}");
        }
        for section in ["", "?", "made_up", "cgroup", "cgroup/ingress"] {
            assert_eq!(declared(section), None, "{section}");
        }
        assert!(is_sleepable("?lsm.s/bpf") && !is_sleepable("lsm/bpf") && !is_sleepable("xdp/a.s"));
        assert!(has_frags("?xdp.frags") && !has_frags("xdp"));
    }
}
