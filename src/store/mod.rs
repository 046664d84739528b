//! The record store: which owner has which BPF objects, in LMDB. This is the only module that uses heed.
//!
//! There is one directory per boot, `store/<boot-id>/`, accessible to root only. Its contents describe kernel objects
//! of this boot, so it is written without fsync and discarded with the boot. It does not have to survive a power
//! failure. A process that dies in the middle of a transaction leaves the last committed snapshot, because LMDB never
//! overwrites pages that are in use and writes its meta page last.
//!
//! All bpfman-hook processes on a host that use the store must share one pid namespace, as they share one `/run`.
//! LMDB's reader table and its writer mutex are keyed by pid: a process that sees different pids would take living
//! readers for dead ones and reuse the pages that they read.

mod error;
mod meta;
mod publish;
mod records;
#[cfg(test)]
mod tests;
mod txn;
mod upgrade;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, WithoutTls};

pub use self::error::StoreError;
pub use self::records::{Records, Sorted};
pub use self::txn::{ReadTxn, StoreFill, WriteTxn, stored_bytes};
use crate::model::record::OwnerRecord;
use crate::sys::fault;
use crate::sys::fsutil::{self, FileLock};

/// The schema version of the stored data. A store of this boot with another schema is converted when it is opened, see
/// the module `upgrade`.
pub const SCHEMA: u32 = 3;

/// The maximum size of the store. This is address space, not memory or disk: the file grows with its contents, about 2
/// KiB per record, so the limit is about 400 000 owners. It is fixed, because a map cannot grow while other processes
/// have it open.
const MAP_SIZE: usize = 1 << 30;

/// Slots for concurrent readers, 64 bytes each. Each read transaction takes one slot.
const READERS: u32 = 1024;

/// Size of LMDB's lock file for [`READERS`]: `(READERS - 1) * sizeof(MDB_reader) + sizeof(MDB_txninfo)`, rounded up.
/// It is allocated when the store is created: LMDB creates a sparse file and writes it through a mapping, which raises
/// SIGBUS on a full file system.
const LOCK_FILE_SIZE: u64 = 64 * (READERS as u64) + 4096;

/// How long a writer waits for another one. A transaction takes microseconds. A stopped or traced writer may hold the
/// lock forever, and then an error message is better than running into the deadline.
const PATIENCE: Duration = Duration::from_secs(10);

/// The minimum time that a writer waits when its own deadline has passed. This is enough unless the other writer is
/// stopped.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// How long a writer waits after a first timeout. At this point it only wants to write the result of that failure.
const TIRED_PATIENCE: Duration = Duration::from_millis(50);

/// Bytes reserved in the data file after its last page. They allow releases to succeed on a full file system: if they
/// cannot be reserved, new records are refused, so that deletions still have free pages.
const SPARE: u64 = 256 << 10;

const DATA_FILE: &str = "data.mdb";
const LOCK_FILE: &str = "lock.mdb";
/// Our own lock around write transactions: LMDB's mutex has no timeout and does not report its holder.
const WRITER_FILE: &str = "writer";
/// The temporary name of a store that is being created.
const UNFINISHED: &str = "new";

type RecordTable = Database<'static, Bytes, Bytes>;

/// The open store. Each process must open a directory at most once: LMDB's locks belong to the process, and closing a
/// second environment would release those of the first. Dropping the value closes the store; child processes do not
/// inherit it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    opened: RwLock<Option<OpenEnvironment>>,
    /// A commit has failed, after which LMDB may refuse to use the environment.
    suspect: AtomicBool,
    map_size: usize,
    writer: Mutex<OwnedFd>,
    patience: Duration,
    /// The deadline of this process.
    until: Option<Instant>,
    /// Milliseconds spent waiting for the lock without success.
    waited: AtomicU64,
}

/// The LMDB environment and its table.
#[derive(Debug)]
struct OpenEnvironment {
    env: Env<WithoutTls>,
    table: RecordTable,
    /// The file system has no room for [`SPARE`].
    scarce: bool,
    /// The schema is the current one.
    adopted: bool,
}

impl Store {
    /// Opens the store of this boot below `stores` and creates it if it does not exist. Creating it removes the stores
    /// of other boots without reading them. `boot_id` is a file name.
    pub fn open(stores: &Path, boot_id: &str) -> Result<Self, StoreError> {
        Self::open_sized(stores, boot_id, MAP_SIZE)
    }

    fn open_sized(stores: &Path, boot_id: &str, map_size: usize) -> Result<Self, StoreError> {
        let path = stores.join(boot_id);
        if let Some(store) = Self::open_path(&path, map_size)? {
            return Ok(store);
        }
        let directory = fsutil::ensure_directory(stores, 0o700)?;
        let _lock = FileLock::wait(&directory, stores)?;
        if fs::symlink_metadata(&path).is_err() {
            create(stores, &path, map_size)?;
        }
        Self::open_path(&path, map_size)?.ok_or_else(|| StoreError::damaged(&path, "it disappeared while it was being created"))
    }

    /// Opens the store of this boot if it exists. For read-only commands, which must not create a store where nothing
    /// was ever recorded. It needs the same permissions as [`open`](Self::open), because readers register in the lock
    /// file.
    pub fn open_existing(stores: &Path, boot_id: &str) -> Result<Option<Self>, StoreError> {
        Self::open_path(&stores.join(boot_id), MAP_SIZE)
    }

    fn open_path(path: &Path, map_size: usize) -> Result<Option<Self>, StoreError> {
        if fsutil::open_own_directory(path, 0o700)?.is_none() {
            return Ok(None);
        }
        let opened = OpenEnvironment::open(path, map_size)?;
        let writer = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(WRITER_FILE))
            .map_err(|err| StoreError::from_io("open the lock of", path, err))?;
        let adopted = opened.adopted;
        let store = Self {
            path: path.to_owned(),
            opened: RwLock::new(Some(opened)),
            suspect: AtomicBool::new(false),
            map_size,
            writer: Mutex::new(writer.into()),
            patience: PATIENCE,
            until: None,
            waited: AtomicU64::new(0),
        };
        if !adopted {
            store.write(|txn| txn.adopt_schema())?;
        }
        Ok(Some(store))
    }

    /// The directory of this store, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the deadline of this process. [`write`](Self::write) does not wait longer than that, but always at least
    /// one second, so that undo operations can still be written.
    pub fn give_up_by(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Reads one snapshot. `read` must be short and must not use the network, kernel objects or namespaces: while it
    /// runs, LMDB cannot reuse any page that the snapshot refers to.
    pub fn read<T, E: From<StoreError>>(&self, read: impl FnOnce(&ReadTxn<'_>) -> Result<T, E>) -> Result<T, E> {
        let opened = self.opened()?;
        let OpenEnvironment { env, table, .. } = self.usable(&opened)?;
        fault::inside(|| {
            let failed = |err| StoreError::from_heed("read", &self.path, err);
            let txn = match env.read_txn() {
                Err(heed::Error::Mdb(MdbError::ReadersFull)) => {
                    env.clear_stale_readers().map_err(failed)?;
                    env.read_txn()
                }
                other => other,
            }
            .map_err(failed)?;
            read(&ReadTxn::new(&self.path, *table, &txn))
        })
    }

    /// Iterates over every owner in the order of their numbers, independently of concurrent changes. A listing of any
    /// size needs little memory, and its consumer may be slow.
    pub fn records(&self) -> Records<'_> {
        Records::new(self)
    }

    /// Passes every record to `look` while another thread reads the following ones. For operations that process every
    /// record.
    pub fn with_records<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = Result<OwnerRecord, StoreError>>) -> T) -> T {
        records::read_ahead(self, look)
    }

    /// Asks `is_settled` about every record, in several threads if there are many, and returns the numbers of the
    /// owners. For operations on the few records that are not settled.
    pub fn sort(&self, is_settled: impl Fn(&OwnerRecord) -> bool + Sync) -> Result<Sorted, StoreError> {
        records::sort(self, is_settled)
    }

    /// Reads one snapshot and keeps all writers out meanwhile. For operations that must be done even if nothing can be
    /// written.
    pub fn read_alone<T, E: From<StoreError>>(&self, read: impl FnOnce(&ReadTxn<'_>) -> Result<T, E>) -> Result<T, E> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock(&writer)?;
        self.read(read)
    }

    /// Changes the store in one transaction. All changes are visible after this returns Ok. No change is visible if
    /// `change` returns an error or panics, if the process dies, or if the commit fails. A failed commit does not
    /// affect later calls. `change` must be as short as for [`read`](Self::read), because it blocks all other writers
    /// on the host, and it must not use the store in any other way.
    pub fn write<T, E: From<StoreError>>(&self, change: impl FnOnce(&mut WriteTxn<'_>) -> Result<T, E>) -> Result<T, E> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock(&writer)?;
        let opened = self.opened()?;
        let OpenEnvironment { env, table, scarce, .. } = self.usable(&opened)?;
        fault::inside(|| {
            let txn = env.write_txn().map_err(|err| StoreError::from_heed("write", &self.path, err))?;
            let room = if *scarce { 0 } else { self.map_size };
            let mut txn = WriteTxn::new(&self.path, *table, txn, room);
            let result = change(&mut txn)?;
            txn.commit().inspect_err(|_| self.suspect.store(true, Ordering::Relaxed))?;
            Ok(result)
        })
    }

    /// Returns the environment and reopens it after a failed commit: if LMDB could not write a meta page, it refuses
    /// every further operation of this process (MDB_PANIC), although the store is intact.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<OpenEnvironment>>, StoreError> {
        if self.suspect.load(Ordering::Relaxed)
            // If another thread still reads, keep using the old environment.
            && let Ok(mut opened) = self.opened.try_write()
        {
            // Close it first: LMDB's locks belong to the process.
            *opened = None;
            *opened = Some(OpenEnvironment::open(&self.path, self.map_size)?);
            self.suspect.store(false, Ordering::Relaxed);
        }
        Ok(self.opened.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn usable<'a>(&self, opened: &'a Option<OpenEnvironment>) -> Result<&'a OpenEnvironment, StoreError> {
        opened.as_ref().ok_or_else(|| StoreError::GivenUp(self.path.clone()))
    }

    /// Takes the writer's lock. Only the first call waits for the full time; after a timeout, later calls fail
    /// quickly.
    fn lock<'a>(&self, writer: &'a OwnedFd) -> Result<FileLock<'a>, StoreError> {
        let shown = self.path.join(WRITER_FILE);
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()).max(LAST_PATIENCE));
        let patience = match self.waited.load(Ordering::Relaxed) {
            0 => self.patience.min(left.unwrap_or(self.patience)),
            _ => TIRED_PATIENCE.min(self.patience),
        };
        FileLock::wait_for(writer, &shown, patience)?.ok_or_else(|| {
            let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
            let waited = self.waited.fetch_add(milliseconds, Ordering::Relaxed).saturating_add(milliseconds);
            let pid = fsutil::lock_holder(writer).map(|pid| format!("process {pid}"));
            let holder = pid.unwrap_or_else(|| "another process".to_owned());
            StoreError::Busy { path: self.path.clone(), holder, waited: Duration::from_millis(waited) }
        })
    }
}

impl OpenEnvironment {
    /// Opens the environment of an existing store and checks it.
    fn open(path: &Path, map_size: usize) -> Result<Self, StoreError> {
        let scarce = prepare(path, map_size)?;
        fault::install(&StoreError::damaged(path, "one of its pages refers to a page that does not exist").to_string());
        let failed = |err| StoreError::from_heed("open", path, err);
        fault::inside(|| {
            let env = open_env(path, map_size).map_err(failed)?;
            // Clear the slots of dead readers, which would otherwise keep old pages from being reused. This costs one
            // fcntl for each other process that is currently reading.
            env.clear_stale_readers().map_err(failed)?;
            let reading = env.read_txn().map_err(failed)?;
            let mut schema = None;
            let table = env
                .open_databases_and_commit(reading, |opener, reading| {
                    let table = opener.open_database::<Bytes, Bytes>(reading, None)?;
                    if let Some(table) = &table {
                        schema = table.get(reading, txn::SCHEMA_KEY)?.map(<[u8]>::to_vec);
                    }
                    Ok(CommitOrAbort::<_, ()>::Commit(table))
                })
                .map_err(failed)?
                .unwrap_commit();
            let (Some(table), Some(schema)) = (table, schema) else {
                return Err(StoreError::damaged(path, "its schema is missing"));
            };
            Ok(Self { env, table, scarce, adopted: schema == SCHEMA.to_be_bytes() })
        })
    }
}

/// Creates the store of this boot under a temporary name and renames it, so that a store with the final name is always
/// complete. If something is missing later, it was lost, and the store is not mistaken for an empty one. The caller
/// holds the lock on `stores`.
fn create(stores: &Path, path: &Path, map_size: usize) -> Result<(), StoreError> {
    for name in fsutil::names_in(stores)? {
        let other = stores.join(name);
        if fs::symlink_metadata(&other).is_ok_and(|metadata| metadata.is_dir()) {
            fsutil::remove_tree(&other)?;
        } else {
            fsutil::unlink_if_present(&other)?;
        }
    }
    let unfinished = stores.join(UNFINISHED);
    let failed = |err| StoreError::from_heed("make", path, err);
    let failed_io = |err| StoreError::from_io("make", path, err);
    DirBuilder::new().mode(0o700).create(&unfinished).map_err(failed_io)?;
    let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(unfinished.join(LOCK_FILE));
    let lock = lock.map_err(failed_io)?;
    fsutil::reserve(&lock, LOCK_FILE_SIZE).map_err(failed_io)?;
    drop(lock);
    let env = open_env(&unfinished, map_size).map_err(failed)?;
    let writing = env.write_txn().map_err(failed)?;
    env.create_databases_and_commit(writing, |opener, writing| {
        let table = opener.create_database::<Bytes, Bytes>(writing, None)?;
        table.put(writing, txn::SCHEMA_KEY, &SCHEMA.to_be_bytes())?;
        Ok(CommitOrAbort::<_, ()>::Commit(table))
    })
    .map_err(failed)?;
    drop(env);
    fs::rename(&unfinished, path).map_err(failed_io)
}

/// Makes sure, before LMDB maps the files, that they are as long as LMDB expects, because accessing a page beyond the
/// end of a file raises SIGBUS. A truncated data file is extended again, so that the missing pages read as zeros,
/// which LMDB reports as damage when it reads them. A file may also be short without damage, if its last pages were
/// never used.
///
/// Returns true if the file system has no room for [`SPARE`].
fn prepare(path: &Path, map_size: usize) -> Result<bool, StoreError> {
    let opened = File::options().read(true).write(true).open(path.join(DATA_FILE));
    let failed = |err| StoreError::from_io("check", path, err);
    let data = match opened {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::damaged(path, format!("{DATA_FILE} is missing")));
        }
        other => other.map_err(failed)?,
    };
    let needed =
        meta::needed_size(&data, map_size as u64).map_err(failed)?.map_err(|problem| StoreError::damaged(path, problem))?;
    let length = data.metadata().map_err(failed)?.len();
    if length < needed {
        fsutil::reserve(&data, needed).map_err(failed)?;
    }
    let (enough, plenty) = (needed + SPARE / 2, needed + SPARE);
    let scarce = length < enough.min(map_size as u64) && fsutil::reserve(&data, plenty.min(map_size as u64)).is_err();
    // Use lstat, not open: closing a descriptor of this file would release the locks that LMDB holds on it in this
    // process.
    match fs::symlink_metadata(path.join(LOCK_FILE)) {
        Ok(lock) if lock.len() >= LOCK_FILE_SIZE => Ok(scarce),
        Ok(_) => Err(StoreError::damaged(path, format!("{LOCK_FILE} is truncated"))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(StoreError::damaged(path, format!("{LOCK_FILE} is missing"))),
        Err(err) => Err(failed(err)),
    }
}

#[allow(unsafe_code, reason = "LMDB maps a file; the compiler cannot verify that other processes do not modify it")]
fn open_env(path: &Path, map_size: usize) -> heed::Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_readers(READERS);
    // No MDB_WRITEMAP: pages are written with pwrite(2), so that a full file system is ENOSPC and not SIGBUS.
    // SAFETY: MDB_NOSYNC and MDB_NOMETASYNC give up durability across a kernel crash, and the store does not outlive
    // the boot.
    unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC) };
    // SAFETY: the directory is on a local file system, below a directory that only root can write (0700, checked by
    // the caller), and every writer uses LMDB's locks and this module. `prepare` has checked that the file contains
    // the pages that its meta pages refer to. A damaged page can still cause a fault, which `sys::fault` handles.
    unsafe { options.open(path) }
}
