//! What a container was granted, and whether a call stays within it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ProxyRefusal;
use super::attr::{
    self, CopiedAttr, ITERATOR, KPROBE_MULTI, NotifiedCommand, UPROBE_MULTI, attach, btf, kprobe_multi, link, map, prog,
    uprobe_multi,
};
use super::usage::{HeldObject, ShownMaps};
use crate::model::delegation::{Category, Delegation};
use crate::model::ids::Digest;
use crate::model::object::MapFacts;
use crate::model::policy::ContainerLimits;
use crate::model::reach;

/// What the policy allows a container to do through the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyGrant {
    /// Commands, map types, program types and attach types. The commands that attach go with prog_load: an attach type
    /// decides about them.
    pub delegation: Delegation,
    /// The helpers that programs may call; None leaves it to the scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helpers: Option<BTreeSet<u32>>,
    /// The kernel functions that programs may call, by name; None leaves it to the scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kfuncs: Option<BTreeSet<String>>,
    /// The digests of the instructions that may be loaded; None for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<BTreeSet<Digest>>,
    /// True if the container may reach beyond itself.
    pub host_scope: bool,
    /// Limits for what it holds.
    pub limits: ContainerLimits,
}

/// What a container was granted when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// What it may do.
    pub grant: ProxyGrant,
    /// The cookie of its network namespace (SO_NETNS_COOKIE). 0 if nothing of the grant attaches to one.
    pub network: u64,
    /// What it has loaded. The processes that serve the container write it a moment later, without what was closed by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<HeldObject>,
}

/// Which calls of bpf(2) a container rule allows: through the proxy, or under policing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CallCeiling {
    /// Commands, map types, program types and attach types, as for tokens.
    pub delegation: Delegation,
    /// See [`ProxyGrant::helpers`].
    pub helpers: Option<BTreeSet<u32>>,
    /// See [`ProxyGrant::kfuncs`].
    pub kfuncs: Option<BTreeSet<String>>,
    /// See [`ProxyGrant::instructions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<BTreeSet<Digest>>,
}

impl CallCeiling {
    /// True if it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.delegation.is_empty()
    }
}

/// Where a program is attached, and what the caller's descriptor must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachTarget {
    /// An interface of the network namespace, by index.
    Interface,
    /// The network namespace that the call is made in.
    CurrentNetns,
    /// A descriptor of a network namespace.
    Netns,
    /// A descriptor of a cgroup's directory.
    Cgroup,
    /// A descriptor of a map.
    Map,
    /// A descriptor of a perf event.
    PerfEvent,
    /// Functions of the kernel, by name or address.
    Functions,
    /// Functions of a file, by its path.
    File,
    /// What the program was loaded for.
    Loaded,
}

/// Map flags that a container may use: NO_PREALLOC, NO_COMMON_LRU, NUMA_NODE, RDONLY, WRONLY, STACK_BUILD_ID, ZERO_SEED,
/// RDONLY_PROG, WRONLY_PROG, CLONE, MMAPABLE, PRESERVE_ELEMS, INNER_MAP, RB_OVERWRITE.
const MAP_FLAGS: u32 = 0x1fff | 1 << 19;
/// Program flags that a container may use: STRICT_ALIGNMENT, ANY_ALIGNMENT, TEST_RND_HI32, XDP_HAS_FRAGS.
const PROG_FLAGS: u32 = 1 | 2 | 4 | 1 << 5;
/// Functions of one program. The verifier takes 256 (BPF_MAX_SUBPROGS).
const FUNCTIONS_MAX: u32 = 1024;
/// `BPF_F_TOKEN_FD`
const TOKEN_FD: u32 = 1 << 16;
/// Map types whose value is the map itself: array_of_maps, hash_of_maps.
const OF_MAPS: [u32; 2] = [12, 13];
/// Map types that container scope does not get, and why: cpumap; arena, and the storages of cgroups, sockets, inodes and
/// tasks.
const MAPS_OF_HOST: [(u32, &str); 8] = [
    (16, "each entry starts a thread of the kernel that runs outside of the container"),
    (ARENA, "its pages are allocated later, outside of the limit on memory"),
    (19, STORAGE),
    (21, STORAGE),
    (24, STORAGE),
    (28, STORAGE),
    (29, STORAGE),
    (32, STORAGE),
];
/// arena
const ARENA: u32 = 33;
/// See [`MAPS_OF_HOST`].
const STORAGE: &str =
    "its entries are allocated later, one for each object that they belong to, outside of the limit on memory";
/// Pages of a ring buffer besides its data: its header, and the positions of consumer and producer
/// (kernel/bpf/ringbuf.c).
const RINGBUF_PAGES: u64 = 3;
/// `BPF_F_MMAPABLE`
const MMAPABLE: u32 = 1 << 10;
/// Kernel memory in bytes of a map without its entries, and of an entry besides key and value: an estimate.
const MAP_OVERHEAD: u64 = 512;
/// See [`MAP_OVERHEAD`].
const ENTRY_OVERHEAD: u64 = 64;
/// Kernel memory in bytes of an instruction: itself, and its machine code.
const INSTRUCTION_MEMORY: u64 = 24;
/// Kernel memory in bytes of a program without its instructions: an estimate.
const PROGRAM_OVERHEAD: u64 = 4096;

/// `BPF_F_REPLACE`, `BPF_F_ID`, `BPF_F_LINK` of links and of PROG_ATTACH.
const REPLACE: u32 = 1 << 2;
/// See [`REPLACE`].
const BY_ID: u32 = 1 << 5;
/// See [`REPLACE`].
const OF_LINK: u32 = 1 << 13;

impl ProxyGrant {
    fn needs(&self, command: NotifiedCommand) -> Result<(), ProxyRefusal> {
        // Attaching goes with loading: tokens do not have these commands in their masks either.
        let number = match command {
            NotifiedCommand::MapCreate | NotifiedCommand::BtfLoad => command.number(),
            _ => NotifiedCommand::ProgLoad.number(),
        };
        self.has(Category::Cmds, number)
    }

    pub(super) fn has(&self, category: Category, value: u32) -> Result<(), ProxyRefusal> {
        if value < 64 && self.delegation.mask(category) >> value & 1 == 1 {
            return Ok(());
        }
        Err(ProxyRefusal::NotGranted { noun: category.noun(), name: name(category, value) })
    }

    /// True if the container may have perf events: it was granted program types that are attached to them.
    pub fn perf_events(&self) -> bool {
        // kprobe, tracepoint, perf_event
        self.host_scope && [2, 5, 7].into_iter().any(|kind| self.has(Category::Progs, kind).is_ok())
    }

    /// Whether a call stays within the grant, as far as its arguments tell. Instructions, descriptors and places are
    /// checked by others.
    pub fn check(&self, attr: &CopiedAttr) -> Result<(), ProxyRefusal> {
        match attr.command {
            NotifiedCommand::TokenCreate => Err(ProxyRefusal::Token),
            command => {
                self.needs(command)?;
                match command {
                    NotifiedCommand::MapCreate => self.map_create(attr),
                    NotifiedCommand::ProgLoad => self.prog_load(attr),
                    NotifiedCommand::BtfLoad => no_token(attr.u32(btf::FLAGS), attr.u32(btf::TOKEN_FD)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn map_create(&self, attr: &CopiedAttr) -> Result<(), ProxyRefusal> {
        let flags = attr.u32(map::FLAGS);
        no_token(flags, attr.u32(map::TOKEN_FD))?;
        let kind = attr.u32(map::TYPE);
        self.has(Category::Maps, kind)?;
        let of_host = MAPS_OF_HOST.into_iter().find(|(map_type, _)| *map_type == kind);
        if let (Some((_, why)), false) = (of_host, self.host_scope) {
            return Err(ProxyRefusal::MapOfHost { name: name(Category::Maps, kind), why });
        }
        if attr.u32(map::IFINDEX) != 0 {
            return Err(not_passed_on("a map of a device (map_ifindex)"));
        }
        if attr.u32(map::VMLINUX_VALUE_TYPE) != 0 || attr.u32(map::VALUE_BTF_FD) != 0 {
            return Err(not_passed_on("a map with a value type of the kernel"));
        }
        if flags & !MAP_FLAGS != 0 {
            return Err(not_passed_on(&format!("a map with flags {:#x}", flags & !MAP_FLAGS)));
        }
        Ok(())
    }

    /// Whether a map that has maps as values can be created. The container can put a map into it that it is shown
    /// read-only, and a program that finds it there could write to it.
    pub fn check_inner_maps(&self, attr: &CopiedAttr, shown: &ShownMaps) -> Result<(), ProxyRefusal> {
        let is_outer = attr.command == NotifiedCommand::MapCreate && OF_MAPS.contains(&attr.u32(map::TYPE));
        if is_outer && shown.any_read_only() && !self.host_scope {
            let why = "programs could write through it to the maps that are shown to the container read-only";
            return Err(ProxyRefusal::MapOfHost { name: name(Category::Maps, attr.u32(map::TYPE)), why });
        }
        Ok(())
    }

    fn prog_load(&self, attr: &CopiedAttr) -> Result<(), ProxyRefusal> {
        let (kind, flags) = (attr.u32(prog::TYPE), attr.u32(prog::FLAGS));
        no_token(flags, attr.u32(prog::TOKEN_FD))?;
        self.has(Category::Progs, kind)?;
        self.has(Category::Attachs, attr.u32(prog::EXPECTED_ATTACH_TYPE))?;
        if attr.u32(prog::IFINDEX) != 0 {
            return Err(not_passed_on("a program of a device (prog_ifindex)"));
        }
        if attr.u64(prog::SIGNATURE) != 0 || attr.u32(prog::SIGNATURE_SIZE) != 0 || attr.u32(prog::KEYRING_ID) != 0 {
            return Err(not_passed_on("a signed program"));
        }
        if self.host_scope {
            return Ok(());
        }
        let beyond = |what: String| Err(ProxyRefusal::HostScope { what });
        if !reach::reviewed(kind) {
            return beyond(format!("program type {}", name(Category::Progs, kind)));
        }
        if attr.u32(prog::ATTACH_BTF_ID) != 0 || attr.u32(prog::ATTACH_FD) != 0 {
            return beyond("a program for a function of the kernel or of another program".to_owned());
        }
        if attr.u32(prog::FUNC_INFO_CNT) > FUNCTIONS_MAX {
            return Err(not_passed_on(&format!("a program with more than {FUNCTIONS_MAX} functions (func_info_cnt)")));
        }
        // The kernel would change the instructions after they were reviewed.
        if attr.u32(prog::CORE_RELO_CNT) != 0 {
            return beyond("relocation by the kernel (core_relos)".to_owned());
        }
        if flags & !PROG_FLAGS != 0 {
            return beyond(format!("a program with flags {:#x}", flags & !PROG_FLAGS));
        }
        Ok(())
    }

    /// Whether a program with these instructions may be loaded.
    pub fn check_instructions(&self, program: &str, digest: Digest) -> Result<(), ProxyRefusal> {
        match &self.instructions {
            Some(listed) if !listed.contains(&digest) => {
                Err(ProxyRefusal::UnlistedInstructions { program: program.to_owned(), digest })
            }
            _ => Ok(()),
        }
    }

    /// Whether a program of a type may be attached as a call says, and to what kind of place.
    ///
    /// The kernel takes the place from the program's type (kernel/bpf/syscall.c, `link_create`), which the caller's
    /// descriptor tells.
    pub fn attach(&self, attr: &CopiedAttr, program_type: u32) -> Result<AttachTarget, ProxyRefusal> {
        let by_link = attr.command == NotifiedCommand::LinkCreate;
        if attr.command == NotifiedCommand::RawTracepointOpen {
            // tracing, lsm: the name is absent and the program knows its function.
            let fits = matches!(program_type, 17 | 24 | 26 | 29);
            return self.target_of_host(fits.then_some(AttachTarget::Loaded), program_type, "raw_tracepoint_open".to_owned());
        }
        let kind = attr.u32(if by_link { link::ATTACH_TYPE } else { attach::ATTACH_TYPE });
        self.has(Category::Progs, program_type)?;
        self.has(Category::Attachs, kind)?;
        let target = match (program_type, kind) {
            (6, 37) | (3, 46 | 47 | 54 | 55) if by_link => Some(AttachTarget::Interface),
            // `bpftool net attach tcx_ingress`. The target is an interface's index here too.
            (3, 46 | 47) => Some(AttachTarget::Interface),
            (32, 45) if by_link => Some(AttachTarget::CurrentNetns),
            (22, 17) | (30, 36) if by_link => Some(AttachTarget::Netns),
            (8, 0 | 1)
            | (9, 2 | 12 | 13 | 34)
            | (13, 3)
            | (15, 6)
            | (18, 8..=11 | 14 | 15 | 19 | 20 | 29..=32 | 49..=53)
            | (23, 18)
            | (25, 21 | 22) => Some(AttachTarget::Cgroup),
            (14, 4 | 5 | 38) | (16, 7) => Some(AttachTarget::Map),
            _ => None,
        };
        if let Some(target) = target {
            check_order(attr, by_link, target)?;
            return Ok(target);
        }
        let of_host = match (program_type, kind) {
            (2 | 5 | 7, 41) if by_link => Some(AttachTarget::PerfEvent),
            (2, 42 | 56) if by_link => Some(AttachTarget::Functions),
            (2, 48 | 57) if by_link => Some(AttachTarget::File),
            (26, 23..=26 | ITERATOR) | (29, 27) if by_link => Some(AttachTarget::Loaded),
            _ => None,
        };
        let target = self.target_of_host(of_host, program_type, name(Category::Attachs, kind))?;
        check_multi(attr, kind)?;
        Ok(target)
    }

    fn target_of_host(&self, target: Option<AttachTarget>, kind: u32, attach: String) -> Result<AttachTarget, ProxyRefusal> {
        self.has(Category::Progs, kind)?;
        let program = name(Category::Progs, kind);
        match target {
            Some(target) if self.host_scope => Ok(target),
            Some(_) => Err(ProxyRefusal::HostScope { what: format!("attaching a program of type {program}") }),
            None => Err(ProxyRefusal::AttachType { program, attach }),
        }
    }
}

/// Iterators over everything, and what is known of links to several functions.
fn check_multi(attr: &CopiedAttr, kind: u32) -> Result<(), ProxyRefusal> {
    // BPF_F_KPROBE_MULTI_RETURN, BPF_F_UPROBE_MULTI_RETURN
    const RETURN: u32 = 1;
    let flags = match kind {
        ITERATOR if attr.u64(link::ITER_INFO) != 0 || attr.u32(link::ITER_INFO_SIZE) != 0 => {
            return Err(not_passed_on("an iterator over one map, task or cgroup (iter_info)"));
        }
        kind if KPROBE_MULTI.contains(&kind) => attr.u32(kprobe_multi::FLAGS),
        kind if UPROBE_MULTI.contains(&kind) => attr.u32(uprobe_multi::FLAGS),
        _ => return Ok(()),
    };
    if flags & !RETURN != 0 {
        return Err(not_passed_on(&format!("a link to several functions with flags {:#x}", flags & !RETURN)));
    }
    Ok(())
}

/// The order among links is decided by a program or link of the container. An id could be that of any.
fn check_order(attr: &CopiedAttr, by_link: bool, target: AttachTarget) -> Result<(), ProxyRefusal> {
    // Other targets have other fields there, and other flags.
    let ordered = matches!(target, AttachTarget::Interface | AttachTarget::Cgroup);
    let (flags, relative) = match by_link {
        true => (attr.u32(link::FLAGS), attr.u32(link::RELATIVE)),
        false => (attr.u32(attach::FLAGS), attr.u32(attach::RELATIVE)),
    };
    // What PROG_ATTACH replaces on a cgroup is named by a descriptor.
    let refused = BY_ID | OF_LINK | if by_link || target == AttachTarget::Interface { REPLACE } else { 0 };
    // For an XDP link these bits are the mode: SKB is 2, DRV 4, HW 8.
    let xdp = by_link && attr.u32(link::ATTACH_TYPE) == 37;
    if ordered && !xdp && (flags & refused != 0 || relative != 0) {
        return Err(not_passed_on("an order relative to another program (relative_fd, BPF_F_REPLACE of links)"));
    }
    Ok(())
}

fn no_token(flags: u32, token: u32) -> Result<(), ProxyRefusal> {
    if flags & TOKEN_FD != 0 || token != 0 { Err(ProxyRefusal::Token) } else { Ok(()) }
}

fn not_passed_on(what: &str) -> ProxyRefusal {
    ProxyRefusal::NotPassedOn { what: what.to_owned() }
}

fn name(category: Category, value: u32) -> String {
    category.name(value).map_or_else(|| value.to_string(), str::to_owned)
}

/// An estimate of the kernel memory in bytes of a map that a call would create, with pages of a size in bytes.
pub fn map_memory(attr: &CopiedAttr, cpus: u64, page: u64) -> u64 {
    const ARRAYS: [u32; 4] = [2, 6, 27, 31];
    let map_type = attr.u32(map::TYPE);
    let facts = MapFacts {
        name: String::new(),
        map_type,
        key_size: attr.u32(map::KEY_SIZE),
        value_size: attr.u32(map::VALUE_SIZE),
        max_entries: attr.u32(map::MAX_ENTRIES),
        flags: attr.u32(map::FLAGS),
        data_section: false,
    };
    let per_entry = if ARRAYS.contains(&map_type) { 0 } else { ENTRY_OVERHEAD };
    let overhead = u64::from(facts.max_entries).saturating_mul(per_entry).saturating_add(MAP_OVERHEAD);
    let memory = match map_type {
        27 | 31 => facts.memory(cpus).saturating_add(RINGBUF_PAGES.saturating_mul(page)),
        _ if facts.flags & MMAPABLE != 0 => whole_pages(facts.memory(cpus), page),
        _ => facts.memory(cpus),
    };
    memory.saturating_add(overhead)
}

/// An estimate of the kernel memory in bytes of BTF that a call would load.
pub fn btf_memory(attr: &CopiedAttr, page: u64) -> u64 {
    // The kernel indexes the types.
    whole_pages(u64::from(attr.u32(btf::SIZE)).saturating_mul(2), page)
}

fn whole_pages(bytes: u64, page: u64) -> u64 {
    bytes.checked_next_multiple_of(page).unwrap_or(u64::MAX)
}

/// An estimate of the kernel memory in bytes of a program that a call would load.
pub fn program_memory(attr: &CopiedAttr) -> u64 {
    u64::from(attr.u32(prog::INSN_CNT)).saturating_mul(INSTRUCTION_MEMORY).saturating_add(PROGRAM_OVERHEAD)
}

/// The descriptors in the arguments, besides those of instructions and of the place to attach to: the offset, and what
/// the descriptor must be.
pub fn descriptors(attr: &CopiedAttr) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    match attr.command {
        NotifiedCommand::MapCreate => {
            if attr.u32(map::BTF_KEY_TYPE) != 0 || attr.u32(map::BTF_VALUE_TYPE) != 0 || attr.fd(map::BTF_FD) != 0 {
                found.push((map::BTF_FD, "BTF"));
            }
            // Of other types the kernel requires zero.
            if OF_MAPS.contains(&attr.u32(map::TYPE)) || attr.fd(map::INNER_MAP_FD) != 0 {
                found.push((map::INNER_MAP_FD, "a map"));
            }
        }
        NotifiedCommand::ProgLoad => {
            let has_records = attr.u32(prog::FUNC_INFO_CNT) != 0 || attr.u32(prog::LINE_INFO_CNT) != 0;
            if attr.fd(prog::BTF_FD) != 0 || has_records {
                found.push((prog::BTF_FD, "BTF"));
            }
            if attr.fd(prog::ATTACH_FD) != 0 {
                found.push((prog::ATTACH_FD, "a program or BTF"));
            }
        }
        NotifiedCommand::LinkCreate => found.push((link::PROG_FD, "a program")),
        NotifiedCommand::ProgAttach | NotifiedCommand::ProgDetach => {
            found.push((attach::PROG_FD, "a program"));
            if attr.u32(attach::FLAGS) & REPLACE != 0 || attr.fd(attach::REPLACE_FD) != 0 {
                found.push((attach::REPLACE_FD, "a program"));
            }
        }
        NotifiedCommand::RawTracepointOpen => found.push((attr::raw_tracepoint::PROG_FD, "a program")),
        NotifiedCommand::BtfLoad | NotifiedCommand::TokenCreate => {}
    }
    found
}

/// The offset of the place to attach to.
pub fn target_at(command: NotifiedCommand) -> usize {
    if command == NotifiedCommand::LinkCreate { link::TARGET } else { attach::TARGET }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Preset;

    fn grant(presets: &[Preset], host_scope: bool) -> ProxyGrant {
        let delegation = presets.iter().fold(Delegation::default(), |all, preset| all.union(preset.delegation()));
        ProxyGrant {
            delegation,
            helpers: None,
            kfuncs: None,
            instructions: None,
            host_scope,
            limits: ContainerLimits::default(),
        }
    }

    fn attr(command: NotifiedCommand, fields: &[(usize, u32)]) -> CopiedAttr {
        let mut bytes = [0; attr::ATTR_SIZE];
        for (at, value) in fields {
            bytes[*at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        CopiedAttr::new(command, &bytes).unwrap()
    }

    #[test]
    fn commands_and_types_are_granted_by_name() {
        use NotifiedCommand::{BtfLoad, MapCreate, ProgLoad, TokenCreate};
        let sockets = grant(&[Preset::Sockets], false);
        let maps = grant(&[Preset::Maps], false);
        for (grant, command, fields, sentence) in [
            (&sockets, MapCreate, vec![(map::TYPE, 2)], None),
            (&maps, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 0x400)], None),
            (&sockets, MapCreate, vec![(map::TYPE, 26)], Some("not granted the map type struct_ops")),
            (&sockets, MapCreate, vec![(map::TYPE, 64)], Some("not granted the map type 64")),
            (&sockets, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 1 << 16)], Some("tokens are not passed on")),
            (&sockets, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 1 << 15)], Some("flags 0x8000 is not passed on")),
            (&sockets, MapCreate, vec![(map::TYPE, 2), (map::IFINDEX, 1)], Some("map_ifindex")),
            (&sockets, BtfLoad, vec![], None),
            (&sockets, BtfLoad, vec![(btf::TOKEN_FD, 3)], Some("tokens")),
            (&maps, BtfLoad, vec![], Some("not granted the bpf command btf_load")),
            (&maps, ProgLoad, vec![(prog::TYPE, 6)], Some("not granted the bpf command prog_load")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::EXPECTED_ATTACH_TYPE, 37)], None),
            (&sockets, ProgLoad, vec![(prog::TYPE, 2)], Some("not granted the program type kprobe")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::EXPECTED_ATTACH_TYPE, 23)], Some("attach type trace_raw_tp")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::CORE_RELO_CNT, 1)], Some("core_relos")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FUNC_INFO_CNT, 1024)], None),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FUNC_INFO_CNT, 1025)], Some("more than 1024 functions")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::SIGNATURE_SIZE, 1)], Some("a signed program is not passed on")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FLAGS, 16)], Some("a program with flags 0x10")),
            (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::ATTACH_BTF_ID, 1)], Some("for a function of the kernel")),
            (&sockets, TokenCreate, vec![], Some("tokens are not passed on")),
        ] {
            let answer = grant.check(&attr(command, &fields));
            match sentence {
                None => assert_eq!(answer, Ok(()), "{command:?} {fields:?}"),
                Some(part) => {
                    let shown = answer.unwrap_err().to_string();
                    assert!(shown.contains(part), "{command:?} {fields:?}: {shown}");
                }
            }
        }
    }

    #[test]
    fn maps_that_reach_beyond_need_host_scope() {
        let cases = MAPS_OF_HOST.map(|(map_type, _)| (map_type, false)).into_iter().chain([(2, true), (14, true), (17, true)]);
        for (map_type, is_allowed) in cases {
            let create = attr(NotifiedCommand::MapCreate, &[(map::TYPE, map_type)]);
            let answer = grant(&[Preset::Sockets], false).check(&create);
            assert_eq!(answer.is_ok(), is_allowed, "map type {map_type}: {answer:?}");
            assert!(is_allowed || answer.unwrap_err().to_string().contains("it needs host-scope = true"));
            assert_eq!(grant(&[Preset::Sockets], true).check(&create), Ok(()), "map type {map_type}");
        }
    }

    #[test]
    fn maps_of_maps_need_host_scope_beside_a_read_only_map() {
        use crate::model::annotations::MapAccess::{ReadOnly, ReadWrite};
        for (map_type, access, host_scope, is_allowed) in [
            (12, ReadOnly, false, false),
            (13, ReadOnly, false, false),
            (13, ReadOnly, true, true),
            (13, ReadWrite, false, true),
            (2, ReadOnly, false, true),
        ] {
            let create = attr(NotifiedCommand::MapCreate, &[(map::TYPE, map_type)]);
            let shown = [(7, access)].into_iter().collect();
            let answer = grant(&[Preset::Maps], host_scope).check_inner_maps(&create, &shown);
            assert_eq!(answer.is_ok(), is_allowed, "{map_type} {access:?} {host_scope}: {answer:?}");
        }
    }

    #[test]
    fn a_type_of_the_host_needs_host_scope_even_if_it_is_granted() {
        let load = attr(NotifiedCommand::ProgLoad, &[(prog::TYPE, 17), (prog::EXPECTED_ATTACH_TYPE, 0)]);
        let refused = grant(&[Preset::Tracing], false).check(&load).unwrap_err();
        assert!(matches!(refused, ProxyRefusal::HostScope { .. }), "{refused}");
        assert_eq!(grant(&[Preset::Tracing], true).check(&load), Ok(()));
    }

    #[test]
    fn the_programs_type_decides_where_it_may_be_attached() {
        use AttachTarget::{Cgroup, CurrentNetns, Interface, Map, Netns};
        let grant = grant(&[Preset::Sockets, Preset::Networking, Preset::Cgroup, Preset::Tracing], false);
        let link =
            |kind, attach_type| grant.attach(&attr(NotifiedCommand::LinkCreate, &[(link::ATTACH_TYPE, attach_type)]), kind);
        for (kind, attach_type, target) in [
            (6, 37, Interface),
            (3, 46, Interface),
            (3, 55, Interface),
            (32, 45, CurrentNetns),
            (22, 17, Netns),
            (30, 36, Netns),
            (8, 0, Cgroup),
            (18, 10, Cgroup),
            (18, 53, Cgroup),
            (14, 4, Map),
            (16, 7, Map),
        ] {
            assert_eq!(link(kind, attach_type), Ok(target), "type {kind} as {attach_type}");
        }
        // The attach type of another type: the kernel would read the target as something else.
        for (kind, attach_type) in [(6, 46), (3, 37), (8, 37), (6, 0), (1, 0), (30, 37), (18, 46)] {
            assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::AttachType { .. })), "type {kind} as {attach_type}");
        }
        for (kind, attach_type) in [(2, 42), (2, 56), (26, 28), (2, 48), (2, 57)] {
            assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::HostScope { .. })), "type {kind} as {attach_type}");
        }
        for (kind, attach_type) in [(26, 42), (26, 56), (2, 28), (5, 48), (26, 57)] {
            assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::AttachType { .. })), "type {kind} as {attach_type}");
        }
        assert!(matches!(link(17, 41), Err(ProxyRefusal::AttachType { .. })));
        assert!(matches!(link(5, 41), Err(ProxyRefusal::HostScope { .. })));
        let open = attr(NotifiedCommand::RawTracepointOpen, &[]);
        assert!(matches!(grant.attach(&open, 17), Err(ProxyRefusal::HostScope { .. })));
        let host = ProxyGrant { host_scope: true, ..grant };
        assert_eq!(host.attach(&open, 17), Ok(AttachTarget::Loaded));
        let multi = |kind, fields: &[(usize, u32)]| host.attach(&attr(NotifiedCommand::LinkCreate, fields), kind);
        for (attach_type, flags, target) in [(42, 16, AttachTarget::Functions), (48, 52, AttachTarget::File)] {
            let fields = [(link::ATTACH_TYPE, attach_type), (flags, 1)];
            assert_eq!(multi(2, &fields), Ok(target), "{attach_type}");
            let refused = multi(2, &[(link::ATTACH_TYPE, attach_type), (flags, 3)]).unwrap_err();
            assert!(refused.to_string().contains("with flags 0x2 is not passed on"), "{refused}");
        }
        assert_eq!(multi(26, &[(link::ATTACH_TYPE, ITERATOR)]), Ok(AttachTarget::Loaded));
        for at in [link::ITER_INFO, link::ITER_INFO_SIZE] {
            let refused = multi(26, &[(link::ATTACH_TYPE, ITERATOR), (at, 1)]).unwrap_err();
            assert!(refused.to_string().contains("iter_info"), "{refused}");
        }
    }

    #[test]
    fn a_tcx_program_may_be_attached_without_a_link() {
        let grant = grant(&[Preset::Sockets], false);
        for command in [NotifiedCommand::ProgAttach, NotifiedCommand::ProgDetach] {
            let tcx = |flags| attr(command, &[(attach::TARGET, 1), (attach::ATTACH_TYPE, 46), (attach::FLAGS, flags)]);
            assert_eq!(grant.attach(&tcx(0), 3), Ok(AttachTarget::Interface));
            for flags in [REPLACE, BY_ID, OF_LINK] {
                assert!(matches!(grant.attach(&tcx(flags), 3), Err(ProxyRefusal::NotPassedOn { .. })), "{flags:#x}");
            }
            for (kind, attach_type) in [(6, 37), (3, 54), (6, 46)] {
                let other = attr(command, &[(attach::TARGET, 1), (attach::ATTACH_TYPE, attach_type)]);
                assert!(matches!(grant.attach(&other, kind), Err(ProxyRefusal::AttachType { .. })), "{kind} as {attach_type}");
            }
        }
    }

    #[test]
    fn an_order_relative_to_others_is_refused() {
        let grant = grant(&[Preset::Sockets], false);
        for (fields, ok) in [
            (vec![(link::ATTACH_TYPE, 46)], true),
            (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, 1 << 3)], true),
            (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, 1 << 3 | BY_ID), (link::RELATIVE, 7)], false),
            (vec![(link::ATTACH_TYPE, 46), (link::RELATIVE, 7)], false),
            (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, REPLACE)], false),
        ] {
            let answer = grant.attach(&attr(NotifiedCommand::LinkCreate, &fields), 3);
            assert_eq!(answer.is_ok(), ok, "{fields:?}: {answer:?}");
        }
        let xdp = attr(NotifiedCommand::LinkCreate, &[(link::ATTACH_TYPE, 37), (link::FLAGS, 4)]);
        assert_eq!(grant.attach(&xdp, 6), Ok(AttachTarget::Interface));
    }

    #[test]
    fn memory_is_estimated_before_the_call() {
        let array = attr(
            NotifiedCommand::MapCreate,
            &[(map::TYPE, 2), (map::KEY_SIZE, 4), (map::VALUE_SIZE, 8), (map::MAX_ENTRIES, 10)],
        );
        assert_eq!(map_memory(&array, 4, 4096), 120 + MAP_OVERHEAD);
        for (map_type, value_size, flags, bytes) in
            [(2, 8, MMAPABLE, 4096), (2, 4096, MMAPABLE, 11 * 4096), (27, 0, 0, 10 + 3 * 4096), (31, 0, 0, 10 + 3 * 4096)]
        {
            let fields = [
                (map::TYPE, map_type),
                (map::KEY_SIZE, 4),
                (map::VALUE_SIZE, value_size),
                (map::MAX_ENTRIES, 10),
                (map::FLAGS, flags),
            ];
            let found = map_memory(&attr(NotifiedCommand::MapCreate, &fields), 4, 4096);
            assert_eq!(found, bytes + MAP_OVERHEAD, "{fields:?}");
        }
        for (size, bytes) in [(0, 0), (1, 4096), (2048, 4096), (2049, 8192), (u32::MAX, 1 << 33)] {
            assert_eq!(btf_memory(&attr(NotifiedCommand::BtfLoad, &[(btf::SIZE, size)]), 4096), bytes, "{size}");
        }
        let largest = [(map::TYPE, 1), (map::KEY_SIZE, u32::MAX), (map::VALUE_SIZE, u32::MAX), (map::MAX_ENTRIES, u32::MAX)];
        assert!(map_memory(&attr(NotifiedCommand::MapCreate, &largest), 4, 4096) > 1 << 40);
    }

    /// xorshift64*: a sequence that a seed determines.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }
    }

    #[test]
    fn fuzz_arguments_are_judged_without_a_panic() {
        let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9_7f4a_7c15);
        println!("FUZZ_SEED={seed}");
        let mut random = Random(seed);
        let delegation = Preset::ALL.iter().fold(Delegation::default(), |all, (preset, _)| all.union(preset.delegation()));
        let limits = ContainerLimits::default();
        let grants = [false, true].map(|host_scope| ProxyGrant {
            delegation,
            helpers: None,
            kfuncs: None,
            instructions: None,
            host_scope,
            limits,
        });
        let mut accepted = 0;
        for _ in 0..200_000 {
            let command = NotifiedCommand::ALL[random.below(8)];
            let mut bytes = vec![0; random.below(attr::ATTR_SIZE + 16)];
            for _ in 0..random.below(8) {
                let length = bytes.len();
                if length == 0 {
                    break;
                }
                let at = random.below(length);
                bytes[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    _ => (random.next() & 0x3f) as u8,
                };
            }
            let Ok(attr) = CopiedAttr::new(command, &bytes) else { continue };
            let copies = attr.copies();
            assert_eq!(copies, attr.copies());
            if let Ok(copies) = copies {
                assert!(copies.iter().all(|copy| copy.length <= 16 << 20));
            }
            for grant in &grants {
                let answer = grant.check(&attr);
                assert_eq!(answer, grant.check(&attr));
                let attached = grant.attach(&attr, (random.next() & 0x3f) as u32);
                accepted += usize::from(answer.is_ok()) + usize::from(attached.is_ok());
                // What container scope accepts, host scope accepts too.
                if grant.host_scope {
                    continue;
                }
                assert!(answer.is_err() || grants[1].check(&attr).is_ok());
            }
            descriptors(&attr);
            map_memory(&attr, u64::MAX, 4096);
            btf_memory(&attr, 4096);
            program_memory(&attr);
            let _ = attr.name();
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
