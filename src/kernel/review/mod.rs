//! Static review of programs for container scope, before the kernel sees them: a program is refused if it reaches
//! beyond the container or can hold a processor.
//!
//! The verifier proves that a program does not break the kernel. It does not confine the program to a container:
//! helpers look up sockets of any network namespace, kernel variables and kfuncs give access to kernel memory, loops
//! can run indefinitely. The table of `model::reach` lists the helpers that a type may call; this module checks their
//! arguments and everything else that instructions can refer to. It is pure, and makes two passes over the
//! instructions: the first collects the targets of jumps, the second checks.
//!
//! What is unknown is refused: helpers, kinds of constants, opcodes and argument tags of kernels that are newer than
//! this version.

mod bound;
mod calls;
mod constants;
mod opcodes;
mod refusal;
mod submitted;
mod tags;

#[cfg(test)]
mod tests;

pub use bound::ExecutionBound;
pub use refusal::{KernelSymbol, Objection, ReviewRefusal};
pub use submitted::{
    FunctionTypes, GrantedKfuncs, ReviewedProgram, SubmittedRefusal, TagsError, kernel_symbol, review_functions,
    review_submitted,
};
pub(in crate::kernel) use tags::REVIEWED as REVIEWED_TAGS;

use std::collections::BTreeMap;

use crate::kernel::btf::{BtfKind, Type};
use crate::kernel::core_relo::POISON;
use crate::kernel::fixup;
use crate::kernel::insn::{
    self, Insn, PSEUDO_CALL, PSEUDO_FUNC, PSEUDO_KFUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_VARIABLE,
};
use crate::kernel::link::{KernelReference, Linked};
use crate::kernel::object::BpfObject;
use crate::model::reach::{self, KFUNCS_FOR_ALL, Reach};
use calls::ProgramCalls;
use constants::Constants;
use submitted::AllowedCalls;

/// The limit on iterations of `bpf_loop`.
const MAX_ROUNDS: u64 = 65_536;
/// bpf_loop(rounds, callback, context, flags)
const LOOP: u32 = 181;
/// Helpers that run a callback many times, or start another program: tail_call, for_each_map_elem, loop,
/// user_ringbuf_drain.
const REPEATING: [u32; 4] = [12, 164, LOOP, 209];

/// A violation: the rule, and the instruction if there is one.
type Broken = (Objection, Option<usize>);

/// Reviews a linked program of an object. `program_type` is `enum bpf_prog_type`; for types that container scope never
/// loads nothing is allowed. Returns how much the program can execute, if that is more than the verifier explores: it is
/// to be checked after the kernel has loaded it.
pub(crate) fn review(
    object: &BpfObject<'_>,
    name: &str,
    program_type: u32,
    linked: &Linked,
) -> Result<Option<ExecutionBound>, ReviewRefusal> {
    let btf = object.btf.as_ref().map(|(btf, _)| btf);
    let calls = AllowedReferences::Object(&linked.references);
    let reviewed = instructions(program_type, &linked.instructions, &linked.starts, calls);
    let reviewed = reviewed.and_then(|calls| addresses(linked).map(|()| calls));
    let reviewed = reviewed.and_then(|calls| tags::check(btf, &linked.functions).map(|()| calls));
    let calls = reviewed.map_err(|(objection, at)| {
        let line = at.and_then(|at| refusal::line(object, linked, at));
        ReviewRefusal { program: name.to_owned(), objection, at, line }
    })?;
    let is_static = fixup::static_functions(&object.elf);
    let globals = bound::globals(&linked.functions, Linked::FUNCTION_RECORD, |ty| {
        let found = btf.and_then(|btf| Some((btf, btf.ty(ty).ok()?)));
        found.is_some_and(|(btf, ty)| is_global(&ty) && !is_static(btf.string_bytes(ty.name_offset)))
    });
    Ok(ExecutionBound::of(&linked.instructions, &calls, &globals))
}

/// What a program may refer to in the kernel.
#[derive(Clone, Copy)]
enum AllowedReferences<'a> {
    /// The program of an object, with the names that it refers to by instruction: the kfuncs that are allowed to all.
    Object(&'a BTreeMap<usize, KernelReference>),
    /// A submitted program: what its container was granted.
    Submitted(&'a AllowedCalls<'a>),
}

impl AllowedReferences<'_> {
    fn helper(self, number: u32) -> Result<(), Objection> {
        match self {
            Self::Object(_) => Ok(()),
            Self::Submitted(allowed) => allowed.helper(number),
        }
    }

    fn kfunc(self, call: Insn, at: usize) -> Result<(), Objection> {
        let named = match self {
            Self::Object(references) => references.get(&at),
            Self::Submitted(allowed) => return allowed.kfunc(call),
        };
        match named {
            Some(known) if !known.in_module && KFUNCS_FOR_ALL.contains(&known.name.as_str()) => Ok(()),
            _ => Err(Objection::Kfunc(KernelSymbol { name: named.map(|known| known.name.clone()), ..kernel_function(call) })),
        }
    }

    fn variable(self, constant: Insn, second: Option<&Insn>, at: usize) -> Objection {
        let name = match self {
            Self::Object(references) => references.get(&at).map(|known| known.name.clone()),
            Self::Submitted(_) => None,
        };
        Objection::KernelVariable(KernelSymbol { name, ..variable(constant, second) })
    }
}

/// Refuses addresses of the kernel, which look like numbers in the instructions.
fn addresses(linked: &Linked) -> Result<(), Broken> {
    let address = |at: usize| linked.instructions.get(at).is_some_and(|insn| insn.is_wide() && insn.src() == 0);
    match linked.references.iter().find(|(at, known)| !known.function && address(**at)) {
        Some((at, known)) => {
            let symbol = KernelSymbol { id: 0, in_module: known.in_module, name: Some(known.name.clone()) };
            Err((Objection::KernelVariable(symbol), Some(*at)))
        }
        None => Ok(()),
    }
}

/// Whether the verifier explores a function by itself, from its type (BTF_FUNC_STATIC is 0).
fn is_global(function: &Type<'_>) -> bool {
    function.kind == BtfKind::Func && function.vlen != 0
}

/// Reviews instructions; `starts` are the first ones of the functions, in ascending order. `allowed` narrows the helpers
/// and lists kfuncs.
fn instructions(
    program_type: u32,
    code: &[Insn],
    starts: &[usize],
    allowed: AllowedReferences<'_>,
) -> Result<ProgramCalls, Broken> {
    let targets = JumpTargets::of(code, starts);
    let mut constants = Constants::default();
    let mut calls = ProgramCalls::new(starts);
    let mut at = 0;
    while let Some(insn) = code.get(at).copied() {
        if targets.contains(at) {
            constants = Constants::default();
        }
        let broken = |objection| (objection, Some(at));
        if !opcodes::is_known(insn.code) {
            let objection = if insn.code == insn::MAY_GOTO { Objection::MayGoto } else { Objection::Opcode(insn.code) };
            return Err(broken(objection));
        }
        if insn.is_wide() {
            match insn.src() {
                0 | PSEUDO_MAP_FD | PSEUDO_MAP_VALUE => {}
                PSEUDO_VARIABLE => return Err(broken(allowed.variable(insn, code.get(at + 1), at))),
                PSEUDO_FUNC => calls.callback(target(at, insn.imm)),
                other => return Err(broken(Objection::Constant(other))),
            }
        } else if insn.code == insn::CALL {
            match insn.src() {
                0 if insn.imm == POISON => {}
                0 => {
                    let number = insn.imm.cast_unsigned();
                    helper(program_type, number, &constants).map_err(broken)?;
                    allowed.helper(number).map_err(broken)?;
                    if REPEATING.contains(&number) {
                        calls.repeats(at, number, rounds(number, &constants));
                    }
                }
                PSEUDO_CALL => calls.call(at, target(at, insn.imm)),
                PSEUDO_KFUNC => allowed.kfunc(insn, at).map_err(broken)?,
                other => return Err(broken(Objection::Call(other))),
            }
        }
        constants.follow(insn, code.get(at + 1).copied());
        at += if insn.is_wide() { 2 } else { 1 };
    }
    match calls.repeated_in_callback() {
        Some((at, number)) => Err((Objection::InCallback(number), Some(at))),
        None => Ok(calls),
    }
}

/// The function that a call of the kernel names. The offset selects the BTF of a module.
fn kernel_function(call: Insn) -> KernelSymbol {
    KernelSymbol { id: call.imm.cast_unsigned(), in_module: call.off != 0, name: None }
}

/// The variable that a constant names; its second half has a descriptor of the BTF of a module, or 0.
fn variable(constant: Insn, second: Option<&Insn>) -> KernelSymbol {
    KernelSymbol { id: constant.imm.cast_unsigned(), in_module: second.is_some_and(|second| second.imm != 0), name: None }
}

/// How often a repeating helper calls its callback at most. Of for_each_map_elem: the entries of an array of 64 MiB, which
/// is the default limit on the memory of maps; of user_ringbuf_drain: BPF_MAX_USER_RINGBUF_SAMPLES.
fn rounds(number: u32, constants: &Constants) -> u64 {
    match number {
        LOOP => constants.value(1).unwrap_or(MAX_ROUNDS),
        164 => 8 << 20,
        209 => 128 << 10,
        _ => 0,
    }
}

/// Checks a helper call, with the known constants of its arguments.
fn helper(program_type: u32, number: u32, constants: &Constants) -> Result<(), Objection> {
    if !reach::allows(program_type, number) {
        return Err(Objection::Helper(number));
    }
    match reach::helper(number).map(|function| function.reach) {
        Some(Reach::OtherNetns { netns }) => {
            let own = netns.and_then(|register| constants.value(register)).is_some_and(is_current_netns);
            if own { Ok(()) } else { Err(Objection::Netns(number)) }
        }
        _ if number == LOOP && constants.value(1).is_none_or(|rounds| rounds > MAX_ROUNDS) => Err(Objection::Rounds),
        _ => Ok(()),
    }
}

/// BPF_F_CURRENT_NETNS is -1 as 64 bits, of which net/core/filter.c (`__bpf_skc_lookup`) reads the low 32.
fn is_current_netns(value: u64) -> bool {
    value & 0xffff_ffff == 0xffff_ffff
}

/// The target of a jump or call at `at`; beyond the code if it would be before it, which the verifier refuses.
fn target(at: usize, distance: i32) -> usize {
    isize::try_from(distance).ok().and_then(|distance| (at + 1).checked_add_signed(distance)).unwrap_or(usize::MAX)
}

/// A bit for each instruction that can be reached other than from the preceding one.
struct JumpTargets(Vec<u64>);

impl JumpTargets {
    fn of(code: &[Insn], starts: &[usize]) -> Self {
        let mut targets = Self(vec![0; code.len() / 64 + 1]);
        starts.iter().for_each(|start| targets.insert(*start));
        for (at, insn) in code.iter().enumerate() {
            if let Some(distance) = insn.jump() {
                targets.insert(target(at, distance));
            }
        }
        targets
    }

    fn insert(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    fn contains(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}
