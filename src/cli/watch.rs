//! Arguments of the commands that only watch: `events` and `metrics`.

use std::path::PathBuf;

use clap::Args;

use super::Format;

/// `events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Only what happened since: a time (RFC 3339 in UTC, or seconds since 1970), or how long ago (`10m`, `1h30m`)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only what happened until; with --follow, end then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only what fits: container (a prefix will do), type, image, namespace, pod, application, program; the same key twice
    /// is "or", different keys are "and"
    #[arg(short = 'F', long = "filter", value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub filters: Vec<(String, String)>,
    /// Output format; JSON is one document a line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `metrics`.
#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// Answer GET /metrics here: unix:///PATH or [tcp://]ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["textfile", "once", "sample"])]
    pub listen: Option<String>,
    /// Write them to FILE every --interval, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub textfile: Option<PathBuf>,
    /// Seconds between two files
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Print or write them once, and end (the default without --listen and --textfile)
    #[arg(long)]
    pub once: bool,
    /// Ask the kernel about our programs once, and leave the answers for a metrics process without privileges: needs root
    #[arg(long, conflicts_with = "once")]
    pub sample: bool,
}

/// `install --metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct MetricsTarget {
    /// The metrics' units, group, timer; no engine unless one is named
    #[arg(long)]
    pub metrics: bool,
    /// Write the metrics to FILE from the timer, for node_exporter, and listen nowhere
    #[arg(long, value_name = "FILE", requires = "metrics", value_parser = super::absolute_path)]
    pub metrics_textfile: Option<PathBuf>,
}
