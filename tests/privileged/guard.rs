//! The guard on the real kernel: what it refuses with a token, and what it leaves alone. Where the kernel cannot enforce
//! it, the refusal must say what is missing; `tests/vm` runs these tests on kernels that can.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bpfman_hook::kernel::guard::{self, GuardError};
use bpfman_hook::kernel::{Feature, KernelError, Support, features, pins};
use bpfman_hook::model::attach_point::{ProgramKind, Scope};
use bpfman_hook::model::reach::GuardRefusal;
use bpfman_hook::sys::Errno;
use bpfman_hook::sys::bpf::{self, ObjectKind};
use bpfman_hook::sys::token::trial::{self, Trial, TrialAnswer};

use crate::objects::bed::{Bed, Wanted, object, wait_until};

/// `r0 = 1; exit` after these instructions.
fn program(program_type: u32, attach_type: u32, before: &[[u8; 8]]) -> Trial {
    let end = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    Trial { program_type, attach_type, instructions: [before, &end].concat(), ..Trial::default() }
}

fn insn(code: u8, registers: u8, offset: i16, value: u32) -> [u8; 8] {
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, registers, o0, o1, v0, v1, v2, v3]
}

fn offer(trials: &[Trial]) -> Vec<TrialAnswer> {
    trial::offer(&[], trials, Instant::now() + Duration::from_secs(60)).unwrap()
}

/// Puts the guard in force below a bpffs of the test. None if this kernel cannot, after checking what the error says.
fn load(bed: &Bed, bounded: bool) -> Option<PathBuf> {
    let directory = bed.bpffs.path().join("guard");
    match guard::load(&directory, bounded) {
        Ok(()) => Some(directory),
        Err(GuardError::Kernel(KernelError::Feature { doing, feature, why })) => {
            assert_eq!(doing, "judge what is loaded with a token");
            assert!(matches!(feature, Feature::Token | Feature::Lsm), "{feature}");
            assert_eq!(features::probe(feature), Support::No(why.clone()));
            assert!(!guard::is_in_force(&directory) && !guard::is_pinned(&directory));
            eprintln!("no guard here, as it should be: {feature}: {why}");
            None
        }
        Err(error) => panic!("{}", bpfman_hook::sys::error::chain(&error)),
    }
}

fn refused(directory: &std::path::Path, why: GuardRefusal) -> u64 {
    let state = guard::state(directory).unwrap().expect("the guard is in force");
    state.refused.iter().find(|(other, _)| *other == why).unwrap().1
}

fn end(bed: Bed, directory: &std::path::Path) {
    assert!(guard::unload(directory).unwrap());
    assert!(!guard::unload(directory).unwrap() && !directory.exists());
    // The links detach some time after their pins are gone.
    assert!(wait_until(|| bpf::ids(ObjectKind::Link).unwrap().is_empty()), "a link of the guard stays");
    bed.end();
}

#[test]
fn loads_with_a_token_are_judged() {
    let bed = Bed::new();
    let Some(directory) = load(&bed, false) else { return bed.end() };
    assert!(guard::is_in_force(&directory) && guard::is_pinned(&directory));
    let pinned = pins::list(bed.bpffs.path()).unwrap();
    assert!(pinned.foreign.is_empty(), "its pins are known: {:?}", pinned.foreign);

    // The smallest program of every type of container scope; socket lookups, kfuncs and kernel variables of none.
    const PLAIN: [(u32, u32); 20] = [
        (1, 0),
        (3, 0),
        (4, 0),
        (6, 37),
        (8, 0),
        (9, 2),
        (10, 0),
        (11, 0),
        (12, 0),
        (13, 3),
        (14, 5),
        (15, 6),
        (16, 7),
        (18, 10),
        (21, 39),
        (22, 17),
        (23, 18),
        (25, 21),
        (30, 36),
        (32, 45),
    ];
    let plain: Vec<Trial> = PLAIN.iter().map(|(ty, attach)| program(*ty, *attach, &[])).collect();
    for (answer, (program_type, _)) in offer(&plain).iter().zip(PLAIN) {
        assert_eq!(answer.errno, None, "type {program_type}: {}", answer.log);
    }
    let helper = |number| insn(0x85, 0, 0, number);
    let cases = [
        (GuardRefusal::ProgramType, program(31, 0, &[])),
        (GuardRefusal::ProgramType, program(2, 0, &[])),
        // probe_read_kernel, sk_lookup_tcp, skc_lookup_tcp, this_cpu_ptr, a helper that does not exist
        (GuardRefusal::Helper, program(1, 0, &[helper(113)])),
        (GuardRefusal::Helper, program(6, 37, &[helper(84)])),
        (GuardRefusal::Helper, program(3, 0, &[helper(99)])),
        (GuardRefusal::Helper, program(1, 0, &[helper(154)])),
        (GuardRefusal::Helper, program(1, 0, &[helper(4000)])),
        // Any kfunc, and one of a module.
        (GuardRefusal::Kfunc, program(6, 37, &[insn(0x85, 0x20, 0, 1)])),
        (GuardRefusal::Kfunc, program(6, 37, &[insn(0x85, 0x20, 1, 1)])),
        (GuardRefusal::KernelVariable, program(1, 0, &[insn(0x18, 0x31, 0, 1), insn(0, 0, 0, 0)])),
    ];
    for (n, (why, trial)) in cases.iter().enumerate() {
        let before = refused(&directory, *why);
        let answers = offer(std::slice::from_ref(trial));
        // EPERM without a log: the verifier never saw it.
        assert_eq!((answers[0].errno, answers[0].log.as_str()), (Some(Errno::PERM), ""), "case {n}");
        // The types of CAP_PERFMON are refused by the kernel first.
        let counted = refused(&directory, *why) - before;
        assert!(counted == 1 || trial.program_type == 2, "case {n}: {why} counted {counted} times");
    }
    // What is loaded without a token is not judged: socket lookups in any namespace, by root.
    let wanted = Wanted { function: "first_xdp", kind: ProgramKind::Xdp, attach: 37, target: None };
    bed.load(&object("lookup"), Scope::Host, &[wanted], &[]).unwrap();
    end(bed, &directory);
}

#[test]
fn programs_without_a_bound_are_refused_on_request() {
    let bed = Bed::new();
    let Some(directory) = load(&bed, false) else { return bed.end() };
    // may_goto over one instruction.
    let endless = program(1, 0, &[insn(0xe5, 0, 1, 0), insn(0xb7, 0, 0, 2)]);
    assert_eq!(offer(std::slice::from_ref(&endless))[0].errno, None);
    guard::load(&directory, true).unwrap();
    assert!(guard::state(&directory).unwrap().unwrap().bounded);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "the other guard is gone");
    let answers = offer(&[endless, program(1, 0, &[])]);
    assert_eq!((answers[0].errno, answers[1].errno), (Some(Errno::PERM), None));
    assert_eq!(refused(&directory, GuardRefusal::Loop), 1);
    end(bed, &directory);
}

#[test]
fn a_guard_that_lost_a_pin_is_not_in_force() {
    let bed = Bed::new();
    let Some(directory) = load(&bed, false) else { return bed.end() };
    let own = std::fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    for pin in ["guard_load", "guard_program", "guard_capable"] {
        std::fs::remove_file(own.join(pin)).unwrap();
        assert!(!guard::is_in_force(&directory) && guard::is_pinned(&directory), "{pin}");
        assert!(guard::state(&directory).unwrap().is_none());
        guard::load(&directory, false).unwrap();
        assert!(guard::is_in_force(&directory), "{pin}");
    }
    // A directory of another version does not count, and goes when this version's guard is loaded.
    std::fs::create_dir(directory.join("0123456789abcdef")).unwrap();
    guard::load(&directory, false).unwrap();
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    end(bed, &directory);
}
