//! Process entry: a child role or the command line, one error line, the exit status.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use bpfman_hook::cli::police::PoliceCommand;
use bpfman_hook::cli::proxy::ProxyCommand;
use bpfman_hook::cli::service::SystemCommand;
use bpfman_hook::cli::{self, Command, HookStage, PolicyCommand, TokenCommand};
use bpfman_hook::commands::image as image_commands;
use bpfman_hook::commands::{
    complete, documents, events, gate, graph, guard, manual, police, policy, privilege, records, request_child, token,
};
use bpfman_hook::doctor::no_connect;
use bpfman_hook::hooks::{create_runtime, poststop, precreate};
use bpfman_hook::image;
use bpfman_hook::kernel::{self, LinuxKernel};
use bpfman_hook::output::error::CommandError;
use bpfman_hook::output::logging;
use bpfman_hook::paths::Paths;
use bpfman_hook::setup::{first_policy, install};
use bpfman_hook::sys::child::{self, Role};
use bpfman_hook::sys::token::matrix;
use bpfman_hook::sys::{environment, export};
use bpfman_hook::{doctor, grpc, metrics, nri, proxy};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    environment::ignore_file_size_signal();
    if let Some(role) = child::role_from_args(&args) {
        return match role {
            Role::Fetch => image::fetch_child(),
            Role::Request => request_child::child(),
            Role::Missed => nri::missed::child(),
            Role::Matrix => matrix::child(),
        };
    }
    environment::reset_child_signal();
    let cli = cli::parse(&args);
    match cli.command {
        Command::Hook(_) => {}
        Command::Nri(_) => logging::of_service(),
        _ => logging::to_stderr(),
    }
    let root = cli.root;
    let paths = root.as_deref().map_or_else(Paths::system, Paths::below);
    export::install(paths.export());
    kernel::gate_exemption::install(paths.gate());
    run(cli.command, root.as_deref(), &paths).unwrap_or_else(|error| match &root {
        Some(root) => error.below(root).print(),
        None => error.print(),
    })
}

/// Runs one command; `root` is `--root`.
fn run(command: Command, root: Option<&Path>, paths: &Paths) -> Result<ExitCode, CommandError> {
    if !matches!(command, Command::Hook(_)) {
        privilege::require(&command, root, paths)?;
    }
    match command {
        Command::Hook(args) => {
            // Environment and umask come from the runtime's caller.
            environment::clear();
            environment::share_one_heap();
            // A hook reports its errors itself: in the journal too, and in a line of limited length.
            Ok(match args.stage {
                HookStage::CreateRuntime => create_runtime::run(
                    paths,
                    args.engine,
                    create_runtime::PluginFacts { labels: args.labels, pod_check: args.pod_check, police: args.police },
                ),
                HookStage::Poststop => poststop::run(paths),
                HookStage::Precreate => precreate::run(paths, args.engine),
            })
        }
        Command::Load(what) => manual::load(paths, &what),
        Command::Attach(args) => manual::attach(paths, &args),
        Command::Detach(args) => manual::detach(paths, &args),
        Command::Unload(args) => manual::unload(paths, &args),
        Command::List(what) => records::list(paths, what),
        Command::Get(what) => records::get(paths, what),
        Command::Inspect(args) => records::inspect(paths, &args),
        Command::Graph(args) => graph::run(paths, &args),
        Command::Images(listing) => image_commands::cache_commands::list(paths, listing),
        Command::Pull(args) => image_commands::pull::run(paths, &args),
        Command::Image(what) => image_commands::run(paths, &what),
        Command::Nri(args) if args.check && args.no_connect => no_connect::check(root, paths, &args.host),
        Command::Nri(args) => nri::run(root, paths, &args),
        Command::Gc(args) => records::gc(paths, args),
        Command::Events(args) => events::run(paths, &args),
        Command::Metrics(args) => metrics::run(paths, &args),
        Command::Completions { shell } => documents::completions(shell),
        Command::Complete(args) => complete::run(&args),
        Command::Man { dir } => documents::man(&dir),
        Command::Token(TokenCommand::Create(args)) => token::create(paths, &args),
        Command::Token(TokenCommand::Explain(args)) => token::explain(paths, &args),
        Command::Token(TokenCommand::Profile(args)) => token::profile(paths, &args),
        Command::Token(TokenCommand::Probe(args)) => token::probe(&args),
        Command::Proxy(ProxyCommand::Serve) => proxy::serve(paths),
        Command::Proxy(ProxyCommand::Profile(args)) => proxy::print_profile(paths, &args),
        Command::Proxy(ProxyCommand::OwnSocket { path }) => proxy::serve_own_socket(&path),
        Command::Police(PoliceCommand::Profile(args)) => police::profile(paths, &args),
        Command::Guard(what) => guard::run(paths, &what),
        Command::Gate(what) => gate::run(paths, &what),
        Command::Policy(PolicyCommand::Check(args)) => policy::run_check(paths, &args),
        Command::Policy(PolicyCommand::Explain(args)) => policy::run_explain(paths, &args),
        Command::Init(args) => first_policy::run(paths, &args),
        Command::Doctor(args) => doctor::run(paths, &args, &LinuxKernel),
        Command::System(SystemCommand::Service(args)) => grpc::run(paths, &args),
        Command::Install(args) => install::run(root, &args),
        Command::Uninstall(args) => install::undo(root, &args),
        Command::Version(args) => documents::version(args),
    }
}
