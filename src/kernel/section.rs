//! What ELF section names say about programs, as libbpf defines it (Linux `Documentation/bpf/libbpf/program_types.rst`) and
//! as older compilers and aya write it.

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName};
use crate::model::object::SectionAttach;

/// What a section's name says about the programs in it; None where it says nothing that we know.
///
/// A leading `?` (libbpf's "do not load by default") changes nothing: only the programs that are asked for are loaded.
pub fn declared(section: &str) -> Option<SectionAttach> {
    use ProgramKind as K;
    let section = section.strip_prefix('?').unwrap_or(section);
    let (first, rest) = match section.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (section, None),
    };
    Some(match first {
        // The programs of cpumap and devmap run behind a redirect, not on an interface.
        "xdp" | "xdp.frags" if matches!(rest, Some("cpumap" | "devmap")) => return None,
        "xdp" | "xdp.frags" => SectionAttach::Xdp,
        "tc" | "tcx" | "classifier" => SectionAttach::Tcx(match rest {
            Some("ingress") => Some(Direction::Ingress),
            Some("egress") => Some(Direction::Egress),
            _ => None,
        }),
        "cgroup_skb" => cgroup_skb(rest),
        "cgroup" => return cgroup(rest?),
        "sockops" => SectionAttach::Cgroup(K::SockOps, Some(CgroupAttach::SockOps)),
        "tracepoint" | "tp" => SectionAttach::Tracepoint(rest.and_then(|rest| {
            let (category, name) = rest.split_once('/')?;
            Some(TracepointName { category: category.to_owned(), name: name.to_owned() })
        })),
        "raw_tracepoint" | "raw_tp" => SectionAttach::RawTracepoint(rest.map(str::to_owned)),
        "sk_lookup" => SectionAttach::Other(K::SkLookup),
        "flow_dissector" => SectionAttach::Other(K::FlowDissector),
        "netfilter" => SectionAttach::Other(K::Netfilter),
        "uprobe" | "uprobe.s" | "uprobe.multi" | "uprobe.multi.s" | "usdt" => SectionAttach::Other(K::Uprobe),
        "uretprobe" | "uretprobe.s" | "uretprobe.multi" | "uretprobe.multi.s" => SectionAttach::Other(K::Uretprobe),
        "tp_btf" => SectionAttach::Other(K::TpBtf),
        "kprobe" | "kprobe.multi" | "ksyscall" => SectionAttach::Other(K::Kprobe),
        "kretprobe" | "kretprobe.multi" | "kretsyscall" => SectionAttach::Other(K::Kretprobe),
        "fentry" | "fentry.s" => SectionAttach::Other(K::Fentry),
        "fexit" | "fexit.s" => SectionAttach::Other(K::Fexit),
        "lsm" | "lsm.s" | "lsm_cgroup" => SectionAttach::Other(K::Lsm),
        "perf_event" => SectionAttach::Other(K::PerfEvent),
        "iter" | "iter.s" => SectionAttach::Other(K::Iter),
        _ => return None,
    })
}

/// True for XDP programs that take packets in several buffers (BPF_F_XDP_HAS_FRAGS).
pub fn has_frags(section: &str) -> bool {
    let section = section.strip_prefix('?').unwrap_or(section);
    section == "xdp.frags" || section.starts_with("xdp.frags/")
}

fn cgroup_skb(rest: Option<&str>) -> SectionAttach {
    // aya puts the program's name behind the direction.
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
        "sysctl" => SectionAttach::Other(K::CgroupSysctl),
        "dev" => SectionAttach::Other(K::CgroupDevice),
        "getsockopt" | "setsockopt" => SectionAttach::Other(K::CgroupSockopt),
        word => {
            let attach = CgroupAttach::from_word(word)?;
            let kind = attach.kind();
            // `cgroup/ingress` and `cgroup/sock_ops` are words of ours that no loader knows as sections.
            if !matches!(kind, K::CgroupSock | K::CgroupSockAddr) {
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
    fn sections_say_kind_and_place() {
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
            ("cgroup/dev", S::Other(K::CgroupDevice)),
            ("cgroup/getsockopt", S::Other(K::CgroupSockopt)),
            ("lsm.s/bpf", S::Other(K::Lsm)),
            ("fentry/do_unlinkat", S::Other(K::Fentry)),
            ("kprobe.multi/tcp_*", S::Other(K::Kprobe)),
            ("iter/task", S::Other(K::Iter)),
        ];
        for (section, expected) in table {
            assert_eq!(declared(section), Some(expected), "{section}");
        }
        for section in
            ["", "?", "action", "socket", "struct_ops/x", "xdp/cpumap", "xdp_pass", "cgroup", "cgroup/ingress", "netkit/peer"]
        {
            assert_eq!(declared(section), None, "{section}");
        }
        assert!(has_frags("?xdp.frags") && !has_frags("xdp"));
    }
}
