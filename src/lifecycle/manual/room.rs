//! Limits of a caller's space in the record store. The whole host shares one store: space that a client fills is not
//! available to containers.

use crate::lifecycle::manual::ManualError;
use crate::model::manual::CallerRights;
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::store::{ReadTxn, StoreError, stored_bytes};

/// Maximum bytes of one load with its links in the store, also for root.
const RECORD_MAX: u64 = 4 << 20;

/// Why a record exceeds a limit, whether it replaces an older record of the same number or is new; None if it does not.
///
/// # Errors
/// If the store cannot be read.
pub(super) fn over_room(
    txn: &ReadTxn<'_>,
    new: &OwnerRecord,
    bounds: &CallerRights,
) -> Result<Option<ManualError>, StoreError> {
    let size = stored_bytes(new);
    let of_load = bounds.store.map_or(RECORD_MAX, |limits| limits.load.min(RECORD_MAX));
    if size > of_load {
        return Ok(Some(ManualError::LargeRecord { size, limit: of_load }));
    }
    let Some(limits) = bounds.store else { return Ok(None) };
    let (mut own, mut all) = (size, size);
    for sized in txn.sized()? {
        // gc handles damaged records.
        let Ok((record, size)) = sized else { continue };
        match &record.owner {
            Owner::Host(host) if record.no != new.no && record.phase != Phase::Failed && host.loaded.by_client => {
                all += size;
                own += if host.loaded.caller == bounds.caller { size } else { 0 };
            }
            _ => {}
        }
    }
    let caller = || bounds.caller.clone();
    Ok(if own > limits.client {
        Some(ManualError::FullOfCaller { caller: caller(), size: own, limit: limits.client })
    } else if all > limits.clients {
        Some(ManualError::FullOfClients { caller: caller(), size: all, limit: limits.clients })
    } else {
        None
    })
}
