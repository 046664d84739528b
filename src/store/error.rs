//! Errors of the record store.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::ids::{OwnerNo, ProcessIdentity};
use crate::sys::fsutil::{self, TrustError};
use crate::sys::{Errno, SysError};

const EIO: i32 = Errno::IO.raw_os_error();

/// An error of the record store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map is full (MDB_MAP_FULL), or the file system is (ENOSPC or a short write).
    #[error(
        "write the record store {path}: it is full (No space left on device); make room below /run, or run bpfman-hook gc",
        path = .0.display()
    )]
    Full(PathBuf),
    /// The process may not write a file of this size (EFBIG).
    #[error("write the record store {path}: this process may not write so large a file; raise its RLIMIT_FSIZE", path = .0.display())]
    Limit(PathBuf),
    /// An earlier write failed and the environment could not be reopened (MDB_PANIC). The store itself is intact.
    #[error("use the record store {path}: an earlier write of this process failed; run the command again", path = .0.display())]
    GivenUp(PathBuf),
    /// The store's files are not valid LMDB files.
    #[error(
        "use the record store {path}: it is damaged ({problem}); remove that directory and run bpfman-hook gc",
        path = path.display()
    )]
    Damaged {
        /// The directory of the store.
        path: PathBuf,
        /// What is wrong, as far as it could be determined.
        problem: String,
    },
    /// A record cannot be decoded.
    #[error(
        "read record {no} of the store {path}: it is damaged; bpfman-hook gc removes it and everything it owns after its container has ended",
        path = path.display()
    )]
    Record {
        /// The directory of the store.
        path: PathBuf,
        /// The number of the record.
        no: OwnerNo,
        /// The container's init process, if it can still be read from the record.
        init: Option<ProcessIdentity>,
        /// The decoding error.
        #[source]
        source: serde_json::Error,
    },
    /// Another process has held the writer's lock for longer than a transaction can take.
    #[error(
        "write the record store {path}: {holder} has kept it locked for {:.0} s; end that process",
        waited.as_secs_f64(), path = path.display()
    )]
    Busy {
        /// The directory of the store.
        path: PathBuf,
        /// `process 123`, or a description if the process could not be determined.
        holder: String,
        /// How long this process waited.
        waited: Duration,
    },
    /// A process with another version of LMDB has the store open.
    #[error(
        "open the record store {path}: a process with another version of LMDB has it open; end that process, or use the version of bpfman-hook that it runs",
        path = .0.display()
    )]
    Version(PathBuf),
    /// Any other LMDB error.
    #[error("{doing} the record store {path}", path = path.display())]
    Lmdb {
        /// The operation that failed, as a verb.
        doing: &'static str,
        /// The directory of the store.
        path: PathBuf,
        /// LMDB's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A directory of the store is accessible to users other than root.
    #[error(transparent)]
    Directory(#[from] TrustError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl StoreError {
    /// Maps an LMDB error to the variant that has a remedy.
    pub(super) fn from_heed(doing: &'static str, path: &Path, err: heed::Error) -> Self {
        use heed::MdbError;
        let path = path.to_owned();
        match err {
            heed::Error::Mdb(MdbError::MapFull) => Self::Full(path),
            heed::Error::Mdb(MdbError::Panic) => Self::GivenUp(path),
            heed::Error::Io(err) => Self::from_io(doing, &path, err),
            heed::Error::Mdb(
                err @ (MdbError::PageNotFound
                | MdbError::Corrupted
                | MdbError::Invalid
                | MdbError::CursorFull
                | MdbError::PageFull
                | MdbError::Incompatible
                | MdbError::BadValSize
                | MdbError::Problem),
            ) => Self::Damaged { path, problem: err.to_string() },
            heed::Error::Mdb(MdbError::VersionMismatch) => Self::Version(path),
            err => Self::Lmdb { doing, path, source: Box::new(err) },
        }
    }

    /// Maps an I/O error on the store's own files.
    pub(super) fn from_io(doing: &'static str, path: &Path, err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => return Self::Full(path.to_owned()),
            io::ErrorKind::FileTooLarge => return Self::Limit(path.to_owned()),
            // LMDB reports a short write as EIO, and a short write is the first sign of a full file system.
            _ if err.raw_os_error() == Some(EIO) && fsutil::is_full(path) => return Self::Full(path.to_owned()),
            _ => {}
        }
        Self::Lmdb { doing, path: path.to_owned(), source: Box::new(err) }
    }

    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }
}
