//! What a signature of a program covers. The kernel checks it over the instructions exactly as they are passed. So they are
//! passed with the maps as indices of an array, and with the CO-RE relocations left to the kernel: the result depends on
//! nothing but the object.

use std::collections::BTreeSet;

use crate::kernel::error::KernelError;
use crate::kernel::insn::{PSEUDO_MAP_FD, PSEUDO_MAP_INDEX, PSEUDO_MAP_VALUE_INDEX};
use crate::kernel::link::{Linked, link};
use crate::kernel::object::{BpfObject, Function};

/// A program whose instructions can be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignableProgram {
    /// The function.
    pub function: String,
    /// What is signed.
    pub instructions: Vec<u8>,
    /// The maps that it uses.
    pub maps: BTreeSet<String>,
}

/// Instructions as they are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexedCode {
    pub(crate) instructions: Vec<[u8; 8]>,
    /// The maps that the instructions index, as indices into [`BpfObject::maps`].
    pub(crate) maps: Vec<usize>,
    /// `struct bpf_core_relo` of each relocation that is left to the kernel.
    pub(crate) core: Vec<u8>,
}

impl IndexedCode {
    /// Replaces the maps of a program that was linked without the kernel's types, in the order of their first use.
    pub(crate) fn new(linked: &Linked) -> Self {
        let mut instructions = linked.instructions.clone();
        let mut maps: Vec<usize> = Vec::new();
        for (at, map) in &linked.maps {
            let index = maps.iter().position(|known| known == map).unwrap_or_else(|| {
                maps.push(*map);
                maps.len() - 1
            });
            let insn = instructions[*at];
            let source = if insn.src() == PSEUDO_MAP_FD { PSEUDO_MAP_INDEX } else { PSEUDO_MAP_VALUE_INDEX };
            instructions[*at] = insn.with_src(source);
            // An object has far fewer maps than that.
            instructions[*at].imm = i32::try_from(index).unwrap_or(i32::MAX);
        }
        Self { instructions: instructions.into_iter().map(Into::into).collect(), maps, core: linked.core.clone() }
    }
}

/// Every program of an object with what a signature of it covers.
///
/// # Errors
/// If the object cannot be read, or a program cannot be linked.
pub fn signable(object: &[u8]) -> Result<Vec<SignableProgram>, KernelError> {
    let object = BpfObject::parse(object)?;
    let program = |function: &Function| {
        let linked = link(&object, function, None);
        let linked = linked.map_err(|source| KernelError::Link { program: function.name.clone(), source })?;
        let code = IndexedCode::new(&linked);
        Ok(SignableProgram {
            function: function.name.clone(),
            instructions: code.instructions.concat(),
            maps: code.maps.iter().map(|map| object.maps[*map].name.to_owned()).collect(),
        })
    };
    object.programs().map(program).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kernel::program_signature::{ProgramSignatures, with_signatures};

    #[test]
    fn a_signature_does_not_change_what_is_signed() {
        const OBJECT: &[u8] = include_bytes!("../../tests/bpf/core.bpf.o");
        let signatures = BTreeMap::from([("read_task".to_owned(), vec![7; 300])]);
        let signed = with_signatures(OBJECT, &ProgramSignatures { signatures, ..ProgramSignatures::default() }).unwrap();
        assert_eq!(signable(OBJECT).unwrap(), signable(&signed).unwrap());
    }

    /// Signatures of existing images cover exactly these bytes: linking must give the same for ever.
    #[test]
    fn what_is_signed_does_not_change() {
        let programs = signable(include_bytes!("../../tests/bpf/subprogs.bpf.o")).unwrap();
        let names: Vec<_> = programs.iter().map(|program| program.function.as_str()).collect();
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hashes = programs.iter().map(|program| program.instructions.iter().fold(0xcbf2_9ce4_8422_2325, fold));
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(hashes.collect::<Vec<u64>>(), [9_107_680_783_215_574_309]);
    }
}
