//! Containers that were started without bpfman-hook: recorded, and killed if the policy says so.

use crate::kernel::Kernel;
use crate::lifecycle::error::reason;
use crate::lifecycle::host::{Host, HostError};
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::ids::{OwnerNo, ProcessIdentity};
use crate::model::metrics_table;
use crate::model::metrics_table::Remedy;
use crate::model::missed::Missed;
use crate::model::policy::OnMissed;
use crate::model::record::{ContainerOwner, Owner, OwnerRecord, Phase};
use crate::store::StoreError;
use crate::sys::error::chain;
use crate::sys::export;
use crate::sys::pid::ProcessError;

/// The result of handling a container that seems to have been started without bpfman-hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedOutcome {
    /// The container has ended, or has what it requested.
    Well,
    /// It was already recorded.
    Known,
    /// It was handled now; its record has the details.
    New(Remedy),
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Records a container that runs without bpfman-hook, once, and kills its init if that is the remedy.
    ///
    /// # Errors
    /// If its process cannot be read, or the store cannot be read or written. A failed kill is in its record instead.
    pub fn missed(&self, missed: &Missed, remedy: OnMissed) -> Result<MissedOutcome, Cause> {
        let process = match self.host.hold(missed.pid) {
            Ok(process) => process,
            Err(HostError::Process(ProcessError::Gone(_))) => return Ok(MissedOutcome::Well),
            Err(error) => return Err(error.into()),
        };
        let init = self.host.identity(&process);
        let records = self.store.read::<_, StoreError>(|txn| txn.by_container(&missed.id))?;
        // If one of our hooks runs or ran for this very process, the runtime's description was incomplete.
        for record in records.iter().filter(|record| record.phase != Phase::Failed) {
            if record.owner.init() == Some(init) || self.host.is_alive(&record.actor.process)? && record.phase == Phase::Pending
            {
                return Ok(MissedOutcome::Well);
            }
        }
        let engine = missed.facts.engine.word();
        let said = match &missed.token_of {
            None => format!("{engine} started it without bpfman-hook, so that it runs without what it requested"),
            Some(_) => format!(
                "{engine} started it without bpfman-hook, so that its capabilities were not checked, in a pod that has a BPF token"
            ),
        };
        let known = records.iter().find(|record| record.owner.is_missed() && record.owner.init() == Some(init));
        let (mut record, outcome) = match known {
            Some(record) => (record.clone(), MissedOutcome::Known),
            None => {
                let told = reason(&format!("{said}; delete its pod so that it is started again"));
                (self.record_missed(missed, init, told)?, MissedOutcome::New(Remedy::Reported))
            }
        };
        if remedy == OnMissed::Report {
            return Ok(counted(outcome));
        }
        let (done, remedy) = match self.host.kill(&process, &missed.id, &missed.cgroups_path) {
            Ok(()) => {
                // The record that remains answers why the container ended.
                if let Owner::Container(container) = &mut record.owner {
                    container.missed = false;
                }
                (format!("{said}; its init was killed, as the policy demands"), Remedy::Killed)
            }
            // Reported once.
            Err(_) if outcome == MissedOutcome::Known => return Ok(outcome),
            Err(error) => (format!("{said}; the policy says to kill it, but that failed: {}", chain(&error)), Remedy::Spared),
        };
        record.failure = Some(reason(&done));
        record.changed = self.host.now();
        self.store.write::<_, StoreError>(|txn| match txn.has(record.no)? {
            true => txn.put(&record),
            false => Ok(()),
        })?;
        Ok(counted(MissedOutcome::New(remedy)))
    }

    /// Writes the record and replaces older failures of the same id.
    fn record_missed(&self, missed: &Missed, init: ProcessIdentity, failure: String) -> Result<OwnerRecord, Cause> {
        let container = ContainerOwner::of_facts(missed.id.clone(), &missed.facts);
        let owner = Owner::Container(ContainerOwner { init: Some(init), missed: true, ..container });
        let mut record = OwnerRecord { phase: Phase::Failed, failure: Some(failure), ..self.blank(owner) };
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
