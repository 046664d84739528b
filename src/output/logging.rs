//! Destinations of `tracing` events: what a lower layer notices and does not return as an error.

use std::io;
use std::path::PathBuf;

use tracing::Level;

use crate::output::report::Report;
use crate::paths::Paths;

/// Interactive commands: to stderr, one line each.
pub fn to_stderr() {
    stderr_from(Level::WARN);
}

/// Long-running services: to stderr, including successes.
pub fn of_service() {
    stderr_from(Level::INFO);
}

fn stderr_from(level: Level) {
    let plain = tracing_subscriber::fmt().without_time().with_ansi(false).with_target(false);
    plain.with_max_level(level).with_writer(io::stderr).init();
}

/// `hook`: to the journal or our log, since stderr carries a single line, the reason for a refusal.
pub fn to_report(paths: &Paths) {
    let log = paths.log();
    let plain = tracing_subscriber::fmt().without_time().with_ansi(false).with_target(false);
    plain.with_max_level(Level::WARN).with_writer(move || Line { log: log.clone(), bytes: Vec::new() }).init();
}

/// One event, formatted for the log.
struct Line {
    log: PathBuf,
    bytes: Vec<u8>,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.bytes);
        Report::at(self.log.clone()).noticed(text.trim());
    }
}
