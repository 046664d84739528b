//! The part of the registry protocol that reads: github.com/opencontainers/distribution-spec/spec.md.
//!
//! 200 is an answer and 404 means "not found"; every other status is an error, so that a registry that is overloaded or
//! denies access never looks like one without signatures. Bodies are cut off at their limit while they arrive.

use std::sync::atomic::Ordering;

use reqwest::header::{ACCEPT, HeaderMap, LINK};
use reqwest::{Response, StatusCode, Url};

use crate::image::error::RemoteError;
use crate::image::found::MAX_SIGNATURES;
use crate::image::oci::document::Document;
use crate::image::registry::http::RegistryClient;
use crate::image::registry::limits::SILENCE;
use crate::image::registry::protocol::{Referrers, RegistryItem};
use crate::image::{MAX_MANIFEST, MAX_OBJECT};
use crate::model::ids::Digest;

/// The limit on pages of referrers.
const MAX_PAGES: usize = 8;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

impl RegistryClient {
    /// Reads one item; None if it does not exist.
    pub async fn read(&self, want: RegistryItem) -> Result<Option<Vec<u8>>, RemoteError> {
        match want {
            RegistryItem::Manifest { reference } => self.manifest(&reference).await,
            RegistryItem::Blob { digest, max } => self.blob(&digest, max.min(MAX_OBJECT)).await,
            RegistryItem::Referrers { digest } => {
                let list = self.referrers(&digest).await?;
                Ok(list.map(|list| serde_json::to_vec(&list).expect("a list of strings is JSON")))
            }
        }
    }

    /// A manifest or index by tag or digest.
    async fn manifest(&self, reference: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let what = format!("manifest {reference} of {}", self.repository);
        let path = format!("manifests/{reference}");
        Ok(self.get(&self.url(&path)?, MANIFESTS, &what, MAX_MANIFEST).await?.map(|(bytes, _)| bytes))
    }

    /// A blob.
    async fn blob(&self, digest: &Digest, max: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let what = format!("blob {digest} of {}", self.repository);
        let path = format!("blobs/{digest}");
        Ok(self.get(&self.url(&path)?, "*/*", &what, max).await?.map(|(bytes, _)| bytes))
    }

    /// The manifests that refer to an image, from the referrers API; None if the registry does not have that API. All
    /// pages are read without a filter, since filters and artifact types are not reliable.
    async fn referrers(&self, digest: &Digest) -> Result<Option<Referrers>, RemoteError> {
        let what = format!("the signatures of {digest} in {}", self.repository);
        let mut list = Referrers::default();
        let mut next = Some(self.url(&format!("referrers/{digest}"))?);
        let mut pages = 0;
        while let Some(url) = next.take() {
            if pages == MAX_PAGES || list.digests.len() > MAX_SIGNATURES {
                list.more = true;
                break;
            }
            let Some((bytes, headers)) = self.get(&url, MANIFESTS, &what, MAX_MANIFEST).await? else {
                return if pages == 0 { Ok(None) } else { Err(self.nonsense(&what, "a page of it is missing".into())) };
            };
            pages += 1;
            let entries = match Document::parse(&bytes) {
                Ok(Document::Index(entries)) => entries,
                Ok(Document::Manifest(_)) => return Err(self.nonsense(&what, "it is not an index".into())),
                Err(problem) => return Err(self.nonsense(&what, problem)),
            };
            list.digests.extend(entries.iter().map(|entry| entry.written_digest()));
            next = self.next_page(&url, &headers);
        }
        if list.digests.len() > MAX_SIGNATURES {
            list.digests.truncate(MAX_SIGNATURES);
            list.more = true;
        }
        Ok(Some(list))
    }

    /// `Link: </v2/…>; rel="next"`, on the same host only, because our token is sent along.
    fn next_page(&self, url: &Url, headers: &HeaderMap) -> Option<Url> {
        let header = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let target = header.flat_map(|value| value.split(',')).find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').any(|p| p.trim().trim_end_matches('"').replace('"', "") == "rel=next");
            is_next.then_some(target)
        })?;
        url.join(target).ok().filter(|next| next.origin() == url.origin())
    }

    /// GET: 200 is an answer, 404 means "not found", everything else is an error.
    async fn get(&self, url: &Url, accept: &str, what: &str, max: usize) -> Result<Option<(Vec<u8>, HeaderMap)>, RemoteError> {
        let request = self.http.get(url.clone()).header(ACCEPT, accept);
        let response = self.ask_patiently(request, what).await?;
        match response.status() {
            StatusCode::OK => {
                let headers = response.headers().clone();
                Ok(Some((self.body(response, what, max).await?, headers)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(response, what).await),
        }
    }

    /// Reads a body up to its limit. The announced length is used only to refuse a body that is too large.
    pub(super) async fn body(&self, mut response: Response, what: &str, limit: usize) -> Result<Vec<u8>, RemoteError> {
        let too_large = || RemoteError::TooLarge { host: self.host.clone(), what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        self.arrived.announced.fetch_add(response.content_length().unwrap_or_default(), Ordering::Relaxed);
        let mut bytes = Vec::new();
        while let Some(chunk) = self.within(SILENCE, what, response.chunk()).await? {
            self.arrived.arrived.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
