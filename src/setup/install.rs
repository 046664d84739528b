//! `install` and `uninstall`: install writes the binary first and the hook files last, each by rename; uninstall
//! removes them in the reverse order.
//!
//! An engine silently skips a hook file whose binary is missing, so that a container would start without what it
//! requested. Therefore a hook file exists only while everything that it needs exists.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{Format, HookStage, InstallArgs, InstallTargets, UninstallArgs};
use crate::commands::documents;
use crate::model::policy::Engine;
use crate::output::error::CommandError;
use crate::output::print;
use crate::output::style::Style;
use crate::paths::Paths;
use crate::setup::check::check;
use crate::setup::containerd::error::ContainerdError;
use crate::setup::containerd::install as containerd;
use crate::setup::error::InstallError;
use crate::setup::hook_files::{self, PODMAN_DROP_IN, PODMAN_HOOKS_DIR};
use crate::setup::hooks_dir::HooksDir;
use crate::setup::kubelet_profile;
use crate::setup::place::{InstallRoot, asked};
use crate::setup::steps::Installer;
use crate::setup::units::{gate, gc, guard, keyring, metrics, nri, proxy, service};
use crate::setup::{policy_dir, registries_dir};

/// `install`: performs or checks the installation, and prints the steps. Exit status 1 if something is missing or
/// failed.
pub fn run(root: Option<&Path>, args: &InstallArgs) -> Result<ExitCode, CommandError> {
    if !args.check {
        return report(&args.targets, root, install);
    }
    let findings = check(&args.targets, root);
    let printed = print(&match args.targets.format.output {
        Format::Table => findings.text(Style::of_stdout()),
        Format::Json => format!("{}\n", findings.json()),
    })?;
    Ok(if findings.failed() { ExitCode::FAILURE } else { printed })
}

/// `uninstall`: removes the installation and prints the steps.
pub fn undo(root: Option<&Path>, args: &UninstallArgs) -> Result<ExitCode, CommandError> {
    let act = |targets: &InstallTargets, place: &InstallRoot, work: &mut Installer<'_>| {
        if uninstall(targets, place, work)? == Removed::Everything {
            leftovers(place, work, args.purge)?;
        }
        Ok(())
    };
    report(&args.targets(), root, act)
}

/// Whether an uninstall removed the binary too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removed {
    /// Only what was named.
    Part,
    Everything,
}

/// What no step of `install` wrote: removes it with `--purge`, and names it otherwise.
fn leftovers(place: &InstallRoot, work: &mut Installer<'_>, purge: bool) -> Result<(), InstallError> {
    let paths = place.own_root().map_or_else(Paths::system, Paths::below);
    for (path, what) in [(&paths.run, "state of this boot"), (&paths.cache, "images"), (&paths.etc, "policy and keys")] {
        if purge {
            work.remove_all(path)?;
        } else if place.staged(path).exists() {
            work.keep(path, &format!("{what}; --purge removes it"));
        }
    }
    Ok(())
}

fn report(
    targets: &InstallTargets,
    root: Option<&Path>,
    act: impl FnOnce(&InstallTargets, &InstallRoot, &mut Installer<'_>) -> Result<(), InstallError>,
) -> Result<ExitCode, CommandError> {
    let place = InstallRoot::of(targets, root);
    let mut work = Installer::new(&place, targets.dry_run);
    let result = act(targets, &place, &mut work);
    let printed = print(&match targets.format.output {
        Format::Table if targets.dry_run => work.steps.to_string().lines().map(|step| format!("would {step}\n")).collect(),
        Format::Table => work.steps.to_string(),
        Format::Json => format!("{}\n", work.steps.json()),
    });
    // The steps are printed after a failure too.
    result?;
    printed
}

/// Installs for the requested engines, and for those for which it is already installed.
fn install(targets: &InstallTargets, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let mut engines = place.installed_for();
    engines.0.extend(asked(targets));
    let invocation = place.invocation(&engines);

    if place.is_packaged() && !place.is_of_package(&place.binary()) {
        return Err(InstallError::Packaged(place.staged(&place.binary())));
    }
    let own = Path::new("/proc/self/exe");
    let program = fs::read(own).map_err(|source| InstallError::Io { doing: "read", path: own.to_owned(), source })?;
    work.write(&place.binary(), &program, 0o755)?;
    if place.has_units() {
        work.write(&place.tmpfiles(), hook_files::tmpfiles().as_bytes(), 0o644)?;
        work.write(&place.mount_unit(), hook_files::mount_unit().as_bytes(), 0o644)?;
    }
    // A package compresses its man pages.
    if !targets.no_docs && !place.is_packaged() {
        write_documents(place, work)?;
    }
    work.mount()?;
    if let Some(directory) = &targets.policy {
        policy_dir::install(directory, place, work)?;
    }
    if let Some(directory) = &targets.registries {
        registries_dir::install(directory, place, work)?;
    }
    if !engines.0.is_empty() {
        // poststop before createRuntime: a container that starts in between is released, and poststop costs nothing for
        // one without programs.
        for stage in [HookStage::Poststop, HookStage::CreateRuntime] {
            work.write(&hook_files::path(stage), hook_files::hook(stage, &invocation).as_bytes(), 0o644)?;
        }
    }
    if targets.police.police && !engines.0.is_empty() {
        for stage in hook_files::POLICED {
            let text = hook_files::police_hook(stage, &invocation);
            work.write(&hook_files::police_path(stage), text.as_bytes(), 0o644)?;
        }
    }
    if engines.0.contains(&Engine::Podman) {
        let precreate = hook_files::hook(HookStage::Precreate, &invocation);
        work.write(&hook_files::path(HookStage::Precreate), precreate.as_bytes(), 0o644)?;
        let before = HooksDir::of(Engine::Podman, place.root(), &[Path::new(PODMAN_DROP_IN)])?;
        work.write(Path::new(PODMAN_DROP_IN), hook_files::drop_in(&before.directories).as_bytes(), 0o644)?;
    }
    if targets.containerd.containerd {
        containerd::install(targets, place, work)?;
    }
    if targets.service.service {
        service::install(place, work)?;
    }
    if targets.proxy.proxy {
        proxy::install(place, work)?;
        kubelet_profile::install(&targets.proxy, place, work)?;
    }
    // An installed guard is replaced by this version's: another one does not count.
    if targets.guard.guard || guard::is_installed(place) {
        let bounded = if targets.guard.guard { targets.guard.guard_bounded } else { guard::is_bounded(place) };
        guard::install(bounded, place, work)?;
    }
    // Before the gate, which may ask for it.
    keyring::install(place, work)?;
    if targets.gate.gate || gate::is_installed(place) {
        let warn = if targets.gate.gate { targets.gate.gate_warn } else { gate::only_counts(place) };
        gate::install(warn, place, work)?;
    }
    if targets.nri.nri {
        nri::install(place, work)?;
    }
    if targets.metrics.metrics {
        metrics::install(&targets.metrics, place, work)?;
    }
    if !targets.no_timer {
        gc::install(place, work)?;
    }
    Ok(())
}

/// Writes the man pages and completions, in one step each: there are dozens of pages.
fn write_documents(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let (mut pages, mut changed) = (0, false);
    for (path, text) in documents::files() {
        let is_page = path.starts_with("share/man");
        let path = place.prefix().join(path);
        if is_page {
            pages += 1;
            changed |= work.write_silently(&path, &text, 0o644)?;
        } else {
            work.write(&path, &text, 0o644)?;
        }
    }
    let directory = place.staged(&place.prefix().join("share/man"));
    work.step("write", format!("{}: {pages} man pages", directory.display()), changed);
    Ok(())
}

fn remove_documents(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let mut pages = 0;
    for (path, _) in documents::files() {
        let is_page = path.starts_with("share/man");
        let path = place.prefix().join(path);
        if is_page {
            pages += usize::from(work.remove_silently(&path)?);
        } else {
            work.remove(&path)?;
        }
    }
    if pages > 0 {
        let directory = place.staged(&place.prefix().join("share/man"));
        work.step("remove", format!("{}: {pages} man pages", directory.display()), true);
    }
    Ok(())
}

/// Removes the installation for the requested engines, or all of it if none is named.
///
/// While programs of running containers are pinned, their poststop, gc, the mount and the binary stay, with an error.
/// What a package contains stays too, with its hook files, mount and timer: the package manager removes it.
fn uninstall(targets: &InstallTargets, place: &InstallRoot, work: &mut Installer<'_>) -> Result<Removed, InstallError> {
    let (containerd, service) = (targets.containerd.containerd, targets.service.service);
    let (nri, metrics, proxied) = (targets.nri.nri, targets.metrics.metrics, targets.proxy.proxy);
    let (guarded, gated) = (targets.guard.guard, targets.gate.gate);
    let all = !(targets.podman || targets.crio || targets.names_more());
    let mut left = place.installed_for();
    left.0.retain(|engine| !all && !asked(targets).contains(engine));
    let mut still_read = false;
    if all || nri {
        // Before the hooks' binary: the plugin adds it to containers.
        nri::uninstall(place, work)?;
    }
    if all || containerd {
        still_read = containerd::uninstall(targets, place, work)?;
    }
    if all || service {
        service::uninstall(place, work)?;
    }
    if all || metrics {
        metrics::uninstall(place, work)?;
    }
    if all || proxied {
        proxy::uninstall(place, work)?;
        kubelet_profile::uninstall(&targets.proxy, place, work)?;
    }
    if all || guarded {
        guard::uninstall(place, work)?;
    }
    if all || gated {
        gate::uninstall(place, work)?;
    }
    let others = !all
        && (!containerd && containerd::is_installed(targets, place)?
            || !service && service::is_installed(place)
            || !nri && nri::is_installed(place)
            || !proxied && proxy::is_installed(place)
            || !guarded && guard::is_installed(place)
            || !gated && gate::is_installed(place)
            || !metrics && metrics::is_installed(place));
    if !left.0.contains(&Engine::Podman) {
        work.remove(Path::new(PODMAN_DROP_IN))?;
        work.remove(&hook_files::path(HookStage::Precreate))?;
        work.remove_directory(Path::new(PODMAN_HOOKS_DIR));
        work.remove_directory(Path::new(PODMAN_HOOKS_DIR).parent().expect("it is an absolute path with several components"));
    }
    let complete = left.0.is_empty() && !others;
    let in_use = work.in_use().filter(|_| complete);
    for stage in [HookStage::CreateRuntime, HookStage::Poststop] {
        let path = hook_files::path(stage);
        if place.is_packaged() {
            continue;
        }
        if in_use.is_some() && stage == HookStage::Poststop && place.staged(&path).exists() {
            work.keep(&path, "containers still have programs");
        } else if left.0.is_empty() {
            work.remove(&path)?;
        } else {
            work.write(&path, hook_files::hook(stage, &place.invocation(&left)).as_bytes(), 0o644)?;
        }
    }
    for path in hook_files::POLICED.map(hook_files::police_path) {
        if left.0.is_empty() && place.staged(&path).exists() {
            work.remove(&path)?;
        }
    }
    if still_read && !place.is_staged() && !work.dry_run {
        return Err(ContainerdError::StillRead.into());
    }
    if place.is_packaged() {
        if all {
            policy_dir::uninstall(place, work)?;
            registries_dir::uninstall(place, work)?;
            work.step("advise", "the other files are the package's: remove the package bpfman-hook with apt or dnf", true);
        }
        return Ok(Removed::Part);
    }
    if let Some(pins) = in_use {
        work.keep(&place.binary(), "containers still have programs");
        return Err(InstallError::InUse(pins));
    }
    if complete {
        keyring::uninstall(place, work)?;
        gc::uninstall(place, work)?;
        work.unmount()?;
        if place.has_units() {
            work.remove(&place.mount_unit())?;
            work.remove(&place.tmpfiles())?;
        }
        remove_documents(place, work)?;
        work.remove(&place.binary())?;
        policy_dir::uninstall(place, work)?;
        registries_dir::uninstall(place, work)?;
    }
    Ok(if complete { Removed::Everything } else { Removed::Part })
}

#[cfg(test)]
mod tests;
