//! What `hook` says: one line on stderr, and the same with more in the journal or our own log.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::paths::Paths;
use crate::sys::journal::{self, JournalEntry, Priority};
use crate::sys::{clock, deadline};

/// Bytes of the line on stderr: runc quotes it in its own message, and others cut it.
const LINE_MAX: usize = 300;

/// What is said when the time is over.
pub const LATE: &str = "gave up, because the time for a hook is over and something still holds the store or the kernel; \
                        `bpfman-hook gc` removes what was begun";

/// The places where one run of `hook` speaks.
#[derive(Debug, Clone)]
pub struct Report {
    log: PathBuf,
}

impl Report {
    /// For an installation's log file.
    pub fn new(paths: &Paths) -> Self {
        Self::at(paths.log())
    }

    /// For a log file.
    pub fn at(log: PathBuf) -> Self {
        Self { log }
    }

    /// The container does not start: says why and returns the status to exit with.
    pub fn refused(&self, container: Option<&str>, sentence: &str, status: u8) -> ExitCode {
        self.say(container, sentence, Priority::Error);
        ExitCode::from(status)
    }

    /// Something is not as it should be, and the container goes its way.
    pub fn warned(&self, container: Option<&str>, sentence: &str) {
        self.say(container, sentence, Priority::Warning);
    }

    /// Something worth keeping, not worth a line on stderr.
    pub fn note(&self, container: Option<&str>, sentence: &str) {
        self.keep(container, sentence, Priority::Info);
    }

    /// What a layer below noticed and nobody returns as an error.
    pub fn noticed(&self, sentence: &str) {
        self.keep(None, sentence, Priority::Warning);
    }

    /// The time is over while a call that cannot be interrupted still waits. The record names what is left for gc. Standard error has
    /// [`LATE`] already.
    pub fn late(&self, container: &str) {
        self.keep(Some(container), LATE, Priority::Error);
    }

    fn say(&self, container: Option<&str>, sentence: &str, priority: Priority) {
        // First where it lasts. Not `eprintln!`, which panics where nobody reads our standard error any more.
        self.keep(container, sentence, priority);
        deadline::write_line(&fit(&format!("bpfman-hook: {}", one_line(sentence)), LINE_MAX - 1));
    }

    /// Into the journal, or into our log where there is none.
    fn keep(&self, container: Option<&str>, sentence: &str, priority: Priority) {
        if !journal::send(&JournalEntry { priority, message: sentence, container, fields: &[] }) {
            let time = clock::utc(clock::unix_seconds());
            journal::append_log(&self.log, &format!("{time} {} {sentence}", container.unwrap_or("-")));
        }
    }
}

/// A text without line breaks and control characters, which could fake lines in somebody's log.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most `max` bytes of a text, cut between characters and marked where it was cut.
pub fn fit(text: &str, max: usize) -> String {
    const MARK: &str = " […]";
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max - MARK.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_bound_and_its_characters() {
        assert_eq!(fit("short", 300), "short");
        let long = "ä".repeat(400);
        let cut = fit(&long, 299);
        assert!(cut.len() <= 299 && cut.ends_with(" […]"), "{cut}");
        assert_eq!(one_line("a\nb\u{1b}c"), "a b c");
    }
}
