//! Puts the guard in force and ends it: see [`crate::kernel::guard`].

use std::path::Path;

use crate::kernel::KernelError;
use crate::kernel::guard::{self, GuardError};
use crate::paths::Paths;
use crate::sys::fsutil::ensure_directory;
use crate::sys::mounts;

/// Mounts our bpffs if it is not mounted, and puts the guard in force.
///
/// # Errors
/// See [`guard::load`].
pub fn load(paths: &Paths, bounded: bool) -> Result<(), GuardError> {
    ensure_directory(&paths.run, 0o755)?;
    mounts::ensure_bpffs(&paths.bpffs())?;
    guard::load(&paths.guard(), bounded)
}

/// Ends the guard; the result says whether there was one.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(directory: &Path) -> Result<bool, KernelError> {
    guard::unload(directory)
}
