//! `load`, `attach`, `detach`, `unload`: bpfman's verbs, flags and value formats.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::registry::RegistryAuth;
use super::{Formatted, absolute_path, key_value, values};
use crate::model::annotations::{GlobalValue, MapSize, global_value, map_size};
use crate::model::attach_point::{Direction, Order, ProgramKind, TracepointName, TypeFilter};
use crate::model::bytecode::PullPolicy;
use crate::model::text::nearest_hint;

/// `load WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum LoadCommand {
    /// Load programs of an object file on this host
    File(LoadFileArgs),
    /// Load programs of a bytecode image, verified against the policy
    Image(LoadImageArgs),
}

/// `load file`.
#[derive(Debug, Clone, Args)]
pub struct LoadFileArgs {
    /// The object file
    #[arg(short = 'p', long, value_name = "FILE")]
    pub path: PathBuf,
    /// Common flags.
    #[command(flatten)]
    pub common: LoadArgs,
}

/// `load image`.
#[derive(Debug, Clone, Args)]
pub struct LoadImageArgs {
    /// The image, as in the annotation `image`
    #[arg(short, long, value_name = "REF")]
    pub image_url: String,
    /// When to query the registry
    #[arg(short, long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = values::pull_policy())]
    pub pull_policy: PullPolicy,
    /// user:password in base64, for this image only; visible to other users in the process list
    #[arg(short, long, value_name = "BASE64", value_parser = RegistryAuth::take)]
    pub registry_auth: Option<RegistryAuth>,
    /// Common flags.
    #[command(flatten)]
    pub common: LoadArgs,
}

/// Flags of every load.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Programs to load: TYPE:FUNCTION, or TYPE:FUNCTION:TARGET where loading fixes the target (fentry, lsm, iter …)
    #[arg(long, required_unless_present = "attach", value_name = "TYPE:FUNCTION[:TARGET]", num_args = 1.., value_parser = wanted)]
    pub programs: Vec<ProgramArg>,
    /// Load a program and attach it, as in the annotation `programs`: 'xdp:count iface=eth0 priority=50'
    #[arg(long, value_name = "ENTRY", num_args = 1..)]
    pub attach: Vec<String>,
    /// A global variable: NAME= its bytes in memory order, or NAME:= a value as in the annotation `globals`
    #[arg(short, long = "global", value_name = "NAME=HEX|NAME:=VALUE", num_args = 1.., value_parser = global)]
    pub globals: Vec<(String, GlobalValue)>,
    /// Entries of a map, or bytes of a ring buffer, instead of what the object declares
    #[arg(long = "map-size", value_name = "MAP=ENTRIES", num_args = 1.., value_parser = map_size)]
    pub map_sizes: Vec<MapSize>,
    /// A label, for selecting the programs
    #[arg(short, long, value_name = "KEY=VALUE", num_args = 1.., value_delimiter = ',', value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// The application that the programs belong to; `unload --application` removes all of them
    #[arg(short, long, value_name = "NAME")]
    pub application: Option<String>,
    /// Share the maps of this program by name, instead of creating new ones
    #[arg(long, value_name = "PROGRAM_ID", value_parser = values::kernel_id)]
    pub map_owner_id: Option<u32>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// One value of `--programs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramArg {
    /// Program type.
    pub kind: ProgramKind,
    /// The function in the object file.
    pub function: String,
    /// For fentry, fexit and lsm: the attach target, which is fixed at load.
    pub target: Option<String>,
}

/// `attach PROGRAM_ID WHERE`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// Kernel id of the program
    #[arg(value_name = "PROGRAM_ID", value_parser = values::kernel_id)]
    pub program: u32,
    /// Attach point.
    #[command(subcommand)]
    pub place: AttachTo,
}

/// Attach points.
#[derive(Debug, Clone, Subcommand)]
pub enum AttachTo {
    /// XDP, on an interface
    Xdp(InterfaceArgs),
    /// Classifier on an interface; uses tcx if the kernel supports it
    Tc(DirectedArgs),
    /// Classifier on an interface, with tcx
    Tcx(DirectedArgs),
    /// A tracepoint
    Tracepoint {
        /// CATEGORY/NAME
        #[arg(short, long, value_parser = tracepoint)]
        tracepoint: TracepointName,
        /// Common flags.
        #[command(flatten)]
        link: LinkArgs,
    },
    /// A kernel function, or its return
    Kprobe {
        /// The function
        #[arg(short, long, value_name = "FUNCTION")]
        fn_name: String,
        /// Offset in bytes from the start of the function
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        offset: u64,
        /// Attach to the return; implied for programs of a kretprobe section
        #[arg(short, long)]
        retprobe: bool,
        /// Common flags.
        #[command(flatten)]
        link: LinkArgs,
    },
    /// A location in a binary or library, or the return of a function there
    Uprobe {
        /// A path, or the name of a library
        #[arg(short, long)]
        target: String,
        /// The function; without it, the offset is relative to the start of the file
        #[arg(short, long, value_name = "FUNCTION")]
        fn_name: Option<String>,
        /// Offset in bytes from the start of the function
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        offset: u64,
        /// Only this process
        #[arg(short, long, value_parser = values::process)]
        pid: Option<u32>,
        /// Resolve the target in the root directory of this process
        #[arg(short, long, value_name = "PID", value_parser = values::process)]
        container_pid: Option<u32>,
        /// Attach to the return; implied for programs of a uretprobe section
        #[arg(short, long)]
        retprobe: bool,
        /// Common flags.
        #[command(flatten)]
        link: LinkArgs,
    },
    /// The entry of the kernel function that the program was loaded for
    Fentry(LinkArgs),
    /// The exit of the kernel function that the program was loaded for
    Fexit(LinkArgs),
    /// The LSM hook that the program was loaded for
    Lsm(LinkArgs),
    /// A program of another type: TYPE[:TARGET] and its options, as in the annotation
    Other(OtherArgs),
}

/// `attach PROGRAM_ID other`.
#[derive(Debug, Clone, Args)]
pub struct OtherArgs {
    /// For example `iter:task`, `netfilter pf=ipv4 hook=input`, `cgroup_skb attach=egress`
    #[arg(required = true, value_name = "TYPE[:TARGET] OPTION=VALUE")]
    pub entry: Vec<String>,
    /// The network namespace, for example /run/netns/blue [default: the host's]
    #[arg(short, long, value_name = "FILE", value_parser = absolute_path)]
    pub netns: Option<PathBuf>,
    /// The cgroup, a directory
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub cgroup: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub link: LinkArgs,
}

/// Flags of every link.
#[derive(Debug, Clone, Args)]
pub struct LinkArgs {
    /// A label, for selecting the link
    #[arg(short, long, value_name = "KEY=VALUE", num_args = 1.., value_delimiter = ',', value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// An interface.
#[derive(Debug, Clone, Args)]
pub struct InterfaceArgs {
    /// The interface
    #[arg(short, long)]
    pub iface: String,
    /// 1 to 1000; lower values run first
    #[arg(short, long, default_value = "50", value_parser = Order::priority)]
    pub priority: u16,
    /// A return value after which the next program runs
    #[arg(long, value_name = "VERDICT", num_args = 1.., value_delimiter = ',')]
    pub proceed_on: Vec<String>,
    /// The network namespace, for example /run/netns/blue [default: the host's]
    #[arg(short, long, value_name = "FILE", value_parser = absolute_path)]
    pub netns: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub link: LinkArgs,
}

/// A direction on an interface.
#[derive(Debug, Clone, Args)]
pub struct DirectedArgs {
    /// The direction of the packets
    #[arg(short, long, value_parser = values::direction())]
    pub direction: Direction,
    /// The interface.
    #[command(flatten)]
    pub interface: InterfaceArgs,
}

/// `detach LINK_ID…`.
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// Kernel ids of links
    #[arg(required = true, value_name = "LINK_ID", value_parser = values::kernel_id)]
    pub links: Vec<u32>,
    /// Do not fail if a link does not exist
    #[arg(long)]
    pub ignore_missing: bool,
}

/// `unload PROGRAM_ID…`.
#[derive(Debug, Clone, Args)]
pub struct UnloadArgs {
    /// Kernel ids of programs
    #[arg(required_unless_present = "application", conflicts_with = "application", value_name = "PROGRAM_ID", value_parser = values::kernel_id)]
    pub programs: Vec<u32>,
    /// All programs of this application
    #[arg(long, value_name = "NAME")]
    pub application: Option<String>,
    /// Do not fail if a program does not exist
    #[arg(long)]
    pub ignore_missing: bool,
}

/// Which programs `list programs` shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct Selection {
    /// Also list programs that bpfman-hook did not load, as reported by the kernel
    #[arg(short, long, conflicts_with_all = ["application", "metadata_selector", "attached", "unattached"])]
    pub all: bool,
    /// Selection that programs and links share.
    #[command(flatten)]
    pub common: Selectors,
    /// Only attached programs
    #[arg(long, conflicts_with = "unattached")]
    pub attached: bool,
    /// Only programs without a link
    #[arg(long)]
    pub unattached: bool,
}

/// Selection of programs and of programs' links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Selectors {
    /// Only programs of this type: xdp, tcx, kprobe …, or a kernel program type: tc, probe, tracing …
    #[arg(short = 't', short_alias = 'p', long, alias = "type", alias = "kind", value_name = "TYPE")]
    #[arg(value_parser = values::type_filter)]
    pub program_type: Option<TypeFilter>,
    /// Only these programs
    #[arg(long, value_name = "PROGRAM_ID", num_args = 1.., value_delimiter = ',', value_parser = values::kernel_id)]
    pub program_id: Vec<u32>,
    /// Only programs of this application
    #[arg(long, value_name = "NAME")]
    pub application: Option<String>,
    /// Only with this label, set on the program or on the link
    #[arg(short, long, value_name = "KEY=VALUE", num_args = 1.., value_delimiter = ',', value_parser = key_value)]
    pub metadata_selector: Vec<(String, String)>,
}

fn kind(word: &str) -> Result<ProgramKind, String> {
    let known = || ProgramKind::ALL.iter().map(|(_, word)| *word).collect::<Vec<_>>().join(", ");
    let hint = || nearest_hint(word, ProgramKind::ALL.map(|(_, word)| word));
    ProgramKind::from_word(word).ok_or_else(|| format!("write one of {}{}", known(), hint()))
}

fn wanted(text: &str) -> Result<ProgramArg, String> {
    let mut parts = text.splitn(3, ':');
    let (Some(word), Some(function)) = (parts.next(), parts.next().filter(|function| !function.is_empty())) else {
        return Err("write TYPE:FUNCTION, for example xdp:pass".to_owned());
    };
    let (kind, target) = (kind(word)?, parts.next().map(str::to_owned));
    if target.is_some() && !kind.fixed_at_load() {
        return Err(format!("{kind} takes no target here; give it to `attach`"));
    }
    Ok(ProgramArg { kind, function: function.to_owned(), target })
}

/// bpfman's values are bytes. Typed values use `:=`, since `rate=10` could be either.
fn global(text: &str) -> Result<(String, GlobalValue), String> {
    const WRITE: &str = "write NAME=HEX, or NAME:=VALUE for a number, a word or a list";
    let (name, value) = text.split_once('=').ok_or(WRITE)?;
    if let Some(name) = name.strip_suffix(':') {
        return Ok((name.to_owned(), global_value(value)?));
    }
    let digits = ["0x", "hex:"].iter().find_map(|prefix| value.strip_prefix(prefix)).unwrap_or(value);
    let bytes = hex::decode(digits).ok().filter(|bytes| !bytes.is_empty());
    let bytes = bytes.ok_or_else(|| {
        format!("= takes bytes in memory order, as two hexadecimal digits each; write {name}:=VALUE for a value")
    })?;
    Ok((name.to_owned(), GlobalValue::Bytes(bytes)))
}

fn tracepoint(text: &str) -> Result<TracepointName, String> {
    match text.split_once('/') {
        Some((category, name)) if !category.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(TracepointName { category: category.to_owned(), name: name.to_owned() })
        }
        _ => Err("write CATEGORY/NAME, for example sched/sched_switch".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_formats_match_bpfman() {
        let simple = |kind, function: &str| ProgramArg { kind, function: function.to_owned(), target: None };
        assert_eq!(wanted("xdp:pass"), Ok(simple(ProgramKind::Xdp, "pass")));
        let target = Some("do_unlinkat".to_owned());
        assert_eq!(wanted("fentry:trace:do_unlinkat"), Ok(ProgramArg { target, ..simple(ProgramKind::Fentry, "trace") }));
        for (text, said) in
            [("xdp", "TYPE:FUNCTION"), ("xdp:", "TYPE:FUNCTION"), ("ydp:x", "write one of"), ("xdp:x:lo", "no target")]
        {
            assert!(wanted(text).unwrap_err().contains(said), "{text}");
        }
        for text in ["rate=0a00", "rate=0x0a00", "rate=hex:0a00", "rate:=hex:0a00"] {
            assert_eq!(global(text), Ok(("rate".to_owned(), GlobalValue::Bytes(vec![10, 0]))));
        }
        for (text, value) in [
            ("rate:=10", GlobalValue::Word("10".to_owned())),
            ("rate:='a; b'", GlobalValue::Text("a; b".to_owned())),
            ("rate:=[1 2]", GlobalValue::Array(vec!["1".to_owned(), "2".to_owned()])),
        ] {
            assert_eq!(global(text), Ok(("rate".to_owned(), value)));
        }
        for text in ["rate", "rate=", "rate=0x", "rate=abc", "rate=zz", "rate:=", "rate:=[1", "rate:=1; b=2"] {
            assert!(global(text).is_err(), "{text}");
        }
        assert!(tracepoint("sched/sched_switch").is_ok() && tracepoint("sched").is_err() && tracepoint("a/b/c").is_err());
    }
}
