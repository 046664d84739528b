//! The file of counters: a header and an array of u64, which every process maps and adds to.
//!
//! Adding is one atomic instruction on shared memory: there is no lock that a stopped process or a reader could hold.
//! Pages are allocated when the file is created, because writing to a page for which there is no memory raises SIGBUS.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::geteuid;

use super::temporary::{make_temporary, unique};
use crate::model::metrics_table::{MetricSlot, SLOTS, fingerprint};
use crate::sys::fsutil;

/// The file with counters.
pub const COUNTERS: &str = "counters";

/// Words before the first counter: a magic number and the fingerprint of the table.
const HEADER: usize = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"bpfmhook");
const SIZE: usize = (HEADER + SLOTS) * 8;

/// The mapped file.
#[derive(Debug)]
pub struct Counters {
    words: NonNull<AtomicU64>,
}

// SAFETY: the pointer refers to atomics in memory that stays mapped as long as this value lives.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Maps the file in this directory and creates it if it is missing. A file of another format is replaced: the
    /// counters start at zero, as after a restart.
    pub(super) fn open(directory: &OwnedFd) -> Option<Self> {
        let found = open(directory);
        // Decided by this lookup: a file that another process creates afterwards must not be taken for a stale one.
        let replace = !matches!(found, Err(Errno::NOENT));
        if let Some(counters) = found.ok().and_then(|file| Self::map(&file)) {
            return Some(counters);
        }
        make(directory, replace).ok()?;
        open(directory).ok().and_then(|file| Self::map(&file))
    }

    fn map(file: &OwnedFd) -> Option<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address chosen by the kernel does not overlap any other memory.
        let address = unsafe { mmap(std::ptr::null_mut(), SIZE, protection, flags, file, 0) }.ok()?;
        let counters = Self { words: NonNull::new(address.cast())? };
        let known =
            counters.word(0).load(Ordering::Relaxed) == MAGIC && counters.word(1).load(Ordering::Relaxed) == fingerprint();
        known.then_some(counters)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < HEADER + SLOTS, "slots are those of the table");
        // SAFETY: `at` is within the mapping, which is page-aligned. Other processes also use these words as atomics,
        // and no other user can write them, since the file is ours.
        unsafe { self.words.add(at).as_ref() }
    }

    /// Adds to a counter. It may wrap, as counters do.
    pub(super) fn add(&self, slot: MetricSlot, by: u64) {
        self.word(HEADER + slot.0).fetch_add(by, Ordering::Relaxed);
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this size, and no reference into it outlives this value.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), SIZE) };
    }
}

fn open(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, COUNTERS, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == geteuid().as_raw()
        && stat.st_mode & 0o022 == 0
        && usize::try_from(stat.st_size) == Ok(SIZE);
    if ours { Ok(file) } else { Err(Errno::INVAL) }
}

fn make(directory: &OwnedFd, replace: bool) -> Result<(), Errno> {
    let name = unique(COUNTERS);
    let mut file = make_temporary(directory, &name)?;
    let header = [MAGIC.to_ne_bytes(), fingerprint().to_ne_bytes()].concat();
    let made = fsutil::reserve(&file, SIZE as u64)
        .and_then(|()| std::io::Write::write_all(&mut file, &header))
        .map_err(|_| Errno::NOSPC)
        .and_then(|()| match replace {
            true => renameat(directory, &name, directory, COUNTERS),
            // The first one wins, so that no process counts in a file that has lost its name.
            false => match renameat_with(directory, &name, directory, COUNTERS, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => unlinkat(directory, &name, AtFlags::empty()),
                other => other,
            },
        });
    if made.is_err() {
        let _ = unlinkat(directory, &name, AtFlags::empty());
    }
    made
}

/// The current counters of a directory, in the order of the table; None if there is no file of this format.
pub fn read(directory: &Path) -> Option<Vec<u64>> {
    let mut bytes = Vec::with_capacity(SIZE);
    File::open(directory.join(COUNTERS)).ok()?.take(SIZE as u64 + 1).read_to_end(&mut bytes).ok()?;
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let known = bytes.len() == SIZE && words[0] == MAGIC && words[1] == fingerprint();
    known.then(|| words[HEADER..].to_vec())
}
