//! The steps of `install` and `uninstall`: performed, or only printed with `--dry-run`.

use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::paths::{GATE, GUARD, Paths};
use crate::setup::error::InstallError;
use crate::setup::hook_files::MOUNT_UNIT;
use crate::setup::package::UNITS_OF_HOST;
use crate::setup::place::InstallRoot;
use crate::sys::{fsutil, mounts};

/// One step, performed or planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstallStep {
    /// `write`, `remove`, `make`, `mount`, `unmount`, `run`, `restart`; `keep` for what stays, `advise` for what is left
    /// to the administrator.
    pub action: &'static str,
    /// The object of the action.
    pub object: String,
    /// False if the object was already in this state.
    pub changed: bool,
}

/// The steps in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct InstallSteps(pub Vec<InstallStep>);

impl InstallSteps {
    /// The JSON form: an array of objects with `action`, `object` and `changed`.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and booleans are JSON")
    }
}

impl fmt::Display for InstallSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for InstallStep { action, object, changed } in &self.0 {
            let action = if *action == "write" && !changed { "keep" } else { action };
            writeln!(f, "{action:<8} {object}")?;
        }
        Ok(())
    }
}

/// The steps so far, and whether they are performed or only printed.
pub(crate) struct Installer<'a> {
    place: &'a InstallRoot,
    pub dry_run: bool,
    /// The steps so far.
    pub steps: InstallSteps,
}

impl<'a> Installer<'a> {
    pub fn new(place: &'a InstallRoot, dry_run: bool) -> Self {
        Self { place, dry_run, steps: InstallSteps::default() }
    }

    pub fn step(&mut self, action: &'static str, object: impl Into<String>, changed: bool) {
        self.steps.0.push(InstallStep { action, object: object.into(), changed });
    }

    /// The staged path of a file. Below `--destdir`, an absolute link, as on a host that is mounted into a container,
    /// would lead into the wrong root: the host would silently lack the file.
    fn target(&self, path: &Path) -> Result<PathBuf, InstallError> {
        let (target, destdir) = (self.place.staged(path), self.place.root());
        let Ok(inside) = destdir.canonicalize() else { return Ok(target) };
        let parents = target.ancestors().skip(1).take_while(|parent| parent.starts_with(destdir));
        let Some(found) = parents.into_iter().find(|parent| fs::symlink_metadata(parent).is_ok()) else { return Ok(target) };
        match found.canonicalize() {
            Ok(there) if there.starts_with(&inside) => Ok(target),
            Ok(there) => Err(InstallError::Outside { destdir: destdir.to_owned(), path: found.to_owned(), target: there }),
            Err(source) => Err(InstallError::Io { doing: "follow", path: found.to_owned(), source }),
        }
    }

    /// Writes a file, unless it has these contents. A unit that differs from the package's goes to this host's own
    /// units; any other file of the package is not replaced.
    pub fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
        let (target, changed) = self.write_to(path, bytes, mode)?;
        self.step("write", target.to_string_lossy(), changed);
        Ok(())
    }

    /// Writes a file that has no step of its own; true if it was not there as it is to be.
    pub fn write_silently(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<bool, InstallError> {
        Ok(self.write_to(path, bytes, mode)?.1)
    }

    /// Returns where the file is, and whether it was written.
    fn write_to(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<(PathBuf, bool), InstallError> {
        let mut target = self.target(path)?;
        let mut same = has_contents(&target, bytes, mode);
        if !same && self.place.is_of_package(path) {
            let unit = path.parent().is_some_and(|directory| directory.ends_with("systemd/system")).then(|| path.file_name());
            let Some(name) = unit.flatten() else { return Err(InstallError::Packaged(target)) };
            target = self.target(&Path::new(UNITS_OF_HOST).join(name))?;
            same = has_contents(&target, bytes, mode);
        }
        if !same && !self.dry_run {
            let parent = target.parent().expect("every installed path has a directory");
            make_directories(parent)?;
            fsutil::write_atomically(&target, bytes, mode)?;
        }
        Ok((target, !same))
    }

    /// Removes a file, unless it is the package's; without one there is no step.
    pub fn remove(&mut self, path: &Path) -> Result<(), InstallError> {
        let target = self.target(path)?;
        if self.place.is_of_package(path) {
            self.step("keep", target.to_string_lossy(), false);
            return Ok(());
        }
        let was_there = if self.dry_run { fs::symlink_metadata(&target).is_ok() } else { fsutil::unlink_if_present(&target)? };
        if was_there {
            self.step("remove", target.to_string_lossy(), true);
        }
        Ok(())
    }

    /// Removes a file that has no step of its own; true if it was there.
    pub fn remove_silently(&mut self, path: &Path) -> Result<bool, InstallError> {
        let target = self.target(path)?;
        Ok(if self.dry_run { fs::symlink_metadata(&target).is_ok() } else { fsutil::unlink_if_present(&target)? })
    }

    /// Removes a directory with all that it contains; without one there is no step.
    pub fn remove_all(&mut self, path: &Path) -> Result<(), InstallError> {
        let target = self.target(path)?;
        if fs::symlink_metadata(&target).is_err() {
            return Ok(());
        }
        if !self.dry_run {
            let failed = |source| InstallError::Io { doing: "remove", path: target.clone(), source };
            fs::remove_dir_all(&target).map_err(failed)?;
        }
        self.step("remove", target.to_string_lossy(), true);
        Ok(())
    }

    /// Notes what stays, and why.
    pub fn keep(&mut self, path: &Path, why: &str) {
        self.step("keep", format!("{} ({why})", self.place.staged(path).display()), false);
    }

    /// Where programs are pinned, while there are some.
    pub fn in_use(&self) -> Option<PathBuf> {
        Some(self.place.staged(&self.fs_root())).filter(|pins| has_owners(pins))
    }

    /// Removes a directory of ours, unless it is not empty: an empty directory that stays does no harm.
    pub fn remove_directory(&mut self, path: &Path) {
        let target = self.place.staged(path);
        if !self.dry_run && fs::remove_dir(&target).is_ok() {
            self.step("remove", target.to_string_lossy(), true);
        }
    }

    /// Mounts our bpffs: by its unit if systemd runs, otherwise directly.
    pub fn mount(&mut self) -> Result<(), InstallError> {
        if self.place.is_staged() {
            return Ok(());
        }
        let fs_root = self.fs_root();
        if self.by_systemd() {
            self.systemctl(&["daemon-reload"])?;
            return self.systemctl(&["enable", "--now", MOUNT_UNIT]);
        }
        if !self.dry_run {
            mounts::ensure_bpffs(&fs_root)?;
        }
        self.step("mount", fs_root.to_string_lossy(), true);
        Ok(())
    }

    pub fn unmount(&mut self) -> Result<(), InstallError> {
        if self.place.is_staged() {
            // A node's root that is mounted into a container includes the node's bpffs.
            let fs_root = self.place.staged(&self.fs_root());
            return if has_owners(&fs_root) { Err(InstallError::InUse(fs_root)) } else { Ok(()) };
        }
        let fs_root = self.fs_root();
        if has_owners(&fs_root) {
            return Err(InstallError::InUse(fs_root));
        }
        if self.by_systemd() && self.place.mount_unit().exists() {
            return self.systemctl(&["disable", "--now", MOUNT_UNIT]);
        }
        if self.dry_run || mounts::unmount(&fs_root)? {
            self.step("unmount", fs_root.to_string_lossy(), true);
        }
        Ok(())
    }

    /// Where our bpffs is mounted.
    fn fs_root(&self) -> PathBuf {
        self.place.own_root().map_or_else(Paths::system, Paths::below).bpffs()
    }

    /// True if systemd is pid 1 (sd_booted(3)) and the unit's mount point is ours.
    pub fn by_systemd(&self) -> bool {
        self.place.has_units() && Path::new("/run/systemd/system").is_dir()
    }

    pub fn systemctl(&mut self, arguments: &[&str]) -> Result<(), InstallError> {
        self.run("systemctl", arguments)
    }

    /// Runs a program of systemd.
    pub fn run(&mut self, program: &str, arguments: &[&str]) -> Result<(), InstallError> {
        let shown = format!("{program} {}", arguments.join(" "));
        if !self.dry_run {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            let outcome = match command.status() {
                Ok(status) if status.success() => None,
                Ok(status) => Some(status.to_string()),
                Err(err) => Some(err.to_string()),
            };
            if let Some(outcome) = outcome {
                return Err(InstallError::Run { command: shown, outcome });
            }
        }
        self.step("run", shown, true);
        Ok(())
    }
}

/// Whether a file has these contents and this mode.
fn has_contents(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o7777 == mode)
        && fs::read(path).is_ok_and(|present| present == bytes)
}

/// True if an owner has a directory. The kernel creates the files `maps.debug` and `progs.debug` (CONFIG_BPF_PRELOAD).
pub(super) fn has_owners(fs_root: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(fs_root) else { return false };
    let is_owner = |entry: fs::DirEntry| {
        let other = [GUARD, GATE].iter().any(|name| entry.file_name() == *name);
        !other && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    entries.any(|entry| entry.is_ok_and(is_owner))
}

/// `mkdir -p` with the mode that hook directories need, whatever the umask.
fn make_directories(path: &Path) -> Result<(), InstallError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|source| InstallError::Io {
        doing: "create the directory",
        path: path.to_owned(),
        source,
    })
}
