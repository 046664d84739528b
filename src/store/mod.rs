//! Who owns what, in LMDB. The only user of heed.
//!
//! One directory for each boot, `store/<boot-id>/`, root's alone. What it says is about kernel objects of this boot, so it is
//! written without fsync and thrown away with the boot: nothing has to survive a power cut, and a process that dies in the
//! middle of a transaction leaves the last committed snapshot, because LMDB never writes over pages that are in use and puts
//! down its meta page last.
//!
//! All of our processes on a host must share one pid namespace to use the store, as they share one `/run`: LMDB's table of
//! readers and its writer's mutex go by pid, and a process that sees other pids would take living readers for dead ones and
//! reuse the pages that they read.

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
pub use self::records::Records;
pub use self::txn::{ReadTxn, WriteTxn, stored_bytes};
use crate::model::record::OwnerRecord;
use crate::sys::fault;
use crate::sys::fsutil::{self, FileLock};

/// The schema of what is stored. A store of this boot with another one is adopted when it is opened, see the module `upgrade`.
pub const SCHEMA: u32 = 2;

/// The most that the store can hold. Address space, not memory or disk: the file grows with what is in it, about 2 KiB for a
/// record, so this is some 400 000 owners. It is fixed because a map cannot grow under the other processes that have it.
const MAP_SIZE: usize = 1 << 30;

/// Slots for concurrent readers, 64 bytes each. A slot is taken by one read transaction of one process.
const READERS: u32 = 1024;

/// LMDB's lock file for [`READERS`]: `(READERS - 1) * sizeof(MDB_reader) + sizeof(MDB_txninfo)`, rounded up. Reserved when
/// the store is made, since LMDB makes it sparse and writes through a mapping: on a full file system that is SIGBUS.
const LOCK_FILE_SIZE: u64 = 64 * (READERS as u64) + 4096;

/// How long a writer waits for another one. A transaction takes microseconds; a writer that is stopped or traced may hold it
/// for ever, and then a sentence is better than the deadline.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least that a writer waits when its own time is over: others need no longer, unless they are stopped.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// How long a writer waits after it has given up once. What it still wants to write is about that.
const TIRED_PATIENCE: Duration = Duration::from_millis(50);

/// Bytes of the data file that are reserved behind its last page. They are for releases when the file system is full: where
/// they cannot be had, no new record is written, so that those who delete records have them.
const SPARE: u64 = 256 << 10;

const DATA_FILE: &str = "data.mdb";
const LOCK_FILE: &str = "lock.mdb";
/// Our own lock around write transactions: LMDB's mutex knows no time limit and does not say who has it.
const WRITER_FILE: &str = "writer";
/// Where a store is made before it gets its name.
const UNFINISHED: &str = "new";

type Table = Database<'static, Bytes, Bytes>;

/// The open store. At most one per process and directory: LMDB's locks are the process's, and closing a second one would
/// drop those of the first. Dropping it closes it; children do not inherit it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    opened: RwLock<Option<OpenEnvironment>>,
    /// A commit failed, after which LMDB may want nothing more to do with the environment.
    suspect: AtomicBool,
    map_size: usize,
    writer: Mutex<OwnedFd>,
    patience: Duration,
    /// When this process wants to be done.
    until: Option<Instant>,
    /// Milliseconds for which the lock was waited for in vain.
    waited: AtomicU64,
}

/// LMDB's environment, and our table in it.
#[derive(Debug)]
struct OpenEnvironment {
    env: Env<WithoutTls>,
    table: Table,
    /// The file system is too full for [`SPARE`].
    scarce: bool,
    /// The schema is ours.
    adopted: bool,
}

impl Store {
    /// Opens the store of this boot below `stores`, and makes it if there is none. Making it removes the stores of other boots
    /// unread. `boot_id` is a file name.
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
        Self::open_path(&path, map_size)?.ok_or_else(|| StoreError::damaged(&path, "it vanished while it was being made"))
    }

    /// Opens the store of this boot if there is one, for commands that only look: they leave no store behind where nothing was
    /// ever recorded. It needs the same rights as [`open`](Self::open), because readers sign in to the lock file.
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

    /// Sets how long [`write`](Self::write) waits for other writers; 10 s at first.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Says when this process wants to be done: [`write`](Self::write) then waits no longer than until then, but a second for
    /// what undoes.
    pub fn give_up_by(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Reads one snapshot. `read` must be short and touch no network, kernel object or namespace: while it runs, no page that it
    /// may see is used again.
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

    /// Every owner, in the order of their numbers, whatever is done with the store meanwhile: a listing of any size takes little memory,
    /// and may wait for its reader.
    pub fn records(&self) -> Records<'_> {
        Records::new(self)
    }

    /// Gives them to `look`, and has another thread read while it looks: for what is done with every record.
    pub fn with_records<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = Result<OwnerRecord, StoreError>>) -> T) -> T {
        records::read_ahead(self, look)
    }

    /// Reads one snapshot and keeps all writers out meanwhile. For what has to be done although nothing can be written.
    pub fn read_alone<T, E: From<StoreError>>(&self, read: impl FnOnce(&ReadTxn<'_>) -> Result<T, E>) -> Result<T, E> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock(&writer)?;
        self.read(read)
    }

    /// Changes the store in one transaction: all of it is there once this returns Ok, none of it if `change` returns an error,
    /// panics or the process dies, or if the commit fails. A failed commit does not keep later calls from working. `change` must be
    /// as short as for [`read`](Self::read), since it keeps all other writers on the host waiting, and must not use the store in
    /// any other way.
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

    /// The environment, opened anew where a commit failed: when LMDB could not write a meta page, it refuses everything else that
    /// this process wants of it (MDB_PANIC), while the store is whole.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<OpenEnvironment>>, StoreError> {
        if self.suspect.load(Ordering::Relaxed)
            // Where another thread still reads, the old one is what there is.
            && let Ok(mut opened) = self.opened.try_write()
        {
            // Closed first: LMDB's locks are those of the process.
            *opened = None;
            *opened = Some(OpenEnvironment::open(&self.path, self.map_size)?);
            self.suspect.store(false, Ordering::Relaxed);
        }
        Ok(self.opened.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn usable<'a>(&self, opened: &'a Option<OpenEnvironment>) -> Result<&'a OpenEnvironment, StoreError> {
        opened.as_ref().ok_or_else(|| StoreError::GivenUp(self.path.clone()))
    }

    /// Takes the writer's lock. Waits for it once: who could not have it is told so soon from then on.
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
    /// Opens the environment of a store that is there, and checks what it is.
    fn open(path: &Path, map_size: usize) -> Result<Self, StoreError> {
        let scarce = prepare(path, map_size)?;
        fault::install(&StoreError::damaged(path, "a page of it leads nowhere").to_string());
        let failed = |err| StoreError::from_heed("open", path, err);
        fault::inside(|| {
            let env = open_env(path, map_size).map_err(failed)?;
            // Slots of readers that died: without this they would keep old pages from being used again. Costs one fcntl for
            // each other process that reads right now.
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

/// Makes the store of this boot under another name and renames it, so that one that has its name is always whole: whatever
/// is missing in it later was lost, and is not taken for an empty store. The caller holds the lock on `stores`.
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

/// Makes sure before LMDB maps them that its files are as long as it believes, because a page behind the end of a file is
/// SIGBUS: a data file that was cut off is made longer again, so that the missing pages read as zeros, which LMDB reports as
/// damage when it comes across them. It may also be short without harm, where the last pages were never used.
///
/// True where the file system has no room for [`SPARE`].
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
    // Looked at without opening it: closing a descriptor of it would drop the locks that LMDB has on it in this process.
    match fs::symlink_metadata(path.join(LOCK_FILE)) {
        Ok(lock) if lock.len() >= LOCK_FILE_SIZE => Ok(scarce),
        Ok(_) => Err(StoreError::damaged(path, format!("{LOCK_FILE} was cut off"))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(StoreError::damaged(path, format!("{LOCK_FILE} is missing"))),
        Err(err) => Err(failed(err)),
    }
}

#[allow(unsafe_code, reason = "LMDB maps a file, which the compiler cannot know to be left alone by others")]
fn open_env(path: &Path, map_size: usize) -> heed::Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_readers(READERS);
    // No MDB_WRITEMAP: pages are written with pwrite(2), so that a full file system is ENOSPC and not SIGBUS.
    // SAFETY: MDB_NOSYNC and MDB_NOMETASYNC give up what survives a crash of the kernel, and the store does not outlive it.
    unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC) };
    // SAFETY: the directory is on a local file system, below a directory that only we can write (0700, checked by the caller),
    // and all who write it go through LMDB's locks and this module; `prepare` has checked that the file has the pages that its
    // meta pages speak of. What a damaged page could still do to us is a fault that `sys::fault` ends cleanly.
    unsafe { options.open(path) }
}
