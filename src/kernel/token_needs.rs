//! What an object contains that the kernel asks a permission for: determined from the object, and for structures of
//! functions from the kernel's types.

use std::collections::BTreeSet;

use crate::kernel::KernelError;
use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::insn::{CALL, LD};
use crate::kernel::map::CONFIGURATION;
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::struct_members;
use crate::model::delegation::{MapUse, ObjectUse, ProgramUse, helper_needs_perfmon, section_load};
use crate::model::reach;

/// `enum bpf_map_type`
const STRUCT_OPS: u32 = 26;
/// Storage for sockets, inodes, tasks and cgroups: the kernel demands the types of their values.
const STORAGE: [u32; 4] = [24, 28, 29, 32];
/// `enum bpf_prog_type`
const EXT: u32 = 28;
/// `bpf_tail_call`
const TAIL_CALL: i32 = 12;
/// The modes of `BPF_LD` that read a packet: `BPF_ABS`, `BPF_IND`.
const PACKET_LOADS: [u8; 2] = [0x20, 0x40];
/// How deep a value is searched.
const MAX_DEPTH: usize = 6;

/// Structures that the kernel finds in values by their BTF (kernel/bpf/btf.c, `btf_get_field_type`).
const SPECIAL: [&[u8]; 10] = [
    b"bpf_spin_lock",
    b"bpf_res_spin_lock",
    b"bpf_timer",
    b"bpf_wq",
    b"bpf_task_work",
    b"bpf_list_head",
    b"bpf_list_node",
    b"bpf_rb_root",
    b"bpf_rb_node",
    b"bpf_refcount",
];

/// Type tags of pointers that the kernel manages.
const POINTER_TAGS: [&[u8]; 4] = [b"kptr", b"kptr_untrusted", b"percpu_kptr", b"uptr"];

/// Reads an object. `kernel` gives the BTF of the running kernel; it is asked only for an object with a structure of
/// functions, whose members have the attach types that this kernel gives them.
///
/// # Errors
/// The errors of a malformed object.
pub fn object_use(bytes: &[u8], kernel: impl FnOnce() -> Option<Vec<u8>>) -> Result<ObjectUse, KernelError> {
    let object = BpfObject::parse(bytes)?;
    let btf = object.btf.as_ref().map(|(btf, _)| btf);
    let kernel = if struct_members::has_structures(&object) { kernel().unwrap_or_default() } else { Vec::new() };
    let members = struct_members::members(&object, Btf::parse(&kernel).ok().as_ref());
    let used = sections_in_use(&object)?;
    let mut maps: Vec<MapUse> = object
        .maps
        .iter()
        // A data section that no instruction refers to is not needed.
        .filter(|map| map.data.is_none() || map.name == CONFIGURATION || used.contains(&map.section))
        .map(|map| MapUse {
            name: map.name.to_owned(),
            types: [Some(map.shape.map_type), map.inner.map(|inner| inner.map_type)].into_iter().flatten().collect(),
            data_section: map.data.is_some(),
        })
        .collect();
    let structures = struct_members::structures(&object);
    maps.extend(structures.iter().map(|name| MapUse { name: name.clone(), types: vec![STRUCT_OPS], data_section: false }));

    let mut needs_btf: Vec<String> = structures.iter().map(|name| format!("the structure {name} of functions")).collect();
    for map in &object.maps {
        if STORAGE.contains(&map.shape.map_type) {
            needs_btf.push(format!("the map {}, whose values must have types", map.name));
        } else if let Some(field) = btf.and_then(|btf| special_field(btf, map_value(btf, map.name, map.shape.value_type))) {
            needs_btf.push(format!("the map {}, which has a {field}", map.name));
        }
    }
    let mut programs: Vec<ProgramUse> = Vec::new();
    let mut shared_helper = None;
    for (place, function) in &object.functions {
        let calls = calls(&object, function)?;
        if let Some(what) = &calls.needs_btf {
            needs_btf.push(format!("the function {}, which {what}", function.name));
        }
        if !function.program {
            shared_helper = shared_helper.or(calls.perfmon_helper);
            continue;
        }
        let section = object.elf.sections[function.section].name;
        let load = section_load(section);
        if load.is_some_and(|load| load.program_type == EXT) {
            needs_btf.push(format!("the program {}, which replaces a function", function.name));
        }
        programs.push(ProgramUse {
            function: function.name.clone(),
            section: section.to_owned(),
            load,
            perfmon_helper: calls.perfmon_helper,
            member: members.get(place).cloned(),
        });
    }
    // Which programs call a function would take linking them; a name too many is a capability too many in this rare case.
    for program in programs.iter_mut().filter(|program| program.perfmon_helper.is_none()) {
        program.perfmon_helper.clone_from(&shared_helper);
    }
    let allocates = object.elf.symbols.iter().find(|symbol| {
        symbol.section.is_none() && (symbol.name.starts_with("bpf_obj_new") || symbol.name.starts_with("bpf_percpu_obj_new"))
    });
    needs_btf
        .extend(allocates.map(|symbol| format!("the kernel function {}, which allocates a type of the object", symbol.name)));
    Ok(ObjectUse { programs, maps, btf: btf.is_some(), needs_btf })
}

/// The sections to which instructions refer.
fn sections_in_use(object: &BpfObject<'_>) -> Result<BTreeSet<usize>, KernelError> {
    let mut used = BTreeSet::new();
    let code: BTreeSet<usize> = object.functions.values().map(|function| function.section).collect();
    for section in code {
        used.extend(object.relocations(section)?.values().filter_map(|relocation| object.symbol(*relocation).section));
    }
    Ok(used)
}

/// The type of a map's values: of a declared map, or of a data section.
fn map_value(btf: &Btf<'_>, name: &str, declared: u32) -> u32 {
    if declared != 0 { declared } else { btf.data_section(name).map_or(0, |section| section.id) }
}

/// The name of the first structure or pointer in a type that the kernel manages.
fn special_field(btf: &Btf<'_>, id: u32) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![(id, 0)];
    while let Some((id, depth)) = todo.pop() {
        if id == 0 || depth > MAX_DEPTH || !seen.insert(id) {
            continue;
        }
        let Ok(ty) = btf.peel(id) else { continue };
        let name = btf.string_bytes(ty.name_offset);
        match ty.kind {
            BtfKind::Struct if SPECIAL.contains(&name) => return Some(String::from_utf8_lossy(name).into_owned()),
            BtfKind::Struct | BtfKind::Union => todo.extend(ty.members().map(|member| (member.ty, depth + 1))),
            BtfKind::DataSec => todo.extend(ty.variables().map(|variable| (variable.ty, depth))),
            BtfKind::Var => todo.push((ty.size_or_type, depth)),
            BtfKind::Array => todo.extend(ty.array().map(|(element, _)| (element, depth))),
            BtfKind::Ptr => {
                let target = btf.ty(ty.size_or_type).ok().filter(|target| target.kind == BtfKind::TypeTag);
                if let Some(tag) = target.map(|target| btf.string_bytes(target.name_offset))
                    && POINTER_TAGS.contains(&tag)
                {
                    return Some(format!("pointer with the tag {}", String::from_utf8_lossy(tag)));
                }
            }
            _ => {}
        }
    }
    None
}

/// What a function's instructions ask for.
struct Calls {
    perfmon_helper: Option<String>,
    /// Follows "which".
    needs_btf: Option<&'static str>,
}

fn calls(object: &BpfObject<'_>, function: &Function) -> Result<Calls, KernelError> {
    let mut found = Calls { perfmon_helper: None, needs_btf: None };
    let code = object.instructions(function.section);
    let relocated = object.relocations(function.section)?;
    for (at, insn) in code.iter().enumerate().skip(function.start).take(function.len) {
        let target = relocated.get(&at).map(|relocation| object.symbol(*relocation));
        let is_code = |section: usize| object.elf.sections.get(section).is_some_and(|section| section.executable());
        if insn.is_wide() && target.is_some_and(|symbol| symbol.section.is_some_and(is_code)) {
            found.needs_btf = Some("passes a function to the kernel");
        }
        let helper = insn.code == CALL && insn.src() == 0 && target.is_none();
        let number = insn.imm.cast_unsigned();
        if helper && helper_needs_perfmon(number) && found.perfmon_helper.is_none() {
            found.perfmon_helper = reach::helper(number).map(|helper| format!("bpf_{}", helper.name));
        }
        let abnormal = helper && insn.imm == TAIL_CALL
            || insn.class() == LD && !insn.is_wide() && PACKET_LOADS.contains(&(insn.code & 0xe0));
        if abnormal && !function.program && found.needs_btf.is_none() {
            found.needs_btf = Some("returns through a tail call or a packet load");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> ObjectUse {
        let path = format!("{}/tests/bpf/{name}.bpf.o", env!("CARGO_MANIFEST_DIR"));
        object_use(&std::fs::read(path).unwrap(), || None).unwrap()
    }

    #[test]
    fn members_of_structures_are_found() {
        let members = |kernel: fn() -> Option<Vec<u8>>| {
            let path = format!("{}/tests/bpf/struct_ops.bpf.o", env!("CARGO_MANIFEST_DIR"));
            let used = object_use(&std::fs::read(path).unwrap(), kernel).unwrap();
            assert!(used.maps.iter().any(|map| map.name == "steady" && map.types == [STRUCT_OPS]), "{used:?}");
            let member = |program: ProgramUse| program.member.map(|member| (program.function, member.name, member.index));
            let mut found: Vec<_> = used.programs.into_iter().filter_map(member).collect();
            found.sort();
            found
        };
        let named = [
            ("steady_avoid", "cong_avoid"),
            ("steady_ssthresh", "ssthresh"),
            ("steady_state", "set_state"),
            ("steady_undo", "undo_cwnd"),
        ];
        let expected = |indexes: [Option<u32>; 4]| -> Vec<_> {
            named.iter().zip(indexes).map(|((function, name), at)| ((*function).into(), (*name).into(), at)).collect()
        };
        assert_eq!(members(|| None), expected([None; 4]));
        // The object's own types have the same structure, with fewer members.
        let own = || {
            let path = format!("{}/tests/bpf/struct_ops.bpf.o", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let elf = crate::kernel::elf::Elf::parse(&bytes).unwrap();
            Some(elf.section(".BTF").unwrap().1.data.to_vec())
        };
        assert_eq!(members(own), expected([Some(1), Some(0), Some(2), Some(3)]));
        assert_eq!(members(|| Some(vec![1, 2, 3])), expected([None; 4]), "types that cannot be read");
    }

    #[test]
    fn programs_and_maps_are_found() {
        let counter = read("counter");
        assert!(counter.programs.iter().all(|program| program.load.is_some()), "{counter:?}");
        assert!(counter.maps.iter().any(|map| map.data_section && map.name == ".rodata"), "{counter:?}");
        assert!(counter.btf);
        let maps = read("maps");
        assert!(maps.maps.iter().any(|map| map.types.len() == 2), "a map of maps has two types: {maps:?}");
    }

    #[test]
    fn callbacks_need_the_objects_types() {
        let subprogs = read("subprogs");
        assert!(subprogs.needs_btf.iter().any(|what| what.contains("passes a function")), "{subprogs:?}");
        assert_eq!(read("tcx").needs_btf, [""; 0]);
    }

    #[test]
    fn helpers_of_perfmon_are_named() {
        let leak = read("leak");
        let named: Vec<_> = leak.programs.iter().filter_map(|program| program.perfmon_helper.as_deref()).collect();
        assert!(!named.is_empty() && named.iter().all(|name| name.starts_with("bpf_")), "{leak:?}");
    }
}
