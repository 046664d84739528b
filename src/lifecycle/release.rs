//! Undoing everything that one owner's record names; also the rollback of acquire.

use std::collections::BTreeSet;

use crate::kernel::Kernel;
use crate::lifecycle::error::reason;
use crate::lifecycle::failures::forget_former;
use crate::lifecycle::host::Host;
use crate::lifecycle::proxy_processes;
use crate::lifecycle::{Cause, Lifecycle, ReleaseErrors};
use crate::model::event::ReleasedBy;
use crate::model::ids::{ContainerId, OwnerNo, ProcessIdentity};
use crate::model::record::{ContainerOwner, Keeper, LinkRecord, Owner, OwnerRecord, Phase};
use crate::paths::GATE;
use crate::store::{ReadTxn, StoreError};
use crate::sys::error::chain;

/// The result of a release.
#[derive(Debug)]
pub enum Released {
    /// Nothing of the owner is left.
    Gone,
    /// There was no record of it.
    Absent,
    /// A living process works on it; it was left alone.
    Busy(crate::model::ids::Pid),
    /// Its container's init still runs; it was left alone.
    Alive(crate::model::ids::Pid),
    /// It has changed since the caller looked at it; it was left alone.
    Changed,
    /// A network namespace that this container still holds; it was left alone.
    Held(OwnerNo),
    /// Some steps failed; the record keeps what is left.
    Partly(ReleaseErrors),
    /// Nothing is left but its record, which could not be written; gc removes that.
    Unrecorded(StoreError),
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Releases everything that a stopped container owns. Every record of the id is checked: a record whose init or
    /// actor still lives stays, and so does a failed one, because it answers why the container did not start.
    ///
    /// # Errors
    /// Only if the store cannot be read or written; steps that fail are in the result.
    pub fn release_container(&self, id: &ContainerId) -> Result<Vec<(OwnerNo, Released)>, Cause> {
        let numbers = self.store.read::<_, StoreError>(|txn| txn.numbers_of_container(id))?;
        let mut results = Vec::new();
        for no in numbers {
            match self.store.read::<_, StoreError>(|txn| txn.get(no)) {
                Ok(Some(record)) if record.phase == Phase::Failed => {}
                Ok(Some(record)) => {
                    let released = self.unless_alive(record.owner.init(), || self.release(&record))?;
                    results.push((no, released));
                }
                // Another process has released it since.
                Ok(None) => {}
                Err(StoreError::Record { init, .. }) => {
                    let released = self.unless_alive(init, || self.discard(no, ReleasedBy::Request))?;
                    results.push((no, released));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(results)
    }

    /// Runs `release` unless the init is still alive.
    fn unless_alive(
        &self,
        init: Option<ProcessIdentity>,
        release: impl FnOnce() -> Result<Released, Cause>,
    ) -> Result<Released, Cause> {
        match init {
            Some(init) if self.host.is_alive(&init)? => Ok(Released::Alive(init.pid)),
            _ => release(),
        }
    }

    /// Releases one owner: links, programs, maps, the directory, the record. Idempotent, and never stops half-way.
    ///
    /// `observed` is the record as it was when the caller decided that it has to go. A record that has changed since
    /// then is left alone: between the read of the record and the check of the process, a start may have been completed
    /// and its actor may have ended.
    ///
    /// # Errors
    /// Only if the store cannot be read or written; steps that fail are in the result.
    pub fn release(&self, observed: &OwnerRecord) -> Result<Released, Cause> {
        self.release_by(observed, ReleasedBy::Request)
    }

    /// [`release`](Self::release), with what releases the owner, for the event.
    pub(super) fn release_by(&self, observed: &OwnerRecord, by: ReleasedBy) -> Result<Released, Cause> {
        self.note_refused_calls(observed);
        let me = self.actor();
        if matches!(observed.phase, Phase::Pending | Phase::Releasing)
            && observed.actor.process != me.process
            && self.host.is_alive(&observed.actor.process)?
        {
            return Ok(Released::Busy(observed.actor.process.pid));
        }
        let claimed = self.store.write::<_, StoreError>(|txn| {
            let mut record = match unchanged(&txn.view(), observed)? {
                Ok(record) => record,
                Err(left) => return Ok(Err(left)),
            };
            record.phase = Phase::Releasing;
            record.actor = me;
            record.changed = self.host.now();
            txn.put(&record)?;
            Ok(Ok(record))
        });
        let record = match claimed {
            Ok(Ok(record)) => record,
            Ok(Err(left)) => return Ok(left),
            Err(error @ (StoreError::Full(_) | StoreError::Limit(_) | StoreError::GivenUp(_) | StoreError::Lmdb { .. })) => {
                return self.release_unrecorded(observed, error);
            }
            Err(error) => return Err(error.into()),
        };

        if let Some(container) = record.owner.container().filter(|container| container.proxy.is_some()) {
            proxy_processes::report(observed);
            proxy_processes::forget(&container.id);
        }
        let errors = self.undo(&record);
        let clean = errors.0.is_empty();
        let (result, orphans) = match self.finish(&record, errors, by) {
            Ok(finished) => finished,
            Err(Cause::Store(error)) if clean => return Ok(Released::Unrecorded(error)),
            Err(error) => return Err(error),
        };
        for orphan in orphans {
            if let Some(orphan) = self.store.read::<_, StoreError>(|txn| txn.get(orphan))?
                && !self.is_kept(&orphan)
            {
                self.release_by(&orphan, by)?;
            }
        }
        Ok(result)
    }

    /// Removes an owner's objects although the record cannot be written, as on a full file system: programs of dead
    /// owners must not keep running because a page is missing. No other process can change the record meanwhile. It
    /// stays as it is, for gc.
    fn release_unrecorded(&self, observed: &OwnerRecord, error: StoreError) -> Result<Released, Cause> {
        self.store.read_alone(|txn| {
            let record = match unchanged(txn, observed)? {
                Ok(record) => record,
                Err(left) => return Ok(left),
            };
            let errors = self.undo(&record);
            Ok(if errors.0.is_empty() { Released::Unrecorded(error) } else { Released::Partly(errors) })
        })
    }

    /// Whether its pod's sandbox still lives, so that the owner stays although no container holds it. If that cannot be
    /// determined, it stays too: gc asks again.
    pub(super) fn is_kept(&self, record: &OwnerRecord) -> bool {
        let Owner::Netns(netns) = &record.owner else { return false };
        let told = match netns.keeper {
            None => return false,
            Some(Keeper::Process(pause)) => self.host.is_alive(&pause).map_err(Cause::from),
            Some(Keeper::Interfaces) => {
                let directory = self.fs.join(record.no.directory());
                let has = |link: &LinkRecord| self.kernel.has_interface(&directory, &link.pin).map_err(Cause::from);
                record.links.iter().try_fold(false, |any, link| Ok(any || has(link)?))
            }
        };
        told.unwrap_or_else(|error| {
            tracing::warn!(owner = record.no.0, error = %chain(&error), "cannot determine whether a pod is alive");
            true
        })
    }

    /// Removes the objects of an owner number whose record does not decode, and the record.
    pub(super) fn discard(&self, no: OwnerNo, by: ReleasedBy) -> Result<Released, Cause> {
        let mut errors = ReleaseErrors::default();
        errors.collect(self.kernel.remove_directory(&self.fs.join(no.directory())));
        if !errors.0.is_empty() {
            return Ok(Released::Partly(errors));
        }
        self.store.write::<_, StoreError>(|txn| txn.delete_by(no, by))?;
        Ok(Released::Gone)
    }

    /// Removes every pin that the record names, and any other in the owner's directory.
    pub(super) fn undo(&self, record: &OwnerRecord) -> ReleaseErrors {
        let directory = self.fs.join(record.no.directory());
        let mut errors = ReleaseErrors::default();
        // Links first: a program whose link is still pinned stays attached.
        for link in &record.links {
            errors.collect(self.kernel.detach(&directory, link));
        }
        for pin in record.programs.iter().map(|p| &p.pin).chain(record.maps.iter().map(|m| &m.pin)) {
            errors.collect(self.kernel.unpin(&directory, pin));
        }
        errors.collect(self.kernel.remove_directory(&directory));
        if let Owner::Container(ContainerOwner { guarded: Some(guarded), .. }) = &record.owner {
            errors.collect(self.kernel.forget_token(&self.guard(), guarded));
        }
        if let Owner::Container(ContainerOwner { gated: Some(gated), .. }) = &record.owner {
            errors.collect(self.kernel.forget_executables(&self.fs.join(GATE), gated));
        }
        errors
    }

    /// Removes the pins of a record that this process no longer owns: the process that took it may have finished before
    /// the last pin was made. Pins that cannot be removed are found by gc, as a directory that no record names.
    pub(super) fn undo_unnamed(&self, record: &OwnerRecord) {
        let errors = self.undo(record);
        if !errors.0.is_empty() {
            tracing::error!(owner = record.no.0, error = %errors, "cannot undo a start whose record is gone");
        }
    }

    /// Deletes the record, or notes in it what is left, and returns the network namespaces that no owner holds any
    /// more.
    fn finish(
        &self,
        record: &OwnerRecord,
        errors: ReleaseErrors,
        by: ReleasedBy,
    ) -> Result<(Released, BTreeSet<OwnerNo>), Cause> {
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
            txn.delete_by(no, by)?;
            for held in record.owner.holds() {
                let Some(mut pod) = txn.get(*held)? else { continue };
                if let Owner::Netns(netns) = &mut pod.owner {
                    netns.holders.retain(|holder| *holder != no);
                }
                txn.put(&pod)?;
                if pod.owner.holders().is_empty() {
                    orphans.insert(*held);
                }
            }
            Ok(orphans)
        })?;
        let result = if errors.0.is_empty() { Released::Gone } else { Released::Partly(errors) };
        Ok((result, orphans))
    }

    /// Undoes a failed acquire or load. A container's record stays as Failed, with the reason and without objects.
    pub(super) fn fail(&self, record: &OwnerRecord, sentence: &str) -> Result<(), Cause> {
        let current = match self.store.read::<_, StoreError>(|txn| txn.get(record.no)) {
            Ok(Some(current)) if current.actor == self.actor() => current,
            // Another process took the record and undoes it, or has already undone it.
            Ok(_) => {
                self.undo_unnamed(record);
                return Ok(());
            }
            Err(error) => {
                self.undo_unnamed(record);
                return Err(error.into());
            }
        };
        let released = self.release(&current).inspect_err(|_| {
            // No other process touches a Pending record of ours while this process lives, even if the store has failed.
            self.undo_unnamed(record);
        })?;
        if let Released::Unrecorded(error) = released {
            return Err(error.into());
        }
        if let Released::Partly(errors) = released {
            // gc retries from the record, so the reason for the failure is kept in it.
            self.store.write::<_, StoreError>(|txn| {
                if let Some(mut kept) = txn.get(record.no)? {
                    kept.failure = Some(reason(sentence));
                    kept.verifier_log = record.verifier_log.clone();
                    kept.leftovers = errors.sentences();
                    txn.put(&kept)?;
                }
                Ok(())
            })?;
            return Ok(());
        }
        let Owner::Container(container) = &record.owner else { return Ok(()) };
        let container =
            ContainerOwner { bpffs: None, police: None, guarded: None, gated: None, holds: Vec::new(), ..container.clone() };
        let failed = OwnerRecord {
            changed: self.host.now(),
            images: record.images.clone(),
            failure: Some(reason(sentence)),
            verifier_log: record.verifier_log.clone(),
            ..OwnerRecord::new(record.no, Owner::Container(container), Phase::Failed, record.actor, record.created)
        };
        self.store.write::<_, StoreError>(|txn| {
            forget_former(txn, &failed)?;
            txn.put(&failed)
        })?;
        Ok(())
    }
}

/// The current record if it still is what the caller observed and no owner holds it; otherwise the reason to leave it.
fn unchanged(txn: &ReadTxn<'_>, observed: &OwnerRecord) -> Result<Result<OwnerRecord, Released>, StoreError> {
    let Some(record) = txn.get(observed.no)? else { return Ok(Err(Released::Absent)) };
    if (record.phase, record.actor, record.owner.init()) != (observed.phase, observed.actor, observed.owner.init()) {
        return Ok(Err(Released::Changed));
    }
    for holder in record.owner.holders() {
        if txn.has(*holder)? {
            return Ok(Err(Released::Held(*holder)));
        }
    }
    Ok(Ok(record))
}
