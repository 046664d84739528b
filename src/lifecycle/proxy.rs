//! What a container was granted through the proxy of bpf(2), from the record of its createRuntime.
//!
//! The hook decides with facts that only it has: labels that the NRI plugin passes, podman's names, the origin of
//! namespaces. As with a token, what was granted holds until the container ends.

use std::collections::HashSet;
use std::time::Instant;

use crate::lifecycle::host::HostError;
use crate::model::ids::{ContainerId, OwnerNo, ProcessIdentity};
use crate::model::proxy::profile::ProxySockets;
use crate::model::proxy::usage;
use crate::model::proxy::usage::{HeldKey, HeldObject, ShownMaps};
use crate::model::proxy::{ProxyGrant, ProxyRecord};
use crate::model::record::{ContainerOwner, Owner, OwnerRecord, Phase, Workload};
use crate::paths::Paths;
use crate::store::{Store, StoreError};
use crate::sys::{SysError, clock, pid};

/// The sockets at which seccomp listeners are taken.
pub fn sockets(paths: &Paths) -> ProxySockets {
    ProxySockets { shared: paths.proxy_socket(), directory: paths.proxy_directory() }
}

/// A container with a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxiedContainer {
    /// Its record.
    pub owner: OwnerNo,
    /// Its init.
    pub init: ProcessIdentity,
    /// Its Kubernetes workload, as far as the engine states it.
    pub workload: Workload,
    /// What was loaded for it before.
    pub objects: Vec<HeldObject>,
    /// The maps that its bpffs shows.
    pub shown: ShownMaps,
    /// What it was granted.
    pub grant: ProxyGrant,
    /// The cookie of its network namespace.
    pub network: u64,
    /// The id of its own cgroup; None if it has none in the v2 hierarchy, or shares it.
    pub cgroup: Option<u64>,
}

/// Why a container has no grant.
#[derive(Debug, thiserror::Error)]
pub enum ProxyGrantError {
    /// createRuntime did not grant one.
    #[error(
        "container {id} was not granted bpf(2): it needs the annotation delegate-via=proxy when it starts, and bpfman-hook's createRuntime hook"
    )]
    None {
        /// The container.
        id: ContainerId,
    },
    /// The container's init has ended.
    #[error("the init of container {id} has ended")]
    Ended {
        /// The container.
        id: ContainerId,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The init cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// Finds the grant of a running container.
pub fn find(paths: &Paths, id: &ContainerId) -> Result<ProxiedContainer, ProxyGrantError> {
    let none = || ProxyGrantError::None { id: id.clone() };
    let store = Store::open_existing(&paths.stores(), &clock::boot_id()?)?.ok_or_else(none)?;
    let records = store.read::<_, StoreError>(|txn| txn.by_container(id))?;
    let ready = records.into_iter().find(|record| record.phase == Phase::Ready).ok_or_else(none)?;
    let shown = ready.maps.iter().filter_map(|map| Some((map.id()?, map.shown.as_ref()?.access))).collect();
    let Owner::Container(container) = ready.owner else { return Err(none()) };
    let (Some(granted), Some(init)) = (container.proxy, container.init) else { return Err(none()) };
    let ProxyRecord { grant, network, objects } = *granted;
    if !pid::is_alive(&init).map_err(HostError::from)? {
        return Err(ProxyGrantError::Ended { id: id.clone() });
    }
    let cgroup = container.cgroup.map(|cgroup| cgroup.id);
    let workload = container.workload;
    Ok(ProxiedContainer { owner: ready.no, init, workload, objects, shown, grant, network, cgroup })
}

/// Records what a container has loaded and still exists, and returns all of its objects that are recorded now: those of
/// the other processes that serve it too. None once it is no longer recorded as running.
pub fn record(
    paths: &Paths,
    container: &ProxiedContainer,
    made: &[HeldObject],
    exists: impl Fn(&HeldObject) -> bool,
) -> Result<Option<Vec<HeldObject>>, ProxyGrantError> {
    let Some(mut store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else { return Ok(None) };
    // A call of the container could be waiting. The store waits for a second at least.
    store.give_up_by(Instant::now());
    let of_container = |record: Option<OwnerRecord>| {
        record.filter(|record| record.phase == Phase::Ready && record.owner.init() == Some(container.init))
    };
    let before = of_container(store.read::<_, StoreError>(|txn| txn.get(container.owner))?);
    let recorded = before.as_ref().and_then(objects_of).unwrap_or_default();
    // Asked outside of the transaction: all containers of the host wait for its lock.
    let made_keys: HashSet<HeldKey> = made.iter().map(HeldObject::key).collect();
    let others = recorded.iter().filter(|object| !made_keys.contains(&object.key()));
    let gone: HashSet<HeldKey> = others.filter(|object| !exists(object)).map(HeldObject::key).collect();
    store.write::<_, ProxyGrantError>(|txn| {
        let Some(mut record) = of_container(txn.get(container.owner)?) else { return Ok(None) };
        let Owner::Container(ContainerOwner { proxy: Some(proxy), .. }) = &mut record.owner else { return Ok(None) };
        let now = usage::merged(&proxy.objects, made, &gone);
        if now != proxy.objects {
            proxy.objects.clone_from(&now);
            txn.put(&record)?;
        }
        Ok(Some(now))
    })
}

fn objects_of(record: &OwnerRecord) -> Option<&[HeldObject]> {
    Some(&record.owner.container()?.proxy.as_ref()?.objects)
}
