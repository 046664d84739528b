//! Iteration over all records of a store, in batches.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError, mpsc};
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

/// The largest number of threads that sort records.
const THREADS: usize = 4;

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

/// The owners of a store, as [`Store::sort`] found them.
#[derive(Debug, Default)]
pub struct Sorted {
    /// The numbers of all owners, in ascending order.
    pub all: Vec<OwnerNo>,
    /// Those that are not settled, and those whose records do not decode, in ascending order.
    pub open: Vec<OwnerNo>,
}

/// Asks `is_settled` about every record. If there are many, several threads do that, each with records of its own.
pub(super) fn sort(store: &Store, is_settled: impl Fn(&OwnerRecord) -> bool + Sync) -> Result<Sorted, StoreError> {
    let look = |part: Vec<Item>, sorted: &mut Sorted| {
        for record in part {
            let (no, open) = match record {
                Ok(record) => (record.no, !is_settled(&record)),
                Err(StoreError::Record { no, .. }) => (no, true),
                Err(error) => return Err(error),
            };
            sorted.all.push(no);
            sorted.open.extend(open.then_some(no));
        }
        Ok(())
    };
    let mut sorted = Sorted::default();
    let mut records = Records::new(store);
    look(records.next_part().unwrap_or_default(), &mut sorted)?;
    if records.after.is_none() {
        return Ok(sorted);
    }
    let records = Mutex::new(records);
    let work = || {
        let mut sorted = Sorted::default();
        let next = || records.lock().unwrap_or_else(PoisonError::into_inner).next_part();
        while let Some(part) = next() {
            look(part, &mut sorted)?;
        }
        Ok::<_, StoreError>(sorted)
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS));
    let found = thread::scope(|scope| {
        // A thread that cannot be created (pids.max, RLIMIT_NPROC) leaves its part to the others.
        let others: Vec<_> = (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let joined = |other: thread::ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|panic| resume_unwind(panic));
        [work()].into_iter().chain(others.into_iter().map(joined)).collect::<Vec<_>>()
    });
    for part in found {
        let part = part?;
        sorted.all.extend(part.all);
        sorted.open.extend(part.open);
    }
    sorted.all.sort_unstable();
    sorted.open.sort_unstable();
    Ok(sorted)
}
