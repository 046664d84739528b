//! What an object contains and requires of a kernel, for display: determined from the object alone, without system
//! calls.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::elf::SymbolKind;
use crate::kernel::insn::CALL;
use crate::kernel::object::BpfObject;
use crate::kernel::{Feature, KernelError};
use crate::model::attach_point::ProgramKind;
use crate::model::object::{ProgramFacts, SectionAttach};
use crate::model::reach;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The licence for the kernel; empty if the object has none.
    pub license: String,
    /// True if it has BTF.
    pub btf: bool,
    /// True if it has CO-RE relocations, which require kernel BTF.
    pub core: bool,
    /// Programs in the order of the file.
    pub programs: Vec<SurveyedProgram>,
    /// Maps, without the data sections.
    pub maps: Vec<SurveyedMap>,
    /// Variables that `globals` may set.
    pub globals: Vec<String>,
    /// Kernel functions and variables that it refers to by name.
    pub kernel_symbols: Vec<String>,
    /// What it requires of a kernel, and since which version kernels have it.
    pub needs: Vec<Requirement>,
    /// The first kernel version that has all of it, by version number alone.
    pub kernel: String,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SurveyedProgram {
    /// The function.
    pub name: String,
    /// bpfman's name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its section.
    pub section: String,
    /// Number of instructions, without the functions that it calls.
    pub instructions: usize,
}

/// One map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SurveyedMap {
    /// Its name.
    pub name: String,
    /// bpfman's name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// Maximum number of entries; bytes for ring buffers.
    pub max_entries: u32,
}

/// A feature that not every kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// Its name.
    pub what: String,
    /// The first kernel version that has it.
    pub since: String,
}

/// Reads an object.
pub fn survey(bytes: &[u8]) -> Result<Survey, KernelError> {
    let object = BpfObject::parse(bytes)?;
    let facts = object.facts();
    let mut needs: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for program in &facts.programs {
        if let Some((what, since)) = program.declared.as_ref().and_then(|declared| attach_need(declared.kind())) {
            needs.insert(what, since);
        }
    }
    if facts.core {
        needs.insert(Feature::Btf.to_string(), version(Feature::Btf.since()));
    }
    for map in facts.maps.iter().filter(|map| !map.data_section) {
        needs.insert(format!("map type {}", map_word(map.map_type)), map_since(map.map_type).unwrap_or_default());
    }
    if facts.maps.iter().any(|map| map.data_section) {
        needs.insert("global variables".to_owned(), (5, 2));
    }
    for function in object.functions.values() {
        let code = object.instructions(function.section);
        let relocated = object.relocations(function.section)?;
        for (at, insn) in code.iter().enumerate().skip(function.start).take(function.len) {
            // Calls of functions that are not linked yet have a relocation; helpers have none.
            if insn.code == CALL && insn.src() == 0 && !relocated.contains_key(&at) {
                let id = u32::try_from(insn.imm).unwrap_or_default();
                needs.insert(format!("helper {}", helper_name(id)), helper_since(id).unwrap_or_default());
            }
        }
    }
    let undefined = object.elf.symbols.iter().filter(|symbol| {
        symbol.section.is_none() && !symbol.local && !symbol.name.is_empty() && symbol.kind != SymbolKind::Section
    });
    let newest = needs.values().max().copied().unwrap_or_default();
    let mut needs: Vec<_> = needs.into_iter().filter(|(_, since)| *since > (4, 18)).collect();
    needs.sort_by(|(a, since_a), (b, since_b)| since_b.cmp(since_a).then(a.cmp(b)));
    let programs = object.programs().zip(&facts.programs).map(|(function, program)| SurveyedProgram {
        name: program.function.clone(),
        kind: program_word(program),
        section: program.section.clone(),
        instructions: function.len,
    });
    let maps = facts.maps.iter().filter(|map| !map.data_section).map(|map| SurveyedMap {
        name: map.name.clone(),
        kind: map_word(map.map_type),
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
    });
    Ok(Survey {
        license: object.license.to_owned(),
        btf: object.btf.is_some(),
        core: facts.core,
        programs: programs.collect(),
        maps: maps.collect(),
        globals: facts.globals.iter().map(|global| global.name.clone()).collect(),
        kernel_symbols: undefined.map(|symbol| symbol.name.to_owned()).collect(),
        needs: needs.into_iter().map(|(what, since)| Requirement { what, since: shown(since) }).collect(),
        kernel: shown(newest),
    })
}

/// bpfman's name of a program's type. Programs of the sections `tc` and `classifier` are tc, however they are attached.
pub fn program_word(program: &ProgramFacts) -> String {
    let section = program.section.trim_start_matches('?');
    match &program.declared {
        Some(SectionAttach::Tcx(_)) if !section.starts_with("tcx") => ProgramKind::Tc.word().to_owned(),
        Some(declared) => declared.kind().word().to_owned(),
        None => section.split('/').next().unwrap_or(section).to_owned(),
    }
}

/// bpfman's name of a map's type.
pub fn map_word(map_type: u32) -> String {
    let known = usize::try_from(map_type).ok().and_then(|at| MAPS.get(at));
    known.map_or_else(|| format!("type_{map_type}"), |(word, _)| (*word).to_owned())
}

fn map_since(map_type: u32) -> Option<(u32, u32)> {
    usize::try_from(map_type).ok().and_then(|at| MAPS.get(at)).map(|(_, since)| *since)
}

/// What attaching requires with the method that we use.
fn attach_need(kind: ProgramKind) -> Option<(String, (u32, u32))> {
    use ProgramKind as K;
    let of = |feature: Feature| Some((feature.to_string(), version(feature.since())));
    match kind {
        K::Xdp => Some(("XDP links".to_owned(), (5, 9))),
        K::Tcx | K::Tc => of(Feature::Tcx),
        K::Tracepoint | K::PerfEvent => of(Feature::PerfLink),
        K::Fentry | K::Fexit | K::TpBtf => of(Feature::Tracing),
        K::Lsm => of(Feature::Lsm),
        K::Kprobe | K::Kretprobe | K::Ksyscall | K::Kretsyscall => of(Feature::Kprobe),
        K::FlowDissector => Some(("flow dissector links".to_owned(), (5, 8))),
        K::KprobeMulti | K::KretprobeMulti => Some(("kprobe.multi links".to_owned(), (5, 18))),
        K::KprobeSession => Some(("kprobe sessions".to_owned(), (6, 10))),
        K::UprobeMulti | K::UretprobeMulti => Some(("uprobe.multi links".to_owned(), (6, 6))),
        K::UprobeSession => Some(("uprobe sessions".to_owned(), (6, 13))),
        K::FmodRet => Some(("fmod_ret programs".to_owned(), (5, 7))),
        K::Fsession => Some(("fsession programs".to_owned(), (7, 0))),
        K::LsmCgroup => Some(("lsm_cgroup programs".to_owned(), (6, 0))),
        K::SkLookup => Some(("sk_lookup programs".to_owned(), (5, 9))),
        K::Netfilter => Some(("netfilter programs".to_owned(), (6, 4))),
        K::Iter => Some(("iterators".to_owned(), (5, 8))),
        kind if kind.on_cgroup() => of(Feature::CgroupLink),
        _ => None,
    }
}

fn version(text: &str) -> (u32, u32) {
    text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))).unwrap_or_default()
}

fn shown((major, minor): (u32, u32)) -> String {
    match major {
        0 => "unknown".to_owned(),
        _ => format!("{major}.{minor}"),
    }
}

/// `enum bpf_map_type`: bpfman's name and the first kernel version.
const MAPS: &[(&str, (u32, u32))] = &[
    ("unspec", (0, 0)),
    ("hash", (3, 19)),
    ("array", (3, 19)),
    ("program_array", (4, 2)),
    ("perf_event_array", (4, 3)),
    ("per_cpu_hash", (4, 6)),
    ("per_cpu_array", (4, 6)),
    ("stack_trace", (4, 6)),
    ("cgroup_array", (4, 8)),
    ("lru_hash", (4, 10)),
    ("lru_per_cpu_hash", (4, 10)),
    ("lpm_trie", (4, 11)),
    ("array_of_maps", (4, 12)),
    ("hash_of_maps", (4, 12)),
    ("devmap", (4, 14)),
    ("sockmap", (4, 14)),
    ("cpumap", (4, 15)),
    ("xskmap", (4, 18)),
    ("sockhash", (4, 18)),
    ("cgroup_storage", (4, 19)),
    ("reuseport_sockarray", (4, 19)),
    ("per_cpu_cgroup_storage", (4, 20)),
    ("queue", (4, 20)),
    ("stack", (4, 20)),
    ("sk_storage", (5, 2)),
    ("devmap_hash", (5, 4)),
    ("struct_ops", (5, 6)),
    ("ringbuf", (5, 8)),
    ("inode_storage", (5, 10)),
    ("task_storage", (5, 11)),
    ("bloom_filter", (5, 16)),
    ("user_ringbuf", (6, 1)),
    ("cgrp_storage", (6, 2)),
    ("arena", (6, 9)),
];

/// Helpers are numbered in the order of their introduction: the last one of each kernel version.
const LAST_HELPER: &[(u32, (u32, u32))] = &[
    (3, (3, 19)),
    (11, (4, 1)),
    (16, (4, 2)),
    (22, (4, 3)),
    (25, (4, 4)),
    (26, (4, 5)),
    (30, (4, 6)),
    (36, (4, 8)),
    (41, (4, 9)),
    (44, (4, 10)),
    (45, (4, 11)),
    (47, (4, 12)),
    (50, (4, 13)),
    (53, (4, 14)),
    (57, (4, 15)),
    (59, (4, 16)),
    (64, (4, 17)),
    (80, (4, 18)),
    (82, (4, 19)),
    (90, (4, 20)),
    (92, (5, 0)),
    (98, (5, 1)),
    (108, (5, 2)),
    (110, (5, 3)),
    (116, (5, 5)),
    (118, (5, 6)),
    (124, (5, 7)),
    (135, (5, 8)),
    (141, (5, 9)),
    (155, (5, 10)),
    (162, (5, 11)),
    (163, (5, 12)),
    (165, (5, 13)),
    (168, (5, 14)),
    (175, (5, 15)),
    (179, (5, 16)),
    (185, (5, 17)),
    (193, (5, 18)),
    (203, (5, 19)),
    (207, (6, 0)),
    (209, (6, 1)),
    (211, (6, 2)),
];

fn helper_since(id: u32) -> Option<(u32, u32)> {
    LAST_HELPER.iter().find(|(last, _)| id <= *last).map(|(_, since)| *since)
}

/// Its name; helpers that are newer than our table are shown by number.
fn helper_name(id: u32) -> String {
    reach::helper(id).map_or_else(|| format!("number {id}"), |helper| helper.name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_from_the_object() {
        let found = survey(include_bytes!("../../tests/data/images/pass.bpfel.o")).unwrap();
        let names: Vec<_> = found.programs.iter().map(|p| (p.name.as_str(), p.kind.as_str())).collect();
        assert_eq!(names, [("pass", "xdp")]);
        assert_eq!(found.license, "GPL");
        assert_eq!(found.kernel, "5.9", "{found:?}");
        assert!(found.needs.iter().any(|need| need.what == "XDP links" && need.since == "5.9"));
        assert!(survey(b"\x7fELF").is_err());
    }

    #[test]
    fn helpers_need_the_kernel_that_introduced_them() {
        for (id, since) in [(1, (3, 19)), (4, (4, 1)), (5, (4, 1)), (80, (4, 18)), (122, (5, 7)), (131, (5, 8)), (209, (6, 1))]
        {
            assert_eq!(helper_since(id), Some(since), "{id}");
        }
        assert_eq!(helper_since(999), None);
        assert!(LAST_HELPER.is_sorted());
    }

    #[test]
    fn names_are_those_of_bpfman() {
        let program = |section: &str| ProgramFacts {
            function: "f".into(),
            section: section.into(),
            declared: crate::kernel::section::declared(section),
        };
        for (section, word) in [
            ("tc", "tc"),
            ("classifier/x", "tc"),
            ("tcx/ingress", "tcx"),
            ("xdp.frags", "xdp"),
            ("tracepoint/sched/sched_switch", "tracepoint"),
            ("kprobe/x", "kprobe"),
            ("struct_ops/x", "struct_ops"),
        ] {
            assert_eq!(program_word(&program(section)), word, "{section}");
        }
        assert_eq!(
            (map_word(6).as_str(), map_word(27).as_str(), map_word(99).as_str()),
            ("per_cpu_array", "ringbuf", "type_99")
        );
    }
}
