//! The instructions of a program that another process submits: the descriptors in them, each of which must be replaced by
//! one of ours, and the functions of the kernel that they call.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::btf::{Btf, BtfError, BtfKind};
use crate::kernel::insn::{self, CALL, Insn, PSEUDO_KFUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_VARIABLE};

/// `src_reg` of LD_IMM64: as PSEUDO_MAP_FD and PSEUDO_MAP_VALUE, but the constant is an index of `fd_array`.
const PSEUDO_MAP_IDX: u8 = 5;
/// See [`PSEUDO_MAP_IDX`].
const PSEUDO_MAP_IDX_VALUE: u8 = 6;

/// What an instruction refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeReference {
    /// A descriptor of the submitting process.
    Descriptor(i32),
    /// An index of its `fd_array`.
    ArrayIndex(i32),
}

/// Replaces every descriptor that the verifier would look up (kernel/bpf/verifier.c, `resolve_pseudo_ldimm64`). Indexes
/// become descriptors, so that the program needs no `fd_array`.
///
/// # Errors
/// The first error of `replace`, which returns the descriptor to use.
pub fn replace_references<E>(
    code: &mut [[u8; insn::SIZE]],
    mut replace: impl FnMut(CodeReference) -> Result<i32, E>,
) -> Result<(), E> {
    let mut at = 0;
    while let Some(insn) = code.get(at).copied().map(Insn::from) {
        if !insn.is_wide() {
            at += 1;
            continue;
        }
        let (reference, kind) = match insn.src() {
            kind @ (PSEUDO_MAP_FD | PSEUDO_MAP_VALUE) => (CodeReference::Descriptor(insn.imm), kind),
            PSEUDO_MAP_IDX => (CodeReference::ArrayIndex(insn.imm), PSEUDO_MAP_FD),
            PSEUDO_MAP_IDX_VALUE => (CodeReference::ArrayIndex(insn.imm), PSEUDO_MAP_VALUE),
            PSEUDO_VARIABLE => {
                // The second half has a descriptor of a module's BTF, or 0 for the kernel's.
                if let Some(second) = code.get_mut(at + 1) {
                    let mut half = Insn::from(*second);
                    if half.imm != 0 {
                        half.imm = replace(CodeReference::Descriptor(half.imm))?;
                        *second = half.into();
                    }
                }
                at += 2;
                continue;
            }
            _ => {
                at += 2;
                continue;
            }
        };
        let mut replaced = insn.with_src(kind);
        replaced.imm = replace(reference)?;
        code[at] = replaced.into();
        at += 2;
    }
    Ok(())
}

/// The instructions without their descriptors, which differ from load to load: what identifies a program. Instructions
/// after [`replace_references`] are expected, which names maps in one way only.
pub fn without_descriptors(code: &[[u8; insn::SIZE]]) -> Vec<u8> {
    let mut code = code.to_vec();
    // Descriptors are replaced by 0.
    let replaced: Result<(), std::convert::Infallible> = replace_references(&mut code, |_| Ok(0));
    match replaced {
        Ok(()) => code.concat(),
    }
}

/// What a submitted program calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubmittedCalls {
    /// Helpers, `enum bpf_func_id`.
    pub helpers: BTreeSet<u32>,
    /// Functions of the kernel, by their ids in its BTF.
    pub kfuncs: BTreeSet<u32>,
    /// Functions of modules, by their ids in the module's BTF.
    pub module_kfuncs: BTreeSet<u32>,
    /// True if it refers to the value of a map: a global variable.
    pub global_data: bool,
}

/// Finds what a program calls.
pub fn submitted_calls(code: &[[u8; insn::SIZE]]) -> SubmittedCalls {
    let mut found = SubmittedCalls::default();
    let mut at = 0;
    while let Some(insn) = code.get(at).copied().map(Insn::from) {
        let number = insn.imm.cast_unsigned();
        match (insn.code, insn.src()) {
            (CALL, 0) => drop(found.helpers.insert(number)),
            (CALL, PSEUDO_KFUNC) if insn.off == 0 => drop(found.kfuncs.insert(number)),
            (CALL, PSEUDO_KFUNC) => drop(found.module_kfuncs.insert(number)),
            _ if insn.is_wide() => found.global_data |= matches!(insn.src(), PSEUDO_MAP_VALUE | PSEUDO_MAP_IDX_VALUE),
            _ => {}
        }
        at += if insn.is_wide() { 2 } else { 1 };
    }
    found
}

/// The names of functions in the BTF of the kernel; ids that it does not have are left out.
///
/// # Errors
/// If the BTF cannot be read.
pub fn function_names(kernel: &[u8], ids: &BTreeSet<u32>) -> Result<BTreeMap<u32, String>, BtfError> {
    let types = Btf::parse(kernel)?;
    let mut names = BTreeMap::new();
    for id in ids {
        if let Ok(function) = types.ty(*id)
            && function.kind == BtfKind::Func
        {
            names.insert(*id, types.name(&function)?.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found() {
        let insn = |code: u8, src: u8, off: i16, imm: i32| -> [u8; 8] {
            let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
            [code, src << 4, o0, o1, i0, i1, i2, i3]
        };
        let call = |src, off, imm| insn(CALL, src, off, imm);
        // The second half of a constant is no call.
        let code = [
            call(0, 0, 5),
            insn(insn::LD_IMM64, PSEUDO_MAP_VALUE, 0, 3),
            call(0, 0, 9),
            call(0, 0, 1),
            call(PSEUDO_KFUNC, 0, 70),
            call(PSEUDO_KFUNC, 1, 71),
            call(1, 0, 2),
        ];
        let found = submitted_calls(&code);
        let expected =
            SubmittedCalls { helpers: [1, 5].into(), kfuncs: [70].into(), module_kfuncs: [71].into(), global_data: true };
        assert_eq!(found, expected);
        assert_eq!(submitted_calls(&[]), SubmittedCalls::default());
    }

    #[test]
    fn every_descriptor_is_replaced_and_indexes_become_descriptors() {
        let wide = |src: u8, low: u8, high: u8| [[0x18, src << 4 | 1, 0, 0, low, 0, 0, 0], [0, 0, 0, 0, high, 0, 0, 0]];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let code = [
            wide(0, 3, 9),
            wide(1, 3, 0),
            wide(2, 4, 8),
            wide(5, 0, 0),
            wide(6, 1, 8),
            wide(3, 7, 5),
            wide(3, 7, 0),
            wide(4, 6, 0),
        ];
        let mut code: Vec<_> = code.into_iter().flatten().chain([exit]).collect();
        let mut seen = Vec::new();
        let replaced = replace_references::<()>(&mut code, |reference| {
            seen.push(reference);
            Ok(match reference {
                CodeReference::Descriptor(fd) => 100 + fd,
                CodeReference::ArrayIndex(index) => 120 + index,
            })
        });
        assert_eq!(replaced, Ok(()));
        use CodeReference::{ArrayIndex, Descriptor};
        assert_eq!(seen, [Descriptor(3), Descriptor(4), ArrayIndex(0), ArrayIndex(1), Descriptor(5)]);
        let expected = [
            wide(0, 3, 9),
            wide(1, 103, 0),
            wide(2, 104, 8),
            wide(1, 120, 0),
            wide(2, 121, 8),
            wide(3, 7, 105),
            wide(3, 7, 0),
            wide(4, 6, 0),
        ];
        assert_eq!(code, expected.into_iter().flatten().chain([exit]).collect::<Vec<_>>());
    }

    #[test]
    fn instructions_are_the_same_with_other_descriptors() {
        let wide = |src: u8, low: u8, high: u8| [[0x18, src << 4 | 1, 0, 0, low, 0, 0, 0], [0, 0, 0, 0, high, 0, 0, 0]];
        let program = |map: u8, offset: u8, constant: u8, module: u8| {
            [wide(1, map, 0), wide(2, map + 1, offset), wide(0, constant, 0), wide(3, 7, module)].concat()
        };
        let same = without_descriptors(&program(3, 8, 5, 11));
        assert_eq!(same, without_descriptors(&program(9, 8, 5, 12)));
        assert_eq!(same.len(), 64);
        for other in [program(3, 16, 5, 11), program(3, 8, 6, 11)] {
            assert_ne!(same, without_descriptors(&other), "offsets in values and constants are part of it");
        }
    }

    #[test]
    fn a_constant_without_its_second_half_and_an_error_are_passed_on() {
        let mut half = [[0x18, 0x10, 0, 0, 3, 0, 0, 0]];
        assert_eq!(replace_references(&mut half, |_| Err("no")), Err("no"));
        let mut variable = [[0x18, 0x30, 0, 0, 3, 0, 0, 0]];
        assert_eq!(replace_references::<()>(&mut variable, |_| Ok(1)), Ok(()));
    }
}
