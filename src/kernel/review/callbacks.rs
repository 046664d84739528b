//! Which calls repeat a callback: a loop in the callback of a loop multiplies, and a few nested ones practically never
//! end.
//!
//! Every function that a program passes to a helper counts as the callback of a loop, also those of timers: a timer may
//! restart itself immediately.

/// The calls of a program, by function.
pub(super) struct Callbacks<'s> {
    /// First instructions of the functions, ascending.
    starts: &'s [usize],
    /// Functions that are passed to helpers.
    callbacks: Vec<usize>,
    /// Caller and callee.
    calls: Vec<(usize, usize)>,
    /// Calls of repeating helpers: the instruction and the helper's number.
    repeating: Vec<(usize, u32)>,
}

impl<'s> Callbacks<'s> {
    pub(super) fn new(starts: &'s [usize]) -> Self {
        Self { starts, callbacks: Vec::new(), calls: Vec::new(), repeating: Vec::new() }
    }

    /// Records a callback that starts at an instruction.
    pub(super) fn callback(&mut self, target: usize) {
        self.callbacks.extend(self.function(target));
    }

    /// Records a call at `at` of the function that starts at `target`.
    pub(super) fn call(&mut self, at: usize, target: usize) {
        self.calls.extend(self.function(at).zip(self.function(target)));
    }

    /// Records a call of a repeating helper.
    pub(super) fn repeats(&mut self, at: usize, number: u32) {
        self.repeating.push((at, number));
    }

    /// The first call of a repeating helper, by instruction, that a callback makes directly or indirectly.
    pub(super) fn repeated_in_callback(mut self) -> Option<(usize, u32)> {
        if self.callbacks.is_empty() || self.repeating.is_empty() {
            return None;
        }
        self.calls.sort_unstable();
        let mut reached = vec![false; self.starts.len()];
        let mut todo = std::mem::take(&mut self.callbacks);
        while let Some(function) = todo.pop() {
            if std::mem::replace(&mut reached[function], true) {
                continue;
            }
            let first = self.calls.partition_point(|(caller, _)| *caller < function);
            let own = self.calls[first..].iter().take_while(|(caller, _)| *caller == function);
            todo.extend(own.map(|(_, callee)| *callee));
        }
        self.repeating.iter().find(|(at, _)| self.function(*at).is_some_and(|function| reached[function])).copied()
    }

    /// The function that contains an instruction.
    fn function(&self, at: usize) -> Option<usize> {
        self.starts.partition_point(|start| *start <= at).checked_sub(1)
    }
}
