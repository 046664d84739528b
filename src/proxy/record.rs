//! Runs a command whose calls of bpf(2) are all made and recorded, for `token profile`.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use crate::model::proxy::profile::NATIVE;
use crate::model::recording::Recording;
use crate::proxy::recorder::Recorder;
use crate::sys::SysError;
use crate::sys::context::ProcessContext;
use crate::sys::seccomp_notify::{Reported, start_observed, was_interrupted};

/// How often to look whether the command has ended.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a command did.
#[derive(Debug)]
pub struct Recorded {
    /// Its calls; those in containers that it started, if there were any there.
    pub recording: Recording,
    /// The number of calls outside of containers that are left out.
    pub left_out: u64,
    /// How it ended.
    pub status: ExitStatus,
}

/// Runs a command, `inside` the namespaces of another process if there is one, until it and everything that it started has ended, or until the user interrupts what is left of it.
///
/// # Errors
/// If the command cannot be started, or its calls cannot be received.
pub fn record(words: &[OsString], inside: Option<ProcessContext>) -> Result<Recorded, SysError> {
    let own = std::fs::metadata("/proc/self/ns/pid").map_err(SysError::io("stat", "/proc/self/ns/pid"))?.ino();
    let (mut child, listener) = start_observed(words, &NATIVE, inside)?;
    let mut recorder = Recorder::new(own);
    let mut status = None;
    loop {
        match listener.next(Some(PATIENCE))? {
            Reported::Call(call) => recorder.serve(&listener, &call),
            Reported::Nothing => {}
            Reported::End => break,
        }
        if status.is_none() {
            status = child.try_wait().map_err(SysError::io("wait for", "the command"))?;
        }
        if status.is_some() && was_interrupted() {
            break;
        }
    }
    let status = match status {
        Some(status) => status,
        None => child.wait().map_err(SysError::io("wait for", "the command"))?,
    };
    let (recording, left_out) = recorder.finish();
    Ok(Recorded { recording, left_out, status })
}
