//! `events`: prints the recorded events since boot, and follows new ones.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::Format;
use crate::cli::watch::EventsArgs;
use crate::model::event::Event;
use crate::model::metrics_table::EventKind;
use crate::output::error::CommandError;
use crate::output::style::Style;
use crate::output::table::printable;
use crate::output::view::short_id;
use crate::paths::Paths;
use crate::sys::clock;
use crate::sys::export::{EVENTS, OLD_EVENTS};
use crate::sys::watch::Watch;

/// How often a follower checks the time and, in case it missed a change, the file.
const GLANCE: Duration = Duration::from_secs(1);

/// Prints events.
pub fn run(paths: &Paths, args: &EventsArgs) -> Result<ExitCode, CommandError> {
    let filter = EventFilter::new(args, clock::unix_seconds())?;
    show(&paths.export(), args, &filter)?;
    Ok(ExitCode::SUCCESS)
}

fn show(directory: &Path, args: &EventsArgs, filter: &EventFilter) -> Result<(), CommandError> {
    // The watch starts before the file is read, so that no event is lost in between.
    let watch = match args.follow {
        true if !directory.exists() => return Err(nothing_there(directory)),
        true => Some(Watch::directory(directory)?),
        false => None,
    };
    let (mut tail, style) = (Tail::new(directory), Style::of_stdout());
    loop {
        let lines = tail.read()?;
        let text: String = lines.iter().filter_map(|line| print(line, args, style, filter)).collect();
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // The reader closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(CommandError::doing("write to standard output"))?,
        }
        drop(stdout);
        let Some(watch) = &watch else { return Ok(()) };
        if filter.until.as_ref().is_some_and(|until| clock::utc_precise().trim_end_matches('Z') > until.as_str()) {
            return Ok(());
        }
        watch.wait(GLANCE);
    }
}

fn nothing_there(directory: &Path) -> CommandError {
    let problem = "nothing has been recorded since boot; start a container first";
    CommandError::new(format!("follow the events in {}: {problem}", directory.display()))
}

/// Formats one line of the file; None if it is filtered out or is not an event.
fn print(line: &str, args: &EventsArgs, style: Style, filter: &EventFilter) -> Option<String> {
    let event: Event = serde_json::from_str(line).ok()?;
    filter.takes(&event).then(|| match args.output {
        Format::Json => format!("{line}\n"),
        Format::Table => sentence(&event, args.no_trunc, style),
    })
}

/// The format of `podman events`: time, type, action, object, and the other attributes in parentheses. `whole` is
/// without shortening.
fn sentence(event: &Event, whole: bool, style: Style) -> String {
    let id = |id: &str| if whole { id.to_owned() } else { short_id(id).to_owned() };
    let (kind, whom) = if let Some(container) = &event.container {
        ("container", id(container))
    } else if let Some(cookie) = event.netns {
        ("netns", cookie.to_string())
    } else if event.what == EventKind::Pulled.word() {
        ("image", event.image.clone().unwrap_or_default())
    } else {
        ("program", event.program.clone().unwrap_or_default())
    };
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let image = event.image.clone().filter(|_| kind != "image");
    let program = event.program.clone().filter(|_| kind != "program");
    let rest: Vec<String> = [
        ("namespace", event.namespace.clone()),
        ("pod", event.pod.clone()),
        ("application", event.application.clone()),
        ("program", program),
        ("id", number(event.program_id)),
        ("link", number(event.link_id)),
        ("target", event.target.clone()),
        ("image", image),
        (
            "digest",
            event.digest.as_deref().map(|digest| id(digest.strip_prefix("sha256:").filter(|_| !whole).unwrap_or(digest))),
        ),
        ("origin", event.origin.clone()),
        ("count", event.count.map(|count| count.to_string())),
        ("reason", event.reason.clone()),
    ]
    .into_iter()
    .filter_map(|(key, value)| value.map(|value| format!("{key}={}", printable(&value))))
    .collect();
    let rest = if rest.is_empty() { String::new() } else { format!(" ({})", rest.join(", ")) };
    let time = match event.time.split_once('.') {
        Some((seconds, _)) if !whole => format!("{seconds}Z"),
        _ => event.time.clone(),
    };
    let what = style.state(&printable(&event.what), 0);
    format!("{} {kind} {what} {}{rest}\n", printable(&time), printable(&whom))
}

/// Selects events. Times are texts without the final Z, so that they sort.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct EventFilter {
    since: Option<String>,
    until: Option<String>,
    keys: Vec<(String, String)>,
}

/// The keys of a filter.
pub const KEYS: [&str; 7] = ["container", "type", "image", "namespace", "pod", "application", "program"];

impl EventFilter {
    fn new(args: &EventsArgs, now: u64) -> Result<Self, CommandError> {
        let time = |text: &Option<String>| text.as_deref().map(|text| moment(text, now)).transpose();
        for (key, value) in &args.filters {
            if !KEYS.contains(&key.as_str()) && key != "event" {
                let problem = format!("unknown key; write one of {}", KEYS.join(", "));
                return Err(CommandError::bad_input(format!("filter events by {key:?}: {problem}")));
            }
            if matches!(key.as_str(), "type" | "event") && !EventKind::WORDS.contains(&value.as_str()) {
                let problem = format!("unknown type; write one of {}", EventKind::WORDS.join(", "));
                return Err(CommandError::bad_input(format!("filter events by type {value:?}: {problem}")));
            }
        }
        Ok(Self { since: time(&args.since)?, until: time(&args.until)?, keys: args.filters.clone() })
    }

    fn takes(&self, event: &Event) -> bool {
        let time = event.time.trim_end_matches('Z');
        if self.since.as_ref().is_some_and(|since| time < since.as_str())
            || self.until.as_ref().is_some_and(|until| time > until.as_str())
        {
            return false;
        }
        let fits = |key: &str, value: &str| {
            let is = |field: &Option<String>| field.as_deref() == Some(value);
            match key {
                "container" => event.container.as_ref().is_some_and(|id| id.starts_with(value)),
                "image" => is(&event.image),
                "namespace" => is(&event.namespace),
                "pod" => is(&event.pod),
                "application" => is(&event.application),
                "program" => is(&event.program),
                _ => event.what == value,
            }
        };
        self.keys.iter().all(|(key, _)| self.keys.iter().any(|(other, value)| other == key && fits(key, value)))
    }
}

/// Parses a time as users write it.
fn moment(text: &str, now: u64) -> Result<String, CommandError> {
    let of_seconds = |seconds: u64| clock::utc(seconds).trim_end_matches('Z').to_owned();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(of_seconds(seconds));
    }
    if let Some(ago) = duration(text) {
        return Ok(of_seconds(now.saturating_sub(ago)));
    }
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == shape };
    let whole = bytes.len() > shape.len() && bytes.iter().zip(shape).all(fits) && text.ends_with('Z');
    let fraction = text.get(shape.len()..text.len().saturating_sub(1)).unwrap_or("x");
    let fraction = fraction.is_empty() || fraction.strip_prefix('.').is_some_and(|f| f.bytes().all(|b| b.is_ascii_digit()));
    if whole && fraction {
        return Ok(text.trim_end_matches('Z').to_owned());
    }
    Err(CommandError::bad_input(format!(
        "read the time {text:?}: write 2026-11-25T06:00:00Z, seconds since 1970, or a duration before now such as 10m or 1h30m"
    )))
}

/// Converts `1h30m` to seconds.
fn duration(text: &str) -> Option<u64> {
    let (mut total, mut number) = (0_u64, None::<u64>);
    for c in text.chars() {
        match c.to_digit(10) {
            Some(digit) => number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit.into())?),
            None => {
                let unit = match c {
                    's' => 1,
                    'm' => 60,
                    'h' => 3600,
                    'd' => 86_400,
                    _ => return None,
                };
                total = total.checked_add(number.take()?.checked_mul(unit)?)?;
            }
        }
    }
    (number.is_none() && !text.is_empty()).then_some(total)
}

/// Reads the event files from the oldest line on, and continues where it stopped, across rotations as well.
#[derive(Debug)]
struct Tail {
    directory: PathBuf,
    open: Option<File>,
    /// The beginning of a line whose end has not been written yet.
    rest: Vec<u8>,
    begun: bool,
}

impl Tail {
    fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: None, rest: Vec::new(), begun: false }
    }

    /// Returns every complete line that was not read yet.
    fn read(&mut self) -> Result<Vec<String>, CommandError> {
        let mut bytes = std::mem::take(&mut self.rest);
        if !self.begun {
            self.begun = true;
            // Opened in this order: if a rotation happens in between, the second file is then read as the first, and no
            // line is lost.
            self.open = self.file(EVENTS)?;
            if let Some(mut old) = self.file(OLD_EVENTS)? {
                let same = |file: &File| Some((file.metadata().ok()?.dev(), file.metadata().ok()?.ino()));
                if self.open.as_ref().and_then(&same) == same(&old) {
                    self.open = None;
                }
                self.drain(&mut old, &mut bytes)?;
                if self.open.is_none() {
                    self.open = Some(old);
                }
            }
        }
        loop {
            if let Some(mut file) = self.open.take() {
                self.drain(&mut file, &mut bytes)?;
                self.open = Some(file);
            }
            let named = self.file(EVENTS)?;
            let id = |file: &File| file.metadata().ok().map(|m| (m.dev(), m.ino()));
            match (&mut self.open, named) {
                (Some(open), Some(named)) if id(open) != id(&named) => {
                    // Rotated: what was written to the old file since the last read comes before the new file.
                    let mut open = self.open.take().expect("matched");
                    self.drain(&mut open, &mut bytes)?;
                    self.open = Some(named);
                }
                (None, Some(named)) => self.open = Some(named),
                _ => break,
            }
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(whole);
        Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
    }

    fn drain(&self, file: &mut File, bytes: &mut Vec<u8>) -> Result<(), CommandError> {
        let doing = format!("read the events in {}", self.directory.display());
        file.read_to_end(bytes).map(drop).map_err(CommandError::doing(doing))
    }

    fn file(&self, name: &str) -> Result<Option<File>, CommandError> {
        let path = self.directory.join(name);
        let error = match File::open(&path) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                CommandError::new("only root and the directory's group may; run this as one of them")
            }
            Err(error) => error.into(),
        };
        Err(CommandError::doing(format!("read {}", path.display()))(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::export::Export;

    fn args(filters: &[(&str, &str)]) -> EventsArgs {
        let filters = filters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        EventsArgs { follow: false, since: None, until: None, filters, no_trunc: false, output: Format::Table }
    }

    #[test]
    fn times_are_read_in_every_documented_form() {
        let now = 1_795_574_700;
        for (text, expected) in [
            ("0", "1970-01-01T00:00:00"),
            ("10m", "2026-11-25T02:35:00"),
            ("1h30m", "2026-11-25T01:15:00"),
            ("2026-11-25T02:35:00Z", "2026-11-25T02:35:00"),
            ("2026-11-25T02:35:00.25Z", "2026-11-25T02:35:00.25"),
        ] {
            assert_eq!(moment(text, now).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "m",
            "yesterday",
            "2026-11-25",
            "2026-11-25T02:35:00",
            "2026-11-25T02:35:00+01:00",
            "5m3",
            "2026-11-25T02:35:00xZ",
        ] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn filters_are_anded_between_keys_and_ored_within_one() {
        let web = Event { container: Some("web1".into()), pod: Some("p".into()), ..Event::new(EventKind::Acquired) };
        let none = Event::new(EventKind::Pulled);
        for (keys, takes) in [
            (&[][..], (true, true)),
            (&[("container", "we")], (true, false)),
            (&[("container", "x"), ("container", "web1")], (true, false)),
            (&[("container", "web"), ("type", "released")], (false, false)),
            (&[("type", "pulled"), ("event", "acquired")], (false, false)),
            (&[("type", "pulled"), ("type", "acquired")], (true, true)),
            (&[("pod", "p")], (true, false)),
        ] {
            let filter = EventFilter::new(&args(keys), 0).unwrap();
            assert_eq!((filter.takes(&web), filter.takes(&none)), takes, "{keys:?}");
        }
        assert!(EventFilter::new(&args(&[("colour", "red")]), 0).is_err());
        assert!(EventFilter::new(&args(&[("type", "exploded")]), 0).is_err());
    }

    #[test]
    fn a_follower_sees_every_line_once_and_in_order_across_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export");
        let export = Export::open(&path).unwrap();
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read().unwrap(), Vec::<String>::new());
        let mut seen = Vec::new();
        // Enough for three files.
        for n in 0..3200 {
            export.append(&format!("{n:04}{}\n", "x".repeat(995)));
            if n % 7 == 0 {
                seen.extend(tail.read().unwrap().into_iter().map(|line| line[..4].parse::<u32>().unwrap()));
            }
        }
        seen.extend(tail.read().unwrap().into_iter().map(|line| line[..4].parse::<u32>().unwrap()));
        assert_eq!(seen, (0..3200).collect::<Vec<_>>());
        let whole = Tail::new(&path).read().unwrap();
        assert!(whole.len() > 1000 && whole.is_sorted(), "old before new");
        std::fs::OpenOptions::new().append(true).open(path.join(EVENTS)).unwrap().write_all(b"half").unwrap();
        assert!(tail.read().unwrap().is_empty(), "a line without its end is not returned yet");
        export.append(" and half\n");
        assert_eq!(tail.read().unwrap(), ["half and half"]);
    }

    #[test]
    fn an_event_is_one_line_whatever_text_it_contains() {
        let refused = Event {
            time: "2026-11-25T06:00:00.000000001Z".into(),
            container: Some("web".into()),
            pod: Some("a\nb\u{1b}[31m".into()),
            reason: Some("no".into()),
            ..Event::new(EventKind::Refused)
        };
        let text = sentence(&refused, false, Style::default());
        assert!(text.starts_with("2026-11-25T06:00:00Z container refused web (pod=a"), "{text}");
        assert!(text.ends_with("reason=no)\n") && text.matches('\n').count() == 1 && !text.contains('\u{1b}'), "{text}");
        let (container, digest) = ("ab".repeat(32), format!("sha256:{}", "cd".repeat(32)));
        let started = Event { container: Some(container.clone()), digest: Some(digest.clone()), ..refused.clone() };
        let text = sentence(&started, false, Style::default());
        assert!(text.contains(" abababababab (") && text.contains("digest=cdcdcdcdcdcd, "), "{text}");
        let text = sentence(&started, true, Style::default());
        assert!(text.contains(&container) && text.contains(&digest) && text.contains("00.000000001Z"), "{text}");
        let json = serde_json::to_string(&refused).unwrap();
        assert_eq!(json.matches('\n').count(), 0);
        let args = EventsArgs { output: Format::Json, ..args(&[]) };
        let printed = |line: &str| print(line, &args, Style::default(), &EventFilter::default());
        assert_eq!(printed(&json), Some(format!("{json}\n")));
        assert_eq!(printed("{broken"), None);
    }
}
