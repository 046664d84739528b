//! What ELF section names declare about programs, as defined by libbpf (Linux
//! `Documentation/bpf/libbpf/program_types.rst`) and as older compilers and aya write them.

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName};
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
    Some(match first {
        // The programs of cpumap and devmap run after a redirect, not on an interface.
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
        "uprobe" | "uprobe.s" => SectionAttach::Uprobe(K::Uprobe, user_function(rest)),
        "uretprobe" | "uretprobe.s" => SectionAttach::Uprobe(K::Uretprobe, user_function(rest)),
        "tp_btf" => SectionAttach::Other(K::TpBtf),
        "kprobe" => SectionAttach::Function(K::Kprobe, function(rest)),
        "kretprobe" => SectionAttach::Function(K::Kretprobe, function(rest)),
        "fentry" | "fentry.s" => SectionAttach::Function(K::Fentry, function(rest)),
        "fexit" | "fexit.s" => SectionAttach::Function(K::Fexit, function(rest)),
        "lsm" | "lsm.s" => SectionAttach::Function(K::Lsm, function(rest)),
        "perf_event" => SectionAttach::Other(K::PerfEvent),
        "iter" | "iter.s" => SectionAttach::Other(K::Iter),
        _ => return None,
    })
}

/// True for sleepable programs (BPF_F_SLEEPABLE): `fentry.s`, `lsm.s`, `uprobe.s`.
pub fn is_sleepable(section: &str) -> bool {
    let section = section.strip_prefix('?').unwrap_or(section);
    section.split('/').next().is_some_and(|first| first.ends_with(".s"))
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
        "sysctl" => SectionAttach::Other(K::CgroupSysctl),
        "dev" => SectionAttach::Other(K::CgroupDevice),
        "getsockopt" | "setsockopt" => SectionAttach::Other(K::CgroupSockopt),
        word => {
            let attach = CgroupAttach::from_word(word)?;
            let kind = attach.kind();
            // `cgroup/ingress` and `cgroup/sock_ops` are our own names, which no loader accepts as sections.
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
            ("cgroup/dev", S::Other(K::CgroupDevice)),
            ("cgroup/getsockopt", S::Other(K::CgroupSockopt)),
            ("lsm.s/bpf", S::Function(K::Lsm, Some("bpf".into()))),
            ("fentry/do_unlinkat", S::Function(K::Fentry, Some("do_unlinkat".into()))),
            ("fexit", S::Function(K::Fexit, None)),
            ("kprobe/vfs_read+0x10", S::Function(K::Kprobe, Some("vfs_read+0x10".into()))),
            ("uprobe//bin/sh:main", S::Uprobe(K::Uprobe, Some(("/bin/sh".into(), "main".into())))),
            ("uretprobe/libc.so.6:malloc", S::Uprobe(K::Uretprobe, Some(("libc.so.6".into(), "malloc".into())))),
            ("uprobe/nothing", S::Uprobe(K::Uprobe, None)),
            ("iter/task", S::Other(K::Iter)),
        ];
        for (section, expected) in table {
            assert_eq!(declared(section), Some(expected), "{section}");
        }
        for section in [
            "",
            "?",
            "action",
            "kprobe.multi/tcp_*",
            "usdt/x",
            "lsm_cgroup/bind",
            "socket",
            "struct_ops/x",
            "xdp/cpumap",
            "xdp_pass",
            "cgroup",
            "cgroup/ingress",
            "netkit/peer",
        ] {
            assert_eq!(declared(section), None, "{section}");
        }
        assert!(is_sleepable("?lsm.s/bpf") && !is_sleepable("lsm/bpf") && !is_sleepable("xdp/a.s"));
        assert!(has_frags("?xdp.frags") && !has_frags("xdp"));
    }
}
