//! Destinations of `tracing` events: what a lower layer notices and does not return as an error.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::report::Report;
use crate::paths::Paths;
use crate::sys::error::chain;

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

/// `hook`: to the journal or our log, since stderr carries a single line, the reason for a refusal. tracing-subscriber
/// would allocate and touch 40 KiB for spans, which a start does not have.
pub fn to_report(paths: &Paths) {
    let subscriber = ReportSubscriber { log: paths.log() };
    // A second one, in a test, has no effect.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Writes warnings and errors as one line each: the level, the message and the fields.
struct ReportSubscriber {
    log: PathBuf,
}

impl Subscriber for ReportSubscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = EventLine::default();
        event.record(&mut line);
        let sentence = format!("{} {}{}", event.metadata().level(), line.message, line.fields);
        Report::at(self.log.clone()).noticed(&sentence);
    }

    // Spans are not enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The text of one event.
#[derive(Default)]
struct EventLine {
    message: String,
    fields: String,
}

impl EventLine {
    fn add(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

impl Visit for EventLine {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, format_args!("{}", chain(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_becomes_one_line_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        std::fs::create_dir_all(&paths.run).unwrap();
        let error = std::io::Error::other("no space");
        tracing::subscriber::with_default(ReportSubscriber { log: paths.log() }, || {
            tracing::info!("not shown");
            let (no, id) = (7, "c1");
            tracing::error!(owner = no, container = %id, error = &error as &dyn std::error::Error, "cannot undo");
        });
        let log = std::fs::read_to_string(paths.log()).unwrap();
        assert!(log.trim_end().ends_with("ERROR cannot undo owner=7 container=c1 error=no space"), "{log}");
        assert!(!log.contains("not shown"), "{log}");
    }
}
