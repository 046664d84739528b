//! `install` and `uninstall`: the binary first and the hook files last, each by rename, and the other way round.
//!
//! A hook file whose binary is missing is skipped without a word, so that a container would start without what it asked
//! for; therefore no hook file is there before everything that it needs, and none after.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;

use crate::cli::{Format, InstallArgs, Stage, Targets, UninstallArgs};
use crate::frontend::containerd::install::{self as containerd, ContainerdError};
use crate::frontend::hook_files::{self, Engines, Invocation, MOUNT_UNIT, PODMAN_DROP_IN, PODMAN_HOOKS_DIR};
use crate::frontend::hooks_dir::{HooksDir, HooksDirError, below};
use crate::frontend::install_check::check;
use crate::frontend::nri::unit;
use crate::frontend::{documents, gc_files, install_policy, install_registries, metrics_files, service_files};
use crate::frontend::{fail, print};
use crate::image::UnusableSigner;
use crate::lifecycle::error::chain;
use crate::lifecycle::policy_files::PolicyFilesError;
use crate::model::policy::Engine;
use crate::paths::Paths;
use crate::sys::error::SysError;
use crate::sys::mounts::MountError;
use crate::sys::{fsutil, mounts};

/// Why an installation stopped. What was done until then stays, is harmless, and is done again by the next run.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read, written or removed.
    #[error("{doing} {}", .path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be written or removed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// podman's configuration is not what podman would read.
    #[error("find the directories where podman looks for hooks")]
    HooksDir(#[from] HooksDirError),
    /// A link leads out of the directory below which files are staged.
    #[error("write below {}: {} leads to {}, which is outside of it; install from within that root, or make the link relative", .destdir.display(), .path.display(), .target.display())]
    Outside {
        /// The directory of --destdir.
        destdir: PathBuf,
        /// What was to be written to.
        path: PathBuf,
        /// Where that is.
        target: PathBuf,
    },
    /// Our bpffs could not be mounted.
    #[error("mount the bpffs for our pins")]
    Mount(#[from] MountError),
    /// systemd refused.
    #[error("run {command}: it ended with {outcome}")]
    Run {
        /// The program and what it was asked.
        command: String,
        /// How it ended.
        outcome: String,
    },
    /// A policy file that was to be installed is wrong, so nothing of it is.
    #[error("install the policy {}", .path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PolicyFilesError>,
    },
    /// A key or trusted root that was to be installed is of no use, so nothing of the policy is installed.
    #[error("install the policy: {0}")]
    Signer(UnusableSigner),
    /// A file of the node's administrator is where one that is handed out would go.
    #[error("write {}: it is there already, and was not written by install; move it away, or leave it out of --registries", .0.display())]
    Foreign(PathBuf),
    /// containerd's part.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// Programs are still loaded.
    #[error("remove {}: programs are still pinned there; stop the containers, let `bpfman-hook gc` release what dead ones left, and run uninstall again", .0.display())]
    InUse(PathBuf),
}

/// One step, done or only planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `write`, `remove`, `make`, `mount`, `unmount`, `run`; `advise` for what is left to the administrator.
    pub action: &'static str,
    /// On what.
    pub object: String,
    /// False where it was so already.
    pub changed: bool,
}

/// The steps in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Steps(pub Vec<Step>);

impl Steps {
    /// The JSON form: an array of objects with `action`, `object` and `changed`.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and booleans are JSON")
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { action, object, changed } in &self.0 {
            writeln!(f, "{action:<8} {object}{}", if *changed { "" } else { " (as it was)" })?;
        }
        Ok(())
    }
}

/// Where an installation lies: what hook files say and, with `--destdir`, where the files are staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    destdir: PathBuf,
    prefix: PathBuf,
    staged: bool,
    root: Option<PathBuf>,
}

impl Place {
    /// As the arguments say; `root` is `--root`.
    pub fn of(targets: &Targets, root: Option<&Path>) -> Self {
        Self {
            destdir: targets.destdir.clone().unwrap_or_else(|| "/".into()),
            prefix: targets.prefix.clone(),
            staged: targets.destdir.is_some(),
            root: root.map(Path::to_owned),
        }
    }

    /// The usual place of the host whose root directory is `root`.
    pub fn at(root: &Path) -> Self {
        Self { destdir: root.to_owned(), prefix: "/usr/local".into(), staged: true, root: None }
    }

    /// The binary's path in hook files.
    pub fn binary(&self) -> PathBuf {
        self.prefix.join("bin/bpfman-hook")
    }

    /// Where a path lies while it is staged.
    pub fn staged(&self, path: &Path) -> PathBuf {
        below(&self.destdir, path)
    }

    /// The mount unit; systemd reads `/usr/lib` and `/usr/local/lib`.
    pub fn mount_unit(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system").join(MOUNT_UNIT)
    }

    /// The directories that systemd-tmpfiles makes at boot.
    pub fn tmpfiles(&self) -> PathBuf {
        self.prefix.join("lib/tmpfiles.d/bpfman-hook.conf")
    }

    /// How hook files for these engines call the program.
    pub fn invocation(&self, engines: &Engines) -> Invocation {
        Invocation { binary: self.binary(), engines: engines.clone(), root: self.root.clone() }
    }

    /// True where our directories are the usual ones, for which systemd has units.
    pub fn has_units(&self) -> bool {
        self.root.is_none()
    }

    /// True where files are only staged: nothing is mounted, and no unit started.
    pub fn is_staged(&self) -> bool {
        self.staged
    }

    /// The root directory below which engines' configuration is read.
    pub fn root(&self) -> &Path {
        &self.destdir
    }

    /// `--root`: what the hook has to be told.
    pub fn own_root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The engines that the installed hook file is for; none where there is none.
    pub fn installed_for(&self) -> Engines {
        let path = self.staged(&hook_files::path(Stage::CreateRuntime));
        Engines::of_file(&fs::read_to_string(path).unwrap_or_default())
    }
}

/// The engines of `--podman` and `--crio`, which read hook files; podman where no engine is named.
pub fn asked(targets: &Targets) -> BTreeSet<Engine> {
    let mut asked = BTreeSet::new();
    if targets.podman || !(targets.crio || targets.names_more()) {
        asked.insert(Engine::Podman);
    }
    if targets.crio {
        asked.insert(Engine::CriO);
    }
    asked
}

/// `install`: does it or checks it, and says what was done. Exit status 1 where something is missing or went wrong.
pub fn run(root: Option<&Path>, args: &InstallArgs) -> ExitCode {
    if !args.check {
        return report(&args.targets, root, install);
    }
    let findings = check(&args.targets, root);
    let printed = print(&match args.targets.format.output {
        Format::Table => findings.to_string(),
        Format::Json => format!("{}\n", findings.json()),
    });
    if findings.failed() { ExitCode::FAILURE } else { printed }
}

/// `uninstall`: does it and says what was done.
pub fn undo(root: Option<&Path>, args: &UninstallArgs) -> ExitCode {
    report(&args.targets, root, uninstall)
}

fn report(
    targets: &Targets,
    root: Option<&Path>,
    act: fn(&Targets, &Place, &mut Work<'_>) -> Result<(), InstallError>,
) -> ExitCode {
    let place = Place::of(targets, root);
    let mut work = Work::new(&place, targets.dry_run);
    let result = act(targets, &place, &mut work);
    let printed = print(&match targets.format.output {
        Format::Table => work.steps.to_string(),
        Format::Json => format!("{}\n", work.steps.json()),
    });
    match result {
        Ok(()) => printed,
        Err(error) => fail(&chain(&error)),
    }
}

/// Installs for the engines asked for, and for those that it is installed for already.
fn install(targets: &Targets, place: &Place, work: &mut Work<'_>) -> Result<(), InstallError> {
    let mut engines = place.installed_for();
    engines.0.extend(asked(targets));
    let invocation = place.invocation(&engines);

    let own = Path::new("/proc/self/exe");
    let program = fs::read(own).map_err(|source| InstallError::Io { doing: "read", path: own.to_owned(), source })?;
    work.write(&place.binary(), &program, 0o755)?;
    if place.has_units() {
        work.write(&place.tmpfiles(), hook_files::tmpfiles().as_bytes(), 0o644)?;
        work.write(&place.mount_unit(), hook_files::mount_unit().as_bytes(), 0o644)?;
    }
    if !targets.no_docs {
        for (path, text) in documents::files() {
            work.write(&place.prefix.join(path), &text, 0o644)?;
        }
    }
    work.mount()?;
    if let Some(directory) = &targets.policy {
        install_policy::install(directory, place, work)?;
    }
    if let Some(directory) = &targets.registries {
        install_registries::install(directory, place, work)?;
    }
    if !engines.0.is_empty() {
        // poststop before createRuntime: a container that starts in between is released, one without programs costs nothing.
        for stage in [Stage::Poststop, Stage::CreateRuntime] {
            work.write(&hook_files::path(stage), hook_files::hook(stage, &invocation).as_bytes(), 0o644)?;
        }
    }
    if engines.0.contains(&Engine::Podman) {
        let precreate = hook_files::hook(Stage::Precreate, &invocation);
        work.write(&hook_files::path(Stage::Precreate), precreate.as_bytes(), 0o644)?;
        let before = HooksDir::of(Engine::Podman, place.root(), &[Path::new(PODMAN_DROP_IN)])?;
        work.write(Path::new(PODMAN_DROP_IN), hook_files::drop_in(&before.directories).as_bytes(), 0o644)?;
    }
    if targets.containerd.containerd {
        containerd::install(targets, place, work)?;
    }
    if targets.service.service {
        service_files::install(place, work)?;
    }
    if targets.nri.nri {
        unit::install(place, work)?;
    }
    if targets.metrics.metrics {
        metrics_files::install(&targets.metrics, place, work)?;
    }
    if !targets.no_timer {
        gc_files::install(place, work)?;
    }
    Ok(())
}

/// Removes the installation for the engines asked for, or all of it where none is named.
///
/// The binary stays, with an error, as long as programs of running containers are pinned: their poststop still needs it.
fn uninstall(targets: &Targets, place: &Place, work: &mut Work<'_>) -> Result<(), InstallError> {
    let (containerd, service) = (targets.containerd.containerd, targets.service.service);
    let (nri, metrics) = (targets.nri.nri, targets.metrics.metrics);
    let all = !(targets.podman || targets.crio || targets.names_more());
    let mut left = place.installed_for();
    left.0.retain(|engine| !all && !asked(targets).contains(engine));
    let mut still_read = false;
    if all || nri {
        // Before the hooks' program: the plugin puts it into containers.
        unit::uninstall(place, work)?;
    }
    if all || containerd {
        still_read = containerd::uninstall(targets, place, work)?;
    }
    if all || service {
        service_files::uninstall(place, work)?;
    }
    if all || metrics {
        metrics_files::uninstall(place, work)?;
    }
    let others = !all
        && (!containerd && containerd::is_installed(targets, place)?
            || !service && service_files::is_installed(place)
            || !nri && unit::is_installed(place)
            || !metrics && metrics_files::is_installed(place));
    if !left.0.contains(&Engine::Podman) {
        work.remove(Path::new(PODMAN_DROP_IN))?;
        work.remove(&hook_files::path(Stage::Precreate))?;
        work.remove_directory(Path::new(PODMAN_HOOKS_DIR));
        work.remove_directory(Path::new(PODMAN_HOOKS_DIR).parent().expect("it is an absolute path of several parts"));
    }
    for stage in [Stage::CreateRuntime, Stage::Poststop] {
        let path = hook_files::path(stage);
        if left.0.is_empty() {
            work.remove(&path)?;
        } else {
            work.write(&path, hook_files::hook(stage, &place.invocation(&left)).as_bytes(), 0o644)?;
        }
    }
    if still_read && !place.staged && !work.dry_run {
        return Err(ContainerdError::StillRead.into());
    }
    if left.0.is_empty() && !others {
        gc_files::uninstall(place, work)?;
        work.unmount()?;
        if place.has_units() {
            work.remove(&place.mount_unit())?;
            work.remove(&place.tmpfiles())?;
        }
        for (path, _) in documents::files() {
            work.remove(&place.prefix.join(path))?;
        }
        work.remove(&place.binary())?;
        install_policy::uninstall(place, work)?;
        install_registries::uninstall(place, work)?;
    }
    Ok(())
}

/// The steps so far, and whether they are done or only said.
pub(crate) struct Work<'a> {
    place: &'a Place,
    dry_run: bool,
    /// What was done so far.
    pub steps: Steps,
}

impl<'a> Work<'a> {
    pub fn new(place: &'a Place, dry_run: bool) -> Self {
        Self { place, dry_run, steps: Steps::default() }
    }

    pub fn step(&mut self, action: &'static str, object: impl Into<String>, changed: bool) {
        self.steps.0.push(Step { action, object: object.into(), changed });
    }

    /// The place of a path. Below `--destdir` an absolute link, as a host has them that is mounted into a container, would lead into the
    /// wrong root: the host would be without the file, and nobody told.
    fn target(&self, path: &Path) -> Result<PathBuf, InstallError> {
        let (target, destdir) = (self.place.staged(path), &self.place.destdir);
        let Ok(inside) = destdir.canonicalize() else { return Ok(target) };
        let parents = target.ancestors().skip(1).take_while(|parent| parent.starts_with(destdir));
        let Some(found) = parents.into_iter().find(|parent| fs::symlink_metadata(parent).is_ok()) else { return Ok(target) };
        match found.canonicalize() {
            Ok(there) if there.starts_with(&inside) => Ok(target),
            Ok(there) => Err(InstallError::Outside { destdir: destdir.clone(), path: found.to_owned(), target: there }),
            Err(source) => Err(InstallError::Io { doing: "follow", path: found.to_owned(), source }),
        }
    }

    pub fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
        let target = self.target(path)?;
        let same = fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o7777 == mode)
            && fs::read(&target).is_ok_and(|present| present == bytes);
        if !same && !self.dry_run {
            let parent = target.parent().expect("every path of ours has a directory");
            make_directories(parent)?;
            fsutil::write_atomically(&target, bytes, mode)?;
        }
        self.step("write", target.to_string_lossy(), !same);
        Ok(())
    }

    pub fn remove(&mut self, path: &Path) -> Result<(), InstallError> {
        let target = self.target(path)?;
        let was_there = if self.dry_run { fs::symlink_metadata(&target).is_ok() } else { fsutil::unlink_if_present(&target)? };
        self.step("remove", target.to_string_lossy(), was_there);
        Ok(())
    }

    /// Removes a directory of ours. One that somebody else uses stays: an empty directory harms nobody.
    fn remove_directory(&mut self, path: &Path) {
        let target = self.place.staged(path);
        if !self.dry_run && fs::remove_dir(&target).is_ok() {
            self.step("remove", target.to_string_lossy(), true);
        }
    }

    /// Mounts our bpffs: by its unit where systemd runs, else right away.
    fn mount(&mut self) -> Result<(), InstallError> {
        if self.place.staged {
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

    fn unmount(&mut self) -> Result<(), InstallError> {
        if self.place.staged {
            // A node's root that is mounted into a container has its bpffs too.
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
        let was_there = self.dry_run || mounts::unmount(&fs_root)?;
        self.step("unmount", fs_root.to_string_lossy(), was_there);
        Ok(())
    }

    /// Where our bpffs is mounted.
    fn fs_root(&self) -> PathBuf {
        self.place.root.as_deref().map_or_else(Paths::system, Paths::below).bpffs()
    }

    /// True where systemd is pid 1 (sd_booted(3)) and the unit's mount point is ours.
    pub fn by_systemd(&self) -> bool {
        self.place.has_units() && Path::new("/run/systemd/system").is_dir()
    }

    pub fn systemctl(&mut self, arguments: &[&str]) -> Result<(), InstallError> {
        self.run("systemctl", arguments)
    }

    /// Runs a program of systemd's.
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

/// True where an owner has a directory. The files `maps.debug` and `progs.debug` are the kernel's (CONFIG_BPF_PRELOAD).
fn has_owners(fs_root: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(fs_root) else { return false };
    entries.any(|entry| entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
}

/// `mkdir -p` with the mode that hook directories need, whatever the umask takes away from it later.
fn make_directories(path: &Path) -> Result<(), InstallError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|source| InstallError::Io {
        doing: "make the directory",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
