//! How much callers have the record store keep. The store is one for all of the host: what a client fills, no container can use.

use crate::lifecycle::manual::ManualError;
use crate::model::manual::CallerRights;
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::store::{ReadTxn, StoreError, stored_bytes};

/// The most that one load may take in the store with its links, root's included.
const RECORD_MAX: u64 = 4 << 20;

/// Why a record may not be kept, in the place of an older one of the same number or beside all others; None where it may.
///
/// # Errors
/// Where the store cannot be read.
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
        // One that is damaged is gc's business.
        let Ok((record, size)) = sized else { continue };
        match &record.owner {
            Owner::Host { loaded, .. } if record.no != new.no && record.phase != Phase::Failed && loaded.by_client => {
                all += size;
                own += if loaded.caller == bounds.caller { size } else { 0 };
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
