//! The arguments of `graph`.

use clap::{Args, ValueEnum};

/// `graph CONTAINER|--all`.
#[derive(Debug, Clone, Args)]
pub struct GraphArgs {
    /// Id or the beginning of it, podman's name, or POD/CONTAINER
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub container: Option<String>,
    /// Everything on this host
    #[arg(short, long)]
    pub all: bool,
    /// The form of the picture
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: GraphFormat,
}

/// The form of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum GraphFormat {
    // The help names the values on the option's line.
    #[default]
    Mermaid,
    Svg,
}
