//! The two text formats of metrics: OpenMetrics 1.0 and Prometheus' own, which differ in counter names, in units and in
//! the terminator. Written here without a client library, because the values come from files and not from objects in
//! this process.

use std::fmt::Write as _;

/// The exposition format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// `application/openmetrics-text`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Prometheus,
}

impl Exposition {
    /// The format that an Accept header prefers; Prometheus' own if it names neither.
    pub fn accepted(header: &str) -> Self {
        let quality = |name: &str| -> f32 {
            let named = header.split(',').map(str::trim).filter(|part| part.split(';').next().map(str::trim) == Some(name));
            let held_bytes = |part: &str| {
                let q = part.split(';').find_map(|p| p.trim().strip_prefix("q="));
                q.map_or(1.0, |q| q.trim().parse().unwrap_or(0.0))
            };
            named.map(held_bytes).fold(0.0, f32::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The type of a metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyKind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets.
    Histogram,
    /// Always 1; the information is in its labels.
    Info,
}

/// A page under construction. Families follow each other, each with its samples.
#[derive(Debug)]
pub struct Page {
    text: String,
    exposition: Exposition,
    family: String,
    kind: FamilyKind,
}

const PREFIX: &str = "bpfman_hook_";
const UNITS: [&str; 2] = ["seconds", "bytes"];

impl Page {
    /// An empty page.
    pub fn new(exposition: Exposition) -> Self {
        Self { text: String::new(), exposition, family: String::new(), kind: FamilyKind::Gauge }
    }

    /// Starts a family. `name` is without our prefix and without the suffix of its type; a unit is its last word.
    pub fn family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        self.family = format!("{PREFIX}{name}");
        self.kind = kind;
        let (shown, word) = match (self.exposition, kind) {
            (Exposition::OpenMetrics, FamilyKind::Counter) => (self.family.clone(), "counter"),
            (Exposition::OpenMetrics, FamilyKind::Info) => (self.family.clone(), "info"),
            (Exposition::Prometheus, FamilyKind::Counter) => (format!("{}_total", self.family), "counter"),
            (Exposition::Prometheus, FamilyKind::Info) => (format!("{}_info", self.family), "gauge"),
            (_, FamilyKind::Gauge) => (self.family.clone(), "gauge"),
            (_, FamilyKind::Histogram) => (self.family.clone(), "histogram"),
        };
        _ = writeln!(self.text, "# TYPE {shown} {word}");
        if self.exposition == Exposition::OpenMetrics
            && let Some(unit) = UNITS.iter().find(|unit| name.ends_with(&format!("_{unit}")))
        {
            _ = writeln!(self.text, "# UNIT {shown} {unit}");
        }
        _ = writeln!(self.text, "# HELP {shown} {}", escape(help));
    }

    /// A sample of a counter, gauge or info.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let suffix = match self.kind {
            FamilyKind::Counter => "_total",
            FamilyKind::Info => "_info",
            FamilyKind::Gauge | FamilyKind::Histogram => "",
        };
        self.line(suffix, labels, None, &value.to_string());
    }

    /// A histogram: the counts of the buckets with their bounds, the count of the last one without a bound, and the sum
    /// in nanoseconds.
    pub fn histogram(&mut self, labels: &[(&str, &str)], buckets: &[(&str, u64)], beyond: u64, nanoseconds: u64) {
        let mut so_far = 0_u64;
        for (bound, count) in buckets {
            so_far = so_far.wrapping_add(*count);
            self.line("_bucket", labels, Some(("le", bound)), &so_far.to_string());
        }
        so_far = so_far.wrapping_add(beyond);
        self.line("_bucket", labels, Some(("le", "+Inf")), &so_far.to_string());
        self.line("_sum", labels, None, &seconds(nanoseconds));
        // Computed from the buckets, so that they agree while counters are being updated.
        self.line("_count", labels, None, &so_far.to_string());
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], more: Option<(&str, &str)>, value: &str) {
        self.text.push_str(&self.family);
        self.text.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(more) {
            _ = write!(self.text, "{open}{name}=\"{}\"", escape(value));
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        _ = writeln!(self.text, " {value}");
    }

    /// The finished page.
    pub fn finish(mut self) -> String {
        if self.exposition == Exposition::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// Nanoseconds as a decimal number of seconds, exactly.
pub fn seconds(nanoseconds: u64) -> String {
    let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let text = format!("{whole}.{rest:09}");
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

/// Maximum length of a label value in bytes: image authors and workloads choose some of them.
pub const VALUE_MAX: usize = 256;

/// Escapes a label value or a help text: backslash, quote and line feed get a backslash. Scrapers take a zero byte for
/// the end of the page, and other control characters are of no use.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in short(text).chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A text, shortened to the length of a label value.
pub fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(exposition: Exposition) -> String {
        let mut page = Page::new(exposition);
        page.family("events", FamilyKind::Counter, "What happened.");
        page.sample(&[("type", "a\"b\\c\nd")], 3);
        page.family("run_duration_seconds", FamilyKind::Histogram, "Runs.");
        page.histogram(&[("stage", "x")], &[("0.1", 1), ("1.0", 2)], 4, 1_500_000_000);
        page.family("owner", FamilyKind::Info, "Owners.");
        page.sample(&[("owner", "1")], 1);
        page.finish()
    }

    #[test]
    fn openmetrics_output_matches_the_specification() {
        let expected = r#"# TYPE bpfman_hook_events counter
# HELP bpfman_hook_events What happened.
bpfman_hook_events_total{type="a\"b\\c\nd"} 3
# TYPE bpfman_hook_run_duration_seconds histogram
# UNIT bpfman_hook_run_duration_seconds seconds
# HELP bpfman_hook_run_duration_seconds Runs.
bpfman_hook_run_duration_seconds_bucket{stage="x",le="0.1"} 1
bpfman_hook_run_duration_seconds_bucket{stage="x",le="1.0"} 3
bpfman_hook_run_duration_seconds_bucket{stage="x",le="+Inf"} 7
bpfman_hook_run_duration_seconds_sum{stage="x"} 1.5
bpfman_hook_run_duration_seconds_count{stage="x"} 7
# TYPE bpfman_hook_owner info
# HELP bpfman_hook_owner Owners.
bpfman_hook_owner_info{owner="1"} 1
# EOF
"#;
        assert_eq!(page(Exposition::OpenMetrics), expected);
    }

    #[test]
    fn prometheus_type_lines_name_the_samples() {
        let text = page(Exposition::Prometheus);
        assert!(text.contains("# TYPE bpfman_hook_events_total counter\n"), "{text}");
        assert!(text.contains("# TYPE bpfman_hook_owner_info gauge\n"), "{text}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn the_accept_header_selects_the_format() {
        use Exposition::{OpenMetrics, Prometheus};
        for (header, expected) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/plain", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.9", Prometheus),
            ("application/openmetrics-text;q=nonsense", Prometheus),
        ] {
            assert_eq!(Exposition::accepted(header), expected, "{header}");
        }
    }

    #[test]
    fn untrusted_text_stays_one_label_value() {
        for (text, expected) in [
            ("plain", "plain"),
            ("a\"} 1\nbpfman_hook_x 2", "a\\\"} 1\\nbpfman_hook_x 2"),
            ("\\", "\\\\"),
            ("a\0b\rc\u{1b}[31md\u{85}", "a\u{fffd}b\u{fffd}c\u{fffd}[31md\u{fffd}"),
            ("\u{1f41d}", "\u{1f41d}"),
        ] {
            assert_eq!(escape(text), expected, "{text:?}");
        }
        let long = "\u{e9}".repeat(200_000);
        assert_eq!(escape(&long).len(), VALUE_MAX);
        assert_eq!(short(&format!("x{long}")).len(), VALUE_MAX - 1, "characters are not split");
    }

    #[test]
    fn seconds_are_exact() {
        for (nanoseconds, text) in [(0, "0.0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (20_000_000_000, "20.0")] {
            assert_eq!(seconds(nanoseconds), text);
        }
    }
}
