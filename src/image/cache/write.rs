//! Writing to the cache: under one lock, each file atomically, and blobs before the files that refer to them.
//!
//! Nothing is synced to disk, which would take longer than the fetch: what a crash leaves of a file does not parse or
//! has another digest, and is a miss. A caller that fetches in order to fill the cache syncs once, at the end.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::image::cache::reader::{Blob, Cache, Reader};
use crate::image::cache::record::Evidence;
use crate::image::cache::record::{CacheRecord, Pointer};
use crate::image::decision::Decision;
use crate::image::error::CacheError;
use crate::image::oci::document::REF_NAME;
use crate::image::oci::written;
use crate::image::{InUse, hash};
use crate::model::ids::Digest;
use crate::model::policy::PolicyId;
use crate::sys::fsutil::{FileLock, bring_to_disk, ensure_directory, touch, write_whole_alone};
use crate::sys::{SysError, verity};

/// How long a process waits for another one that is writing.
const PATIENCE: Duration = Duration::from_secs(3);

/// A fetched image.
#[derive(Debug)]
pub(crate) struct NewImage {
    /// The top-level digest.
    pub digest: Digest,
    /// The media type of the top-level document.
    pub media_type: String,
    /// Top, child, config, layer, object.
    pub blobs: Vec<Vec<u8>>,
    /// The digest of the last of them.
    pub object: Digest,
}

impl Cache {
    /// Stores an image; an existing record with the same digest is kept.
    pub(crate) fn store(&self, image: &NewImage) -> Result<(), CacheError> {
        self.locked(|reader| {
            let mut size = 0;
            let mut blobs = Vec::new();
            for blob in &image.blobs {
                let digest = self.write_blob(reader, blob)?;
                // A layer that is the object itself is one blob.
                size += if blobs.contains(&digest) { 0 } else { blob.len() as u64 };
                blobs.push(digest);
            }
            let old = reader.record(&image.digest)?;
            let (evidence, verdicts) = old.map(|old| (old.evidence, old.verdicts)).unwrap_or_default();
            let top_size = image.blobs.first().map_or(0, Vec::len) as u64;
            let (digest, object, media_type) = (image.digest, image.object, image.media_type.clone());
            self.write_json(
                &self.record_path(&digest),
                &CacheRecord { digest, media_type, top_size, object, blobs, size, evidence, verdicts },
            )
        })
    }

    /// Stores a verified blob before its image is complete, so that an interrupted fetch does not start over.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Result<(), CacheError> {
        self.locked(|reader| self.write_blob(reader, bytes).map(drop))
    }

    /// Records the digest and the tenant of a reference, then makes room if the cache is full.
    pub(crate) fn point(&self, reference: &str, digest: &Digest, tenant: &str, in_use: InUse<'_>) -> Result<(), CacheError> {
        let pulled = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.locked(|reader| {
            let old = reader.pointer(reference)?.filter(|old| old.digest == *digest);
            let tenants = old.map(|old| old.tenants).unwrap_or_default();
            let mut pointer = Pointer { reference: reference.to_owned(), digest: *digest, pulled, tenants };
            pointer.add_tenant(tenant);
            self.write_json(&self.pointer_path(reference), &pointer)?;
            self.bound_all(reader, reference, in_use)?;
            self.write_index(reader)
        })
    }

    /// Records that an image was used, and its tenant if it is new: the least recently used images are removed first.
    pub(crate) fn used(&self, digest: &Digest, pointer: Option<&Pointer>, tenant: &str) -> Result<(), CacheError> {
        touch(&self.record_path(digest)).map_err(|source| self.failed(source))?;
        match pointer {
            Some(pointer) if pointer.clone().add_tenant(tenant) => self.locked(|reader| {
                let path = self.pointer_path(&pointer.reference);
                let Some(mut pointer) = reader.pointer(&pointer.reference)? else { return Ok(()) };
                if pointer.add_tenant(tenant) { self.write_json(&path, &pointer) } else { Ok(()) }
            }),
            _ => Ok(()),
        }
    }

    /// Adds a decision under a policy to a stored image, and the signature that it is based on.
    pub(crate) fn add_decision(&self, digest: &Digest, policy: PolicyId, decision: &Decision) -> Result<(), CacheError> {
        self.locked(|reader| {
            let Some(mut record) = reader.record(digest)? else { return Ok(()) };
            if let Some((evidence, blob)) = decision.evidence.as_ref().and_then(Evidence::of) {
                self.write_blob(reader, blob)?;
                record.add_evidence(evidence);
            }
            for rule in &decision.rejected {
                record.add_verdict(rule, policy, None);
            }
            record.add_verdict(&decision.rule, policy, Some(decision.verdict.clone()));
            self.write_json(&self.record_path(digest), &record)
        })
    }

    /// Waits until a reference and its image are on disk.
    pub(crate) fn settle(&self, reference: &str, digest: &Digest) -> Result<(), CacheError> {
        let Some(reader) = self.reader()? else { return Ok(()) };
        let mut paths = vec![self.pointer_path(reference), self.record_path(digest), self.path.join("index.json")];
        if let Some(record) = reader.record(digest)? {
            let blobs = record.blobs.iter().chain(record.evidence.iter().map(|evidence| &evidence.blob));
            paths.extend(blobs.map(|blob| self.blob_path(blob)));
        }
        paths.extend(["refs", "images", "blobs/sha256", ""].map(|name| self.path.join(name)));
        bring_to_disk(&paths).map_err(|source| self.failed(source))
    }

    /// Runs `change` while no other process changes the cache. The cache is created if it is missing.
    pub(super) fn locked<T>(&self, change: impl FnOnce(&Reader<'_>) -> Result<T, CacheError>) -> Result<T, CacheError> {
        let directory = ensure_directory(&self.path, 0o700).map_err(|source| self.not_trusted(source))?;
        for name in ["refs", "images", "blobs", "blobs/sha256"] {
            ensure_directory(&self.path.join(name), 0o700).map_err(|source| self.not_trusted(source))?;
        }
        let lock = FileLock::wait_for(&directory, &self.path, PATIENCE).map_err(|source| self.failed(source))?;
        let Some(_lock) = lock else {
            return Err(CacheError::Busy { path: self.path.clone(), seconds: PATIENCE.as_secs() });
        };
        // Removed between the two calls: handled like any failure to write.
        let removed =
            || SysError::io("open", self.path.display().to_string())(std::io::Error::from(std::io::ErrorKind::NotFound));
        let reader = self.reader()?.ok_or_else(|| self.failed(removed()))?;
        change(&reader)
    }

    /// Writes a blob unless it exists and is intact.
    fn write_blob(&self, reader: &Reader<'_>, bytes: &[u8]) -> Result<Digest, CacheError> {
        let digest = hash(bytes);
        if !matches!(reader.blob(&digest)?, Blob::Whole(_)) {
            let path = self.blob_path(&digest);
            write_whole_alone(&path, bytes, 0o600).map_err(|source| self.failed(source))?;
            // Where the file system can, it cannot be changed any more. A failure changes nothing.
            _ = std::fs::File::open(&path).map(|blob| verity::enable(&blob));
        }
        Ok(digest)
    }

    fn write_json(&self, path: &Path, value: &impl serde::Serialize) -> Result<(), CacheError> {
        let text = serde_json::to_vec(value).expect("records are strings, numbers and lists");
        write_whole_alone(path, &text, 0o600).map_err(|source| self.failed(source))
    }

    /// index.json and oci-layout, which other tools need to read the cache. We do not use them.
    pub(super) fn write_index(&self, reader: &Reader<'_>) -> Result<(), CacheError> {
        let mut entries = Vec::new();
        for pointer in self.pointers(reader)? {
            let Some(record) = reader.record(&pointer.digest)? else { continue };
            let mut entry = written::descriptor(record.media_type.as_str().into(), &pointer.digest, record.top_size);
            entry.set_annotations(Some(HashMap::from([(REF_NAME.to_owned(), pointer.reference)])));
            entries.push(written::entry(&entry));
        }
        self.write_json(&self.path.join("index.json"), &written::index(&entries))?;
        write_whole_alone(&self.path.join("oci-layout"), written::LAYOUT, 0o600).map_err(|source| self.failed(source))
    }

    pub(super) fn failed(&self, source: SysError) -> CacheError {
        CacheError::Write { path: self.path.clone(), source }
    }
}
