//! Which functions of a program call which, and which calls repeat a callback.
//!
//! A loop in the callback of a loop multiplies, and a few nested ones practically never end. Every function that a
//! program passes to a helper counts as the callback of a loop, also those of timers: a timer may restart itself
//! immediately.

/// The calls of a program, by function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCalls {
    /// First instructions of the functions, ascending.
    pub(super) starts: Vec<usize>,
    /// Functions that are passed to helpers.
    pub(super) callbacks: Vec<usize>,
    /// Calls of functions of the program.
    pub(super) calls: Vec<FunctionCall>,
    /// Calls of helpers that repeat a callback, or start another program.
    pub(super) repeating: Vec<RepeatingCall>,
}

/// A call of another function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FunctionCall {
    pub(super) at: usize,
    pub(super) caller: usize,
    pub(super) callee: usize,
}

/// A call of a repeating helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RepeatingCall {
    pub(super) at: usize,
    pub(super) caller: usize,
    /// The helper's number.
    pub(super) helper: u32,
    /// How often it calls its callback at most.
    pub(super) rounds: u64,
}

impl ProgramCalls {
    pub(super) fn new(starts: &[usize]) -> Self {
        Self { starts: starts.to_vec(), callbacks: Vec::new(), calls: Vec::new(), repeating: Vec::new() }
    }

    /// Records a callback that starts at an instruction.
    pub(super) fn callback(&mut self, target: usize) {
        self.callbacks.extend(self.function(target));
    }

    /// Records a call at `at` of the function that starts at `target`.
    pub(super) fn call(&mut self, at: usize, target: usize) {
        let functions = self.function(at).zip(self.function(target));
        self.calls.extend(functions.map(|(caller, callee)| FunctionCall { at, caller, callee }));
    }

    /// Records a call of a repeating helper.
    pub(super) fn repeats(&mut self, at: usize, helper: u32, rounds: u64) {
        self.repeating.extend(self.function(at).map(|caller| RepeatingCall { at, caller, helper, rounds }));
    }

    /// The first call of a repeating helper, by instruction, that a callback makes directly or indirectly.
    pub(super) fn repeated_in_callback(&mut self) -> Option<(usize, u32)> {
        self.calls.sort_unstable_by_key(|call| (call.caller, call.at));
        self.callbacks.sort_unstable();
        self.callbacks.dedup();
        if self.callbacks.is_empty() || self.repeating.is_empty() {
            return None;
        }
        let mut reached = vec![false; self.starts.len()];
        let mut todo = self.callbacks.clone();
        while let Some(function) = todo.pop() {
            if std::mem::replace(&mut reached[function], true) {
                continue;
            }
            todo.extend(self.calls_of(function).iter().map(|call| call.callee));
        }
        self.repeating.iter().find(|call| reached[call.caller]).map(|call| (call.at, call.helper))
    }

    /// The calls that a function makes.
    pub(super) fn calls_of(&self, function: usize) -> &[FunctionCall] {
        let first = self.calls.partition_point(|call| call.caller < function);
        let after = self.calls.partition_point(|call| call.caller <= function);
        &self.calls[first..after]
    }

    /// The function that contains an instruction.
    fn function(&self, at: usize) -> Option<usize> {
        self.starts.partition_point(|start| *start <= at).checked_sub(1)
    }
}
