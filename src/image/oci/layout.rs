//! OCI image layouts: which image a reference resolves to, and where its signatures are.
//!
//! A layout contains signatures in three forms: under the names that registries use as tags (`sha256-<hex>.sig` for
//! cosign 2, `sha256-<hex>` for the index of referrers), as unnamed entries of kind `dev.cosignproject.cosign/sigs`,
//! which `cosign save` writes, and as manifests whose `subject` is the image.

use crate::image::MAX_MANIFEST;
use crate::image::error::ImageError;
use crate::image::found::FoundSignatures;
use crate::image::host::{HostBlob, LayoutFiles};
use crate::image::oci::document::{Descriptor, Document, Manifest, REF_NAME};
use crate::image::verify::SignaturePlace;
use crate::model::ids::Digest;

/// What a docker archive has instead of index.json.
const DOCKER_MANIFEST: &str = "manifest.json";
/// The limit on manifests of an index.json that are opened while searching for signatures.
const MAX_SEARCHED: usize = 256;
/// The annotation in which `cosign save` writes the kind of an entry.
const KIND: &str = "kind";
const KIND_PREFIX: &str = "dev.cosignproject.cosign/";

/// An opened layout.
#[derive(Debug)]
pub(crate) struct Layout {
    files: LayoutFiles,
    image: String,
    entries: Vec<Descriptor>,
}

impl Layout {
    /// Reads the index of a layout. A missing layout is a missing image.
    pub fn open(files: LayoutFiles, image: &str) -> Result<Self, ImageError> {
        let image = image.to_owned();
        let index = match files.read("index.json", MAX_MANIFEST, &image)? {
            HostBlob::Bytes(bytes) => bytes,
            HostBlob::Missing => {
                return Err(match files.read(DOCKER_MANIFEST, MAX_MANIFEST, &image)? {
                    HostBlob::Missing => ImageError::NotFound { image },
                    HostBlob::Bytes(_) | HostBlob::TooLarge => ImageError::DockerArchive { image },
                });
            }
            HostBlob::TooLarge => return Err(ImageError::TooLarge { image, part: "index.json", limit: MAX_MANIFEST }),
        };
        match Document::parse(&index) {
            Ok(Document::Index(entries)) => Ok(Self { files, image, entries }),
            Ok(Document::Manifest(_)) => {
                Err(ImageError::Malformed { image, part: "index.json", problem: "it is not an index".into() })
            }
            Err(problem) => Err(ImageError::Malformed { image, part: "index.json", problem }),
        }
    }

    /// The blobs of a layout whose index is not needed.
    pub fn of_blobs(files: LayoutFiles, image: &str) -> Self {
        Self { files, image: image.to_owned(), entries: Vec::new() }
    }

    /// The images in it, with their names.
    pub fn images(&self) -> Vec<(Option<String>, Digest)> {
        let images = self.entries.iter().filter(|entry| is_image(entry));
        images.filter_map(|entry| Some((entry.annotation(REF_NAME).map(str::to_owned), entry.digest().ok()?))).collect()
    }

    /// Documents that may contain signatures of an image, with the names under which they are found.
    pub fn attached(&self, digest: &Digest) -> Vec<(Digest, Option<String>)> {
        let tag = format!("sha256-{}", digest.hex());
        let legacy = format!("{tag}.sig");
        let mut found = Vec::new();
        for entry in self.entries.iter().take(MAX_SEARCHED) {
            let Some(at) = entry.digest().ok().filter(|at| at != digest) else { continue };
            let name = entry.annotation(REF_NAME).unwrap_or_default();
            if let Some(named) = [&tag, &legacy].into_iter().find(|tag| names(name, tag)) {
                found.push((at, Some(named.clone())));
            } else if let Ok(Document::Manifest(manifest)) = self.document(&at)
                && manifest.subject.as_ref().is_some_and(|subject| subject.digest().as_ref() == Ok(digest))
            {
                found.push((at, None));
            }
        }
        found
    }

    /// The digest of a tag; without a tag, that of the only image.
    pub fn resolve(&self, tag: Option<&str>) -> Result<Digest, ImageError> {
        let mut images: Vec<&Descriptor> = self.entries.iter().filter(|entry| is_image(entry)).collect();
        match tag {
            Some(tag) => images.retain(|entry| entry.annotation(REF_NAME).is_some_and(|name| names(name, tag))),
            // If some entries have names, those without refer to them.
            None if images.iter().any(|entry| entry.annotation(REF_NAME).is_some()) => {
                images.retain(|entry| entry.annotation(REF_NAME).is_some());
            }
            None => {}
        }
        let Some(first) = images.first() else { return Err(ImageError::NotFound { image: self.image.clone() }) };
        if images.iter().any(|entry| entry.written_digest() != first.written_digest()) {
            let name = |entry: &&Descriptor| {
                crate::image::oci::object::printable(entry.annotation(REF_NAME).unwrap_or(&entry.written_digest()))
            };
            return Err(ImageError::Ambiguous { image: self.image.clone(), names: images.iter().take(8).map(name).collect() });
        }
        first.digest().map_err(|problem| self.malformed("index.json", problem))
    }

    /// Reads a blob; its digest is not verified here.
    pub fn blob(&self, digest: &Digest, max: usize) -> Result<HostBlob, ImageError> {
        self.files.read(&format!("blobs/sha256/{}", digest.hex()), max, &self.image)
    }

    /// Everything in the layout that may be a signature of `digest`.
    pub fn signatures(&self, digest: &Digest) -> FoundSignatures {
        let mut found = FoundSignatures { place: SignaturePlace::Layout, ..FoundSignatures::default() };
        let tag = format!("sha256-{}", digest.hex());
        let legacy = format!("{tag}.sig");
        for (searched, entry) in self.entries.iter().filter(|entry| entry.digest().as_ref() != Ok(digest)).enumerate() {
            if searched == MAX_SEARCHED {
                found.problem(
                    self.malformed("index.json", format!("more than {MAX_SEARCHED} entries to search for signatures")),
                );
                break;
            }
            let name = entry.annotation(REF_NAME).unwrap_or_default();
            let is_legacy = names(name, &legacy);
            let is_list = names(name, &tag);
            let saved = entry.annotation(KIND) == Some("dev.cosignproject.cosign/sigs");
            let Ok(at) = entry.digest() else { continue };
            let document = match self.document(&at) {
                Ok(document) => document,
                Err(err) if is_legacy || is_list || saved => {
                    found.problem(err);
                    continue;
                }
                // Damage in another image of the layout does not matter here.
                Err(_) => continue,
            };
            match document {
                Document::Index(referrers) if is_list => {
                    for referrer in &referrers {
                        match referrer.digest().map_err(|problem| self.malformed("list of signatures", problem)) {
                            Ok(at) => match self.document(&at) {
                                Ok(Document::Manifest(manifest)) => self.collect(&manifest, &mut found),
                                Ok(Document::Index(_)) => {}
                                Err(err) => found.problem(err),
                            },
                            Err(err) => found.problem(err),
                        }
                    }
                }
                Document::Index(_) => {}
                Document::Manifest(manifest) => {
                    let refers = manifest.subject.as_ref().is_some_and(|subject| subject.digest().as_ref() == Ok(digest));
                    if is_legacy || is_list || refers {
                        self.collect(&manifest, &mut found);
                    } else if saved {
                        // Only the signatures themselves say which image they are for.
                        let mut others = FoundSignatures { place: SignaturePlace::Layout, ..FoundSignatures::default() };
                        self.collect(&manifest, &mut others);
                        found.take_about(others, digest);
                    }
                }
            }
        }
        found
    }

    fn collect(&self, manifest: &Manifest, found: &mut FoundSignatures) {
        found.collect(manifest, &self.image, |digest| self.blob(digest, MAX_MANIFEST));
    }

    fn document(&self, digest: &Digest) -> Result<Document, ImageError> {
        let bytes =
            crate::image::found::checked(&self.image, "manifest", digest, MAX_MANIFEST, self.blob(digest, MAX_MANIFEST)?)?;
        Document::parse(&bytes).map_err(|problem| self.malformed("manifest", problem))
    }

    fn malformed(&self, part: &'static str, problem: String) -> ImageError {
        ImageError::Malformed { image: self.image.clone(), part, problem }
    }
}

/// True if `name` is the tag, or a full reference that ends with it, as `cosign save` and containerd write names.
fn names(name: &str, tag: &str) -> bool {
    name == tag || name.strip_suffix(tag).is_some_and(|rest| rest.ends_with(':'))
}

/// True for entries that are images themselves.
fn is_image(entry: &Descriptor) -> bool {
    if let Some(kind) = entry.annotation(KIND).and_then(|kind| kind.strip_prefix(KIND_PREFIX)) {
        return kind == "image" || kind == "imageIndex";
    }
    let name = entry.annotation(REF_NAME).unwrap_or_default();
    let name = name.rsplit(':').next().unwrap_or_default();
    let about = name.strip_prefix("sha256-").and_then(|rest| rest.get(..64));
    !about.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
        && !entry.artifact_type.as_deref().is_some_and(|kind| kind.starts_with("application/vnd.dev.sigstore.bundle"))
}
