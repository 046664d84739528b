//! The error of a command: the line that it prints on standard error, and its exit status.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use crate::sys::error::chain;

/// Exit status for wrong usage, and for an invalid annotation, policy file or registry configuration.
pub const BAD_INPUT: u8 = 2;

/// The remedy, always in these words, if permission is all that is missing.
pub const AS_ROOT: &str = "run this as root";

/// Why a command fails, and its exit status.
///
/// `?` converts every error type: the sentence is the error with its causes, and the exit status is 1. Because of that
/// conversion this type cannot implement `Error` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    sentence: String,
    status: u8,
}

impl CommandError {
    /// A failure that has no error type of its own; exit status 1.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), status: 1 }
    }

    /// An invalid request that has no error type of its own; exit status [`BAD_INPUT`].
    pub fn bad_input(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), status: BAD_INPUT }
    }

    /// Gives an error the exit status [`BAD_INPUT`]; for `map_err`.
    pub fn of_input(error: impl Into<Self>) -> Self {
        Self { status: BAD_INPUT, ..error.into() }
    }

    /// Writes the failed operation before an error: `{operation}: {error}`; for `map_err`.
    pub fn doing<E: Into<Self>>(operation: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| {
            let Self { sentence, status } = error.into();
            Self { sentence: format!("{operation}: {sentence}"), status }
        }
    }

    /// Writes a remedy after an error: `{error}; {remedy}`; for `map_err`.
    pub fn with_remedy<E: Into<Self>>(remedy: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| {
            let Self { sentence, status } = error.into();
            Self { sentence: format!("{sentence}; {remedy}"), status }
        }
    }

    /// Moves our directory of configuration in the text below `--root`, where the command has looked for it.
    #[must_use]
    pub fn below(mut self, root: &Path) -> Self {
        const ETC: &str = "/etc/bpfman-hook";
        let moved = format!("{}{ETC}", root.display());
        if root != Path::new("/") && !self.sentence.contains(&moved) {
            self.sentence = self.sentence.replace(ETC, &moved);
        }
        self
    }

    /// Prints the line on standard error; returns the exit status. `main` calls this once for the error of a command;
    /// a command calls it only for an error after which it continues.
    pub fn print(&self) -> ExitCode {
        eprintln!("bpfman-hook: {self}");
        ExitCode::from(self.status)
    }
}

impl<E: Error + 'static> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self::new(chain(&error))
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::sys::error::SysError;

    fn failing() -> Result<(), SysError> {
        Err(SysError::io("open", "/x")(io::Error::from_raw_os_error(2)))
    }

    #[test]
    fn an_error_keeps_its_causes_and_gets_operation_remedy_and_status() {
        let plain = || -> Result<(), CommandError> { Ok(failing()?) };
        assert_eq!(plain(), Err(CommandError::new("open /x: No such file or directory (os error 2)")));
        let whole =
            failing().map_err(CommandError::doing("read the list")).map_err(CommandError::with_remedy("run this as root"));
        let sentence = "read the list: open /x: No such file or directory (os error 2); run this as root";
        assert_eq!(whole, Err(CommandError::new(sentence)));
        let of_input = whole.map_err(CommandError::of_input);
        assert_eq!(of_input, Err(CommandError::bad_input(sentence)));
        let keys = CommandError::new("put keys into /etc/bpfman-hook/keys");
        assert_eq!(keys.clone().below(Path::new("/srv/r")).to_string(), "put keys into /srv/r/etc/bpfman-hook/keys");
        assert_eq!(keys.clone().below(Path::new("/srv/r")).below(Path::new("/srv/r")), keys.clone().below(Path::new("/srv/r")));
        assert_eq!(keys.clone().below(Path::new("/")), keys);
        assert_eq!(of_input.map_err(CommandError::doing("start")), Err(CommandError::bad_input(format!("start: {sentence}"))));
    }
}
