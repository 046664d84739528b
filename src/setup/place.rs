//! Where an installation is located, and for which engines it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::{HookStage, InstallTargets};
use crate::model::policy::Engine;
use crate::setup::hook_files::{self, Engines, Invocation, MOUNT_UNIT};
use crate::setup::hooks_dir::below;

/// Where an installation is located: the paths in hook files and, with `--destdir`, where the files are staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallRoot {
    destdir: PathBuf,
    prefix: PathBuf,
    staged: bool,
    root: Option<PathBuf>,
}

impl InstallRoot {
    /// From the arguments; `root` is `--root`.
    pub fn of(targets: &InstallTargets, root: Option<&Path>) -> Self {
        Self {
            destdir: targets.destdir.clone().unwrap_or_else(|| "/".into()),
            prefix: targets.prefix.clone(),
            staged: targets.destdir.is_some(),
            root: root.map(Path::to_owned),
        }
    }

    /// The default locations of the host whose root directory is `root`.
    pub fn at(root: &Path) -> Self {
        Self { destdir: root.to_owned(), prefix: "/usr/local".into(), staged: true, root: None }
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

    /// The mount unit; systemd reads `/usr/lib` and `/usr/local/lib`.
    pub fn mount_unit(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system").join(MOUNT_UNIT)
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
