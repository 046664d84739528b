//! The child role `missed`: records containers that were started without our hook, and kills them if the policy says
//! so; records containers that the plugin refused. The plugin passes them to the child, and does not do this work
//! itself.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::hooks::stage;
use crate::kernel::LinuxKernel;
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::missed::MissedOutcome;
use crate::lifecycle::{Lifecycle, policy_files};
use crate::model::metrics_table;
use crate::model::metrics_table::Remedy;
use crate::model::missed::{Missed, MissedContainers};
use crate::model::policy::OnMissed;
use crate::output::error::CommandError;
use crate::output::logging;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::child::{self, Child, Output, Role};
use crate::sys::error::SysError;
use crate::sys::error::chain;
use crate::sys::fsutil::{self, read_sealed, sealed_memfd};
use crate::sys::{caps, clock, export};

/// Time limit of the child's work.
const TIME: Duration = Duration::from_secs(25);
/// Additional time before the parent gives up on the child.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum size of the message in bytes: a thousand containers with as many annotations as Kubernetes allows.
const MESSAGE_MAX: usize = 512 << 20;

/// Passes containers to a child and waits until the child has handled them. Must not run on a thread that answers a
/// runtime.
///
/// # Errors
/// If the child cannot be started, or takes too long.
pub fn deal_with(missed: &MissedContainers) -> Result<(), SysError> {
    let bytes = serde_json::to_vec(missed).expect("strings, numbers and lists are JSON");
    let deadline = Instant::now() + TIME + PATIENCE;
    let child = Child::spawn(Role::Missed, Output::Inherit)?;
    let memory = sealed_memfd("missed", &bytes)?;
    child.socket().send(b"missed", &[memory.as_fd()])?;
    // The child has already logged its errors.
    child.wait(deadline).map(|_| ())
}

/// The child's main function.
pub fn child() -> ExitCode {
    logging::to_stderr();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("handle containers that were started without bpfman-hook: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), CommandError> {
    let socket = child::parent_socket()?;
    let message = socket.recv("the containers", 64, Some(Instant::now() + PATIENCE))?;
    let Some(memory) = message.and_then(|message| message.fds.into_iter().next()) else { return Ok(()) };
    let bytes = read_sealed(memory, "the containers", MESSAGE_MAX)?;
    let told: MissedContainers = serde_json::from_slice(&bytes)?;

    let paths = told.root.as_deref().map_or_else(Paths::system, Paths::below);
    export::install(paths.export());
    caps::limit_process(&stage::CAPABILITIES)?;
    fsutil::ensure_directory(&paths.run, 0o755)?;
    let policy = policy_files::load(&paths).inspect_err(|error| tracing::warn!("{}; nothing is killed", chain(error))).ok();
    let store = Store::open(&paths.stores(), &clock::boot_id()?)?;
    let host = LinuxHost::new(Instant::now() + TIME)?;
    let deadline = clock::boot_seconds() + TIME.as_secs();
    let lifecycle = Lifecycle { kernel: &LinuxKernel, host: &host, store: &store, fs: &paths.bpffs(), deadline };
    for refused in &told.refused {
        lifecycle.record_refused(refused);
        export::count(metrics_table::refusal(refused.reason), 1);
    }
    for missed in &told.containers {
        let remedy = policy.as_ref().map_or(OnMissed::Report, |policy| missed.remedy(&policy.policy));
        let (id, place) = (&missed.id, place(missed));
        match lifecycle.missed(missed, remedy) {
            Ok(MissedOutcome::Well | MissedOutcome::Known) => {}
            Ok(MissedOutcome::New(Remedy::Reported)) if missed.token_of.is_some() => tracing::warn!(
                "container {id} ({place}) shares the user namespace of a BPF token, but was started without bpfman-hook, unchecked"
            ),
            Ok(MissedOutcome::New(Remedy::Reported)) => {
                tracing::warn!("container {id} ({place}) runs without what it requested: it was started without bpfman-hook")
            }
            Ok(MissedOutcome::New(Remedy::Killed)) => {
                tracing::warn!("container {id} ({place}) was killed: it was started without bpfman-hook")
            }
            Ok(MissedOutcome::New(Remedy::Spared)) => {
                tracing::warn!(
                    "container {id} ({place}) was started without bpfman-hook and was not killed; see bpfman-hook inspect {id}"
                );
            }
            Err(error) => tracing::error!("container {id} ({place}) was started without bpfman-hook: {}", chain(&error)),
        }
    }
    Ok(())
}

/// `namespace/pod/container`, for messages.
fn place(missed: &Missed) -> String {
    let facts = &missed.facts;
    [&facts.namespace, &facts.pod, &facts.container].map(|part| part.as_deref().unwrap_or("-")).join("/")
}
