//! The proxy of bpf(2) and perf_event_open(2): one process per seccomp listener, which ends with the last task of its filter.
//!
//! systemd starts it for each connection of its socket; where systemd does not run, [`own_socket`] does, for one
//! container. A runtime connects when it creates a container and for each exec.

mod account;
mod agent;
mod answers;
mod call;
mod failure;
mod granted;
mod handover;
mod notes;
mod notified;
mod outcome;
mod own_socket;
mod perf_event;
mod profile;
mod record;
mod recorder;
mod watched;

use std::process::ExitCode;
use std::time::{Duration, Instant};

pub use own_socket::{Launcher, serve as serve_own_socket};
pub use profile::run as print_profile;
pub use record::{Recorded, record};
pub use watched::watch;

use crate::lifecycle::proxy_account::ProxyAccount;
use crate::lifecycle::proxy_processes::ServedListener;
use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::sys::caps;
use crate::sys::caps::Capability;
use crate::sys::seccomp_notify::{peer_is_root, receive, take_stdin};
use agent::Agent;
use handover::{is_whole, take_listener};

/// The capabilities that the process keeps, and what each is for.
pub const CAPABILITIES: [Capability; 6] = [
    // setns into the container's network namespace; looking up objects by their ids; perf events.
    Capability::CAP_SYS_ADMIN,
    // The calls are made with these two, at host scope also with the third.
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    // Memory, descriptors and namespaces of the calling threads.
    Capability::CAP_SYS_PTRACE,
    // Their memory is a file of another user.
    Capability::CAP_DAC_OVERRIDE,
];

/// How long a runtime may take to pass its listener after it has connected.
const HANDOVER: Duration = Duration::from_secs(10);

/// Serves the listener that comes over the connection on standard input.
///
/// # Errors
/// If standard input is no connection of root, or what comes over it is not a listener for us.
pub fn serve(paths: &Paths) -> Result<ExitCode, CommandError> {
    let connection = take_stdin()?;
    caps::limit_process(&CAPABILITIES)?;
    if !peer_is_root(&connection) {
        return Err(CommandError::new("the process that connected is not root"));
    }
    let received = receive(&connection, Instant::now() + HANDOVER, is_whole)?;
    drop(connection);
    let (listener, id, of) = take_listener(received).map_err(CommandError::new)?;
    // Without the listener, which ends with this process, its calls get ENOSYS.
    let shared = ProxyAccount::join(paths, &id)?;
    // It stays if this process is killed: the container is then known to have lost its proxy.
    let served = ServedListener::begin(&id, of);
    Agent::new(paths, id, shared).run(&listener)?;
    if let Some(served) = served {
        served.end();
    }
    Ok(ExitCode::SUCCESS)
}
