//! The images in the cache.

use serde::Serialize;

use crate::image::cache::reader::{Cache, Reader};
use crate::image::cache::record::{CacheRecord, Pointer};
use crate::image::error::CacheError;
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::sys::clock;
use crate::sys::fsutil::{TrustError, names_in};

/// A reference in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedImage {
    /// The normalized reference.
    pub reference: String,
    /// The digest that it resolved to when it was pulled.
    pub digest: Digest,
    /// The digest of its object.
    pub object: Digest,
    /// Size of all its blobs in bytes.
    pub size: u64,
    /// Time of the pull, in seconds since 1970; RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339")]
    pub pulled: u64,
    /// The rules that it satisfied, with their policies.
    pub verdicts: Vec<CachedVerdict>,
}

/// A verdict of one rule of one policy about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedVerdict {
    /// The rule's name.
    pub rule: String,
    /// The policy's id; a verdict of another policy than the current one is not used.
    pub policy: Digest,
    /// The verdict.
    pub verdict: ImageVerdict,
}

fn rfc3339<S: serde::Serializer>(seconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&clock::utc(*seconds))
}

impl Cache {
    /// Every reference in the cache, ordered by name.
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

    pub(super) fn pointers(&self, reader: &Reader<'_>) -> Result<Vec<Pointer>, CacheError> {
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
}

impl Reader<'_> {
    /// The stored resolution of a reference.
    pub fn pointer(&self, reference: &str) -> Result<Option<Pointer>, CacheError> {
        let pointer = self.json::<Pointer>(&self.cache.pointer_path(reference))?;
        Ok(pointer.filter(|pointer| pointer.reference == reference))
    }

    /// The digest that a reference resolved to when it was pulled.
    pub fn resolve(&self, reference: &str) -> Result<Option<Digest>, CacheError> {
        Ok(self.pointer(reference)?.map(|pointer| pointer.digest))
    }

    /// The stored record of an image.
    pub fn record(&self, digest: &Digest) -> Result<Option<CacheRecord>, CacheError> {
        let record = self.json::<CacheRecord>(&self.cache.record_path(digest))?;
        Ok(record.filter(|record| record.digest == *digest))
    }
}
