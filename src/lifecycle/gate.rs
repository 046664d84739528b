//! Puts the gate in force and ends it: see [`crate::kernel::gate`].

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::kernel::KernelError;
use crate::kernel::gate::{self, GateError};
use crate::model::gate::{DigestKind, ExecutableDigest, GateRules};
use crate::paths::Paths;
use crate::sys::fsutil::ensure_directory;
use crate::sys::{SysError, mounts, verity};

/// The file that this process executes.
const OWN: &str = "/proc/self/exe";

/// Mounts our bpffs if it is not mounted, and puts the gate in force with these rules. This program is always on the list,
/// and so is `installed`, the program that hooks run.
///
/// # Errors
/// See [`gate::load`].
pub fn load(paths: &Paths, rules: &GateRules, installed: Option<&Path>) -> Result<(), GateError> {
    ensure_directory(&paths.run, 0o755)?;
    mounts::ensure_bpffs(&paths.bpffs())?;
    let mut own = Vec::new();
    for path in [Some(Path::new(OWN)), installed].into_iter().flatten() {
        let shown = path.display().to_string();
        let file = File::open(path).map_err(SysError::io("open", &shown))?;
        // The kernel need not read a file whose digest it has.
        own.extend(verity::measure(&file).ok().map(|digest| ExecutableDigest { kind: DigestKind::FsVerity, digest }));
        own.push(ExecutableDigest::sha256(sha256(file).map_err(SysError::io("read", &shown))?));
    }
    gate::load(&paths.gate(), rules, &own)
}

/// Enables fs-verity on a file of ours, where the file system can. The kernel then knows the file's digest without reading
/// it. A failure changes nothing, and is not reported.
pub fn seal(path: &Path) {
    _ = File::open(path).map(|file| verity::enable(&file));
}

/// Ends the gate; the result says whether there was one.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(directory: &Path) -> Result<bool, KernelError> {
    gate::unload(directory)
}

fn sha256(mut file: File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}
