//! Answers that a thread did not get, because a signal interrupted its call.
//!
//! Without `WAIT_KILLABLE_RECV`, which runc does not know, a signal withdraws a call that is being worked on. With
//! SA_RESTART the thread then repeats it. If each repetition were executed, a thread with a timer that is faster than
//! the verifier would never get an answer; Go has such a timer. So a repeated call gets the answer of the first.
//!
//! The arguments are copied again, and compared: the thread gets its answer if that takes less time than its timer. So
//! they are kept as they are, since a digest of some megabytes would take longer than the copy.

use std::collections::HashMap;

use crate::proxy::notified::CopiedArguments;
use crate::proxy::outcome::Outcome;

/// Threads whose answers are kept. Beyond that all are forgotten, and the calls are executed again.
const KEPT_MAX: usize = 256;
/// Bytes of arguments that are kept. The largest call has some 60 MiB.
const BYTES_MAX: usize = 64 << 20;

/// A thread, by number and start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThreadKey {
    pub(super) tid: u32,
    pub(super) started: u64,
}

/// The answers that were not delivered, at most one per thread: of its last call.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    by_thread: HashMap<u32, (ThreadKey, CopiedArguments, Outcome)>,
    bytes: usize,
}

impl Undelivered {
    /// True if an answer for this thread is kept.
    pub(super) fn concerns(&self, tid: u32) -> bool {
        self.by_thread.contains_key(&tid)
    }

    /// Takes the kept answer of the thread, which counts only for the same call.
    pub(super) fn take(&mut self, key: ThreadKey, call: &CopiedArguments) -> Option<Outcome> {
        let (kept, copied, outcome) = self.by_thread.remove(&key.tid)?;
        self.bytes -= copied.size();
        (kept == key && copied.is_the_same(call)).then_some(outcome)
    }

    /// True if no answer is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.by_thread.is_empty()
    }

    /// Drops the answers of threads that have ended: a link among them would stay attached.
    pub(super) fn prune(&mut self, runs: impl Fn(&ThreadKey) -> bool) {
        self.by_thread.retain(|_, (key, _, _)| runs(key));
        self.bytes = self.by_thread.values().map(|(_, copied, _)| copied.size()).sum();
    }

    /// Forgets the answer of a thread.
    pub(super) fn forget(&mut self, tid: u32) {
        if let Some((_, copied, _)) = self.by_thread.remove(&tid) {
            self.bytes -= copied.size();
        }
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, key: ThreadKey, call: CopiedArguments, outcome: Outcome) {
        self.forget(key.tid);
        if self.by_thread.len() >= KEPT_MAX || self.bytes + call.size() > BYTES_MAX {
            self.by_thread.clear();
            self.bytes = 0;
        }
        self.bytes += call.size();
        self.by_thread.insert(key.tid, (key, call, outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proxy::attr::WantedCopy;
    use crate::model::proxy::{CopiedAttr, NotifiedCommand};
    use crate::proxy::call::CopiedCall;

    /// The creation of a map, with something that it points to.
    fn call(byte: u8, buffer: &[u8]) -> CopiedArguments {
        let attr = CopiedAttr::new(NotifiedCommand::MapCreate, &[byte]).unwrap();
        let pointer = NotifiedCommand::MapCreate.pointers(0)[0];
        let wanted = WantedCopy { pointer, address: 8, length: buffer.len() as u64 };
        let inputs = vec![(wanted, buffer.to_vec())];
        CopiedArguments::Bpf(CopiedCall { attr, inputs, outputs: Vec::new(), address: 0 })
    }

    #[test]
    fn only_a_repetition_gets_the_answer() {
        let mut kept = Undelivered::default();
        let key = ThreadKey { tid: 7, started: 100 };
        kept.keep(key, call(1, b"x"), Outcome::Errno(13));
        assert!(kept.concerns(7) && !kept.concerns(8));
        assert!(kept.take(ThreadKey { tid: 8, ..key }, &call(1, b"x")).is_none());
        assert!(matches!(kept.take(key, &call(1, b"x")), Some(Outcome::Errno(13))));
        assert!(kept.take(key, &call(1, b"x")).is_none());
        let other = ThreadKey { started: 101, ..key };
        for (other, call_made) in [(other, call(1, b"x")), (key, call(2, b"x")), (key, call(1, b"y")), (key, call(1, b""))] {
            kept.keep(key, call(1, b"x"), Outcome::Done);
            assert!(kept.take(other, &call_made).is_none());
            assert!(!kept.concerns(7), "another call of the thread ends it");
        }
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn answers_of_ended_threads_are_dropped() {
        let mut kept = Undelivered::default();
        for tid in [1, 2] {
            kept.keep(ThreadKey { tid, started: 1 }, call(1, b"x"), Outcome::Done);
        }
        kept.prune(|key| key.tid == 2);
        assert!(!kept.concerns(1) && kept.concerns(2) && !kept.is_empty());
        assert_eq!(kept.bytes, call(1, b"x").size());
    }

    #[test]
    fn the_number_and_the_size_of_kept_answers_are_bounded() {
        let mut kept = Undelivered::default();
        let large = vec![0; 1 << 20];
        for tid in 1..2000 {
            let buffer: &[u8] = if tid < 1000 { b"x" } else { &large };
            kept.keep(ThreadKey { tid, started: 1 }, call(1, buffer), Outcome::Done);
            assert!(kept.by_thread.len() <= KEPT_MAX && kept.bytes <= BYTES_MAX);
        }
    }
}
