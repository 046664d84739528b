//! Names of the kernel's enum values.
//!
//! The tables are `enum bpf_cmd`, `bpf_map_type`, `bpf_prog_type` and `bpf_attach_type` of uapi/linux/bpf.h, Linux 7.2;
//! the index is the value. An enum only grows at its end, so a table that is older than the running kernel lacks names
//! but has no wrong ones.

use super::SYSCALL;
use crate::model::text;
use crate::model::text::quoted;

/// One of the four sets that a bpffs delegates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// `enum bpf_cmd`.
    Cmds,
    /// `enum bpf_map_type`.
    Maps,
    /// `enum bpf_prog_type`.
    Progs,
    /// `enum bpf_attach_type`.
    Attachs,
}

impl Category {
    /// All four, in their usual order.
    pub const ALL: [Self; 4] = [Self::Cmds, Self::Maps, Self::Progs, Self::Attachs];

    /// The mount option, kernel/bpf/inode.c `bpf_fs_parameters`.
    pub fn mount_option(self) -> &'static str {
        match self {
            Self::Cmds => "delegate_cmds",
            Self::Maps => "delegate_maps",
            Self::Progs => "delegate_progs",
            Self::Attachs => "delegate_attachs",
        }
    }

    /// The annotation's key without our prefix.
    pub(super) fn annotation(self) -> &'static str {
        match self {
            Self::Cmds => "delegate-cmds",
            Self::Maps => "delegate-maps",
            Self::Progs => "delegate-progs",
            Self::Attachs => "delegate-attachs",
        }
    }

    /// The name in policy files, `cmds` and so on.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cmds => "cmds",
            Self::Maps => "maps",
            Self::Progs => "progs",
            Self::Attachs => "attachs",
        }
    }

    /// The term for one of its values in a message.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Cmds => "bpf command",
            Self::Maps => "map type",
            Self::Progs => "program type",
            Self::Attachs => "attach type",
        }
    }

    /// The prefix of its names in the kernel's header.
    fn kernel_prefix(self) -> &'static str {
        match self {
            Self::Cmds | Self::Attachs => "bpf_",
            Self::Maps => "bpf_map_type_",
            Self::Progs => "bpf_prog_type_",
        }
    }

    /// The prefix of its names in systemd (`BPFDelegateMaps=BPFMapTypeArray`, systemd 258).
    fn systemd_prefix(self) -> &'static str {
        match self {
            Self::Cmds | Self::Attachs => "BPF",
            Self::Maps => "BPFMapType",
            Self::Progs => "BPFProgType",
        }
    }

    fn table(self) -> &'static [&'static str] {
        match self {
            Self::Cmds => CMDS,
            Self::Maps => MAPS,
            Self::Progs => PROGS,
            Self::Attachs => ATTACHS,
        }
    }

    /// Additional names in the header for a value that has a name in the table.
    fn aliases(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Cmds => &[("prog_run", 10)],
            Self::Maps => &[("cgroup_storage_deprecated", 19), ("percpu_cgroup_storage_deprecated", 21)],
            Self::Progs | Self::Attachs => &[],
        }
    }

    /// The kernel's lower-case name of a value, as mountinfo shows it; None for a value that is newer than our tables.
    pub fn name(self, value: u32) -> Option<&'static str> {
        self.table().get(value as usize).copied()
    }

    /// Parses a name in the spelling of the kernel (`prog_load`, `PROG_LOAD`, `BPF_PROG_LOAD`), of LXD and Incus
    /// (`prog_load`) or of systemd (`BPFProgLoad`).
    pub fn value(self, word: &str) -> Result<u32, NameError> {
        let unknown = || NameError::unknown(self, word);
        if word.is_empty() || word.len() > 64 {
            return Err(unknown());
        }
        let name = match word.strip_prefix(self.systemd_prefix()) {
            Some(camel) if !word.contains('_') => {
                return self.systemd_value(camel).ok_or_else(unknown).and_then(|value| self.delegable(value));
            }
            _ => word.to_ascii_lowercase(),
        };
        let name = name.strip_prefix(self.kernel_prefix()).unwrap_or(&name);
        if self == Self::Cmds && name == "common_attrs" {
            return Err(NameError::CommonAttrs);
        }
        if name == "unspec" {
            return Err(unknown());
        }
        self.shown_value(name).ok_or_else(unknown).and_then(|value| self.delegable(value))
    }

    /// The value of a name as the kernel shows it, even if it may not be delegated.
    pub fn shown_value(self, name: &str) -> Option<u32> {
        let from_table = self.table().iter().position(|known| *known == name).and_then(|at| u32::try_from(at).ok());
        from_table.or_else(|| self.alias(name))
    }

    /// A name in the spelling of systemd; a number as it is.
    pub(super) fn systemd_name(self, name: &str) -> String {
        if name.starts_with("0x") {
            return name.to_owned();
        }
        let capital = |part: &str| match part.split_at_checked(1) {
            Some((first, rest)) => first.to_ascii_uppercase() + rest,
            None => String::new(),
        };
        self.systemd_prefix().to_owned() + &name.split('_').map(capital).collect::<String>()
    }

    fn delegable(self, value: u32) -> Result<u32, NameError> {
        match self {
            Self::Progs if SYSCALL == 1 << value => Err(NameError::Syscall),
            _ => Ok(value),
        }
    }

    fn alias(self, name: &str) -> Option<u32> {
        self.aliases().iter().find(|(alias, _)| *alias == name).map(|(_, value)| *value)
    }

    /// systemd derives its names from the header's: each word between underscores starts with a capital letter.
    fn systemd_value(self, camel: &str) -> Option<u32> {
        let spelled_so = |name: &str| name != "unspec" && is_camel(name, camel);
        let from_table = self.table().iter().position(|name| spelled_so(name)).and_then(|at| u32::try_from(at).ok());
        from_table.or_else(|| self.aliases().iter().find(|(alias, _)| spelled_so(alias)).map(|(_, value)| *value))
    }
}

/// True if `camel` is `snake` with a capital letter at the start and in place of each underscore.
fn is_camel(snake: &str, camel: &str) -> bool {
    let mut rest = camel.chars();
    for part in snake.split('_') {
        let mut start = true;
        for letter in part.chars() {
            let expected = if start { letter.to_ascii_uppercase() } else { letter };
            start = false;
            if rest.next() != Some(expected) {
                return false;
            }
        }
    }
    rest.next().is_none()
}

/// Why a word is not a name that can be delegated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not in the table.
    #[error("unknown {noun} {word}{hint}")]
    Unknown {
        /// `map type` and the like.
        noun: &'static str,
        /// The given word, quoted and truncated.
        word: String,
        /// A remedy, or nothing.
        hint: String,
    },
    /// `BPF_COMMON_ATTRS` is a flag inside `enum bpf_cmd`; if it is used as a name, some kernels shift by its value,
    /// 65536.
    #[error("common_attrs is a flag, not a command that can be delegated")]
    CommonAttrs,
    /// Programs of type syscall can read the memory of every process and of the kernel, even without CAP_PERFMON.
    #[error(
        "syscall programs are never delegated: loaded with a token, they can read the memory of any process and of the kernel"
    )]
    Syscall,
}

impl NameError {
    fn unknown(category: Category, word: &str) -> Self {
        let hint = if word.contains(',') {
            "; names are separated by : or blanks".to_owned()
        } else {
            let lower = word.to_ascii_lowercase();
            let bare = lower.strip_prefix(category.kernel_prefix()).unwrap_or(&lower);
            text::nearest(bare, category.table().iter().copied().filter(|name| *name != "unspec"))
                .map(|name| format!("; the nearest is {name}"))
                .unwrap_or_default()
        };
        Self::Unknown { noun: category.noun(), word: quoted(word), hint }
    }
}

const CMDS: &[&str] = &[
    "map_create",
    "map_lookup_elem",
    "map_update_elem",
    "map_delete_elem",
    "map_get_next_key",
    "prog_load",
    "obj_pin",
    "obj_get",
    "prog_attach",
    "prog_detach",
    "prog_test_run",
    "prog_get_next_id",
    "map_get_next_id",
    "prog_get_fd_by_id",
    "map_get_fd_by_id",
    "obj_get_info_by_fd",
    "prog_query",
    "raw_tracepoint_open",
    "btf_load",
    "btf_get_fd_by_id",
    "task_fd_query",
    "map_lookup_and_delete_elem",
    "map_freeze",
    "btf_get_next_id",
    "map_lookup_batch",
    "map_lookup_and_delete_batch",
    "map_update_batch",
    "map_delete_batch",
    "link_create",
    "link_update",
    "link_get_fd_by_id",
    "link_get_next_id",
    "enable_stats",
    "iter_create",
    "link_detach",
    "prog_bind_map",
    "token_create",
    "prog_stream_read_by_fd",
    "prog_assoc_struct_ops",
];

const MAPS: &[&str] = &[
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
    "insn_array",
    "rhash",
];

const PROGS: &[&str] = &[
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

const ATTACHS: &[&str] = &[
    "cgroup_inet_ingress",
    "cgroup_inet_egress",
    "cgroup_inet_sock_create",
    "cgroup_sock_ops",
    "sk_skb_stream_parser",
    "sk_skb_stream_verdict",
    "cgroup_device",
    "sk_msg_verdict",
    "cgroup_inet4_bind",
    "cgroup_inet6_bind",
    "cgroup_inet4_connect",
    "cgroup_inet6_connect",
    "cgroup_inet4_post_bind",
    "cgroup_inet6_post_bind",
    "cgroup_udp4_sendmsg",
    "cgroup_udp6_sendmsg",
    "lirc_mode2",
    "flow_dissector",
    "cgroup_sysctl",
    "cgroup_udp4_recvmsg",
    "cgroup_udp6_recvmsg",
    "cgroup_getsockopt",
    "cgroup_setsockopt",
    "trace_raw_tp",
    "trace_fentry",
    "trace_fexit",
    "modify_return",
    "lsm_mac",
    "trace_iter",
    "cgroup_inet4_getpeername",
    "cgroup_inet6_getpeername",
    "cgroup_inet4_getsockname",
    "cgroup_inet6_getsockname",
    "xdp_devmap",
    "cgroup_inet_sock_release",
    "xdp_cpumap",
    "sk_lookup",
    "xdp",
    "sk_skb_verdict",
    "sk_reuseport_select",
    "sk_reuseport_select_or_migrate",
    "perf_event",
    "trace_kprobe_multi",
    "lsm_cgroup",
    "struct_ops",
    "netfilter",
    "tcx_ingress",
    "tcx_egress",
    "trace_uprobe_multi",
    "cgroup_unix_connect",
    "cgroup_unix_sendmsg",
    "cgroup_unix_recvmsg",
    "cgroup_unix_getpeername",
    "cgroup_unix_getsockname",
    "netkit_primary",
    "netkit_peer",
    "trace_kprobe_session",
    "trace_uprobe_session",
    "trace_fsession",
    "trace_fentry_multi",
    "trace_fexit_multi",
    "trace_fsession_multi",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_match_the_kernel_header() {
        // Counted in uapi/linux/bpf.h: the last value of each enum fixes all values before it; some from the middle are
        // added.
        let cases = [
            (Category::Cmds, "map_create", 0),
            (Category::Cmds, "prog_load", 5),
            (Category::Cmds, "btf_load", 18),
            (Category::Cmds, "token_create", 36),
            (Category::Cmds, "prog_assoc_struct_ops", 38),
            (Category::Maps, "hash", 1),
            (Category::Maps, "devmap_hash", 25),
            (Category::Maps, "ringbuf", 27),
            (Category::Maps, "arena", 33),
            (Category::Maps, "rhash", 35),
            (Category::Progs, "xdp", 6),
            (Category::Progs, "cgroup_sock_addr", 18),
            (Category::Progs, "netfilter", 32),
            (Category::Attachs, "cgroup_inet_ingress", 0),
            (Category::Attachs, "xdp", 37),
            (Category::Attachs, "tcx_egress", 47),
            (Category::Attachs, "netkit_peer", 55),
            (Category::Attachs, "trace_fsession_multi", 61),
        ];
        for (category, name, value) in cases {
            assert_eq!(category.value(name), Ok(value), "{name}");
            assert_eq!(category.name(value), Some(name));
        }
        assert_eq!(Category::Cmds.name(39), None);
    }

    #[test]
    fn every_name_has_three_unambiguous_spellings() {
        for category in Category::ALL {
            for (value, name) in category.table().iter().enumerate().filter(|(_, name)| !["unspec", "syscall"].contains(name)) {
                let value = u32::try_from(value).expect("small");
                let camel: String =
                    name.split('_').map(|part| part[..1].to_ascii_uppercase() + &part[1..]).collect::<Vec<_>>().concat();
                let upper = name.to_ascii_uppercase();
                let header = format!("{}{upper}", category.kernel_prefix().to_ascii_uppercase());
                let systemd = format!("{}{camel}", category.systemd_prefix());
                for spelling in [(*name).to_owned(), upper, header.to_ascii_lowercase(), header, systemd] {
                    assert_eq!(category.value(&spelling), Ok(value), "{spelling}");
                }
            }
        }
        assert_eq!(Category::Attachs.value("BPFCgroupInet4Bind"), Ok(8));
        assert_eq!(Category::Progs.value("BPFProgTypeXdp"), Ok(6));
        assert_eq!(Category::Maps.value("BPFMapTypeCgroupStorageDeprecated"), Ok(19));
        assert_eq!(Category::Cmds.value("prog_run"), Ok(10));
    }

    #[test]
    fn refusals_suggest_the_nearest_name() {
        let cases = [
            (Category::Cmds, "prog_lod", "unknown bpf command \"prog_lod\"; the nearest is prog_load"),
            (Category::Cmds, "common_attrs", "common_attrs is a flag, not a command that can be delegated"),
            (Category::Cmds, "BPF_COMMON_ATTRS", "common_attrs is a flag, not a command that can be delegated"),
            (Category::Progs, "syscall", "syscall programs are never delegated"),
            (Category::Progs, "BPF_PROG_TYPE_SYSCALL", "syscall programs are never delegated"),
            (Category::Progs, "BPFProgTypeSyscall", "syscall programs are never delegated"),
            (Category::Maps, "array,hash", "unknown map type \"array,hash\"; names are separated by : or blanks"),
            (Category::Maps, "unspec", "unknown map type \"unspec\""),
            (Category::Maps, "BPFMapTypeUnspec", "unknown map type \"BPFMapTypeUnspec\""),
            (Category::Progs, "BPF_XDP", "unknown program type \"BPF_XDP\""),
            (Category::Progs, "BPFXdp", "unknown program type \"BPFXdp\""),
            (Category::Attachs, "0x1", "unknown attach type \"0x1\""),
            (Category::Attachs, "", "unknown attach type \"\""),
        ];
        for (category, word, sentence) in cases {
            let error = category.value(word).expect_err(word).to_string();
            assert!(error.starts_with(sentence), "{error}");
        }
    }
}
