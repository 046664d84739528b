//! The file of counters: a header and a row of u64, which every process maps and adds to.
//!
//! Adding is one instruction on shared memory: there is no lock that a stopped process, or a reader, could hold. Pages are
//! reserved when the file is made, because a write to a page for which there is no memory is SIGBUS.

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

use super::{COUNTERS, make_temporary, unique};
use crate::model::metrics_table::{MetricSlot, SLOTS, fingerprint};
use crate::sys::fsutil;

/// Words before the first counter: magic, fingerprint of the table.
const HEADER: usize = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"bpfmhook");
const SIZE: usize = (HEADER + SLOTS) * 8;

/// The mapped file.
#[derive(Debug)]
pub struct Counters {
    words: NonNull<AtomicU64>,
}

// SAFETY: what it points to are atomics in memory that stays mapped as long as this lives.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Maps the file of this directory, made if it is missing. One that is not what this program would make is replaced: the
    /// counts begin again, as after a restart.
    pub(super) fn open(directory: &OwnedFd) -> Option<Self> {
        let found = open(directory);
        // Missing at the one look that counts: a file that another process makes after it is not taken for a stale one.
        let replace = !matches!(found, Err(Errno::NOENT));
        if let Some(counters) = found.ok().and_then(|file| Self::map(&file)) {
            return Some(counters);
        }
        make(directory, replace).ok()?;
        open(directory).ok().and_then(|file| Self::map(&file))
    }

    fn map(file: &OwnedFd) -> Option<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(std::ptr::null_mut(), SIZE, protection, flags, file, 0) }.ok()?;
        let counters = Self { words: NonNull::new(address.cast())? };
        let known =
            counters.word(0).load(Ordering::Relaxed) == MAGIC && counters.word(1).load(Ordering::Relaxed) == fingerprint();
        known.then_some(counters)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < HEADER + SLOTS, "slots come from the table");
        // SAFETY: `at` is within the mapping, which is aligned to pages; other processes use these words as atomics too, and
        // nobody else can write them, since the file is ours.
        unsafe { self.words.add(at).as_ref() }
    }

    /// Adds to one counter. Wraps, as counters may.
    pub(super) fn add(&self, slot: MetricSlot, by: u64) {
        self.word(HEADER + slot.0).fetch_add(by, Ordering::Relaxed);
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and no reference into it outlives this.
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
            // The first one wins, so that nobody's counts go into a file that has lost its name.
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

/// The counters of a directory as they are now, in the order of the table; None where there are none that this program knows.
pub fn read(directory: &Path) -> Option<Vec<u64>> {
    let mut bytes = Vec::with_capacity(SIZE);
    File::open(directory.join(COUNTERS)).ok()?.take(SIZE as u64 + 1).read_to_end(&mut bytes).ok()?;
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let known = bytes.len() == SIZE && words[0] == MAGIC && words[1] == fingerprint();
    known.then(|| words[HEADER..].to_vec())
}
