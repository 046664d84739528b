//! What libbpf loads the program of an ELF section as: the `section_defs` of libbpf.c, which cilium/ebpf follows.

/// The program type and attach type that a program is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionLoad {
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`; 0 for a type without attach types of its own.
    pub attach_type: u32,
    /// True where libbpf sends 0 instead if its probe of attach types fails (`SEC_EXP_ATTACH_OPT`).
    pub optional: bool,
}

/// What a section's programs are loaded as; None for a section that libbpf does not know. A leading `?` (not loaded by
/// default) changes nothing.
pub fn section_load(section: &str) -> Option<SectionLoad> {
    let section = section.strip_prefix('?').unwrap_or(section);
    let matching = |known: &str| section.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let longest = SECTIONS.iter().filter(|(known, ..)| matching(known)).max_by_key(|(known, ..)| known.len());
    longest.map(|(_, program_type, attach_type, optional)| SectionLoad {
        program_type: *program_type,
        attach_type: *attach_type,
        optional: *optional,
    })
}

/// True if libbpf sends 0 instead of a type's attach type in some section if its probe of attach types fails.
pub fn attach_type_is_optional(program_type: u32, attach_type: u32) -> bool {
    // For usdt another probe decides.
    const KPROBE: u32 = 2;
    let found =
        |(_, progs, attachs, optional): &(&str, u32, u32, bool)| *optional && (*progs, *attachs) == (program_type, attach_type);
    program_type != KPROBE && SECTIONS.iter().any(found)
}

/// Section, program type, attach type, and whether the attach type is optional.
const SECTIONS: &[(&str, u32, u32, bool)] = &[
    ("socket", 1, 0, false),
    ("kprobe", 2, 0, false),
    ("kretprobe", 2, 0, false),
    ("ksyscall", 2, 0, false),
    ("kretsyscall", 2, 0, false),
    ("uprobe", 2, 0, false),
    ("uprobe.s", 2, 0, false),
    ("uretprobe", 2, 0, false),
    ("uretprobe.s", 2, 0, false),
    // With an attach type if libbpf's probe of uprobe_multi succeeds, otherwise without.
    ("usdt", 2, 48, true),
    ("usdt.s", 2, 48, true),
    ("kprobe.multi", 2, 42, false),
    ("kretprobe.multi", 2, 42, false),
    ("kprobe.session", 2, 56, false),
    ("uprobe.multi", 2, 48, false),
    ("uprobe.multi.s", 2, 48, false),
    ("uretprobe.multi", 2, 48, false),
    ("uretprobe.multi.s", 2, 48, false),
    ("uprobe.session", 2, 57, false),
    ("uprobe.session.s", 2, 57, false),
    ("tc", 3, 0, false),
    ("classifier", 3, 0, false),
    ("tc/ingress", 3, 46, false),
    ("tc/egress", 3, 47, false),
    ("tcx/ingress", 3, 46, false),
    ("tcx/egress", 3, 47, false),
    ("netkit/primary", 3, 54, false),
    ("netkit/peer", 3, 55, false),
    ("action", 4, 0, false),
    ("tracepoint", 5, 0, false),
    ("tp", 5, 0, false),
    ("tracepoint.s", 5, 0, false),
    ("tp.s", 5, 0, false),
    ("xdp", 6, 37, true),
    ("xdp.frags", 6, 37, false),
    ("xdp/devmap", 6, 33, false),
    ("xdp.frags/devmap", 6, 33, false),
    ("xdp/cpumap", 6, 35, false),
    ("xdp.frags/cpumap", 6, 35, false),
    ("perf_event", 7, 0, false),
    ("cgroup/skb", 8, 0, false),
    ("cgroup_skb", 8, 0, false),
    ("cgroup_skb/ingress", 8, 0, true),
    ("cgroup_skb/egress", 8, 1, true),
    ("cgroup/sock", 9, 2, true),
    ("cgroup/sock_create", 9, 2, false),
    ("cgroup/sock_release", 9, 34, false),
    ("cgroup/post_bind4", 9, 12, false),
    ("cgroup/post_bind6", 9, 13, false),
    ("lwt_in", 10, 0, false),
    ("lwt_out", 11, 0, false),
    ("lwt_xmit", 12, 0, false),
    ("sockops", 13, 3, true),
    ("sk_skb", 14, 0, false),
    ("sk_skb/stream_parser", 14, 4, true),
    ("sk_skb/stream_verdict", 14, 5, true),
    ("sk_skb/verdict", 14, 38, true),
    ("cgroup/dev", 15, 6, true),
    ("sk_msg", 16, 7, true),
    ("raw_tracepoint", 17, 0, false),
    ("raw_tp", 17, 0, false),
    ("raw_tracepoint.s", 17, 0, false),
    ("raw_tp.s", 17, 0, false),
    ("cgroup/bind4", 18, 8, false),
    ("cgroup/bind6", 18, 9, false),
    ("cgroup/connect4", 18, 10, false),
    ("cgroup/connect6", 18, 11, false),
    ("cgroup/connect_unix", 18, 49, false),
    ("cgroup/sendmsg4", 18, 14, false),
    ("cgroup/sendmsg6", 18, 15, false),
    ("cgroup/sendmsg_unix", 18, 50, false),
    ("cgroup/recvmsg4", 18, 19, false),
    ("cgroup/recvmsg6", 18, 20, false),
    ("cgroup/recvmsg_unix", 18, 51, false),
    ("cgroup/getpeername4", 18, 29, false),
    ("cgroup/getpeername6", 18, 30, false),
    ("cgroup/getpeername_unix", 18, 52, false),
    ("cgroup/getsockname4", 18, 31, false),
    ("cgroup/getsockname6", 18, 32, false),
    ("cgroup/getsockname_unix", 18, 53, false),
    ("lwt_seg6local", 19, 0, false),
    ("lirc_mode2", 20, 16, true),
    ("sk_reuseport", 21, 39, false),
    ("sk_reuseport/migrate", 21, 40, false),
    ("flow_dissector", 22, 17, true),
    ("cgroup/sysctl", 23, 18, false),
    ("raw_tracepoint.w", 24, 0, false),
    ("raw_tp.w", 24, 0, false),
    ("cgroup/getsockopt", 25, 21, false),
    ("cgroup/setsockopt", 25, 22, false),
    ("tp_btf", 26, 23, false),
    ("tp_btf.s", 26, 23, false),
    ("fentry", 26, 24, false),
    ("fentry.s", 26, 24, false),
    ("fexit", 26, 25, false),
    ("fexit.s", 26, 25, false),
    ("fmod_ret", 26, 26, false),
    ("fmod_ret.s", 26, 26, false),
    ("fsession", 26, 58, false),
    ("fsession.s", 26, 58, false),
    ("iter", 26, 28, false),
    ("iter.s", 26, 28, false),
    ("struct_ops", 27, 0, false),
    ("struct_ops.s", 27, 0, false),
    ("freplace", 28, 0, false),
    ("lsm", 29, 27, false),
    ("lsm.s", 29, 27, false),
    ("lsm_cgroup", 29, 43, false),
    ("sk_lookup", 30, 36, false),
    ("syscall", 31, 0, false),
    ("netfilter", 32, 45, false),
];

#[cfg(test)]
mod tests {
    use super::super::names::Category;
    use super::*;

    #[test]
    fn the_longest_known_section_decides() {
        let cases = [
            ("xdp", Some((6, 37, true))),
            ("?xdp", Some((6, 37, true))),
            ("xdp/devmap", Some((6, 33, false))),
            ("xdp/my_name", Some((6, 37, true))),
            ("tc", Some((3, 0, false))),
            ("tc/ingress", Some((3, 46, false))),
            ("cgroup/sock_create", Some((9, 2, false))),
            ("cgroup/sock", Some((9, 2, true))),
            ("kprobe/vfs_read", Some((2, 0, false))),
            ("kprobe.multi/tcp_*", Some((2, 42, false))),
            ("lsm.s/bpf", Some((29, 27, false))),
            ("struct_ops/ssthresh", Some((27, 0, false))),
            ("xdpx", None),
            ("", None),
            (".text", None),
            ("cgroup", None),
        ];
        for (section, expected) in cases {
            let found = section_load(section).map(|load| (load.program_type, load.attach_type, load.optional));
            assert_eq!(found, expected, "{section}");
        }
    }

    #[test]
    fn attach_types_belong_to_their_sections() {
        for (section, attach) in [
            ("xdp", "xdp"),
            ("xdp/devmap", "xdp_devmap"),
            ("xdp/cpumap", "xdp_cpumap"),
            ("tcx/egress", "tcx_egress"),
            ("netkit/peer", "netkit_peer"),
            ("cgroup/connect_unix", "cgroup_unix_connect"),
            ("cgroup/getsockname6", "cgroup_inet6_getsockname"),
            ("cgroup/sock_release", "cgroup_inet_sock_release"),
            ("cgroup/setsockopt", "cgroup_setsockopt"),
            ("sk_reuseport/migrate", "sk_reuseport_select_or_migrate"),
            ("sk_skb/verdict", "sk_skb_verdict"),
            ("kprobe.session", "trace_kprobe_session"),
            ("uprobe.multi", "trace_uprobe_multi"),
            ("uprobe.session", "trace_uprobe_session"),
            ("fmod_ret", "modify_return"),
            ("fsession", "trace_fsession"),
            ("lsm_cgroup", "lsm_cgroup"),
            ("netfilter", "netfilter"),
            ("lirc_mode2", "lirc_mode2"),
        ] {
            let load = section_load(section).expect(section);
            assert_eq!(Category::Attachs.name(load.attach_type), Some(attach), "{section}");
        }
    }
}
