//! What was found of an image: blobs whose digest is checked, and its signatures.

use crate::image::error::ImageError;
use crate::image::host::HostBlob;
use crate::image::oci::document::{Descriptor, Manifest};
use crate::image::verify::{Attached, Body, CERTIFICATE, CHAIN, ENTRY, SIGNATURE, Signature, SignaturePlace};
use crate::image::{MAX_MANIFEST, hash};
use crate::model::ids::Digest;

/// The most signatures that are looked at for one image, and the most manifests that may refer to it.
pub(crate) const MAX_SIGNATURES: usize = 64;
/// The most layers of one signature manifest.
const MAX_SIGNATURE_LAYERS: usize = 32;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// Bytes whose digest is the one that was asked for, or the error.
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

/// What the search for signatures gave. "No signature" is only certain where there was no trouble.
#[derive(Debug, Default)]
pub(crate) struct FoundSignatures {
    /// Candidates; verification tells which of them are signatures at all.
    pub signatures: Vec<Signature>,
    /// The first reason why there may be more than these.
    pub problem: Option<ImageError>,
    /// Where the next ones are looked for.
    pub place: SignaturePlace,
}

/// The layers of a manifest that hold signatures, as far as they are read.
pub(crate) fn signature_layers(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let whole_is_bundle = manifest.artifact_type.as_deref().is_some_and(|kind| kind.starts_with(BUNDLE));
    manifest
        .layers
        .iter()
        .take(MAX_SIGNATURE_LAYERS)
        .filter(move |layer| whole_is_bundle || layer.media_type == SIMPLE_SIGNING || layer.media_type.starts_with(BUNDLE))
}

impl FoundSignatures {
    /// Notes a reason why signatures may be missing here; the first one stays.
    pub fn problem(&mut self, err: ImageError) {
        self.problem.get_or_insert(err);
    }

    /// Takes the signatures out of a manifest that holds some; other manifests have none. What cannot be read is noted and
    /// hides nothing else: pushing to a repository takes no signing key.
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
            let problem = format!("a manifest of more than {MAX_SIGNATURE_LAYERS} signatures");
            self.problem(ImageError::Malformed { image: image.to_owned(), part: "list of signatures", problem });
        }
    }

    /// Takes over those signatures that say themselves that they are about `digest`.
    pub fn take_about(&mut self, others: Self, digest: &Digest) {
        self.signatures.extend(others.signatures.into_iter().filter(|signature| signature.claims(digest)));
    }
}
