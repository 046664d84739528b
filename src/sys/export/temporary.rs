//! Temporary files of the export directory: written, then renamed into place.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, openat, unlinkat};
use rustix::io::Errno;

/// Writable by the owner, readable by the group.
pub(super) const FILE_MODE: u32 = 0o640;

/// A name next to `name` that no other living process uses.
pub(super) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(".{name}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Creates a temporary file; an existing one was left by a process that died.
pub(super) fn make_temporary(directory: &OwnedFd, temporary: &str) -> Result<std::fs::File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = || openat(directory, temporary, flags, Mode::RUSR | Mode::WUSR);
    let file = match open() {
        Err(Errno::EXIST) => {
            unlinkat(directory, temporary, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    if let Err(errno) = fchmod(&file, Mode::from_raw_mode(FILE_MODE)) {
        let _ = unlinkat(directory, temporary, AtFlags::empty());
        return Err(errno);
    }
    Ok(file.into())
}
