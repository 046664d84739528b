//! Prepares an object's BTF for the kernel. The compiler leaves to the loader what only a linker knows: the sizes of
//! data sections, the offsets of global variables, and the linkage of functions (libbpf does the same).

use std::collections::HashMap;

use crate::kernel::btf::{Btf, BtfError, BtfKind, Type};
use crate::kernel::elf::{Elf, SymbolKind};
use crate::kernel::externs::{Extern, Externs, KERNEL_SYMBOLS};
use crate::kernel::map::CONFIGURATION;

/// Functions that compilers call implicitly: the kernel must verify them where they are called, not as global
/// functions.
const BUILTINS: [&[u8]; 4] = [b"memset", b"memcpy", b"memmove", b"memcmp"];

/// A copy of the object's BTF with sizes, offsets and linkages filled in. The length of the records does not change.
pub fn for_kernel(elf: &Elf<'_>, externs: &Externs<'_>, btf: &Btf<'_>, bytes: &[u8]) -> Result<Vec<u8>, BtfError> {
    let mut fixed = bytes.to_vec();
    let sections: HashMap<&[u8], (usize, u64)> =
        elf.sections.iter().enumerate().map(|(index, s)| (s.name.as_bytes(), (index, s.size))).collect();
    let places: HashMap<(usize, &[u8]), u64> =
        elf.symbols.iter().filter_map(|s| Some(((s.section?, s.name.as_bytes()), s.value))).collect();
    let is_static = static_functions(elf);
    let int = word_type(btf);
    for ty in btf.types() {
        let at = btf.position(ty.id)?;
        match ty.kind {
            // The kernel accepts only variables in a data section, and no function without code. Nothing refers to the
            // section; a union of the same length takes its place.
            BtfKind::DataSec if btf.string_bytes(ty.name_offset) == KERNEL_SYMBOLS.as_bytes() => {
                if let Some(int) = int {
                    union_of(&ty, int, &mut fixed, at);
                }
            }
            BtfKind::DataSec if btf.string_bytes(ty.name_offset) == CONFIGURATION.as_bytes() => {
                let place = |name: &[u8]| match std::str::from_utf8(name).ok().and_then(|name| externs.get(name)) {
                    Some(Extern::Configuration(offset)) => Some(u64::from(offset)),
                    _ => None,
                };
                data_section(btf, &ty, externs.size.into(), place, &mut fixed, at)?;
            }
            BtfKind::DataSec => {
                if let Some((index, size)) = sections.get(btf.string_bytes(ty.name_offset)) {
                    data_section(btf, &ty, *size, |name| places.get(&(*index, name)).copied(), &mut fixed, at)?;
                }
            }
            BtfKind::Func => {
                let name = btf.string_bytes(ty.name_offset);
                if ty.vlen == GLOBAL && is_static(name) || ty.vlen == EXTERN {
                    // `vlen`, the low half of the second word, is the linkage: 0 is static.
                    put(&mut fixed, at + 4, u32::from(ty.flag) << 31 | (BtfKind::Func as u32) << 24);
                }
                name_parameters(btf, &ty, &mut fixed)?;
            }
            // The kernel accepts no variable that is only declared, and none without a type.
            BtfKind::Var if ty.linkage() == Some(EXTERN) => {
                put(&mut fixed, at + 12, GLOBAL);
                if let (Some(int), BtfKind::Void) = (int, btf.peel(ty.size_or_type)?.kind) {
                    put(&mut fixed, at + 8, int);
                }
            }
            // Rust gives pointer types names, which the kernel refuses.
            BtfKind::Ptr => put(&mut fixed, at, 0),
            _ => {}
        }
    }
    Ok(fixed)
}

const GLOBAL: u32 = 1;
const EXTERN: u32 = 2;

/// An integer of four bytes.
fn word_type(btf: &Btf<'_>) -> Option<u32> {
    btf.types().find(|ty| ty.kind == BtfKind::Int && ty.size_or_type == 4).map(|ty| ty.id)
}

/// Overwrites a data section with an unnamed union of as many unnamed integers: its members are as long as the entries
/// of the section.
fn union_of(section: &Type<'_>, int: u32, fixed: &mut [u8], at: usize) {
    put(fixed, at, 0);
    put(fixed, at + 4, (BtfKind::Union as u32) << 24 | section.vlen);
    put(fixed, at + 8, 4);
    for n in 0..section.vlen as usize {
        for (word, value) in [0, int, 0].into_iter().enumerate() {
            put(fixed, at + 12 + 12 * n + 4 * word, value);
        }
    }
}

/// Tells by its name whether a function that is global in BTF becomes static for the kernel.
pub fn static_functions<'a>(elf: &Elf<'a>) -> impl Fn(&[u8]) -> bool + use<'a> {
    let functions = elf.symbols.iter().filter(|symbol| symbol.kind == SymbolKind::Function);
    let hidden: HashMap<&[u8], bool> = functions.map(|symbol| (symbol.name.as_bytes(), symbol.hidden)).collect();
    move |name| BUILTINS.contains(&name) || hidden.get(name) == Some(&true)
}

fn data_section(
    btf: &Btf<'_>,
    section: &Type<'_>,
    size: u64,
    place: impl Fn(&[u8]) -> Option<u64>,
    fixed: &mut [u8],
    at: usize,
) -> Result<(), BtfError> {
    let word = |n: u64| u32::try_from(n).map_err(|_| BtfError::Type(section.id));
    put(fixed, at + 8, word(size)?);
    let mut entries = Vec::new();
    for entry in section.variables() {
        let var = btf.ty(entry.ty)?;
        // The compiler knows the offsets of static variables only.
        let offset = match var.linkage() {
            Some(GLOBAL | EXTERN) => place(btf.string_bytes(var.name_offset)).map_or(Ok(entry.offset), word)?,
            _ => entry.offset,
        };
        entries.push([entry.ty, offset, entry.size]);
    }
    // The kernel requires them in the order of their offsets.
    entries.sort_by_key(|[_, offset, _]| *offset);
    for (n, word) in entries.into_iter().flatten().enumerate() {
        put(fixed, at + 12 + 4 * n, word);
    }
    Ok(())
}

/// Rust leaves parameters unnamed, which the kernel refuses for functions with code. Any name is accepted; this uses
/// the function's own.
fn name_parameters(btf: &Btf<'_>, function: &Type<'_>, fixed: &mut [u8]) -> Result<(), BtfError> {
    let prototype = btf.ty(function.size_or_type)?;
    if prototype.kind != BtfKind::FuncProto {
        return Err(BtfError::Kind(function.id));
    }
    let at = btf.position(prototype.id)? + 12;
    for (n, (name, ty)) in prototype.parameters().enumerate() {
        if name == 0 && ty != 0 {
            put(fixed, at + 8 * n, function.name_offset);
        }
    }
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}
