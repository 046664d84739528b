//! Where a command's answer and its one line of failure go.

pub mod finding;
pub mod logging;
pub mod report;
pub mod table;
pub mod view;

use std::io::Write as _;
use std::process::ExitCode;

/// Writes a command's answer to stdout. A reader that went away is not an error of ours.
pub fn print(text: &str) -> ExitCode {
    try_print(text).map_or_else(|sentence| fail(&sentence), |()| ExitCode::SUCCESS)
}

/// [`print`] for those who say themselves what a failure means.
pub fn try_print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("write to standard output: {error}")),
        _ => Ok(()),
    }
}

/// Says why a command failed.
pub fn fail(sentence: &str) -> ExitCode {
    eprintln!("bpfman-hook: {sentence}");
    ExitCode::FAILURE
}
