//! Doors: input, one call into the lifecycle, output. No decisions.

<<<CONFLICT
pub mod ctl;
use std::io::Write as _;
use std::process::ExitCode;

pub mod documents;
pub mod finding;
pub mod hook;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub mod install_check;
<<<CONFLICT
pub mod list;
pub mod output;
pub mod report;
pub mod table;
pub mod view;
pub mod token;

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
