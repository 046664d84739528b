//! What was fetched, by digest: `/var/cache/bpfman-hook`, an OCI layout with some things of ours in it.
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/<hex>   every blob of every image and the objects, for us and for other tools
//! refs/<hash of a reference>.json              which digest the reference stood for when it was pulled
//! images/<hex>.json                            which object an image holds, and the verdicts by rule and policy
//! flights/<hash of a reference>.lock           who is fetching it: see flight.rs
//! ```
//!
//! A hit reads three small files and the object. The object is hashed again each time. What the json files say is believed
//! because nobody but the owner can write here; a directory of anybody else is refused. The whole may be removed at any time:
//! what is missing or damaged is a miss.

mod fetch_lock;
mod record;
mod share;
mod sweep;
mod write;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::image::error::CacheError;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::bytecode::Verdict;
use crate::model::ids::Digest;
use crate::sys::fsutil::{TrustError, TrustedRoot, names_in};

pub(crate) use crate::image::cache::fetch_lock::Boarding;
pub(crate) use record::{Evidence, Pointer, Record};
pub use sweep::{Swept, Which};
pub(crate) use write::NewImage;

/// The image cache of one installation.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
}

/// One reference that was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedImage {
    /// The reference, normalised.
    pub reference: String,
    /// What it stood for when it was pulled.
    pub digest: Digest,
    /// The object in it.
    pub object: Digest,
    /// Bytes of all its blobs.
    pub size: u64,
    /// When it was pulled: seconds since 1970.
    pub pulled: u64,
    /// Rules that it satisfied, with the policy they were of.
    pub verdicts: Vec<CachedVerdict>,
}

/// What one rule of one policy said of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedVerdict {
    /// The rule's name.
    pub rule: String,
    /// The policy's id; a verdict of another policy than the present one is not used.
    pub policy: Digest,
    /// What it found.
    pub verdict: Verdict,
}

/// A blob of the cache.
#[derive(Debug)]
pub(crate) enum Blob {
    /// Its bytes, hashed just now.
    Whole(Vec<u8>),
    /// It is there with other contents, of this digest.
    Damaged(Digest),
    /// It is not there.
    Missing,
}

/// The cache, opened for reading.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    cache: &'a Cache,
    root: TrustedRoot,
}

impl Cache {
    /// The cache in a directory, which is made with mode 0700 when something is first stored.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for reading; None where it does not exist.
    pub(crate) fn reader(&self) -> Result<Option<Reader<'_>>, CacheError> {
        match TrustedRoot::at(&self.path) {
            Ok(root) => Ok(Some(Reader { cache: self, root })),
            Err(TrustError::Missing(_)) => Ok(None),
            Err(source) => Err(self.not_trusted(source)),
        }
    }

    /// Every reference in the cache, in the order of their names.
    pub fn images(&self) -> Result<Vec<CachedImage>, CacheError> {
        let Some(reader) = self.reader()? else { return Ok(Vec::new()) };
        let mut images = Vec::new();
        for pointer in self.pointers(&reader)? {
            let Some(record) = reader.record(&pointer.digest)? else { continue };
            images.push(CachedImage {
                reference: pointer.reference,
                digest: pointer.digest,
                object: record.object,
                size: record.size,
                pulled: pointer.pulled,
                verdicts: record
                    .verdicts
                    .iter()
                    .filter_map(|known| {
                        let verdict = known.verdict.clone()?;
                        Some(CachedVerdict { rule: known.rule.clone(), policy: known.policy.0, verdict })
                    })
                    .collect(),
            });
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    fn pointers(&self, reader: &Reader<'_>) -> Result<Vec<Pointer>, CacheError> {
        let directory = self.path.join("refs");
        match reader.root.open_directory(&directory) {
            Ok(_) => {}
            Err(TrustError::Missing(_)) => return Ok(Vec::new()),
            Err(source) => return Err(self.not_trusted(source)),
        }
        let names = names_in(&directory).map_err(|source| CacheError::Write { path: self.path.clone(), source })?;
        let mut pointers = Vec::new();
        for name in names.iter().filter(|name| name.extension().is_some_and(|extension| extension == "json")) {
            pointers.extend(reader.json::<Pointer>(&directory.join(name))?);
        }
        Ok(pointers)
    }

    fn pointer_path(&self, reference: &str) -> PathBuf {
        self.path.join("refs").join(format!("{}.json", hash(reference.as_bytes()).hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("images").join(format!("{}.json", digest.hex()))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    fn not_trusted(&self, source: TrustError) -> CacheError {
        CacheError::NotTrusted { path: self.path.clone(), source }
    }
}

impl Reader<'_> {
    /// What a reference stood for when it was pulled.
    pub fn pointer(&self, reference: &str) -> Result<Option<Pointer>, CacheError> {
        let pointer = self.json::<Pointer>(&self.cache.pointer_path(reference))?;
        Ok(pointer.filter(|pointer| pointer.reference == reference))
    }

    /// The digest that a reference stood for when it was pulled.
    pub fn resolve(&self, reference: &str) -> Result<Option<Digest>, CacheError> {
        Ok(self.pointer(reference)?.map(|pointer| pointer.digest))
    }

    /// What is known of an image.
    pub fn record(&self, digest: &Digest) -> Result<Option<Record>, CacheError> {
        let record = self.json::<Record>(&self.cache.record_path(digest))?;
        Ok(record.filter(|record| record.digest == *digest))
    }

    /// A blob, hashed.
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

    /// A file of ours; one that does not parse was cut by a crash or is of another version, and counts as missing.
    fn json<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, CacheError> {
        match self.root.read_file(path, MAX_MANIFEST) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(TrustError::Missing(_) | TrustError::TooLarge { .. }) => Ok(None),
            Err(source) => Err(self.cache.not_trusted(source)),
        }
    }
}

#[cfg(test)]
mod tests;
