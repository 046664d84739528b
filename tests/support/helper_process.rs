//! Helper processes of tests. A test that needs another process runs its own test binary again, with the name of a
//! function that is marked as a test and with a variable. Where the variable is missing, the test runner has called that
//! function as if it were a test: it then says that it is none, and does nothing.
//!
//! Such a function is called `…_process`. Unit tests include this file too.

use std::ffi::{OsStr, OsString};
use std::process::Command;

/// The value of the helper process's variable; None, after a line for the reader of the test's output, if it is not set.
pub fn task(variable: &str) -> Option<OsString> {
    let value = std::env::var_os(variable);
    if value.is_none() {
        println!("not a test: a helper process, which another test starts with the variable {variable}");
    }
    value
}

/// Runs one function of this test binary as a helper process.
pub fn command(function: &str, variable: &str, value: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
    command.args(["--exact", function, "--nocapture"]).env(variable, value);
    command
}
