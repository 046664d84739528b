//! What this kernel lets programs reach that are loaded with a BPF token: determined once per boot, then read from a
//! file.

use std::path::Path;

use crate::kernel::{Kernel, LinuxKernel};
use crate::model::reach::TokenReach;
use crate::paths::Paths;
use crate::sys::caps::{self, Capability};
use crate::sys::error::chain;
use crate::sys::fsutil::{TrustedRoot, ensure_directory, write_atomically};
use crate::sys::{clock, machine};

/// Maximum size of the file in bytes; it usually has about 5 kB.
const MAX: usize = 64 << 10;

/// The token reach: that of the guard if it is in force, else from the file, or from probes. The result of the probes is
/// written to the file if it describes the bare kernel. `file` is [`crate::paths::Paths::token_reach`], `guard` is
/// [`crate::paths::Paths::guard`].
///
/// A write error is only logged: the next process probes again.
pub fn token_reach(kernel: &impl Kernel, file: &Path, guard: &Path) -> TokenReach {
    if kernel.is_guarded(guard) {
        return TokenReach { guarded: true, ..TokenReach::default() };
    }
    if let Some(reach) = kept(file) {
        return reach;
    }
    let probed = kernel.token_reach();
    if probed.bare
        && let Some((boot, release)) = identity()
        && let Some(text) = probed.reach.keep(&boot, &release)
        && let Err(why) = write(file, &text)
    {
        tracing::warn!("cannot keep what this kernel lets a token reach: {why}");
    }
    probed.reach
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    ensure_directory(directory, 0o755).map_err(|error| chain(&error))?;
    write_atomically(file, text.as_bytes(), 0o644).map_err(|error| chain(&error))
}

/// The token reach that is kept for this boot and kernel. None if it is missing, or if a user other than root could
/// have written it.
pub fn kept(file: &Path) -> Option<TokenReach> {
    let (boot, release) = identity()?;
    let bytes = TrustedRoot::at(file.parent()?).and_then(|root| root.read_file(file, MAX)).ok()?;
    TokenReach::kept(std::str::from_utf8(&bytes).ok()?, &boot, &release)
}

/// What a token reaches on this kernel, for a command: the result kept for this boot, else that of the probes, which
/// need root. None for other users if no result is kept. Only root sees whether the guard is in force.
pub fn known(paths: &Paths) -> Option<TokenReach> {
    match caps::has(Capability::CAP_SYS_ADMIN) {
        true => Some(token_reach(&LinuxKernel, &paths.token_reach(), &paths.guard())),
        false => kept(&paths.token_reach()),
    }
}

/// The boot id and the release of the running kernel.
fn identity() -> Option<(String, String)> {
    Some((clock::boot_id().ok()?, machine::kernel_release()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::reach::TypeAnswer;

    #[test]
    fn a_file_that_others_could_write_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token-reach.json");
        let (boot, release) = identity().unwrap();
        let mut reach = TokenReach::default();
        reach.types.insert(1, TypeAnswer::Offers(Vec::new()));
        assert_eq!(kept(&file), None);
        let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        fs::write(&file, reach.keep(&boot, &release).unwrap()).unwrap();
        mode(&file, 0o644);
        assert_eq!(kept(&file), Some(reach.clone()));
        for (path, bad, good) in [(file.as_path(), 0o664, 0o644), (dir.path(), 0o777, 0o755)] {
            mode(path, bad);
            assert_eq!(kept(&file), None, "{path:?}");
            mode(path, good);
        }
        fs::write(&file, "x".repeat(MAX + 1)).unwrap();
        assert_eq!(kept(&file), None);
        fs::write(&file, reach.keep("another boot", &release).unwrap()).unwrap();
        assert_eq!(kept(&file), None);
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, reach.keep(&boot, &release).unwrap()).unwrap();
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(kept(&file), None, "a symbolic link is not followed");
    }
}
