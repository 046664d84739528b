//! The part of the registry protocol that writes: a blob in one piece, then the manifest that names it.

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode, Url};

use crate::image::error::RemoteError;
use crate::image::registry::http::RegistryClient;
use crate::image::registry::protocol::Put;
use crate::image::registry::redirects;
use crate::model::ids::Digest;
use crate::model::registries::is_loopback;

impl RegistryClient {
    /// Uploads a blob, unless the repository has it or the registry mounts it from another repository.
    pub async fn put_blob(&self, digest: &Digest, from: Option<&str>, bytes: Vec<u8>) -> Result<Put, RemoteError> {
        let what = format!("the upload of blob {digest} to {}", self.repository);
        self.will_push().await;
        let there = self.http.head(self.url(&format!("blobs/{digest}"))?);
        let response = self.ask(there, &what).await?;
        match response.status() {
            StatusCode::OK => return Ok(Put { spared: true, listed: false }),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refused(response, &what).await),
        }
        let mut begin = self.url("blobs/uploads/")?;
        if let Some(from) = from.filter(|from| *from != self.repository) {
            begin.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        }
        let begun = self.ask(self.http.post(begin.clone()), &what).await?;
        match begun.status() {
            StatusCode::CREATED => return Ok(Put { spared: true, listed: false }),
            StatusCode::ACCEPTED => {}
            _ => return Err(self.refused(begun, &what).await),
        }
        let mut to = self.upload_place(&begin, &begun, &what)?;
        to.query_pairs_mut().append_pair("digest", &digest.to_string());
        let ours = to.origin() == begin.origin();
        let request = self.http.put(to).header(CONTENT_TYPE, "application/octet-stream").body(bytes);
        // The token is for the registry only; storage on another host has its own token in the URL.
        let response = match ours {
            true => self.ask(request, &what).await?,
            false => self.follow(request, false, &what).await?,
        };
        match response.status() {
            StatusCode::CREATED => Ok(Put::default()),
            _ => Err(self.refused(response, &what).await),
        }
    }

    /// Uploads a manifest or index.
    pub async fn put_manifest(&self, reference: &str, media_type: &str, bytes: Vec<u8>) -> Result<Put, RemoteError> {
        let what = format!("the upload of manifest {reference} to {}", self.repository);
        self.will_push().await;
        let to = self.url(&format!("manifests/{reference}"))?;
        let response = self.ask(self.http.put(to).header(CONTENT_TYPE, media_type).body(bytes), &what).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Put { spared: false, listed: response.headers().contains_key("oci-subject") }),
            _ => Err(self.refused(response, &what).await),
        }
    }

    /// The URL for the upload.
    fn upload_place(&self, begin: &Url, begun: &Response, what: &str) -> Result<Url, RemoteError> {
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let place = location.and_then(|location| begin.join(location).ok());
        let place = place.ok_or_else(|| self.nonsense(what, "it does not say where to send it".to_owned()))?;
        redirects::check(&place, self.plain, is_loopback(&self.host)).map_err(|refused| self.stray(refused, what))?;
        Ok(place)
    }
}
