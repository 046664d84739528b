//! The seccomp profile of `install --proxy` for pods: the kubelet finds `Localhost` profiles below `seccomp/` of its
//! directory.

use std::path::{Path, PathBuf};

use crate::cli::proxy::ProxyTarget;
use crate::model::proxy::default_profile;
use crate::model::proxy::profile::ARCHITECTURE;
use crate::output::finding::{Finding, FindingStatus};
use crate::paths::Paths;
use crate::setup::compare::exact_file;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The kubelet's directory by default (`--root-dir`).
pub const KUBELET: &str = "/var/lib/kubelet";

/// The profile's name, as a pod names it in `localhostProfile`.
pub const PROFILE: &str = "bpfman-hook.json";

/// The profile's path.
fn path(target: &ProxyTarget) -> PathBuf {
    directory(target).join("seccomp").join(PROFILE)
}

fn directory(target: &ProxyTarget) -> &Path {
    target.kubelet_root.as_deref().unwrap_or(Path::new(KUBELET))
}

/// The text of the profile, or why it cannot be made.
fn text(place: &InstallRoot) -> Result<String, String> {
    let socket = place.own_root().map_or_else(Paths::system, Paths::below).proxy_socket();
    let listener = socket.to_str().ok_or_else(|| format!("{} is not UTF-8 text", socket.display()))?;
    Ok(format!("{:#}\n", default_profile::kubelet(listener, ARCHITECTURE)))
}

/// Whether there is a kubelet, as far as its directory tells.
fn is_wanted(target: &ProxyTarget, place: &InstallRoot) -> bool {
    target.kubelet_root.is_some() || place.staged(directory(target)).is_dir()
}

/// Writes the profile, if the host has a kubelet.
pub(crate) fn install(target: &ProxyTarget, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !is_wanted(target, place) {
        return Ok(());
    }
    let path = path(target);
    let text = text(place).map_err(|problem| InstallError::Profile { path: path.clone(), problem })?;
    work.write(&path, text.as_bytes(), 0o644)
}

/// Removes the profile. Pods that name it do not start any more.
pub(crate) fn uninstall(target: &ProxyTarget, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let path = path(target);
    if place.staged(&path).exists() { work.remove(&path) } else { Ok(()) }
}

/// Checks that the profile is what this version writes; None without a kubelet.
pub(crate) fn check(target: &ProxyTarget, place: &InstallRoot) -> Option<Finding> {
    if !is_wanted(target, place) {
        return None;
    }
    let name = "kubelet profile";
    Some(match text(place) {
        Ok(text) => exact_file(name, &place.staged(&path(target)), &text, "run `bpfman-hook install --proxy`"),
        Err(error) => Finding::bad(name, FindingStatus::Fail, error, "install bpfman-hook below a path of UTF-8 text"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::InstallTargets;
    use crate::setup::steps::InstallSteps;

    #[test]
    fn the_profile_is_written_where_a_kubelet_is() {
        let root = tempfile::tempdir().unwrap();
        let targets = InstallTargets::on(root.path());
        let place = InstallRoot::of(&targets, None);
        let target = ProxyTarget { proxy: true, ..ProxyTarget::default() };
        let installed = |target: &ProxyTarget| -> InstallSteps {
            let mut work = Installer::new(&place, false);
            install(target, &place, &mut work).unwrap();
            work.steps
        };
        assert!(installed(&target).0.is_empty() && check(&target, &place).is_none());
        std::fs::create_dir_all(root.path().join("var/lib/kubelet")).unwrap();
        assert_eq!(check(&target, &place).unwrap().status, FindingStatus::Fail);
        assert_eq!(installed(&target).0.len(), 1);
        assert_eq!(check(&target, &place).unwrap().status, FindingStatus::Ok);
        let written = root.path().join("var/lib/kubelet/seccomp/bpfman-hook.json");
        let profile: Value = serde_json::from_slice(&std::fs::read(&written).unwrap()).unwrap();
        assert_eq!(profile["listenerPath"], "/run/bpfman-hook/proxy.sock");
        std::fs::write(&written, "{}").unwrap();
        assert_ne!(check(&target, &place).unwrap().status, FindingStatus::Ok);
        let mut work = Installer::new(&place, false);
        uninstall(&target, &place, &mut work).unwrap();
        assert!(!written.exists());
        // Another directory is made if it is named.
        let elsewhere = ProxyTarget { kubelet_root: Some("/data/kubelet".into()), ..target };
        assert_eq!(installed(&elsewhere).0.len(), 1);
        assert!(root.path().join("data/kubelet/seccomp/bpfman-hook.json").exists());
    }
}
