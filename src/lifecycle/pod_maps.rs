//! Maps that a container shares with the network programs of its pod: one object has one set of maps, the pod's.

use std::borrow::Cow;

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::annotations::MapAccess;
use crate::model::plan::{OwnerPlan, Plan};
use crate::model::record::{MapRecord, Owner, OwnerRecord};
use crate::store::{StoreError, WriteTxn};

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// The container's plan with the pins of the maps that it shares with its pod. The pod's owner is Ready and held by
    /// `record`.
    ///
    /// A map is found by the image's reference and its name: if the image's tag has moved since the pod's first
    /// container started, the pod keeps the object that it has.
    pub(super) fn with_pod_maps<'p>(&self, record: &OwnerRecord, plan: &'p OwnerPlan) -> Result<Cow<'p, OwnerPlan>, Cause> {
        if !plan.objects.iter().flat_map(|object| &object.maps).any(|map| map.from_pod) {
            return Ok(Cow::Borrowed(plan));
        }
        let pods: Vec<OwnerRecord> = self
            .store
            .read::<_, StoreError>(|txn| record.owner.holds().iter().filter_map(|no| txn.get(*no).transpose()).collect())?;
        let mut plan = plan.clone();
        for object in &mut plan.objects {
            let image = &object.image.reference;
            for map in object.maps.iter_mut().filter(|map| map.from_pod) {
                let found = pods.iter().find_map(|pod| Some((pod, map_of(pod, image, &map.name)?)));
                let (pod, shared) = found.ok_or_else(|| Cause::NoPodMap { map: map.name.clone(), image: image.clone() })?;
                map.reuse = Some(shared.pin.path(&self.fs.join(pod.no.directory())));
            }
        }
        Ok(Cow::Owned(plan))
    }
}

/// Checks the access with which a container that joins its pod's programs gets their maps. A map that is read-only for
/// one container of the pod must not be writable for another: freezing a map removes write access for everyone. Notes
/// in the pod's record which maps will be frozen.
///
/// # Errors
/// Only errors of the store. A refusal is the result.
pub(super) fn join(
    txn: &mut WriteTxn<'_>,
    record: &OwnerRecord,
    plan: &Plan,
    pod: &mut OwnerRecord,
) -> Result<Option<Cause>, StoreError> {
    for object in &plan.container.objects {
        let image = &object.image.reference;
        for map in object.maps.iter().filter(|map| map.from_pod) {
            let shown = record.maps.iter().find(|known| known.pin == map.pin).and_then(|known| known.shown.as_ref());
            let Some(asked) = shown.map(|shown| shown.access) else { continue };
            for holder in pod.owner.holders() {
                let Some(holder) = txn.get(*holder)? else { continue };
                let held = map_of(&holder, image, &map.name).and_then(|known| known.shown.as_ref());
                if let Some(held) = held.map(|shown| shown.access).filter(|held| *held != asked) {
                    return Ok(Some(refusal(&map.name, asked, &holder, held)));
                }
            }
            let Some(shared) = index_of(pod, image, &map.name).map(|at| &mut pod.maps[at]) else { continue };
            match asked {
                MapAccess::ReadOnly => shared.frozen = true,
                // The containers that had it read-only are gone, but a frozen map stays frozen.
                MapAccess::ReadWrite if shared.frozen => {
                    return Ok(Some(refusal(&map.name, asked, pod, MapAccess::ReadOnly)));
                }
                MapAccess::ReadWrite => {}
            }
        }
    }
    Ok(None)
}

fn refusal(map: &str, asked: MapAccess, holder: &OwnerRecord, held: MapAccess) -> Cause {
    let holder = match &holder.owner {
        Owner::Container(container) => container.id.to_string(),
        Owner::Netns(_) | Owner::Host(_) => "(removed since)".to_owned(),
    };
    Cause::SharedMapAccess { map: map.to_owned(), asked: word(asked), holder, held: word(held) }
}

fn word(access: MapAccess) -> &'static str {
    match access {
        MapAccess::ReadOnly => "ro",
        MapAccess::ReadWrite => "rw",
    }
}

fn map_of<'r>(record: &'r OwnerRecord, image: &str, name: &str) -> Option<&'r MapRecord> {
    index_of(record, image, name).map(|at| &record.maps[at])
}

fn index_of(record: &OwnerRecord, image: &str, name: &str) -> Option<usize> {
    record
        .maps
        .iter()
        .position(|map| map.name == name && record.images.get(map.image).is_some_and(|known| known.reference == image))
}
