//! What a run leaves for those who only watch: counters, events and a card for each owner, in a directory beside the store.
//!
//! The metrics process must not have the store, since a reader of LMDB writes its lock file. Here it has nothing but files to
//! read. Nothing in here blocks, and nothing fails its caller: what cannot be written is not a reason to stop a container.
//! What is found there is never believed by a start, which only adds to it.
//!
//! The directory is root's, 0750; `install --metrics` gives it a group and the setgid bit, which files made in it inherit.

mod counters;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::fs::{fchmod, flock, fstat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use self::counters::Counters;
use crate::model::metrics_table;
use crate::model::metrics_table::MetricSlot;
use crate::sys::fsutil;

pub use self::counters::read as read_counters;

/// The file of counters.
pub const COUNTERS: &str = "counters";
/// The events, one JSON document a line.
pub const EVENTS: &str = "events";
/// The events before those.
pub const OLD_EVENTS: &str = "events.1";
/// The directory of cards: a JSON document for each owner, named by its number.
pub const OWNERS: &str = "owners";
/// What the kernel said about programs when it was asked last.
pub const PROGRAMS: &str = "programs";

/// The file in which an NRI plugin says whether it is connected; `start` says how it was started.
pub fn plugin_file(start: &str) -> String {
    format!("plugin-{start}")
}

/// Whoever wants to move a file of events away holds a lock on this one. Readers cannot open it, so that they cannot hold it.
const LOCK: &str = "lock";

/// A file of events is moved away when it has grown beyond this.
const MAX_EVENTS: u64 = 1 << 20;

/// A card that is being written. Only who holds the writer's lock of the store writes cards, so one name is enough, and the next
/// card replaces what a killed process left.
const NEW_CARD: &str = ".new";

/// Owner may write, group may read.
const FILE_MODE: u32 = 0o640;

/// The directory, opened for writing.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    directory: OwnedFd,
    counters: OnceLock<Option<Counters>>,
}

static PLACE: OnceLock<PathBuf> = OnceLock::new();
static OPEN: OnceLock<Option<Export>> = OnceLock::new();
static COLLECTING: AtomicBool = AtomicBool::new(false);

/// Says where this process records. Nothing is opened before there is something to record; without this nothing ever is.
pub fn install(directory: PathBuf) {
    let _ = PLACE.set(directory);
}

/// True where this process records.
pub fn is_installed() -> bool {
    PLACE.get().is_some()
}

/// What this process records to; None where it does not record, or where the directory is not ours alone.
pub fn here() -> Option<&'static Export> {
    let place = PLACE.get()?;
    OPEN.get_or_init(|| Export::open(place)).as_ref()
}

/// Adds to one counter of this process's directory.
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

/// While this lives, what is released was found by gc.
#[derive(Debug)]
pub struct Collecting(());

impl Collecting {
    /// From now on.
    pub fn begin() -> Self {
        COLLECTING.store(true, Ordering::Relaxed);
        Self(())
    }

    /// Whether one lives.
    pub fn is_on() -> bool {
        COLLECTING.load(Ordering::Relaxed)
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        COLLECTING.store(false, Ordering::Relaxed);
    }
}

impl Export {
    /// Opens the directory, and makes it if it is missing. None where it is not a directory of ours that nobody else can
    /// write.
    pub fn open(path: &Path) -> Option<Self> {
        let directory = open_or_make(CWD, path)?;
        let stat = fstat(&directory).ok()?;
        let ours = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0;
        ours.then(|| Self { path: path.to_owned(), directory, counters: OnceLock::new() })
    }

    /// Adds to one counter.
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

    /// Appends lines to the events, each whole, those of several processes unmixed.
    pub fn append(&self, lines: &str) {
        let _ = self.try_append(lines);
    }

    fn try_append(&self, lines: &str) -> Option<()> {
        // O_NONBLOCK: a fifo there fails instead of waiting for a reader.
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
        // One write(2) with O_APPEND.
        std::fs::File::from(file).write_all(lines.as_bytes()).ok()
    }

    /// Moves the events away, once: whoever comes while another does it, or after, finds a short file and leaves it.
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

    /// Writes an owner's card. The caller holds the writer's lock of the store.
    pub fn put_owner_file(&self, no: u64, owner_file: &[u8]) {
        if let Some(owners) = open_or_make(&self.directory, Path::new(OWNERS)) {
            let _ = replace(&owners, &no.to_string(), NEW_CARD, owner_file);
        }
    }

    /// Removes an owner's card. True: it had one.
    pub fn remove_owner_file(&self, no: u64) -> bool {
        self.owners().is_some_and(|owners| unlinkat(&owners, no.to_string(), AtFlags::empty()).is_ok())
    }

    /// The numbers that have a card.
    pub fn owner_files(&self) -> Vec<u64> {
        let names = fsutil::names_in(&self.path.join(OWNERS)).unwrap_or_default();
        names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
    }

    /// Writes what the kernel said about programs.
    pub fn put_programs(&self, text: &[u8]) {
        let _ = replace(&self.directory, PROGRAMS, &unique(PROGRAMS), text);
    }

    /// Removes what killed processes were writing. The caller holds the writer's lock of the store, so that no card is being written.
    pub fn remove_unfinished(&self) {
        let hidden = |directory: &Path| {
            let names = fsutil::names_in(directory).unwrap_or_default();
            names.into_iter().filter_map(|name| Some(name.to_str()?.to_owned())).filter(|name| name.starts_with('.'))
        };
        if let Some(owners) = self.owners() {
            hidden(&self.path.join(OWNERS)).for_each(|name| _ = unlinkat(&owners, name, AtFlags::empty()));
        }
        for name in hidden(&self.path) {
            // `.NAME.PID.N`. A number that another process has by now is one to look at the next time.
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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.directory, OWNERS, flags, Mode::empty()).ok()
    }
}

/// Opens a directory, which is there for every run but the first of a boot, or makes it.
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

/// Makes a file whole or leaves what was there. Nothing is brought to the disk: it does not outlive the boot.
fn replace(directory: &OwnedFd, name: &str, temporary: &str, bytes: &[u8]) -> Result<(), Errno> {
    let mut file = make_temporary(directory, temporary)?;
    let written = file.write_all(bytes).map_err(|_| Errno::IO).and_then(|()| renameat(directory, temporary, directory, name));
    if written.is_err() {
        let _ = unlinkat(directory, temporary, AtFlags::empty());
    }
    written
}

/// A name beside `name` that no other living process uses.
fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(".{name}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A new file; one of this name was left by a process that died.
fn make_temporary(directory: &OwnedFd, temporary: &str) -> Result<std::fs::File, Errno> {
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
