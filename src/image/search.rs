//! Finds the signatures of an image in a repository: by cosign 2's tag, the referrers API, and its fallback tag.

use std::collections::BTreeSet;

use crate::image::MAX_MANIFEST;
use crate::image::error::ImageError;
use crate::image::found::{FoundSignatures, MAX_SIGNATURES, checked, signature_layers};
use crate::image::host::HostBlob;
use crate::image::oci::document::{Document, Manifest};
use crate::image::prefetch::MAX_AT_ONCE;
use crate::image::registry::protocol::{Referrers, RegistryItem};
use crate::image::remote::{Remote, manifest};
use crate::image::verify::SignaturePlace;
use crate::model::ids::Digest;

/// The size limit of all documents and signatures that are read for one image, in bytes; real ones take a few kilobytes
/// each.
const MAX_READ: usize = 32 << 20;

impl Remote {
    /// Announces that signatures of an image will be searched for.
    pub fn expect_signatures(&mut self, digest: &Digest) {
        self.prefetch.expect(manifest(&signature_tag(digest)));
        self.prefetch.expect(RegistryItem::Referrers { digest: *digest });
        self.prefetch.expect(manifest(&fallback_tag(digest)));
    }

    /// Everything in the repository that may be a signature of `digest`. All three places are read, whatever the others
    /// contain. Each step is one round trip: the places, the documents that they list, the signatures in these.
    pub fn signatures(&mut self, digest: &Digest) -> FoundSignatures {
        let mut found = FoundSignatures::default();
        self.expect_signatures(digest);
        let mut holders = Vec::new();
        match self.document(&signature_tag(digest), None) {
            Ok(Some(Document::Manifest(manifest))) if manifest.layers.is_empty() => {
                found.problem(self.malformed("its tag refers to a manifest without layers".to_owned()));
            }
            Ok(Some(Document::Manifest(manifest))) => {
                self.expect_blobs(&manifest);
                holders.push((SignaturePlace::SignatureTag, manifest));
            }
            Ok(Some(Document::Index(_))) => found.problem(self.malformed("its tag refers to an index".to_owned())),
            Ok(None) => {}
            Err(err) => found.problem(err),
        }
        let referrers = self.referrers(digest, &mut found);
        for some in referrers.chunks(MAX_AT_ONCE) {
            some.iter().for_each(|(_, referrer)| self.prefetch.expect(manifest(&referrer.to_string())));
            for (place, referrer) in some {
                match self.document(&referrer.to_string(), Some(referrer)) {
                    Ok(Some(Document::Manifest(manifest))) => holders.push((*place, manifest)),
                    Ok(Some(Document::Index(_)) | None) => {}
                    Err(err) => found.problem(err),
                }
            }
        }
        let image = self.image.clone();
        for (nth, (place, manifest)) in holders.iter().enumerate() {
            holders[nth..].iter().for_each(|(_, manifest)| self.expect_blobs(manifest));
            found.place = *place;
            found.collect(manifest, &image, |digest| {
                let got = self.blob(digest, MAX_MANIFEST)?;
                self.count(&got)?;
                Ok(got)
            });
        }
        found
    }

    /// The manifests that refer to an image, by the API and by its fallback tag.
    fn referrers(&mut self, digest: &Digest, found: &mut FoundSignatures) -> Vec<(SignaturePlace, Digest)> {
        let mut written = Vec::new();
        match self.listed(digest) {
            Ok(list) => {
                if list.more {
                    found.problem(self.malformed("it is longer than the limit".to_owned()));
                }
                written.extend(list.digests.into_iter().map(|referrer| (SignaturePlace::Referrers, referrer)));
            }
            Err(err) => found.problem(err),
        }
        match self.document(&fallback_tag(digest), None) {
            Ok(Some(Document::Index(entries))) => {
                written.extend(entries.iter().map(|entry| (SignaturePlace::FallbackTag, entry.written_digest())));
            }
            Ok(Some(Document::Manifest(_))) => found.problem(self.malformed("its tag does not refer to an index".to_owned())),
            Ok(None) => {}
            Err(err) => found.problem(err),
        }
        let mut seen = BTreeSet::new();
        written.retain(|(_, referrer)| seen.insert(referrer.clone()));
        if written.len() > MAX_SIGNATURES {
            found.problem(self.malformed("it is longer than the limit".to_owned()));
            written.truncate(MAX_SIGNATURES);
        }
        let mut referrers = Vec::new();
        for (place, referrer) in written {
            match referrer.parse::<Digest>() {
                Ok(digest) => referrers.push((place, digest)),
                Err(_) => found.problem(self.malformed(format!("it names {referrer}, which is not a sha256 digest"))),
            }
        }
        referrers
    }

    fn listed(&mut self, digest: &Digest) -> Result<Referrers, ImageError> {
        match self.ask(RegistryItem::Referrers { digest: *digest })? {
            HostBlob::Missing => Ok(Referrers::default()),
            HostBlob::Bytes(json) => serde_json::from_slice(&json).map_err(|err| self.malformed(err.to_string())),
            HostBlob::TooLarge => Err(self.malformed("it is too large".to_owned())),
        }
    }

    fn expect_blobs(&mut self, manifest: &Manifest) {
        for digest in signature_layers(manifest).filter_map(|layer| layer.digest().ok()) {
            self.prefetch.expect(RegistryItem::Blob { digest, max: MAX_MANIFEST });
        }
    }

    /// A client that can push to the repository can make this search large, but not unlimited.
    fn count(&mut self, got: &HostBlob) -> Result<(), ImageError> {
        if let HostBlob::Bytes(bytes) = got {
            self.searched += bytes.len();
        }
        match self.searched > MAX_READ {
            true => Err(self.malformed(format!("it has more than {MAX_READ} bytes"))),
            false => Ok(()),
        }
    }

    /// Reads and parses a document by tag or, verified, by digest.
    fn document(&mut self, reference: &str, digest: Option<&Digest>) -> Result<Option<Document>, ImageError> {
        let got = self.manifest(reference)?;
        self.count(&got)?;
        let bytes = match (got, digest) {
            (HostBlob::Missing, None) => return Ok(None),
            (HostBlob::Bytes(bytes), None) => bytes,
            (HostBlob::TooLarge, None) => return Err(self.malformed("it is too large".to_owned())),
            (got, Some(digest)) => checked(&self.image, "signature", digest, MAX_MANIFEST, got)?,
        };
        Document::parse(&bytes).map(Some).map_err(|problem| self.malformed(problem))
    }
}

/// cosign 2's tag for the signatures of an image.
fn signature_tag(digest: &Digest) -> String {
    format!("{}.sig", fallback_tag(digest))
}

/// The fallback tag of the referrers API.
fn fallback_tag(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}
