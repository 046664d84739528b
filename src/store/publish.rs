//! What a committed change publishes to observers: events, metric counts and the owner file.
//!
//! It runs while the writer's lock is still held, so that events are in the order of the commits and an owner file is
//! never older than its record. It cannot fail a write, which is already committed.

use crate::model::event::{Event, ReleasedBy, between};
use crate::model::ids::OwnerNo;
use crate::model::metrics_table;
use crate::model::metrics_table::EventKind;
use crate::model::public_owner::PublicOwner;
use crate::model::record::{OwnerRecord, Phase};
use crate::sys::clock;
use crate::sys::export::Export;

/// One record before and after the change.
#[derive(Debug)]
pub(super) struct Change {
    pub no: OwnerNo,
    pub before: Option<OwnerRecord>,
    pub after: Option<OwnerRecord>,
    /// What releases the owner, if the record is deleted.
    pub by: ReleasedBy,
    /// The owner had an owner file, which was removed.
    pub had_owner_file: bool,
}

/// Removes the owner files of owners that are about to be deleted. This happens before the commit: if the process is
/// killed in between, an owner is left without a file, which its next release tolerates. There is never a file without
/// an owner, which no release would look for.
pub(super) fn remove_owner_files(export: &Export, changes: &mut [Change]) {
    for change in changes.iter_mut().filter(|change| change.after.is_none()) {
        change.had_owner_file = export.remove_owner_file(change.no.0);
    }
}

/// Restores these owner files after a failed commit.
pub(super) fn restore_owner_files(export: &Export, changes: &[Change]) {
    for Change { no, before, had_owner_file, .. } in changes {
        if let (Some(before), true) = (before, *had_owner_file) {
            export.put_owner_file(no.0, &public_owner_of(before));
        }
    }
}

fn public_owner_of(record: &OwnerRecord) -> Vec<u8> {
    serde_json::to_vec(&PublicOwner::of(record)).expect("an owner file is made of strings and numbers")
}

/// Publishes the changes.
pub(super) fn publish(export: &Export, changes: &[Change]) {
    let mut lines = String::new();
    for Change { no, before, after, by, had_owner_file } in changes {
        let acquired = match after {
            Some(record) if record.phase == Phase::Ready => {
                export.put_owner_file(no.0, &public_owner_of(record));
                true
            }
            // An owner that is being released keeps its owner file, which says that it was acquired, until its record
            // is deleted.
            Some(_) => false,
            None => *had_owner_file,
        };
        for mut event in between(before.as_ref(), after.as_ref(), acquired, *by) {
            note(export, &mut event, &mut lines);
        }
        let became_ready = acquired && after.is_some() && before.as_ref().is_none_or(|b| b.phase != Phase::Ready);
        if became_ready && after.as_ref().is_some_and(delegates) {
            export.count(metrics_table::delegation(), 1);
        }
    }
    if !lines.is_empty() {
        export.append(&lines);
    }
}

fn note(export: &Export, event: &mut Event, lines: &mut String) {
    if let Some(at) = EventKind::WORDS.iter().position(|word| *word == event.what) {
        export.count(metrics_table::MetricSlot(metrics_table::slot(2, at)), 1);
    }
    event.time = clock::utc_precise();
    lines.push_str(&serde_json::to_string(event).expect("an event is made of strings and numbers"));
    lines.push('\n');
}

fn delegates(record: &OwnerRecord) -> bool {
    let bpffs = record.owner.container().and_then(|container| container.bpffs.as_ref());
    bpffs.is_some_and(|bpffs| bpffs.delegation.is_some())
}
