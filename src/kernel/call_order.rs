//! The instructions of a program with its functions in the order of the calls. Loaders append the functions that a program
//! calls in different orders; in this one, programs of the same functions are the same.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::kernel::core_relo::CoreTarget;
use crate::kernel::insn::{self, Insn, PSEUDO_FUNC};
use crate::kernel::link::link;
use crate::kernel::object::BpfObject;
use crate::kernel::submitted::without_descriptors;
use crate::model::delegation::section_load;

/// bpf_ktime_get_coarse_ns: what libraries call to see whether the kernel has a helper.
const COARSE_CLOCK: i32 = 160;
/// The longest trial program: it writes to the value of a map.
const TRIAL_MAX: usize = 5;
/// `enum bpf_prog_type`
const SOCKET_FILTER: u32 = 1;
/// See [`SOCKET_FILTER`].
const CGROUP_SOCK: u32 = 9;

/// A program's instructions without descriptors, the functions in the order in which calls reach them, breadth first. None
/// if a call leads outside of the program, or if functions are not reached.
pub fn in_call_order(code: &[[u8; insn::SIZE]]) -> Option<Vec<u8>> {
    let bytes = without_descriptors(code);
    let code: Vec<Insn> = bytes.as_chunks::<{ insn::SIZE }>().0.iter().copied().map(Insn::from).collect();
    let calls = calls(&code)?;
    let starts: BTreeSet<usize> = calls.values().copied().chain([0]).collect();
    let end = |start: usize| starts.range(start + 1..).next().copied().unwrap_or(code.len());
    // The new place of each function, by its old one.
    let (mut places, mut order, mut next) = (BTreeMap::from([(0, 0)]), VecDeque::from([0]), end(0));
    let mut placed = Vec::with_capacity(starts.len());
    while let Some(start) = order.pop_front() {
        placed.push(start);
        for callee in calls.range(start..end(start)).map(|(_, callee)| *callee) {
            if let Entry::Vacant(place) = places.entry(callee) {
                place.insert(next);
                next += end(callee) - callee;
                order.push_back(callee);
            }
        }
    }
    if placed.len() != starts.len() {
        return None;
    }
    let mut ordered = Vec::with_capacity(bytes.len());
    for start in placed {
        let place = places[&start];
        for (n, insn) in code[start..end(start)].iter().enumerate() {
            let mut insn = *insn;
            if let Some(callee) = calls.get(&(start + n)) {
                let distance = places[callee] as i64 - (place + n) as i64 - 1;
                insn.imm = i32::try_from(distance).ok()?;
            }
            ordered.extend(<[u8; insn::SIZE]>::from(insn));
        }
    }
    Some(ordered)
}

/// Where the program calls or names one of its functions, and where that starts.
fn calls(code: &[Insn]) -> Option<BTreeMap<usize, usize>> {
    let (mut calls, mut at) = (BTreeMap::new(), 0);
    while let Some(insn) = code.get(at) {
        let wide = insn.is_wide();
        if insn.is_call() || wide && insn.src() == PSEUDO_FUNC {
            let callee = i64::try_from(at).ok()? + 1 + i64::from(insn.imm);
            let callee = usize::try_from(callee).ok().filter(|callee| *callee < code.len())?;
            calls.insert(at, callee);
        }
        at += if wide { 2 } else { 1 };
    }
    Some(calls)
}

/// The programs of an object in call order, as this version's loader adapts them to the running kernel, whose types are
/// `kernel`; each with the program type that its section declares. Programs that it cannot link are left out: those that
/// call kernel functions, or use its variables or configuration. A file that is not an object has no programs.
pub fn programs_in_call_order(bytes: &[u8], kernel: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let Ok(object) = BpfObject::parse(bytes) else { return Vec::new() };
    let target = CoreTarget::parse(kernel).ok();
    let ordered = object.programs().filter_map(|function| {
        let declared = section_load(object.elf.sections[function.section].name)?;
        let linked = link(&object, function, target.as_ref()).ok()?;
        let code: Vec<[u8; insn::SIZE]> = linked.instructions.into_iter().map(Into::into).collect();
        Some((declared.program_type, in_call_order(&code)?))
    });
    ordered.collect()
}

/// True for what libraries load to see whether they may load at all, and what the kernel has: a socket filter that returns
/// a constant or the time, at most after it has written to the value of a map; and a program for new sockets of a cgroup
/// that returns a constant.
pub fn is_trial(program_type: u32, code: &[[u8; insn::SIZE]]) -> bool {
    let code: Vec<Insn> = code.iter().copied().map(Insn::from).collect();
    // mov64 r0, constant
    let is_constant = |insn: &Insn| insn.code == 0xb7 && insn.dst() == 0;
    let is_exit = |insn: &Insn| insn.code == insn::EXIT;
    match program_type {
        CGROUP_SOCK => matches!(code.as_slice(), [constant, exit] if is_constant(constant) && is_exit(exit)),
        SOCKET_FILTER if code.len() <= TRIAL_MAX => {
            let (mut at, mut harmless) = (0, code.last().is_some_and(is_exit));
            while let Some(insn) = code.get(at) {
                harmless &= match insn.code {
                    insn::CALL => insn.src() == 0 && insn.imm == COARSE_CLOCK,
                    insn::EXIT => at + 1 == code.len(),
                    _ => insn.jump().is_none(),
                };
                at += if insn.is_wide() { 2 } else { 1 };
            }
            harmless
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u8, registers: u8, imm: i32) -> [u8; 8] {
        let [a, b, c, d] = imm.to_ne_bytes();
        [code, registers, 0, 0, a, b, c, d]
    }

    fn call(distance: i32) -> [u8; 8] {
        insn(insn::CALL, 0x10, distance)
    }

    const EXIT: [u8; 8] = [insn::EXIT, 0, 0, 0, 0, 0, 0, 0];

    fn constant(value: i32) -> [u8; 8] {
        insn(0xb7, 0, value)
    }

    /// main calls a, then b; a calls c.
    #[test]
    fn the_order_of_functions_does_not_matter() {
        let (a, b, c) = (constant(1), constant(2), constant(3));
        // main a b c, as this loader places them; and main a c b, as libbpf does.
        let breadth = [call(2), call(4), EXIT, a, call(3), EXIT, b, EXIT, c, EXIT];
        let depth = [call(2), call(6), EXIT, a, call(1), EXIT, c, EXIT, b, EXIT];
        let ordered = in_call_order(&breadth).unwrap();
        assert_eq!(ordered, breadth.concat());
        assert_eq!(in_call_order(&depth), Some(ordered.clone()));
        // Another constant, and another callee.
        let mut other = depth;
        other[8] = constant(4);
        assert_ne!(in_call_order(&other), Some(ordered.clone()));
        let swapped = [call(6), call(2), EXIT, b, EXIT, c, EXIT, a, call(-4), EXIT];
        assert_ne!(in_call_order(&swapped), Some(ordered));
        for outside in [call(9), call(-2)] {
            assert_eq!(in_call_order(&[outside, EXIT]), None);
        }
        // A function that calls itself, and nothing else reaches.
        assert_eq!(in_call_order(&[constant(0), EXIT, call(-1), EXIT]), None);
    }

    #[test]
    fn named_functions_are_calls_too() {
        let named = [insn(insn::LD_IMM64, 0x41, 2), insn(0, 0, 0), EXIT, constant(1), EXIT];
        assert_eq!(in_call_order(&named), Some(named.concat()));
        let map = [insn(insn::LD_IMM64, 0x11, 7), insn(0, 0, 0), EXIT];
        let other = [insn(insn::LD_IMM64, 0x11, 9), insn(0, 0, 0), EXIT];
        assert_eq!(in_call_order(&map), in_call_order(&other));
    }

    #[test]
    fn trials_do_nothing() {
        let clock = insn(insn::CALL, 0, COARSE_CLOCK);
        let value = [insn(insn::LD_IMM64, 0x21, 3), insn(0, 0, 16), [0x7a, 1, 0, 0, 42, 0, 0, 0], constant(0), EXIT];
        for (kind, code, trial) in [
            (1, &[constant(0), EXIT][..], true),
            (1, &[clock, EXIT], true),
            (1, &value, true),
            (9, &[constant(1), EXIT], true),
            (6, &[constant(0), EXIT], false),
            (9, &[clock, EXIT], false),
            (1, &[insn(insn::CALL, 0, 6), EXIT], false),
            (1, &[call(0), EXIT], false),
            (1, &[insn(0x05, 0, 0), EXIT], false),
            (1, &[EXIT, EXIT], false),
            (1, &[constant(0)], false),
            (1, &[constant(0), constant(0), constant(0), constant(0), constant(0), EXIT], false),
            (1, &[], false),
        ] {
            assert_eq!(is_trial(kind, code), trial, "{kind} {code:?}");
        }
    }

    #[test]
    fn an_object_has_its_programs() {
        let object = include_bytes!("../../tests/bpf/subprogs.bpf.o");
        let programs = programs_in_call_order(object, &[]);
        assert!(!programs.is_empty() && programs.iter().all(|(program_type, _)| *program_type == 6));
        assert!(programs_in_call_order(b"no object", &[]).is_empty());
    }
}
