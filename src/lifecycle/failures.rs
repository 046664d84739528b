//! Records of containers that did not get what they requested: one record for each container of a pod, however often
//! the kubelet retries.

use crate::kernel::Kernel;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::error::reason;
use crate::lifecycle::host::Host;
use crate::model::container::Container;
use crate::model::missed::RefusedContainer;
use crate::model::record::{ContainerOwner, Owner, OwnerRecord, Phase, Workload};
use crate::store::{StoreError, WriteTxn};
use crate::sys::error::chain;

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Records why a container did not get what it requested. A store error is only logged: the caller reports the
    /// reason itself.
    pub fn record_refusal(&self, container: &Container, sentence: &str) {
        self.record_failure(self.container_owner(container), sentence);
    }

    /// The same for a container that the NRI plugin refused, of which only the runtime's description is known.
    pub fn record_refused(&self, refused: &RefusedContainer) {
        self.record_failure(ContainerOwner::of_facts(refused.id.clone(), &refused.facts), &refused.sentence);
    }

    fn record_failure(&self, container: ContainerOwner, sentence: &str) {
        let blank = self.blank(Owner::Container(container));
        let mut failed = OwnerRecord { phase: Phase::Failed, failure: Some(reason(sentence)), ..blank };
        let written = self.store.write::<_, StoreError>(|txn| {
            forget_former(txn, &failed)?;
            failed.no = txn.next_no()?;
            txn.put(&failed)
        });
        if let Err(error) = written {
            tracing::warn!(owner = %failed.owner, error = %chain(&error), "cannot record a refusal");
        }
    }
}

/// Removes the failures that a new one replaces: those of the same container, and those of the same name in the same
/// pod, because the kubelet uses a new id for each attempt. A container that runs without its programs keeps its
/// record.
///
/// # Errors
/// If the store cannot be read or written.
pub(super) fn forget_former(txn: &mut WriteTxn<'_>, failed: &OwnerRecord) -> Result<(), StoreError> {
    let Owner::Container(container) = &failed.owner else { return Ok(()) };
    for record in txn.by_container(&container.id)? {
        if record.phase == Phase::Failed && record.no != failed.no {
            txn.delete(record.no)?;
        }
    }
    let named = |workload: &Workload| workload.namespace.is_some() && workload.pod.is_some() && workload.container.is_some();
    if !named(&container.workload) {
        return Ok(());
    }
    // The latest first: there is at most one, and it is usually recent.
    let mut numbers = txn.view().phases(Phase::Failed)?;
    numbers.reverse();
    for no in numbers.into_iter().filter(|no| *no != failed.no) {
        // gc handles records that do not decode.
        let Ok(Some(record)) = txn.get(no) else { continue };
        if record.owner.workload() == failed.owner.workload() && !record.owner.is_missed() {
            txn.delete(no)?;
            break;
        }
    }
    Ok(())
}
