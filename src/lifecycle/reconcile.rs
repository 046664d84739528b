//! Comparing records, pins and living containers, and releasing the dead: `gc`.

use std::time::Duration;

use serde::Serialize;

use crate::kernel::Kernel;
use crate::lifecycle::by_hand::unfinished;
use crate::lifecycle::host::Host;
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::ids::{OwnerNo, ProcessIdentity};
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::model::series::{self, Collected};
use crate::store::{Damaged, ReadTxn, Store, StoreError};
use crate::sys::error::chain;
use crate::sys::export;

/// How long a failed request stays visible.
pub const FAILED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Failed requests that are kept at most.
pub const FAILED_MAX: usize = 1000;

/// Living owners that a start of a container looks at in passing.
const PASSING: usize = 8;

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every record and every pin: `bpfman-hook gc`.
    All,
    /// Unfinished records and a few others: at the start of a container.
    InPassing,
}

/// What to do with the findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Release them.
    Release,
    /// Only tell: `--dry-run`.
    Tell,
}

/// One thing that gc found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The record's number, or that of the directory without a record.
    pub no: OwnerNo,
    /// What it is.
    pub what: String,
    /// Why it has to go.
    pub why: String,
    /// What was done: `released`, `left`, `would be released`, or what was in the way.
    pub result: String,
    /// Something is left that should be gone.
    #[serde(skip)]
    pub failed: bool,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Finds and releases what is owned by the dead. An owner whose actor lives is never touched.
    ///
    /// # Errors
    /// Only where the store or our bpffs cannot be read; what cannot be released is in the findings.
    pub fn reconcile(&self, depth: Depth, mode: Mode) -> Result<Vec<Finding>, Cause> {
        // Directories before records: a record is written before its directory is made, so a directory that is seen
        // here and has no record afterwards was left by a release that could not finish.
        let directories = match depth {
            Depth::All => self.kernel.directories(self.fs)?,
            Depth::InPassing => Vec::new(),
        };
        let _collecting = export::Collecting::begin();
        let mut findings = Vec::new();
        let records = match depth {
            Depth::All => {
                let (records, damaged) = read_all(self.store)?;
                for (no, error) in &damaged {
                    let no = *no;
                    let (result, failed) = match (self.keeps(no, error, &records, &damaged)?, mode) {
                        (Some(why), _) => (format!("left: {why}"), false),
                        (None, Mode::Tell) => ("would be released".to_owned(), false),
                        (None, Mode::Release) => outcome(self.discard(no)?),
                    };
                    findings.push(Finding { no, what: format!("record {no}"), why: chain(error), result, failed });
                }
                records
            }
            Depth::InPassing => self.sample()?,
        };
        for record in &records {
            match self.judge(record, mode) {
                Ok(found) => findings.extend(found),
                // One owner of which it cannot be told is no reason to leave all the others.
                Err(error @ (Cause::Host(_) | Cause::Store(StoreError::Record { .. }))) => findings.push(Finding {
                    no: record.no,
                    what: describe(&record.owner),
                    why: format!("it could not be found out whether it lives: {}", chain(&error)),
                    result: "left".to_owned(),
                    failed: true,
                }),
                Err(error) => return Err(error),
            }
        }
        let known = |no: &OwnerNo| records.iter().any(|record| record.no == *no);
        for no in directories.into_iter().filter(|no| !known(no)) {
            if !self.store.read(|txn| txn.has(no))? {
                findings.push(self.orphan(no, mode));
            }
        }
        if mode == Mode::Release {
            let oldest = self.host.now().saturating_sub(FAILED_KEPT.as_secs());
            self.store.write::<_, StoreError>(|txn| {
                if depth == Depth::All
                    && let Some(export) = export::here()
                {
                    export.remove_unfinished();
                }
                txn.prune_failed(oldest, FAILED_MAX)
            })?;
            for finding in &findings {
                let result =
                    if finding.failed || finding.result.starts_with("left") { Collected::Left } else { Collected::Released };
                export::count(series::gc(result), 1);
            }
            if depth == Depth::All
                && let Some(export) = export::here()
            {
                // Cards of a process that died between its commit and the card. Listed before the records are looked at, and
                // numbers never come back, so that no new owner loses its card.
                let cards = export.cards();
                let known = self.store.read(|txn: &ReadTxn<'_>| txn.numbers())?;
                cards.iter().filter(|no| !known.contains(&OwnerNo(**no))).for_each(|no| _ = export.remove_card(*no));
            }
        }
        Ok(findings)
    }

    /// Every unfinished owner, and a few of the others, which the clock chooses.
    fn sample(&self) -> Result<Vec<OwnerRecord>, Cause> {
        Ok(self.store.read::<_, StoreError>(|txn| {
            let mut numbers = txn.phases(Phase::Pending)?;
            numbers.extend(txn.phases(Phase::Releasing)?);
            numbers.extend(txn.some_in_phase(Phase::Ready, self.host.now(), PASSING)?);
            let records = numbers.into_iter().filter_map(|no| txn.get(no).transpose());
            // A record that does not decode is `gc`'s business, not a start's.
            Ok::<_, StoreError>(records.filter_map(Result::ok).collect())
        })?)
    }

    /// Why an owner is dead, or None.
    pub fn is_dead(&self, record: &OwnerRecord) -> Result<Option<String>, Cause> {
        match record.phase {
            Phase::Failed => match record.init.filter(|_| record.missed) {
                Some(init) if !self.host.is_alive(&init)? => Ok(Some(format!("its init, process {}, is gone", init.pid))),
                _ => Ok(None),
            },
            Phase::Pending | Phase::Releasing => {
                let pid = record.actor.process.pid;
                if record.actor.process == self.host.me() || self.host.is_alive(&record.actor.process)? {
                    return Ok(None);
                }
                let doing = if record.phase == Phase::Pending { "loading" } else { "releasing" };
                Ok(Some(format!("process {pid} died while {doing} it")))
            }
            Phase::Ready => match &record.owner {
                Owner::Container { .. } => match record.init {
                    Some(init) if self.host.is_alive(&init)? => Ok(None),
                    Some(init) => Ok(Some(format!("its init, process {}, is gone", init.pid))),
                    None => Ok(Some("it has no init".to_owned())),
                },
                Owner::Netns { .. } => {
                    let held = self.store.read::<_, StoreError>(|txn| {
                        record.holders.iter().try_fold(false, |held, holder| Ok(held || txn.has(*holder)?))
                    })?;
                    Ok(match record.keeper {
                        _ if held || self.is_kept(record) => None,
                        None => Some("no container holds it".to_owned()),
                        Some(_) => Some("its pod is gone".to_owned()),
                    })
                }
                Owner::Host { .. } => Ok(None),
            },
        }
    }

    /// Finds out whether an owner is dead, and releases it.
    fn judge(&self, record: &OwnerRecord, mode: Mode) -> Result<Option<Finding>, Cause> {
        let Some(why) = self.is_dead(record)? else { return self.judge_unfinished(record, mode) };
        let (result, failed) = match mode {
            Mode::Tell => ("would be released".to_owned(), false),
            Mode::Release => outcome(self.release(record)?),
        };
        Ok(Some(Finding { no: record.no, what: describe(&record.owner), why, result, failed }))
    }

    /// Removes from what was loaded by hand the link or program that a process was at work on when it died.
    fn judge_unfinished(&self, record: &OwnerRecord, mode: Mode) -> Result<Option<Finding>, Cause> {
        let by_hand = record.phase == Phase::Ready && matches!(record.owner, Owner::Host { .. }) && unfinished(record);
        let worker = record.actor.process;
        if !by_hand || worker == self.host.me() || self.host.is_alive(&worker)? {
            return Ok(None);
        }
        let (result, failed) = match mode {
            Mode::Tell => ("would be removed".to_owned(), false),
            Mode::Release => match self.drop_unfinished(record) {
                Ok(true) => ("removed".to_owned(), false),
                Ok(false) => ("left: it has changed meanwhile".to_owned(), false),
                Err(error @ Cause::Kernel(_)) => (format!("left: {}", chain(&error)), true),
                Err(error) => return Err(error),
            },
        };
        let what = format!("an unfinished link or program of {}", describe(&record.owner));
        let why = format!("process {} died while it was at work on it", worker.pid);
        Ok(Some(Finding { no: record.no, what, why, result, failed }))
    }

    /// Why what belongs to a record that does not decode has to stay: a living container uses it.
    fn keeps(
        &self,
        no: OwnerNo,
        error: &StoreError,
        records: &[OwnerRecord],
        damaged: &Damaged,
    ) -> Result<Option<String>, Cause> {
        if let Some(init) = init_of(error) {
            return Ok(self.host.is_alive(&init)?.then(|| format!("process {} lives, its container's init", init.pid)));
        }
        // A pod's network namespace has no init; its containers say that they hold it.
        if let Some(holder) = records.iter().find(|record| record.holds.contains(&no)) {
            return Ok(Some(format!("owner {} holds it", holder.no)));
        }
        // What another record holds that does not decode either is unknown, as after a change of the schema.
        for (other, init) in damaged.iter().filter_map(|(other, error)| Some((other, init_of(error)?))) {
            if self.host.is_alive(&init)? {
                return Ok(Some(format!("owner {other} may hold it, whose container lives (process {})", init.pid)));
            }
        }
        Ok(None)
    }

    fn orphan(&self, no: OwnerNo, mode: Mode) -> Finding {
        let directory = self.fs.join(no.directory());
        let (result, failed) = match mode {
            Mode::Tell => ("would be removed".to_owned(), false),
            Mode::Release => match self.kernel.remove_directory(&directory) {
                Ok(()) => ("removed".to_owned(), false),
                Err(error) => (format!("left: {}", chain(&error)), true),
            },
        };
        Finding { no, what: format!("pins in {}", directory.display()), why: "no record names them".to_owned(), result, failed }
    }
}

/// The init that a record which does not decode still names.
fn init_of(error: &StoreError) -> Option<ProcessIdentity> {
    match error {
        StoreError::Record { init, .. } => *init,
        _ => None,
    }
}

/// What became of an owner, in words, and whether something is left that should be gone.
fn outcome(released: Released) -> (String, bool) {
    let failed = matches!(released, Released::Partly(_) | Released::Unrecorded(_));
    let words = match released {
        Released::Gone | Released::Absent => "released".to_owned(),
        Released::Busy(pid) => format!("left: process {pid} is at work on it"),
        Released::Alive(pid) => format!("left: process {pid} lives"),
        Released::Changed => "left: it has changed meanwhile".to_owned(),
        Released::Held(holder) => format!("left: owner {holder} holds it"),
        Released::Partly(errors) => format!("not wholly released: {errors}"),
        Released::Unrecorded(error) => format!("left: what it owned is gone, its record is not: {}", chain(&error)),
    };
    (words, failed)
}

/// Every record, and the numbers of those that do not decode.
///
/// # Errors
/// Where the store as a whole cannot be read.
pub fn read_all(store: &Store) -> Result<(Vec<OwnerRecord>, Damaged), StoreError> {
    store.read(|txn: &ReadTxn<'_>| txn.every())
}

/// An owner in words.
pub fn describe(owner: &Owner) -> String {
    match owner {
        Owner::Container { id, .. } => format!("container {id}"),
        Owner::Netns { cookie, sandbox: Some(sandbox) } => format!("network namespace {cookie} of sandbox {sandbox}"),
        Owner::Netns { cookie, sandbox: None } => format!("network namespace {cookie}"),
        Owner::Host { application: Some(application), .. } => format!("application {application}"),
        Owner::Host { .. } => "the host".to_owned(),
    }
}
