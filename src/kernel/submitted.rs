//! Descriptors in the instructions of a program that another process submits: each must be replaced by one of ours.

use crate::kernel::insn::{self, Insn, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_VARIABLE};

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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_constant_without_its_second_half_and_an_error_are_passed_on() {
        let mut half = [[0x18, 0x10, 0, 0, 3, 0, 0, 0]];
        assert_eq!(replace_references(&mut half, |_| Err("no")), Err("no"));
        let mut variable = [[0x18, 0x30, 0, 0, 3, 0, 0, 0]];
        assert_eq!(replace_references::<()>(&mut variable, |_| Ok(1)), Ok(()));
    }
}
