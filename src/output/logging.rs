//! Destinations of `tracing` events: what a lower layer notices and does not return as an error.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::report::Report;
use crate::paths::Paths;
use crate::sys::error::chain;

/// Interactive commands: to stderr, in the form of their errors. The same warning about several objects is one line.
pub fn to_stderr() {
    // A second one, in a test, has no effect.
    let _ = tracing::subscriber::set_global_default(Warnings::default());
}

/// Long-running services: to stderr, including successes.
pub fn of_service() {
    let plain = tracing_subscriber::fmt().without_time().with_ansi(false).with_target(false);
    plain.with_max_level(Level::INFO).with_writer(io::stderr).init();
}

/// `hook`: to the journal or our log, since stderr carries a single line, the reason for a refusal. tracing-subscriber
/// would allocate and touch 40 KiB for spans, which a start does not have.
pub fn to_report(paths: &Paths) {
    let subscriber = ReportSubscriber { log: paths.log() };
    // A second one, in a test, has no effect.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Writes `bpfman-hook: warning: blob not stored in the image cache: …: No space left on device`, and what is said of
/// several objects in a row once.
#[derive(Default)]
struct Warnings {
    /// The last one, and when it was written.
    last: Mutex<Option<(String, Instant)>>,
}

/// After this time, a warning is another one: some commands are services.
const IN_A_ROW: Duration = Duration::from_secs(2);

impl Warnings {
    /// The line of an event; None if the same message with the same reason was just shown.
    fn line(&self, event: &Event<'_>) -> Option<String> {
        let mut line = EventLine::default();
        event.record(&mut line);
        let reason = line.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let (said, now) = (format!("{}{reason}", line.message), Instant::now());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = last.as_ref().is_none_or(|(text, at)| *text != said || now.duration_since(*at) > IN_A_ROW);
        *last = Some((said, now));
        let fields = if line.fields.is_empty() { String::new() } else { format!(" ({})", line.fields.trim_start()) };
        is_new.then(|| format!("bpfman-hook: warning: {}{fields}{reason}", line.message))
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        if let Some(line) = self.line(event) {
            eprintln!("{line}");
        }
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
        let reason = line.reason.map(|reason| format!(" error={reason}")).unwrap_or_default();
        let sentence = format!("{} {}{}{reason}", event.metadata().level(), line.message, line.fields);
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
    /// The field `error`.
    reason: Option<String>,
}

impl EventLine {
    fn add(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            "error" => write!(self.reason.get_or_insert_default(), "{value}"),
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
    fn a_warning_of_a_command_is_one_sentence_and_said_once() {
        struct Collected(Warnings, std::sync::Arc<Mutex<Vec<String>>>);
        impl Subscriber for Collected {
            fn enabled(&self, metadata: &Metadata<'_>) -> bool {
                self.0.enabled(metadata)
            }
            fn event(&self, event: &Event<'_>) {
                self.1.lock().unwrap().extend(self.0.line(event));
            }
            fn new_span(&self, span: &Attributes<'_>) -> Id {
                self.0.new_span(span)
            }
            fn record(&self, _: &Id, _: &Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn enter(&self, _: &Id) {}
            fn exit(&self, _: &Id) {}
        }
        let lines = std::sync::Arc::new(Mutex::new(Vec::new()));
        let collected = Collected(Warnings::default(), lines.clone());
        tracing::subscriber::with_default(collected, || {
            for digest in [1, 2] {
                let error = std::io::Error::other("no space");
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "blob not stored");
            }
            tracing::warn!("something else");
        });
        let expected = ["bpfman-hook: warning: blob not stored (digest=1): no space", "bpfman-hook: warning: something else"];
        assert_eq!(*lines.lock().unwrap(), expected);
    }

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
