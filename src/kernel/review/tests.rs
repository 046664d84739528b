#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::Path;

use super::*;
use crate::kernel::link::{LinkError, link};
use crate::kernel::section;

const XDP: u32 = 6;
const SCHED_CLS: u32 = 3;
const CGROUP_SKB: u32 = 8;

/// The review of an image's program.
fn instructions(program_type: u32, code: &[Insn], starts: &[usize]) -> Result<(), Broken> {
    super::instructions(program_type, code, starts, AllowedReferences::Object(&BTreeMap::new())).map(drop)
}

/// One instruction: code, destination and source register, offset, constant.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
    Insn::from([code, registers, o0, o1, i0, i1, i2, i3])
}

fn mov(register: u8, imm: i32) -> Insn {
    insn(insn::MOV64_IMM, register, 0, 0, imm)
}

fn call(helper: i32) -> Insn {
    insn(insn::CALL, 0, 0, 0, helper)
}

fn function_call(distance: i32) -> Insn {
    insn(insn::CALL, 0, PSEUDO_CALL, 0, distance)
}

/// `if r0 == 0` jump.
fn branch(distance: i16) -> Insn {
    insn(0x15, 0, 0, distance, 0)
}

fn exit() -> Insn {
    insn(insn::EXIT, 0, 0, 0, 0)
}

/// A 64-bit constant in both of its halves.
fn wide(register: u8, src: u8, low: i32, high: i32) -> [Insn; 2] {
    [insn(insn::LD_IMM64, register, src, 0, low), insn(0, 0, 0, 0, high)]
}

/// The address of the function that starts `distance` after the next instruction.
fn address(register: u8, distance: i32) -> [Insn; 2] {
    wide(register, PSEUDO_FUNC, distance, 0)
}

/// The violation in a program of one function.
fn found(code: &[Insn]) -> Option<Broken> {
    instructions(XDP, code, &[0]).err()
}

#[test]
fn lookups_need_their_own_namespace_as_a_constant() {
    const LOOKUP: i32 = 84;
    let before = |code: &[Insn]| {
        let whole: Vec<_> = code.iter().copied().chain([call(LOOKUP), exit()]).collect();
        instructions(SCHED_CLS, &whole, &[0])
    };
    let own: [&[Insn]; 8] = [
        &[mov(4, -1)],
        &[insn(insn::MOV32_IMM, 4, 0, 0, -1)],
        &wide(4, 0, -1, -1),
        &wide(4, 0, -1, 0),
        &[mov(6, -1), insn(insn::MOV64, 4, 6, 0, 0)],
        &[mov(6, -1), insn(insn::MOV32, 4, 6, 0, 0)],
        // Callee-saved registers stay known across a call, and a branch that is not taken changes nothing.
        &[mov(6, -1), call(5), branch(2), insn(insn::MOV64, 4, 6, 0, 0)],
        &[mov(4, -1), mov(3, 0), insn(0x7b, 10, 1, -8, 0), insn(0x61, 5, 1, 0, 0)],
    ];
    for code in own {
        assert_eq!(before(code), Ok(()), "{code:?}");
    }
    let other: [&[Insn]; 16] = [
        &[],
        &[mov(4, 0)],
        &[mov(4, 7)],
        &wide(4, 0, 0, -1),
        &[mov(4, -1), mov(4, 0)],
        &[mov(4, -1), call(5)],
        &[mov(4, -1), insn(0x07, 4, 0, 0, 1)],
        &[mov(4, -1), insn(0x04, 4, 0, 0, 1)],
        &[mov(4, -1), insn(0x79, 4, 1, 0, 0)],
        &[mov(4, -1), insn(insn::MOV64, 4, 1, 0, 0)],
        // Sign extension, and an atomic operation that returns the old value.
        &[mov(4, -1), insn(insn::MOV64, 4, 4, 8, 0)],
        &[mov(4, -1), insn(0xdb, 10, 4, -8, 0xe1)],
        &[mov(4, -1), insn(0x20, 0, 0, 0, 0)],
        // The lookup is the target of a jump: forwards, by constant, and backwards.
        &[branch(1), mov(4, -1)],
        &[insn(insn::GOTOL, 0, 0, 0, 1), mov(4, -1)],
        &[mov(4, -1), insn(0x05, 0, 0, 0, 0)],
    ];
    for code in other {
        assert_eq!(before(code), Err((Objection::Netns(84), Some(code.len()))), "{code:?}");
    }
    let backwards = [mov(4, -1), call(LOOKUP), mov(4, 0), branch(-3), exit()];
    assert_eq!(instructions(SCHED_CLS, &backwards, &[0]), Err((Objection::Netns(84), Some(1))));
    // A function is entered from elsewhere.
    let entered = [mov(4, -1), call(LOOKUP), exit()];
    assert_eq!(instructions(SCHED_CLS, &entered, &[0, 1]), Err((Objection::Netns(84), Some(1))));
}

#[test]
fn helpers_are_those_of_the_type() {
    for (program_type, helper, allowed) in [
        (XDP, 1, true),
        (XDP, 9, false),
        (SCHED_CLS, 9, true),
        (CGROUP_SKB, 113, false),
        (XDP, 6, false),
        (XDP, 154, false),
        (XDP, 204, false),
        (XDP, 300, false),
        (XDP, -1, false),
        (2, 1, false),
        // Instructions that CO-RE has poisoned are left to the verifier.
        (XDP, POISON, true),
    ] {
        let result = instructions(program_type, &[call(helper), exit()], &[0]);
        let expected = if allowed { Ok(()) } else { Err((Objection::Helper(helper.cast_unsigned()), Some(0))) };
        assert_eq!(result, expected, "type {program_type}, helper {helper}");
    }
}

#[test]
fn instructions_that_are_not_reviewed_are_refused() {
    let second = |insn| [mov(0, 0), insn, insn_zero(), exit()];
    for (bad, objection) in [
        (insn(insn::MAY_GOTO, 0, 0, 1, 0), Objection::MayGoto),
        (insn(insn::LD_IMM64, 1, PSEUDO_VARIABLE, 0, 7), Objection::KernelVariable(symbol(7))),
        (insn(insn::LD_IMM64, 1, 5, 0, 0), Objection::Constant(5)),
        (insn(insn::LD_IMM64, 1, 15, 0, 0), Objection::Constant(15)),
        (insn(insn::CALL, 0, PSEUDO_KFUNC, 0, 7), Objection::Kfunc(symbol(7))),
        (insn(insn::CALL, 0, 3, 0, 7), Objection::Call(3)),
        (insn(0x8d, 1, 0, 0, 0), Objection::Opcode(0x8d)),
        (insn(0x0d, 1, 0, 0, 0), Objection::Opcode(0x0d)),
        (insn(0xff, 1, 0, 0, 0), Objection::Opcode(0xff)),
        (insn(0, 0, 0, 0, 0), Objection::Opcode(0)),
    ] {
        assert_eq!(found(&second(bad)), Some((objection, Some(1))), "{bad:?}");
    }
    assert_eq!(found(&[insn(insn::LD_IMM64, 1, 1, 0, 0)]), None, "a truncated constant is left to the verifier");
}

fn symbol(id: u32) -> KernelSymbol {
    KernelSymbol { id, in_module: false, name: None }
}

fn insn_zero() -> Insn {
    insn(0, 0, 0, 0, 0)
}

#[test]
fn loops_are_bounded_by_a_constant() {
    let rounds = |first: &[Insn]| {
        let mut code = first.to_vec();
        // The callback follows: r2, call, exit.
        code.extend(address(2, 3));
        code.extend([call(181), exit(), exit()]);
        let callback = code.len() - 1;
        instructions(XDP, &code, &[0, callback]).err()
    };
    assert_eq!(rounds(&[mov(1, 65_536)]), None);
    assert_eq!(rounds(&[mov(1, 0)]), None);
    for first in [&[mov(1, 65_537)] as &[Insn], &[mov(1, -1)], &[insn(0x61, 1, 1, 0, 0)], &[]] {
        assert_eq!(rounds(first), Some((Objection::Rounds, Some(first.len() + 2))), "{first:?}");
    }
}

#[test]
fn callbacks_call_no_repeating_helper() {
    // 0: the program passes 6 to a helper; 6: the callback calls 8; 8 calls a helper.
    let chain = |outer: i32, inner: i32| {
        let [low, high] = address(2, 3);
        let code = [mov(1, 8), low, high, call(outer), exit(), function_call(1), exit(), mov(1, 8), call(inner), exit()];
        instructions(XDP, &code, &[0, 5, 7]).err()
    };
    for outer in [181, 164, 209, 170] {
        for inner in [181, 164, 209, 12] {
            assert_eq!(chain(outer, inner), Some((Objection::InCallback(inner.cast_unsigned()), Some(8))), "{outer}, {inner}");
        }
        assert_eq!(chain(outer, 1), None, "{outer}");
    }
    // The same function, called but not passed to a helper, may loop; a function without a caller counts too.
    let plain = [function_call(1), exit(), mov(1, 8), call(164), exit()];
    assert_eq!(instructions(XDP, &plain, &[0, 2]), Ok(()));
    let [low, high] = address(2, -3);
    let itself = [mov(1, 8), low, high, call(181), exit()];
    assert_eq!(instructions(XDP, &itself, &[0]), Err((Objection::InCallback(181), Some(3))));
}

#[test]
fn many_calls_of_many_functions_are_reviewed_fast() {
    // Every second instruction calls the next function; the first is a callback.
    let mut code = Vec::new();
    let mut starts = vec![0];
    code.extend(address(2, 2));
    code.push(exit());
    for _ in 0..100_000 {
        starts.push(code.len());
        code.extend([function_call(1), exit()]);
    }
    starts.push(code.len());
    code.extend([call(164), exit()]);
    let begun = std::time::Instant::now();
    let last = code.len() - 2;
    assert_eq!(instructions(XDP, &code, &starts), Err((Objection::InCallback(164), Some(last))));
    assert!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
}

/// Every program of a container-scope kind in a committed object, and its refusal.
fn reviewed(object: &str) -> Vec<(String, Result<(), String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{object}.bpf.o"));
    let bytes = std::fs::read(path).unwrap();
    let object = BpfObject::parse(&bytes).unwrap();
    let mut results = Vec::new();
    for function in object.programs() {
        let section = object.elf.sections[function.section].name;
        let Some(kind) = section::declared(section).map(|declared| declared.kind()) else { continue };
        let Ok(linked) = link(&object, function, None) else { continue };
        if reach::reviewed(kind.kernel_type()) {
            let said = review(&object, &function.name, kind.kernel_type(), &linked);
            results.push((function.name.clone(), said.map(drop).map_err(|refusal| refusal.to_string())));
        }
    }
    results
}

#[test]
fn committed_objects_are_refused_with_function_and_line() {
    const END: &str = "; it needs host scope in policy (host-scope = true, and scope = \"host\" in the image rule)";
    let refused = [
        (
            "lookup",
            "first_xdp",
            "calls bpf_skc_lookup_tcp with a network namespace other than its own (instruction 12, lookup.bpf.c:11): that reaches beyond the container",
        ),
        ("lookup", "any_tcx", "calls bpf_skc_lookup_tcp with a network namespace other than its own"),
        ("loops", "many", "calls bpf_loop with a count that is not a constant of at most 65536 (instruction 8, loops.bpf.c:"),
        ("loops", "as_many_as_bytes", "calls bpf_loop with a count that is not a constant of at most 65536"),
        ("loops", "nested", "calls bpf_loop from a callback"),
        ("loops", "nested_in_map", "calls bpf_loop from a callback"),
        ("tagged", "untrusted", "has a function with an argument tagged \"arg:untrusted\": that reaches kernel memory"),
        ("leak", "read_kernel_xdp", "calls bpf_probe_read_kernel (instruction "),
        ("leak", "read_kernel_skb", "calls bpf_probe_read_kernel (instruction "),
    ];
    let accepted = ["own_xdp", "own_tcx", "own_skb", "bounded", "nonnull", "tell_address", "copy_padding"];
    for object in ["lookup", "loops", "tagged", "leak"] {
        for (function, said) in reviewed(object) {
            let expected = refused.iter().find(|(_, name, _)| *name == function);
            assert_eq!(expected.is_none(), accepted.contains(&function.as_str()), "{function}");
            match (said, expected) {
                (Ok(()), None) => {}
                (Err(said), Some((_, _, text))) => {
                    assert!(said.starts_with(&format!("program {function} {text}")), "{said}");
                    assert!(said.contains(END) && said.len() <= 285, "{} bytes: {said}", said.len());
                    assert_eq!(said.ends_with(", or BPF_F_CURRENT_NETNS as a constant"), object == "lookup", "{said}");
                }
                (said, _) => panic!("{function}: {said:?}"),
            }
        }
    }
}

#[test]
fn kernel_symbols_are_refused_by_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/ksym.bpf.o");
    let bytes = std::fs::read(path).unwrap();
    let object = BpfObject::parse(&bytes).unwrap();
    let program = object.programs().next().unwrap();
    assert_eq!(link(&object, program, None).unwrap_err(), LinkError::Extern("bpf_prog_active".to_owned()));
    // A function that all may call, one that reaches beyond, and one that is not known.
    let said = |name: &str| {
        let known = KernelReference { name: name.to_owned(), function: true, in_module: false };
        let code = [insn(insn::CALL, 0, PSEUDO_KFUNC, 0, 7), mov(0, 0), exit()];
        let references = BTreeMap::from([(0, known)]);
        super::instructions(XDP, &code, &[0], AllowedReferences::Object(&references)).map(drop).map_err(|(found, _)| found)
    };
    assert_eq!(said("bpf_rcu_read_lock"), Ok(()));
    assert!(said("bpf_send_signal_task").unwrap_err().why().ends_with("that reaches other processes of the host"));
    let unknown = said("bpf_made_up").unwrap_err();
    assert_eq!(unknown.what(), "calls the kernel function bpf_made_up");
    assert!(unknown.why().starts_with("this kernel function is not allowed"), "{}", unknown.why());
}

#[test]
fn all_other_committed_objects_are_accepted() {
    let mut programs = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(object) = name.strip_suffix(".bpf.o") else { continue };
        if ["lookup", "loops", "tagged", "leak"].contains(&object) {
            continue;
        }
        for (function, said) in reviewed(object) {
            assert_eq!(said, Ok(()), "{object}: {function}");
            programs += 1;
        }
    }
    assert!(programs > 20, "{programs}");
}
