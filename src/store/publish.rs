//! What a committed change tells those who only watch: events, counts, and the owner's card.
//!
//! It runs while the writer's lock is still held, so that events come in the order of the commits and a card is never older
//! than the record. Nothing in it can fail a write: that is done already.

use crate::model::event::{Event, between};
use crate::model::ids::OwnerNo;
use crate::model::metrics_table;
use crate::model::metrics_table::EventKind;
use crate::model::public_owner::PublicOwner;
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::sys::clock;
use crate::sys::export::{Collecting, Export};

/// One record, before and after.
#[derive(Debug)]
pub(super) struct Change {
    pub no: OwnerNo,
    pub before: Option<OwnerRecord>,
    pub after: Option<OwnerRecord>,
    /// The owner had a card, which was removed.
    pub had_owner_file: bool,
}

/// Removes the cards of owners that are about to go. Before the commit: a process that is killed in between leaves an owner without
/// a card, which the next release of it does not miss, and never a card without an owner, which no release would look for.
pub(super) fn remove_owner_files(export: &Export, changes: &mut [Change]) {
    for change in changes.iter_mut().filter(|change| change.after.is_none()) {
        change.had_owner_file = export.remove_owner_file(change.no.0);
    }
}

/// Brings those cards back: nothing was committed.
pub(super) fn restore_owner_files(export: &Export, changes: &[Change]) {
    for Change { no, before, had_owner_file, .. } in changes {
        if let (Some(before), true) = (before, *had_owner_file) {
            export.put_owner_file(no.0, &public_owner_of(before));
        }
    }
}

fn public_owner_of(record: &OwnerRecord) -> Vec<u8> {
    serde_json::to_vec(&PublicOwner::of(record)).expect("a card is made of strings and numbers")
}

/// Tells it.
pub(super) fn publish(export: &Export, changes: &[Change]) {
    let mut lines = String::new();
    for Change { no, before, after, had_owner_file } in changes {
        let acquired = match after {
            Some(record) if record.phase == Phase::Ready => {
                export.put_owner_file(no.0, &public_owner_of(record));
                true
            }
            // What is being released keeps its card, which says that it was there, until its record goes.
            Some(_) => false,
            None => *had_owner_file,
        };
        for mut event in between(before.as_ref(), after.as_ref(), acquired, Collecting::is_on()) {
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
    matches!(record.owner, Owner::Container { .. }) && record.bpffs.as_ref().is_some_and(|bpffs| bpffs.delegation.is_some())
}
