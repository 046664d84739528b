//! A complete image for copying from one place to another: its documents, its blobs, and its signatures.
//!
//! Everything is hashed when it is read, so an image set matches its digests. How the target stores a signature is
//! decided there; here it is a document like the others, with the name by which it is found.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image::{Config, Descriptor as NewDescriptor, ImageConfigurationBuilder, MediaType, RootFsBuilder};
use serde::Serialize;

use crate::image::cache::{Cache, CacheRecord};
use crate::image::error::ImageError;
use crate::image::found::checked;
use crate::image::host::LayoutFiles;
use crate::image::oci::document::{Descriptor, Document};
use crate::image::oci::layout::Layout;
use crate::image::oci::written;
use crate::image::verify::Body;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;
use crate::sys::fsutil::TrustedRoot;

/// A manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDocument {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The name by which it is found; None if it is found only by digest.
    pub name: Option<String>,
}

/// An image with its signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// The image's digest.
    pub digest: Digest,
    /// Documents of the image, each after those that it refers to; the last one is the image.
    pub documents: Vec<ImageDocument>,
    /// Documents of signatures, each after those that it refers to.
    pub signatures: Vec<ImageDocument>,
    /// Configs, layers and signatures, by digest.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    /// Platforms of the image that are missing, since the cache contains this machine's only.
    pub left_out: Vec<String>,
}

impl ImageDocument {
    pub(crate) fn new(value: &impl Serialize, media_type: MediaType, name: Option<String>) -> Self {
        let bytes = written::bytes(value);
        Self { digest: hash(&bytes), media_type: media_type.into(), bytes, name }
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> NewDescriptor {
        written::descriptor(self.media_type.as_str().into(), &self.digest, self.bytes.len() as u64)
    }

    /// Its descriptor in an index, which says what kind of artifact it is.
    pub(crate) fn entry(&self) -> NewDescriptor {
        let mut entry = self.descriptor();
        if let Ok(Document::Manifest(manifest)) = Document::parse(&self.bytes) {
            entry.set_artifact_type(manifest.artifact_type.as_deref().map(MediaType::from));
        }
        entry
    }

    /// The image that it refers to, if it is a referrer.
    pub(crate) fn subject(&self) -> Option<Digest> {
        match Document::parse(&self.bytes) {
            Ok(Document::Manifest(manifest)) => manifest.subject.and_then(|subject| subject.digest().ok()),
            _ => None,
        }
    }
}

impl ImageSet {
    /// Reads an image of a layout, with everything in the layout that may be its signature.
    pub(crate) fn of_layout(layout: &Layout, image: &str, digest: &Digest) -> Result<Self, ImageError> {
        let mut image_set = Self::begin(digest);
        let document = image_set.document(layout, image, digest, None)?;
        image_set.walk(layout, image, document, false)?;
        for (at, name) in layout.attached(digest) {
            let Ok(document) = image_set.document(layout, image, &at, name) else { continue };
            let mut signature = Self::begin(&at);
            // An incomplete one is not a signature, and does not affect the others.
            if signature.walk(layout, image, document, false).is_ok() {
                image_set.blobs.extend(signature.blobs);
                for document in signature.documents {
                    if !image_set.signatures.contains(&document) {
                        image_set.signatures.push(document);
                    }
                }
            }
        }
        Ok(image_set)
    }

    /// Reads an image of the cache. Its signatures are those that have satisfied a rule here.
    pub(crate) fn of_cache(cache: &Cache, image: &str, record: &CacheRecord) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Cache { image: image.to_owned(), source };
        let root = TrustedRoot::at(cache.path()).map_err(|source| ImageError::HostPath { image: image.to_owned(), source })?;
        let layout = Layout::of_blobs(LayoutFiles::directory(root, cache.path()), image);
        let mut image_set = Self::begin(&record.digest);
        let mut document = image_set.document(&layout, image, &record.digest, None)?;
        document.media_type.clone_from(&record.media_type);
        image_set.walk(&layout, image, document, true)?;
        let reader = cache.reader().map_err(failed)?;
        let kept = reader.map(|reader| record.signatures(&reader)).transpose().map_err(failed)?.unwrap_or_default();
        image_set.sign(kept.into_iter().map(|signature| signature.body));
        Ok(image_set)
    }

    pub(crate) fn begin(digest: &Digest) -> Self {
        let (documents, signatures, blobs, left_out) = Default::default();
        Self { digest: *digest, documents, signatures, blobs, left_out }
    }

    fn document(
        &self,
        layout: &Layout,
        image: &str,
        digest: &Digest,
        name: Option<String>,
    ) -> Result<ImageDocument, ImageError> {
        let bytes = checked(image, "manifest", digest, MAX_MANIFEST, layout.blob(digest, MAX_MANIFEST)?)?;
        Ok(ImageDocument { digest: *digest, media_type: crate::image::oci::content::media_type(&bytes), bytes, name })
    }

    /// Reads what a document refers to, then the document. With `sparse`, missing entries of an index are left out, and
    /// so are missing layers: of an artifact the cache has only those that may be bytecode.
    fn walk(&mut self, layout: &Layout, image: &str, document: ImageDocument, sparse: bool) -> Result<(), ImageError> {
        let mut todo = vec![(document, 0)];
        let mut documents = Vec::new();
        while let Some((document, depth)) = todo.pop() {
            let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part: "manifest", problem };
            if depth > crate::image::oci::content::MAX_DEPTH {
                return Err(malformed("its indexes are nested too deeply".to_owned()));
            }
            match Document::parse(&document.bytes).map_err(malformed)? {
                Document::Index(entries) => {
                    for entry in &entries {
                        let digest = entry.digest().map_err(malformed)?;
                        match self.document(layout, image, &digest, None) {
                            Ok(child) => todo.push((child, depth + 1)),
                            Err(ImageError::MissingBlob { .. }) if sparse => self.left_out.push(entry.platform_name()),
                            Err(err) => return Err(err),
                        }
                    }
                }
                Document::Manifest(manifest) => {
                    for descriptor in manifest.config.iter().chain(&manifest.layers) {
                        match self.blob(layout, image, descriptor) {
                            Err(ImageError::MissingBlob { .. }) if sparse => self.left_out.push(descriptor.media_type.clone()),
                            taken => taken?,
                        }
                    }
                }
            }
            documents.push(document);
        }
        // Parents were read first.
        documents.reverse();
        let mut seen = BTreeSet::new();
        documents.retain(|document| seen.insert(document.digest));
        self.documents = documents;
        Ok(())
    }

    fn blob(&mut self, layout: &Layout, image: &str, descriptor: &Descriptor) -> Result<(), ImageError> {
        let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part: "manifest", problem };
        let digest = descriptor.digest().map_err(malformed)?;
        if let Entry::Vacant(place) = self.blobs.entry(digest) {
            place.insert(checked(image, "blob", &digest, MAX_OBJECT, layout.blob(&digest, MAX_OBJECT)?)?);
        }
        Ok(())
    }

    /// Adds signatures in cosign's format: those of cosign 2 as layers of one named manifest, each bundle as a manifest
    /// that refers to the image.
    fn sign(&mut self, bodies: impl Iterator<Item = Body>) {
        let top = self.documents.last().expect("the image itself was walked").clone();
        let mut layers = Vec::new();
        let mut referrers = Vec::new();
        for body in bodies {
            if let Some((layer, blob)) = body.simple_layer() {
                self.blobs.insert(hash(&blob), blob);
                layers.push(layer);
            } else if let Body::Bundle(json) = body {
                let kind = MediaType::from("application/vnd.dev.sigstore.bundle.v0.3+json");
                let layer = written::descriptor_of(kind.clone(), &json);
                self.blobs.insert(hash(&json), json);
                let empty = b"{}".to_vec();
                let mut manifest = written::manifest(written::descriptor_of(MediaType::EmptyJSON, &empty), vec![layer]);
                manifest.set_artifact_type(Some(kind)).set_subject(Some(top.descriptor()));
                self.blobs.insert(hash(&empty), empty);
                referrers.push(ImageDocument::new(&manifest, MediaType::ImageManifest, None));
            }
        }
        if !layers.is_empty() {
            let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest().to_string()).collect();
            let rootfs = RootFsBuilder::default().diff_ids(diff_ids).build();
            let config = ImageConfigurationBuilder::default()
                .architecture("")
                .os("")
                .config(Config::default())
                .rootfs(rootfs.expect("it has every required field"))
                .build();
            let config = written::bytes(&config.expect("it has every required field"));
            let manifest = written::manifest(written::descriptor_of(MediaType::ImageConfig, &config), layers);
            self.blobs.insert(hash(&config), config);
            let name = format!("sha256-{}.sig", self.digest.hex());
            self.signatures.push(ImageDocument::new(&manifest, MediaType::ImageManifest, Some(name)));
        }
        self.signatures.extend(referrers);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::image::verify::Attached;

    /// Byte for byte: another digest would be another signature to everything that copies images.
    #[test]
    fn documents_of_signatures_have_exactly_these_fields() {
        let image = ImageDocument::new(&written::index(&[]), MediaType::ImageIndex, None);
        let mut image_set = ImageSet::begin(&image.digest);
        let subject = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": image.digest, "size": image.bytes.len(),
        });
        image_set.documents.push(image);
        let attached = Attached { certificate: "PEM".into(), chain: Some("PEMS".into()), entry: Some("{}".into()) };
        let simple = |keyless| Body::Simple { payload: b"payload".to_vec(), signature: "c2ln".into(), keyless };
        let bodies = [simple(Some(attached)), simple(None), Body::Bundle(b"bundle".to_vec())];
        image_set.sign(bodies.into_iter());

        let layer = |annotations| {
            json!({
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": hash(b"payload"), "size": 7,
                "annotations": annotations,
            })
        };
        let config = json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [hash(b"payload"), hash(b"payload")] },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let tagged = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": hash(&config), "size": config.len(),
            },
            "layers": [
                layer(json!({
                    "dev.cosignproject.cosign/signature": "c2ln", "dev.sigstore.cosign/certificate": "PEM",
                    "dev.sigstore.cosign/chain": "PEMS", "dev.sigstore.cosign/bundle": "{}",
                })),
                layer(json!({ "dev.cosignproject.cosign/signature": "c2ln" })),
            ],
        });
        let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let referrer = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": hash(b"{}"), "size": 2 },
            "layers": [{ "mediaType": kind, "digest": hash(b"bundle"), "size": 6 }],
            "subject": subject,
        });
        let written: Vec<_> = image_set.signatures.iter().map(|document| document.bytes.clone()).collect();
        assert_eq!(written, [tagged, referrer].map(|document| serde_json::to_vec(&document).unwrap()));
        let blobs = [config.as_slice(), b"payload", b"bundle", b"{}"].map(|blob| (hash(blob), blob.to_vec()));
        assert_eq!(image_set.blobs, BTreeMap::from(blobs));
        let entry = serde_json::to_value(image_set.signatures[1].entry()).unwrap();
        assert_eq!((&entry["artifactType"], &entry["size"]), (&json!(kind), &json!(written[1].len())));
    }
}
