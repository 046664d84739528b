//! Prefetching: what will be requested next is fetched together with the current request, so that an image takes a few
//! round trips instead of one for each part.
//!
//! The callers are not aware of it. Prefetched answers are held here, unread, until they are requested; the others are
//! dropped.

use std::collections::{BTreeMap, BTreeSet};

use crate::image::cache::{Blob, Cache};
use crate::image::error::ImageError;
use crate::image::host::HostBlob;
use crate::image::oci::document::{Choice, Document, choose, goarch};
use crate::image::registry::protocol::RegistryItem;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};
use crate::model::ids::Digest;

/// The limit on prefetched items, so that little is held here. Further items are fetched when they are requested.
pub(crate) const MAX_AT_ONCE: usize = 32;

/// Expected requests, and prefetched answers.
#[derive(Debug, Default)]
pub(crate) struct Prefetch {
    wanted: Vec<RegistryItem>,
    arrived: BTreeMap<RegistryItem, Result<HostBlob, ImageError>>,
    /// If there is a cache: cached items are not prefetched, but the items that cached documents of the image list are.
    cache: Option<Cache>,
    /// The parts of the image that are requested.
    parts: BTreeSet<Digest>,
}

impl Prefetch {
    /// Registers an expected request.
    pub fn expect(&mut self, wanted: RegistryItem) {
        let known = self.wanted.contains(&wanted) || self.arrived.contains_key(&wanted);
        if !known && self.wanted.len() < MAX_AT_ONCE {
            self.wanted.push(wanted);
        }
    }

    /// Registers that everything of an image that is not cached will be requested.
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

    /// A prefetched answer.
    pub fn take(&mut self, wanted: &RegistryItem) -> Option<Result<HostBlob, ImageError>> {
        self.arrived.remove(wanted)
    }

    /// Everything to fetch together with `now`, which is then no longer expected.
    pub fn beside(&mut self, now: &RegistryItem) -> Vec<RegistryItem> {
        self.wanted.retain(|wanted| wanted != now);
        std::mem::take(&mut self.wanted)
    }

    /// Evaluates an answer: a document of the image lists what comes next.
    pub fn learn(&mut self, wanted: &RegistryItem, answer: &Result<HostBlob, ImageError>) {
        if let (RegistryItem::Manifest { .. }, Ok(HostBlob::Bytes(document))) = (wanted, answer)
            && self.parts.contains(&hash(document))
        {
            self.expect_below(document);
        }
    }

    /// Holds a prefetched answer.
    pub fn arrived(&mut self, wanted: RegistryItem, answer: Result<HostBlob, ImageError>) {
        self.arrived.insert(wanted, answer);
    }

    /// Stores the prefetched parts of the image in the cache, so that they need not be fetched again: for an accepted
    /// image whose parts are not requested because another part is missing.
    pub fn keep(&mut self) {
        let Some(cache) = &self.cache else { return };
        for answer in std::mem::take(&mut self.arrived).into_values() {
            if let Ok(HostBlob::Bytes(bytes)) = answer
                && self.parts.contains(&hash(&bytes))
                && let Err(err) = cache.keep(&bytes)
            {
                tracing::warn!(error = &err as &dyn std::error::Error, "part of an image not stored in the image cache");
            }
        }
    }
}

/// What is probably requested after a document of the image, which has not been verified yet. Several layers are not
/// included: they may be large, and an image with one object has one.
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
