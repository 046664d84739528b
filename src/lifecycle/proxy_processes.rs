//! The processes that serve the proxy of bpf(2): which run, and which a container has lost.
//!
//! A listener ends with its process, and cannot be had again. Nothing runs that could notice that at once: the next
//! command that looks at the container reports it.

use crate::model::event;
use crate::model::ids::ContainerId;
use crate::model::metrics_table::EventKind;
use crate::model::proxy::{ListenerOf, ProxyProcess};
use crate::model::record::{ContainerOwner, OwnerRecord, Phase};
use crate::sys::export::{self, Export};
use crate::sys::pid;

/// A process of the proxy, as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenProxy {
    /// The process.
    pub process: ProxyProcess,
    /// True if it does not run any more although its listener had not ended.
    pub lost: bool,
}

/// The mark of this process as the proxy of a container, which [`ServedListener::end`] removes.
#[derive(Debug)]
pub struct ServedListener {
    id: ContainerId,
    name: String,
}

impl ServedListener {
    /// Marks this process as the proxy of a container. Without a place for the mark, the container is served unmarked.
    pub fn begin(id: &ContainerId, of: ListenerOf) -> Option<Self> {
        let process = ProxyProcess { process: pid::own_identity().ok()?, of, reported: false };
        let (export, name) = (export::here()?, process.file_name());
        export.put_proxy(id, &name);
        Some(Self { id: id.clone(), name })
    }

    /// The listener has ended, with the last task of its filter.
    pub fn end(self) {
        if let Some(export) = export::here() {
            export.remove_proxy(&self.id, &self.name);
        }
    }
}

/// The processes of a running container; empty if it has no proxy.
pub fn of(record: &OwnerRecord) -> Vec<SeenProxy> {
    let Some((export, container)) = proxied(record) else { return Vec::new() };
    files(export, &container.id).into_iter().filter(|process| is_of(process, container)).map(seen).collect()
}

/// Writes an event for each process that a container has lost since the last time.
pub fn report(record: &OwnerRecord) {
    let Some((export, container)) = proxied(record) else { return };
    for SeenProxy { process, .. } in of(record).into_iter().filter(|seen| seen.lost && !seen.process.reported) {
        let reported = ProxyProcess { reported: true, ..process };
        if export.rename_proxy(&container.id, &process.file_name(), &reported.file_name()) {
            export.tell(EventKind::Lost, event::proxy_lost(record, &process));
        }
    }
}

/// Removes the files of processes that do not run any more: the container has ended.
pub fn forget(id: &ContainerId) {
    let Some(export) = export::here() else { return };
    for process in files(export, id).iter().filter(|process| is_lost(process)) {
        export.remove_proxy(id, &process.file_name());
    }
}

/// Removes the files of containers that have no record, and of processes that do not run any more. `is_recorded` tells
/// whether there is a record of a container.
pub fn forget_unrecorded(is_recorded: impl Fn(&ContainerId) -> bool) {
    let Some(export) = export::here() else { return };
    export.proxied_containers().iter().filter(|id| !is_recorded(id)).for_each(forget);
}

fn proxied(record: &OwnerRecord) -> Option<(&'static Export, &ContainerOwner)> {
    let container = record.owner.container().filter(|container| record.phase == Phase::Ready && container.proxy.is_some())?;
    Some((export::here()?, container))
}

fn files(export: &Export, id: &ContainerId) -> Vec<ProxyProcess> {
    let mut found: Vec<_> = export.proxies(id).iter().filter_map(|name| ProxyProcess::of_file_name(name)).collect();
    found.sort_by_key(|process| process.process.start_time);
    found
}

/// How long before the container's init a process may have been started, in clock ticks (USER_HZ): crun connects before
/// it makes the init, and has ten seconds to pass the listener.
const EARLIER: u64 = 11 * 100;

/// Whether a process was started for this container, and not for an earlier one with the same id.
fn is_of(process: &ProxyProcess, container: &ContainerOwner) -> bool {
    container.init.is_none_or(|init| process.process.start_time.saturating_add(EARLIER) >= init.start_time)
}

fn is_lost(process: &ProxyProcess) -> bool {
    process.reported || !pid::is_alive(&process.process).unwrap_or(true)
}

fn seen(process: ProxyProcess) -> SeenProxy {
    SeenProxy { process, lost: is_lost(&process) }
}
