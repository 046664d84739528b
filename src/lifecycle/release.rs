//! Undoing everything that one owner's record names; also the rollback of acquire.

use std::collections::BTreeSet;

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle, ReleaseErrors};
use crate::model::ids::{ContainerId, OwnerNo};
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::store::StoreError;

/// What became of an owner.
#[derive(Debug)]
pub enum Released {
    /// Nothing of it is left.
    Gone,
    /// There was no record of it.
    Absent,
    /// A living process works on it; it was left alone.
    Busy(crate::model::ids::Pid),
    /// Its container's init still runs; it was left alone.
    Alive(crate::model::ids::Pid),
    /// A network namespace that this container still holds; it was left alone.
    Held(OwnerNo),
    /// Some steps failed; the record keeps what is left.
    Partly(ReleaseErrors),
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Releases whatever a stopped container owns. Every record of the id is looked at: one whose init or actor still
    /// lives stays, a failed one stays as an answer to "why did it not start".
    ///
    /// # Errors
    /// Only where the store cannot be read or written; steps that fail are in the result.
    pub fn release_container(&self, id: &ContainerId) -> Result<Vec<(OwnerNo, Released)>, Cause> {
        let records = self.store.read::<_, StoreError>(|txn| txn.by_container(id))?;
        let mut results = Vec::new();
        for record in records.iter().filter(|r| r.phase != Phase::Failed) {
            let result = match record.init {
                Some(init) if self.host.is_alive(&init)? => Released::Alive(init.pid),
                _ => self.release(record.no)?,
            };
            results.push((record.no, result));
        }
        Ok(results)
    }

    /// Releases one owner: links, programs, maps, the directory, the record. Idempotent, and never stops half-way.
    ///
    /// # Errors
    /// Only where the store cannot be read or written; steps that fail are in the result.
    pub fn release(&self, no: OwnerNo) -> Result<Released, Cause> {
        match self.store.read::<_, StoreError>(|txn| txn.get(no))? {
            Some(record) => self.release_seen(&record),
            None => Ok(Released::Absent),
        }
    }

    /// The same for a record that was read before. What was found out about it since holds only for the record as it was:
    /// an actor that is gone now may have finished its work in between, and its owner lives.
    pub(super) fn release_seen(&self, seen: &OwnerRecord) -> Result<Released, Cause> {
        let no = seen.no;
        let me = self.actor();
        if matches!(seen.phase, Phase::Pending | Phase::Releasing)
            && seen.actor.process != me.process
            && self.host.is_alive(&seen.actor.process)?
        {
            return Ok(Released::Busy(seen.actor.process.pid));
        }
        let claimed = self.store.write::<_, StoreError>(|txn| {
            let Some(mut record) = txn.get(no)? else { return Ok(None) };
            // Somebody else may have taken or finished it since we looked.
            if (record.phase, record.actor) != (seen.phase, seen.actor) {
                return Ok(Some(Err(Released::Busy(record.actor.process.pid))));
            }
            for holder in &record.holders {
                if txn.get(*holder)?.is_some() {
                    return Ok(Some(Err(Released::Held(*holder))));
                }
            }
            record.phase = Phase::Releasing;
            record.actor = me;
            record.changed = self.host.now();
            txn.put(&record)?;
            Ok(Some(Ok(record)))
        })?;
        let record = match claimed {
            None => return Ok(Released::Absent),
            Some(Err(left)) => return Ok(left),
            Some(Ok(record)) => record,
        };

        let errors = self.undo(&record);
        let (result, orphans) = self.finish(&record, errors)?;
        for orphan in orphans {
            self.release(orphan)?;
        }
        Ok(result)
    }

    /// Removes every pin that the record names, and any other in the owner's directory.
    pub(super) fn undo(&self, record: &OwnerRecord) -> ReleaseErrors {
        let directory = self.fs.join(record.no.directory());
        let mut errors = ReleaseErrors::default();
        // Links first: a program whose link is still pinned stays attached.
        let named = (record.links.iter().map(|l| &l.pin))
            .chain(record.programs.iter().map(|p| &p.pin))
            .chain(record.maps.iter().map(|m| &m.pin));
        for pin in named {
            errors.collect(self.kernel.unpin(&directory, pin));
        }
        errors.collect(self.kernel.remove_directory(&directory));
        errors
    }

    /// Deletes the record, or keeps in it what is left, and tells which network namespaces nobody holds any more.
    fn finish(&self, record: &OwnerRecord, errors: ReleaseErrors) -> Result<(Released, BTreeSet<OwnerNo>), Cause> {
        let no = record.no;
        let orphans = self.store.write::<_, StoreError>(|txn| {
            let mut orphans = BTreeSet::new();
            if !errors.0.is_empty() {
                if let Some(mut kept) = txn.get(no)? {
                    kept.leftovers = errors.sentences();
                    kept.changed = self.host.now();
                    txn.put(&kept)?;
                }
                return Ok(orphans);
            }
            txn.delete(no)?;
            for held in &record.holds {
                let Some(mut netns) = txn.get(*held)? else { continue };
                netns.holders.retain(|holder| *holder != no);
                txn.put(&netns)?;
                if netns.holders.is_empty() {
                    orphans.insert(*held);
                }
            }
            Ok(orphans)
        })?;
        let result = if errors.0.is_empty() { Released::Gone } else { Released::Partly(errors) };
        Ok((result, orphans))
    }

    /// Undoes a failed acquire and keeps the reason: the record stays as Failed, without objects.
    pub(super) fn fail(&self, record: &OwnerRecord, sentence: &str) -> Result<(), Cause> {
        let mut failed = record.clone();
        if let Released::Partly(errors) = self.release(record.no)? {
            // gc retries from the record; the reason for the failure goes with it.
            self.store.write::<_, StoreError>(|txn| {
                if let Some(mut kept) = txn.get(record.no)? {
                    kept.failure = Some(sentence.to_owned());
                    kept.leftovers = errors.sentences();
                    txn.put(&kept)?;
                }
                Ok(())
            })?;
            return Ok(());
        }
        failed.phase = Phase::Failed;
        failed.programs.clear();
        failed.maps.clear();
        failed.links.clear();
        failed.holds.clear();
        failed.bpffs = None;
        failed.failure = Some(sentence.to_owned());
        failed.changed = self.host.now();
        if matches!(failed.owner, Owner::Container { .. }) {
            self.store.write::<_, StoreError>(|txn| txn.put(&failed))?;
        }
        Ok(())
    }
}
