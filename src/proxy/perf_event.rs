//! perf_event_open(2): copied once, judged on the copy, made with the copy.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::model::proxy::perf_event::{EVENT_ATTR_MIN, EventTarget, ProbeNumbers, WatchedTask};
use crate::model::proxy::{PerfEventCall, ProxyRefusal};
use crate::proxy::failure::{FailedCall, foreign};
use crate::proxy::granted::GrantedContainer;
use crate::proxy::outcome::Outcome;
use crate::sys::bpf::{ProbeTarget, pmu_type, proxied_event};
use crate::sys::caps::Capability;
use crate::sys::seccomp_notify::NotifiedThread;
use crate::sys::{Errno, caps};

/// Everything that a call refers to, in our memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopiedPerfEvent {
    pub(super) call: PerfEventCall,
    /// The name of a function, or the path of a file, if it has a pointer to one.
    text: Option<CString>,
}

impl CopiedPerfEvent {
    /// Copies the arguments of a call, and what they point to.
    pub(super) fn of(caller: &NotifiedThread<'_>, args: &[u64; 6]) -> Result<Self, FailedCall> {
        let length = |bytes: u64| usize::try_from(bytes).map_err(|_| Errno::TOOBIG);
        let mut bytes = caller.read(args[0], length(EVENT_ATTR_MIN)?)?;
        let more = PerfEventCall::size(&bytes)? - EVENT_ATTR_MIN;
        bytes.extend(caller.read(args[0].saturating_add(EVENT_ATTR_MIN), length(more)?)?);
        let call = PerfEventCall::new(&bytes, args)?;
        let text = match call.text(probes()) {
            None => None,
            Some((address, max)) => {
                Some(CString::from_vec_with_nul(caller.read_text(address, max)?).map_err(|_| Errno::INVAL)?)
            }
        };
        Ok(Self { call, text })
    }

    /// Bytes of the copies.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.text.as_ref().map_or(0, |text| text.as_bytes().len())
    }
}

/// CAP_PERFMON is what kernel/events/core.c asks for. Newer kernels, among them stable ones, ask for CAP_SYS_ADMIN for a
/// probe in a file (`perf_uprobe_event_init`); those of Debian and Ubuntu for every event, if kernel.perf_event_paranoid is
/// 3 or more.
const CAPABILITIES: &[Capability] = &[Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN];

/// The kernel gives these numbers once, when it starts.
fn probes() -> ProbeNumbers {
    static PROBES: OnceLock<ProbeNumbers> = OnceLock::new();
    *PROBES.get_or_init(|| ProbeNumbers { kprobe: pmu_type("kprobe"), uprobe: pmu_type("uprobe") })
}

/// Judges a call and makes it.
pub(super) fn perform(
    granted: &GrantedContainer,
    caller: &NotifiedThread<'_>,
    copied: &CopiedPerfEvent,
) -> Result<Outcome, FailedCall> {
    let call = &copied.call;
    let target = match (call.check(&granted.container.grant, probes())?, &copied.text) {
        (EventTarget::Number, _) => ProbeTarget::None,
        (EventTarget::Function, name) => ProbeTarget::Function(name.clone()),
        (EventTarget::File, Some(path)) => ProbeTarget::File(traced_file(caller, path)?),
        // The kernel answers the same to a null pointer.
        (EventTarget::File, None) => return Err(Errno::INVAL.into()),
    };
    let watched = match call.watched().ok_or(Errno::SRCH)? {
        WatchedTask::All => None,
        WatchedTask::Caller => Some(caller.tid()),
        WatchedTask::Number(number) => Some(watched_task(caller, number)?),
    };
    let opened = caps::with_only_effective(CAPABILITIES, || proxied_event(call, &target, watched));
    Ok(Outcome::Descriptor(opened.map_err(|_| Errno::PERM)??))
}

/// A file by its path in the container.
pub(super) fn traced_file(caller: &NotifiedThread<'_>, path: &CStr) -> Result<OwnedFd, FailedCall> {
    caller.file(path.to_bytes()).map_err(|errno| match errno {
        Errno::XDEV => foreign("the traced file", "its path names a process in another mount namespace"),
        other => other.into(),
    })
}

/// A task by its number in the caller's pid namespace.
pub(super) fn watched_task(caller: &NotifiedThread<'_>, number: u32) -> Result<u32, FailedCall> {
    caller.task(number).map_err(|errno| match errno {
        Errno::NOTTY => ProxyRefusal::NotPassedOn { what: "tracing of a single process, before Linux 6.11,".to_owned() }.into(),
        other => other.into(),
    })
}
