//! Structures of functions: each variable in a `.struct_ops` section becomes a map, and the functions in it are programs
//! whose attach type is the index of their member in the kernel's structure (libbpf, `bpf_map__init_kern_struct_ops`).

use std::collections::BTreeMap;

use crate::kernel::btf::{Btf, BtfKind, Type};
use crate::kernel::elf::SymbolKind;
use crate::kernel::insn;
use crate::kernel::object::BpfObject;
use crate::model::delegation::StructMember;

/// A name can end with this and a variant, which does not count (libbpf, "flavors").
const VARIANT: &str = "___";

/// The sections of structures.
fn sections<'o>(object: &'o BpfObject<'_>) -> impl Iterator<Item = (usize, &'o str)> {
    let sections = object.elf.sections.iter().enumerate().map(|(at, section)| (at, section.name));
    sections.filter(|(_, name)| name.trim_start_matches('?').starts_with(".struct_ops"))
}

/// True if the object has structures of functions.
pub fn has_structures(object: &BpfObject<'_>) -> bool {
    sections(object).next().is_some()
}

/// The names of the variables.
pub fn structures(object: &BpfObject<'_>) -> Vec<String> {
    let variables = sections(object).flat_map(|(section, _)| object.elf.symbols_of(section));
    variables.filter(|symbol| symbol.size > 0).map(|symbol| symbol.name.to_owned()).collect()
}

/// The member that each function is, by section and first instruction of the function. Without the BTF of the kernel, or
/// if the kernel does not have the structure or the member, its index is not known.
pub fn members(object: &BpfObject<'_>, kernel: Option<&Btf<'_>>) -> BTreeMap<(usize, usize), StructMember> {
    let mut found = BTreeMap::new();
    let Some((btf, _)) = &object.btf else { return found };
    for (section, name) in sections(object) {
        let Some(variables) = btf.data_section(name) else { continue };
        for relocation in object.elf.relocations(section) {
            let Some(function) = target(object, section, relocation.offset, relocation.symbol) else { continue };
            // The offsets of the BTF are set by a linker, which not every object has seen.
            let inside = object.elf.symbols_of(section).find_map(|symbol| {
                let offset = relocation.offset.checked_sub(symbol.value).filter(|offset| *offset < symbol.size)?;
                Some((symbol.name, offset))
            });
            let Some((name, offset)) = inside else { continue };
            let named = |ty: &Type<'_>| btf.name(ty).is_ok_and(|found| found == name);
            let variable = variables.variables().filter_map(|variable| btf.ty(variable.ty).ok()).find(named);
            let Some(variable) = variable.filter(|ty| ty.kind == BtfKind::Var) else { continue };
            if let Some(member) = member(btf, &variable, offset, kernel) {
                found.insert(function, member);
            }
        }
    }
    found
}

/// The function that a pointer in a section refers to.
fn target(object: &BpfObject<'_>, section: usize, offset: u64, symbol: usize) -> Option<(usize, usize)> {
    let symbol = object.elf.symbols.get(symbol)?;
    let start = match symbol.kind {
        SymbolKind::Section => {
            let at = usize::try_from(offset).ok()?;
            u64::from_ne_bytes(*object.elf.sections.get(section)?.data.get(at..)?.first_chunk()?)
        }
        _ => symbol.value,
    };
    Some((symbol.section?, usize::try_from(start).ok()? / insn::SIZE))
}

/// The member at an offset in bytes of a variable.
fn member(btf: &Btf<'_>, variable: &Type<'_>, offset: u64, kernel: Option<&Btf<'_>>) -> Option<StructMember> {
    let structure = btf.peel(variable.size_or_type).ok().filter(|ty| ty.kind == BtfKind::Struct)?;
    let member = structure.members().find(|member| u64::from(member.bit_offset) == offset * 8)?;
    let name = |text: &str| text.split(VARIANT).next().unwrap_or_default().to_owned();
    let (structure, name) = (name(btf.name(&structure).ok()?), name(btf.string(member.name_offset).ok()?));
    let index = kernel.and_then(|kernel| {
        let named = |ty: &Type<'_>| ty.kind == BtfKind::Struct && kernel.name(ty).is_ok_and(|found| found == structure);
        let of_kernel = kernel.types().find(named)?;
        let position = of_kernel.members().position(|member| kernel.string(member.name_offset).is_ok_and(|n| n == name))?;
        u32::try_from(position).ok()
    });
    Some(StructMember { structure, name, index })
}
