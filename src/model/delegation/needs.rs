//! The smallest delegation, and the capabilities, with which a loader can load objects through a token.
//!
//! What each call of a loader needs was read in libbpf 1.5 (`bpf_object__load`) and in the kernel
//! (kernel/bpf/syscall.c), and is tested by removing each name: tests/privileged/token_needs.rs.

use serde::Serialize;

use super::reasons::{NeedReasons, NeededCapability, NeededName};
use super::{Category, Delegation, SectionLoad};

/// Who loads the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectLoader {
    /// libbpf, as measured with 1.5, and what is built on it: bpftool, skeletons, libbpf-rs. It probes the kernel first,
    /// and sends attach types only if a probe of them succeeds.
    Libbpf,
    /// Any other: cilium/ebpf, own system calls. It probes nothing, and sends all types and attach types.
    Other,
}

/// What an object contains that the kernel asks a permission for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectUse {
    /// Its programs.
    pub programs: Vec<ProgramUse>,
    /// Its maps, with the data sections.
    pub maps: Vec<MapUse>,
    /// True if it has BTF.
    pub btf: bool,
    /// What does not load without the object's BTF, one phrase each: `the map timers, which has a bpf_timer`.
    pub needs_btf: Vec<String>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramUse {
    /// Its function.
    pub function: String,
    /// Its section.
    pub section: String,
    /// What it is loaded as; None for an unknown section.
    pub load: Option<SectionLoad>,
    /// A helper that the verifier offers only to holders of CAP_PERFMON, if it calls one.
    pub perfmon_helper: Option<String>,
    /// What it is in a structure of functions (struct_ops), if it is in one.
    pub member: Option<StructMember>,
}

/// A member of a structure of functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StructMember {
    /// The kernel's structure, such as `tcp_congestion_ops`.
    pub structure: String,
    /// The member's name.
    pub name: String,
    /// Its index in the running kernel's structure, which is the attach type that its program is loaded with; None if the
    /// kernel does not have it.
    pub index: Option<u32>,
}

/// One map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUse {
    /// Its name; a data section's.
    pub name: String,
    /// `enum bpf_map_type`, with that of its inner maps.
    pub types: Vec<u32>,
    /// True for `.rodata` and other sections.
    pub data_section: bool,
}

/// The smallest delegation and the capabilities for some objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenNeeds {
    /// The delegation.
    pub delegation: Delegation,
    /// Each of its names, in the order of the kernel's enums.
    pub names: Vec<NeededName>,
    /// The capabilities, CAP_BPF first.
    pub capabilities: Vec<NeededCapability>,
    /// What a token cannot give, or what could not be determined, one sentence each.
    pub problems: Vec<String>,
}

/// `enum bpf_cmd`
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const BTF_LOAD: u32 = 18;
/// `enum bpf_prog_type`
const SOCKET_FILTER: u32 = 1;
const TRACEPOINT: u32 = 5;
const CGROUP_SKB: u32 = 8;
const CGROUP_SOCK: u32 = 9;
const STRUCT_OPS: u32 = 27;
const SYSCALL: u32 = 31;
/// `enum bpf_attach_type`
const NO_ATTACH_TYPE: u32 = 0;
const CGROUP_INET_SOCK_CREATE: u32 = 2;
/// `enum bpf_map_type`
const ARENA: u32 = 33;

/// What CAP_BPF is for.
pub(crate) const TOKEN_USE: &str = "creating a token, and each use of it";

/// Program types that need CAP_NET_ADMIN (kernel/bpf/syscall.c, `is_net_admin_prog_type`).
const NET_ADMIN_PROGS: [u32; 19] = [3, 4, 6, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 23, 25, 28, 32];
/// Program types that need CAP_PERFMON (`is_perfmon_prog_type`).
const PERFMON_PROGS: [u32; 9] = [2, 5, 7, 17, 24, 26, 27, 28, 29];
/// Map types that need CAP_NET_ADMIN (`map_create`).
const NET_ADMIN_MAPS: [u32; 5] = [14, 15, 17, 18, 25];

/// Helpers that `bpf_base_func_proto` and its callers offer only to holders of CAP_PERFMON (kernel/bpf/helpers.c).
const PERFMON_HELPERS: [u32; 14] = [4, 6, 35, 45, 55, 112, 113, 114, 115, 149, 158, 165, 175, 177];

/// True for a helper that the verifier offers only to holders of CAP_PERFMON.
pub fn helper_needs_perfmon(helper: u32) -> bool {
    PERFMON_HELPERS.contains(&helper)
}

/// True for a program type that needs CAP_PERFMON.
pub fn needs_perfmon(program_type: u32) -> bool {
    PERFMON_PROGS.contains(&program_type)
}

/// True for a program type or map type that needs CAP_NET_ADMIN.
pub fn needs_net_admin(category: Category, value: u32) -> bool {
    match category {
        Category::Maps => NET_ADMIN_MAPS.contains(&value),
        Category::Progs => NET_ADMIN_PROGS.contains(&value),
        Category::Cmds | Category::Attachs => false,
    }
}

impl TokenNeeds {
    /// The needs of all objects together.
    pub fn of(objects: &[ObjectUse], loader: ObjectLoader) -> Self {
        let mut reasons = NeedReasons::default();
        let mut problems = Vec::new();
        reasons.bpf(TOKEN_USE);
        for object in objects {
            maps(object, &mut reasons);
            types(object, loader, &mut reasons);
            programs(object, loader, &mut reasons, &mut problems);
        }
        probes(objects, loader, &mut reasons);
        Self::with(reasons, problems)
    }

    /// The needs for some reasons.
    pub fn with(reasons: NeedReasons, problems: Vec<String>) -> Self {
        let delegation = reasons.delegation();
        let (names, capabilities) = reasons.into_lists();
        Self { delegation, names, capabilities, problems }
    }
}

fn maps(object: &ObjectUse, reasons: &mut NeedReasons) {
    for map in &object.maps {
        let shown = map.name.clone();
        reasons.name(Category::Cmds, MAP_CREATE, shown.clone());
        for map_type in &map.types {
            reasons.name(Category::Maps, *map_type, shown.clone());
            if needs_net_admin(Category::Maps, *map_type) {
                reasons.net_admin(shown.clone());
            }
            if *map_type == ARENA {
                reasons.perfmon(format!("programs that use {shown}"));
            }
        }
    }
}

fn types(object: &ObjectUse, loader: ObjectLoader, reasons: &mut NeedReasons) {
    for what in &object.needs_btf {
        reasons.name(Category::Cmds, BTF_LOAD, what.clone());
    }
    if loader == ObjectLoader::Other && object.btf {
        reasons.name(Category::Cmds, BTF_LOAD, "the object's types, which are loaded first".to_owned());
    }
}

/// True if libbpf's probe of attach types succeeds: it loads a cgroup_sock program. If it fails, libbpf sends 0 for the
/// sections whose attach type is optional.
fn probes_attach_types(object: &ObjectUse) -> bool {
    object
        .programs
        .iter()
        .filter_map(|program| program.load)
        .any(|load| (load.program_type, load.attach_type, load.optional) == (CGROUP_SOCK, CGROUP_INET_SOCK_CREATE, false))
}

fn programs(object: &ObjectUse, loader: ObjectLoader, reasons: &mut NeedReasons, problems: &mut Vec<String>) {
    let attach_types = loader == ObjectLoader::Other || probes_attach_types(object);
    for program in &object.programs {
        let shown = format!("{} ({})", program.function, program.section);
        let Some(load) = program.load else {
            problems
                .push(format!("the section {} is unknown: the loader decides what its program is loaded as", program.section));
            continue;
        };
        if load.program_type == SYSCALL {
            problems.push(format!("{shown} cannot be loaded with a token that bpfman-hook gives: syscall is never delegated"));
            continue;
        }
        reasons.name(Category::Cmds, PROG_LOAD, shown.clone());
        reasons.name(Category::Progs, load.program_type, shown.clone());
        if load.program_type == STRUCT_OPS {
            struct_member(&shown, program.member.as_ref(), reasons, problems);
        } else if load.attach_type == NO_ATTACH_TYPE {
            reasons.name(Category::Attachs, NO_ATTACH_TYPE, format!("{shown}, which has no attach type"));
        } else if load.optional && !attach_types {
            reasons.name(Category::Attachs, NO_ATTACH_TYPE, format!("{shown}, loaded by libbpf without its attach type"));
        } else {
            reasons.name(Category::Attachs, load.attach_type, shown.clone());
        }
        if needs_net_admin(Category::Progs, load.program_type) {
            reasons.net_admin(shown.clone());
        } else if load.program_type == CGROUP_SKB {
            reasons.net_admin(format!("attaching {shown}"));
        }
        if needs_perfmon(load.program_type) {
            reasons.perfmon(shown);
        } else if let Some(helper) = &program.perfmon_helper {
            reasons.perfmon(format!("{shown}, which calls {helper}"));
        }
    }
}

/// The attach type of a program in a structure of functions is the index of its member.
fn struct_member(shown: &str, member: Option<&StructMember>, reasons: &mut NeedReasons, problems: &mut Vec<String>) {
    match member {
        Some(StructMember { structure, name, index: Some(index) }) if *index < u64::BITS => {
            let reason = format!("{shown}, because this kernel's {structure} has {name} as its member {index}");
            reasons.name(Category::Attachs, *index, reason);
        }
        Some(StructMember { structure, name, index: Some(index) }) => problems.push(format!(
            "{shown} cannot be loaded with a token: its attach type is the index of {structure}.{name}, {index}, and delegations \
             end at 63"
        )),
        Some(StructMember { structure, name, index: None }) => problems.push(format!(
            "{shown} is loaded with the index of {structure}.{name} as its attach type, and this kernel does not have that \
             member: run this on the kernel that loads it"
        )),
        None => problems.push(format!(
            "{shown} is in no structure of a .struct_ops section, so that its attach type is unknown and libbpf does not load it"
        )),
    }
}

/// libbpf's own loads before those of the objects. Most of its probes may fail without a consequence; these may not.
fn probes(objects: &[ObjectUse], loader: ObjectLoader, reasons: &mut NeedReasons) {
    if loader != ObjectLoader::Libbpf {
        return;
    }
    if objects.iter().any(|object| object.maps.iter().any(|map| map.data_section)) {
        // `probe_kern_global_data`; if it fails, the data sections are not created.
        let what = "libbpf's probe of global variables";
        reasons.name(Category::Progs, SOCKET_FILTER, what.to_owned());
        reasons.name(Category::Attachs, NO_ATTACH_TYPE, what.to_owned());
    }
    // `probe_kern_probe_read_kernel`; if it fails, bpf_probe_read replaces the helper, which only tracing types have.
    let replaced = |program: &ProgramUse| {
        let tracing = program.load.is_none_or(|load| needs_perfmon(load.program_type));
        !tracing && program.perfmon_helper.as_ref().is_some_and(|helper| helper.starts_with("bpf_probe_read_"))
    };
    if objects.iter().any(|object| object.programs.iter().any(replaced)) {
        let what = "libbpf's probe of bpf_probe_read_kernel, without which it calls bpf_probe_read instead";
        reasons.name(Category::Progs, TRACEPOINT, what.to_owned());
        reasons.name(Category::Attachs, NO_ATTACH_TYPE, what.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::super::section_load;
    use super::*;

    fn object(sections: &[&str], maps: &[(&str, u32)]) -> ObjectUse {
        ObjectUse {
            programs: sections
                .iter()
                .map(|section| ProgramUse {
                    function: "f".into(),
                    section: (*section).into(),
                    load: section_load(section),
                    perfmon_helper: None,
                    member: None,
                })
                .collect(),
            maps: maps
                .iter()
                .map(|(name, map_type)| MapUse {
                    name: (*name).into(),
                    types: vec![*map_type],
                    data_section: name.starts_with('.'),
                })
                .collect(),
            btf: true,
            needs_btf: Vec::new(),
        }
    }

    /// The names by set, and the capabilities.
    fn said(object: ObjectUse, loader: ObjectLoader) -> String {
        let needs = TokenNeeds::of(&[object], loader);
        let capabilities: Vec<_> = needs.capabilities.iter().map(|c| c.name.trim_start_matches("CAP_")).collect();
        format!("{}; {}", needs.delegation, capabilities.join(" "))
    }

    #[test]
    fn the_delegation_is_what_the_loader_sends() {
        use ObjectLoader::{Libbpf, Other};
        let xdp = || object(&["xdp"], &[("packets", 1), (".rodata", 2)]);
        let cases = [
            (
                xdp(),
                Libbpf,
                "cmds map_create prog_load, maps hash array, progs socket_filter xdp, attachs cgroup_inet_ingress; BPF NET_ADMIN",
            ),
            (object(&["xdp"], &[]), Libbpf, "cmds prog_load, progs xdp, attachs cgroup_inet_ingress; BPF NET_ADMIN"),
            (xdp(), Other, "cmds map_create prog_load btf_load, maps hash array, progs xdp, attachs xdp; BPF NET_ADMIN"),
            (object(&["xdp.frags"], &[]), Libbpf, "cmds prog_load, progs xdp, attachs xdp; BPF NET_ADMIN"),
            (
                object(&["xdp", "cgroup/sock_create"], &[]),
                Libbpf,
                "cmds prog_load, progs xdp cgroup_sock, attachs cgroup_inet_sock_create xdp; BPF NET_ADMIN",
            ),
            (
                object(&["tracepoint/a/b"], &[]),
                Libbpf,
                "cmds prog_load, progs tracepoint, attachs cgroup_inet_ingress; BPF PERFMON",
            ),
            (
                object(&["tracepoint/a/b"], &[(".bss", 2)]),
                Libbpf,
                "cmds map_create prog_load, maps array, progs socket_filter tracepoint, attachs cgroup_inet_ingress; BPF PERFMON",
            ),
            (
                object(&["sk_lookup"], &[("socks", 15)]),
                Libbpf,
                "cmds map_create prog_load, maps sockmap, progs sk_lookup, attachs sk_lookup; BPF NET_ADMIN",
            ),
            (object(&["socket"], &[]), Other, "cmds prog_load, progs socket_filter, attachs cgroup_inet_ingress; BPF"),
        ];
        for (object, loader, expected) in cases {
            let types =
                if loader == Other && !expected.contains("btf_load") { ObjectUse { btf: false, ..object } } else { object };
            assert_eq!(said(types, loader), expected);
        }
    }

    #[test]
    fn each_name_says_what_it_is_for() {
        let mut timers = object(&["tc"], &[("timers", 1)]);
        timers.needs_btf.push("the map timers, which has a bpf_timer".into());
        timers.programs[0].perfmon_helper = Some("bpf_probe_read_kernel".into());
        let needs = TokenNeeds::of(&[timers], ObjectLoader::Libbpf);
        let reasons = |name: &str| needs.names.iter().find(|needed| needed.name == name).expect(name).reasons.clone();
        assert_eq!(reasons("btf_load"), ["the map timers, which has a bpf_timer"]);
        assert_eq!(reasons("hash"), ["timers"]);
        assert_eq!(reasons("tracepoint").len(), 1, "libbpf replaces the helper otherwise");
        assert_eq!(reasons("sched_cls"), ["f (tc)"]);
        assert_eq!(reasons("cgroup_inet_ingress")[0], "f (tc), which has no attach type");
        let perfmon = needs.capabilities.iter().find(|capability| capability.name == "CAP_PERFMON").expect("of the helper");
        assert_eq!(perfmon.reasons, ["f (tc), which calls bpf_probe_read_kernel"]);
    }

    #[test]
    fn members_of_structures_have_their_index_as_attach_type() {
        for (index, attachs, problem) in [
            (Some(8), "cgroup_inet4_bind", ""),
            (Some(0), "cgroup_inet_ingress", ""),
            (Some(64), "", "delegations end at 63"),
            (None, "", "this kernel does not have that member"),
        ] {
            let mut used = object(&["struct_ops/undo"], &[("steady", 26)]);
            let member = StructMember { structure: "tcp_congestion_ops".into(), name: "undo_cwnd".into(), index };
            used.programs[0].member = Some(member);
            let needs = TokenNeeds::of(&[used], ObjectLoader::Libbpf);
            assert_eq!(needs.delegation.names(Category::Attachs).join(" "), attachs);
            assert_eq!(needs.problems.is_empty(), problem.is_empty(), "{:?}", needs.problems);
            assert!(needs.problems.iter().all(|found| found.contains(problem)), "{:?}", needs.problems);
        }
    }

    #[test]
    fn what_no_token_gives_is_said() {
        let needs = TokenNeeds::of(&[object(&["syscall", "strange", "struct_ops/init"], &[])], ObjectLoader::Libbpf);
        assert_eq!(needs.problems.len(), 3, "{:?}", needs.problems);
        assert!(needs.delegation.progs & 1 << SYSCALL == 0);
    }
}
