//! Attaching and detaching.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::kernel::inspect;
use crate::kernel::{Kernel, Places};
use crate::lifecycle::host::{Host, HostError};
use crate::lifecycle::manual::room::over_room;
use crate::lifecycle::manual::{ManualError, Named};
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::{AttachPoint, Direction, Interface, NetnsRecord, ProbedProcess, ProgramKind, told_place};
use crate::model::ids::PinName;
use crate::model::manual::{Attach, AttachPlace, CallerRights};
use crate::model::plan::PlannedLink;
use crate::model::policy::ContainerLimits;
use crate::model::record::{LinkRecord, LinkState, Owner, OwnerRecord, Phase, ProgramRecord};
use crate::store::{ReadTxn, StoreError};
use crate::sys::error::chain;
use crate::sys::netns;

/// The objects that a link attaches to, held open while it is made.
#[derive(Default)]
struct Held {
    netns: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
    root: Option<OwnedFd>,
    process: Option<u32>,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    pub(super) fn attach_manual(&self, bounds: &CallerRights, attach: &Attach) -> Result<u32, ManualError> {
        let id = attach.program;
        let record = self.settle(bounds, Named::Program(id))?.ok_or(ManualError::NoProgram(id))?;
        let program = record.programs.iter().find(|p| p.id() == Some(id)).ok_or(ManualError::NoProgram(id))?;
        let (at, netns, held) = resolve(program, id, &attach.place)?;
        let order = match &attach.place {
            AttachPlace::Interface { order, .. } => Some(order.clone()),
            _ => None,
        };
        let mut link = LinkRecord {
            pin: PinName::link(0),
            program: program.pin.clone(),
            at,
            order,
            netns,
            metadata: attach.metadata.clone(),
            state: LinkState::Attaching,
        };
        // If two processes settled the record at the same moment, one of them wins, and the other finds its unfinished
        // link.
        let refuse = |view: &ReadTxn<'_>, grown: &OwnerRecord| {
            if let Some(limits) = &bounds.limits
                && let Some(over) = over_limit(view.owners()?.filter_map(Result::ok), bounds, limits)
            {
                return Ok(Some(over));
            }
            over_room(view, grown, bounds)
        };
        let taken = self.take_unless(record.no, refuse, |kept| {
            let there = kept.programs.iter().any(|p| p.id() == Some(id));
            link.pin = free_link(kept);
            kept.links.push(link.clone());
            there
        })?;
        if taken.is_none() {
            self.check_deadline()?;
            return self.attach_manual(bounds, attach);
        }
        let planned = PlannedLink {
            program: link.program.clone(),
            function: program.function.clone(),
            at: link.at.clone(),
            pin: link.pin.clone(),
            order: link.order.clone(),
            netns: link.netns.clone(),
        };
        let places = Places {
            netns: held.netns.as_ref().map(AsFd::as_fd),
            cgroup: held.cgroup.as_ref().map(AsFd::as_fd),
            root: held.root.as_ref().map(AsFd::as_fd),
            init: held.process,
        };
        let directory = self.fs.join(record.no.directory());
        let mut made = self.attach(&directory, &planned, places).map_err(ManualError::from);
        // The program that occupies the interface may belong to a dead process and not have been cleaned up yet.
        if made.as_ref().is_err_and(ManualError::is_taken) && self.remove_unfinished_of_dead().unwrap_or(false) {
            made = self.attach(&directory, &planned, places).map_err(ManualError::from);
        }
        let made = made.and_then(|made| Ok((made.id.map_or_else(|| self.filter_number(), Ok)?, made.mode)));
        let named = made.and_then(|(number, mode)| {
            let name = |kept: &mut OwnerRecord| {
                kept.links.iter_mut().filter(|l| l.pin == link.pin).for_each(|l| {
                    l.state = LinkState::Attached(Some(number));
                    l.runs_in(mode);
                });
            };
            self.change(record.no, name).map_err(ManualError::from)?;
            Ok(number)
        });
        if named.is_err() {
            // The kernel refused, or this process no longer owns the record: nothing may stay. If the cleanup fails
            // too, the record still has the link as unfinished, and the next operation, or gc, removes it.
            let undone = self.kernel.detach(&directory, &link).map_err(Cause::from);
            let undone = undone.and_then(|_| self.change(record.no, |kept| kept.links.retain(|l| l.pin != link.pin)));
            if let Err(second) = undone {
                tracing::error!(owner = record.no.0, error = %chain(&second), "cannot undo a failed attachment");
            }
        }
        named
    }

    /// An id for a filter of the traffic control layer, which has none of its own, so that it can be listed and
    /// detached like a link.
    fn filter_number(&self) -> Result<u32, ManualError> {
        let counted = self.store.write::<_, StoreError>(|txn| txn.next_no()).map_err(Cause::from)?;
        Ok(inspect::FILTERS | u32::try_from(counted.0 % u64::from(inspect::FILTERS)).expect("a remainder below 2^31"))
    }

    pub(super) fn detach_manual(&self, bounds: &CallerRights, id: u32) -> Result<(), ManualError> {
        let record = self.settle(bounds, Named::Link(id))?.ok_or(ManualError::NoLink(id))?;
        let link = record.links.iter().find(|link| link.id() == Some(id)).ok_or(ManualError::NoLink(id))?;
        // Now the link is unfinished: if this process is killed, the next operation removes it.
        let taken = self.take(record.no, |kept| match kept.links.iter_mut().find(|link| link.id() == Some(id)) {
            Some(link) => {
                link.state = LinkState::Detaching(Some(id));
                true
            }
            None => false,
        })?;
        if taken.is_none() {
            self.check_deadline()?;
            return self.detach_manual(bounds, id);
        }
        if let Err(error) = self.kernel.detach(&self.fs.join(record.no.directory()), link) {
            // It is still there, and a retry must find it by its id.
            self.change(record.no, |kept| {
                kept.links.iter_mut().filter(|l| l.pin == link.pin).for_each(|l| l.state = LinkState::Attached(Some(id)));
            })?;
            return Err(error.into());
        }
        Ok(self.change(record.no, |kept| kept.links.retain(|kept| kept.pin != link.pin))?)
    }
}

/// Why one more link would exceed the caller's limit; None if it does not.
fn over_limit(
    records: impl Iterator<Item = OwnerRecord>,
    bounds: &CallerRights,
    limits: &ContainerLimits,
) -> Option<ManualError> {
    let theirs = records.filter(|record| match &record.owner {
        Owner::Host(host) => host.loaded.caller == bounds.caller && record.phase != Phase::Failed,
        _ => false,
    });
    let links = theirs.map(|record| record.links.len()).sum::<usize>() + 1;
    let over = u32::try_from(links).map_or(true, |links| links > limits.links);
    over.then(|| ManualError::TooManyLinks { caller: bounds.caller.clone(), links, limit: limits.links })
}

/// The lowest number above all that are in use.
fn free_link(record: &OwnerRecord) -> PinName {
    let taken = |name: &PinName| record.links.iter().any(|link| link.pin == *name);
    let mut n = record.links.len() + 1;
    while taken(&PinName::link(n)) {
        n += 1;
    }
    PinName::link(n)
}

/// Resolves the names in a place.
fn resolve(
    program: &ProgramRecord,
    id: u32,
    place: &AttachPlace,
) -> Result<(AttachPoint, Option<NetnsRecord>, Held), ManualError> {
    let is = program.kind;
    let kind_is = |asked: ProgramKind| {
        if is.loads_as(asked) { Ok(()) } else { Err(ManualError::OtherKind { id, asked: asked.word(), is: is.word() }) }
    };
    match place {
        AttachPlace::Interface { kind, iface, direction, order, netns } => {
            kind_is(*kind)?;
            let path = netns.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
            let failed = |source| ManualError::File { doing: "open the network namespace", path: path.to_owned(), source };
            let namespace = netns::open(path).map_err(failed)?;
            let (cookie, known) = netns::survey(namespace.as_fd()).map_err(|e| Cause::from(HostError::from(e)))?;
            let iface = interface(iface, &known)?;
            let direction = direction.unwrap_or(Direction::Ingress);
            let at = match kind {
                ProgramKind::Xdp => AttachPoint::Xdp { iface, mode: None },
                ProgramKind::Tcx => AttachPoint::Tcx { iface, direction },
                _ => AttachPoint::Tc { iface, direction, priority: order.priority },
            };
            let record = NetnsRecord { cookie, path: netns.clone() };
            Ok((at, Some(record), Held { netns: Some(namespace), ..Held::default() }))
        }
        AttachPlace::Tracepoint(tracepoint) => {
            kind_is(ProgramKind::Tracepoint)?;
            Ok((AttachPoint::Tracepoint { tracepoint: tracepoint.clone() }, None, Held::default()))
        }
        AttachPlace::Kprobe { function, offset, ret } => {
            kind_is(ProgramKind::Kprobe)?;
            let ret = *ret || is == ProgramKind::Kretprobe;
            if ret && *offset != 0 {
                return Err(ManualError::ReturnOffset { function: function.clone() });
            }
            Ok((AttachPoint::Kprobe { function: function.clone(), offset: *offset, ret }, None, Held::default()))
        }
        AttachPlace::Uprobe { probe, ret } => {
            kind_is(ProgramKind::Uprobe)?;
            let root = match probe.container_pid {
                Some(pid) => Some(open("open the root directory of process", Path::new(&format!("/proc/{pid}/root")))?),
                None => None,
            };
            let process = match probe.process {
                ProbedProcess::Pid(pid) => Some(pid),
                ProbedProcess::Any | ProbedProcess::Init => None,
            };
            let at = AttachPoint::Uprobe { probe: probe.clone(), ret: *ret || is == ProgramKind::Uretprobe };
            Ok((at, None, Held { root, process, ..Held::default() }))
        }
        AttachPlace::Cgroup { attach, cgroup } => {
            kind_is(attach.kind())?;
            let directory = open("open the cgroup", cgroup)?;
            Ok((AttachPoint::Cgroup { attach: *attach }, None, Held { cgroup: Some(directory), ..Held::default() }))
        }
        AttachPlace::Told { kind, target, options, netns } => {
            kind_is(*kind)?;
            let target = target.as_deref().or(program.target.as_deref());
            let wrong = |remedy| ManualError::Incomplete { function: program.function.clone(), kind: kind.word(), remedy };
            let at = told_place(*kind, target, options).map_err(wrong)?;
            let mut held = Held::default();
            let mut record = None;
            if kind.on_netns() {
                let path = netns.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
                let failed = |source| ManualError::File { doing: "open the network namespace", path: path.to_owned(), source };
                let namespace = netns::open(path).map_err(failed)?;
                let cookie = netns::cookie(namespace.as_fd()).map_err(|e| Cause::from(HostError::from(e)))?;
                record = Some(NetnsRecord { cookie, path: netns.clone() });
                held.netns = Some(namespace);
            }
            if let AttachPoint::UprobeMulti { probe, .. } = &at {
                held.process = match probe.process {
                    ProbedProcess::Pid(pid) => Some(pid),
                    ProbedProcess::Any | ProbedProcess::Init => None,
                };
            }
            Ok((at, record, held))
        }
        AttachPlace::Trampoline(kind) => {
            kind_is(*kind)?;
            let function = program.target.clone().unwrap_or_default();
            let at = match is {
                ProgramKind::Lsm => AttachPoint::Lsm { hook: function },
                ProgramKind::Fexit => AttachPoint::Fexit { function },
                _ => AttachPoint::Fentry { function },
            };
            Ok((at, None, Held::default()))
        }
    }
}

fn interface(name: &str, known: &[Interface]) -> Result<Interface, ManualError> {
    known.iter().find(|iface| iface.name == name).cloned().ok_or_else(|| ManualError::NoInterface {
        iface: name.to_owned(),
        known: known.iter().map(|iface| iface.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

fn open(doing: &'static str, path: &Path) -> Result<OwnedFd, ManualError> {
    match File::open(path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(ManualError::File { doing, path: path.to_owned(), source }),
    }
}
