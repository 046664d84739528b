//! Every record of a store, a part at a time.

use std::sync::mpsc;
use std::thread;
use std::vec::IntoIter;

use super::{Store, StoreError};
use crate::model::ids::OwnerNo;
use crate::model::record::OwnerRecord;
use crate::sys::pages;

/// Records that are read in one transaction: some hundred KiB.
const AT_ONCE: usize = 256;

/// Parts that are read before they are asked for.
const AHEAD: usize = 2;

/// A record, or why it does not decode.
type Item = Result<OwnerRecord, StoreError>;

/// Every owner of a store, in the order of their numbers. Each part is a snapshot of its own, so that an owner that comes, changes or goes
/// meanwhile is there or not, as it was at one time. After a [`StoreError::Record`] come the others, any other error is the last.
#[derive(Debug)]
pub struct Records<'s> {
    store: &'s Store,
    part: IntoIter<Item>,
    /// After which number the next part begins; None where there is none.
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

    #[allow(unsafe_code, reason = "what is said of the pages of LMDB's mapping is known here")]
    fn read(&self, after: OwnerNo) -> Result<(Vec<Item>, Option<OwnerNo>), StoreError> {
        self.store.read(|txn| {
            let following = txn.following(after, AT_ONCE)?;
            if let Some(range) = following.pages {
                // SAFETY: what a read transaction returns lies in LMDB's one mapping of the data file, which is shared and, without
                // MDB_WRITEMAP, never written. The transaction is open, and so is the mapping.
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

/// Gives `look` the records of a store; what another thread reads while it looks at those before, where there are many.
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
        // Whoever does not want more has dropped the receiver.
        let send = move || while parts.next_part().is_some_and(|part| sender.send(part).is_ok()) {};
        match thread::Builder::new().spawn_scoped(scope, send) {
            Ok(_) => look(&mut records.part.chain(receiver.into_iter().flatten())),
            // Where no thread can be had (pids.max, RLIMIT_NPROC), this one does all.
            Err(_) => look(&mut records),
        }
    })
}
