//! Loads of what bpfman-hook brings along, while a gate is in force that asks for signatures ([`crate::kernel::gate`]): it
//! has none, so the process exempts itself for the time of the load. Only executables on the host's list can.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::sys::{SysError, bpf, pid};

/// Map and pin: processes whose unsigned programs are accepted. Only a gate that asks for signatures has it.
pub(super) const EXEMPT: &str = "exempt";

/// The pins of the gates of this host, if the process has said where they are.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Tells where the pins of the gate are: [`crate::paths::Paths::gate`].
pub fn install(directory: PathBuf) {
    // Only the first call of a process counts.
    _ = DIRECTORY.set(directory);
}

/// Loads programs that bpfman-hook brings along.
pub(super) fn exempted<T>(load: impl FnOnce() -> T) -> T {
    let gates = DIRECTORY.get().and_then(|directory| versions(directory).ok()).unwrap_or_default();
    match gates.into_iter().find(|pins| pins.join(EXEMPT).exists()) {
        Some(pins) => exempt_at(&pins, load),
        None => load(),
    }
}

/// Exempts this process at one gate. If the gate does not let it, the load is refused there, which its error says.
pub(super) fn exempt_at<T>(pins: &Path, load: impl FnOnce() -> T) -> T {
    let exemption = || {
        let map = bpf::open_pin(&pins.join(EXEMPT)).ok()?;
        let process = pid::own_pidfd().ok()?;
        let key = process.as_raw_fd().to_ne_bytes();
        bpf::map_update(map.as_fd(), &key, &1_u32.to_ne_bytes()).ok()?;
        Some((map, process, key))
    };
    let exemption = exemption();
    let result = load();
    if let Some((map, _process, key)) = exemption {
        // It ends with the process in any case.
        _ = bpf::map_delete(map.as_fd(), &key);
    }
    result
}

/// The gates that have a directory.
pub(super) fn versions(directory: &Path) -> Result<Vec<PathBuf>, SysError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SysError::io("list", directory.display().to_string())(error)),
    };
    let found = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    found.map_err(SysError::io("list", directory.display().to_string()))
}
