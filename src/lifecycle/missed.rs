//! Containers that were started without us: recorded, and ended where policy says so.

use crate::kernel::Kernel;
use crate::lifecycle::error::reason;
use crate::lifecycle::host::{Host, HostError};
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::ids::{OwnerNo, ProcessIdentity};
use crate::model::metrics_table;
use crate::model::metrics_table::Remedy;
use crate::model::missed::Missed;
use crate::model::policy::OnMissed;
use crate::model::record::{Owner, OwnerRecord, Phase, Workload};
use crate::store::StoreError;
use crate::sys::error::chain;
use crate::sys::export;
use crate::sys::pid::ProcessError;

/// What became of a container that seemed to have been started without us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedOutcome {
    /// It has ended, or has what it asked for.
    Well,
    /// It was known already.
    Known,
    /// Something was done, and its record says what.
    New(Remedy),
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Records a container that runs without us, once, and kills its init where that is the remedy.
    ///
    /// # Errors
    /// Where its process or the store cannot be read or written. That it could not be killed is in its record.
    pub fn missed(&self, missed: &Missed, remedy: OnMissed) -> Result<MissedOutcome, Cause> {
        let process = match self.host.hold(missed.pid) {
            Ok(process) => process,
            Err(HostError::Process(ProcessError::Gone(_))) => return Ok(MissedOutcome::Well),
            Err(error) => return Err(error.into()),
        };
        let init = self.host.identity(&process);
        let records = self.store.read::<_, StoreError>(|txn| txn.by_container(&missed.id))?;
        // Where a hook of ours runs or ran for this very process, the runtime's description was not the whole truth.
        for record in records.iter().filter(|record| record.phase != Phase::Failed) {
            if record.init == Some(init) || self.host.is_alive(&record.actor.process)? && record.phase == Phase::Pending {
                return Ok(MissedOutcome::Well);
            }
        }
        let engine = missed.facts.engine.word();
        let said = match &missed.token_of {
            None => format!("{engine} started it without bpfman-hook, so that it runs without what it asked for"),
            Some(_) => format!(
                "{engine} started it without bpfman-hook, so that its capabilities were not checked, in a pod that has a BPF token"
            ),
        };
        let known = records.iter().find(|record| record.missed && record.init == Some(init));
        let (mut record, outcome) = match known {
            Some(record) => (record.clone(), MissedOutcome::Known),
            None => {
                let told = reason(&format!("{said}; delete its pod to have it started again"));
                (self.record_missed(missed, init, told)?, MissedOutcome::New(Remedy::Reported))
            }
        };
        if remedy == OnMissed::Report {
            return Ok(counted(outcome));
        }
        let (done, remedy) = match self.host.kill(&process, &missed.id, &missed.cgroups_path) {
            Ok(()) => {
                // What is left is an answer to "why did it end".
                record.missed = false;
                (format!("{said}; its init was killed, as policy says"), Remedy::Killed)
            }
            // Said once.
            Err(_) if outcome == MissedOutcome::Known => return Ok(outcome),
            Err(error) => (format!("{said}; policy says to kill it, which was not done: {}", chain(&error)), Remedy::Spared),
        };
        record.failure = Some(reason(&done));
        record.changed = self.host.now();
        self.store.write::<_, StoreError>(|txn| match txn.has(record.no)? {
            true => txn.put(&record),
            false => Ok(()),
        })?;
        Ok(counted(MissedOutcome::New(remedy)))
    }

    /// Writes the record, in the place of older failures of the same id.
    fn record_missed(&self, missed: &Missed, init: ProcessIdentity, failure: String) -> Result<OwnerRecord, Cause> {
        let facts = &missed.facts;
        let owner = Owner::Container { id: missed.id.clone(), bundle: Default::default(), runtime_user: facts.runtime_user };
        let mut record = OwnerRecord {
            phase: Phase::Failed,
            init: Some(init),
            engine: Some(facts.engine),
            workload: Some(Workload {
                namespace: facts.namespace.clone(),
                pod: facts.pod.clone(),
                container: facts.container.clone(),
            }),
            failure: Some(failure),
            missed: true,
            ..self.blank_of(owner)
        };
        self.store.write::<_, StoreError>(|txn| {
            let failed: Vec<OwnerNo> = txn
                .by_container(&missed.id)?
                .iter()
                .filter(|other| other.phase == Phase::Failed)
                .map(|other| other.no)
                .collect();
            for no in failed {
                txn.delete(no)?;
            }
            record.no = self.free_number(txn)?;
            txn.put(&record)
        })?;
        Ok(record)
    }
}

fn counted(outcome: MissedOutcome) -> MissedOutcome {
    if let MissedOutcome::New(remedy) = outcome {
        export::count(metrics_table::missed(remedy), 1);
    }
    outcome
}
