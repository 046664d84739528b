//! Doors: input, one call into the lifecycle, output. No decisions.


        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(&format!("write to standard output: {error}")),
        _ => ExitCode::SUCCESS,
    ExitCode::FAILURE
    eprintln!("bpfman-hook: {sentence}");
    match std::io::stdout().lock().write_all(text.as_bytes()) {
    }
/// Says why a command failed.
/// Writes a command's answer to stdout. A reader that went away is not an error of ours.
pub fn fail(sentence: &str) -> ExitCode {
pub fn print(text: &str) -> ExitCode {
pub mod ctl;
pub mod finding;
pub mod hook;
pub mod hook_files;
pub mod hooks_dir;
pub mod install;
pub mod install_check;
pub mod list;
pub mod report;
pub mod table;
pub mod view;
use std::io::Write as _;
use std::process::ExitCode;
}
