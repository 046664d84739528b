//! Hostile objects: reading, linking and relocating return an error or code, and never panic or loop forever.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use mutate::{corpus, fuzz};

use super::core_relo::CoreTarget;
use super::implied;
use super::insn::Insn;
use super::link::{Linked, link};
use super::object::BpfObject;
use super::review::review;
use crate::model::attach_point::ProgramKind;
use crate::model::ids::PinName;
use crate::model::plan::PlannedProgram;

#[allow(clippy::duplicate_mod, reason = "layers do not use each other, their tests neither")]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[test]
fn objects() {
    let mut objects = corpus(&["bpf"]);
    objects.retain(|bytes| bytes.starts_with(b"\x7fELF"));
    assert!(objects.len() > 10, "{}", objects.len());
    let own = objects.iter().find_map(|bytes| {
        let object = BpfObject::parse(bytes).ok()?;
        object.ext.has_core().then(|| object.elf.section(".BTF").unwrap().1.data.to_vec())
    });
    // The kernel types for CO-RE programs: here the types of a committed object.
    let types = own.unwrap();
    let target = CoreTarget::parse(&types).unwrap();
    fuzz("bpf-objects", &objects, |bytes| {
        let Ok(object) = BpfObject::parse(bytes) else { return };
        drop(object.facts());
        for function in object.programs() {
            drop(object.relocations(function.section));
            let planned = PlannedProgram {
                function: function.name.clone(),
                kind: ProgramKind::Xdp,
                expected_attach_type: 0,
                target: None,
                pin: PinName::program(0),
            };
            drop(implied::programs(&object, &[planned]));
            for target in [None, Some(&target)] {
                if let Ok(linked) = link(&object, function, target) {
                    drop(linked.used_maps());
                    for program_type in [1, 3, 6, 8, 99] {
                        drop(review(&object, &function.name, program_type, &linked));
                    }
                }
            }
        }
    });
    // Instructions, functions and lines that no compiler produces.
    let tagged = objects.iter().find(|bytes| bytes.windows(13).any(|at| at == b"arg:untrusted")).unwrap();
    let tagged = BpfObject::parse(tagged).unwrap();
    let code: Vec<Vec<u8>> =
        objects.iter().filter_map(|bytes| BpfObject::parse(bytes).ok()).flat_map(|o| programs(&o)).collect();
    fuzz("instructions", &code, |bytes| {
        let instructions: Vec<Insn> = bytes.chunks_exact(8).map(|chunk| Insn::from(*chunk.first_chunk().unwrap())).collect();
        let starts = vec![0, instructions.len() / 3, instructions.len() / 2];
        let (functions, lines) = (bytes.to_vec(), bytes.to_vec());
        let linked = Linked { instructions, starts, functions, lines, ..Linked::default() };
        for program_type in [1, 3, 6, 8, 99] {
            drop(review(&tagged, "program", program_type, &linked));
        }
    });
    // Only the machine's owner can make the target types hostile, and even then nothing may panic.
    fuzz("btf", &[types], |bytes| drop(CoreTarget::parse(bytes)));
}

/// The instructions of each program, as bytes.
fn programs(object: &BpfObject<'_>) -> Vec<Vec<u8>> {
    let linked = object.programs().filter_map(|function| link(object, function, None).ok());
    linked.map(|linked| linked.instructions.into_iter().flat_map(<[u8; 8]>::from).collect()).collect()
}
