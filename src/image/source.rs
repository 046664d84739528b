//! Blobs by digest, from a layout or a registry, hashed here whoever sent them.

use crate::image::MAX_MANIFEST;
use crate::image::cache::{Blob, Cache};
use crate::image::error::ImageError;
use crate::image::found::{FoundSignatures, checked};
use crate::image::oci::layout::Layout;
use crate::image::remote::Remote;
use crate::model::ids::Digest;

/// Where an image's blobs come from.
#[derive(Debug)]
pub(crate) enum BlobSource {
    /// `oci:` and `oci-archive:`.
    Layout(Layout),
    /// A registry, through the fetch child. What arrives is kept in the cache at once, and what is there is not fetched again.
    Remote(Remote, Cache),
}

impl BlobSource {
    /// Reads a manifest, an index or a config, and checks its digest.
    pub fn manifest(&mut self, image: &str, part: &'static str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => checked(image, part, digest, MAX_MANIFEST, layout.blob(digest, MAX_MANIFEST)?),
            Self::Remote(remote, cache) => kept(cache, digest, MAX_MANIFEST, || {
                checked(image, part, digest, MAX_MANIFEST, remote.manifest(&digest.to_string())?)
            }),
        }
    }

    /// Reads a blob of `max` bytes at most, and checks its digest.
    pub fn blob(&mut self, image: &str, part: &'static str, digest: &Digest, max: usize) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => checked(image, part, digest, max, layout.blob(digest, max)?),
            Self::Remote(remote, cache) => {
                kept(cache, digest, max, || checked(image, part, digest, max, remote.blob(digest, max)?))
            }
        }
    }

    /// Says that all of the image will be read whose top-level document this is.
    pub fn expect(&mut self, top: &[u8]) {
        if let Self::Remote(remote, cache) = self {
            remote.expect_image(cache, top);
        }
    }

    /// Keeps what arrived of a judged image that could not be read to its end.
    pub fn keep(&mut self) {
        if let Self::Remote(remote, _) = self {
            remote.keep_parts();
        }
    }

    /// Everything that may be a signature of the image `digest`.
    pub fn signatures(&mut self, digest: &Digest) -> FoundSignatures {
        match self {
            Self::Layout(layout) => layout.signatures(digest),
            Self::Remote(remote, _) => remote.signatures(digest),
        }
    }
}

/// A blob of the cache, else one that arrives and is put there. The cache saves time; what is wrong with it stops nothing.
fn kept(
    cache: &Cache,
    digest: &Digest,
    max: usize,
    get: impl FnOnce() -> Result<Vec<u8>, ImageError>,
) -> Result<Vec<u8>, ImageError> {
    if let Ok(Some(reader)) = cache.reader()
        && let Ok(Blob::Whole(bytes)) = reader.blob(digest)
        && bytes.len() <= max
    {
        return Ok(bytes);
    }
    let bytes = get()?;
    if let Err(err) = cache.keep(&bytes) {
        tracing::warn!(%digest, error = &err as &dyn std::error::Error, "blob not kept in the image cache");
    }
    Ok(bytes)
}
