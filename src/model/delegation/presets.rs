//! Delegations with a name: what most workloads need.

use super::Delegation;

/// A delegation that has a name in annotations and policy files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Maps and BTF, and what libraries probe with.
    Maps,
    /// And programs on the container's own network namespace.
    Networking,
    /// And programs on cgroups.
    Cgroup,
    /// And programs that see the whole host.
    Tracing,
}

impl Preset {
    /// Every preset with its word.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Maps, "maps"), (Self::Networking, "networking"), (Self::Cgroup, "cgroup"), (Self::Tracing, "tracing")];

    /// The preset that a word names, or None.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(preset, _)| *preset)
    }

    /// What it delegates.
    ///
    /// `socket_filter`, `array` and `cgroup_inet_ingress` are in each: libbpf's feature probes load a socket filter with
    /// `expected_attach_type` 0, which is cgroup_inet_ingress, and make an array.
    pub const fn delegation(self) -> Delegation {
        match self {
            Self::Maps => MAPS,
            Self::Networking => MAPS.union(NETWORKING),
            Self::Cgroup => MAPS.union(CGROUP),
            Self::Tracing => MAPS.union(TRACING),
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

/// MAP_CREATE, BTF_LOAD, PROG_LOAD; every map type up to 35 but those that need CAP_NET_ADMIN and struct_ops; socket_filter;
/// cgroup_inet_ingress.
///
/// struct_ops maps need no capability beyond CAP_BPF either, but registering one changes the host.
const MAPS: Delegation = Delegation {
    cmds: bits(&[0, 5, 18]),
    maps: ((1 << 36) - 1) & !1 & !NET_ADMIN_MAPS & !super::STRUCT_OPS_MAP,
    progs: bits(&[1]),
    attachs: bits(&[0]),
};

/// devmap, sockmap, xskmap, sockhash, devmap_hash: kernel/bpf/syscall.c, `map_create`, asks for CAP_NET_ADMIN.
const NET_ADMIN_MAPS: u64 = bits(&[14, 15, 17, 18, 25]);

/// Program types xdp, sched_cls, sched_act, sk_lookup, sk_reuseport, sk_msg, sk_skb, flow_dissector, netfilter, lwt_xmit with
/// their attach types: xdp and xdp_devmap, xdp_cpumap; tcx and netkit; the sk_ family.
const NETWORKING: Delegation = Delegation {
    cmds: 0,
    maps: NET_ADMIN_MAPS,
    progs: bits(&[3, 4, 6, 12, 14, 16, 21, 22, 30, 32]),
    attachs: bits(&[4, 5, 7, 17, 33, 35, 36, 37, 38, 39, 40, 45, 46, 47, 54, 55]),
};

/// Program types cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, sock_ops with their attach types.
const CGROUP: Delegation = Delegation {
    cmds: 0,
    maps: 0,
    progs: bits(&[8, 9, 13, 18, 25]),
    attachs: bits(&[0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 22, 29, 30, 31, 32, 34, 49, 50, 51, 52, 53]),
};

/// Program types kprobe, tracepoint, perf_event, raw_tracepoint, tracing with the attach types that observe. modify_return changes
/// what the kernel does, so it is not among them.
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
        let beyond = if preset == Preset::Maps { Delegation::default() } else { MAPS };
        preset.delegation().without(&beyond).names(category).join(" ")
    }

    #[test]
    fn presets_are_what_the_documentation_says() {
        use Category::*;
        let maps = "hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash lru_percpu_hash \
                    lpm_trie array_of_maps hash_of_maps cpumap cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack \
                    sk_storage ringbuf inode_storage task_storage bloom_filter user_ringbuf cgrp_storage arena insn_array rhash";
        let cases = [
            (Preset::Maps, Cmds, "map_create prog_load btf_load"),
            (Preset::Maps, Maps, maps),
            (Preset::Maps, Progs, "socket_filter"),
            (Preset::Maps, Attachs, "cgroup_inet_ingress"),
            (Preset::Networking, Cmds, ""),
            (Preset::Networking, Maps, "devmap sockmap xskmap sockhash devmap_hash"),
            (
                Preset::Networking,
                Progs,
                "sched_cls sched_act xdp lwt_xmit sk_skb sk_msg sk_reuseport flow_dissector sk_lookup netfilter",
            ),
            (
                Preset::Networking,
                Attachs,
                "sk_skb_stream_parser sk_skb_stream_verdict sk_msg_verdict flow_dissector xdp_devmap xdp_cpumap sk_lookup xdp \
                 sk_skb_verdict sk_reuseport_select sk_reuseport_select_or_migrate netfilter tcx_ingress tcx_egress \
                 netkit_primary netkit_peer",
            ),
            (Preset::Cgroup, Maps, ""),
            (Preset::Cgroup, Progs, "cgroup_skb cgroup_sock sock_ops cgroup_sock_addr cgroup_sockopt"),
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
        let attachs = names(Preset::Cgroup, Attachs);
        assert_eq!(attachs.split(' ').count(), 25);
        assert!(attachs.split(' ').all(|name| name.starts_with("cgroup_")), "{attachs}");
    }

    #[test]
    fn each_has_what_libraries_probe_with() {
        for (preset, word) in Preset::ALL {
            let delegation = preset.delegation();
            assert!(delegation.contains(&MAPS), "{word}");
            assert_eq!(Preset::from_word(word), Some(preset));
        }
        assert_eq!(Preset::from_word("any"), None);
    }

    #[test]
    fn reach_is_as_documented() {
        assert!(Preset::Maps.delegation().host_scope().is_empty());
        assert!(Preset::Networking.delegation().host_scope().is_empty());
        assert!(Preset::Networking.delegation().reaches_netns());
        assert!(!Preset::Networking.delegation().reaches_cgroups());
        assert!(Preset::Cgroup.delegation().host_scope().is_empty());
        assert!(Preset::Cgroup.delegation().reaches_cgroups());
        assert_eq!(
            names(Preset::Tracing, Category::Progs),
            Preset::Tracing.delegation().host_scope().names(Category::Progs).join(" ")
        );
    }
}
