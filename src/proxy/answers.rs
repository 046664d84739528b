//! Answers that a thread did not get, because a signal interrupted its call.
//!
//! Without `WAIT_KILLABLE_RECV`, which runc does not know, a signal withdraws a call that is being worked on. With
//! SA_RESTART the thread then repeats it. If each repetition were executed, a thread with a timer that is faster than
//! the verifier would never get an answer; Go has such a timer. So a repeated call gets the answer of the first.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::OwnedFd;

use crate::model::proxy::CopiedAttr;

/// Threads whose answers are kept. Beyond that all are forgotten, and the calls are executed again.
const KEPT_MAX: usize = 256;

/// The result of a call, or of a refusal.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A new descriptor.
    Descriptor(OwnedFd),
    /// 0
    Done,
    /// An errno.
    Errno(i32),
}

/// What identifies a repetition: the thread, by number and start, and a digest of the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallKey {
    pub(super) tid: u32,
    pub(super) started: u64,
    pub(super) digest: u64,
}

/// The answers that were not delivered, at most one per thread: of its last call.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    by_thread: HashMap<u32, (CallKey, Outcome)>,
    hasher: RandomState,
}

impl Undelivered {
    /// A digest of the copies of a call's arguments. With a random key: the caller cannot choose two with the same.
    pub(super) fn digest(&self, attr: &CopiedAttr, buffers: &[&[u8]]) -> u64 {
        self.hasher.hash_one((attr.command, attr.bytes(), buffers))
    }

    /// True if an answer for this thread is kept.
    pub(super) fn concerns(&self, tid: u32) -> bool {
        self.by_thread.contains_key(&tid)
    }

    /// Takes the kept answer of the thread, which counts only for the same call.
    pub(super) fn take(&mut self, key: CallKey) -> Option<Outcome> {
        let (kept, outcome) = self.by_thread.remove(&key.tid)?;
        (kept == key).then_some(outcome)
    }

    /// True if no answer is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.by_thread.is_empty()
    }

    /// Drops the answers of threads that have ended: a link among them would stay attached.
    pub(super) fn prune(&mut self, runs: impl Fn(&CallKey) -> bool) {
        self.by_thread.retain(|_, (key, _)| runs(key));
    }

    /// Forgets the answer of a thread.
    pub(super) fn forget(&mut self, tid: u32) {
        self.by_thread.remove(&tid);
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, key: CallKey, outcome: Outcome) {
        if self.by_thread.len() >= KEPT_MAX {
            self.by_thread.clear();
        }
        self.by_thread.insert(key.tid, (key, outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proxy::NotifiedCommand;

    #[test]
    fn only_a_repetition_gets_the_answer() {
        let mut kept = Undelivered::default();
        let key = CallKey { tid: 7, started: 100, digest: 5 };
        kept.keep(key, Outcome::Errno(13));
        assert!(kept.concerns(7) && !kept.concerns(8));
        assert!(kept.take(CallKey { tid: 8, ..key }).is_none());
        assert!(matches!(kept.take(key), Some(Outcome::Errno(13))));
        assert!(kept.take(key).is_none());
        for other in [CallKey { started: 101, ..key }, CallKey { digest: 6, ..key }] {
            kept.keep(key, Outcome::Done);
            assert!(kept.take(other).is_none());
            assert!(!kept.concerns(7), "another call of the thread ends it");
        }
    }

    #[test]
    fn the_digest_covers_arguments_and_buffers() {
        let kept = Undelivered::default();
        let attr = |byte| CopiedAttr::new(NotifiedCommand::MapCreate, &[byte]).unwrap();
        let one = kept.digest(&attr(1), &[&[1]]);
        assert_eq!(one, kept.digest(&attr(1), &[&[1]]));
        assert_ne!(one, kept.digest(&attr(2), &[&[1]]));
        assert_ne!(one, kept.digest(&attr(1), &[&[2]]));
        assert_ne!(one, kept.digest(&attr(1), &[&[], &[1]]));
    }

    #[test]
    fn answers_of_ended_threads_are_dropped() {
        let mut kept = Undelivered::default();
        for tid in [1, 2] {
            kept.keep(CallKey { tid, started: 1, digest: 1 }, Outcome::Done);
        }
        kept.prune(|key| key.tid == 2);
        assert!(!kept.concerns(1) && kept.concerns(2) && !kept.is_empty());
    }

    #[test]
    fn the_number_of_kept_answers_is_bounded() {
        let mut kept = Undelivered::default();
        for tid in 1..2000 {
            kept.keep(CallKey { tid, started: 1, digest: 1 }, Outcome::Done);
            assert!(kept.by_thread.len() <= KEPT_MAX);
        }
    }
}
