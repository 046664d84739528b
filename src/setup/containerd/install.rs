//! `install --containerd` and its reversal: install writes the base spec before the configuration that names it;
//! uninstall works in the reverse order.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::InstallTargets;
use crate::setup::containerd::base_spec;
use crate::setup::containerd::config::{ContainerdConfig, has_ours};
use crate::setup::containerd::error::ContainerdError;
use crate::setup::containerd::plugin_file;
use crate::setup::containerd::present::present;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// True if containerd's configuration or its plugin directory contains something of ours.
pub(crate) fn is_installed(targets: &InstallTargets, place: &InstallRoot) -> Result<bool, InstallError> {
    let config = place.staged(&targets.containerd.containerd_config);
    Ok(place.staged(&plugin_path(&config)).exists() || changed_by_us(&config)?)
}

/// The same for callers that only check; an unreadable file counts as not ours.
pub(crate) fn is_installed_at(place: &InstallRoot, config: &Path) -> bool {
    let config = place.staged(config);
    place.staged(&plugin_path(&config)).exists() || changed_by_us(&config).unwrap_or_default()
}

/// Whether a configuration contains something of ours. Docker's configuration has no version, and another tool's may be
/// a link or invalid TOML: neither prevents uninstallation.
fn changed_by_us(target: &Path) -> Result<bool, InstallError> {
    match fs::read(target) {
        Ok(bytes) => Ok(has_ours(&bytes)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(InstallError::Io { doing: "read", path: target.to_owned(), source }),
    }
}

/// The base spec, created from the host's containerd or from the given file.
fn spec(targets: &InstallTargets, place: &InstallRoot) -> Result<String, InstallError> {
    let (text, from) = match &targets.containerd.base_spec {
        Some(file) => {
            let read = |source| InstallError::Io { doing: "read", path: file.clone(), source };
            (fs::read_to_string(file).map_err(read)?, file.display().to_string())
        }
        None => (base_spec::default_spec(place.root()).map_err(ContainerdError::from)?, "`ctr oci spec`".to_owned()),
    };
    Ok(base_spec::with_hooks(&text, &from, &place.binary(), place.own_root()).map_err(ContainerdError::from)?)
}

/// Writes the pre-installed plugin, the base spec if `--strict` is given, then the configuration. containerd reads both
/// when it starts.
pub(crate) fn install(targets: &InstallTargets, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let asked = &targets.containerd;
    let target = place.staged(&asked.containerd_config);
    let before = present(&target)?;
    let edit = |source| ContainerdError::Config { path: target.clone(), source };
    let mut config = ContainerdConfig::parse_to_change(&before.text).map_err(edit)?;
    // If the version is unknown, `disable = false` is written explicitly, which does no harm.
    let off_by_default = base_spec::version(place.root()).is_none_or(|(major, _)| major < 2);
    config.enable_nri(off_by_default).map_err(edit)?;
    if asked.strict {
        let base = base_spec::path(&asked.containerd_config);
        config.add_handler(&asked.handler, &base).map_err(edit)?;
        work.write(&base, spec(targets, place)?.as_bytes(), 0o644)?;
    }
    // Before NRI is enabled, so that containerd never starts with NRI but without the plugin.
    let plugin = plugin_file::path(&config.nri());
    work.write(&plugin, plugin_file::text(&place.binary(), place.own_root()).as_bytes(), 0o755)?;
    let started_with_it = work.steps.0.last().is_some_and(|step| step.changed);
    let text = config.text();
    if text != before.text || before.there {
        work.write(&asked.containerd_config, text.as_bytes(), before.mode)?;
    }
    if text != before.text || started_with_it {
        work.step("restart", "containerd, which reads its configuration only when it starts", true);
    }
    Ok(())
}

/// Reverts what [`install`] did. True if containerd may still run with it.
pub(crate) fn uninstall(targets: &InstallTargets, place: &InstallRoot, work: &mut Installer<'_>) -> Result<bool, InstallError> {
    let path = &targets.containerd.containerd_config;
    let base = base_spec::path(path);
    let target = place.staged(path);
    let mut hooked = false;
    if changed_by_us(&target)? {
        let before = present(&target)?;
        let edit = |source| ContainerdError::Config { path: target.clone(), source };
        let mut config = ContainerdConfig::parse(&before.text).map_err(edit)?;
        hooked = config.handlers().iter().any(|handler| handler.base_spec.as_ref() == Some(&base));
        config.restore();
        let text = config.text();
        if text.is_empty() && !before.text.is_empty() {
            work.remove(path)?;
        } else if text != before.text {
            work.write(path, text.as_bytes(), before.mode)?;
        }
        if text != before.text {
            work.step("restart", "containerd, which reads its configuration only when it starts", true);
        }
    }
    work.remove(&base)?;
    // The running plugin notices that its file is removed, and ends.
    work.remove(&plugin_path(&target))?;
    Ok(hooked)
}

/// The path of the pre-installed plugin; for an invalid configuration, it is in the default directory.
fn plugin_path(config: &Path) -> PathBuf {
    let text = fs::read_to_string(config).unwrap_or_default();
    plugin_file::path(&ContainerdConfig::parse(&text).map(|config| config.nri()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::ContainerdTargets;
    use crate::setup::steps::InstallSteps;

    const SPEC: &str = r#"{"ociVersion":"1.2.1","process":{"args":["sh"]},"linux":{"cgroupsPath":"/x"}}"#;

    fn targets(root: &Path, strict: bool) -> InstallTargets {
        let spec = root.join("spec.json");
        fs::write(&spec, SPEC).unwrap();
        let containerd = ContainerdTargets { containerd: true, strict, base_spec: Some(spec), ..ContainerdTargets::default() };
        InstallTargets { containerd, ..InstallTargets::on(&root.join("host")) }
    }

    fn act<T>(
        targets: &InstallTargets,
        act: impl Fn(&InstallTargets, &InstallRoot, &mut Installer<'_>) -> Result<T, InstallError>,
    ) -> (InstallSteps, T) {
        let place = InstallRoot::of(targets, None);
        let mut work = Installer::new(&place, targets.dry_run);
        let done = act(targets, &place, &mut work).unwrap();
        (work.steps, done)
    }

    #[test]
    fn uninstall_restores_the_configuration() {
        for text in [
            None,
            Some("version = 2\n"),
            Some("# mine\nversion = 3\n[plugins.'io.containerd.nri.v1.nri']\ndisable = true # why\n"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let t = targets(root.path(), true);
            let config = root.path().join("host/etc/containerd/config.toml");
            let base = config.with_file_name("bpfman-hook-base.json");
            if let Some(text) = text {
                fs::create_dir_all(config.parent().unwrap()).unwrap();
                fs::write(&config, text).unwrap();
                fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
            }
            let (planned, ()) = act(&InstallTargets { dry_run: true, ..t.clone() }, install);
            assert_eq!(fs::read_to_string(&config).ok().as_deref(), text, "a dry run writes nothing");
            let (done, ()) = act(&t, install);
            assert_eq!(planned, done);
            let order: Vec<_> = done.0.iter().map(|step| step.action).collect();
            assert_eq!(order, ["write", "write", "write", "restart"]);
            let plugin = root.path().join("host/opt/nri/plugins/10-bpfman-hook");
            assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o7777, 0o755);
            assert!(done.0[0].object == base.to_string_lossy() && base.exists());
            let read: toml::Table = toml::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
            assert_eq!(read["plugins"]["io.containerd.nri.v1.nri"]["disable"].as_bool(), Some(false));
            let mode = fs::metadata(&config).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, if text.is_some() { 0o600 } else { 0o644 });
            assert!(act(&t, install).0.0.iter().all(|step| !step.changed), "a second run changes nothing");

            let (gone, hooked) = act(&t, uninstall);
            assert!(hooked && gone.0.iter().all(|step| step.changed), "{gone}");
            assert_eq!(fs::read_to_string(&config).ok().as_deref(), text);
            assert!(!base.exists() && !plugin.exists());
            assert!(!act(&t, uninstall).1);
        }
    }

    #[test]
    fn links_and_unsupported_configurations_stay() {
        let root = tempfile::tempdir().unwrap();
        let t = targets(root.path(), false);
        let config = root.path().join("host/etc/containerd/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        let place = InstallRoot::of(&t, None);
        let refused = || install(&t, &place, &mut Installer::new(&place, false)).unwrap_err();
        fs::write(&config, "root = '/x'\n").unwrap();
        assert!(crate::sys::error::chain(&refused()).contains("config.toml: its version is 1"));
        fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink("/etc/other.toml", &config).unwrap();
        assert!(refused().to_string().contains("a symbolic link to /etc/other.toml"));
        assert!(config.is_symlink());
    }

    #[test]
    fn untouched_configurations_do_not_prevent_uninstallation() {
        let root = tempfile::tempdir().unwrap();
        let t = targets(root.path(), false);
        let config = root.path().join("host/etc/containerd/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        // Docker's configuration has no version.
        for bytes in [&b"disabled_plugins = [\"cri\"]\n"[..], b"version = 3\r\nroot = 'x'\n", b"no toml [", b"\xff"] {
            fs::write(&config, bytes).unwrap();
            assert!(!is_installed(&t, &InstallRoot::of(&t, None)).unwrap());
            let (steps, hooked) = act(&t, uninstall);
            assert!(!hooked && steps.0.iter().all(|step| !step.changed), "{steps}");
            assert_eq!(fs::read(&config).unwrap(), bytes);
        }
        fs::remove_file(&config).unwrap();
        let elsewhere = root.path().join("theirs.toml");
        fs::write(&elsewhere, "version = 3\n").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &config).unwrap();
        assert!(!act(&t, uninstall).1 && config.is_symlink());
        // Lines that end with CR LF could not be restored: refused before anything is written.
        fs::remove_file(&config).unwrap();
        fs::write(&config, "version = 3\r\nroot = 'x'\n").unwrap();
        let place = InstallRoot::of(&t, None);
        let error = install(&t, &place, &mut Installer::new(&place, false)).unwrap_err();
        assert!(crate::sys::error::chain(&error).contains("its lines end with CR LF"), "{error}");
    }
}
