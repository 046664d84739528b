//! `install --registries DIR`: a node's registry configuration, distributed with the program, for example as a Secret
//! and a ConfigMap.
//!
//! The files have the names that a hook reads, so a list next to them records which ones came from DIR: a file of the
//! administrator is never replaced, and files that DIR no longer has are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::registries::RegistryConfig;
use crate::paths::Paths;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::policy_dir::read;
use crate::setup::steps::Installer;

/// The list of files that came from DIR, one per line.
const LIST: &str = "installed-registries";
/// The accepted files: the registries file, credentials, certificate authorities, client certificates and their keys.
const ENDS: [&str; 6] = ["registries.toml", "auth.json", ".pem", ".crt", ".cert", ".key"];

/// Installs the files of `directory`. Nothing is written unless `registries.toml` parses.
pub(crate) fn install(directory: &Path, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let etc = etc(place);
    let given = read(directory, &ENDS)?;
    check(directory, &given)?;
    let before = listed(place);
    for name in given.keys().filter(|name| !before.contains(*name)) {
        let target = place.staged(&etc.join(name));
        if fs::read(&target).is_ok_and(|present| present != given[name]) {
            return Err(InstallError::Foreign(target));
        }
    }
    // The list first: a listed file that does not exist does no harm.
    let names: BTreeSet<&String> = given.keys().chain(&before).collect();
    if !names.is_empty() {
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        work.write(&etc.join(LIST), text.as_bytes(), 0o644)?;
    }
    // The files that registries.toml names, then registries.toml.
    let (main, others): (Vec<_>, Vec<_>) = given.iter().partition(|(name, _)| *name == "registries.toml");
    for (name, bytes) in others.into_iter().chain(main) {
        work.write(&etc.join(name), bytes, mode(name))?;
    }
    for name in before.iter().filter(|name| !given.contains_key(*name)) {
        work.remove(&etc.join(name))?;
    }
    // A removed file leaves the list, so that the administrator can create a file of that name.
    match (given.is_empty(), before.is_empty()) {
        (true, true) => {}
        (true, false) => work.remove(&etc.join(LIST))?,
        (false, _) if before.iter().all(|name| given.contains_key(name)) => {}
        (false, _) => {
            let text: String = given.keys().map(|name| format!("{name}\n")).collect();
            work.write(&etc.join(LIST), text.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// Removes the files that came from a directory.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let (etc, before) = (etc(place), listed(place));
    for name in &before {
        work.remove(&etc.join(name))?;
    }
    if !before.is_empty() {
        work.remove(&etc.join(LIST))?;
    }
    Ok(())
}

/// Checks registries.toml: a hook refuses every request while it does not parse.
fn check(directory: &Path, given: &BTreeMap<String, Vec<u8>>) -> Result<(), InstallError> {
    let Some(bytes) = given.get("registries.toml") else { return Ok(()) };
    let failed = |why: String| InstallError::Io {
        doing: "read",
        path: directory.join("registries.toml"),
        source: io::Error::new(io::ErrorKind::InvalidData, why),
    };
    let text = std::str::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
    RegistryConfig::parse(text).map(|_| ()).map_err(|error| failed(crate::sys::error::chain(&error)))
}

/// Files with secrets are readable only by root; so is the registries file, which may contain a proxy's password.
fn mode(name: &str) -> u32 {
    let secret = name == "auth.json" || name == "registries.toml" || name.ends_with(".key");
    if secret { 0o600 } else { 0o644 }
}

fn etc(place: &InstallRoot) -> PathBuf {
    place.own_root().map_or_else(Paths::system, Paths::below).etc
}

/// The names in the list. A name with a slash is ignored.
fn listed(place: &InstallRoot) -> BTreeSet<String> {
    let text = fs::read_to_string(place.staged(&etc(place).join(LIST))).unwrap_or_default();
    text.lines().filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn installed_files_are_replaced_and_other_files_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let (given, host) = (root.path().join("given"), root.path().join("host"));
        let etc = host.join("etc/bpfman-hook");
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(&given).unwrap();
        let place = InstallRoot::at(&host);
        let act = || {
            let mut work = Installer::new(&place, false);
            install(&given, &place, &mut work).map(|()| work.steps)
        };
        assert!(act().unwrap().0.is_empty(), "an empty Secret installs nothing");
        fs::write(
            given.join("registries.toml"),
            "[[registry]]\nhost = \"registry.example:5000\"\nca = \"/etc/bpfman-hook/ca.pem\"\n",
        )
        .unwrap();
        fs::write(given.join("ca.pem"), "an authority").unwrap();
        fs::write(given.join("auth.json"), "{}").unwrap();
        fs::write(given.join("notes.txt"), "ignored").unwrap();
        assert!(act().unwrap().0.iter().all(|step| step.changed));
        assert!(act().unwrap().0.iter().all(|step| !step.changed));
        for (name, mode) in [("registries.toml", 0o600), ("auth.json", 0o600), ("ca.pem", 0o644)] {
            assert_eq!(fs::metadata(etc.join(name)).unwrap().permissions().mode() & 0o7777, mode, "{name}");
        }
        assert!(!etc.join("notes.txt").exists());

        fs::write(given.join("registries.toml"), "[[registry]]\nhost = 7\n").unwrap();
        fs::write(given.join("ca.pem"), "another").unwrap();
        let error = crate::sys::error::chain(&act().unwrap_err());
        assert!(error.contains("registries.toml"), "{error}");
        assert_eq!(fs::read(etc.join("ca.pem")).unwrap(), b"an authority", "nothing is written");

        fs::remove_file(given.join("registries.toml")).unwrap();
        fs::remove_file(given.join("auth.json")).unwrap();
        act().unwrap();
        assert!(!etc.join("registries.toml").exists() && !etc.join("auth.json").exists());
        assert_eq!(fs::read(etc.join("ca.pem")).unwrap(), b"another");

        fs::write(etc.join("auth.json"), "the node's own").unwrap();
        fs::write(given.join("auth.json"), "{}").unwrap();
        let error = crate::sys::error::chain(&act().unwrap_err());
        assert!(error.contains("auth.json"), "{error}");
        assert_eq!(fs::read(etc.join("auth.json")).unwrap(), b"the node's own");

        uninstall(&place, &mut Installer::new(&place, false)).unwrap();
        let left: Vec<_> = fs::read_dir(&etc).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["auth.json"], "the node's own stays");
    }
}
