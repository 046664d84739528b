//! Where a command's answer and its one line of failure go.

pub mod finding;
pub mod format;
pub mod logging;
pub mod report;
pub mod table;
pub mod view;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

/// Why an answer ends before it is whole.
#[derive(Debug)]
pub enum Cut {
    /// The rest could not be found out: a sentence.
    Unknown(String),
    /// It could not be written.
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

/// Writes a command's answer to stdout while it is made.
pub fn print_as_made(make: impl FnOnce(&mut dyn Write) -> Result<(), Cut>) -> ExitCode {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    match make(&mut out).and_then(|()| Ok(out.flush()?)) {
        Err(Cut::Unwritten(error)) => unwritten(error).map_or_else(|sentence| fail(&sentence), |()| ExitCode::SUCCESS),
        Err(Cut::Unknown(sentence)) => {
            // Of an answer that had hardly begun nothing is shown.
            _ = out.into_parts();
            fail(&sentence)
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Writes a command's answer to stdout.
pub fn print(text: &str) -> ExitCode {
    try_print(text).map_or_else(|sentence| fail(&sentence), |()| ExitCode::SUCCESS)
}

/// [`print`] for those who say themselves what a failure means.
pub fn try_print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).or_else(unwritten)
}

/// A reader that went away is not an error of ours.
fn unwritten(error: io::Error) -> Result<(), String> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(format!("write to standard output: {error}")),
    }
}

/// Says why a command failed.
pub fn fail(sentence: &str) -> ExitCode {
    eprintln!("bpfman-hook: {sentence}");
    ExitCode::FAILURE
}
