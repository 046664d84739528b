//! A complete image for copying from one place to another: its documents, its blobs, and its signatures.
//!
//! Everything is hashed when it is read, so an image set matches its digests. How the target stores a signature is
//! decided there; here it is a document like the others, with the name by which it is found.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::image::cache::{Cache, CacheRecord};
use crate::image::error::ImageError;
use crate::image::found::checked;
use crate::image::host::LayoutFiles;
use crate::image::oci::document::{Descriptor, Document};
use crate::image::oci::layout::Layout;
use crate::image::verify::Body;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;
use crate::sys::fsutil::TrustedRoot;

/// An OCI manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

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
    pub(crate) fn new(value: &Value, media_type: &str, name: Option<String>) -> Self {
        let bytes = serde_json::to_vec(value).expect("a JSON value is JSON");
        Self { digest: hash(&bytes), media_type: media_type.to_owned(), bytes, name }
    }

    /// Its descriptor in an index.
    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
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
                let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
                let layer = json!({ "mediaType": kind, "digest": hash(&json), "size": json.len() });
                self.blobs.insert(hash(&json), json);
                let empty = b"{}".to_vec();
                let config = json!({
                    "mediaType": "application/vnd.oci.empty.v1+json", "digest": hash(&empty), "size": empty.len(),
                });
                self.blobs.insert(hash(&empty), empty);
                let manifest = json!({
                    "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": config, "layers": [layer],
                    "subject": top.descriptor(),
                });
                referrers.push(ImageDocument::new(&manifest, MANIFEST, None));
            }
        }
        if !layers.is_empty() {
            let config = serde_json::to_vec(&json!({
                "architecture": "", "os": "", "config": {}, "rootfs": { "type": "layers", "diff_ids": layers.iter()
                    .map(|layer| layer["digest"].clone()).collect::<Vec<_>>() },
            }))
            .expect("a JSON value is JSON");
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
                "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": hash(&config), "size": config.len() },
            });
            self.blobs.insert(hash(&config), config);
            self.signatures.push(ImageDocument::new(&manifest, MANIFEST, Some(format!("sha256-{}.sig", self.digest.hex()))));
        }
        self.signatures.extend(referrers);
    }
}
