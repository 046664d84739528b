//! `hook createRuntime` and `hook poststop`: the OCI state on stdin, one line of at most 300 bytes on stderr.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::frontend::report::{Report, fit};
use crate::image::LinuxImages;
use crate::kernel::LinuxKernel;
use crate::lifecycle::acquire::{Acquired, Start};
use crate::lifecycle::error::chain;
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::reconcile::{Depth, Mode};
use crate::lifecycle::release::Released;
use crate::lifecycle::{Lifecycle, policy_files};
use crate::model::annotations::Request;
use crate::model::container::{Container, asks};
use crate::model::policy::Engine;
use crate::model::state::State;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::deadline::Deadline;
use crate::sys::{clock, fsutil, mounts, pid};

/// Our own deadline: shorter than the `timeout` of the hook files (30 s), so that we undo ourselves rather than be killed.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// How much of it fetching may take.
pub const FETCH: Duration = Duration::from_secs(20);

/// A state is annotations and paths; runtimes bound neither.
const STATE_MAX: u64 = 4 << 20;

/// podman's config.json has some 20 kB.
const CONFIG_MAX: u64 = 16 << 20;

/// Exit status for bad usage, annotation or policy file.
const BAD_INPUT: u8 = 2;

/// Runs at createRuntime: gives the container what it asks for, or says why not.
pub fn create_runtime(paths: &Paths, engine: Option<Engine>) -> ExitCode {
    let report = Report::new(paths);
    let state = match read_state() {
        Ok(state) => state,
        Err(sentence) => return report.refused(None, &sentence, BAD_INPUT),
    };
    if !asks(state.annotations.keys()) {
        return ExitCode::SUCCESS;
    }
    let id = state.id.to_string();
    match start(paths, &report, &state, engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { sentence, status }) => report.refused(Some(&id), &sentence, status),
    }
}

/// Runs at poststop: releases what the container owned. Always succeeds, unless its input is not a state: what could not be
/// undone stays in the record, and gc tries again.
pub fn poststop(paths: &Paths) -> ExitCode {
    let report = Report::new(paths);
    let state = match read_state() {
        Ok(state) => state,
        Err(sentence) => return report.refused(None, &sentence, BAD_INPUT),
    };
    let id = state.id.to_string();
    if let Err(sentence) = stop(paths, &report, &state) {
        report.warned(Some(&id), &sentence);
    }
    ExitCode::SUCCESS
}

struct Failed {
    sentence: String,
    status: u8,
}

impl Failed {
    fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { sentence: chain(error), status: 1 }
    }

    fn bad(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { sentence: chain(error), status: BAD_INPUT }
    }
}

fn start(paths: &Paths, report: &Report, state: &State, engine: Option<Engine>) -> Result<(), Failed> {
    let begun = Instant::now();
    let late = report.clone();
    let deadline = Deadline::start(DEADLINE, {
        let id = state.id.to_string();
        move || late.late(&id)
    });
    pid::require_initial_user_namespace().map_err(|e| Failed::new(&e))?;
    let config_path = state.bundle.join("config.json");
    let config = fsutil::read_text(&config_path, CONFIG_MAX).map_err(|e| Failed::new(&e))?;
    let container = Container::parse(state, &config, engine).map_err(|e| Failed::new(&e))?;
    let parsed = Request::parse(&container.config.annotations, container.name());
    let policy = policy_files::load(paths);

    fsutil::ensure_directory(&paths.run, 0o755).map_err(|e| Failed::new(&e))?;
    let store = Store::open(&paths.stores(), &clock::boot_id().map_err(|e| Failed::new(&e))?).map_err(|e| Failed::new(&e))?;
    let host = LinuxHost::new().map_err(|e| Failed::new(&e))?;
    let kernel = LinuxKernel::new();
    let fs = paths.bpffs();
    let lifecycle = Lifecycle {
        kernel: &kernel,
        host: &host,
        store: &store,
        fs: &fs,
        deadline: clock::boot_seconds() + DEADLINE.as_secs(),
    };
    let bad = |error: &(dyn std::error::Error + 'static)| {
        let failed = Failed::bad(error);
        lifecycle.record_refusal(&container, &failed.sentence);
        failed
    };
    let Some(request) = parsed.map_err(|e| bad(&e))? else { return Ok(()) };
    if !container.is_addressed(&request) {
        return Ok(());
    }
    let policy = policy.map_err(|e| bad(&e))?;
    mounts::ensure_bpffs(&fs).map_err(|e| {
        let failed = Failed::new(&e);
        lifecycle.record_refusal(&container, &failed.sentence);
        failed
    })?;
    match lifecycle.reconcile(Depth::InPassing, Mode::Release) {
        Ok(findings) => findings.iter().for_each(|f| report.note(None, &format!("{}: {}: {}", f.what, f.why, f.result))),
        Err(error) => report.warned(None, &chain(&error)),
    }
    let images = LinuxImages::new(&paths.cache);
    let start = Start { container: &container, request: &request, policy: &policy, fetch_until: begun + FETCH };
    let acquired = lifecycle.acquire(&images, start);
    deadline.disarm();
    match acquired {
        Ok(Acquired::Done(_) | Acquired::Already(_)) => Ok(()),
        Ok(Acquired::Without(cause)) => {
            report.warned(Some(container.id.as_str()), &format!("starts without its programs: {}", chain(&cause)));
            Ok(())
        }
        Err(cause) => Err(Failed::new(&cause)),
    }
}

fn stop(paths: &Paths, report: &Report, state: &State) -> Result<(), String> {
    let boot = clock::boot_id().map_err(|e| chain(&e))?;
    let Some(store) = Store::open_existing(&paths.stores(), &boot).map_err(|e| chain(&e))? else { return Ok(()) };
    let host = LinuxHost::new().map_err(|e| chain(&e))?;
    let kernel = LinuxKernel::new();
    let fs = paths.bpffs();
    let deadline = clock::boot_seconds() + DEADLINE.as_secs();
    let late = report.clone();
    let timer = Deadline::start(DEADLINE, {
        let id = state.id.to_string();
        move || late.late(&id)
    });
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline };
    let results = lifecycle.release_container(&state.id).map_err(|e| chain(&e));
    timer.disarm();
    let mut left = Vec::new();
    for (no, released) in results? {
        match released {
            Released::Gone | Released::Absent | Released::Held(_) => {}
            Released::Busy(pid) => left.push(format!("owner {no} is left to process {pid}, which is at work on it")),
            Released::Alive(pid) => left.push(format!("owner {no} stays, because its init, process {pid}, still runs")),
            Released::Partly(errors) => left.push(format!("release owner {no}: {errors}; gc will try again")),
        }
    }
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
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
