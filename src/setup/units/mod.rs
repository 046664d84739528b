//! The texts of the systemd units that `install` writes, and how they are installed.

use std::path::PathBuf;

use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

pub mod gate;
pub mod gc;
pub mod guard;
pub mod keyring;
pub mod metrics;
pub mod nri;
pub mod proxy;
pub mod service;

/// A file of units, and its text.
type UnitFile = (PathBuf, String);

fn write(files: &[UnitFile], work: &mut Installer<'_>) -> Result<(), InstallError> {
    files.iter().try_for_each(|(path, text)| work.write(path, text.as_bytes(), 0o644))
}

/// Starts units whose files have just been written, now and at each boot.
fn start(units: &[&str], work: &mut Installer<'_>) -> Result<(), InstallError> {
    work.systemctl(&["daemon-reload"])?;
    work.systemctl(&[&["enable", "--now"], units].concat())
}

/// Stops the units, if they are installed and systemd runs, and removes the files, the last one first. Does nothing if our
/// directories are not the default ones.
fn remove(
    files: &[UnitFile],
    installed: bool,
    units: &[&str],
    place: &InstallRoot,
    work: &mut Installer<'_>,
) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    if installed && !place.is_staged() && work.by_systemd() {
        work.systemctl(&[&["disable", "--now"], units].concat())?;
    }
    files.iter().rev().try_for_each(|(path, _)| work.remove(path))
}
