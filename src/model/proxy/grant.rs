//! What a container was granted, and whether a call stays within it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ProxyRefusal;
use super::attr::{
    self, CopiedAttr, ITERATOR, KPROBE_MULTI, NotifiedCommand, UPROBE_MULTI, attach, btf, by_id, kprobe_multi, link, map, prog,
    uprobe_multi,
};
use super::usage::{HeldObject, ShownMaps};
use crate::model::delegation::{Category, Delegation};
use crate::model::ids::Digest;
use crate::model::object::MapFacts;
use crate::model::policy::{ContainerLimits, RepositoryPattern};
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
    /// The verified images whose programs may be loaded besides those.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<RepositoryPattern>,
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
    /// See [`ProxyGrant::images`].
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<RepositoryPattern>,
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
            // Types that the container has loaded, or that its maps have.
            NotifiedCommand::BtfGetFdById => NotifiedCommand::MapCreate.number(),
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
                    NotifiedCommand::BtfGetFdById => btf_get_fd_by_id(attr),
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

    /// Whether a program with these instructions is listed. One that is not may be that of a verified image.
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

fn btf_get_fd_by_id(attr: &CopiedAttr) -> Result<(), ProxyRefusal> {
    no_token(attr.u32(by_id::FLAGS), attr.u32(by_id::TOKEN_FD))?;
    if attr.u32(by_id::NEXT_ID) != 0 || attr.u32(by_id::FLAGS) != 0 {
        return Err(not_passed_on("types by their id with further fields"));
    }
    Ok(())
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
        NotifiedCommand::BtfLoad | NotifiedCommand::BtfGetFdById | NotifiedCommand::TokenCreate => {}
    }
    found
}

/// The offset of the place to attach to.
pub fn target_at(command: NotifiedCommand) -> usize {
    if command == NotifiedCommand::LinkCreate { link::TARGET } else { attach::TARGET }
}

#[cfg(test)]
mod tests;
