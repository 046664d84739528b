//! Iteration over all records of a store, in batches.

use std::sync::mpsc;
use std::thread;
use std::vec::IntoIter;

use super::{Store, StoreError};
use crate::model::ids::OwnerNo;
use crate::model::record::OwnerRecord;
use crate::sys::pages;

/// Records read per transaction: a few hundred KiB.
const AT_ONCE: usize = 256;

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// A record, or the error of decoding it.
type Item = Result<OwnerRecord, StoreError>;

/// Iterates over every owner of a store in the order of their numbers. Each batch is a snapshot of its own, so an
/// owner that is added, changed or removed meanwhile is returned as it was at one point in time, or not at all.
/// Iteration continues after a [`StoreError::Record`]; any other error is the last item.
#[derive(Debug)]
pub struct Records<'s> {
    store: &'s Store,
    part: IntoIter<Item>,
    /// The next batch begins after this number; None at the end.
    after: Option<OwnerNo>,
}

impl<'s> Records<'s> {
    pub(super) fn new(store: &'s Store) -> Self {
        Self { store, part: Vec::new().into_iter(), after: Some(OwnerNo(0)) }
    }

    fn next_part(&mut self) -> Option<Vec<Item>> {
        let after = self.after.take()?;
        match self.read(after) {
            Ok((owners, last)) => {
                self.after = last.filter(|_| owners.len() == AT_ONCE);
                Some(owners)
            }
            Err(error) => Some(vec![Err(error)]),
        }
    }

    #[allow(unsafe_code, reason = "the properties of LMDB's mapping that make this sound are known here")]
    fn read(&self, after: OwnerNo) -> Result<(Vec<Item>, Option<OwnerNo>), StoreError> {
        self.store.read(|txn| {
            let following = txn.following(after, AT_ONCE)?;
            if let Some(range) = following.pages {
                // SAFETY: the data that a read transaction returns lies in LMDB's single mapping of the data file,
                // which is shared and, without MDB_WRITEMAP, never written. The transaction and the mapping are still
                // open.
                unsafe { pages::let_go(range) };
            }
            Ok((following.owners, following.last))
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(owner) = self.part.next() {
                return Some(owner);
            }
            self.part = self.next_part()?.into_iter();
        }
    }
}

/// Passes the records of a store to `look`. If there are many, another thread reads the next batches meanwhile.
pub(super) fn read_ahead<T>(store: &Store, look: impl FnOnce(&mut dyn Iterator<Item = Item>) -> T) -> T {
    let mut records = Records::new(store);
    records.part = records.next_part().unwrap_or_default().into_iter();
    if records.after.is_none() {
        return look(&mut records);
    }
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    let rest = Records { store, part: Vec::new().into_iter(), after: records.after };
    thread::scope(|scope| {
        let mut parts = rest;
        // The receiver is dropped if `look` stops early.
        let send = move || while parts.next_part().is_some_and(|part| sender.send(part).is_ok()) {};
        match thread::Builder::new().spawn_scoped(scope, send) {
            Ok(_) => look(&mut records.part.chain(receiver.into_iter().flatten())),
            // If a thread cannot be created (pids.max, RLIMIT_NPROC), read in this one.
            Err(_) => look(&mut records),
        }
    })
}
