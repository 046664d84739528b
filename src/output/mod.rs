//! Output of a command: its result on stdout, and one line on stderr if it fails.

pub mod error;
pub mod finding;
pub mod format;
pub mod logging;
pub mod report;
pub mod style;
pub mod table;
pub mod view;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use crate::output::error::CommandError;

/// Why the output ends early.
#[derive(Debug)]
pub enum Cut {
    /// The rest could not be determined.
    Unknown(CommandError),
    /// Writing failed.
    Unwritten(io::Error),
}

impl From<CommandError> for Cut {
    fn from(error: CommandError) -> Self {
        Self::Unknown(error)
    }
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

/// Writes a command's output to stdout while it is produced; exit status 0.
pub fn print_as_made(make: impl FnOnce(&mut dyn Write) -> Result<(), Cut>) -> Result<ExitCode, CommandError> {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    match make(&mut out).and_then(|()| Ok(out.flush()?)) {
        Err(Cut::Unwritten(error)) => written(Err(error)),
        Err(Cut::Unknown(error)) => {
            // Output that is still in the buffer is discarded: a short result is not shown at all.
            _ = out.into_parts();
            Err(error)
        }
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// Writes a command's output to stdout; exit status 0.
pub fn print(text: &str) -> Result<ExitCode, CommandError> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// A reader that closed the pipe is not an error.
fn written(result: io::Result<()>) -> Result<ExitCode, CommandError> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CommandError::doing("write to standard output")(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints why a hook failed; exit status 1.
pub fn fail(sentence: &str) -> ExitCode {
    CommandError::new(sentence).print()
}
