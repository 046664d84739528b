//! `install --check`: checks that each piece of an installation is present, matches this version, and is effective.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::{HookStage, InstallTargets};
use crate::model::policy::Engine;
use crate::output::finding::{Finding, FindingStatus, Findings};
use crate::paths::Paths;
use crate::setup::compare::exact_file;
use crate::setup::containerd::examine as containerd;
use crate::setup::hook_files;
use crate::setup::hook_files::{Engines, HOOKS_DIR, PODMAN_DROP_IN};
use crate::setup::hooks_dir::{HooksDir, below};
use crate::setup::kubelet_profile;
use crate::setup::place::{InstallRoot, asked};
use crate::setup::units::gate;
use crate::setup::units::gc;
use crate::setup::units::guard;
use crate::setup::units::keyring;
use crate::setup::units::metrics;
use crate::setup::units::nri;
use crate::setup::units::proxy;
use crate::setup::units::service;
use crate::sys::error::chain;

/// Checks an installation without changing it; `root` is `--root`.
pub fn check(targets: &InstallTargets, root: Option<&Path>) -> Findings {
    let place = InstallRoot::of(targets, root);
    let mut engines = place.installed_for();
    if targets.podman || targets.crio || (engines.0.is_empty() && !targets.names_more()) {
        engines.0.extend(asked(targets));
    }
    let again = format!("run `bpfman-hook install{}`", flags(&engines));
    let mut findings = Findings::default();
    findings.push(program(&place.staged(&place.binary()), 0, &again));
    let mut units = Vec::new();
    if place.has_units() {
        units.push(("mount unit", place.mount_unit(), hook_files::mount_unit()));
        units.push(("tmpfiles.d", place.tmpfiles(), hook_files::tmpfiles()));
        if targets.service.service || service::is_installed(&place) {
            units.extend(service::pieces(&place).map(|(path, text)| ("service unit", path, text)));
        }
        if targets.proxy.proxy || proxy::is_installed(&place) {
            units.extend(proxy::pieces(&place).map(|(path, text)| ("proxy unit", path, text)));
        }
        if targets.guard.guard || guard::is_installed(&place) {
            let bounded = targets.guard.guard_bounded || guard::is_bounded(&place);
            units.extend(guard::pieces(&place, bounded).map(|(path, text)| ("guard unit", path, text)));
        }
        if keyring::is_installed(&place) {
            units.extend(keyring::pieces(&place).map(|(path, text)| ("keyring unit", path, text)));
        }
        if targets.gate.gate || gate::is_installed(&place) {
            let warn = targets.gate.gate_warn || gate::only_counts(&place);
            units.extend(gate::pieces(&place, warn).map(|(path, text)| ("gate unit", path, text)));
        }
    }
    for (name, path, text) in units {
        let again = match name {
            "service unit" => "run `bpfman-hook install --service`",
            "proxy unit" => "run `bpfman-hook install --proxy`",
            "guard unit" => "run `bpfman-hook install --guard`",
            "gate unit" => "run `bpfman-hook install --gate`",
            _ => &again,
        };
        findings.push(exact_file(name, &place.staged(&path), &text, again));
    }
    if targets.proxy.proxy || proxy::is_installed(&place) {
        findings.0.extend(kubelet_profile::check(&targets.proxy, &place));
    }
    if place.has_units() && !targets.no_timer {
        findings.0.extend(gc::check(&place, &again));
    }
    let mut stages = if engines.0.is_empty() { Vec::new() } else { vec![HookStage::CreateRuntime, HookStage::Poststop] };
    if engines.0.contains(&Engine::Podman) {
        stages.push(HookStage::Precreate);
    }
    for stage in &stages {
        let text = hook_files::hook(*stage, &place.invocation(&engines));
        findings.push(exact_file(&format!("hook {}", stage.word()), &place.staged(&hook_files::path(*stage)), &text, &again));
    }
    for stage in hook_files::POLICED {
        let path = place.staged(&hook_files::police_path(stage));
        if targets.police.police || path.exists() {
            let text = hook_files::police_hook(stage, &place.invocation(&engines));
            findings.push(exact_file(
                &format!("police hook {}", stage.word()),
                &path,
                &text,
                "run `bpfman-hook install --police`",
            ));
        }
    }
    for engine in &engines.0 {
        for finding in effective(*engine, place.root()).0 {
            findings.push(finding);
        }
    }
    if targets.nri.nri || nri::is_installed(&place) {
        let text = nri::text(&place.binary(), nri::connects(&place));
        findings.push(exact_file("nri unit", &place.staged(&nri::path(&place)), &text, "run `bpfman-hook install --nri`"));
    }
    if targets.containerd.containerd {
        findings.0.extend(containerd::examine(&place, &targets.containerd).0);
    }
    if place.has_units() && (targets.metrics.metrics || metrics::is_installed(&place)) {
        let export = root.map_or_else(Paths::system, Paths::below).export();
        findings.0.extend(metrics::check(&targets.metrics, &place, &export));
    }
    findings
}

/// Determines which of our hooks an engine would run: its `hooks_dir`, and for each name the effective file, its
/// pattern and its program.
pub fn effective(engine: Engine, root: &Path) -> Findings {
    let mut findings = Findings::default();
    let name = format!("{} hooks_dir", engine.word());
    let again = format!("run `bpfman-hook install{}`", flags(&Engines([engine].into())));
    let found = HooksDir::of(engine, root, &[]).and_then(|hooks| Ok((hooks.files(root)?, hooks)));
    let (files, hooks) = match found {
        Ok(found) => found,
        Err(err) => {
            let remedy = format!("correct it: {} cannot read it either", engine.word());
            findings.push(Finding::bad(name, FindingStatus::Fail, chain(&err), remedy));
            return findings;
        }
    };
    let source = hooks.source.as_ref().map_or_else(|| "default".to_owned(), |path| path.display().to_string());
    let list: Vec<_> = hooks.directories.iter().map(|directory| directory.display().to_string()).collect();
    findings.push(Finding::ok(name, format!("{} ({source})", list.join(" "))));

    for stage in [HookStage::CreateRuntime, HookStage::Poststop, HookStage::Precreate] {
        let name = format!("{} {}", engine.word(), stage.word());
        let Some(path) = files.get(&hook_files::file_name(stage)) else {
            if stage == HookStage::Precreate && engine != Engine::Podman {
                continue;
            }
            findings.push(not_read(name, engine, stage, &source, &again));
            continue;
        };
        if stage == HookStage::Precreate && engine != Engine::Podman {
            let remedy = format!("move it to {}", hook_files::PODMAN_HOOKS_DIR);
            let detail =
                format!("{} prevents {} from starting, because it does not know the stage", path.display(), engine.word());
            findings.push(Finding::bad(name, FindingStatus::Fail, detail, remedy));
            continue;
        }
        findings.push(match unfit(&below(root, path), stage, root) {
            None => Finding::ok(name, path.display().to_string()),
            Some(problem) => Finding::bad(name, FindingStatus::Fail, format!("{}: {problem}", path.display()), &again),
        });
    }
    findings
}

/// The finding for a hook file that is in none of the engine's directories.
fn not_read(name: String, engine: Engine, stage: HookStage, source: &str, again: &str) -> Finding {
    let (status, detail) = match stage {
        // Without it nothing is granted, and createRuntime reports what is missing.
        HookStage::Precreate => (FindingStatus::Warn, "not read: grant = true in the policy has no effect".to_owned()),
        HookStage::CreateRuntime => {
            (FindingStatus::Fail, "not read: annotated containers start without their programs".to_owned())
        }
        HookStage::Poststop => (FindingStatus::Fail, "not read: only gc releases what containers owned".to_owned()),
    };
    let replaced = source != "default" && source != PODMAN_DROP_IN;
    let directory = if stage == HookStage::Precreate { hook_files::PODMAN_HOOKS_DIR } else { HOOKS_DIR };
    let remedy = if engine == Engine::Podman && replaced {
        format!("add {directory} to hooks_dir in {source}, then {again}")
    } else {
        again.to_owned()
    };
    Finding::bad(name, status, detail, remedy)
}

/// Why a hook file does not do the same as ours; None if it does.
fn unfit(path: &Path, stage: HookStage, root: &Path) -> Option<String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) => return Some(format!("it cannot be read: {err}")),
    };
    let Ok(hook) = serde_json::from_str::<Value>(&text) else { return Some("it is not JSON".to_owned()) };
    let args: Vec<_> = hook["hook"]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let patterns: Vec<_> = hook["when"]["annotations"].as_object().into_iter().flatten().map(|(key, _)| key).collect();
    let program = hook["hook"]["path"].as_str().map(PathBuf::from).unwrap_or_default();
    if hook["stages"] != Value::from(vec![stage.word()]) {
        Some(format!("its stages are not {}", stage.word()))
    } else if args.get(..3) != Some(&["bpfman-hook", "hook", stage.word()]) {
        Some("it does not run bpfman-hook".to_owned())
    } else if patterns.as_slice() != [hook_files::PATTERN] || hook["when"].as_object().is_none_or(|when| when.len() != 1) {
        Some("its only condition must be bpfman-hook's annotation pattern".to_owned())
    } else if hook["hook"]["timeout"] != hook_files::TIMEOUT {
        Some(format!("its timeout is not {} s", hook_files::TIMEOUT))
    } else if !below(root, &program).is_file() {
        Some(format!("its program {} does not exist, so the engine silently skips it", program.display()))
    } else {
        None
    }
}

/// Checks the binary: it runs as root on every start, so only root may write it or a directory above it.
fn program(path: &Path, owner: u32, again: &str) -> Finding {
    let name = "binary";
    let Ok(meta) = fs::metadata(path) else {
        return Finding::bad(name, FindingStatus::Fail, format!("{} does not exist", path.display()), again);
    };
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Finding::bad(name, FindingStatus::Fail, format!("{} is not executable", path.display()), again);
    }
    for ancestor in path.ancestors() {
        let Ok(meta) = fs::metadata(ancestor) else { continue };
        let sticky = meta.is_dir() && meta.mode() & 0o1000 != 0;
        let trusted = meta.uid() == 0 || meta.uid() == owner;
        if !trusted || (meta.mode() & 0o022 != 0 && !sticky) {
            let who =
                if meta.uid() == 0 { "is writable by others".to_owned() } else { format!("belongs to uid {}", meta.uid()) };
            let remedy = format!("chown root {0} && chmod go-w {0}", ancestor.display());
            return Finding::bad(name, FindingStatus::Fail, format!("{} {who}", ancestor.display()), remedy);
        }
    }
    let same = fs::read("/proc/self/exe").ok().zip(fs::read(path).ok()).is_some_and(|(own, there)| own == there);
    if same {
        Finding::ok(name, path.display().to_string())
    } else {
        Finding::bad(name, FindingStatus::Warn, format!("{} is a different build from this one", path.display()), again)
    }
}

fn flags(engines: &Engines) -> String {
    let flag = |engine: &Engine| match engine {
        Engine::Podman => " --podman",
        Engine::CriO => " --crio",
        Engine::Containerd | Engine::Oci => "",
    };
    engines.0.iter().map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::ExitCode;

    use crate::cli::InstallArgs;
    use crate::setup::install::run;

    fn bad(findings: &Findings) -> Vec<String> {
        findings
            .0
            .iter()
            .filter(|f| f.status != FindingStatus::Ok)
            .map(|f| format!("{} {}", f.status.word(), f.check))
            .collect()
    }

    struct Installed(tempfile::TempDir, InstallTargets);

    impl Installed {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let targets = InstallTargets { podman: true, ..InstallTargets::on(root.path()) };
            assert_eq!(run(None, &InstallArgs { check: false, targets: targets.clone() }), Ok(ExitCode::SUCCESS));
            Self(root, targets)
        }

        fn path(&self, path: &str) -> PathBuf {
            below(self.0.path(), Path::new(path))
        }

        fn bad(&self) -> Vec<String> {
            // If the tests do not run as root, the binary belongs to the test user.
            bad(&check(&self.1, None)).into_iter().filter(|line| line != "fail binary" || self.runs_as_root()).collect()
        }

        fn runs_as_root(&self) -> bool {
            fs::metadata(self.0.path()).unwrap().uid() == 0
        }
    }

    #[test]
    fn a_fresh_installation_passes() {
        let here = Installed::new();
        assert_eq!(here.bad(), Vec::<String>::new());
        let empty = tempfile::tempdir().unwrap();
        let nothing = check(&InstallTargets { destdir: Some(empty.path().to_owned()), ..here.1.clone() }, None);
        assert!(nothing.failed());
        assert!(
            nothing
                .0
                .iter()
                .filter(|f| f.status == FindingStatus::Fail)
                .all(|f| f.remedy.as_deref() == Some("run `bpfman-hook install --podman`")),
            "{nothing}"
        );
    }

    #[test]
    fn units_are_checked_where_install_writes_them() {
        let root = tempfile::tempdir().unwrap();
        let own = Some(Path::new("/srv/other"));
        let mut targets = Installed::new().1;
        targets.destdir = Some(root.path().to_owned());
        // With custom directories there are none.
        assert_eq!(run(own, &InstallArgs { check: false, targets: targets.clone() }), Ok(ExitCode::SUCCESS));
        let units = |findings: &Findings| findings.0.iter().filter(|f| f.check.ends_with("unit")).count();
        assert_eq!(units(&check(&targets, own)), 0);
        targets.service.service = true;
        assert_eq!(run(None, &InstallArgs { check: false, targets: targets.clone() }), Ok(ExitCode::SUCCESS));
        assert_eq!(units(&check(&targets, None)), 3);
        fs::remove_file(root.path().join("usr/local/lib/systemd/system/bpfman-hook.service")).unwrap();
        targets.service.service = false;
        let found = bad(&check(&targets, None));
        assert!(found.contains(&"fail service unit".to_owned()), "{found:?}");
    }

    #[test]
    fn each_missing_or_different_piece_is_reported() {
        for (path, expected) in [
            ("/usr/local/bin/bpfman-hook", vec!["fail podman createRuntime", "fail podman poststop", "fail podman precreate"]),
            (r"/usr/local/lib/systemd/system/run-bpfman\x2dhook-fs.mount", vec!["fail mount unit"]),
            ("/usr/local/lib/tmpfiles.d/bpfman-hook.conf", vec!["fail tmpfiles.d"]),
            (
                "/usr/share/containers/oci/hooks.d/50-bpfman-hook-createRuntime.json",
                vec!["fail hook createRuntime", "fail podman createRuntime"],
            ),
            (
                "/usr/share/containers/oci/hooks.d/50-bpfman-hook-poststop.json",
                vec!["fail hook poststop", "fail podman poststop"],
            ),
            (PODMAN_DROP_IN, vec!["warn podman precreate"]),
        ] {
            let here = Installed::new();
            fs::remove_file(here.path(path)).unwrap();
            let found = check(&here.1, None);
            assert_eq!(
                bad(&found).into_iter().filter(|line| line != "fail binary").collect::<Vec<_>>(),
                expected,
                "without {path}"
            );
        }
        let here = Installed::new();
        let hook = here.path("/usr/share/containers/oci/hooks.d/50-bpfman-hook-poststop.json");
        for (old, new) in
            [("30", "3"), ("[Ss]?[^", "[^"), ("[\"poststop\"]", "[\"poststart\"]"), ("hook\", \"poststop", "hook\", \"gc")]
        {
            let text = fs::read_to_string(&hook).unwrap();
            assert!(text.contains(old), "{old}");
            fs::write(&hook, text.replace(old, new)).unwrap();
            assert_eq!(here.bad(), ["fail hook poststop", "fail podman poststop"], "{new}");
            fs::write(&hook, text).unwrap();
        }
        assert_eq!(here.bad(), Vec::<String>::new());
    }

    #[test]
    fn another_hooks_dir_or_an_overriding_file_is_reported() {
        let here = Installed::new();
        let later = here.path("/etc/containers/containers.conf.d/99-other.conf");
        fs::write(&later, "[engine]\nhooks_dir = [\"/srv/hooks\"]\n").unwrap();
        assert_eq!(here.bad(), ["fail podman createRuntime", "fail podman poststop", "warn podman precreate"]);
        let findings = check(&here.1, None);
        let remedy = findings.0.iter().find(|f| f.check == "podman createRuntime").and_then(|f| f.remedy.clone()).unwrap();
        assert!(
            remedy.starts_with(
                "add /usr/share/containers/oci/hooks.d to hooks_dir in /etc/containers/containers.conf.d/99-other.conf"
            ),
            "{remedy}"
        );
        // A directory that is read later has a file of the same name.
        fs::write(
            &later,
            format!("[engine]\nhooks_dir = [\"{HOOKS_DIR}\", \"{}\", \"/srv/hooks\"]\n", hook_files::PODMAN_HOOKS_DIR),
        )
        .unwrap();
        assert_eq!(here.bad(), Vec::<String>::new());
        fs::create_dir_all(here.path("/srv/hooks")).unwrap();
        fs::write(here.path("/srv/hooks/50-bpfman-hook-createRuntime.json"), "{}").unwrap();
        assert_eq!(here.bad(), ["fail podman createRuntime"]);
    }

    #[test]
    fn precreate_where_crio_reads_it_is_a_failure() {
        let here = Installed::new();
        assert_eq!(bad(&effective(Engine::CriO, here.0.path())), Vec::<String>::new());
        let stray = here.path(HOOKS_DIR).join(hook_files::file_name(HookStage::Precreate));
        fs::write(stray, "{}").unwrap();
        assert_eq!(bad(&effective(Engine::CriO, here.0.path())), ["fail cri-o precreate"]);
    }

    #[test]
    fn a_binary_that_others_can_write_is_a_failure() {
        let here = Installed::new();
        let binary = here.path("/usr/local/bin/bpfman-hook");
        let me = fs::metadata(&binary).unwrap().uid();
        let status = |owner| program(&binary, owner, "").status;
        assert_eq!((status(me), status(0) == FindingStatus::Ok), (FindingStatus::Ok, me == 0));
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (path, mode, good) in [
            (binary.as_path(), 0o775, 0o755),
            (binary.as_path(), 0o757, 0o755),
            (binary.as_path(), 0o644, 0o755),
            (binary.parent().unwrap(), 0o777, 0o755),
        ] {
            chmod(path, mode);
            assert_eq!(status(me), FindingStatus::Fail, "{mode:o} {}", path.display());
            chmod(path, good);
            assert_eq!(status(me), FindingStatus::Ok);
        }
        chmod(binary.parent().unwrap(), 0o1777);
        assert_eq!(status(me), FindingStatus::Ok, "sticky, as /tmp is");
    }
}
