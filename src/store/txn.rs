//! Read and write transactions on records and on the indexes that are derived from them.
//!
//! All entries are in one table, so that a commit touches few pages. Keys begin with a letter. Numbers in keys are
//! big-endian, so that they sort:
//!
//! | key | value |
//! | --- | --- |
//! | `s` | schema, u32 |
//! | `x` | the number of the last owner, u64 |
//! | `o` no | the record, JSON |
//! | `c` container id, 0, no | empty |
//! | `n` cookie, no | empty |
//! | `k` kernel id of a loaded program, no | empty |
//! | `l` kernel id of an attached link, no | empty |
//! | `p` phase, changed, no | empty |
//!
//! Records are JSON: [`OwnerRecord`] uses serde's tagged enums, which formats without field names cannot deserialize.
//! Of the formats that can, JSON needs no additional crate and can be read with common tools.

use std::fmt;
use std::ops::{Bound, Range};
use std::path::Path;

use heed::{RoTxn, RwTxn, WithoutTls};

use super::publish::{self, Change};
use super::{MAP_SIZE, RecordTable, StoreError};
use crate::model::event::ReleasedBy;
use crate::model::ids::{ContainerId, OwnerNo};
use crate::model::record::{self, LinkRecord, Owner, OwnerRecord, Phase, ProgramRecord, init_of_damaged};
use crate::sys::export;

pub(super) const SCHEMA_KEY: &[u8] = b"s";
const LAST_NO_KEY: &[u8] = b"x";
const OWNERS: u8 = b'o';
const CONTAINERS: u8 = b'c';
const NETNS: u8 = b'n';
const PROGRAMS: u8 = b'k';
const LINKS: u8 = b'l';
const PHASES: u8 = b'p';
/// The indexes. All of them are derived from the records.
pub(super) const INDEXES: [u8; 5] = [CONTAINERS, NETNS, PROGRAMS, LINKS, PHASES];

/// How often [`ReadTxn::some_in_phase`] narrows down the index.
const STEPS: u64 = 4;

/// How much of the store is in use, in bytes; new records are refused beyond seven eighths of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFill {
    /// In use.
    pub used: u64,
    /// The most that the store can hold.
    pub limit: u64,
}

/// A snapshot of the store.
pub struct ReadTxn<'t> {
    path: &'t Path,
    table: RecordTable,
    txn: &'t RoTxn<'t, WithoutTls>,
}

impl<'t> ReadTxn<'t> {
    pub(super) fn new(path: &'t Path, table: RecordTable, txn: &'t RoTxn<'t, WithoutTls>) -> Self {
        Self { path, table, txn }
    }

    /// Returns the record with this number.
    pub fn get(&self, no: OwnerNo) -> Result<Option<OwnerRecord>, StoreError> {
        let bytes = self.table.get(self.txn, &owner_key(no)).map_err(|err| self.failed(err))?;
        bytes.map(|bytes| self.decode(no, bytes)).transpose()
    }

    /// How full the store is.
    pub fn fill(&self) -> Result<StoreFill, StoreError> {
        let stat = self.table.stat(self.txn).map_err(|err| self.failed(err))?;
        let pages = stat.branch_pages.saturating_add(stat.leaf_pages).saturating_add(stat.overflow_pages);
        Ok(StoreFill { used: pages.saturating_mul(stat.page_size as usize) as u64, limit: MAP_SIZE as u64 })
    }

    /// Returns true if there is a record with this number, whether it decodes or not.
    pub fn has(&self, no: OwnerNo) -> Result<bool, StoreError> {
        Ok(self.table.get(self.txn, &owner_key(no)).map_err(|err| self.failed(err))?.is_some())
    }

    /// Iterates over every owner in the order of their numbers, decoding one record at a time. After an error about
    /// one record, the iterator continues with the next.
    pub fn owners(&self) -> Result<impl Iterator<Item = Result<OwnerRecord, StoreError>> + '_, StoreError> {
        Ok(self.sized()?.map(|sized| sized.map(|(record, _)| record)))
    }

    /// Like [`owners`](Self::owners), with the size of each record in bytes.
    pub fn sized(&self) -> Result<impl Iterator<Item = Result<(OwnerRecord, u64), StoreError>> + '_, StoreError> {
        let entries = self.table.prefix_iter(self.txn, &[OWNERS]).map_err(|err| self.failed(err))?;
        Ok(entries.map(|entry| {
            let (key, bytes) = entry.map_err(|err| self.failed(err))?;
            Ok((self.decode(self.number(key)?, bytes)?, bytes.len() as u64))
        }))
    }

    /// Returns at most `max` owners after the number `after`, in the order of [`owners`](Self::owners).
    pub(super) fn following(&self, after: OwnerNo, max: usize) -> Result<Following, StoreError> {
        let (from, until) = (owner_key(after), owner_key(OwnerNo(u64::MAX)));
        let range = (Bound::Excluded(&from[..]), Bound::Included(&until[..]));
        let mut following = Following { owners: Vec::new(), last: None, pages: None };
        for entry in self.table.range(self.txn, &range).map_err(|err| self.failed(err))?.take(max) {
            let (key, bytes) = entry.map_err(|err| self.failed(err))?;
            let no = self.number(key)?;
            following.owners.push(self.decode(no, bytes));
            following.last = Some(no);
            let here = bytes.as_ptr_range();
            let pages = following.pages.get_or_insert_with(|| here.clone());
            *pages = pages.start.min(here.start)..pages.end.max(here.end);
        }
        Ok(following)
    }

    /// Returns the records of the containers with this id, in the order of their numbers. There are several if
    /// runtimes with different roots or users use the same id, or if the record of a failed start is kept.
    pub fn by_container(&self, id: &ContainerId) -> Result<Vec<OwnerRecord>, StoreError> {
        self.numbers_of_container(id)?.into_iter().map(|no| self.indexed(no)).collect()
    }

    /// Returns the numbers of the containers with this id, whether their records decode or not.
    pub fn numbers_of_container(&self, id: &ContainerId) -> Result<Vec<OwnerNo>, StoreError> {
        self.named(&container_prefix(id))
    }

    /// Returns the containers whose id begins with `start`.
    pub fn containers_with(&self, start: &str) -> Result<Vec<OwnerNo>, StoreError> {
        // LMDB refuses keys that are longer than the longest key of this store.
        if start.len() > ContainerId::MAX { Ok(Vec::new()) } else { self.named(&[&[CONTAINERS], start.as_bytes()].concat()) }
    }

    /// Returns the records of the network namespace with this cookie, in the order of their numbers. There are several
    /// if containers of one pod request different programs there.
    pub fn by_netns(&self, cookie: u64) -> Result<Vec<OwnerRecord>, StoreError> {
        self.named(&netns_prefix(cookie))?.into_iter().map(|no| self.indexed(no)).collect()
    }

    /// Returns the records that have a program with this kernel id, in the order of their numbers. There are several
    /// if a record was kept although the kernel has already reused the id for another program.
    pub fn by_program(&self, id: u32) -> Result<Vec<OwnerRecord>, StoreError> {
        self.named(&id_prefix(PROGRAMS, id))?.into_iter().map(|no| self.indexed(no)).collect()
    }

    /// Returns the records that have a link with this kernel id, in the order of their numbers.
    pub fn by_link(&self, id: u32) -> Result<Vec<OwnerRecord>, StoreError> {
        self.named(&id_prefix(LINKS, id))?.into_iter().map(|no| self.indexed(no)).collect()
    }

    /// Returns the owners in this phase, least recently changed first. Reads only the index, no records.
    pub fn phases(&self, phase: Phase) -> Result<Vec<OwnerNo>, StoreError> {
        self.named(&[PHASES, phase_byte(phase)])
    }

    /// Returns at most `max` owners in this phase, from a starting point in the index that `turn` selects, wrapping
    /// around at its end. Reads only that part of the index, so that the cost does not grow with the number of owners.
    pub fn some_in_phase(&self, phase: Phase, turn: u64, max: usize) -> Result<Vec<OwnerNo>, StoreError> {
        let prefix = [PHASES, phase_byte(phase)];
        let failed = |err| self.failed(err);
        let first = self.table.prefix_iter(self.txn, &prefix).map_err(failed)?.next().transpose().map_err(failed)?;
        let last = self.table.rev_prefix_iter(self.txn, &prefix).map_err(failed)?.next().transpose().map_err(failed)?;
        let (Some((first, _)), Some((last, _))) = (first, last) else { return Ok(Vec::new()) };
        let (mut low, mut high) = (self.place(first)?, self.place(last)?);
        for step in 0..STEPS {
            // Owners come in clusters: a random point falls between two clusters more often than within one. So take
            // one side of it, whatever its width, and choose the next point there.
            let chance = random(turn, step);
            let point = key_at(phase, low + (chance >> 1) % (high - low).saturating_add(1));
            let (after, before) =
                ((Bound::Included(&point[..]), Bound::Included(last)), (Bound::Included(first), Bound::Excluded(&point[..])));
            if chance & 1 == 0 {
                let after = self.table.range(self.txn, &after).map_err(failed)?.next().transpose().map_err(failed)?;
                low = after.map_or(Ok(high), |(key, _)| self.place(key))?.min(high);
            } else if point.as_slice() > first {
                let before = self.table.rev_range(self.txn, &before).map_err(failed)?.next().transpose().map_err(failed)?;
                high = before.map_or(Ok(low), |(key, _)| self.place(key))?.max(low);
            }
        }
        let start = key_at(phase, low);
        let from = (Bound::Included(&start[..]), Bound::Included(last));
        let until = (Bound::Included(first), Bound::Excluded(&start[..]));
        let after = self.table.range(self.txn, &from).map_err(failed)?;
        let before = if start.as_slice() > first { Some(self.table.range(self.txn, &until).map_err(failed)?) } else { None };
        let entries = after.chain(before.into_iter().flatten());
        entries.take(max).map(|entry| self.number(entry.map_err(failed)?.0)).collect()
    }

    /// The position of an owner in its part of the phase index: the time of its last change, and its number.
    fn place(&self, key: &[u8]) -> Result<u128, StoreError> {
        Ok(u128::from(self.changed(key)?) << 64 | u128::from(self.number(key)?.0))
    }

    /// The time of the owner's last change, from its key in the phase index.
    fn changed(&self, key: &[u8]) -> Result<u64, StoreError> {
        let changed = key.get(2..10).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        changed.ok_or_else(|| StoreError::damaged(self.path, "a key is too short"))
    }

    /// When the owners in this phase last changed, oldest first, as seconds since 1970, with their numbers.
    fn ages(&self, phase: Phase) -> Result<Vec<(u64, OwnerNo)>, StoreError> {
        let entries = self.table.prefix_iter(self.txn, &[PHASES, phase_byte(phase)]).map_err(|err| self.failed(err))?;
        entries
            .map(|entry| {
                let (key, _) = entry.map_err(|err| self.failed(err))?;
                Ok((self.changed(key)?, self.number(key)?))
            })
            .collect()
    }

    /// Returns the numbers at the end of the keys that begin with `prefix`.
    fn named(&self, prefix: &[u8]) -> Result<Vec<OwnerNo>, StoreError> {
        let entries = self.table.prefix_iter(self.txn, prefix).map_err(|err| self.failed(err))?;
        entries.map(|entry| self.number(entry.map_err(|err| self.failed(err))?.0)).collect()
    }

    fn indexed(&self, no: OwnerNo) -> Result<OwnerRecord, StoreError> {
        self.get(no)?.ok_or_else(|| StoreError::damaged(self.path, format!("record {no} is in an index but does not exist")))
    }

    fn number(&self, key: &[u8]) -> Result<OwnerNo, StoreError> {
        let last = key.split_last_chunk::<8>().map(|(_, number)| OwnerNo(u64::from_be_bytes(*number)));
        last.ok_or_else(|| StoreError::damaged(self.path, "a key is too short"))
    }

    fn decode(&self, no: OwnerNo, bytes: &[u8]) -> Result<OwnerRecord, StoreError> {
        decode(self.path, no, bytes)
    }

    fn failed(&self, err: heed::Error) -> StoreError {
        StoreError::from_heed("read", self.path, err)
    }
}

/// A write transaction. Its changes are not visible until [`super::Store::write`] has returned Ok.
pub struct WriteTxn<'t> {
    path: &'t Path,
    table: RecordTable,
    txn: RwTxn<'t>,
    /// Bytes that records may take; 0 if no record may be added.
    room: usize,
    changes: Vec<Change>,
}

impl<'t> WriteTxn<'t> {
    pub(super) fn new(path: &'t Path, table: RecordTable, txn: RwTxn<'t>, room: usize) -> Self {
        Self { path, table, txn, room, changes: Vec::new() }
    }

    /// Commits the transaction and publishes the changes. The caller holds the writer's lock.
    pub(super) fn commit(self) -> Result<(), StoreError> {
        let Self { path, txn, mut changes, .. } = self;
        let export = export::here().filter(|_| !changes.is_empty());
        if let Some(export) = export {
            publish::remove_owner_files(export, &mut changes);
        }
        let committed = txn.commit().map_err(|err| StoreError::from_heed("write", path, err));
        match (export, &committed) {
            (Some(export), Ok(())) => publish::publish(export, &changes),
            (Some(export), Err(_)) => publish::restore_owner_files(export, &changes),
            (None, _) => {}
        }
        committed
    }

    /// The store as this transaction sees it, including its own changes.
    pub fn view(&self) -> ReadTxn<'_> {
        ReadTxn::new(self.path, self.table, &self.txn)
    }

    /// [`ReadTxn::get`]
    pub fn get(&self, no: OwnerNo) -> Result<Option<OwnerRecord>, StoreError> {
        self.view().get(no)
    }

    /// [`ReadTxn::has`]
    pub fn has(&self, no: OwnerNo) -> Result<bool, StoreError> {
        self.view().has(no)
    }

    /// [`ReadTxn::by_container`]
    pub fn by_container(&self, id: &ContainerId) -> Result<Vec<OwnerRecord>, StoreError> {
        self.view().by_container(id)
    }

    /// [`ReadTxn::by_netns`]
    pub fn by_netns(&self, cookie: u64) -> Result<Vec<OwnerRecord>, StoreError> {
        self.view().by_netns(cookie)
    }

    /// Returns a number for a new owner. The first one is 1, and a number is never reused during a boot, even if its
    /// owner was deleted. A number taken in a transaction that fails may be returned again, since nothing can refer to
    /// it.
    pub fn next_no(&mut self) -> Result<OwnerNo, StoreError> {
        let next = self.last_no()?.checked_add(1);
        let next = next.ok_or_else(|| StoreError::damaged(self.path, "the last owner number is invalid"))?;
        self.set_last_no(next)?;
        Ok(OwnerNo(next))
    }

    fn last_no(&self) -> Result<u64, StoreError> {
        let Some(bytes) = self.value(LAST_NO_KEY)? else { return Ok(0) };
        let bytes = bytes.try_into().map_err(|_| StoreError::damaged(self.path, "the last owner number is invalid"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn set_last_no(&mut self, no: u64) -> Result<(), StoreError> {
        self.insert(LAST_NO_KEY, &no.to_be_bytes())
    }

    /// Writes a record under its number and replaces an existing one. A new record is refused with
    /// [`StoreError::Full`] if less than an eighth of the map is free, or if the file system has no room for the spare
    /// pages: LMDB needs free pages for deletions too, and a full store must remain changeable and deletable.
    pub fn put(&mut self, record: &OwnerRecord) -> Result<(), StoreError> {
        let new = index_keys(record);
        let (before, old) = self.stored(record.no)?;
        if old.is_empty() && self.is_nearly_full()? {
            return Err(StoreError::Full(self.path.to_owned()));
        }
        for key in old.iter().filter(|key| !new.contains(key)) {
            self.remove(key)?;
        }
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.insert(key, &[])?;
        }
        self.insert(&owner_key(record.no), &encode(record))?;
        if export::is_installed() {
            let (after, by) = (Some(record.clone()), ReleasedBy::Request);
            self.changes.push(Change { no: record.no, before, after, by, had_owner_file: false });
        }
        Ok(())
    }

    /// Removes a record, even if it does not decode. Returns true if it existed.
    pub fn delete(&mut self, no: OwnerNo) -> Result<bool, StoreError> {
        self.delete_by(no, ReleasedBy::Request)
    }

    /// [`delete`](Self::delete), with what releases the owner, for the event.
    pub fn delete_by(&mut self, no: OwnerNo, by: ReleasedBy) -> Result<bool, StoreError> {
        let (before, keys) = self.stored(no)?;
        for key in keys {
            self.remove(&key)?;
        }
        let removed = self.remove(&owner_key(no))?;
        if removed && export::is_installed() {
            self.changes.push(Change { no, before, after: None, by, had_owner_file: false });
        }
        Ok(removed)
    }

    /// Removes records of failures: those that last changed before `older_than` (seconds since 1970), and the oldest
    /// ones until `max` are left, but not those of running containers. Returns how many were removed. This concerns
    /// only records in phase Failed, which have no leftovers; records with leftovers are in another phase.
    pub fn prune_failed(&mut self, older_than: u64, max: usize) -> Result<usize, StoreError> {
        let ages = self.view().ages(Phase::Failed)?;
        let surplus = ages.len().saturating_sub(max);
        let doomed = ages.iter().enumerate().filter(|(at, (changed, _))| *at < surplus || *changed < older_than);
        let mut doomed: Vec<_> = doomed.map(|(_, (_, no))| *no).collect();
        doomed.retain(|no| !matches!(self.get(*no), Ok(Some(record)) if record.owner.is_missed()));
        for no in &doomed {
            self.delete(*no)?;
        }
        Ok(doomed.len())
    }

    fn is_nearly_full(&self) -> Result<bool, StoreError> {
        let stat = self.table.stat(&self.txn).map_err(|err| self.failed(err))?;
        let pages = stat.branch_pages.saturating_add(stat.leaf_pages).saturating_add(stat.overflow_pages);
        let used = pages.saturating_mul(stat.page_size as usize);
        // A damaged page may contain any number.
        if used > self.room.max(MAP_SIZE) {
            return Err(StoreError::damaged(self.path, "it claims to have more pages than a store can have"));
        }
        Ok(used > self.room / 8 * 7)
    }

    /// Returns the stored record, if it decodes, and its index entries. They are derived from the record, or found by
    /// scanning all indexes if it does not decode.
    fn stored(&self, no: OwnerNo) -> Result<(Option<OwnerRecord>, Vec<Vec<u8>>), StoreError> {
        match self.get(no) {
            Ok(record) => {
                let keys = record.as_ref().map(index_keys).unwrap_or_default();
                Ok((record, keys))
            }
            Err(StoreError::Record { .. } | StoreError::Damaged { .. }) => {
                let mut keys = Vec::new();
                for index in INDEXES {
                    keys.extend(self.keys(&[index])?.into_iter().filter(|key| key.ends_with(&no.0.to_be_bytes())));
                }
                Ok((None, keys))
            }
            Err(err) => Err(err),
        }
    }

    /// Returns the keys that begin with `prefix`.
    pub(super) fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let entries = self.table.prefix_iter(&self.txn, prefix).map_err(|err| self.failed(err))?;
        entries.map(|entry| Ok(entry.map_err(|err| self.failed(err))?.0.to_vec())).collect()
    }

    /// Returns the value of a key.
    pub(super) fn value(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        self.table.get(&self.txn, key).map_err(|err| self.failed(err))
    }

    /// Returns the numbers of all owners without reading the records.
    pub(super) fn numbers(&self) -> Result<Vec<OwnerNo>, StoreError> {
        self.view().named(&[OWNERS])
    }

    /// Returns the stored bytes of a record, whether it decodes or not.
    pub(super) fn record_bytes(&self, no: OwnerNo) -> Result<Option<&[u8]>, StoreError> {
        self.value(&owner_key(no))
    }

    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let put = self.table.put(&mut self.txn, key, value);
        put.map_err(|err| StoreError::from_heed("write", self.path, err))
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        let delete = self.table.delete(&mut self.txn, key);
        delete.map_err(|err| StoreError::from_heed("write", self.path, err))
    }

    fn failed(&self, err: heed::Error) -> StoreError {
        StoreError::from_heed("write", self.path, err)
    }
}

/// A range of owners of a snapshot.
pub(super) struct Following {
    /// The owners in the order of their numbers, with an error for each record that does not decode.
    pub owners: Vec<Result<OwnerRecord, StoreError>>,
    /// The number of the last one.
    pub last: Option<OwnerNo>,
    /// The memory range of their records.
    pub pages: Option<Range<*const u8>>,
}

impl fmt::Debug for ReadTxn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadTxn").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for WriteTxn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTxn").field("path", &self.path).finish_non_exhaustive()
    }
}

fn encode(record: &OwnerRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is made of strings, numbers and lists, all of which JSON has")
}

/// The size of a record in the store, in bytes.
pub fn stored_bytes(record: &OwnerRecord) -> u64 {
    encode(record).len() as u64
}

fn decode(path: &Path, no: OwnerNo, bytes: &[u8]) -> Result<OwnerRecord, StoreError> {
    let bad = |source| StoreError::Record { path: path.to_owned(), no, init: init_of_damaged(bytes), source };
    let record = record::decode(bytes).map_err(bad)?;
    if record.no != no {
        return Err(bad(serde::de::Error::custom(format!("it contains the number {}", record.no))));
    }
    Ok(record)
}

fn owner_key(no: OwnerNo) -> [u8; 9] {
    let mut key = [OWNERS; 9];
    key[1..].copy_from_slice(&no.0.to_be_bytes());
    key
}

/// Container ids do not contain zero bytes, so that no id is a prefix of another one's key. 255 bytes fit into LMDB's
/// limit of 511.
fn container_prefix(id: &ContainerId) -> Vec<u8> {
    [&[CONTAINERS], id.as_str().as_bytes(), &[0]].concat()
}

/// The key of a container's record in the index of containers.
pub(super) fn container_key(id: &ContainerId, no: OwnerNo) -> Vec<u8> {
    [&container_prefix(id)[..], &no.0.to_be_bytes()].concat()
}

fn netns_prefix(cookie: u64) -> Vec<u8> {
    [&[NETNS][..], &cookie.to_be_bytes()].concat()
}

fn id_prefix(index: u8, id: u32) -> Vec<u8> {
    [&[index][..], &id.to_be_bytes()].concat()
}

fn phase_byte(phase: Phase) -> u8 {
    match phase {
        Phase::Pending => b'p',
        Phase::Ready => b'r',
        Phase::Releasing => b'l',
        Phase::Failed => b'f',
    }
}

/// The key of an owner in the phase index, which sorts the oldest change first.
fn phase_key(phase: Phase, changed: u64, no: OwnerNo) -> Vec<u8> {
    [&[PHASES, phase_byte(phase)][..], &changed.to_be_bytes(), &no.0.to_be_bytes()].concat()
}

/// The key for a position in the phase index.
fn key_at(phase: Phase, place: u128) -> Vec<u8> {
    [&[PHASES, phase_byte(phase)][..], &place.to_be_bytes()].concat()
}

/// A pseudo-random number derived from `turn` and `step` (splitmix64).
fn random(turn: u64, step: u64) -> u128 {
    let half = |half: u64| {
        let mut mixed = turn.wrapping_mul(2 * STEPS).wrapping_add(2 * step + half).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(mixed ^ (mixed >> 31))
    };
    half(0) << 64 | half(1)
}

/// All index entries of a record, exactly those that `put` and `delete` maintain.
pub(super) fn index_keys(record: &OwnerRecord) -> Vec<Vec<u8>> {
    let no = record.no.0.to_be_bytes();
    let phase = phase_key(record.phase, record.changed, record.no);
    let name = match &record.owner {
        Owner::Container(container) => Some(container_key(&container.id, record.no)),
        Owner::Netns(netns) => Some([&netns_prefix(netns.cookie)[..], &no].concat()),
        Owner::Host(_) => None,
    };
    let entry = |index| move |id| [&id_prefix(index, id)[..], &no].concat();
    let programs = record.programs.iter().filter_map(ProgramRecord::id).map(entry(PROGRAMS));
    let links = record.links.iter().filter_map(LinkRecord::id).map(entry(LINKS));
    [phase].into_iter().chain(name).chain(programs).chain(links).collect()
}
