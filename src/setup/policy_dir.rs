//! `install --policy DIR`: policy files, keys and trusted roots that are distributed with the program, for example as a
//! ConfigMap.
//!
//! Policy files get a prefix, so that the administrator's own files stay, and files that DIR no longer has are removed.
//! Nothing is written unless all of it parses: an invalid policy would refuse every request on the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::image::{unusable_key, unusable_trusted_root};
use crate::lifecycle::policy_files;
use crate::paths::Paths;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// Prefix of the names of policy files from DIR.
const PREFIX: &str = "60-installed-";
/// Maximum size of a file: 1 MiB, the limit of a ConfigMap.
const MAX: u64 = 1 << 20;

/// Installs the files of `directory`: `*.toml` are policy files, `*.pub` keys, `*.json` trusted roots.
pub(crate) fn install(directory: &Path, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let files = read(directory, &[".toml", ".pub", ".json"])?;
    for (name, _) in files.iter().filter(|(name, _)| name.ends_with(".toml")) {
        let path = directory.join(name);
        policy_files::load_draft(&path).map_err(|source| InstallError::Policy { path, source: Box::new(source) })?;
    }
    for (name, bytes) in &files {
        let path = directory.join(name);
        let problem = match name.rsplit_once('.') {
            Some((_, "pub")) => unusable_key(&path, bytes),
            Some((_, "json")) => unusable_trusted_root(&path, bytes),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(InstallError::Signer(problem));
        }
    }
    let paths = place.own_root().map_or_else(Paths::system, Paths::below);
    let mut wanted = BTreeMap::new();
    for (name, bytes) in files {
        let to = match name.rsplit_once('.') {
            Some((_, "toml")) => paths.policy_directory(),
            Some((_, "pub")) => paths.etc.join("keys"),
            _ => paths.etc.clone(),
        };
        // A rule names keys and trusted roots by path, so these keep their names.
        let file = if name.ends_with(".toml") { format!("{PREFIX}{name}") } else { name };
        wanted.insert(to.join(file), bytes);
    }
    // Keys before the rules that name them.
    let (policy, others): (Vec<_>, Vec<_>) = wanted.iter().partition(|(path, _)| path.extension().is_some_and(|e| e == "toml"));
    for (path, bytes) in others.into_iter().chain(policy) {
        work.write(path, bytes, 0o644)?;
    }
    for path in installed(&place.staged(&paths.policy_directory())) {
        let ours = paths.policy_directory().join(path.file_name().unwrap_or_default());
        if !wanted.contains_key(&ours) {
            work.remove(&ours)?;
        }
    }
    Ok(())
}

/// Removes the policy files that came from a directory. Keys stay, because an unused key has no effect.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let paths = place.own_root().map_or_else(Paths::system, Paths::below);
    for path in installed(&place.staged(&paths.policy_directory())) {
        work.remove(&paths.policy_directory().join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn installed(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut found: Vec<_> = ours.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The files whose names end in one of `ends`, by name. The files of a mounted ConfigMap are links, next to a directory
/// whose name begins with two dots.
pub(crate) fn read(directory: &Path, ends: &[&str]) -> Result<BTreeMap<String, Vec<u8>>, InstallError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InstallError::Io { doing: "read", path, source }
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = ends.iter().any(|end| name.ends_with(end));
        let meta = fs::metadata(&path).map_err(failed(&path))?;
        if name.starts_with('.') || !known || !meta.is_file() {
            continue;
        }
        if meta.len() > MAX {
            let source = std::io::Error::other(format!("it has {} bytes, more than {MAX}", meta.len()));
            return Err(failed(&path)(source));
        }
        files.insert(name, fs::read(&path).map_err(failed(&path))?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::InstallTargets;

    #[test]
    fn installed_files_are_replaced_and_other_files_stay() {
        let root = tempfile::tempdir().unwrap();
        let (given, host) = (root.path().join("given"), root.path().join("host"));
        let etc = host.join("etc/bpfman-hook");
        fs::create_dir_all(etc.join("policy.d")).unwrap();
        fs::create_dir_all(&given).unwrap();
        fs::write(etc.join("policy.d/10-node.toml"), "").unwrap();
        let targets = InstallTargets::on(&host);
        let place = InstallRoot::of(&targets, None);
        let act = || {
            let mut work = Installer::new(&place, false);
            install(&given, &place, &mut work).map(|()| work.steps)
        };
        let listing = || {
            let mut names: Vec<_> = fs::read_dir(etc.join("policy.d")).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(given.join("acme.toml"), "[[image]]\nrepository = \"ghcr.io/acme/*\"\nunsigned = true\n").unwrap();
        let key = include_bytes!("../../tests/data/signatures/keys/cosign-v2.pub");
        fs::write(given.join("acme.pub"), key).unwrap();
        fs::write(given.join("notes.txt"), "ignored").unwrap();
        fs::create_dir(given.join("..data")).unwrap();
        assert!(act().unwrap().0.iter().all(|step| step.changed));
        assert!(act().unwrap().0.iter().all(|step| !step.changed));
        assert_eq!(listing(), ["10-node.toml", "60-installed-acme.toml"]);
        assert_eq!(fs::read(etc.join("keys/acme.pub")).unwrap(), key);

        fs::write(given.join("bad.toml"), "[[image]]\nrepository = 7\n").unwrap();
        fs::write(given.join("acme.pub"), include_bytes!("../../tests/data/signatures/keys/wrong.pub")).unwrap();
        let error = crate::sys::error::chain(&act().unwrap_err());
        assert!(error.contains("bad.toml"), "{error}");
        assert_eq!(fs::read(etc.join("keys/acme.pub")).unwrap(), key, "nothing is written");
        fs::remove_file(given.join("bad.toml")).unwrap();
        for (name, what) in [("bad.pub", "key"), ("bad.json", "trusted root")] {
            fs::write(given.join(name), "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
            let error = act().unwrap_err().to_string();
            assert!(error.starts_with(&format!("install the policy: {what} ")) && error.contains(name), "{error}");
            fs::remove_file(given.join(name)).unwrap();
        }
        assert_eq!(fs::read(etc.join("keys/acme.pub")).unwrap(), key, "nothing is written");

        fs::rename(given.join("acme.toml"), given.join("bad.toml")).unwrap();
        act().unwrap();
        assert_eq!(listing(), ["10-node.toml", "60-installed-bad.toml"]);
        uninstall(&place, &mut Installer::new(&place, false)).unwrap();
        assert_eq!(listing(), ["10-node.toml"]);
    }
}
