//! Data for observers: counters, events and one owner file per owner, in a directory next to the store.
//!
//! The metrics process must not have access to the store, because an LMDB reader writes the lock file. Here it only
//! reads files. Nothing here blocks or fails the caller: data that cannot be written must not keep a container from
//! starting. Container starts only write here and never trust what they find.
//!
//! The directory belongs to root, mode 0750. `install --metrics` sets its group and the setgid bit, so that new files
//! inherit the group.

mod counters;
mod proxies;
mod temporary;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::fs::{flock, fstat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use self::counters::Counters;
use self::temporary::{FILE_MODE, make_temporary, unique};
use crate::model::event::Event;
use crate::model::metrics_table;
use crate::model::metrics_table::{EventKind, MetricSlot};
use crate::sys::{clock, fsutil};

pub use self::counters::{COUNTERS, read as read_counters};
pub use self::proxies::PROXIES;

/// The file with events, one JSON document per line.
pub const EVENTS: &str = "events";
/// The previous file of events.
pub const OLD_EVENTS: &str = "events.1";
/// The directory of owner files: a JSON document for each owner, named by its number.
pub const OWNERS: &str = "owners";
/// The file with the last program statistics read from the kernel.
pub const PROGRAMS: &str = "programs";

/// The name of the file in which an NRI plugin reports whether it is connected; `start` says how it was started.
pub fn plugin_file(start: &str) -> String {
    format!("plugin-{start}")
}

/// The lock file for rotating the events. Readers cannot open it, so they cannot hold the lock.
const LOCK: &str = "lock";

/// A file of events is rotated when it is larger than this.
const MAX_EVENTS: u64 = 1 << 20;

/// The temporary name of an owner file. Owner files are written only while holding the writer's lock of the store, so
/// that one name is sufficient, and the next owner file replaces what a killed process left.
const NEW_OWNER_FILE: &str = ".new";

/// The export directory, opened for writing.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    directory: OwnedFd,
    counters: OnceLock<Option<Counters>>,
}

static PLACE: OnceLock<PathBuf> = OnceLock::new();
static OPEN: OnceLock<Option<Export>> = OnceLock::new();

/// Sets the directory in which this process records. It is opened when there is something to record. Without this call
/// nothing is recorded.
pub fn install(directory: PathBuf) {
    let _ = PLACE.set(directory);
}

/// True if this process records.
pub fn is_installed() -> bool {
    PLACE.get().is_some()
}

/// The directory that this process records in; None if it does not record, or if the directory is not owned and
/// writable by us alone.
pub fn here() -> Option<&'static Export> {
    let place = PLACE.get()?;
    OPEN.get_or_init(|| Export::open(place)).as_ref()
}

/// Adds to a counter of this process's directory.
pub fn count(slot: MetricSlot, by: u64) {
    if let Some(export) = here() {
        export.count(slot, by);
    }
}

/// Adds a duration to a histogram of this process's directory.
pub fn observe(histogram: MetricSlot, duration: Duration) {
    if let Some(export) = here() {
        export.observe(histogram, duration);
    }
}

impl Export {
    /// Opens the directory and creates it if it is missing. None if it is not a directory that only we can write.
    pub fn open(path: &Path) -> Option<Self> {
        let directory = open_or_make(CWD, path)?;
        let stat = fstat(&directory).ok()?;
        let ours = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0;
        ours.then(|| Self { path: path.to_owned(), directory, counters: OnceLock::new() })
    }

    /// Adds to a counter.
    pub fn count(&self, slot: MetricSlot, by: u64) {
        if let Some(counters) = self.counters.get_or_init(|| Counters::open(&self.directory)) {
            counters.add(slot, by);
        }
    }

    /// Adds a duration to a histogram.
    pub fn observe(&self, histogram: MetricSlot, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (bucket, sum) = metrics_table::bucket(histogram, nanoseconds);
        self.count(bucket, 1);
        self.count(sum, nanoseconds);
    }

    /// Counts an event, and appends it with the time.
    pub fn tell(&self, what: EventKind, mut event: Event) {
        self.count(metrics_table::event(what), 1);
        event.time = clock::utc_precise();
        self.append(&(serde_json::to_string(&event).expect("an event is made of strings and numbers") + "\n"));
    }

    /// Appends complete lines to the events. Lines of several processes are not interleaved.
    pub fn append(&self, lines: &str) {
        let _ = self.try_append(lines);
    }

    fn try_append(&self, lines: &str) -> Option<()> {
        // O_NONBLOCK: a fifo fails instead of waiting for a reader.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || openat(&self.directory, EVENTS, flags, Mode::from_raw_mode(FILE_MODE)).ok();
        let mut file = open()?;
        let stat = fstat(&file).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > MAX_EVENTS) {
            self.rotate();
            file = open()?;
        }
        // A single write(2) with O_APPEND.
        std::fs::File::from(file).write_all(lines.as_bytes()).ok()
    }

    /// Rotates the events once: a process that comes second finds a short file and leaves it.
    fn rotate(&self) -> Option<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = openat(&self.directory, LOCK, flags, Mode::RUSR | Mode::WUSR).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        let stat = statat(&self.directory, EVENTS, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if u64::try_from(stat.st_size).is_ok_and(|size| size > MAX_EVENTS) {
            renameat(&self.directory, EVENTS, &self.directory, OLD_EVENTS).ok()?;
        }
        Some(())
    }

    /// Writes an owner file. The caller holds the writer's lock of the store.
    pub fn put_owner_file(&self, no: u64, owner_file: &[u8]) {
        if let Some(owners) = open_or_make(&self.directory, Path::new(OWNERS)) {
            let _ = replace(&owners, &no.to_string(), NEW_OWNER_FILE, owner_file);
        }
    }

    /// Removes an owner file. Returns true if it existed.
    pub fn remove_owner_file(&self, no: u64) -> bool {
        let Some(owners) = self.owners() else { return false };
        let remove = || unlinkat(&owners, no.to_string(), AtFlags::empty());
        match remove() {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            // Tried again, because nothing but `gc` looks for a file that stays.
            Err(_) => remove().is_ok(),
        }
    }

    /// The numbers of the owners that have an owner file.
    pub fn owner_files(&self) -> Vec<u64> {
        let names = fsutil::names_in(&self.path.join(OWNERS)).unwrap_or_default();
        names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
    }

    /// Writes the program statistics.
    pub fn put_programs(&self, text: &[u8]) {
        let _ = replace(&self.directory, PROGRAMS, &unique(PROGRAMS), text);
    }

    /// Removes unfinished files of killed processes. The caller holds the writer's lock of the store, so that no owner
    /// file is being written.
    pub fn remove_unfinished(&self) {
        let hidden = |directory: &Path| {
            let names = fsutil::names_in(directory).unwrap_or_default();
            names.into_iter().filter_map(|name| Some(name.to_str()?.to_owned())).filter(|name| name.starts_with('.'))
        };
        if let Some(owners) = self.owners() {
            hidden(&self.path.join(OWNERS)).for_each(|name| _ = unlinkat(&owners, name, AtFlags::empty()));
        }
        for name in hidden(&self.path) {
            // `.NAME.PID.N`. If another process has this pid by now, the file is left for the next run.
            let writer = name.rsplit('.').nth(1).and_then(|pid| pid.parse::<u32>().ok());
            if writer.is_none_or(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
                let _ = unlinkat(&self.directory, name, AtFlags::empty());
            }
        }
    }

    /// Writes whether a plugin is connected.
    pub fn put_plugin(&self, start: &str, text: &[u8]) {
        let name = plugin_file(start);
        let _ = replace(&self.directory, &name, &unique(&name), text);
    }

    fn owners(&self) -> Option<OwnedFd> {
        self.subdirectory(Path::new(OWNERS))
    }

    fn subdirectory(&self, path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.directory, path, flags, Mode::empty()).ok()
    }
}

/// Opens a directory or creates it. It exists except in the first run of a boot.
fn open_or_make(directory: impl AsFd, name: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(&directory, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        opened => return opened.ok(),
    }
    match mkdirat(&directory, name, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => open().ok(),
        Err(_) => None,
    }
}

/// Replaces a file atomically or leaves it unchanged. It is not synced, because it does not outlive the boot.
fn replace(directory: &OwnedFd, name: &str, temporary: &str, bytes: &[u8]) -> Result<(), Errno> {
    let mut file = make_temporary(directory, temporary)?;
    let written = file.write_all(bytes).map_err(|_| Errno::IO).and_then(|()| renameat(directory, temporary, directory, name));
    if written.is_err() {
        let _ = unlinkat(directory, temporary, AtFlags::empty());
    }
    written
}
