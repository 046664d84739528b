//! Messages of `hook`: one line on stderr, and the same with more detail in the journal or our own log.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::paths::Paths;
use crate::sys::journal::{self, JournalEntry, Priority};
use crate::sys::{clock, deadline};

/// Maximum length of the line on stderr, in bytes: runc quotes it in its own message, and other programs cut it.
const LINE_MAX: usize = 300;

/// The message on timeout.
pub const LATE: &str = "gave up: the time limit for a hook has passed, and a call to the store or the kernel still blocks; \
                        `bpfman-hook gc` removes what was started";

/// The destinations of one run of `hook`.
#[derive(Debug, Clone)]
pub struct Report {
    log: PathBuf,
}

impl Report {
    /// With an installation's log file.
    pub fn new(paths: &Paths) -> Self {
        Self::at(paths.log())
    }

    /// With a log file.
    pub fn at(log: PathBuf) -> Self {
        Self { log }
    }

    /// The container does not start: prints the reason and returns the exit status.
    pub fn refused(&self, container: Option<&str>, sentence: &str, status: u8) -> ExitCode {
        self.say(container, sentence, Priority::Error);
        ExitCode::from(status)
    }

    /// Reports a problem that does not stop the container.
    pub fn warned(&self, container: Option<&str>, sentence: &str) {
        self.say(container, sentence, Priority::Warning);
    }

    /// Records something that does not need a line on stderr.
    pub fn note(&self, container: Option<&str>, sentence: &str) {
        self.keep(container, sentence, Priority::Info);
    }

    /// Records what a lower layer noticed and did not return as an error.
    pub fn noticed(&self, sentence: &str) {
        self.keep(None, sentence, Priority::Warning);
    }

    /// The timeout passed while a call that cannot be interrupted still blocks. The record names what is left for gc.
    /// [`LATE`] is already on standard error.
    pub fn late(&self, container: &str) {
        self.keep(Some(container), LATE, Priority::Error);
    }

    fn say(&self, container: Option<&str>, sentence: &str, priority: Priority) {
        // The persistent copy first. Not `eprintln!`, which panics if the reader of our standard error is gone.
        self.keep(container, sentence, priority);
        deadline::write_line(&fit(&format!("bpfman-hook: {}", one_line(sentence)), LINE_MAX - 1));
    }

    /// Writes to the journal, or to our log if there is no journal.
    fn keep(&self, container: Option<&str>, sentence: &str, priority: Priority) {
        if !journal::send(&JournalEntry { priority, message: sentence, container, fields: &[] }) {
            let time = clock::utc(clock::unix_seconds());
            journal::append_log(&self.log, &format!("{time} {} {sentence}", container.unwrap_or("-")));
        }
    }
}

/// A text without line breaks and control characters, which could forge log lines.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most `max` bytes of a text, cut between characters and marked as cut.
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
    fn a_line_is_cut_at_its_limit_between_characters() {
        assert_eq!(fit("short", 300), "short");
        let long = "ä".repeat(400);
        let cut = fit(&long, 299);
        assert!(cut.len() <= 299 && cut.ends_with(" […]"), "{cut}");
        assert_eq!(one_line("a\nb\u{1b}c"), "a b c");
    }
}
