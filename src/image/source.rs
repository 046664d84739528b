//! Blobs by digest, from a layout or a registry, verified here whatever their source.

use crate::image::MAX_MANIFEST;
use crate::image::cache::{Blob, Cache};
use crate::image::error::ImageError;
use crate::image::found::{FoundSignatures, checked};
use crate::image::oci::layout::Layout;
use crate::image::remote::Remote;
use crate::model::ids::Digest;

/// The source of an image's blobs.
#[derive(Debug)]
pub(crate) enum BlobSource {
    /// `oci:` and `oci-archive:`.
    Layout(Layout),
    /// A registry, through the fetch child. Fetched blobs are cached immediately, and cached blobs are not fetched
    /// again.
    Remote(Remote, Cache),
}

impl BlobSource {
    /// Reads a manifest, an index or a config, and verifies its digest.
    pub fn manifest(&mut self, image: &str, part: &'static str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => checked(image, part, digest, MAX_MANIFEST, layout.blob(digest, MAX_MANIFEST)?),
            Self::Remote(remote, cache) => kept(cache, digest, MAX_MANIFEST, || {
                checked(image, part, digest, MAX_MANIFEST, remote.manifest(&digest.to_string())?)
            }),
        }
    }

    /// Reads a blob of at most `max` bytes, and verifies its digest.
    pub fn blob(&mut self, image: &str, part: &'static str, digest: &Digest, max: usize) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => checked(image, part, digest, max, layout.blob(digest, max)?),
            Self::Remote(remote, cache) => {
                kept(cache, digest, max, || checked(image, part, digest, max, remote.blob(digest, max)?))
            }
        }
    }

    /// Announces that the whole image with this top-level document will be read.
    pub fn expect(&mut self, top: &[u8]) {
        if let Self::Remote(remote, cache) = self {
            remote.expect_image(cache, top);
        }
    }

    /// Caches the fetched parts of an accepted image that could not be read completely.
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

/// A blob from the cache; otherwise it is fetched and cached. The cache only saves time: its errors are not fatal.
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
        tracing::warn!(%digest, error = &err as &dyn std::error::Error, "blob not stored in the image cache");
    }
    Ok(bytes)
}
