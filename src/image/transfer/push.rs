//! Pushes image sets into registries: blobs first, then the documents that refer to them, and the name last, so that an
//! image that can be found is complete.

use std::time::Instant;

use oci_spec::image::MediaType;

use crate::image::LinuxImages;
use crate::image::error::{ImageError, RemoteError};
use crate::image::host::HostBlob;
use crate::image::oci::written;
use crate::image::remote::Remote;
use crate::image::transfer::image_set::{ImageDocument, ImageSet};
use crate::image::transfer::write::entries_of;
use crate::model::ids::Digest;
use crate::model::reference::{Reference, RegistryReference};
use crate::model::registries::RegistryConfig;

/// The target of a push.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The target reference.
    pub at: &'a RegistryReference,
    /// Another repository of the same registry that may have its blobs.
    pub from: Option<&'a str>,
    /// The settings of the registries.
    pub registries: &'a RegistryConfig,
    /// The deadline.
    pub deadline: Instant,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The image.
    pub digest: Digest,
    /// Blobs that were uploaded.
    pub sent: usize,
    /// Blobs that the registry already had.
    pub spared: usize,
    /// Documents of signatures.
    pub signatures: usize,
}

impl LinuxImages {
    /// Pushes an image set into a registry, signatures included.
    pub fn push(&self, image_set: &ImageSet, target: Target<'_>) -> Result<Pushed, ImageError> {
        let image = Reference::Registry(target.at.clone()).to_string();
        if !image_set.left_out.is_empty() {
            return Err(ImageError::Partial { image, missing: image_set.left_out.join(", ") });
        }
        if let Some(expected) = target.at.digest
            && expected != image_set.digest
        {
            return Err(ImageError::Tampered { image, part: "manifest", expected, found: image_set.digest });
        }
        let mut remote = self.remote(&image, target.at, target.registries, target.deadline)?.own_place();
        sent(&mut remote, image_set, target).map_err(|err| as_push(err, &target.at.registry))
    }
}

fn sent(remote: &mut Remote, image_set: &ImageSet, target: Target<'_>) -> Result<Pushed, ImageError> {
    let mut pushed = Pushed { digest: image_set.digest, sent: 0, spared: 0, signatures: image_set.signatures.len() };
    for (digest, bytes) in &image_set.blobs {
        match remote.put_blob(digest, target.from, bytes)?.spared {
            true => pushed.spared += 1,
            false => pushed.sent += 1,
        }
    }
    let (top, others) = image_set.documents.split_last().expect("an image set has an image");
    for document in others {
        remote.put_manifest(&document.digest.to_string(), &document.media_type, &document.bytes)?;
    }
    // By digest before the signatures, which refer to it; by name after them, so that it is never found unsigned.
    remote.put_manifest(&top.digest.to_string(), &top.media_type, &top.bytes)?;
    let mut unlisted = Vec::new();
    let fallback = format!("sha256-{}", image_set.digest.hex());
    for document in &image_set.signatures {
        if document.name.as_ref() == Some(&fallback) {
            // The existing list, with the new entries added.
            unlisted.extend(entries_of(&document.bytes).unwrap_or_default());
            continue;
        }
        let name = document.name.clone().unwrap_or_else(|| document.digest.to_string());
        let put = remote.put_manifest(&name, &document.media_type, &document.bytes)?;
        if document.subject() == Some(image_set.digest) && !put.listed {
            unlisted.push(written::entry(&document.entry()));
        }
    }
    if !unlisted.is_empty() {
        let mut listed = match remote.manifest(&fallback)? {
            HostBlob::Bytes(bytes) => entries_of(&bytes).unwrap_or_default(),
            HostBlob::Missing | HostBlob::TooLarge => Vec::new(),
        };
        for entry in unlisted {
            if !listed.iter().any(|other| other["digest"] == entry["digest"]) {
                listed.push(entry);
            }
        }
        let list = ImageDocument::new(&written::index(&listed), MediaType::ImageIndex, None);
        remote.put_manifest(&fallback, &list.media_type, &list.bytes)?;
    }
    if let Some(tag) = &target.at.tag {
        remote.put_manifest(tag, &top.media_type, &top.bytes)?;
    }
    Ok(pushed)
}

/// The same failure as an error of a push.
fn as_push(err: ImageError, host: &str) -> ImageError {
    match err {
        ImageError::Remote { image, source } => ImageError::Push { image, source },
        ImageError::Timeout { image, seconds, .. } => {
            let problem = format!("it did not accept it within {seconds} s");
            let source = RemoteError::Network { host: host.to_owned(), what: "an upload".into(), problem };
            ImageError::Push { image, source }
        }
        other => other,
    }
}
