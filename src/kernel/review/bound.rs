//! How many instructions a run of a program can execute.
//!
//! The verifier explores the program and each of its global functions, each of them once, and counts what it explores: at
//! most a million instructions. It follows every loop and every call of a static function, so one run of what it has
//! explored executes no more than that. But it does not follow calls of global functions, and explores a callback only
//! until nothing new comes of it. Where these are called in a loop, the counts multiply: eight nested functions with a
//! loop of a thousand rounds each never end. So the bound of a program is computed from the verifier's count and the
//! calls in its instructions.

use std::collections::BTreeSet;

use super::calls::{FunctionCall, ProgramCalls};
use super::{Objection, target};
use crate::kernel::insn::{self, Insn};

/// The most that a program of container scope may execute in one run.
pub(super) const EXECUTED_MAX: u64 = 1 << 28;

/// What the verifier explores at most (BPF_COMPLEXITY_LIMIT_INSNS of include/linux/bpf.h).
const EXPLORED_MAX: u64 = 1_000_000;

/// Functions of one program (BPF_MAX_SUBPROGS of include/linux/bpf_verifier.h).
const FUNCTIONS_MAX: usize = 256;

/// Steps of the search for the loops around calls. Beyond that every call of a function with a loop counts as in one.
const STEPS_MAX: usize = 2 << 20;

/// The shortest loop with a call: the call, and the jump back.
const SHORTEST_LOOP: u64 = 2;

/// The calls of a program whose counts multiply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionBound {
    functions: Vec<BoundedFunction>,
    callbacks: Vec<usize>,
}

/// One function of the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct BoundedFunction {
    /// Its instructions.
    size: u64,
    /// True if the verifier explores it by itself.
    is_global: bool,
    /// True if it jumps backwards.
    has_loop: bool,
    calls: Vec<Site>,
}

/// A call in a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Site {
    callee: Callee,
    /// The instructions of the shortest loop around it; None if there is none.
    around: Option<u64>,
}

/// What a call executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callee {
    Function(usize),
    /// Any callback of the program, so often.
    Callbacks(u64),
}

/// The first instructions of global functions, from `struct bpf_func_info` records of `record` bytes each: the
/// instruction and the type.
pub(super) fn globals(functions: &[u8], record: usize, is_global: impl Fn(u32) -> bool) -> BTreeSet<usize> {
    let word = |record: &[u8], at: usize| record.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let functions = functions.chunks_exact(record.max(8)).filter_map(|record| Some((word(record, 0)?, word(record, 4)?)));
    functions.filter(|(_, ty)| is_global(*ty)).map(|(start, _)| start as usize).collect()
}

impl ExecutionBound {
    /// The bound of a program; None if it executes no more than the verifier explores. `globals` are the first
    /// instructions of its global functions, besides the program's own.
    pub(super) fn of(code: &[Insn], calls: &ProgramCalls, globals: &BTreeSet<usize>) -> Option<Self> {
        let is_global = |call: &FunctionCall| calls.starts.get(call.callee).is_some_and(|start| globals.contains(start));
        let multiplies = calls.repeating.iter().any(|call| call.rounds > 0) || calls.calls.iter().any(is_global);
        // The kernel refuses programs with more functions.
        if !multiplies || calls.starts.len() > FUNCTIONS_MAX {
            return None;
        }
        let mut steps = STEPS_MAX;
        let mut functions = Vec::new();
        for (n, start) in calls.starts.iter().enumerate() {
            let end = calls.starts.get(n + 1).copied().unwrap_or(code.len()).min(code.len());
            let range = (*start).min(end)..end;
            let has_loop = range.clone().any(|at| code[at].jump().is_some_and(|distance| target(at, distance) <= at));
            let repeating = calls.repeating.iter().filter(|call| call.caller == n && call.rounds > 0);
            let sites = calls.calls_of(n).iter().map(|call| (call.at, Callee::Function(call.callee)));
            let sites = sites.chain(repeating.map(|call| (call.at, Callee::Callbacks(call.rounds))));
            let sites = sites.map(|(at, callee)| {
                let around = if has_loop { shortest_loop(code, range.clone(), at, &mut steps) } else { None };
                Site { callee, around }
            });
            let is_global = globals.contains(start);
            functions.push(BoundedFunction { size: range.len() as u64, is_global, has_loop, calls: sites.collect() });
        }
        Some(Self { functions, callbacks: calls.callbacks.clone() })
    }

    /// Checks a program that the kernel has loaded, with the number of instructions that its verifier has explored; 0 if
    /// that is unknown.
    ///
    /// # Errors
    /// If a run can execute more than [`EXECUTED_MAX`].
    pub fn check(&self, explored: u64) -> Result<(), Objection> {
        let most = self.instructions(explored);
        if most > EXECUTED_MAX { Err(Objection::Executed { most }) } else { Ok(()) }
    }

    /// The most instructions that one run can execute, if the verifier has explored `explored`; 0 if that is unknown.
    fn instructions(&self, explored: u64) -> u64 {
        let explored = if explored == 0 { EXPLORED_MAX } else { explored };
        let mut runs = Runs { bound: self, known: vec![Known::No; self.functions.len()] };
        // Timers call their callbacks by themselves.
        let roots = self.callbacks.iter().copied().chain([0]);
        roots.map(|root| runs.of(root).with(explored)).max().unwrap_or(0)
    }
}

/// Units that call each other: MAX_CALL_FRAMES of include/linux/bpf_verifier.h, and one more.
const NESTED_MAX: usize = 9;

/// What a run of a unit executes: a unit is the program, a global function or a callback, with the static functions that
/// it calls. The number at place n is the factor of a product of the explored instructions of n different units.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Executed([f64; NESTED_MAX]);

impl Executed {
    const NOTHING: Self = Self([0.0; NESTED_MAX]);
    const UNBOUNDED: Self = Self([f64::INFINITY; NESTED_MAX]);

    /// The number of instructions, with all that the verifier has explored. Different units share it: a product of n of
    /// them is largest with an n-th each.
    fn with(self, explored: u64) -> u64 {
        let explored = explored as f64;
        let mut power = 0;
        let products = self.0.into_iter().map(|factor| {
            let share = if power == 0 { 1.0 } else { (explored / f64::from(power)).powi(power) };
            power += 1;
            if factor == 0.0 { 0.0 } else { factor * share }
        });
        // The conversion ends at the largest number.
        products.sum::<f64>().ceil() as u64
    }

    /// Adds `rounds` runs of another unit for each of `visits`.
    fn add(&mut self, visits: Visits, rounds: u64, other: Self) {
        if other == Self::UNBOUNDED {
            *self = Self::UNBOUNDED;
            return;
        }
        for (n, factor) in other.0.into_iter().enumerate().filter(|(_, factor)| *factor > 0.0) {
            let factor = factor * rounds as f64;
            self.0[n] += visits.once * factor;
            match self.0.get_mut(n + 1) {
                Some(next) => *next += visits.by_loops * factor,
                None if visits.by_loops > 0.0 => *self = Self::UNBOUNDED,
                None => {}
            }
        }
    }
}

/// How often a place in a unit is reached in one run of it: a number, and a part of the unit's explored instructions.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Visits {
    once: f64,
    by_loops: f64,
}

impl Visits {
    /// Each visit is explored.
    fn sum(self, other: Self) -> Self {
        let (once, by_loops) = (self.once + other.once, self.by_loops + other.by_loops);
        if by_loops < 1.0 { Self { once, by_loops } } else { Self { once: 0.0, by_loops: 1.0 } }
    }
}

/// What one run of each unit executes.
struct Runs<'b> {
    bound: &'b ExecutionBound,
    known: Vec<Known>,
}

#[derive(Debug, Clone, Copy)]
enum Known {
    No,
    /// It is being computed: a function that calls itself has no bound. The verifier refuses it.
    Computing,
    Yes(Executed),
}

impl Runs<'_> {
    fn of(&mut self, unit: usize) -> Executed {
        match self.known.get(unit) {
            None => return Executed::NOTHING,
            Some(Known::Yes(executed)) => return *executed,
            Some(Known::Computing) => return Executed::UNBOUNDED,
            Some(Known::No) => self.known[unit] = Known::Computing,
        }
        let mut entered = vec![Visits { once: 0.0, by_loops: 0.0 }; self.bound.functions.len()];
        let mut order = Vec::new();
        self.static_order(unit, &mut BTreeSet::new(), &mut order);
        entered[unit].once = 1.0;
        let mut own = Visits { once: 0.0, by_loops: 0.0 };
        let mut executed = Executed::NOTHING;
        for number in order.into_iter().rev() {
            let bound = self.bound;
            let function = &bound.functions[number];
            let times = entered[number];
            let (size, loops) = (function.size as f64, if function.has_loop { 1.0 } else { 0.0 });
            own = own.sum(Visits { once: times.once * size, by_loops: times.by_loops * size + loops });
            for site in &function.calls {
                let around = site.around.map_or(0.0, |length| 1.0 / length as f64);
                let visits = times.sum(Visits { once: 0.0, by_loops: around });
                match site.callee {
                    Callee::Function(callee) if !self.is_global(callee) => entered[callee] = entered[callee].sum(visits),
                    Callee::Function(callee) => executed.add(visits, 1, self.of(callee)),
                    Callee::Callbacks(rounds) => {
                        let mut most = Executed::NOTHING;
                        for callback in &bound.callbacks {
                            let other = self.of(*callback);
                            most.0.iter_mut().zip(other.0).for_each(|(most, other)| *most = most.max(other));
                        }
                        executed.add(visits, rounds, most);
                    }
                }
            }
        }
        executed.0[0] += own.once;
        executed.0[1] += own.by_loops;
        self.known[unit] = Known::Yes(executed);
        executed
    }

    fn is_global(&self, function: usize) -> bool {
        self.bound.functions.get(function).is_none_or(|function| function.is_global)
    }

    /// A function and the static functions that it calls, each behind all that it calls.
    fn static_order(&self, function: usize, seen: &mut BTreeSet<usize>, order: &mut Vec<usize>) {
        if !seen.insert(function) {
            return;
        }
        for site in &self.bound.functions[function].calls {
            if let Callee::Function(callee) = site.callee
                && !self.is_global(callee)
            {
                self.static_order(callee, seen, order);
            }
        }
        order.push(function);
    }
}

/// The number of instructions of the shortest way from an instruction back to it, within a function.
fn shortest_loop(code: &[Insn], function: std::ops::Range<usize>, from: usize, steps: &mut usize) -> Option<u64> {
    if *steps == 0 {
        return Some(SHORTEST_LOOP);
    }
    let mut seen = vec![false; function.len()];
    let mut reached = vec![from];
    let mut length = 0;
    while !reached.is_empty() {
        length += 1;
        let mut next = Vec::new();
        for at in reached {
            *steps = steps.saturating_sub(1);
            if *steps == 0 {
                return Some(SHORTEST_LOOP);
            }
            for after in successors(code, at).into_iter().flatten() {
                if after == from {
                    return Some(length);
                }
                let Some(index) = after.checked_sub(function.start).filter(|index| *index < seen.len()) else { continue };
                if !std::mem::replace(&mut seen[index], true) {
                    next.push(after);
                }
            }
        }
        reached = next;
    }
    None
}

/// Where execution goes on after an instruction.
fn successors(code: &[Insn], at: usize) -> [Option<usize>; 2] {
    let Some(insn) = code.get(at) else { return [None, None] };
    let jump = insn.jump().map(|distance| target(at, distance));
    let is_last = insn.code == insn::EXIT || insn.code == insn::JA || insn.code == insn::GOTOL;
    let next = at + if insn.is_wide() { 2 } else { 1 };
    [(!is_last).then_some(next), jump]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u8, src: u8, off: i16, imm: i32) -> Insn {
        let registers = if cfg!(target_endian = "little") { src << 4 } else { src };
        let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
        Insn::from([code, registers, o0, o1, i0, i1, i2, i3])
    }

    fn plain() -> Insn {
        insn(insn::MOV64_IMM, 0, 0, 0)
    }

    fn exit() -> Insn {
        insn(insn::EXIT, 0, 0, 0)
    }

    /// `if r0 == 0` jump.
    fn branch(distance: i16) -> Insn {
        insn(0x15, 0, distance, 0)
    }

    /// One function of a program under test.
    #[derive(Clone, Copy)]
    enum Part {
        /// Plain instructions, without a loop.
        Straight,
        /// A loop of two instructions.
        Loop,
        /// A call of the next function: once, or in a loop of four instructions.
        Once,
        Often,
        /// A helper that runs the last function so often: once, or in a loop.
        Rounds(u64),
        OftenRounds(u64),
    }

    /// The bound of a program of these functions, each of eight instructions; `globals` are numbers of functions.
    fn bound(parts: &[Part], globals: &[usize], explored: u64) -> Option<u64> {
        let starts: Vec<usize> = (0..parts.len()).map(|n| n * 8).collect();
        let mut calls = ProgramCalls::new(&starts);
        let mut code = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let mut function = [plain(); 8];
            function[7] = exit();
            let at = n * 8 + 1;
            let loops = matches!(part, Part::Loop | Part::Often | Part::OftenRounds(_));
            match part {
                Part::Straight => {}
                Part::Loop => function[2] = branch(-2),
                Part::Once | Part::Often => calls.call(at, (n + 1) * 8),
                Part::Rounds(rounds) | Part::OftenRounds(rounds) => {
                    calls.callback((parts.len() - 1) * 8);
                    calls.repeats(at, 181, *rounds);
                }
            }
            if loops && !matches!(part, Part::Loop) {
                function[4] = branch(-4);
            }
            code.extend(function);
        }
        assert_eq!(calls.repeated_in_callback(), None);
        let globals = globals.iter().map(|number| number * 8).collect();
        ExecutionBound::of(&code, &calls, &globals).map(|bound| bound.instructions(explored))
    }

    #[test]
    fn what_the_verifier_follows_needs_no_bound() {
        use Part::{Loop, Often, Once, Straight};
        for parts in [vec![Straight], vec![Loop], vec![Often, Loop], vec![Often, Often, Loop], vec![Once, Straight]] {
            assert_eq!(bound(&parts, &[], 1000), None);
            // The program itself is global.
            assert_eq!(bound(&parts, &[0], 1000), None);
        }
    }

    #[test]
    fn counts_multiply_where_the_verifier_does_not_follow() {
        use Part::{Loop, Often, OftenRounds, Once, Rounds, Straight};
        const EXPLORED: u64 = 1000;
        for (parts, globals, most) in [
            // Called once: what both execute.
            (vec![Once, Straight], vec![1], 8 + 8),
            (vec![Once, Loop], vec![1], 8 + EXPLORED),
            // Called in a loop of four instructions. Two units share what was explored, so that each has 500 at most.
            (vec![Often, Straight], vec![1], EXPLORED + 251 * 8),
            (vec![Often, Loop], vec![1], 2 * EXPLORED + 500 * 500 / 4),
            (vec![Often, Often, Loop], vec![1, 2], 3 * EXPLORED + 3 * 500 * 500 / 4 + 2_314_815),
            // A static function between them is followed: its loop is explored with the program's.
            (vec![Often, Often, Loop], vec![2], 2 * EXPLORED + 500 * 500 / 2),
            (vec![Once, Often, Loop], vec![2], 2 * EXPLORED + 500 * 500 / 4),
            // Callbacks.
            (vec![Rounds(100), Straight], vec![], 8 + 100 * 8),
            (vec![Rounds(100), Loop], vec![], 8 + 100 * EXPLORED),
            (vec![OftenRounds(100), Straight], vec![], EXPLORED + 251 * 100 * 8),
            (vec![Once, Rounds(100), Loop], vec![1], 8 + 8 + 100 * EXPLORED),
        ] {
            assert_eq!(bound(&parts, &globals, EXPLORED), Some(most), "{globals:?}");
        }
    }

    #[test]
    fn nested_loops_of_global_functions_are_refused() {
        let nested: Vec<Part> = [Part::Often; 7].into_iter().chain([Part::Loop]).collect();
        let globals: Vec<usize> = (1..8).collect();
        assert_eq!(bound(&nested, &globals, 0), Some(u64::MAX));
        let most = bound(&nested, &globals, 500).unwrap();
        assert!(most > EXECUTED_MAX, "{most}");
        // Ordinary programs: some functions with loops, called once or a few times.
        let most = bound(&[Part::Often, Part::Loop], &[1], 30_000).unwrap();
        assert!(most < EXECUTED_MAX, "{most}");
    }

    #[test]
    fn a_function_that_calls_itself_has_no_bound() {
        let code = [insn(insn::CALL, insn::PSEUDO_CALL, 0, -1), exit()];
        let mut calls = ProgramCalls::new(&[0]);
        calls.call(0, 0);
        let bound = ExecutionBound::of(&code, &calls, &[0].into()).unwrap();
        assert_eq!(bound.instructions(10), u64::MAX);
    }

    #[test]
    fn many_calls_in_a_large_function_are_bounded_fast() {
        let mut code = vec![insn(insn::CALL, insn::PSEUDO_CALL, 0, 0); 400_000];
        code.extend([branch(i16::MIN), exit(), plain(), exit()]);
        let mut calls = ProgramCalls::new(&[0, 400_002]);
        (0..400_000).for_each(|at| calls.call(at, 400_002));
        assert_eq!(calls.repeated_in_callback(), None);
        let begun = std::time::Instant::now();
        let bound = ExecutionBound::of(&code, &calls, &[400_002].into()).unwrap();
        assert!(bound.instructions(1_000_000) > EXECUTED_MAX);
        // A search for each call would take hours.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
