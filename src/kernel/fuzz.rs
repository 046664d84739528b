//! Hostile objects: reading, linking and relocating end in an error or in code, never in a panic or an endless loop.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use mutate::{corpus, fuzz};

use super::core_relo::CoreTarget;
use super::link::link;
use super::object::Object;

#[allow(clippy::duplicate_mod, reason = "layers do not use each other, their tests neither")]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[test]
fn objects() {
    let mut objects = corpus(&["bpf"]);
    objects.retain(|bytes| bytes.starts_with(b"\x7fELF"));
    assert!(objects.len() > 10, "{}", objects.len());
    let own = objects.iter().find_map(|bytes| {
        let object = Object::parse(bytes).ok()?;
        object.ext.has_core().then(|| object.elf.section(".BTF").unwrap().1.data.to_vec())
    });
    // What a program of CO-RE finds in the kernel: here the types of an object of ours.
    let types = own.unwrap();
    let target = CoreTarget::parse(&types).unwrap();
    fuzz("bpf-objects", &objects, |bytes| {
        let Ok(object) = Object::parse(bytes) else { return };
        drop(object.facts());
        for function in object.programs() {
            drop(object.relocations(function.section));
            for target in [None, Some(&target)] {
                if let Ok(linked) = link(&object, function, target) {
                    drop(linked.used_maps());
                }
            }
        }
    });
    // The target may be hostile only where a machine's owner wants it to be, and must not panic either.
    fuzz("btf", &[types], |bytes| drop(CoreTarget::parse(bytes)));
}
