//! Parts that all stages share: deadlines, capabilities, the OCI state on standard input, and errors.

use std::io::Read as _;
use std::time::Duration;

use crate::lifecycle::error::Cause;
use crate::model::ids::ContainerId;
use crate::model::metrics_table;
use crate::model::metrics_table::{Outcome, Reason, Stage};
use crate::model::state::OciState;
use crate::output::report::{LATE, Report, fit};
use crate::store::StoreError;
use crate::sys::caps::Capability;
use crate::sys::deadline::Deadline;
use crate::sys::error::chain;
use crate::sys::export;

/// The hook's own deadline: shorter than the `timeout` of the hook files (30 s), so that the hook can undo its changes
/// before the runtime kills it.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// Time after the deadline to undo changes; both together are shorter than the hook files' timeout.
pub const UNDOING: Duration = Duration::from_secs(3);

/// Maximum part of the deadline for fetching.
pub const FETCH: Duration = Duration::from_secs(20);

/// A state consists of annotations and paths; runtimes limit neither.
const STATE_MAX: u64 = 4 << 20;

/// Exit status for bad usage, annotation or policy file.
pub(super) const BAD_INPUT: u8 = 2;

/// The capabilities that `hook` keeps, and what each is for. Tests remove one at a time (tests/e2e/capabilities.rs,
/// tests/privileged/caps.rs). A capability that the caller does not have is not added.
pub const CAPABILITIES: [Capability; 12] = [
    // setns, mounts, `delegate_*`; it implies many others, but not those below.
    Capability::CAP_SYS_ADMIN,
    // For loading programs: the loading thread has at most these three.
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    // /proc/PID/ns of an init that has capabilities which this process lacks, or that is not dumpable.
    Capability::CAP_SYS_PTRACE,
    // setns into a mount namespace requires it.
    Capability::CAP_SYS_CHROOT,
    // A bundle, or a mount point to be created, in a directory of another user.
    Capability::CAP_DAC_OVERRIDE,
    // Map files belong to the workload's user, even without a user namespace.
    Capability::CAP_CHOWN,
    // The children that fetch or enter user namespaces run under other ids: switching to these ids, and killing the
    // children.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
    // The fetch child locks its securebits with it, so that it cannot regain capabilities.
    Capability::CAP_SETPCAP,
];

/// Why a container does not start, and the exit status.
pub(super) struct StageFailure {
    pub(super) sentence: String,
    pub(super) status: u8,
    pub(super) reason: Reason,
}

impl<E: std::error::Error + 'static> From<E> for StageFailure {
    fn from(error: E) -> Self {
        let error: &(dyn std::error::Error + 'static) = &error;
        let reason = match error.downcast_ref::<Cause>() {
            Some(cause) => cause.class(),
            None if error.is::<StoreError>() => Reason::Store,
            None => Reason::Host,
        };
        Self { sentence: chain(error), status: 1, reason }
    }
}

impl StageFailure {
    pub(super) fn bad_input(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { sentence: chain(error), status: BAD_INPUT, reason: Reason::Input }
    }
}

/// Starts the deadline: steps check the soft end, and the hard end terminates the process with `status`.
pub(super) fn watch(report: &Report, id: &ContainerId, stage: Stage, status: u8) -> Result<Deadline, StageFailure> {
    let (report, id) = (report.clone(), id.to_string());
    Ok(Deadline::start(DEADLINE, UNDOING, status, &format!("bpfman-hook: {LATE}"), move || {
        report.late(&id);
        export::observe(metrics_table::run(stage, Outcome::Late), DEADLINE + UNDOING);
    })?)
}

/// The OCI state on standard input.
pub(super) fn read_state() -> Result<OciState, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(STATE_MAX + 1).read_to_string(&mut text);
    if let Err(error) = read {
        return Err(format!("read the container's state from standard input: {error}"));
    }
    if text.len() as u64 > STATE_MAX {
        return Err("read the container's state from standard input: it is larger than 4 MiB".to_owned());
    }
    OciState::parse(&text).map_err(|e| fit(&chain(&e), 280))
}
