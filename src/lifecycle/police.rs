//! Policing a container: attaching the programs to its cgroup, and reading what they counted.

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::plan::PlanError;
use crate::model::police::{CountedCall, Police};
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::store::StoreError;
use crate::sys::error::chain;

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Polices a container, whose cgroup is known to be its own. `is_first`: nothing has been pinned for it yet.
    pub(super) fn police(&self, init: &H::Init, record: &OwnerRecord, police: &Police, is_first: bool) -> Result<(), Cause> {
        self.check_deadline()?;
        let directory = self.fs.join(record.no.directory());
        if is_first {
            self.kernel.make_directory(&directory).map_err(Cause::Police)?;
        }
        let cgroup = self.host.places(init).cgroup;
        let cgroup = cgroup.ok_or_else(|| PlanError::PoliceCgroup { why: "its cgroup is not open".to_owned() })?;
        self.kernel.police(&directory, police, cgroup).map_err(Cause::Police)
    }

    /// Records which calls of a policed container were refused since the last reading, from which events and metrics
    /// follow. Reads nothing for other owners. A failure is only logged: the callers go on with their own work.
    pub(super) fn note_refused_calls(&self, record: &OwnerRecord) {
        if let Err(error) = self.read_refused_calls(record) {
            tracing::warn!(owner = record.no.0, error = %chain(&error), "cannot read the counters of a policed container");
        }
    }

    fn read_refused_calls(&self, record: &OwnerRecord) -> Result<(), Cause> {
        let known = record.owner.container().and_then(|container| container.police.as_ref());
        let (Some(known), Phase::Ready) = (known, record.phase) else { return Ok(()) };
        let directory = self.fs.join(record.no.directory());
        let Some(calls) = self.kernel.policed_calls(&directory)? else { return Ok(()) };
        let refused: Vec<CountedCall> = calls.into_iter().filter(|call| call.refused > 0).collect();
        if refused == known.refused {
            return Ok(());
        }
        Ok(self.store.write::<_, StoreError>(|txn| {
            if let Some(mut current) = txn.get(record.no)?
                && current.phase == Phase::Ready
                && let Owner::Container(container) = &mut current.owner
                && let Some(police) = &mut container.police
            {
                police.refused = refused;
                txn.put(&current)?;
            }
            Ok(())
        })?)
    }
}
