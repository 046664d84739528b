//! The child role `request`: one manual request, one reply, for services that must not do the work in their own
//! process.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::hooks::stage;
use crate::kernel::LinuxKernel;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::linux_host::LinuxHost;
use crate::model::manual::{CallerRights, Failure, FailureCode, ManualReply, ManualRequest, ManualTask, ObjectSource};
use crate::output::error::CommandError;
use crate::output::logging;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::error::SysError;
use crate::sys::error::chain;
use crate::sys::fsutil::{self, read_sealed, sealed_memfd};
use crate::sys::{caps, child, clock, export, mounts};

/// Maximum size of a request in bytes: what the services accept, encoded as JSON.
const REQUEST_MAX: usize = 32 << 20;
/// Timeout for the kernel and the store.
const LOCAL: Duration = Duration::from_secs(25);
/// Timeout for a registry.
const NETWORK: Duration = Duration::from_secs(120);

/// Timeout of a task; the parent waits slightly longer for the child.
pub fn time(task: &ManualTask) -> Duration {
    if uses_network(task) { NETWORK + LOCAL } else { LOCAL }
}

/// Whether a task may have to wait for a registry.
pub fn uses_network(task: &ManualTask) -> bool {
    match task {
        ManualTask::Pull(_) => true,
        ManualTask::Load(load) => matches!(load.source, ObjectSource::Image(_)),
        _ => false,
    }
}

/// Runs in the child: receives the request from the socket, runs it, and sends the reply.
pub fn child() -> ExitCode {
    logging::to_stderr();
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(&error), "run a request");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), SysError> {
    let socket = child::parent_socket()?;
    let what = "the request";
    let message = socket.recv(what, 64, Some(Instant::now() + LOCAL))?;
    let Some(memory) = message.and_then(|message| message.fds.into_iter().next()) else { return Ok(()) };
    let bytes = read_sealed(memory, what, REQUEST_MAX)?;
    let request: ManualRequest =
        serde_json::from_slice(&bytes).map_err(|error| SysError::Message { what, problem: error.to_string() })?;
    let paths = Paths::below(&request.root);
    // A service's requests are exported like those of every other process.
    export::install(paths.export());
    let reply = run(&paths, &request.bounds, &request.task);
    let text =
        serde_json::to_vec(&reply).map_err(|error| SysError::Message { what: "the answer", problem: error.to_string() })?;
    let memory = sealed_memfd("answer", &text)?;
    // That the reply is in the socket's queue does not mean that it has been read.
    let taken = socket.send(b"answer", &[memory.as_fd()]).and_then(|()| socket.recv("the receipt", 16, None));
    match taken {
        Ok(Some(_)) => Ok(()),
        Ok(None) => {
            undo(&paths, &request, &reply);
            Ok(())
        }
        Err(error) => {
            undo(&paths, &request, &reply);
            Err(error)
        }
    }
}

/// The client disconnected before it learned the result, so it cannot remove it itself.
fn undo(paths: &Paths, request: &ManualRequest, reply: &ManualReply) {
    let tasks: Vec<ManualTask> = match (&request.task, reply) {
        (ManualTask::Load(_), ManualReply::Programs(programs)) => {
            programs.iter().map(|program| ManualTask::Unload { program: program.kernel.id }).collect()
        }
        (ManualTask::Attach(_), ManualReply::Attached { link }) => vec![ManualTask::Detach { link: *link }],
        _ => Vec::new(),
    };
    for task in tasks {
        if let ManualReply::Failed(failure) = run(paths, &request.bounds, &task) {
            tracing::error!(error = failure.message, "undo the request of a client that disconnected");
        }
    }
}

/// Runs one task in this process.
pub fn run(paths: &Paths, bounds: &CallerRights, task: &ManualTask) -> ManualReply {
    attempt(paths, bounds, task)
        .unwrap_or_else(|error| ManualReply::Failed(Failure { code: FailureCode::Internal, message: error.to_string() }))
}

fn attempt(paths: &Paths, bounds: &CallerRights, task: &ManualTask) -> Result<ManualReply, CommandError> {
    let time = time(task);
    caps::limit_process(&stage::CAPABILITIES)?;
    fsutil::ensure_directory(&paths.run, 0o755)?;
    let store = Store::open(&paths.stores(), &clock::boot_id()?)?;
    let fs = paths.bpffs();
    if matches!(task, ManualTask::Load(_)) {
        mounts::ensure_bpffs(&fs)?;
    }
    let host = LinuxHost::new(Instant::now() + time)?;
    let lifecycle = Lifecycle {
        kernel: &LinuxKernel,
        host: &host,
        store: &store,
        fs: Path::new(&fs),
        deadline: clock::boot_seconds() + time.as_secs(),
    };
    let fetch_until = Instant::now() + if uses_network(task) { NETWORK } else { LOCAL };
    Ok(lifecycle.manual(paths, bounds, task, fetch_until))
}
