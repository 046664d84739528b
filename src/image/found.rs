//! What was found for an image: blobs with a verified digest, and signatures.

use crate::image::error::ImageError;
use crate::image::host::HostBlob;
use crate::image::oci::document::{Descriptor, Manifest};
use crate::image::verify::{Attached, Body, CERTIFICATE, CHAIN, ENTRY, SIGNATURE, Signature, SignaturePlace};
use crate::image::{MAX_MANIFEST, hash};
use crate::model::ids::Digest;

/// The limit on signatures that are examined for one image, and on manifests that refer to it.
pub(crate) const MAX_SIGNATURES: usize = 64;
/// The limit on layers of one signature manifest.
const MAX_SIGNATURE_LAYERS: usize = 32;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// Returns the bytes if they match the requested digest.
pub(crate) fn checked(
    image: &str,
    part: &'static str,
    expected: &Digest,
    limit: usize,
    got: HostBlob,
) -> Result<Vec<u8>, ImageError> {
    let image = || image.to_owned();
    match got {
        HostBlob::Missing => Err(ImageError::MissingBlob { image: image(), part, digest: *expected }),
        HostBlob::TooLarge => Err(ImageError::TooLarge { image: image(), part, limit }),
        HostBlob::Bytes(bytes) => match hash(&bytes) {
            found if found == *expected => Ok(bytes),
            found => Err(ImageError::Tampered { image: image(), part, expected: *expected, found }),
        },
    }
}

/// The result of the search for signatures. "No signature" is certain only if no problem was noted.
#[derive(Debug, Default)]
pub(crate) struct FoundSignatures {
    /// Candidates; verification finds out which of them are signatures.
    pub signatures: Vec<Signature>,
    /// The first reason why there may be more than these.
    pub problem: Option<ImageError>,
    /// Where the following signatures are searched for.
    pub place: SignaturePlace,
}

/// The layers of a manifest that hold signatures, up to the limit.
pub(crate) fn signature_layers(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let whole_is_bundle = manifest.artifact_type.as_deref().is_some_and(|kind| kind.starts_with(BUNDLE));
    manifest
        .layers
        .iter()
        .take(MAX_SIGNATURE_LAYERS)
        .filter(move |layer| whole_is_bundle || layer.media_type == SIMPLE_SIGNING || layer.media_type.starts_with(BUNDLE))
}

impl FoundSignatures {
    /// Notes a reason why signatures may be missing; the first one is kept.
    pub fn problem(&mut self, err: ImageError) {
        self.problem.get_or_insert(err);
    }

    /// Takes the signatures out of a signature manifest; other manifests are ignored. What cannot be read is noted and
    /// does not hide other signatures: pushing to a repository does not require a signing key.
    pub fn collect(&mut self, manifest: &Manifest, image: &str, mut blob: impl FnMut(&Digest) -> Result<HostBlob, ImageError>) {
        for layer in signature_layers(manifest) {
            let simple = layer.media_type == SIMPLE_SIGNING;
            if self.signatures.len() == MAX_SIGNATURES {
                let problem = format!("more than {MAX_SIGNATURES} signatures");
                self.problem(ImageError::Malformed { image: image.to_owned(), part: "list of signatures", problem });
                return;
            }
            let bytes = layer
                .digest()
                .map_err(|problem| ImageError::Malformed { image: image.to_owned(), part: "signature", problem })
                .and_then(|digest| checked(image, "signature", &digest, MAX_MANIFEST, blob(&digest)?));
            let body = match bytes {
                Ok(bytes) if simple => Body::Simple {
                    payload: bytes,
                    signature: layer.annotation(SIGNATURE).unwrap_or_default().to_owned(),
                    keyless: layer.annotation(CERTIFICATE).map(|certificate| Attached {
                        certificate: certificate.to_owned(),
                        chain: layer.annotation(CHAIN).map(str::to_owned),
                        entry: layer.annotation(ENTRY).map(str::to_owned),
                    }),
                },
                Ok(bytes) => Body::Bundle(bytes),
                Err(err @ (ImageError::Remote { .. } | ImageError::Timeout { .. } | ImageError::Child { .. })) => {
                    self.problem(err);
                    continue;
                }
                Err(err) => Body::Unreadable(err.to_string()),
            };
            self.signatures.push(Signature { body, place: self.place });
        }
        if manifest.layers.len() > MAX_SIGNATURE_LAYERS {
            let problem = format!("a manifest with more than {MAX_SIGNATURE_LAYERS} signatures");
            self.problem(ImageError::Malformed { image: image.to_owned(), part: "list of signatures", problem });
        }
    }

    /// Adds those signatures that claim to be for `digest`.
    pub fn take_about(&mut self, others: Self, digest: &Digest) {
        self.signatures.extend(others.signatures.into_iter().filter(|signature| signature.claims(digest)));
    }
}
