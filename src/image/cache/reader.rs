//! The directory of the cache, and reading from it.

use std::path::{Path, PathBuf};

use crate::image::error::CacheError;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;
use crate::sys::fsutil::{TrustError, TrustedRoot};

/// The image cache of one installation.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) path: PathBuf,
}

/// A blob of the cache.
#[derive(Debug)]
pub(crate) enum Blob {
    /// Its bytes, whose digest was just verified.
    Whole(Vec<u8>),
    /// It exists with other content, which has this digest.
    Damaged(Digest),
    /// It does not exist.
    Missing,
}

/// The cache, opened for reading.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(super) cache: &'a Cache,
    pub(super) root: TrustedRoot,
}

impl Cache {
    /// The cache in a directory, which is created with mode 0700 when something is first stored.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for reading; None if it does not exist.
    pub(crate) fn reader(&self) -> Result<Option<Reader<'_>>, CacheError> {
        match TrustedRoot::at(&self.path) {
            Ok(root) => Ok(Some(Reader { cache: self, root })),
            Err(TrustError::Missing(_)) => Ok(None),
            Err(source) => Err(self.not_trusted(source)),
        }
    }

    pub(super) fn pointer_path(&self, reference: &str) -> PathBuf {
        self.path.join("refs").join(format!("{}.json", hash(reference.as_bytes()).hex()))
    }

    pub(super) fn record_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("images").join(format!("{}.json", digest.hex()))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn not_trusted(&self, source: TrustError) -> CacheError {
        CacheError::NotTrusted { path: self.path.clone(), source }
    }
}

impl Reader<'_> {
    /// Reads a blob and verifies its digest.
    pub fn blob(&self, digest: &Digest) -> Result<Blob, CacheError> {
        match self.root.read_file(&self.cache.blob_path(digest), MAX_OBJECT) {
            Ok(bytes) => match hash(&bytes) {
                found if found == *digest => Ok(Blob::Whole(bytes)),
                found => Ok(Blob::Damaged(found)),
            },
            Err(TrustError::Missing(_) | TrustError::TooLarge { .. }) => Ok(Blob::Missing),
            Err(source) => Err(self.cache.not_trusted(source)),
        }
    }

    /// Reads one of our JSON files; one that does not parse was truncated by a crash or is from another version, and
    /// counts as missing.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, CacheError> {
        match self.root.read_file(path, MAX_MANIFEST) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(TrustError::Missing(_) | TrustError::TooLarge { .. }) => Ok(None),
            Err(source) => Err(self.cache.not_trusted(source)),
        }
    }
}
