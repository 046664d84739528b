//! `hook createRuntime` and `hook poststop`: the OCI state on stdin, one line of at most 300 bytes on stderr.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::frontend::logging;
use crate::frontend::report::{LATE, Report, fit};
use crate::image::LinuxImages;
use crate::kernel::LinuxKernel;
use crate::lifecycle::acquire::{Acquired, Start};
use crate::lifecycle::error::{Cause, chain};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::lifecycle::reconcile::{Depth, Mode};
use crate::lifecycle::release::Released;
use crate::lifecycle::{Lifecycle, podman_names, registries_file};
use crate::model::annotations::Request;
use crate::model::container::{Container, PodCheck, asks};
use crate::model::ids::ContainerId;
use crate::model::policy::Engine;
use crate::model::registries::RegistryConfig;
use crate::model::series::{self, Outcome, Reason, Stage};
use crate::model::state::State;
use crate::paths::Paths;
use crate::store::{Store, StoreError};
use crate::sys::caps::{self, Capability};
use crate::sys::deadline::Deadline;
use crate::sys::{clock, export, fsutil, mounts, pid};

/// Our own deadline: shorter than the `timeout` of the hook files (30 s), so that we undo ourselves rather than be killed.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// What is left after it for undoing; both together are shorter than the hook files' timeout.
pub const UNDOING: Duration = Duration::from_secs(3);

/// How much of the deadline fetching may take.
pub const FETCH: Duration = Duration::from_secs(20);

/// A state is annotations and paths; runtimes bound neither.
const STATE_MAX: u64 = 4 << 20;

/// podman's config.json has some 20 kB.
const CONFIG_MAX: usize = 16 << 20;

/// Exit status for bad usage, annotation or policy file.
const BAD_INPUT: u8 = 2;

/// What `hook` keeps of its capabilities, for what. Tests run it with one less at a time (tests/e2e/capabilities.rs,
/// tests/privileged/caps.rs). What its caller has not given it stays away.
pub const CAPABILITIES: [Capability; 12] = [
    // setns, mounts, `delegate_*`; it stands in for many others, but not for those below.
    Capability::CAP_SYS_ADMIN,
    // What programs are loaded with: the loading thread has these three at most.
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    // /proc/PID/ns of an init that holds capabilities which we do not, or is not dumpable.
    Capability::CAP_SYS_PTRACE,
    // setns into a mount namespace asks for it.
    Capability::CAP_SYS_CHROOT,
    // A bundle, or a mount point to be made, in a directory of another user's.
    Capability::CAP_DAC_OVERRIDE,
    // Files of maps belong to the workload's user, also where there is no user namespace.
    Capability::CAP_CHOWN,
    // The children that fetch and that enter user namespaces run under other ids: becoming them, and ending them in time.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
    // The fetch child locks its secure bits with it, so that it has given up everything for good.
    Capability::CAP_SETPCAP,
];

/// What the NRI plugin, which put the hook into the container, says in its arguments, where no annotation can stand for it.
#[derive(Debug)]
pub struct PluginFacts {
    /// Labels of the pod.
    pub labels: Vec<(String, String)>,
    /// Whose capabilities are checked in its pod.
    pub pod_check: Option<PodCheck>,
}

/// Runs at createRuntime: gives the container what it asks for, or says why not.
pub fn create_runtime(paths: &Paths, engine: Option<Engine>, told: PluginFacts) -> ExitCode {
    let (report, started) = (Report::new(paths), Instant::now());
    if let Err(error) = caps::limit_process(&CAPABILITIES) {
        return report.refused(None, &chain(&error), 1);
    }
    let state = match read_state() {
        Ok(state) => state,
        Err(sentence) => return report.refused(None, &sentence, BAD_INPUT),
    };
    if !asks(state.annotations.keys()) && told.pod_check.is_none() {
        return ExitCode::SUCCESS;
    }
    let id = state.id.to_string();
    let (outcome, code) = match start(paths, &report, &state, engine, told) {
        Ok(outcome) => (outcome, ExitCode::SUCCESS),
        Err(Failed { sentence, status, reason }) => {
            export::count(series::refusal(reason), 1);
            (Outcome::Failed, report.refused(Some(&id), &sentence, status))
        }
    };
    export::observe(series::run(Stage::CreateRuntime, outcome), started.elapsed());
    code
}

/// Runs at poststop: releases what the container owned. Always succeeds, unless its input is not a state: what could not be
/// undone stays in the record, and gc tries again.
pub fn poststop(paths: &Paths) -> ExitCode {
    let (report, started) = (Report::new(paths), Instant::now());
    if let Err(error) = caps::limit_process(&CAPABILITIES) {
        // Undoing is worth more than being modest.
        report.warned(None, &chain(&error));
    }
    let state = match read_state() {
        Ok(state) => state,
        Err(sentence) => return report.refused(None, &sentence, BAD_INPUT),
    };
    let id = state.id.to_string();
    let stopped = stop(paths, &report, &state);
    let outcome = if stopped.is_ok() { Outcome::Done } else { Outcome::Failed };
    if let Err(failed) = stopped {
        report.warned(Some(&id), &failed.sentence);
    }
    export::observe(series::run(Stage::Poststop, outcome), started.elapsed());
    ExitCode::SUCCESS
}

/// Why a container does not start, and what to exit with.
struct Failed {
    sentence: String,
    status: u8,
    reason: Reason,
}

impl<E: std::error::Error + 'static> From<E> for Failed {
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

impl Failed {
    fn bad_input(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { sentence: chain(error), status: BAD_INPUT, reason: Reason::Input }
    }
}

fn start(paths: &Paths, report: &Report, state: &State, engine: Option<Engine>, told: PluginFacts) -> Result<Outcome, Failed> {
    let fetch_until = Instant::now() + FETCH;
    let deadline = watch(report, &state.id, Stage::CreateRuntime, 1)?;
    logging::to_report(paths);
    pid::require_initial_user_namespace()?;
    let config = fsutil::read_text(&state.bundle.join("config.json"), CONFIG_MAX)?;
    let mut container =
        Container::parse(state, &config, engine).map_err(|error| Failed { reason: Reason::Input, ..error.into() })?;
    container.labels = told.labels.into_iter().collect();
    container.pod_check = told.pod_check;
    container.check_pod().map_err(|error| Failed { reason: Reason::Policy, ..Failed::from(error) })?;
    if !container.asks() {
        return Ok(Outcome::Done);
    }
    if container.needs_podman_names() {
        container.podman = podman_names::names(&container);
    }
    fsutil::ensure_directory(&paths.run, 0o755)?;
    let mut store = Store::open(&paths.stores(), &clock::boot_id()?)?;
    store.give_up_by(Instant::now() + deadline.remaining());
    // A fetch that took all of its time leaves the rest of ours for the container's namespaces.
    let (host, kernel, fs) = (LinuxHost::new(Instant::now() + deadline.remaining())?, LinuxKernel, paths.bpffs());
    let soft_end = clock::boot_seconds() + deadline.remaining().as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline: soft_end };

    let prepared = prepare(paths, &container).and_then(|prepared| {
        if prepared.is_some() {
            mounts::ensure_bpffs(&fs)?;
        }
        Ok(prepared)
    });
    let (request, policy, registries) = match prepared {
        Ok(Some(prepared)) => prepared,
        Ok(None) => return Ok(Outcome::Done),
        Err(failed) => {
            lifecycle.record_refusal(&container, &failed.sentence);
            return Err(failed);
        }
    };
    match lifecycle.reconcile(Depth::InPassing, Mode::Release) {
        Ok(findings) => findings.iter().for_each(|f| report.note(None, &format!("{}: {}: {}", f.what, f.why, f.result))),
        Err(error) => report.note(None, &chain(&error)),
    }
    let images = LinuxImages::new(&paths.cache, Path::new("/")).configured_below(paths.root());
    let start = Start {
        container: &container,
        request: &request,
        policy: &policy,
        registries: &registries,
        fetch_until,
        token_reach: &paths.token_reach(),
    };
    let acquired = lifecycle.acquire(&images, start)?;
    for warning in request.without_effect() {
        report.note(Some(container.id.as_str()), &warning);
    }
    match acquired {
        Acquired::Done(_) | Acquired::Already(_) => Ok(Outcome::Done),
        Acquired::Without(cause) => {
            export::count(series::refusal(cause.class()), 1);
            report.warned(Some(container.id.as_str()), &format!("starts without its programs: {}", chain(&cause)));
            Ok(Outcome::Without)
        }
    }
}

/// What strangers and the administrator wrote, parsed; None where it does not speak to this container.
fn prepare(paths: &Paths, container: &Container) -> Result<Option<(Request, LoadedPolicy, RegistryConfig)>, Failed> {
    let request = container.request().map_err(|e| Failed::bad_input(&e))?;
    let Some(request) = request else { return Ok(None) };
    let policy = policy_files::load(paths).map_err(|e| Failed::bad_input(&e))?;
    let registries = registries_file::load(paths).map_err(|e| Failed::bad_input(&e))?;
    Ok(Some((request, policy, registries)))
}

fn stop(paths: &Paths, report: &Report, state: &State) -> Result<(), Failed> {
    // A poststop that gives up exits 0 like any other: the record is there for gc.
    let deadline = watch(report, &state.id, Stage::Poststop, 0)?;
    logging::to_report(paths);
    let Some(mut store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else { return Ok(()) };
    store.give_up_by(Instant::now() + deadline.remaining());
    let (host, kernel, fs) = (LinuxHost::new(Instant::now() + deadline.remaining())?, LinuxKernel, paths.bpffs());
    let soft_end = clock::boot_seconds() + deadline.remaining().as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline: soft_end };
    mounts::require_sight_of_bpffs(&fs)?;
    let mut left = Vec::new();
    for (no, released) in lifecycle.release_container(&state.id)? {
        match released {
            Released::Gone | Released::Absent | Released::Held(_) => {}
            Released::Changed => left.push(format!("owner {no} has changed while it was looked at; gc will look again")),
            Released::Busy(pid) => left.push(format!("owner {no} is left to process {pid}, which is at work on it")),
            Released::Alive(pid) => left.push(format!("owner {no} stays, because its init, process {pid}, still runs")),
            Released::Unrecorded(error) => {
                left.push(format!("what owner {no} had is gone, its record is not: {}; gc will try again", chain(&error)));
            }
            Released::Partly(errors) => left.push(format!("release owner {no}: {errors}; gc will try again")),
        }
    }
    if left.is_empty() { Ok(()) } else { Err(Failed { sentence: left.join("; "), status: 0, reason: Reason::Kernel }) }
}

/// Starts the clock: the soft end is asked for between steps, the hard one ends the process with `status`.
fn watch(report: &Report, id: &ContainerId, stage: Stage, status: u8) -> Result<Deadline, Failed> {
    let (report, id) = (report.clone(), id.to_string());
    Ok(Deadline::start(DEADLINE, UNDOING, status, &format!("bpfman-hook: {LATE}"), move || {
        report.late(&id);
        export::observe(series::run(stage, Outcome::Late), DEADLINE + UNDOING);
    })?)
}

fn read_state() -> Result<State, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(STATE_MAX + 1).read_to_string(&mut text);
    if let Err(error) = read {
        return Err(format!("read the container's state from standard input: {error}"));
    }
    if text.len() as u64 > STATE_MAX {
        return Err("read the container's state from standard input: it is larger than 4 MiB".to_owned());
    }
    State::parse(&text).map_err(|e| fit(&chain(&e), 280))
}
