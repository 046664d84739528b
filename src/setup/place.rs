//! Where an installation is located, and for which engines it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::{HookStage, InstallTargets};
use crate::model::policy::Engine;
use crate::setup::hook_files::{self, Engines, Invocation, MOUNT_UNIT};
use crate::setup::hooks_dir::below;
use crate::setup::package::{PackageFiles, UNITS_OF_HOST};

/// Where an installation is located: the paths in hook files and, with `--destdir`, where the files are staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallRoot {
    destdir: PathBuf,
    prefix: PathBuf,
    staged: bool,
    root: Option<PathBuf>,
    package: Option<PackageFiles>,
}

impl InstallRoot {
    /// From the arguments; `root` is `--root`.
    pub fn of(targets: &InstallTargets, root: Option<&Path>) -> Self {
        let destdir = targets.destdir.clone().unwrap_or_else(|| "/".into());
        let package = PackageFiles::below(&destdir);
        let prefix = targets.prefix.clone().unwrap_or_else(|| prefix(package.as_ref()));
        Self { prefix, package, staged: targets.destdir.is_some(), root: root.map(Path::to_owned), destdir }
    }

    /// The default locations of the host whose root directory is `root`.
    pub fn at(root: &Path) -> Self {
        let package = PackageFiles::below(root);
        Self { destdir: root.to_owned(), prefix: prefix(package.as_ref()), staged: true, root: None, package }
    }

    /// The directory that contains `bin`, `lib` and `share`.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// The binary's path in hook files.
    pub fn binary(&self) -> PathBuf {
        self.prefix.join("bin/bpfman-hook")
    }

    /// The path under which a file is staged.
    pub fn staged(&self, path: &Path) -> PathBuf {
        below(&self.destdir, path)
    }

    /// The file of a unit; systemd reads `/usr/lib` and `/usr/local/lib`. On a host with a package, units that the
    /// package does not contain, or that this host has otherwise, are in `/etc`.
    pub fn unit(&self, name: &str) -> PathBuf {
        let path = self.prefix.join("lib/systemd/system").join(name);
        let of_host = Path::new(UNITS_OF_HOST).join(name);
        match &self.package {
            Some(package) if !package.contains(&path) || self.staged(&of_host).exists() => of_host,
            _ => path,
        }
    }

    /// Whether a unit is installed: its file exists and, if it is the package's, the unit is enabled.
    pub fn has_unit(&self, name: &str) -> bool {
        let path = self.unit(name);
        self.staged(&path).exists() && (!self.is_of_package(&path) || self.is_enabled(name))
    }

    /// Whether a target of this host wants a unit.
    fn is_enabled(&self, name: &str) -> bool {
        let Ok(entries) = fs::read_dir(self.staged(Path::new(UNITS_OF_HOST))) else { return false };
        entries.flatten().any(|entry| {
            let path = entry.path();
            path.extension().is_some_and(|kind| kind == "wants") && fs::symlink_metadata(path.join(name)).is_ok()
        })
    }

    /// The mount unit of our bpffs.
    pub fn mount_unit(&self) -> PathBuf {
        self.unit(MOUNT_UNIT)
    }

    /// Whether a package of bpfman-hook is installed here.
    pub fn is_packaged(&self) -> bool {
        self.package.is_some()
    }

    /// Whether a file is the package's: only the package manager replaces and removes it.
    pub fn is_of_package(&self, path: &Path) -> bool {
        self.package.as_ref().is_some_and(|package| package.contains(path))
    }

    /// The directories that systemd-tmpfiles creates at boot.
    pub fn tmpfiles(&self) -> PathBuf {
        self.prefix.join("lib/tmpfiles.d/bpfman-hook.conf")
    }

    /// How hook files for these engines call the binary.
    pub fn invocation(&self, engines: &Engines) -> Invocation {
        Invocation { binary: self.binary(), engines: engines.clone(), root: self.root.clone() }
    }

    /// True if our directories are the default ones, for which there are systemd units.
    pub fn has_units(&self) -> bool {
        self.root.is_none()
    }

    /// True if files are only staged: nothing is mounted, and no unit is started.
    pub fn is_staged(&self) -> bool {
        self.staged
    }

    /// The root directory below which the engines' configuration is read.
    pub fn root(&self) -> &Path {
        &self.destdir
    }

    /// The value of `--root` for the hook's arguments.
    pub fn own_root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The engines for which the hook file is installed; empty if there is none.
    pub fn installed_for(&self) -> Engines {
        let path = self.staged(&hook_files::path(HookStage::CreateRuntime));
        Engines::of_file(&fs::read_to_string(path).unwrap_or_default())
    }
}

fn prefix(package: Option<&PackageFiles>) -> PathBuf {
    if package.is_some() { "/usr".into() } else { "/usr/local".into() }
}

/// The engines of `--podman` and `--crio`, which read hook files; podman if no engine is named.
pub fn asked(targets: &InstallTargets) -> BTreeSet<Engine> {
    let mut asked = BTreeSet::new();
    if targets.podman || !(targets.crio || targets.names_more()) {
        asked.insert(Engine::Podman);
    }
    if targets.crio {
        asked.insert(Engine::CriO);
    }
    asked
}
