//! Output of a command: its result on stdout, and one line on stderr if it fails.

pub mod finding;
pub mod format;
pub mod logging;
pub mod report;
pub mod table;
pub mod view;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

/// Why the output ends early.
#[derive(Debug)]
pub enum Cut {
    /// The rest could not be determined; contains the error message.
    Unknown(String),
    /// Writing failed.
    Unwritten(io::Error),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Unwritten(error)
    }
}

impl From<serde_json::Error> for Cut {
    fn from(error: serde_json::Error) -> Self {
        Self::Unwritten(error.into())
    }
}

/// Writes a command's output to stdout while it is produced.
pub fn print_as_made(make: impl FnOnce(&mut dyn Write) -> Result<(), Cut>) -> ExitCode {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    match make(&mut out).and_then(|()| Ok(out.flush()?)) {
        Err(Cut::Unwritten(error)) => unwritten(error).map_or_else(|sentence| fail(&sentence), |()| ExitCode::SUCCESS),
        Err(Cut::Unknown(sentence)) => {
            // Output that is still in the buffer is discarded: a short result is not shown at all.
            _ = out.into_parts();
            fail(&sentence)
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Writes a command's output to stdout.
pub fn print(text: &str) -> ExitCode {
    try_print(text).map_or_else(|sentence| fail(&sentence), |()| ExitCode::SUCCESS)
}

/// [`print`] for callers that decide themselves what a failure means.
pub fn try_print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).or_else(unwritten)
}

/// A reader that closed the pipe is not an error.
fn unwritten(error: io::Error) -> Result<(), String> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(format!("write to standard output: {error}")),
    }
}

/// Prints why a command failed.
pub fn fail(sentence: &str) -> ExitCode {
    eprintln!("bpfman-hook: {sentence}");
    ExitCode::FAILURE
}
