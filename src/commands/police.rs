//! `police profile`: what a container or a command does with bpf(2), as a rule.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::police::PoliceProfileArgs;
use crate::kernel::police::PoliceProgram;
use crate::kernel::{Kernel as _, LinuxKernel};
use crate::lifecycle::host::{Host as _, NeededFacts};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::{running, runtime_states};
use crate::model::ids::ContainerId;
use crate::model::plan::{PlanError, no_own_cgroup};
use crate::model::police::{CallProfile, CountedCall, CountedSet, Police, PoliceMode};
use crate::model::proxy::CallCeiling;
use crate::output::error::CommandError;
use crate::output::print;
use crate::paths::Paths;
use crate::store::{Store, StoreError};
use crate::sys::cgroup_command::CommandCgroup;
use crate::sys::clock;

/// Timeout for finding a container's cgroup.
const PATIENCE: Duration = Duration::from_secs(25);
/// How often it is checked whether a recorded container has ended.
const CHECK: Duration = Duration::from_millis(200);

/// What is in progress when recording a container fails.
const DOING: &str = "record a container";

/// Runs the command.
pub fn profile(paths: &Paths, args: &PoliceProfileArgs) -> Result<ExitCode, CommandError> {
    match &args.container {
        Some(prefix) => of_container(paths, prefix, args),
        None => of_command(args),
    }
}

/// The programs in warn mode with empty sets: they count everything and refuse nothing.
fn recorder() -> Result<PoliceProgram, CommandError> {
    let police = Police { mode: PoliceMode::Warn, calls: CallCeiling::default() };
    PoliceProgram::load(&police).map_err(CommandError::doing("record bpf(2) calls"))
}

fn of_command(args: &PoliceProfileArgs) -> Result<ExitCode, CommandError> {
    let program = recorder()?;
    let cgroup = CommandCgroup::create().map_err(CommandError::doing("record bpf(2) calls"))?;
    let links = program.link(cgroup.directory())?;
    let ended = cgroup.run(&args.command)?;
    let shown: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    print_profile(&format!("the command {:?}", shown.join(" ")), &program.calls()?, program.has_functions())?;
    drop(links);
    // Of a command that a signal ended, as shells do.
    Ok(ended.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))))
}

fn of_container(paths: &Paths, prefix: &str, args: &PoliceProfileArgs) -> Result<ExitCode, CommandError> {
    let root = paths.root();
    let recorded = match &args.state {
        Some(directory) => runtime_states::recorded_in(directory, root),
        None => runtime_states::recorded(root),
    };
    let containers = recorded.map_err(CommandError::doing("read the states of running containers"))?;
    let found = running::by_id(containers, prefix).map_err(CommandError::doing(DOING))?;
    let container = running::described_container(&found).map_err(CommandError::doing(DOING))?;
    if let Some(calls) = counted(paths, &container.id)? {
        let has_functions = calls.iter().any(|call| matches!(call.set, CountedSet::Helpers | CountedSet::Kfuncs));
        print_profile(&format!("container {}", container.id), &calls, has_functions)?;
        return Ok(ExitCode::SUCCESS);
    }
    let host = LinuxHost::new(Instant::now() + PATIENCE)?;
    let mut init = host.open_init(&container).map_err(CommandError::doing(DOING))?;
    let need =
        NeededFacts { network: false, interfaces: false, userns: false, cgroup: true, cgroup_mounts: false, root: false };
    let facts = host.facts(&mut init, &container, need).map_err(CommandError::doing(DOING))?;
    let refused = |why| CommandError::doing(DOING)(PlanError::PoliceCgroup { why });
    if let Some(why) = no_own_cgroup(&facts) {
        return Err(refused(why));
    }
    let program = recorder()?;
    let cgroup = host.places(&init).cgroup.ok_or_else(|| refused("its cgroup is not open".to_owned()))?;
    let links = program.link(cgroup)?;
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let identity = host.identity(&init);
    while Instant::now() < until && host.is_alive(&identity)? {
        thread::sleep(CHECK.min(until.saturating_duration_since(Instant::now())));
    }
    print_profile(&format!("container {}", container.id), &program.calls()?, program.has_functions())?;
    drop(links);
    Ok(ExitCode::SUCCESS)
}

/// The counters of a policed container since its start; None if it is not policed.
fn counted(paths: &Paths, id: &ContainerId) -> Result<Option<Vec<CountedCall>>, CommandError> {
    let Some(store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else { return Ok(None) };
    for record in store.read::<_, StoreError>(|txn| txn.by_container(id))? {
        if record.owner.container().is_some_and(|container| container.police.is_some()) {
            return Ok(LinuxKernel.policed_calls(&paths.bpffs().join(record.no.directory()))?);
        }
    }
    Ok(None)
}

fn print_profile(of: &str, calls: &[CountedCall], has_functions: bool) -> Result<(), CommandError> {
    print(&CallProfile { of, calls, has_functions }.to_string()).map(drop)
}
