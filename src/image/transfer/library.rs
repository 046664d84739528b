//! Local images, for commands of users: inspecting, exporting, importing. No registry is contacted, and the policy
//! applies only to imports: nothing is loaded here.

use std::path::Path;

use crate::image::cache::NewImage;
use crate::image::decide::refuse_early;
use crate::image::error::ImageError;
use crate::image::found::checked;
use crate::image::host::{HostBlob, LayoutFiles, MAX_ARCHIVE, read};
use crate::image::oci::content::{Content, content};
use crate::image::oci::document::Document;
use crate::image::oci::layout::Layout;
use crate::image::oci::object;
use crate::image::source::BlobSource;
use crate::image::transfer::image_set::ImageSet;
use crate::image::transfer::write;
use crate::image::{InUse, LinuxImages, MAX_MANIFEST, MAX_OBJECT, Want, hash};
use crate::model::bytecode::Bytecode;
use crate::model::ids::Digest;
use crate::model::reference::Reference;
use crate::sys::fsutil::TrustedRoot;

/// The labels of an image about its object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labelled {
    /// Function to type.
    pub programs: std::collections::BTreeMap<String, String>,
    /// Map to type.
    pub maps: std::collections::BTreeMap<String, String>,
}

/// An image to inspect.
#[derive(Debug, Clone)]
pub struct Details {
    /// The normalized reference.
    pub reference: String,
    /// Its digest; for `file:` the object's own.
    pub digest: Digest,
    /// The media type of its top-level document; None for `file:`.
    pub media_type: Option<String>,
    /// `linux/amd64`, …; empty if unknown.
    pub platforms: Vec<String>,
    /// Documents that may contain signatures.
    pub signatures: usize,
    /// Size of everything that is present, in bytes.
    pub size: u64,
    /// Its labels; None for `file:`.
    pub labels: Option<Labelled>,
    /// The object for this machine.
    pub object: Vec<u8>,
}

/// An archive that was read.
#[derive(Debug)]
pub struct Archive {
    bytes: Vec<u8>,
    shown: String,
}

impl Archive {
    /// Reads an `oci-archive`. The user who names it is responsible for it; its content is checked like a registry's.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let shown = format!("oci-archive:{}", path.display());
        let failed = |err| {
            let source = crate::sys::SysError::io("read", path.display().to_string())(err);
            ImageError::Carry { doing: "read", image: shown.clone(), source }
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        match crate::sys::fsutil::read_capped(file, MAX_ARCHIVE) {
            Ok(bytes) => Ok(Self { bytes, shown }),
            Err(crate::sys::fsutil::ReadError::Io(err)) => Err(failed(err)),
            Err(crate::sys::fsutil::ReadError::TooLarge { .. }) => {
                Err(ImageError::TooLarge { image: shown, part: "archive", limit: MAX_ARCHIVE })
            }
        }
    }

    pub(crate) fn layout(&self, image: &str) -> Result<Layout, ImageError> {
        Layout::open(LayoutFiles::archive_of(self.bytes.clone(), image)?, image)
    }

    /// The images in it, with their names there.
    pub fn images(&self) -> Result<Vec<(Option<String>, Digest)>, ImageError> {
        Ok(self.layout(&self.shown)?.images())
    }
}

impl LinuxImages {
    /// Reads a complete image of the cache, of a layout or of an archive, with its signatures.
    pub fn local(&self, reference: &Reference) -> Result<ImageSet, ImageError> {
        let image = reference.to_string();
        match reference {
            Reference::Registry(_) => {
                let digest = self.cached_digest(reference)?;
                let failed = |source| ImageError::Cache { image: image.clone(), source };
                let record = self.cache().reader().map_err(failed)?.map(|reader| reader.record(&digest)).transpose();
                let record = record.map_err(failed)?.flatten().ok_or_else(|| ImageError::NotHere { image: image.clone() })?;
                ImageSet::of_cache(self.cache(), &image, &record)
            }
            Reference::Layout { path, tag } => {
                let root = trusted_from(path, &image)?;
                let layout = Layout::open(LayoutFiles::directory(root, path), &image)?;
                ImageSet::of_layout(&layout, &image, &layout.resolve(tag.as_deref())?)
            }
            Reference::Archive { path, tag } => {
                let archive = Archive::read(path)?;
                let layout = archive.layout(&image)?;
                ImageSet::of_layout(&layout, &image, &layout.resolve(tag.as_deref())?)
            }
            Reference::File { .. } => {
                let problem = "it is a file; build an image from it with bpfman-hook image build".to_owned();
                Err(ImageError::Malformed { image, part: "transport", problem })
            }
        }
    }

    /// The digest of a cached image, by its name or by the digest in it.
    pub fn cached_digest(&self, reference: &Reference) -> Result<Digest, ImageError> {
        let image = reference.to_string();
        let failed = |source| ImageError::Cache { image: image.clone(), source };
        let reader = self.cache().reader().map_err(failed)?;
        let found = match (&reader, reference) {
            (Some(reader), Reference::Registry(at)) => match at.digest {
                Some(digest) => Some(digest),
                None => reader.resolve(&image).map_err(failed)?,
            },
            _ => None,
        };
        found.ok_or_else(|| ImageError::NotHere { image: image.clone() })
    }

    /// Reads an image to inspect.
    pub fn details(&self, reference: &Reference) -> Result<Details, ImageError> {
        let image = reference.to_string();
        if let Reference::File { path } = reference {
            let root = trusted_from(path.parent().unwrap_or(path), &image)?;
            let object = match read(&root, path, MAX_OBJECT, &image)? {
                HostBlob::Bytes(bytes) => bytes,
                HostBlob::Missing => return Err(ImageError::NotFound { image }),
                HostBlob::TooLarge => return Err(ImageError::TooLarge { image, part: "file", limit: MAX_OBJECT }),
            };
            let name = path.file_name().map(|name| object::printable(&name.to_string_lossy())).unwrap_or_default();
            object::check(&name, &object).map_err(|source| ImageError::Object { image: image.clone(), source })?;
            let (digest, size) = (hash(&object), object.len() as u64);
            let (media_type, platforms, labels) = Default::default();
            return Ok(Details { reference: image, digest, media_type, platforms, signatures: 0, size, labels, object });
        }
        let image_set = self.local(reference)?;
        let Content { object, labels, .. } = unpacked(&image_set, &image)?;
        let top = image_set.documents.last().expect("it was unpacked");
        let platforms = match Document::parse(&top.bytes) {
            Ok(Document::Index(entries)) => {
                entries.iter().filter(|entry| !entry.is_attestation()).map(|entry| entry.platform_name()).collect()
            }
            _ => image_set.blobs.values().find_map(|blob| platform_of_config(blob)).into_iter().collect(),
        };
        let documents = image_set.documents.iter().map(|document| document.bytes.len());
        Ok(Details {
            reference: image,
            digest: image_set.digest,
            media_type: Some(top.media_type.clone()),
            platforms,
            signatures: image_set.signatures.len(),
            size: documents.chain(image_set.blobs.values().map(Vec::len)).map(|length| length as u64).sum(),
            labels: Some(Labelled { programs: labels.programs, maps: labels.maps }),
            object,
        })
    }

    /// Writes an image set to a layout or an archive, with the tag of `to` or else under `name`; for an image's name,
    /// into the cache.
    pub fn deliver(&self, image_set: &ImageSet, to: &Reference, name: Option<&str>) -> Result<(), ImageError> {
        let image = to.to_string();
        match to {
            Reference::Layout { path, tag } => write::to_layout(image_set, path, tag.as_deref().or(name), &image),
            Reference::Archive { path, tag } => write::to_archive(image_set, path, tag.as_deref().or(name), &image),
            Reference::Registry(_) => self.adopt(image_set, &image),
            Reference::File { .. } => {
                let problem = "an image is not a file; use oci:/directory or oci-archive:/file".to_owned();
                Err(ImageError::Malformed { image, part: "transport", problem })
            }
        }
    }

    /// Stores an image set in the cache under a name. The policy is evaluated when the image is used.
    fn adopt(&self, image_set: &ImageSet, image: &str) -> Result<(), ImageError> {
        let object = unpacked(image_set, image)?.object;
        let top = image_set.documents.last().expect("it was unpacked");
        let object_digest = hash(&object);
        let others = image_set.documents.iter().rev().skip(1).map(|document| document.bytes.clone());
        let mut blobs = vec![top.bytes.clone()];
        blobs.extend(others.chain(image_set.blobs.values().cloned()));
        blobs.push(object);
        let (digest, media_type) = (image_set.digest, top.media_type.clone());
        let new = NewImage { digest, media_type, blobs, object: object_digest };
        let stored = self.cache().store(&new).and_then(|()| self.cache().point(image, &digest, "", InUse::NONE));
        let stored = stored.and_then(|()| self.cache().settle(image, &digest));
        stored.map_err(|source| ImageError::Cache { image: image.to_owned(), source })
    }

    /// Imports an image of an archive into the cache as if it came from a registry: it is checked by the rules for its
    /// name.
    pub fn import(&self, want: &Want<'_>, archive: &Archive, digest: &Digest) -> Result<Bytecode, ImageError> {
        let image = want.reference.to_string();
        refuse_early(want, &image)?;
        if let Reference::Registry(at) = want.reference
            && let Some(expected) = at.digest
            && expected != *digest
        {
            return Err(ImageError::Tampered { image, part: "manifest", expected, found: *digest });
        }
        let layout = archive.layout(&image)?;
        let top = checked(&image, "manifest", digest, MAX_MANIFEST, layout.blob(digest, MAX_MANIFEST)?)?;
        let taken = self.take(want, &image, &mut BlobSource::Layout(layout), top, *digest)?;
        self.settled(want, taken)
    }
}

/// Follows an image set to the object for this machine, by the same rules as for every other image.
fn unpacked(image_set: &ImageSet, image: &str) -> Result<Content, ImageError> {
    let layout = Layout::of_blobs(LayoutFiles::archive_of(write::archive(image_set, None), image)?, image);
    let top = image_set.documents.last().ok_or_else(|| ImageError::NotFound { image: image.to_owned() })?;
    content(&mut BlobSource::Layout(layout), image, top.bytes.clone())
}

/// Paths are trusted from the place that the user names.
fn trusted_from(path: &Path, image: &str) -> Result<TrustedRoot, ImageError> {
    TrustedRoot::at(path).map_err(|source| ImageError::HostPath { image: image.to_owned(), source })
}

/// `linux/amd64`, if these are the bytes of an image config.
fn platform_of_config(blob: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct PlatformConfig {
        os: String,
        architecture: String,
    }
    if blob.first() != Some(&b'{') {
        return None;
    }
    let PlatformConfig { os, architecture } = serde_json::from_slice(blob).ok()?;
    (!os.is_empty()).then(|| object::printable(&format!("{os}/{architecture}")))
}
