//! What `hook` says: one line on stderr, and the same with more in the journal or our own log.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::paths::Paths;
use crate::sys::journal::{self, Priority};

/// Bytes of the line on stderr: runc quotes it in its own message, and others cut it.
const LINE_MAX: usize = 300;

/// The places where one run of `hook` speaks.
#[derive(Debug, Clone)]
pub struct Report {
    log: PathBuf,
}

impl Report {
    /// For an installation's log file.
    pub fn new(paths: &Paths) -> Self {
        Self { log: paths.log() }
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
        journal::record(&self.log, Priority::Info, container, sentence);
    }

    /// The time is over while a call that cannot be interrupted still waits. The record names what is left for gc.
    pub fn late(&self, container: &str) {
        self.say(
            Some(container),
            "gave up after 25 s: something else holds the store or the kernel; `bpfman-hook gc` removes what was begun",
            Priority::Error,
        );
    }

    fn say(&self, container: Option<&str>, sentence: &str, priority: Priority) {
        eprintln!("{}", fit(&format!("bpfman-hook: {}", one_line(sentence)), LINE_MAX - 1));
        journal::record(&self.log, priority, container, sentence);
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
