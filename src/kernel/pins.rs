//! Pins below our bpffs: one directory for each owner, with names that say what is pinned.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::kernel::error::KernelError;
use crate::model::ids::{OwnerNo, PinName};
use crate::paths::{GATE, GUARD};
use crate::sys::{Errno, SysError, bpf, fsutil};

/// What the kernel creates in every bpffs (CONFIG_BPF_PRELOAD, kernel/bpf/inode.c).
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

/// The subdirectory of an owner's directory in which maps are also pinned by their names in the object.
pub const NAMES: &str = "maps";

/// The contents of our bpffs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PinnedOwners {
    /// The owners' directories, with their pins ordered by name.
    pub owners: Vec<(OwnerNo, Vec<PinName>)>,
    /// Paths with names that are not ours: created by a user or by another version. They are never removed.
    pub foreign: Vec<PathBuf>,
}

/// Creates the directory for an owner's pins, mode 0700. An existing one is an error: owner numbers are never reused.
pub fn make_directory(directory: &Path) -> Result<(), KernelError> {
    let made = DirBuilder::new().mode(0o700).create(directory);
    Ok(made.map_err(SysError::io("create the pin directory", directory.display().to_string()))?)
}

/// Removes an owner's directory and everything in it, links first, so that programs are detached before they go. If it
/// is absent, this is a success.
pub fn remove_directory(directory: &Path) -> Result<(), KernelError> {
    let mut left = entries(directory)?;
    let names = directory.join(NAMES);
    left.retain(|path| *path != names);
    left.sort_by_key(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"link_")));
    for pin in left.into_iter().chain(entries(&names)?) {
        fsutil::unlink_if_present(&pin)?;
    }
    fsutil::remove_dir_if_present(&names)?;
    fsutil::remove_dir_if_present(directory)?;
    Ok(())
}

/// Removes one pin. The object ends when nothing else refers to it: a link detaches, a program is unloaded. The kernel
/// does this some milliseconds later, on a thread of its own. BPF_LINK_DETACH would make the caller wait for it, up to
/// 16 ms for an XDP link in generic mode, which is longer than the rest of a release.
pub fn unpin(directory: &Path, pin: &PinName) -> Result<bool, KernelError> {
    Ok(fsutil::unlink_if_present(&pin.path(directory))?)
}

/// Pins a map by its name in the object too, where bpfman's clients look for it. Nothing in bpfman-hook depends on that
/// pin; it is removed with the owner's directory.
pub fn pin_by_name(directory: &Path, name: &str, map: BorrowedFd<'_>) -> Result<(), KernelError> {
    let names = directory.join(NAMES);
    match DirBuilder::new().mode(0o700).create(&names) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SysError::io("create the directory", names.display().to_string())(error).into());
        }
        _ => {}
    }
    let pin = names.join(name);
    bpf::pin(map, &pin).map_err(|source| KernelError::Pin { doing: "pin a map at", pin: pin.display().to_string(), source })
}

/// Everything below our bpffs, for gc and doctor. Empty if the bpffs is not mounted.
pub fn list(bpffs: &Path) -> Result<PinnedOwners, KernelError> {
    let mut found = PinnedOwners::default();
    for path in entries(bpffs)? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| PRELOADED.contains(&name) || name == GUARD || name == GATE) {
            continue;
        }
        match name.and_then(OwnerNo::from_directory) {
            Some(owner) => {
                let mut pins = Vec::new();
                for pin in entries(&path)?.into_iter().filter(|pin| *pin != path.join(NAMES)) {
                    match pin.file_name().and_then(|name| name.to_str()).and_then(PinName::from_file_name) {
                        Some(name) => pins.push(name),
                        None => found.foreign.push(pin),
                    }
                }
                found.owners.push((owner, pins));
            }
            None => found.foreign.push(path),
        }
    }
    found.owners.sort();
    found.foreign.sort();
    Ok(found)
}

/// Opens a map by its pin. The descriptor keeps the map alive until it is closed.
///
/// # Errors
/// ENOENT if the pin does not exist.
pub fn open_map(directory: &Path, pin: &PinName) -> Result<OwnedFd, KernelError> {
    bpf::open_pin(&pin.path(directory)).map_err(KernelError::pin("open", directory, pin))
}

/// Opens a pinned object; None if the pin does not exist.
pub(crate) fn open(directory: &Path, pin: &PinName) -> Result<Option<OwnedFd>, KernelError> {
    match bpf::open_pin(&pin.path(directory)) {
        Ok(object) => Ok(Some(object)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(KernelError::pin("open", directory, pin)(errno)),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let fail = || SysError::io("list", directory.display().to_string());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(fail()(error).into()),
    };
    let mut found = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(fail())?;
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The functions need a file system, not necessarily a bpffs; the privileged tests cover a real bpffs.
    #[test]
    fn directories_are_created_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let owner = OwnerNo(7);
        assert_eq!(list(&root.path().join("none")).unwrap(), PinnedOwners::default());
        let directory = root.path().join(owner.directory());
        make_directory(&directory).unwrap();
        assert!(make_directory(&directory).is_err(), "an owner number was reused");
        for name in ["prog_0", "link_2", "map_1", "someone"] {
            fs::write(directory.join(name), "").unwrap();
        }
        fs::create_dir(directory.join(NAMES)).unwrap();
        fs::write(directory.join(NAMES).join("packets"), "").unwrap();
        fs::write(root.path().join("owner_x"), "").unwrap();
        let found = list(root.path()).unwrap();
        assert_eq!(found.owners, [(owner, vec![PinName::link(2), PinName::map(1), PinName::program(0)])]);
        assert_eq!(found.foreign, [root.path().join("owner_7/someone"), root.path().join("owner_x")]);
        for (pin, there) in [(PinName::program(0), true), (PinName::program(0), false), (PinName::link(2), true)] {
            assert_eq!(unpin(&directory, &pin).unwrap(), there, "{pin}");
        }
        remove_directory(&directory).unwrap();
        assert!(!directory.exists());
        remove_directory(&directory).unwrap();
    }
}
