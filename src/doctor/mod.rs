//! `doctor`: checks this host without changing it; each finding that is not ok has a remedy.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::{ContainerdTargets, DoctorArgs, Format};
use crate::commands::policy::{self, CheckReport};
use crate::image::examine_registries;
use crate::kernel::{Feature, Kernel, Support, gate, guard};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::policy_files::PolicyFilesError;
use crate::lifecycle::registries_file;
use crate::lifecycle::runtime_states;
use crate::lifecycle::token_reach;
use crate::model::policy::Engine;
use crate::model::record::{Owner, OwnerRecord};
use crate::nri;
use crate::output::error::{AS_ROOT, CommandError};
use crate::output::finding::{Finding, FindingStatus, Findings};
use crate::output::style::Style;
use crate::output::{print, view};
use crate::paths::Paths;
use crate::setup::check::effective;
use crate::setup::containerd::examine as containerd;
use crate::setup::containerd::install as containerd_install;
use crate::setup::place::InstallRoot;
use crate::setup::units::gate as gate_unit;
use crate::setup::units::guard as guard_unit;
use crate::setup::units::nri as nri_unit;
use crate::store::{Store, StoreError};
use crate::sys::error::chain;
use crate::sys::{clock, lsm, mounts, pid};

mod confinement;
mod containers;
mod host;
pub mod no_connect;
mod proxy;
mod records;
mod report;
mod space;

use containers::DecidingProcess;
use records::DamagedRecords;

/// Checks the host and prints the findings; exit status 1 if a check fails.
pub fn run(paths: &Paths, args: &DoctorArgs, kernel: &impl Kernel) -> Result<ExitCode, CommandError> {
    let mut findings = examine(paths, kernel);
    if let Some(file) = &args.report {
        report::write(file, paths, &findings)?;
        return print(&format!("wrote {}; look through it before you publish it\n", file.display()));
    }
    let failed = findings.failed();
    if args.quiet {
        findings = findings.only_bad();
    }
    let printed = print(&match args.output {
        Format::Table => findings.text(Style::of_stdout()),
        Format::Json => format!("{}\n", findings.json()),
    })?;
    Ok(if failed { ExitCode::FAILURE } else { printed })
}

/// Every check, in the order in which a start of a container depends on them.
pub fn examine(paths: &Paths, kernel: &impl Kernel) -> Findings {
    let read = |path: &str| fs::read_to_string(path);
    let mut all = Findings::default();
    if pid::own_uid() != 0 {
        all.push(Finding::bad("user", FindingStatus::Unknown, "not root, so much of this host cannot be examined", AS_ROOT));
    }
    all.0.extend(Feature::ALL.map(|feature| host::feature(kernel, feature)));
    if kernel.probe(Feature::Token) == Support::Yes {
        all.push(host::token_reach(&token_reach::token_reach(kernel, &paths.token_reach(), &paths.guard())));
        all.push(host::guard(
            &guard::state(&paths.guard()),
            guard_unit::is_installed(&InstallRoot::at(host_root())),
            guard::is_pinned(&paths.guard()),
        ));
    }
    all.push(host::gate(
        &gate::state(&paths.gate()),
        gate_unit::is_installed(&InstallRoot::at(host_root())),
        gate::is_pinned(&paths.gate()),
    ));
    all.push(host::security_modules(read("/sys/kernel/security/lsm")));
    all.0.extend(confinement::apparmor(&read("/sys/kernel/security/lsm")));
    all.push(host::lockdown(read("/sys/kernel/security/lockdown")));
    all.push(host::unprivileged_bpf(read("/proc/sys/kernel/unprivileged_bpf_disabled")));
    all.push(host::user_namespaces(read("/proc/sys/user/max_user_namespaces")));
    match mounts::own_mounts() {
        Ok(mounts) => {
            all.push(host::bpffs(&paths.bpffs(), &mounts));
            // In a pod of the DaemonSet, the host's hierarchy counts, not the pod's view of it.
            all.push(host::cgroup2(&mounts::host_mounts().unwrap_or(mounts)));
        }
        Err(err) => all.push(Finding::bad("mounts", FindingStatus::Unknown, chain(&err), "check that /proc is mounted")),
    }
    all.0.extend(engines(host_root()).0);
    all.0.extend(plugin(paths));
    all.0.extend(proxy::examine(paths, host_root()));
    let checked = policy::check(paths, None);
    let policing = checked.as_ref().map_or(0, |report| report.containers.iter().filter(|rule| rule.police.is_some()).count());
    all.push(host::policing(&kernel.probe(Feature::Lsm), policing));
    all.push(policy_finding(checked));
    all.push(registries(paths));
    all.0.extend(space::examine(paths));
    all.0.extend(records(paths, kernel));
    all
}

/// Checks the policy that a start of a container would load.
pub fn policy(paths: &Paths) -> Finding {
    policy_finding(policy::check(paths, None))
}

fn policy_finding(checked: Result<CheckReport, PolicyFilesError>) -> Finding {
    match checked {
        Ok(report) if !report.problems.is_empty() => Finding::bad(
            "policy",
            FindingStatus::Fail,
            report.problems.join("; "),
            "correct it, then `bpfman-hook policy check`",
        ),
        Ok(report) if report.warnings.is_empty() => {
            let rules = format!("{} image rules, {} container rules", report.images.len(), report.containers.len());
            Finding::ok("policy", format!("{rules}; id {}", report.id.unwrap_or_default()))
        }
        Ok(report) => Finding::bad(
            "policy",
            FindingStatus::Warn,
            report.warnings.join("; "),
            "see `bpfman-hook policy check` and docs/policy.md",
        ),
        Err(err) => {
            let detail = format!("every request is refused: {}", chain(&err));
            Finding::bad("policy", FindingStatus::Fail, detail, "correct it, then `bpfman-hook policy check`")
        }
    }
}

/// Checks the files with the registry configuration, read as a hook reads them.
fn registries(paths: &Paths) -> Finding {
    let remedy = "see docs/registries.md";
    let config = match registries_file::load(paths) {
        Ok(config) => config,
        Err(err) => {
            let detail = format!("every request is refused: {}", chain(&err));
            return Finding::bad("registries", FindingStatus::Fail, detail, remedy);
        }
    };
    match examine_registries(paths.root(), &config) {
        Err(err) => Finding::bad(
            "registries",
            FindingStatus::Fail,
            format!("images that are not in the cache are refused: {}", chain(&err)),
            remedy,
        ),
        Ok(complaints) if complaints.is_empty() => {
            Finding::ok("registries", "credentials, certificates and mirrors can be read")
        }
        Ok(complaints) => Finding::bad("registries", FindingStatus::Warn, complaints.join("; "), remedy),
    }
}

/// The engines, and the programs by which they are detected.
const ENGINES: [(Engine, [&str; 2]); 3] = [
    (Engine::Podman, ["usr/bin/podman", "usr/local/bin/podman"]),
    (Engine::CriO, ["usr/bin/crio", "usr/local/bin/crio"]),
    (Engine::Containerd, ["usr/bin/containerd", "usr/local/bin/containerd"]),
];

/// The engines that are installed below a root directory.
fn engines_of(root: &Path) -> impl Iterator<Item = Engine> {
    ENGINES
        .into_iter()
        .filter(|(_, programs)| programs.iter().any(|program| root.join(program).exists()))
        .map(|(engine, _)| engine)
}

/// The root directory whose engines count. A DaemonSet's pod contains no engines and shares the node's pid namespace,
/// so there it is the node's.
fn host_root() -> &'static Path {
    let (own, host) = (Path::new("/"), Path::new("/proc/1/root"));
    let elsewhere = mounts::in_host_mount_namespace().is_ok_and(|in_host| !in_host);
    if elsewhere && engines_of(own).next().is_none() && engines_of(host).next().is_some() { host } else { own }
}

/// Which of our hooks the engines of this host would run. If they are installed for one engine, other engines are not
/// checked.
fn engines(root: &Path) -> Findings {
    let place = InstallRoot::at(root);
    let mut installed = place.installed_for().0;
    if nri_unit::is_installed(&place)
        || containerd_install::is_installed_at(&place, &ContainerdTargets::default().containerd_config)
    {
        installed.insert(Engine::Containerd);
    }
    let mut findings = Findings::default();
    for engine in engines_of(root) {
        if !installed.is_empty() && !installed.contains(&engine) {
            let detail = "installed, but bpfman-hook is not installed for it: its containers start without programs";
            findings.push(Finding::ok(engine.word(), detail));
        } else if engine == Engine::Containerd {
            findings.0.extend(containerd::examine(&place, &ContainerdTargets::default()).0);
        } else {
            findings.0.extend(effective(engine, root).0);
        }
    }
    if findings.0.is_empty() {
        findings.push(Finding::ok(
            "hooks",
            "podman, CRI-O and containerd are not installed; plain runtimes run what `hooks` in config.json names",
        ));
    }
    findings
}

/// Whether one of the NRI plugins that have run since boot is connected; None if none has run.
fn plugin(paths: &Paths) -> Option<Finding> {
    let seen = nri::status::plugins(&paths.export());
    let connected: Vec<_> = seen
        .iter()
        .filter_map(|plugin| Some(format!("{}: connected to {}", plugin.start.word(), plugin.runtime.as_ref()?)))
        .collect();
    match (seen.is_empty(), connected.is_empty()) {
        (true, _) => None,
        (false, false) => Some(Finding::ok("NRI plugin", connected.join("; "))),
        (false, true) => Some(Finding::bad(
            "NRI plugin",
            FindingStatus::Fail,
            "not connected to the runtime: annotated containers start without their programs",
            "check that NRI is on and the plugin runs (systemctl status bpfman-hook-nri, or the DaemonSet's pod)",
        )),
    }
}

/// Compares the store's records with living processes and pins, and living containers with the records.
fn records(paths: &Paths, kernel: &impl Kernel) -> Vec<Finding> {
    let fs = paths.bpffs();
    // Before the records, because a record is written before its directory is made.
    let pinned = kernel.directories(&fs);
    let StoreContents { store, owners, damaged } = match read_store(paths) {
        Ok(contents) => contents,
        Err(error) => return vec![records::unreadable(&error, pid::own_uid())],
    };
    let filling = store.as_ref().and_then(|store| space::store(store.read::<_, StoreError>(|txn| txn.fill()).ok()?));
    let host = LinuxHost::new(Instant::now());
    let lifecycle = store.as_ref().zip(host.as_ref().ok());
    let lifecycle = lifecycle.map(|(store, host)| Lifecycle { kernel, host, store, fs: &fs, deadline: 0 });
    let decides = |record: &OwnerRecord, process| match (&lifecycle, &record.owner, process) {
        // A pod's programs outlive its containers: decided as `gc` does.
        (Some(lifecycle), Owner::Netns(_), DecidingProcess::Init) => Ok(lifecycle.is_dead(record)?.is_none()),
        _ => containers::decides(record, process),
    };
    let mut findings = containers::stale(&owners, decides);
    if let Some(lifecycle) = &lifecycle {
        let lost = |record| containers::lost(&lifecycle.health_of_objects(record), std::slice::from_ref(record));
        findings.extend(owners.iter().flat_map(lost));
    }
    findings.extend(filling);
    findings.extend(damaged.findings(|init| pid::is_alive(init).unwrap_or(true)));
    findings.extend(records::generic_xdp(owners.iter().flat_map(view::programs).flat_map(|program| program.links)));
    let numbers = damaged.numbers();
    match pinned {
        Ok(mut pinned) => {
            pinned.retain(|no| !numbers.contains(no));
            findings.extend(containers::unowned(&pinned, &owners));
            findings.extend(containers::unpinned(&pinned, &owners));
        }
        Err(err) => findings.push(Finding::bad("pins", FindingStatus::Unknown, chain(&err), AS_ROOT)),
    }
    let lives = |record: &OwnerRecord| matches!(containers::decides(record, DecidingProcess::Init), Ok(true));
    findings.extend(confinement::containers(&owners, lives, |pid| lsm::confinement(Some(pid)), lsm::may_create));
    let inits = damaged.inits();
    let running = runtime_states::recorded(Path::new("/")).map(|mut running| {
        running.retain(|container| !inits.contains(&container.pid));
        running
    });
    findings.extend(containers::without_record(running, &owners, containers::is_alive));
    findings
}

/// The store of this boot and what it contains; empty without a store.
#[derive(Debug, Default)]
struct StoreContents {
    store: Option<Store>,
    /// The records that decode.
    owners: Vec<OwnerRecord>,
    damaged: DamagedRecords,
}

fn read_store(paths: &Paths) -> Result<StoreContents, StoreError> {
    let Some(store) = Store::open_existing(&paths.stores(), &clock::boot_id()?)? else {
        return Ok(StoreContents::default());
    };
    let (mut owners, mut damaged) = (Vec::new(), DamagedRecords::default());
    for record in store.records() {
        match record {
            Ok(record) => owners.push(record),
            Err(error @ StoreError::Record { .. }) => damaged.0.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(StoreContents { store: Some(store), owners, damaged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auth_file_that_others_can_read_is_reported() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let paths = Paths::below(root.path());
        assert_eq!(registries(&paths).status, FindingStatus::Ok);
        fs::create_dir_all(&paths.etc).unwrap();
        for dir in [paths.etc.as_path(), paths.etc.parent().unwrap()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let auth = paths.etc.join("auth.json");
        fs::write(&auth, "{}").unwrap();
        for (mode, status) in [(0o644, FindingStatus::Fail), (0o600, FindingStatus::Ok)] {
            fs::set_permissions(&auth, fs::Permissions::from_mode(mode)).unwrap();
            let finding = registries(&paths);
            assert_eq!(finding.status, status, "{mode:o}: {}", finding.detail);
        }
        fs::create_dir_all(root.path().join("etc/containers")).unwrap();
        fs::set_permissions(root.path().join("etc/containers"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.path().join("etc/containers/registries.conf"), "[registries.block]\n").unwrap();
        let finding = registries(&paths);
        assert!(finding.status == FindingStatus::Fail && finding.detail.contains("version 1"), "{}", finding.detail);
    }

    #[test]
    fn only_installed_engines_are_checked() {
        let root = tempfile::tempdir().unwrap();
        let none = engines(root.path());
        assert_eq!((none.0.len(), none.failed()), (1, false));
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        fs::write(root.path().join("usr/bin/crio"), "").unwrap();
        let crio = engines(root.path());
        assert!(crio.failed() && crio.0.iter().all(|finding| finding.check.starts_with("cri-o ")), "{crio}");
        // A CRI-O node that also has containerd, and a containerd node that also has CRI-O.
        fs::write(root.path().join("usr/bin/containerd"), "").unwrap();
        let hook = root.path().join("usr/share/containers/oci/hooks.d/50-bpfman-hook-createRuntime.json");
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, r#"{"hook":{"args":["bpfman-hook","hook","createRuntime","--engine","cri-o"]}}"#).unwrap();
        let complaints = |findings: &Findings, word: &str| {
            findings.0.iter().filter(|f| f.check.starts_with(word) && f.status != FindingStatus::Ok).count()
        };
        let both = engines(root.path());
        assert!(complaints(&both, "cri-o") > 0 && complaints(&both, "containerd") == 0, "{both}");
        fs::remove_file(&hook).unwrap();
        let plugin = root.path().join("opt/nri/plugins/10-bpfman-hook");
        fs::create_dir_all(plugin.parent().unwrap()).unwrap();
        fs::write(&plugin, "").unwrap();
        let both = engines(root.path());
        assert!(complaints(&both, "cri-o") == 0 && complaints(&both, "containerd") > 0, "{both}");
    }

    #[test]
    fn a_policy_that_does_not_parse_fails() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let built_in = policy(&paths);
        assert_eq!(built_in.status, FindingStatus::Warn);
        assert!(built_in.detail.contains("no keys"), "{built_in:?}");
        fs::create_dir_all(&paths.etc).unwrap();
        fs::write(paths.policy_file(), "[[image]]\nrepository = 7\n").unwrap();
        let found = policy(&paths);
        assert_eq!(found.status, FindingStatus::Fail);
        assert!(found.detail.contains("policy.toml"), "{found:?}");
    }

    #[test]
    fn a_host_without_a_store_has_no_records() {
        let root = tempfile::tempdir().unwrap();
        let contents = read_store(&Paths::below(root.path())).unwrap();
        assert!(contents.store.is_none() && contents.owners.is_empty() && contents.damaged.0.is_empty());
    }
}
