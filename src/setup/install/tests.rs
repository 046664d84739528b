use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::cli::nri::NriTarget;
use crate::cli::watch::MetricsTarget;
use crate::setup::hooks_dir::below;
use crate::setup::steps::{InstallStep, InstallSteps, has_owners};

fn targets(destdir: &Path, podman: bool, crio: bool) -> InstallTargets {
    InstallTargets { podman, crio, ..InstallTargets::on(destdir) }
}

fn act<T>(
    targets: &InstallTargets,
    act: fn(&InstallTargets, &InstallRoot, &mut Installer<'_>) -> Result<T, InstallError>,
) -> InstallSteps {
    let place = InstallRoot::of(targets, None);
    let mut work = Installer::new(&place, targets.dry_run);
    act(targets, &place, &mut work).unwrap();
    work.steps
}

/// Every file below a directory, as relative paths.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Completions and man pages.
fn is_document(path: &str) -> bool {
    ["share/man", "share/bash-completion/", "share/zsh/", "share/fish/"].iter().any(|part| path.contains(part))
}

fn order(steps: &InstallSteps) -> Vec<String> {
    let name = |step: &InstallStep| step.object.rsplit('/').next().unwrap().to_owned();
    let steps = steps.0.iter().filter(|step| step.changed && !is_document(&step.object));
    steps.map(|step| format!("{} {}", step.action, name(step))).collect()
}

#[test]
fn the_binary_is_written_first_and_removed_last() {
    let root = tempfile::tempdir().unwrap();
    let t = targets(root.path(), true, false);

    let dry = act(&InstallTargets { dry_run: true, ..t.clone() }, install);
    assert_eq!(files(root.path()), Vec::<String>::new());
    let done = act(&t, install);
    assert_eq!(dry, done);
    let written = [
        "write bpfman-hook",
        "write bpfman-hook.conf",
        r"write run-bpfman\x2dhook-fs.mount",
        "write 50-bpfman-hook-poststop.json",
        "write 50-bpfman-hook-createRuntime.json",
        "write 50-bpfman-hook-precreate.json",
        "write 50-bpfman-hook.conf",
        "write bpfman-hook-gc.service",
        "write bpfman-hook-gc.timer",
    ];
    assert_eq!(order(&done), written);
    let (documents, others): (Vec<_>, Vec<_>) = files(root.path()).into_iter().partition(|file| is_document(file));
    assert_eq!(others.len(), written.len());
    assert!(documents.len() > 20 && documents.iter().any(|file| file.ends_with("bpfman-hook-gc.1")), "{documents:?}");
    let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("usr/local/bin/bpfman-hook"), 0o755);
    assert_eq!(mode("usr/share/containers/oci/hooks.d/50-bpfman-hook-poststop.json"), 0o644);

    let again = act(&t, install);
    assert!(again.0.iter().all(|step| !step.changed), "{again}");

    let gone = act(&t, uninstall);
    assert_eq!(
        order(&gone),
        [
            "remove 50-bpfman-hook.conf",
            "remove 50-bpfman-hook-precreate.json",
            "remove podman-hooks.d",
            "remove bpfman-hook",
            "remove 50-bpfman-hook-createRuntime.json",
            "remove 50-bpfman-hook-poststop.json",
            "remove bpfman-hook-gc.timer",
            "remove bpfman-hook-gc.service",
            r"remove run-bpfman\x2dhook-fs.mount",
            "remove bpfman-hook.conf",
            "remove bpfman-hook",
        ]
    );
    assert_eq!(files(root.path()), Vec::<String>::new());
    assert!(act(&t, uninstall).0.iter().all(|step| !step.changed));
}

#[test]
fn another_root_is_passed_to_the_hook_and_has_no_units() {
    let destdir = tempfile::tempdir().unwrap();
    let t = targets(destdir.path(), true, false);
    act(&t, install);
    let units = files(destdir.path()).len();
    let place = InstallRoot::of(&t, Some(Path::new("/srv/r")));
    let mut work = Installer::new(&place, false);
    install(&t, &place, &mut work).unwrap();
    let hook = fs::read_to_string(below(destdir.path(), &hook_files::path(HookStage::Poststop))).unwrap();
    assert!(hook.contains(r#""--engine", "podman", "--root", "/srv/r""#), "{hook}");
    assert_eq!(files(destdir.path()).len(), units);
    uninstall(&t, &place, &mut Installer::new(&place, false)).unwrap();
    assert_eq!(files(destdir.path()).len(), 4, "the units belong to the default root");
}

#[test]
fn the_service_alone_is_installed_and_removed_with_its_binary() {
    let root = tempfile::tempdir().unwrap();
    let t =
        InstallTargets { service: crate::cli::service::ServiceTarget { service: true }, ..targets(root.path(), false, false) };
    let written = [
        "write bpfman-hook",
        "write bpfman-hook.conf",
        r"write run-bpfman\x2dhook-fs.mount",
        "write bpfman-hook.service",
        "write bpfman-hook.socket",
        "write bpfman-hook-gc.service",
        "write bpfman-hook-gc.timer",
    ];
    assert_eq!(order(&act(&t, install)), written);
    let alone = files(root.path());
    // podman is installed and removed; the units and the binary stay.
    act(&targets(root.path(), true, false), install);
    act(&targets(root.path(), true, false), uninstall);
    assert_eq!(files(root.path()), alone);
    act(&t, uninstall);
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn the_plugins_unit_is_installed_and_removed_with_its_binary() {
    let root = tempfile::tempdir().unwrap();
    let t =
        InstallTargets { nri: crate::cli::nri::NriTarget { nri: true }, no_timer: true, ..targets(root.path(), false, false) };
    let written = order(&act(&t, install));
    assert_eq!(written.last().map(String::as_str), Some("write bpfman-hook-nri.service"));
    assert_eq!(written.len(), 4, "no engine was named: {written:?}");
    let alone = files(root.path());
    let podman = InstallTargets { no_timer: true, ..targets(root.path(), true, false) };
    act(&podman, install);
    act(&podman, uninstall);
    assert_eq!(files(root.path()), alone);
    act(&t, uninstall);
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn a_plugin_beside_cri_os_hook_files_does_not_connect() {
    let root = tempfile::tempdir().unwrap();
    let t = InstallTargets { nri: crate::cli::nri::NriTarget { nri: true }, ..targets(root.path(), false, true) };
    act(&t, install);
    let unit = root.path().join("usr/local/lib/systemd/system/bpfman-hook-nri.service");
    let start =
        |path: &Path| fs::read_to_string(path).unwrap().lines().find(|line| line.starts_with("ExecStart=")).map(str::to_owned);
    assert_eq!(start(&unit).as_deref(), Some("ExecStart=/usr/local/bin/bpfman-hook nri --no-connect"));
    let both = InstallTargets { containerd: crate::cli::ContainerdTargets { containerd: true, ..Default::default() }, ..t };
    act(&both, install);
    assert_eq!(start(&unit).as_deref(), Some("ExecStart=/usr/local/bin/bpfman-hook nri"));
}

#[test]
fn a_link_out_of_destdir_is_refused_and_one_within_is_followed() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let (host, outside) = (root.path().join("host"), root.path().join("outside"));
    fs::create_dir_all(host.join("usr")).unwrap();
    fs::create_dir_all(host.join("var/local")).unwrap();
    fs::create_dir(&outside).unwrap();
    let t = targets(&host, true, false);
    let place = InstallRoot::of(&t, None);
    symlink(&outside, host.join("usr/local")).unwrap();
    let error = install(&t, &place, &mut Installer::new(&place, false)).unwrap_err();
    assert!(matches!(&error, InstallError::Outside { target, .. } if *target == outside.canonicalize().unwrap()), "{error}");
    assert_eq!(files(&outside), Vec::<String>::new());
    fs::remove_file(host.join("usr/local")).unwrap();
    symlink("../var/local", host.join("usr/local")).unwrap();
    act(&t, install);
    assert!(host.join("var/local/bin/bpfman-hook").exists());
    act(&t, uninstall);
    assert_eq!(files(&host), ["usr/local"]);
}

#[test]
fn pins_are_directories() {
    let root = tempfile::tempdir().unwrap();
    assert!(!has_owners(&root.path().join("none")) && !has_owners(root.path()));
    fs::write(root.path().join("maps.debug"), "").unwrap();
    assert!(!has_owners(root.path()));
    fs::create_dir(root.path().join("owner_1")).unwrap();
    assert!(has_owners(root.path()));
}

#[test]
fn two_engines_share_the_hook_files() {
    let root = tempfile::tempdir().unwrap();
    let engines = || InstallRoot::of(&targets(root.path(), false, false), None).installed_for().0;
    let precreate = root.path().join("usr/share/bpfman-hook/podman-hooks.d/50-bpfman-hook-precreate.json");

    act(&targets(root.path(), false, true), install);
    assert_eq!(engines(), [Engine::CriO].into());
    assert!(!precreate.exists());
    act(&targets(root.path(), true, false), install);
    assert_eq!(engines(), [Engine::CriO, Engine::Podman].into());
    assert!(precreate.exists());
    act(&targets(root.path(), true, false), uninstall);
    assert_eq!(engines(), [Engine::CriO].into());
    assert!(!precreate.exists());
    act(&targets(root.path(), false, false), uninstall);
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn podmans_directories_and_unrelated_files_stay() {
    let root = tempfile::tempdir().unwrap();
    let conf = root.path().join("etc/containers/containers.conf");
    fs::create_dir_all(conf.parent().unwrap()).unwrap();
    fs::write(&conf, "[engine]\nhooks_dir = [\"/srv/hooks\"]\n").unwrap();
    let t = targets(root.path(), true, false);
    act(&t, install);
    act(&t, install);
    let found = HooksDir::of(Engine::Podman, root.path(), &[]).unwrap();
    assert_eq!(found.directories, [PathBuf::from("/srv/hooks"), PathBuf::from(PODMAN_HOOKS_DIR)]);

    let foreign = below(root.path(), Path::new(PODMAN_HOOKS_DIR)).join("60-mine.json");
    fs::write(&foreign, "{}").unwrap();
    act(&t, uninstall);
    assert!(foreign.exists() && conf.exists());
    assert_eq!(files(root.path()).len(), 2);
}

/// Installs for both engines below `root` as a package does, with its list of files.
fn package(root: &Path) -> Vec<String> {
    let t = InstallTargets { prefix: Some("/usr".into()), ..targets(root, true, true) };
    act(&InstallTargets { metrics: MetricsTarget { metrics: true, metrics_textfile: None }, ..t }, install);
    fs::remove_file(below(root, Path::new(PODMAN_DROP_IN))).unwrap();
    let list: String = files(root).iter().map(|path| format!("/{path}\n")).collect();
    let directory = root.join("usr/share/bpfman-hook");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("package-files"), list + "/usr/share/bpfman-hook/package-files\n").unwrap();
    files(root)
}

#[test]
fn files_of_a_package_are_neither_replaced_nor_removed() {
    let root = tempfile::tempdir().unwrap();
    let packaged = package(root.path());
    let t = targets(root.path(), true, false);
    let place = InstallRoot::of(&t, None);
    assert_eq!(place.prefix(), Path::new("/usr"));

    // install adds what depends on the host.
    let changed: Vec<_> = act(&t, install).0.into_iter().filter(|step| step.changed).map(|step| step.object).collect();
    assert_eq!(changed, [below(root.path(), Path::new(PODMAN_DROP_IN)).to_str().unwrap()]);
    assert!(!crate::setup::check::check(&t, None).failed());

    // A unit with other options goes to the host's own, and is the one that counts; what the package does not contain is there too.
    let textfile = MetricsTarget { metrics: true, metrics_textfile: Some("/srv/text/hook.prom".into()) };
    act(&InstallTargets { metrics: textfile.clone(), nri: NriTarget { nri: true }, ..t.clone() }, install);
    let units = root.path().join("etc/systemd/system");
    let sample = fs::read_to_string(units.join("bpfman-hook-metrics-sample.service")).unwrap();
    assert!(sample.contains(" --textfile /srv/text/hook.prom"), "{sample}");
    assert_eq!(files(&units), ["bpfman-hook-metrics-sample.service", "bpfman-hook-nri.service"]);
    assert!(!crate::setup::check::check(&InstallTargets { metrics: textfile, ..t.clone() }, None).failed());

    // The package's units count as installed once they are enabled.
    assert!(nri::is_installed(&place) && !metrics::is_installed(&place));
    fs::create_dir_all(units.join("timers.target.wants")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", units.join("timers.target.wants").join(metrics::TIMER_UNIT)).unwrap();
    assert!(metrics::is_installed(&place));
    fs::remove_dir_all(units.join("timers.target.wants")).unwrap();

    // Another program is not written over the package's.
    fs::write(root.path().join("usr/bin/bpfman-hook"), "of another version").unwrap();
    let error = install(&t, &place, &mut Installer::new(&place, false)).unwrap_err();
    assert!(matches!(&error, InstallError::Packaged(path) if path.ends_with("usr/bin/bpfman-hook")), "{error}");
    let elsewhere = InstallTargets { prefix: Some("/usr/local".into()), ..t };
    let place = InstallRoot::of(&elsewhere, None);
    let error = install(&elsewhere, &place, &mut Installer::new(&place, false)).unwrap_err();
    assert!(matches!(&error, InstallError::Packaged(path) if path.ends_with("usr/local/bin/bpfman-hook")), "{error}");

    act(&targets(root.path(), false, false), uninstall);
    assert_eq!(files(root.path()), packaged);
}
