//! Arguments of the read-only commands `events` and `metrics`.

use std::path::PathBuf;

use clap::Args;

use super::Format;

/// `events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Keep printing new events
    #[arg(short, long)]
    pub follow: bool,
    /// Only events since: a time (RFC 3339 in UTC, or seconds since 1970), or a duration before now (`10m`, `1h30m`)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only events until; with --follow, exit at that time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only events that match: container (or a prefix), type, image, namespace, pod, application, program; values of
    /// the same key are ORed, different keys are ANDed
    #[arg(short = 'F', long = "filter", value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub filters: Vec<(String, String)>,
    /// Do not shorten times, ids and digests
    #[arg(long)]
    pub no_trunc: bool,
    /// Output format; JSON is one document per line
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `metrics`.
#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// Serve GET /metrics at this address: unix:///PATH or [tcp://]ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["textfile", "once", "sample"])]
    pub listen: Option<String>,
    /// Write the metrics to FILE every --interval, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE", conflicts_with = "sample")]
    pub textfile: Option<PathBuf>,
    /// Seconds between two writes
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Print or write the metrics once, and exit (the default without --listen and --textfile)
    #[arg(long)]
    pub once: bool,
    /// Query the kernel about our programs once, and store the results for an unprivileged metrics process; needs root
    #[arg(long, conflicts_with = "once")]
    pub sample: bool,
}

/// `install --metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct MetricsTarget {
    /// The metrics units, group and timer; no engine by default
    #[arg(long)]
    pub metrics: bool,
    /// Write the metrics to FILE from the timer, for node_exporter, and do not listen
    #[arg(long, value_name = "FILE", requires = "metrics", value_parser = super::absolute_path)]
    pub metrics_textfile: Option<PathBuf>,
}
