//! What the cache knows of its images.

use serde::Serialize;

use crate::image::cache::reader::{Cache, Reader};
use crate::image::cache::record::{CacheRecord, Pointer};
use crate::image::error::CacheError;
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::sys::fsutil::{TrustError, names_in};

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
    pub verdict: ImageVerdict,
}

impl Cache {
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
    pub fn record(&self, digest: &Digest) -> Result<Option<CacheRecord>, CacheError> {
        let record = self.json::<CacheRecord>(&self.cache.record_path(digest))?;
        Ok(record.filter(|record| record.digest == *digest))
    }
}
