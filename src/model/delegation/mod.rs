//! BPF delegation: the rights that a bpffs grants to the user namespace it belongs to.

mod names;
mod needs;
mod presets;
mod reasons;
mod sections;
mod spelling;
mod summary;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use names::{Category, NameError};
pub(crate) use needs::TOKEN_USE;
pub use needs::{
    MapUse, ObjectLoader, ObjectUse, ProgramUse, StructMember, TokenNeeds, helper_needs_perfmon, needs_net_admin, needs_perfmon,
};
pub use presets::Preset;
pub use reasons::{NeedReasons, NeededCapability, NeededName, add_reason};
pub use sections::{SectionLoad, attach_type_is_optional, section_load};
pub use spelling::{Spelling, policy_rule, policy_set, policy_sets};

/// The delegation of one bpffs: four masks over the kernel's enums, bit n for value n.
///
/// They are converted to names only for input and output: annotations, policy files and mount options
/// (kernel/bpf/inode.c, `bpf_parse_param`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delegation {
    /// `enum bpf_cmd`: BPF_MAP_CREATE is bit 0.
    pub cmds: u64,
    /// `enum bpf_map_type`.
    pub maps: u64,
    /// `enum bpf_prog_type`.
    pub progs: u64,
    /// `enum bpf_attach_type`.
    pub attachs: u64,
}

/// The delegation that a container requests, before the policy's limit is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DelegationRequest {
    /// The bits that presets and lists name.
    pub named: Delegation,
    /// The lists that contain `any`, which requests exactly what the policy allows.
    pub any: AnyOf,
}

/// The lists that contain `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct AnyOf {
    /// `delegate-cmds=any`
    pub cmds: bool,
    /// `delegate-maps=any`
    pub maps: bool,
    /// `delegate-progs=any`
    pub progs: bool,
    /// `delegate-attachs=any`
    pub attachs: bool,
}

impl AnyOf {
    /// True if a list contains `any`.
    pub fn get(self, category: Category) -> bool {
        match category {
            Category::Cmds => self.cmds,
            Category::Maps => self.maps,
            Category::Progs => self.progs,
            Category::Attachs => self.attachs,
        }
    }

    /// Records that a list contains `any`.
    pub fn set(&mut self, category: Category) {
        match category {
            Category::Cmds => self.cmds = true,
            Category::Maps => self.maps = true,
            Category::Progs => self.progs = true,
            Category::Attachs => self.attachs = true,
        }
    }
}

impl DelegationRequest {
    /// The request under a limit: the named bits, and the whole limit for each list with `any`.
    pub fn under(&self, ceiling: &Delegation) -> Delegation {
        let mut asked = self.named;
        for category in Category::ALL.into_iter().filter(|category| self.any.get(*category)) {
            *asked.mask_mut(category) |= ceiling.mask(category);
        }
        asked
    }
}

/// Bit 0 of `enum bpf_cmd`.
const MAP_CREATE: u64 = 1;
/// Bit 5 of `enum bpf_cmd`.
const PROG_LOAD: u64 = 1 << 5;
/// Bit 19 of `enum bpf_cmd`: opens the BTF of any object on the host by its id.
const BTF_GET_FD_BY_ID: u64 = 1 << 19;
/// Bit 26 of `enum bpf_map_type`: registering such a map changes the host, for example its TCP congestion control.
const STRUCT_OPS_MAP: u64 = 1 << 26;
/// sched_cls, sched_act, xdp, lwt_in, lwt_out, lwt_xmit, sk_skb, sk_msg, lwt_seg6local, sk_reuseport, flow_dissector,
/// sk_lookup, netfilter: they attach to network namespaces, interfaces, routes and sockets of the attaching process.
const NETNS_PROGS: u64 = 1 << 3
    | 1 << 4
    | 1 << 6
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 14
    | 1 << 16
    | 1 << 19
    | 1 << 21
    | 1 << 22
    | 1 << 30
    | 1 << 32;
/// cgroup_skb, cgroup_sock, sock_ops, cgroup_device, cgroup_sock_addr, cgroup_sysctl, cgroup_sockopt: they attach to
/// every cgroup directory that the process can open.
const CGROUP_PROGS: u64 = 1 << 8 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 18 | 1 << 23 | 1 << 25;
/// socket_filter: attaches to the process's own sockets.
const SOCKET_PROGS: u64 = 1 << 1;
/// syscall: programs that run with the caller's rights and can read the memory of any process. It is never delegated.
pub(crate) const SYSCALL: u64 = 1 << 31;

impl Delegation {
    /// The mask of one of the four sets.
    pub const fn mask(&self, category: Category) -> u64 {
        match category {
            Category::Cmds => self.cmds,
            Category::Maps => self.maps,
            Category::Progs => self.progs,
            Category::Attachs => self.attachs,
        }
    }

    /// Mutable access to the mask of one of the four sets.
    pub fn mask_mut(&mut self, category: Category) -> &mut u64 {
        match category {
            Category::Cmds => &mut self.cmds,
            Category::Maps => &mut self.maps,
            Category::Progs => &mut self.progs,
            Category::Attachs => &mut self.attachs,
        }
    }

    /// A delegation of only one program type.
    pub const fn program_type(program_type: u32) -> Self {
        Self { cmds: 0, maps: 0, progs: 1 << (program_type % 64), attachs: 0 }
    }

    /// The part that may be delegated: everything except the program type `syscall`.
    pub const fn delegable(self) -> Self {
        Self { progs: self.progs & !SYSCALL, ..self }
    }

    /// True if a token allows its holder to load programs.
    ///
    /// The kernel refuses every load if no program type is delegated or the command is not delegated
    /// (kernel/bpf/syscall.c, `bpf_prog_load`).
    pub const fn loads_programs(&self) -> bool {
        self.cmds & PROG_LOAD != 0 && self.progs != 0
    }

    /// True if nothing is delegated; no tokens can be created on such a bpffs.
    pub const fn is_empty(&self) -> bool {
        self.cmds | self.maps | self.progs | self.attachs == 0
    }

    /// The union of both.
    pub const fn union(self, other: Self) -> Self {
        Self {
            cmds: self.cmds | other.cmds,
            maps: self.maps | other.maps,
            progs: self.progs | other.progs,
            attachs: self.attachs | other.attachs,
        }
    }

    /// The part of this delegation that is not in the other one.
    pub const fn without(self, other: &Self) -> Self {
        Self {
            cmds: self.cmds & !other.cmds,
            maps: self.maps & !other.maps,
            progs: self.progs & !other.progs,
            attachs: self.attachs & !other.attachs,
        }
    }

    /// True if this contains everything in the other one.
    pub const fn contains(&self, other: &Self) -> bool {
        other.without(self).is_empty()
    }

    /// The part that reaches beyond the container on every kernel and needs `host-scope = true`.
    ///
    /// Everything counts that is not known to stay in the network namespace, sockets or cgroup of the process that
    /// attaches it, including values newer than our tables. Attach types do not count: none is usable without its
    /// program type. What the other program types reach depends on the kernel: see [`crate::model::reach`].
    pub const fn host_scope(&self) -> Self {
        Self {
            cmds: self.cmds & BTF_GET_FD_BY_ID,
            maps: self.maps & STRUCT_OPS_MAP,
            progs: self.progs & !(SOCKET_PROGS | NETNS_PROGS | CGROUP_PROGS),
            attachs: 0,
        }
    }

    /// True if programs can be attached to the network namespace: this stays in the container only if the namespace
    /// belongs to the container or its sandbox.
    pub const fn reaches_netns(&self) -> bool {
        self.progs & NETNS_PROGS != 0
    }

    /// True if programs can be attached to cgroups: this stays in the container only if it has its own cgroup namespace
    /// and does not see the host's cgroup file systems.
    pub const fn reaches_cgroups(&self) -> bool {
        self.progs & CGROUP_PROGS != 0
    }

    /// The kernel's names of one set, in the order of the enum; values newer than our tables are combined into one
    /// hexadecimal number.
    pub fn names(&self, category: Category) -> Vec<String> {
        let mut names = Vec::new();
        let mut unnamed = 0;
        for value in (0..64).filter(|value| self.mask(category) & (1 << value) != 0) {
            match category.name(value) {
                Some(name) => names.push(name.to_owned()),
                None => unnamed |= 1u64 << value,
            }
        }
        if unnamed != 0 {
            names.push(format!("{unnamed:#x}"));
        }
        names
    }

    /// The names of each set, by its word.
    pub fn by_word(&self) -> BTreeMap<&'static str, Vec<String>> {
        Category::ALL.into_iter().map(|category| (category.word(), self.names(category))).collect()
    }

    /// Key and value of each `delegate_*` mount option that is not empty.
    ///
    /// The value is one hexadecimal number. The kernel knows names only with CONFIG_DEBUG_INFO_BTF and only those of
    /// its own version, and an unknown name is EINVAL. It accepts every number, and ignores bits that it does not use.
    /// A number within a list would overwrite what precedes it, so a list is never used.
    pub fn mount_options(&self) -> Vec<(&'static str, String)> {
        Category::ALL
            .into_iter()
            .filter(|category| self.mask(*category) != 0)
            .map(|category| (category.mount_option(), format!("{:#x}", self.mask(category))))
            .collect()
    }

    /// Parses the delegation from the super block options of a bpffs, the last field of its line in mountinfo.
    ///
    /// The kernel shows `any`, or lower-case names joined by colons, followed by one hexadecimal number for the bits
    /// that have no name (`bpf_show_options`); without BTF it shows only the number. Other options are ignored.
    pub fn from_mount_options(options: &str) -> Result<Self, ShownError> {
        let mut shown = Self::default();
        for option in options.split(',') {
            let Some((key, value)) = option.split_once('=') else { continue };
            let Some(category) = Category::ALL.into_iter().find(|category| category.mount_option() == key) else { continue };
            for word in value.split(':') {
                *shown.mask_mut(category) |= shown_bits(category, word)?;
            }
        }
        Ok(shown)
    }

    /// Why a non-empty delegation would be useless for the holder of its token, or None.
    pub fn useless(&self) -> Option<&'static str> {
        if self.progs != 0 && self.cmds & PROG_LOAD == 0 {
            Some("program types without the command prog_load cannot be used; add it to delegate-cmds")
        } else if self.progs != 0 && self.attachs == 0 {
            Some(
                "program types without attach types cannot be used; add them to delegate-attachs, cgroup_inet_ingress for types without their own",
            )
        } else if self.maps != 0 && self.cmds & MAP_CREATE == 0 {
            Some("map types without the command map_create cannot be used; add it to delegate-cmds")
        } else if self.cmds == 0 {
            Some("nothing works without a command; add some to delegate-cmds, such as map_create:btf_load:prog_load")
        } else {
            None
        }
    }
}

fn shown_bits(category: Category, word: &str) -> Result<u64, ShownError> {
    let unknown = || ShownError { option: category.mount_option(), word: crate::model::text::quoted(word) };
    if word == "any" {
        return Ok(u64::MAX);
    }
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| unknown()),
        None => category.shown_value(word).map(|value| 1 << value).ok_or_else(unknown),
    }
}

/// An unknown value in a mount option of a bpffs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse {option} in mountinfo: {word} is neither a known name nor a number")]
pub struct ShownError {
    /// The option.
    pub option: &'static str,
    /// The unknown word in it, quoted.
    pub word: String,
}

impl fmt::Display for Delegation {
    /// `cmds map_create prog_load, progs xdp`; `nothing` if it is empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let mut before = "";
        for category in Category::ALL.into_iter().filter(|category| self.mask(*category) != 0) {
            write!(f, "{before}{} {}", category.word(), self.names(category).join(" "))?;
            before = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XDP: Delegation = Delegation { cmds: 0b100001, maps: 0b100, progs: 1 << 6, attachs: 1 << 37 | 1 };

    #[test]
    fn each_mount_option_is_one_number() {
        let options = XDP.mount_options();
        let expected = [
            ("delegate_cmds", "0x21"),
            ("delegate_maps", "0x4"),
            ("delegate_progs", "0x40"),
            ("delegate_attachs", "0x2000000001"),
        ];
        assert_eq!(options, expected.map(|(key, value)| (key, value.to_owned())));
        assert!(Delegation::default().mount_options().is_empty());
    }

    #[test]
    fn mount_options_shown_by_the_kernel_are_parsed() {
        let shown = "rw,uid=100000,delegate_cmds=map_create:prog_load,delegate_maps=array,delegate_progs=xdp,\
                     delegate_attachs=cgroup_inet_ingress:xdp,mode=1777";
        assert_eq!(Delegation::from_mount_options(shown), Ok(XDP));
        let cases = [
            ("rw", Delegation::default()),
            ("rw,delegate_cmds=any", Delegation { cmds: u64::MAX, ..Delegation::default() }),
            ("delegate_maps=array:0x800000000000", Delegation { maps: 1 << 47 | 4, ..Delegation::default() }),
            ("delegate_progs=0x40", Delegation { progs: 64, ..Delegation::default() }),
            ("delegate_maps=cgroup_storage_deprecated", Delegation { maps: 1 << 19, ..Delegation::default() }),
            ("delegate_progs=syscall", Delegation { progs: SYSCALL, ..Delegation::default() }),
        ];
        for (options, expected) in cases {
            assert_eq!(Delegation::from_mount_options(options), Ok(expected), "{options}");
        }
        for bad in ["delegate_cmds=", "delegate_cmds=bogus", "delegate_cmds=0x", "delegate_cmds=0x10000000000000000"] {
            assert!(Delegation::from_mount_options(bad).is_err(), "{bad}");
        }
        for (preset, _) in Preset::ALL {
            let delegation = preset.delegation();
            let shown = delegation.mount_options().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
            assert_eq!(Delegation::from_mount_options(&shown.join(",")), Ok(delegation));
        }
    }

    #[test]
    fn unknown_values_are_host_scope() {
        let container =
            ["socket_filter", "xdp", "sched_cls", "sk_lookup", "netfilter", "cgroup_skb", "sock_ops", "cgroup_device"];
        let host = [
            "kprobe",
            "tracepoint",
            "perf_event",
            "raw_tracepoint",
            "tracing",
            "struct_ops",
            "ext",
            "lsm",
            "syscall",
            "lirc_mode2",
        ];
        for (names, expected) in [(&container[..], false), (&host[..], true)] {
            for name in names {
                let progs = 1 << Category::Progs.shown_value(name).expect("known");
                let delegation = Delegation { progs, ..Delegation::default() };
                assert_eq!(!delegation.host_scope().is_empty(), expected, "{name}");
            }
        }
        let newer = Delegation { progs: 1 << 40, ..Delegation::default() };
        assert_eq!(newer.host_scope(), newer);
        let maps = Delegation { maps: 1 << 26 | 1 << 2, cmds: 1 << 19 | 1, ..Delegation::default() };
        assert_eq!(maps.host_scope(), Delegation { maps: 1 << 26, cmds: 1 << 19, ..Delegation::default() });
    }

    #[test]
    fn any_requests_the_limit_of_its_list_only() {
        let request = DelegationRequest {
            named: Delegation { cmds: 1, ..Delegation::default() },
            any: AnyOf { progs: true, ..AnyOf::default() },
        };
        let ceiling = Preset::Networking.delegation();
        let asked = request.under(&ceiling);
        assert_eq!(asked, Delegation { cmds: 1, maps: 0, progs: ceiling.progs, attachs: 0 });
        assert!(ceiling.contains(&asked));
    }

    #[test]
    fn display_names_everything() {
        assert_eq!(XDP.to_string(), "cmds map_create prog_load, maps array, progs xdp, attachs cgroup_inet_ingress xdp");
        assert_eq!(Delegation { cmds: 1 << 60, ..Delegation::default() }.to_string(), "cmds 0x1000000000000000");
        assert_eq!(Delegation::default().to_string(), "nothing");
    }

    #[test]
    fn useless_delegations_are_recognised() {
        assert_eq!(XDP.useless(), None);
        assert!(Delegation { cmds: 1, ..XDP }.useless().is_some_and(|why| why.contains("prog_load")));
        assert!(Delegation { attachs: 0, ..XDP }.useless().is_some_and(|why| why.contains("attach types")));
        assert!(Delegation { cmds: 32, ..XDP }.useless().is_some_and(|why| why.contains("map_create")));
        assert!(Delegation { attachs: 1, ..Delegation::default() }.useless().is_some_and(|why| why.contains("command")));
    }
}
