//! `hook createRuntime`: gives the container what it requests, or reports why not.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::hooks::stage::{BAD_INPUT, CAPABILITIES, FETCH, StageFailure, read_state, watch};
use crate::image::LinuxImages;
use crate::kernel::{LinuxKernel, guard};
use crate::lifecycle::acquire::{Acquired, Start};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::lifecycle::{Lifecycle, podman_names, proxy, registries_file};
use crate::model::annotations::Request;
use crate::model::container::{Container, PodCheck, asks};
use crate::model::metrics_table;
use crate::model::metrics_table::{Outcome, Reason, Stage};
use crate::model::policy::Engine;
use crate::model::registries::RegistryConfig;
use crate::model::state::OciState;
use crate::output::logging;
use crate::output::report::Report;
use crate::paths::Paths;
use crate::store::Store;
use crate::sys::error::chain;
use crate::sys::{caps, clock, export, fsutil, mounts, pid};

/// podman's config.json has about 20 kB.
const CONFIG_MAX: usize = 16 << 20;

/// Facts that the NRI plugin passes in the hook's arguments, because an annotation could be forged.
#[derive(Debug)]
pub struct PluginFacts {
    /// Labels of the pod.
    pub labels: Vec<(String, String)>,
    /// Which containers of its pod have their capabilities checked.
    pub pod_check: Option<PodCheck>,
    /// Whether this run is for containers that request nothing, because their rule may police them.
    pub police: bool,
}

/// Runs at createRuntime: gives the container what it requests, or reports why not.
pub fn run(paths: &Paths, engine: Option<Engine>, told: PluginFacts) -> ExitCode {
    let (report, started) = (Report::new(paths), Instant::now());
    if let Err(error) = caps::limit_process(&CAPABILITIES) {
        return report.refused(None, &chain(&error), 1);
    }
    let state = match read_state() {
        Ok(state) => state,
        Err(sentence) => return report.refused(None, &sentence, BAD_INPUT),
    };
    if !asks(state.annotations.keys()) && told.pod_check.is_none() && !told.police {
        return ExitCode::SUCCESS;
    }
    let id = state.id.to_string();
    let (outcome, code) = match start(paths, &report, &state, engine, told) {
        Ok(outcome) => (outcome, ExitCode::SUCCESS),
        Err(StageFailure { sentence, status, reason }) => {
            export::count(metrics_table::refusal(reason), 1);
            (Outcome::Failed, report.refused(Some(&id), &sentence, status))
        }
    };
    export::observe(metrics_table::run(Stage::CreateRuntime, outcome), started.elapsed());
    code
}

fn start(
    paths: &Paths,
    report: &Report,
    state: &OciState,
    engine: Option<Engine>,
    told: PluginFacts,
) -> Result<Outcome, StageFailure> {
    let fetch_until = Instant::now() + FETCH;
    let deadline = watch(report, &state.id, Stage::CreateRuntime, 1)?;
    logging::to_report(paths);
    pid::require_initial_user_namespace()?;
    let config = fsutil::read_text(&state.bundle.join("config.json"), CONFIG_MAX)?;
    let mut container =
        Container::parse(state, &config, engine).map_err(|error| StageFailure { reason: Reason::Input, ..error.into() })?;
    container.labels = told.labels.into_iter().collect();
    container.pod_check = told.pod_check;
    match container.check_pod() {
        // The guard refuses the capability by a token.
        Err(error) if !guard::is_in_force(&paths.guard()) => {
            return Err(StageFailure { reason: Reason::Policy, ..StageFailure::from(error) });
        }
        _ => {}
    }
    let concerned = if told.police { may_police(paths, &container)? } else { container.asks() };
    if !concerned {
        return Ok(Outcome::Done);
    }
    if container.needs_podman_names() {
        container.podman = podman_names::names(&container);
    }
    fsutil::ensure_directory(&paths.run, 0o755)?;
    // This process ends next. The kernel then unmaps the store, which it does faster without a second thread.
    let mut store = ManuallyDrop::new(Store::open(&paths.stores(), &clock::boot_id()?)?);
    store.give_up_by(Instant::now() + deadline.remaining());
    // Even after the longest fetch, enough of the deadline is left to work in the container's namespaces.
    let (host, kernel, fs) = (LinuxHost::new(Instant::now() + deadline.remaining())?, LinuxKernel, paths.bpffs());
    let soft_end = clock::boot_seconds() + deadline.remaining().as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline: soft_end };

    let prepared = prepare(paths, &container, told.police).and_then(|prepared| {
        if prepared.is_some() {
            mounts::ensure_bpffs(&fs)?;
        }
        Ok(prepared)
    });
    let (request, policy, registries) = match prepared {
        Ok(Some(prepared)) => prepared,
        Ok(None) => return Ok(Outcome::Done),
        Err(failed) => {
            lifecycle.record_refusal(&container, &failed.sentence);
            return Err(failed);
        }
    };
    match lifecycle.collect_in_passing() {
        Ok(findings) => findings.iter().for_each(|f| report.note(None, &format!("{}: {}: {}", f.what, f.why, f.result))),
        Err(error) => report.note(None, &chain(&error)),
    }
    let images = LinuxImages::new(&paths.cache, Path::new("/")).configured_below(paths.root());
    let start = Start {
        container: &container,
        request: &request,
        policy: &policy,
        registries: &registries,
        fetch_until,
        token_reach: &paths.token_reach(),
        proxy_sockets: &proxy::sockets(paths),
    };
    let acquired = lifecycle.acquire(&images, start)?;
    for warning in request.without_effect() {
        report.note(Some(container.id.as_str()), &warning);
    }
    match acquired {
        Acquired::Done(_) | Acquired::Already(_) | Acquired::Nothing => Ok(Outcome::Done),
        Acquired::Without(cause) => {
            export::count(metrics_table::refusal(cause.class()), 1);
            report.warned(Some(container.id.as_str()), &format!("starts without its programs: {}", chain(&cause)));
            Ok(Outcome::Without)
        }
    }
}

/// Whether the policy may police a container without a request.
fn may_police(paths: &Paths, container: &Container) -> Result<bool, StageFailure> {
    let loaded = policy_files::load_without_signers(paths).map_err(|e| StageFailure::bad_input(&e))?;
    Ok(loaded.policy.may_police(&container.facts(pid::own_uid())))
}

/// Parses the container's request, the policy and the registry configuration; None if the request does not apply to
/// this container.
fn prepare(
    paths: &Paths,
    container: &Container,
    police: bool,
) -> Result<Option<(Request, LoadedPolicy, RegistryConfig)>, StageFailure> {
    let request = container.request().map_err(|e| StageFailure::bad_input(&e))?;
    let request = match (request, police) {
        (Some(request), false) => request,
        (None, true) => Request::nothing(),
        // Without `--police` the hook runs also for this container, does all of this, and polices it.
        (Some(_), true) | (None, false) => return Ok(None),
    };
    let bad = |e: &(dyn std::error::Error + 'static)| StageFailure::bad_input(e);
    if request.references().is_empty() {
        let policy = policy_files::load_without_signers(paths).map_err(|e| bad(&e))?;
        return Ok(Some((request, policy, RegistryConfig::default())));
    }
    let policy = policy_files::load(paths).map_err(|e| bad(&e))?;
    let registries = registries_file::load(paths).map_err(|e| bad(&e))?;
    Ok(Some((request, policy, registries)))
}
