//! `gc`: compares records, pins and living containers, and releases dead owners.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::event::ReleasedBy;
use crate::model::ids::OwnerNo;
use crate::model::metrics_table;
use crate::model::metrics_table::Collected;
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::store::{Sorted, StoreError};
use crate::sys::error::chain;
use crate::sys::export::{self, Export};

/// How long a failed request stays visible.
pub const FAILED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Maximum number of failed requests that are kept.
pub const FAILED_MAX: usize = 1000;

/// Number of living owners that the start of a container also checks.
const PASSING: usize = 4;

/// Maximum number of records that gc holds at once.
const AT_ONCE: usize = 256;

/// What gc does with its findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcMode {
    /// Release them.
    Release,
    /// Only report them: `--dry-run`.
    Tell,
}

/// One finding of gc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GcFinding {
    /// The number of the record, or of the directory without a record.
    pub no: OwnerNo,
    /// The object.
    pub what: String,
    /// Why it has to be released.
    pub why: String,
    /// What was done about it.
    pub result: GcResult,
}

/// What was done about a finding. In JSON it is its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcResult {
    /// It was `released` or `removed`.
    Done(&'static str),
    /// It would be `released` or `removed`: `--dry-run`.
    Planned(&'static str),
    /// It is left, for a reason that is not a failure.
    Left(String),
    /// Something is left that should have been released: the whole text.
    Failed(String),
}

impl GcResult {
    /// True if something is left that should have been released.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for GcResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(done) => f.write_str(done),
            Self::Planned(done) => write!(f, "would be {done}"),
            Self::Left(why) => write!(f, "left: {why}"),
            Self::Failed(text) => f.write_str(text),
        }
    }
}

impl Serialize for GcResult {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Finds and releases the records and pins of dead owners. An owner whose actor lives is never touched.
    ///
    /// `is_settled` tells which owners nothing has to be done about, see [`is_living`](Self::is_living). If there are
    /// many, several threads call it.
    ///
    /// # Errors
    /// Only if the store or our bpffs cannot be read; what cannot be released is in the findings.
    pub fn collect(&self, mode: GcMode, is_settled: impl Fn(&OwnerRecord) -> bool + Sync) -> Result<Vec<GcFinding>, Cause> {
        // Directories before records: a record is written before its directory is made, so a directory that is seen
        // here and has no record afterwards was left by a release that could not finish.
        let mut directories = self.kernel.directories(self.fs)?;
        let export = export::here().filter(|_| mode == GcMode::Release);
        let mut owner_files: Vec<_> = export.map(Export::owner_files).unwrap_or_default().into_iter().map(OwnerNo).collect();
        let (mut findings, mut damaged) = (Vec::new(), Vec::new());
        let Sorted { all: seen, open } = self.store.sort(is_settled)?;
        for part in open.chunks(AT_ONCE) {
            let read = |no: &OwnerNo| self.store.read(|txn| txn.get(*no)).transpose();
            for record in part.iter().filter_map(read).collect::<Vec<_>>() {
                match record {
                    Ok(record) => match self.release_or_report(&record, mode)? {
                        Some(found) => findings.push(found),
                        None if mode == GcMode::Release => self.note_refused_calls(&record),
                        None => {}
                    },
                    Err(error @ StoreError::Record { .. }) => damaged.push(error),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.release_damaged(damaged, mode, &mut findings)?;
        findings.sort_by_key(|finding| finding.no);
        self.without_record(&mut directories, &seen)?;
        if !directories.is_empty() {
            // A network namespace's directory that is removed with its last holder may be gone by now.
            let left: BTreeSet<_> = self.kernel.directories(self.fs)?.into_iter().collect();
            directories.retain(|no| left.contains(no));
        }
        findings.extend(directories.into_iter().map(|no| self.orphan(no, mode)));
        if mode == GcMode::Release {
            self.forget_old_failures(|| export.into_iter().for_each(Export::remove_unfinished))?;
            count(&findings);
            if let Some(export) = export {
                // Owner files of a process that died between its commit and the removal of the file. Numbers are never
                // reused, so that no new owner loses its file.
                self.without_record(&mut owner_files, &seen)?;
                owner_files.into_iter().for_each(|no| _ = export.remove_owner_file(no.0));
            }
        }
        Ok(findings)
    }

    /// Keeps the numbers that have no record; those in `seen`, in ascending order, had one a moment ago.
    fn without_record(&self, numbers: &mut Vec<OwnerNo>, seen: &[OwnerNo]) -> Result<(), StoreError> {
        numbers.retain(|no| seen.binary_search(no).is_err());
        self.store.read(|txn| {
            let has = numbers.iter().map(|no| txn.has(*no)).collect::<Result<Vec<_>, _>>()?;
            let mut has = has.into_iter();
            numbers.retain(|_| !has.next().unwrap_or(true));
            Ok(())
        })
    }

    /// Releases the dead among the unfinished owners and a few others, at the start of a container. The time that this
    /// takes does not grow with the number of owners.
    ///
    /// # Errors
    /// Like [`collect`](Self::collect).
    pub fn collect_in_passing(&self) -> Result<Vec<GcFinding>, Cause> {
        let mut findings = Vec::new();
        for record in self.sample()? {
            findings.extend(self.release_or_report(&record, GcMode::Release)?);
        }
        self.forget_old_failures(|| {})?;
        count(&findings);
        Ok(findings)
    }

    /// Removes failures that are old enough; `also` runs in the same transaction.
    fn forget_old_failures(&self, also: impl FnOnce()) -> Result<(), Cause> {
        let oldest = self.host.now().saturating_sub(FAILED_KEPT.as_secs());
        self.store.write::<_, StoreError>(|txn| {
            also();
            txn.prune_failed(oldest, FAILED_MAX)
        })?;
        Ok(())
    }

    /// Every unfinished owner, and a few of the others, selected by the clock.
    fn sample(&self) -> Result<Vec<OwnerRecord>, Cause> {
        Ok(self.store.read::<_, StoreError>(|txn| {
            let mut numbers = txn.phases(Phase::Pending)?;
            numbers.extend(txn.phases(Phase::Releasing)?);
            numbers.extend(txn.some_in_phase(Phase::Ready, self.host.now(), PASSING)?);
            let records = numbers.into_iter().filter_map(|no| txn.get(no).transpose());
            // gc handles records that do not decode, not a start.
            Ok::<_, StoreError>(records.filter_map(Result::ok).collect())
        })?)
    }

    /// True if the owner is alive and has nothing unfinished, so that gc has nothing to do with it. False if that cannot
    /// be determined.
    pub fn is_living(&self, record: &OwnerRecord) -> bool {
        !record.has_unfinished() && matches!(self.is_dead(record), Ok(None))
    }

    /// Why an owner is dead; None if it is alive.
    pub fn is_dead(&self, record: &OwnerRecord) -> Result<Option<String>, Cause> {
        match (record.phase, &record.owner) {
            (Phase::Failed, owner) => match owner.init().filter(|_| owner.is_missed()) {
                Some(init) if !self.host.is_alive(&init)? => Ok(Some(format!("its init, process {}, is gone", init.pid))),
                _ => Ok(None),
            },
            (Phase::Pending | Phase::Releasing, _) => {
                let pid = record.actor.process.pid;
                if record.actor.process == self.host.me() || self.host.is_alive(&record.actor.process)? {
                    return Ok(None);
                }
                let doing = if record.phase == Phase::Pending { "loading" } else { "releasing" };
                Ok(Some(format!("process {pid} died while {doing} it")))
            }
            (Phase::Ready, Owner::Container(container)) => match container.init {
                Some(init) if self.host.is_alive(&init)? => Ok(None),
                Some(init) => Ok(Some(format!("its init, process {}, is gone", init.pid))),
                None => Ok(Some("it has no init".to_owned())),
            },
            (Phase::Ready, Owner::Netns(netns)) => {
                let held = self.store.read::<_, StoreError>(|txn| {
                    netns.holders.iter().try_fold(false, |held, holder| Ok(held || txn.has(*holder)?))
                })?;
                Ok(match netns.keeper {
                    _ if held || self.is_kept(record) => None,
                    None => Some("no container holds it".to_owned()),
                    Some(_) => Some("its pod is gone".to_owned()),
                })
            }
            (Phase::Ready, Owner::Host(_)) => Ok(None),
        }
    }

    /// Determines whether an owner is dead, and releases it. An owner for which that fails does not stop the others.
    fn release_or_report(&self, record: &OwnerRecord, mode: GcMode) -> Result<Option<GcFinding>, Cause> {
        match self.decide(record, mode) {
            Err(error @ (Cause::Host(_) | Cause::Store(StoreError::Record { .. }))) => Ok(Some(GcFinding {
                no: record.no,
                what: record.owner.to_string(),
                why: format!("cannot determine whether it is alive: {}", chain(&error)),
                result: GcResult::Failed("left".to_owned()),
            })),
            observed => observed,
        }
    }

    /// Determines whether an owner is dead, and releases it.
    fn decide(&self, record: &OwnerRecord, mode: GcMode) -> Result<Option<GcFinding>, Cause> {
        let Some(why) = self.is_dead(record)? else { return self.release_unfinished(record, mode) };
        let result = match mode {
            GcMode::Tell => GcResult::Planned("released"),
            GcMode::Release => outcome(self.release_by(record, ReleasedBy::Gc)?),
        };
        Ok(Some(GcFinding { no: record.no, what: record.owner.to_string(), why, result }))
    }

    /// Removes the links and programs of a manual load that a process was working on when it died.
    fn release_unfinished(&self, record: &OwnerRecord, mode: GcMode) -> Result<Option<GcFinding>, Cause> {
        let worker = record.actor.process;
        if !record.has_unfinished() || worker == self.host.me() || self.host.is_alive(&worker)? {
            return Ok(None);
        }
        let result = match mode {
            GcMode::Tell => GcResult::Planned("removed"),
            GcMode::Release => match self.remove_unfinished(record) {
                Ok(true) => GcResult::Done("removed"),
                Ok(false) => GcResult::Left("it has changed in the meantime".to_owned()),
                Err(error @ Cause::Kernel(_)) => GcResult::Failed(format!("left: {}", chain(&error))),
                Err(error) => return Err(error),
            },
        };
        let what = format!("an unfinished link or program of {}", record.owner);
        let why = format!("process {} died while working on it", worker.pid);
        Ok(Some(GcFinding { no: record.no, what, why, result }))
    }

    /// Removes the records that do not decode, with their objects, if no living container uses them.
    fn release_damaged(&self, damaged: Vec<StoreError>, mode: GcMode, findings: &mut Vec<GcFinding>) -> Result<(), Cause> {
        if damaged.is_empty() {
            return Ok(());
        }
        let mut holders = BTreeMap::new();
        for record in self.store.records().filter_map(Result::ok) {
            holders.extend(record.owner.holds().iter().map(|held| (*held, record.no)));
        }
        // What an undecodable record holds is unknown, as after a change of the schema.
        let mut may_hold = None;
        for error in &damaged {
            if let StoreError::Record { no, init: Some(init), .. } = error
                && self.host.is_alive(init)?
            {
                may_hold = Some(format!("owner {no}, whose container is alive (process {}), may hold it", init.pid));
            }
        }
        for error in damaged {
            let StoreError::Record { no, init, .. } = &error else { continue };
            let lives = match init {
                Some(init) if self.host.is_alive(init)? => {
                    Some(format!("its container's init, process {}, is alive", init.pid))
                }
                Some(_) => None,
                // A pod's network namespace has no init; the records of its containers hold it.
                None => holders.get(no).map(|holder| format!("owner {holder} holds it")).or_else(|| may_hold.clone()),
            };
            let result = match (lives, mode) {
                (Some(why), _) => GcResult::Left(why),
                (None, GcMode::Tell) => GcResult::Planned("released"),
                (None, GcMode::Release) => outcome(self.discard(*no, ReleasedBy::Gc)?),
            };
            findings.push(GcFinding { no: *no, what: format!("record {no}"), why: chain(&error), result });
        }
        // Namespaces that only these records held are released with them.
        let told: BTreeSet<_> = findings.iter().map(|finding| finding.no).collect();
        let held = |record: &OwnerRecord| matches!(record.owner, Owner::Netns(_)) && !told.contains(&record.no);
        for record in self.store.records().filter_map(Result::ok).filter(held) {
            findings.extend(self.release_or_report(&record, mode)?);
        }
        Ok(())
    }

    fn orphan(&self, no: OwnerNo, mode: GcMode) -> GcFinding {
        let directory = self.fs.join(no.directory());
        let result = match mode {
            GcMode::Tell => GcResult::Planned("removed"),
            GcMode::Release => match self.kernel.remove_directory(&directory) {
                Ok(()) => GcResult::Done("removed"),
                Err(error) => GcResult::Failed(format!("left: {}", chain(&error))),
            },
        };
        GcFinding { no, what: format!("pins in {}", directory.display()), why: "no record names them".to_owned(), result }
    }
}

/// What came of a release.
fn outcome(released: Released) -> GcResult {
    match released {
        Released::Gone | Released::Absent => GcResult::Done("released"),
        Released::Busy(pid) => GcResult::Left(format!("process {pid} is working on it")),
        Released::Alive(pid) => GcResult::Left(format!("process {pid} is alive")),
        Released::Changed => GcResult::Left("it has changed in the meantime".to_owned()),
        Released::Held(holder) => GcResult::Left(format!("owner {holder} holds it")),
        Released::Partly(errors) => GcResult::Failed(format!("not completely released: {errors}")),
        Released::Unrecorded(error) => {
            GcResult::Failed(format!("left: its objects were removed, but its record was not: {}", chain(&error)))
        }
    }
}

/// Counts the findings for the metrics.
fn count(findings: &[GcFinding]) {
    for finding in findings {
        let result = match finding.result {
            GcResult::Done(_) | GcResult::Planned(_) => Collected::Released,
            GcResult::Left(_) | GcResult::Failed(_) => Collected::Left,
        };
        export::count(metrics_table::gc(result), 1);
    }
}
