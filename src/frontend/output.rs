//! Where a command's answer and its one line of failure go.

use std::io::Write as _;
use std::process::ExitCode;

/// Writes a command's answer to stdout. A reader that went away is not an error of ours.
pub fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(&format!("write to standard output: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

/// Says why a command failed.
pub fn fail(sentence: &str) -> ExitCode {
    eprintln!("bpfman-hook: {sentence}");
    ExitCode::FAILURE
}
