//! The command line as types. Help, man pages and completions are generated from here; no command is executed here.
//!
//! `hook` runs on the start path of every annotated container, so [`hook_fast_path`] parses exactly what the installed
//! hook files contain, without building clap's command tree. Everything else goes to clap, which accepts the same
//! syntax and explains errors.

mod bpfman_words;
mod examples;
pub mod gate;
pub mod graph;
pub mod guard;
pub mod image;
pub mod init;
mod nearest;
pub mod nri;
pub mod police;
pub mod proxy;
pub mod service;
pub mod token_profile;
pub mod watch;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgAction, ArgGroup, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::model::bytecode::PullPolicy;
use crate::model::container::PodCheck;
use crate::model::delegation::{ObjectLoader, Spelling};
use crate::model::policy::Engine;
use token_profile::TokenProfileArgs;

mod containerd;
mod help;
pub mod program;
pub mod registry;
pub mod uninstall;
mod values;

pub use containerd::ContainerdTargets;
pub use examples::examples_of;
pub use registry::RegistryArgs;
pub use uninstall::UninstallArgs;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "bpfman-hook",
    about = "eBPF for containers at start: verified programs, BPF tokens, no daemon",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Keep all of bpfman-hook's directories below DIR (absolute) instead of /
    #[arg(long, global = true, value_name = "DIR", value_parser = absolute_path, display_order = 900)]
    pub root: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run by runtimes: OCI state (precreate: configuration) on stdin
    Hook(HookArgs),
    /// Load programs of a file or an image; `attach` attaches them
    #[command(subcommand)]
    Load(program::LoadCommand),
    /// Attach a program that `load` loaded
    Attach(program::AttachArgs),
    /// Remove links of programs that `load` loaded
    Detach(program::DetachArgs),
    /// Remove programs that `load` loaded, with their links
    Unload(program::UnloadArgs),
    /// List programs, links or containers
    #[command(subcommand)]
    List(ListCommand),
    /// Show one program or link
    #[command(subcommand)]
    Get(GetCommand),
    /// Show everything that one container owns
    Inspect(InspectArgs),
    /// Draw what a container, or this host, has: SVG or Mermaid
    Graph(graph::GraphArgs),
    /// Same as `image list`, under bpfman's name
    #[command(hide = true)]
    Images(Listing),
    /// Fetch images and verify them against the policy
    Pull(PullArgs),
    /// List, build, inspect, transfer and remove images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Create, explain or test BPF delegation
    #[command(subcommand)]
    Token(TokenCommand),
    /// The proxy of bpf(2), for containers that load programs themselves
    #[command(subcommand)]
    Proxy(proxy::ProxyCommand),
    /// Write the first policy of this host
    Init(init::InitArgs),
    /// Record the bpf(2) calls of a workload as a rule for policing
    #[command(subcommand)]
    Police(police::PoliceCommand),
    /// The guard of BPF tokens: LSM programs that judge their use
    #[command(subcommand)]
    Guard(guard::GuardCommand),
    /// The gate: only listed executables load BPF programs
    #[command(subcommand)]
    Gate(gate::GateCommand),
    /// Check policy files, or show what they would allow
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Run the NRI plugin: hooks for containers of containerd and CRI-O
    Nri(nri::NriArgs),
    /// Release what dead containers left behind
    Gc(GcArgs),
    /// Print events: acquired, released, refused …; -f follows
    Events(watch::EventsArgs),
    /// Serve or write metrics; only reads the exported files
    Metrics(watch::MetricsArgs),
    /// Examine this host; each finding comes with its remedy
    Doctor(DoctorArgs),
    /// Serve bpfman's gRPC API on demand
    #[command(subcommand)]
    System(service::SystemCommand),
    /// Install the binary, the hook files and the mount unit
    Install(InstallArgs),
    /// Remove what `install` wrote, hook files first
    Uninstall(UninstallArgs),
    /// Print the version and the store's revision
    Version(Formatted),
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Say what a word of a command line may be; run by the completion scripts
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
    /// Write the man pages into DIR
    Man {
        /// An existing directory
        dir: PathBuf,
    },
}

/// `hook STAGE [--engine ENGINE]`, as in the installed hook files.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HookArgs {
    /// The stage; runtimes do not pass it to a hook themselves
    #[arg(value_enum)]
    pub stage: HookStage,
    /// The container engine, if the bundle's path does not tell
    #[arg(long, value_name = "ENGINE", value_parser = values::engine())]
    pub engine: Option<Engine>,
    /// A label of the pod, passed by the NRI plugin
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Passed by the NRI plugin for a pod with a BPF token: check `this` container or `every` one
    #[arg(long, value_name = "WHOSE", value_parser = pod_check)]
    pub pod_check: Option<PodCheck>,
    /// Passed by the NRI plugin and by `install --police`: also police a container that requests nothing
    #[arg(long)]
    pub police: bool,
    /// `--root`, if the fast path parsed it.
    #[arg(skip)]
    pub root: Option<PathBuf>,
}

/// The stages at which the hook acts, spelled as in the runtime-spec and in podman's hook files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum HookStage {
    /// Load, attach and mount, before the container's process starts
    #[value(name = "createRuntime")]
    CreateRuntime,
    /// Undo all of it
    #[value(name = "poststop")]
    Poststop,
    /// podman: add to the configuration what the request needs and the policy grants
    #[value(name = "precreate")]
    Precreate,
}

impl HookStage {
    /// The stage's name in the runtime-spec and in hook files.
    pub fn word(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::Poststop => "poststop",
            Self::Precreate => "precreate",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::CreateRuntime, Self::Poststop, Self::Precreate].into_iter().find(|stage| stage.word() == word)
    }
}

/// Table or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    // Without a text for each value, the help names the values on the option's line. bpfman says `text`.
    #[default]
    #[value(alias = "text")]
    Table,
    Json,
}

/// `-o` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct Formatted {
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// Flags of every listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct Listing {
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
    /// Print ids only, one per line
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Do not shorten ids, names and images
    #[arg(long)]
    pub no_trunc: bool,
}

/// `list containers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct ContainersArgs {
    /// Spell out what is delegated
    #[arg(short, long)]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub listing: Listing,
}

/// `list WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum ListCommand {
    /// Programs with owner, kind and kernel id
    #[command(alias = "program")]
    Programs(ProgramsArgs),
    /// Links with program and attach point
    #[command(alias = "link")]
    Links(LinksArgs),
    /// Containers as a tree: programs, links, bpffs, state
    #[command(alias = "container")]
    Containers(ContainersArgs),
    /// Same as `image list`
    #[command(hide = true)]
    Images(Listing),
}

/// `list programs`.
#[derive(Debug, Clone, Args)]
pub struct ProgramsArgs {
    /// Which programs.
    #[command(flatten)]
    pub selection: program::Selection,
    /// Query the kernel for each program: run time and run count, memory, verified instructions
    #[arg(long, conflicts_with = "quiet")]
    pub stats: bool,
    /// Format.
    #[command(flatten)]
    pub listing: Listing,
}

/// `list links`.
#[derive(Debug, Clone, Args)]
pub struct LinksArgs {
    /// Which links.
    #[command(flatten)]
    pub selection: program::Selectors,
    /// Format.
    #[command(flatten)]
    pub listing: Listing,
}

/// `get WHAT ID`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum GetCommand {
    /// One program by its kernel id
    Program(GetArgs),
    /// One link by its kernel id
    Link(GetArgs),
}

/// A kernel id and a format.
#[derive(Debug, Clone, Copy, Args)]
pub struct GetArgs {
    /// Kernel id
    #[arg(value_parser = values::kernel_id)]
    pub id: u32,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `inspect CONTAINER`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Id or the beginning of it, podman's name, or POD/CONTAINER
    pub container: String,
    /// Spell out what is delegated
    #[arg(short, long)]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `pull REF…`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// As in the annotation `image`: registry/repo[:tag][@digest], oci:/dir[:tag], oci-archive:/file[:tag], file:/path
    #[arg(required = true, value_name = "REF")]
    pub references: Vec<String>,
    /// When to query the registry
    #[arg(short = 'p', long, value_name = "WHEN", default_value = "Always", value_parser = values::pull_policy())]
    pub pull_policy: PullPolicy,
    /// Credentials.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Print digests only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `token WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Mount a delegated bpffs for a running container or process, or for a command in namespaces of its own
    Create(TokenCreateArgs),
    /// Explain tokens: what they are, what a container or process has, what an object needs
    Explain(TokenExplainArgs),
    /// Record what the bpf(2) calls of a command or of a container need, with a token and with the proxy
    Profile(TokenProfileArgs),
    /// Try out a token: run it inside the container
    Probe(TokenProbeArgs),
}

/// `token create`.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("target").required(true)))]
pub struct TokenCreateArgs {
    /// A running container, by its id, the beginning of it, or its name: the policy decides what it may get
    #[arg(long, value_name = "ID", group = "target")]
    pub container: Option<String>,
    /// A process in user and mount namespaces of its own, which is in no container
    #[arg(long, group = "target", value_parser = values::process)]
    pub pid: Option<u32>,
    /// Mount point in the root of the container or process
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf", value_parser = absolute_path)]
    pub path: PathBuf,
    /// Where the container's runtime keeps its state, if it was called with --root
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub state: Option<PathBuf>,
    /// Presets: maps probes networking cgroup sockets tracing
    #[arg(long, value_name = "PRESETS", required_unless_present_any = ["cmds", "maps", "progs", "attachs"])]
    pub delegate: Option<String>,
    /// Commands in addition to the presets', as in `delegate-cmds`
    #[arg(long = "delegate-cmds", value_name = "NAMES")]
    pub cmds: Option<String>,
    /// Map types in addition to the presets'
    #[arg(long = "delegate-maps", value_name = "NAMES")]
    pub maps: Option<String>,
    /// Program types in addition to the presets'
    #[arg(long = "delegate-progs", value_name = "NAMES")]
    pub progs: Option<String>,
    /// Attach types in addition to the presets'
    #[arg(long = "delegate-attachs", value_name = "NAMES")]
    pub attachs: Option<String>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
    /// Run COMMAND in new user, mount and network namespaces with the bpffs, and release it when COMMAND ends
    #[arg(long, group = "target", requires = "command")]
    pub exec: bool,
    /// The command of --exec
    #[arg(last = true, value_name = "COMMAND", requires = "exec")]
    pub command: Vec<OsString>,
}

/// `token explain`.
#[derive(Debug, Clone, Args)]
pub struct TokenExplainArgs {
    /// Explain what is delegated to this process, by whom, and why its calls fail [default: the calling process]
    #[arg(long, group = "subject", value_parser = values::process)]
    pub pid: Option<u32>,
    /// The same for a container that has a record, by its id, the beginning of it, or its name
    #[arg(long, value_name = "ID", group = "subject")]
    pub container: Option<String>,
    /// Print the smallest delegation and the capabilities that these BPF objects need, and what for
    #[arg(long = "object", value_name = "FILE", num_args = 1.., group = "subject")]
    pub objects: Vec<PathBuf>,
    /// What loads the objects: libbpf (also bpftool, libbpf-rs), which probes the kernel first, or other
    #[arg(long, value_name = "LOADER", default_value = "libbpf", value_parser = values::object_loader(), requires = "objects")]
    pub loader: ObjectLoader,
    /// Explain a request: annotations, or what LXD, Incus or systemd call them
    #[arg(long = "request", value_name = "KEY=VALUE", value_parser = key_value, group = "subject")]
    pub request: Vec<(String, String)>,
    /// Print only the delegation, in this spelling
    #[arg(long = "as", value_name = "SPELLING", value_parser = values::spelling(), conflicts_with = "scope")]
    pub spelling: Option<Spelling>,
    /// Print for each program type what a program that is loaded with a token reaches on this kernel
    #[arg(long, group = "subject")]
    pub scope: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `token probe`.
#[derive(Debug, Clone, Args)]
pub struct TokenProbeArgs {
    /// The bpffs
    #[arg(value_name = "PATH", default_value = "/sys/fs/bpf", value_parser = absolute_path)]
    pub path: PathBuf,
    /// Attach the probe's XDP and tcx programs to this interface while the probe runs [default: lo]
    #[arg(long, value_name = "IFACE")]
    pub iface: Option<String>,
    /// Count packets there for this many seconds, then print how many each program saw
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub count: u32,
    /// Try every command, map, program, link and attach type instead, in namespaces of their own (run it as root)
    #[arg(long, conflicts_with_all = ["path", "iface", "count"])]
    pub matrix: bool,
    /// Print the matrix as Markdown
    #[arg(long, requires = "matrix", conflicts_with = "output")]
    pub markdown: bool,
    /// Spell out what the token allows
    #[arg(short, long, conflicts_with = "matrix")]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `policy WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Parse policy files as the hook does; exit 2 if one is invalid
    Check(PolicyCheckArgs),
    /// Show what a request would get, by which rule, and what would be refused
    Explain(PolicyExplainArgs),
}

/// `policy check`.
#[derive(Debug, Clone, Args)]
pub struct PolicyCheckArgs {
    /// A policy file [default: the installed policy with its keys]
    pub file: Option<PathBuf>,
    /// Spell out what the rules delegate
    #[arg(short, long)]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `policy explain`.
#[derive(Debug, Clone, Args)]
pub struct PolicyExplainArgs {
    /// An annotation of the request; the prefix hook.bpfman.io/ may be omitted
    #[arg(short, long = "annotation", value_name = "KEY=VALUE", value_parser = key_value)]
    pub annotations: Vec<(String, String)>,
    /// Judge the pods of a Kubernetes manifest, YAML or JSON, instead; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["annotations", "pod", "container", "labels", "userns"])]
    pub file: Option<PathBuf>,
    /// The container engine [default: oci; containerd with --file]
    #[arg(long, value_name = "ENGINE", value_parser = values::engine())]
    pub engine: Option<Engine>,
    /// Kubernetes namespace (containerd, cri-o)
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Name of the pod
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// Name of the container in the pod
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// A label of the pod (NRI plugin)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Uid of the runtime
    #[arg(long, value_name = "UID", default_value_t = 0)]
    pub runtime_user: u32,
    /// Whether the container has its own user namespace
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub userns: bool,
    /// Spell out what is delegated
    #[arg(short, long)]
    pub verbose: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `gc`.
#[derive(Debug, Clone, Copy, Args)]
pub struct GcArgs {
    /// Show what would be released, and release nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print only what could not be released
    #[arg(short, long)]
    pub quiet: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

/// `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print only findings that are not ok
    #[arg(short, long)]
    pub quiet: bool,
    /// Write what a bug report needs into a new FILE, without secrets; the exit status does not depend on the findings
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quiet", "output"])]
    pub report: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// `__complete SHELL INDEX -- WORD…`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CompleteArgs {
    /// The shell that asks
    #[arg(value_enum)]
    pub shell: CompletingShell,
    /// The number of the word that is completed
    pub index: usize,
    /// The words of the command line
    #[arg(last = true)]
    pub words: Vec<OsString>,
}

/// A shell whose script asks for candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompletingShell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// The engines, and the paths to install to.
#[derive(Debug, Clone, Args)]
pub struct InstallTargets {
    /// podman: hooks, precreate and its hooks_dir (the default)
    #[arg(long)]
    pub podman: bool,
    /// CRI-O: hooks without precreate
    #[arg(long)]
    pub crio: bool,
    /// containerd.
    #[command(flatten)]
    pub containerd: ContainerdTargets,
    /// gRPC service.
    #[command(flatten)]
    pub service: service::ServiceTarget,
    /// Proxy.
    #[command(flatten)]
    pub proxy: proxy::ProxyTarget,
    /// Policing.
    #[command(flatten)]
    pub police: police::PoliceTarget,
    /// Guard.
    #[command(flatten)]
    pub guard: guard::GuardTarget,
    /// Gate.
    #[command(flatten)]
    pub gate: gate::GateTarget,
    /// NRI plugin.
    #[command(flatten)]
    pub nri: nri::NriTarget,
    /// Metrics.
    #[command(flatten)]
    pub metrics: watch::MetricsTarget,
    /// Do not install the systemd timer that runs `gc` every minute
    #[arg(long)]
    pub no_timer: bool,
    /// Policy files (*.toml), keys (*.pub), trust roots (*.json) of DIR; replaces those of the last --policy
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub policy: Option<PathBuf>,
    /// Registry files of DIR (registries.toml, auth.json, *.pem, *.crt, *.cert, *.key); replaces those of the last --registries
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub registries: Option<PathBuf>,
    /// Do not install man pages and completions
    #[arg(long)]
    pub no_docs: bool,
    /// Install the binary in PREFIX/bin [default: /usr/local; /usr if a package of bpfman-hook is installed]
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub prefix: Option<PathBuf>,
    /// Stage below DIR, for packages and tests; mount and start nothing
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub destdir: Option<PathBuf>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

impl InstallTargets {
    /// CRI-O's hook files on the host whose root directory is `host`. The standby plugin runs gc.
    pub fn of_crio(host: &Path) -> Self {
        Self { crio: true, no_timer: true, ..Self::on(host) }
    }

    /// Nothing yet, on the host whose root directory is `host`.
    pub fn on(host: &Path) -> Self {
        Self {
            podman: false,
            crio: false,
            containerd: ContainerdTargets::default(),
            service: service::ServiceTarget::default(),
            proxy: proxy::ProxyTarget::default(),
            police: police::PoliceTarget::default(),
            guard: guard::GuardTarget::default(),
            gate: gate::GateTarget::default(),
            nri: nri::NriTarget::default(),
            metrics: watch::MetricsTarget::default(),
            no_timer: false,
            policy: None,
            registries: None,
            no_docs: false,
            prefix: None,
            destdir: Some(host.to_owned()),
            dry_run: false,
            format: Formatted::default(),
        }
    }

    /// True if a target is named that needs no hook files.
    pub fn names_more(&self) -> bool {
        self.containerd.containerd
            || self.service.service
            || self.proxy.proxy
            || self.guard.guard
            || self.gate.gate
            || self.nri.nri
            || self.metrics.metrics
    }
}

/// `install`.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// Check each installed item, change nothing; exit 1 if one is wrong
    #[arg(long, conflicts_with = "dry_run")]
    pub check: bool,
    /// Targets.
    #[command(flatten)]
    pub targets: InstallTargets,
}

/// Parses `hook STAGE [--engine ENGINE] [--label KEY=VALUE …] [--pod-check WHOSE] [--police] [--root DIR]` without
/// clap; `args`
/// are the arguments after the program's name.
///
/// Returns None for anything else, however small the difference: clap then decides, and explains the error.
pub fn hook_fast_path<S: AsRef<OsStr>>(args: &[S]) -> Option<HookArgs> {
    let mut words = args.iter().map(AsRef::as_ref);
    if words.next()? != "hook" {
        return None;
    }
    let stage = HookStage::from_word(words.next()?.to_str()?)?;
    let mut hook = HookArgs { stage, engine: None, labels: Vec::new(), pod_check: None, police: false, root: None };
    while let Some(word) = words.next() {
        if word == "--police" {
            hook.police = true;
            continue;
        }
        let value = words.next()?;
        match word.to_str()? {
            "--engine" if hook.engine.is_none() => hook.engine = Some(engine(value.to_str()?).ok()?),
            "--label" => hook.labels.push(key_value(value.to_str()?).ok()?),
            "--pod-check" if hook.pod_check.is_none() => hook.pod_check = Some(pod_check(value.to_str()?).ok()?),
            "--root" if hook.root.is_none() && Path::new(value).is_absolute() => hook.root = Some(PathBuf::from(value)),
            _ => return None,
        }
    }
    Some(hook)
}

fn engine(word: &str) -> Result<Engine, String> {
    Engine::from_word(word).ok_or_else(|| format!("write {}", Engine::ALL.map(Engine::word).join(", ")))
}

fn pod_check(word: &str) -> Result<PodCheck, String> {
    PodCheck::from_word(word).ok_or_else(|| "write this or every".to_owned())
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// The whole command, as help, man pages and completions show it.
pub fn command() -> clap::Command {
    help::grouped(examples::added(Cli::command()))
}

/// Parses the command line of this process: [`hook_fast_path`] first, then clap, which prints help and usage errors and
/// exits 0 or 2.
pub fn parse(args: &[OsString]) -> Cli {
    match hook_fast_path(args.get(1..).unwrap_or_default()) {
        Some(mut hook) => Cli { root: hook.root.take(), command: Command::Hook(hook) },
        None => try_parse(args).unwrap_or_else(|error| error.exit()),
    }
}

/// Parses a command line with clap, after bpfman's words became ours.
///
/// Errors: help and the version too, which clap prints as it prints an error.
pub fn try_parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = command();
    let args = bpfman_words::translate(args)
        .map_err(|sentence| Cli::command().error(clap::error::ErrorKind::InvalidSubcommand, sentence))?;
    let matches = command.try_get_matches_from_mut(&args).map_err(|error| nearest::added(error, &command, &args))?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}
