//! What will be asked for next: it travels together with what is asked for now, so that an image costs a few round trips and not one for
//! each of its parts.
//!
//! Who asks need not know of it. What came early waits here, unread, until somebody asks for it; what nobody asks for is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use crate::image::cache::{Blob, Cache};
use crate::image::error::ImageError;
use crate::image::host::HostBlob;
use crate::image::oci::document::{Choice, Document, choose, goarch};
use crate::image::registry::protocol::RegistryItem;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;

/// The most that is expected at once, so that what waits here stays small. What is beyond is asked for when it is needed.
pub(crate) const MAX_AT_ONCE: usize = 32;

/// Questions to come, and answers that came before them.
#[derive(Debug, Default)]
pub(crate) struct Prefetch {
    wanted: Vec<RegistryItem>,
    arrived: BTreeMap<RegistryItem, Result<HostBlob, ImageError>>,
    /// Where there is a cache: what is in it is not asked for, and what documents of the image name is.
    cache: Option<Cache>,
    /// The parts of the image that are asked for.
    parts: BTreeSet<Digest>,
}

impl Prefetch {
    /// Notes what will be asked for.
    pub fn expect(&mut self, wanted: RegistryItem) {
        let known = self.wanted.contains(&wanted) || self.arrived.contains_key(&wanted);
        if !known && self.wanted.len() < MAX_AT_ONCE {
            self.wanted.push(wanted);
        }
    }

    /// Notes that all of an image will be asked for that is not in the cache.
    pub fn expect_image(&mut self, cache: &Cache, top: &[u8]) {
        self.cache = Some(cache.clone());
        self.expect_below(top);
    }

    fn expect_below(&mut self, document: &[u8]) {
        for (wanted, digest) in below(document) {
            let is_document = matches!(wanted, RegistryItem::Manifest { .. });
            match self.kept(&digest) {
                Some(document) if is_document => self.expect_below(&document),
                Some(_) => {}
                None => {
                    self.parts.insert(digest);
                    self.expect(wanted);
                }
            }
        }
    }

    fn kept(&self, digest: &Digest) -> Option<Vec<u8>> {
        let reader = self.cache.as_ref()?.reader().ok()??;
        match reader.blob(digest) {
            Ok(Blob::Whole(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// What came early.
    pub fn take(&mut self, wanted: &RegistryItem) -> Option<Result<HostBlob, ImageError>> {
        self.arrived.remove(wanted)
    }

    /// Everything that is to be asked for beside `now`, which is no longer to come.
    pub fn beside(&mut self, now: &RegistryItem) -> Vec<RegistryItem> {
        self.wanted.retain(|wanted| wanted != now);
        std::mem::take(&mut self.wanted)
    }

    /// Learns from an answer: a document of the image says what comes after it.
    pub fn learn(&mut self, wanted: &RegistryItem, answer: &Result<HostBlob, ImageError>) {
        if let (RegistryItem::Manifest { .. }, Ok(HostBlob::Bytes(document))) = (wanted, answer)
            && self.parts.contains(&hash(document))
        {
            self.expect_below(document);
        }
    }

    /// Keeps an answer that came early.
    pub fn arrived(&mut self, wanted: RegistryItem, answer: Result<HostBlob, ImageError>) {
        self.arrived.insert(wanted, answer);
    }

    /// Puts the parts of the image that came early into the cache, so that they need not come again: for an image that is judged, and
    /// that nobody asks for because another part did not come.
    pub fn keep(&mut self) {
        let Some(cache) = &self.cache else { return };
        for answer in std::mem::take(&mut self.arrived).into_values() {
            if let Ok(HostBlob::Bytes(bytes)) = answer
                && self.parts.contains(&hash(&bytes))
                && let Err(err) = cache.keep(&bytes)
            {
                tracing::warn!(error = &err as &dyn std::error::Error, "part of an image not kept in the image cache");
            }
        }
    }
}

/// What will be asked for after a document of the image; a guess, since nothing of it is judged yet. Of several layers it does not
/// speak: they may be large, and of an image with one object there is one.
fn below(document: &[u8]) -> Vec<(RegistryItem, Digest)> {
    match Document::parse(document) {
        Ok(Document::Index(entries)) => match choose(&entries, goarch()) {
            Choice::Entry(entry) => {
                let digest = entry.digest().ok();
                digest.map(|digest| (RegistryItem::Manifest { reference: digest.to_string() }, digest)).into_iter().collect()
            }
            Choice::Nothing(_) => Vec::new(),
        },
        Ok(Document::Manifest(manifest)) => {
            let config = manifest.image_config().map(|config| (config, MAX_MANIFEST));
            let layer = Some(&manifest.layers).filter(|layers| layers.len() == 1).map(|layers| (&layers[0], MAX_OBJECT));
            let parts = config.into_iter().chain(layer);
            parts
                .filter_map(|(part, max)| part.digest().ok().map(|digest| (RegistryItem::Blob { digest, max }, digest)))
                .collect()
        }
        Err(_) => Vec::new(),
    }
}
