//! `install --metrics`: the group that may read the exported files, the exporter's unit, and the timer that samples the
//! kernel. The texts are those of `packaging/`, with the paths and options of this host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cli::watch::MetricsTarget;
use crate::output::finding::{Finding, FindingStatus};
use crate::setup::compare::exact_file;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;
use crate::sys::accounts::gid_of;

/// The exporter's unit.
pub const EXPORTER_UNIT: &str = "bpfman-hook-metrics.service";

/// The unit that samples the kernel.
pub const SAMPLE_UNIT: &str = "bpfman-hook-metrics-sample.service";

/// The timer of the sample.
pub const TIMER_UNIT: &str = "bpfman-hook-metrics-sample.timer";

/// The group that may read the exported files.
const GROUP: &str = "bpfman-hook";

/// Mode of the directory; with the setgid bit its files inherit the group.
const EXPORT_MODE: u32 = 0o2750;

/// The binary's path in the texts of `packaging/`.
const PACKAGED_BINARY: &str = "/usr/local/bin/bpfman-hook";

fn binary(text: &str, place: &InstallRoot) -> String {
    text.replace(PACKAGED_BINARY, &place.binary().display().to_string())
}

/// The sample's unit; with `textfile`, it also writes the metrics to that file.
fn sample_unit(place: &InstallRoot, textfile: Option<&Path>) -> String {
    let mut text = binary(include_str!("../../../packaging/systemd/bpfman-hook-metrics-sample.service"), place);
    if let (Some(file), Some(directory)) = (textfile, textfile.and_then(Path::parent)) {
        let sample = format!("ExecStart={} metrics --sample\n", place.binary().display());
        let write = format!("ExecStart={} metrics --once --textfile {}\n", place.binary().display(), file.display());
        text = text.replace(&sample, &format!("{sample}{write}"));
        // On some systems, node_exporter's directory belongs to another user.
        text = text.replace("CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_DAC_OVERRIDE ");
        text = text.replace("ReadWritePaths=", &format!("ReadWritePaths={} ", directory.display()));
    }
    text
}

/// The files and their texts, in the order in which they are written.
fn files(place: &InstallRoot, textfile: Option<&Path>) -> [(PathBuf, String); 5] {
    let lib = place.prefix().join("lib");
    [
        (lib.join("sysusers.d/bpfman-hook.conf"), include_str!("../../../packaging/sysusers.d/bpfman-hook.conf").to_owned()),
        (
            lib.join("tmpfiles.d/bpfman-hook-metrics.conf"),
            include_str!("../../../packaging/tmpfiles.d/bpfman-hook-metrics.conf").to_owned(),
        ),
        (place.unit(EXPORTER_UNIT), binary(include_str!("../../../packaging/systemd/bpfman-hook-metrics.service"), place)),
        (place.unit(SAMPLE_UNIT), sample_unit(place, textfile)),
        (place.unit(TIMER_UNIT), include_str!("../../../packaging/systemd/bpfman-hook-metrics-sample.timer").to_owned()),
    ]
}

/// Writes the files. If systemd runs, also creates the group and the directory and starts the units: with a textfile
/// only the timer, because no exporter is needed.
pub(crate) fn install(target: &MetricsTarget, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    let files = files(place, target.metrics_textfile.as_deref());
    super::write(&files, work)?;
    if place.is_staged() || !work.by_systemd() {
        return Ok(());
    }
    let [(sysusers, _), (tmpfiles, _), ..] = &files;
    work.run("systemd-sysusers", &[&sysusers.display().to_string()])?;
    work.run("systemd-tmpfiles", &["--create", &tmpfiles.display().to_string()])?;
    match target.metrics_textfile {
        None => super::start(&[EXPORTER_UNIT, TIMER_UNIT], work),
        Some(_) => super::start(&[TIMER_UNIT], work),
    }
}

/// Stops and removes the units. The group stays: files may belong to it, and systemd does not remove groups either.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&files(place, None), is_installed(place), &[EXPORTER_UNIT, TIMER_UNIT], place, work)
}

/// Whether the units exist: they need the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    [EXPORTER_UNIT, TIMER_UNIT].iter().any(|unit| place.has_unit(unit))
}

/// The file that the installed sample writes.
fn installed_textfile(place: &InstallRoot) -> Option<PathBuf> {
    let unit = fs::read_to_string(place.staged(&place.unit(SAMPLE_UNIT))).ok()?;
    unit.lines().find_map(|line| line.split_once(" --textfile ")).map(|(_, file)| PathBuf::from(file))
}

/// Checks each file, the group, and whether the group may read the exported files in `export`.
pub(crate) fn check(target: &MetricsTarget, place: &InstallRoot, export: &Path) -> Vec<Finding> {
    let textfile = target.metrics_textfile.clone().or_else(|| installed_textfile(place));
    let textfile = textfile.as_deref();
    let flag = textfile.map(|file| format!(" --metrics-textfile {}", file.display())).unwrap_or_default();
    let again = format!("run `bpfman-hook install --metrics{flag}`");
    let mut findings: Vec<Finding> = files(place, textfile)
        .iter()
        .map(|(path, text)| {
            let name = format!("metrics {}", path.file_name().unwrap_or_default().to_string_lossy());
            exact_file(&name, &place.staged(path), text, &again)
        })
        .collect();
    if !place.is_staged() {
        findings.push(readable(gid_of(GROUP), export, &again));
    }
    findings
}

fn readable(group: Option<u32>, export: &Path, again: &str) -> Finding {
    let name = "metrics group";
    let Some(gid) = group else {
        return Finding::bad(name, FindingStatus::Fail, format!("there is no group {GROUP}: the exporter sees nothing"), again);
    };
    match fs::symlink_metadata(export) {
        Ok(found) if found.gid() == gid && found.mode() & 0o7777 == EXPORT_MODE => {
            Finding::ok(name, export.display().to_string())
        }
        Ok(found) => {
            let detail = format!("{} has group {} and mode {:o}", export.display(), found.gid(), found.mode() & 0o7777);
            Finding::bad(name, FindingStatus::Fail, format!("{detail}: the exporter sees nothing"), again)
        }
        Err(_) => Finding::bad(name, FindingStatus::Warn, format!("{} does not exist", export.display()), again),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cli::watch::MetricsTarget;

    #[test]
    fn units_run_the_installed_binary() {
        let place = InstallRoot::at(Path::new("/stage"));
        for (path, text) in &files(&place, None) {
            assert!(path.starts_with("/usr/local/lib"), "{}", path.display());
            assert!(!text.contains("ExecStart=") || text.contains("ExecStart=/usr/local/bin/bpfman-hook metrics"), "{text}");
        }
        let file = Path::new("/var/lib/node_exporter/bpfman_hook.prom");
        let text = sample_unit(&place, Some(file));
        for line in [
            "\nExecStart=/usr/local/bin/bpfman-hook metrics --sample\nExecStart=/usr/local/bin/bpfman-hook metrics --once --textfile /var/lib/node_exporter/bpfman_hook.prom\n",
            "\nReadWritePaths=/var/lib/node_exporter -/run/bpfman-hook/export\n",
            "\nCapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_SYS_ADMIN CAP_BPF\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_directory_that_the_group_cannot_read_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let export = dir.path().join("export");
        let status = |group| readable(group, &export, "again").status;
        assert_eq!(status(None), FindingStatus::Fail);
        assert_eq!(status(Some(0)), FindingStatus::Warn, "nothing has been recorded yet");
        fs::create_dir(&export).unwrap();
        let gid = fs::metadata(&export).unwrap().gid();
        fs::set_permissions(&export, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(status(Some(gid)), FindingStatus::Fail, "without the setgid bit");
        fs::set_permissions(&export, fs::Permissions::from_mode(0o2750)).unwrap();
        assert_eq!((status(Some(gid)), status(Some(gid + 1))), (FindingStatus::Ok, FindingStatus::Fail));
    }

    #[test]
    fn a_check_names_the_file_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let place = InstallRoot::at(dir.path());
        let target = MetricsTarget { metrics: true, metrics_textfile: None };
        let mut work = Installer::new(&place, false);
        install(&target, &place, &mut work).unwrap();
        let bad = || -> Vec<String> {
            let found = check(&target, &place, Path::new("/nowhere"));
            found.into_iter().filter(|finding| finding.status != FindingStatus::Ok).map(|finding| finding.check).collect()
        };
        assert_eq!(bad(), Vec::<String>::new());
        assert!(is_installed(&place));
        let timer = place.staged(Path::new("/usr/local/lib/systemd/system").join(TIMER_UNIT).as_path());
        fs::write(timer, "other").unwrap();
        assert_eq!(bad(), ["metrics bpfman-hook-metrics-sample.timer"]);
        let with_file = MetricsTarget { metrics_textfile: Some("/srv/x.prom".into()), ..target.clone() };
        install(&with_file, &place, &mut work).unwrap();
        assert_eq!(bad(), Vec::<String>::new(), "the textfile of the installation is found");
        uninstall(&place, &mut work).unwrap();
        assert_eq!(bad().len(), 5);
        assert!(!is_installed(&place));
    }
}
