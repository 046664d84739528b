//! Named delegations for common workloads.

use super::Delegation;

/// A delegation that has a name in annotations and policy files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Map types and no programs: container scope on every kernel.
    Maps,
    /// In addition what libraries use to probe the kernel: BTF, and a socket filter.
    Probes,
    /// In addition programs on the container's own network namespace that do not see sockets of other ones.
    Networking,
    /// In addition programs on cgroups that do not see sockets of other network namespaces.
    Cgroup,
    /// In addition the network and cgroup programs that see sockets of other network namespaces.
    Sockets,
    /// In addition programs that see the whole host.
    Tracing,
}

impl Preset {
    /// Every preset with its name.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Maps, "maps"),
        (Self::Probes, "probes"),
        (Self::Networking, "networking"),
        (Self::Cgroup, "cgroup"),
        (Self::Sockets, "sockets"),
        (Self::Tracing, "tracing"),
    ];

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(preset, _)| *preset)
    }

    /// The name of the smallest preset that contains all of `delegation`, or None.
    pub fn that_has(delegation: &Delegation) -> Option<&'static str> {
        Self::ALL.iter().find(|(preset, _)| preset.delegation().contains(delegation)).map(|(_, word)| *word)
    }

    /// The delegation of the preset.
    ///
    /// Every preset with programs includes `probes`: libbpf's feature probes load a socket filter with
    /// `expected_attach_type` 0, which is cgroup_inet_ingress. These and `maps` (an array) are what libbpf needs before
    /// it loads anything else.
    pub const fn delegation(self) -> Delegation {
        match self {
            Self::Maps => MAPS,
            Self::Probes => PROBES,
            Self::Networking => LOADING.union(NETWORKING),
            Self::Cgroup => LOADING.union(CGROUP),
            Self::Sockets => LOADING.union(SOCKETS),
            Self::Tracing => LOADING.union(TRACING),
        }
    }
}

const fn bits(values: &[u32]) -> u64 {
    let mut mask = 0;
    let mut at = 0;
    while at < values.len() {
        mask |= 1 << values[at];
        at += 1;
    }
    mask
}

/// MAP_CREATE; every map type up to 35 except struct_ops and those that need CAP_NET_ADMIN.
///
/// struct_ops maps need only CAP_BPF too, but registering one changes the host.
const MAPS: Delegation = Delegation {
    cmds: bits(&[0]),
    maps: ((1 << 36) - 1) & !1 & !DEVICE_MAPS & !SOCKET_MAPS & !super::STRUCT_OPS_MAP,
    progs: 0,
    attachs: 0,
};

/// PROG_LOAD, BTF_LOAD; socket_filter; cgroup_inet_ingress.
const PROBES: Delegation = Delegation { cmds: bits(&[5, 18]), maps: 0, progs: bits(&[1]), attachs: bits(&[0]) };

/// The common part of every preset with programs.
const LOADING: Delegation = MAPS.union(PROBES);

/// devmap, xskmap, devmap_hash. These and [`SOCKET_MAPS`] need CAP_NET_ADMIN (kernel/bpf/syscall.c, `map_create`).
const DEVICE_MAPS: u64 = bits(&[14, 17, 25]);

/// sockmap, sockhash: together with a socket lookup they can receive the data of foreign TCP connections.
const SOCKET_MAPS: u64 = bits(&[15, 18]);

/// Program types lwt_xmit, sk_reuseport, flow_dissector, sk_lookup, netfilter with their attach types.
const NETWORKING: Delegation =
    Delegation { cmds: 0, maps: DEVICE_MAPS, progs: bits(&[12, 21, 22, 30, 32]), attachs: bits(&[17, 36, 39, 40, 45]) };

/// Program types cgroup_sock, sock_ops, cgroup_sockopt with their attach types.
const CGROUP: Delegation =
    Delegation { cmds: 0, maps: 0, progs: bits(&[9, 13, 25]), attachs: bits(&[2, 3, 12, 13, 21, 22, 34]) };

/// Program types xdp, sched_cls, sched_act, sk_skb, cgroup_skb, cgroup_sock_addr, to which the kernel offers
/// bpf_sk_lookup_tcp and its siblings (net/core/filter.c), and sk_msg, which attaches to a sockmap; with their attach
/// types: xdp and xdp_devmap, xdp_cpumap; tcx and netkit; the sk_skb family, sk_msg_verdict; cgroup_inet ingress and
/// egress, bind, connect, sendmsg, recvmsg, getpeername, getsockname.
const SOCKETS: Delegation = Delegation {
    cmds: 0,
    maps: DEVICE_MAPS | SOCKET_MAPS,
    progs: bits(&[3, 4, 6, 8, 14, 16, 18]),
    attachs: bits(&[
        0, 1, 4, 5, 7, 8, 9, 10, 11, 14, 15, 19, 20, 29, 30, 31, 32, 33, 35, 37, 38, 46, 47, 49, 50, 51, 52, 53, 54, 55,
    ]),
};

/// Program types kprobe, tracepoint, perf_event, raw_tracepoint, tracing with the attach types that only observe.
/// modify_return is not included, because it changes what the kernel does.
const TRACING: Delegation = Delegation {
    cmds: 0,
    maps: 0,
    progs: bits(&[2, 5, 7, 17, 26]),
    attachs: bits(&[23, 24, 25, 28, 41, 42, 48, 56, 57, 58, 59, 60, 61]),
};

#[cfg(test)]
mod tests {
    use super::super::names::Category;
    use super::*;

    fn names(preset: Preset, category: Category) -> String {
        let beyond = if matches!(preset, Preset::Maps | Preset::Probes) { Delegation::default() } else { LOADING };
        preset.delegation().without(&beyond).names(category).join(" ")
    }

    #[test]
    fn presets_match_the_documentation() {
        use Category::*;
        let maps = "hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash lru_percpu_hash \
                    lpm_trie array_of_maps hash_of_maps cpumap cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack \
                    sk_storage ringbuf inode_storage task_storage bloom_filter user_ringbuf cgrp_storage arena insn_array rhash";
        let cases = [
            (Preset::Maps, Cmds, "map_create"),
            (Preset::Maps, Maps, maps),
            (Preset::Maps, Progs, ""),
            (Preset::Maps, Attachs, ""),
            (Preset::Probes, Cmds, "prog_load btf_load"),
            (Preset::Probes, Maps, ""),
            (Preset::Probes, Progs, "socket_filter"),
            (Preset::Probes, Attachs, "cgroup_inet_ingress"),
            (Preset::Networking, Cmds, ""),
            (Preset::Networking, Maps, "devmap xskmap devmap_hash"),
            (Preset::Networking, Progs, "lwt_xmit sk_reuseport flow_dissector sk_lookup netfilter"),
            (
                Preset::Networking,
                Attachs,
                "flow_dissector sk_lookup sk_reuseport_select sk_reuseport_select_or_migrate netfilter",
            ),
            (Preset::Cgroup, Maps, ""),
            (Preset::Cgroup, Progs, "cgroup_sock sock_ops cgroup_sockopt"),
            (
                Preset::Cgroup,
                Attachs,
                "cgroup_inet_sock_create cgroup_sock_ops cgroup_inet4_post_bind cgroup_inet6_post_bind cgroup_getsockopt \
                 cgroup_setsockopt cgroup_inet_sock_release",
            ),
            (Preset::Sockets, Maps, "devmap sockmap xskmap sockhash devmap_hash"),
            (Preset::Sockets, Progs, "sched_cls sched_act xdp cgroup_skb sk_skb sk_msg cgroup_sock_addr"),
            (Preset::Tracing, Maps, ""),
            (Preset::Tracing, Progs, "kprobe tracepoint perf_event raw_tracepoint tracing"),
            (
                Preset::Tracing,
                Attachs,
                "trace_raw_tp trace_fentry trace_fexit trace_iter perf_event trace_kprobe_multi trace_uprobe_multi \
                 trace_kprobe_session trace_uprobe_session trace_fsession trace_fentry_multi trace_fexit_multi \
                 trace_fsession_multi",
            ),
        ];
        for (preset, category, expected) in cases {
            assert_eq!(names(preset, category), expected, "{preset:?} {category:?}");
        }
        let attachs = names(Preset::Sockets, Attachs);
        assert_eq!(attachs.split(' ').count(), 29, "{attachs}");
    }

    #[test]
    fn the_presets_together_cover_the_former_ones() {
        let all = [Preset::Networking, Preset::Cgroup, Preset::Sockets].into_iter();
        let all = all.fold(Delegation::default(), |all, preset| all.union(preset.delegation()));
        let networking = bits(&[3, 4, 6, 12, 14, 16, 21, 22, 30, 32]);
        let cgroup = bits(&[8, 9, 13, 18, 25]);
        assert_eq!(all.progs, networking | cgroup | bits(&[1]));
        let networking = bits(&[4, 5, 7, 17, 33, 35, 36, 37, 38, 39, 40, 45, 46, 47, 54, 55]);
        let cgroup = bits(&[0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 29, 30, 31, 32, 34, 49, 50, 51, 52, 53]);
        assert_eq!(all.attachs, networking | cgroup);
    }

    #[test]
    fn presets_with_programs_include_the_library_probes() {
        for (preset, word) in Preset::ALL {
            let delegation = preset.delegation();
            assert!(preset == Preset::Maps || delegation.contains(&PROBES), "{word}");
            assert!(preset == Preset::Probes || delegation.contains(&MAPS), "{word}");
            assert_eq!(Preset::from_word(word), Some(preset));
            assert_eq!(delegation.progs & super::super::SYSCALL, 0, "{word}");
            assert_eq!(delegation.useless(), None, "{word}");
        }
        assert_eq!(Preset::from_word("any"), None);
    }

    #[test]
    fn the_smallest_matching_preset_is_found() {
        let cases = [
            (Category::Cmds, "prog_load", Some("probes")),
            (Category::Progs, "xdp", Some("sockets")),
            (Category::Progs, "sk_lookup", Some("networking")),
            (Category::Attachs, "cgroup_inet4_connect", Some("sockets")),
            (Category::Progs, "kprobe", Some("tracing")),
            (Category::Maps, "sockmap", Some("sockets")),
            (Category::Maps, "array", Some("maps")),
            (Category::Progs, "cgroup_device", None),
        ];
        for (category, name, preset) in cases {
            let mut delegation = Delegation::default();
            *delegation.mask_mut(category) = 1 << category.value(name).expect("known");
            assert_eq!(Preset::that_has(&delegation), preset, "{name}");
        }
    }

    #[test]
    fn reach_is_as_documented() {
        for preset in [Preset::Maps, Preset::Probes, Preset::Networking, Preset::Cgroup, Preset::Sockets] {
            assert!(preset.delegation().host_scope().is_empty(), "{preset:?}: on every kernel");
        }
        assert!(!Preset::Maps.delegation().loads_programs());
        assert!(Preset::Networking.delegation().reaches_netns());
        assert!(!Preset::Networking.delegation().reaches_cgroups());
        assert!(Preset::Cgroup.delegation().reaches_cgroups());
        let tracing = Preset::Tracing.delegation();
        assert_eq!(names(Preset::Tracing, Category::Progs), tracing.host_scope().names(Category::Progs).join(" "));
    }
}
