//! `hook poststop`: releases what the container owned.

use std::mem::ManuallyDrop;
use std::process::ExitCode;
use std::time::Instant;

use crate::hooks::stage::{BAD_INPUT, CAPABILITIES, StageFailure, read_state, watch};
use crate::kernel::LinuxKernel;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::release::Released;
use crate::model::metrics_table;
use crate::model::metrics_table::{Outcome, Reason, Stage};
use crate::model::state::OciState;
use crate::output::logging;
use crate::output::report::Report;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::error::chain;
use crate::sys::{caps, clock, export, mounts};

/// Runs at poststop: releases what the container owned. Always succeeds, unless its input is not a state: what cannot
/// be undone stays in the record, and gc retries.
pub fn run(paths: &Paths) -> ExitCode {
    let (report, started) = (Report::new(paths), Instant::now());
    if let Err(error) = caps::limit_process(&CAPABILITIES) {
        // Releasing is more important than dropping capabilities.
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
    export::observe(metrics_table::run(Stage::Poststop, outcome), started.elapsed());
    ExitCode::SUCCESS
}

fn stop(paths: &Paths, report: &Report, state: &OciState) -> Result<(), StageFailure> {
    // A poststop that gives up also exits with 0: the record stays for gc.
    let deadline = watch(report, &state.id, Stage::Poststop, 0)?;
    logging::to_report(paths);
    let Some(store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else { return Ok(()) };
    // As in createRuntime.
    let mut store = ManuallyDrop::new(store);
    store.give_up_by(Instant::now() + deadline.remaining());
    let (host, kernel, fs) = (LinuxHost::new(Instant::now() + deadline.remaining())?, LinuxKernel, paths.bpffs());
    let soft_end = clock::boot_seconds() + deadline.remaining().as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline: soft_end };
    mounts::require_sight_of_bpffs(&fs)?;
    let mut left = Vec::new();
    for (no, released) in lifecycle.release_container(&state.id)? {
        match released {
            Released::Gone | Released::Absent | Released::Held(_) => {}
            Released::Changed => left.push(format!("owner {no} changed in the meantime; gc will check it again")),
            Released::Busy(pid) => left.push(format!("owner {no} is left to process {pid}, which is working on it")),
            Released::Alive(pid) => left.push(format!("owner {no} stays, because its init, process {pid}, still runs")),
            Released::Unrecorded(error) => {
                left.push(format!(
                    "the objects of owner {no} were removed, but its record was not: {}; gc will retry",
                    chain(&error)
                ));
            }
            Released::Partly(errors) => left.push(format!("release owner {no}: {errors}; gc will retry")),
        }
    }
    if left.is_empty() { Ok(()) } else { Err(StageFailure { sentence: left.join("; "), status: 0, reason: Reason::Kernel }) }
}
