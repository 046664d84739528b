//! The registry protocol as far as reading needs it: github.com/opencontainers/distribution-spec/spec.md.
//!
//! 200 is an answer and 404 says "none"; every other status is an error, so that a registry that is overloaded or denies
//! access never looks like one that has no signatures. Bodies are cut off at their limit while they arrive.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, LINK, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url, redirect};

use crate::image::MAX_MANIFEST;
use crate::image::error::RemoteError;
use crate::image::fetch::auth::{Challenge, Token};
use crate::image::fetch::protocol::Referrers;
use crate::image::manifest::Document;
use crate::image::source::MAX_SIGNATURES;
use crate::model::ids::Digest;

/// For TCP and TLS to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// For the next bytes to arrive.
const READ: Duration = Duration::from_secs(8);
const MAX_REDIRECTS: usize = 5;
/// Pages of referrers that are read.
const MAX_PAGES: usize = 8;
/// Error bodies and tokens.
const MAX_SMALL: usize = 64 << 10;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// One repository of one registry.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) http: reqwest::Client,
    host: String,
    pub(super) repository: String,
    pub(super) plain: bool,
    token: Option<String>,
    /// True once something was put: a token for reading alone does not do.
    pushes: bool,
}

/// Why a redirect was not followed; found again in the chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("it redirects to {0} by plain http")]
struct Downgrade(String);

impl Client {
    /// Sets up TLS with the system's certificate authorities and `authorities` (PEM) besides, where it is needed.
    pub fn new(host: String, repository: String, plain: bool, authorities: Option<&[u8]>) -> Result<Self, RemoteError> {
        let failed = |problem: String| RemoteError::Network { host: host.clone(), what: "a connection".into(), problem };
        // Without this file the resolver would ask a public name server, which nobody here has chosen.
        if needs_resolver(&host) {
            std::fs::File::open("/etc/resolv.conf").map_err(|err| failed(format!("read /etc/resolv.conf: {err}")))?;
        }
        // Err: one is there already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("bpfman-hook/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(READ)
            .no_proxy()
            .referer(false)
            .redirect(redirect::Policy::custom(move |attempt| {
                if attempt.previous().len() > MAX_REDIRECTS {
                    attempt.error("it redirects too often")
                } else if !plain && attempt.url().scheme() != "https" {
                    let to = attempt.url().host_str().unwrap_or_default().to_owned();
                    attempt.error(Downgrade(to))
                } else {
                    attempt.follow()
                }
            }));
        if plain {
            // No certificate is checked, and a machine without any must not fail for it.
            builder = builder.tls_certs_only([]);
        } else if let Some(authorities) = authorities {
            let certificates = reqwest::Certificate::from_pem_bundle(authorities).map_err(|err| failed(chain(&err)))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder.build().map_err(|err| failed(chain(&err)))?;
        Ok(Self { http, host, repository, plain, token: None, pushes: false })
    }

    /// From now on, tokens must allow to write.
    pub(super) fn will_push(&mut self) {
        if !self.pushes {
            (self.pushes, self.token) = (true, None);
        }
    }

    /// A manifest or index by tag or digest.
    pub async fn manifest(&mut self, reference: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let what = format!("manifest {reference} of {}", self.repository);
        let path = format!("manifests/{reference}");
        Ok(self.get(&self.url(&path)?, MANIFESTS, &what, MAX_MANIFEST).await?.map(|(bytes, _)| bytes))
    }

    /// A blob.
    pub async fn blob(&mut self, digest: &Digest, max: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let what = format!("blob {digest} of {}", self.repository);
        let path = format!("blobs/{digest}");
        Ok(self.get(&self.url(&path)?, "*/*", &what, max).await?.map(|(bytes, _)| bytes))
    }

    /// What refers to an image, by the referrers API; None where the registry has no such API. All pages are read, without
    /// filter, since filters and the types that they go by are not reliable.
    pub async fn referrers(&mut self, digest: &Digest) -> Result<Option<Referrers>, RemoteError> {
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
                Ok(Document::Manifest(_)) => return Err(self.nonsense(&what, "it is no index".into())),
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

    /// `Link: </v2/…>; rel="next"`, on the same host only: our token goes along.
    fn next_page(&self, url: &Url, headers: &HeaderMap) -> Option<Url> {
        let header = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let target = header.flat_map(|value| value.split(',')).find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').any(|p| p.trim().trim_end_matches('"').replace('"', "") == "rel=next");
            is_next.then_some(target)
        })?;
        url.join(target).ok().filter(|next| next.origin() == url.origin())
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, RemoteError> {
        let scheme = if self.plain { "http" } else { "https" };
        // docker.io is a name, not a host.
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        let text = format!("{scheme}://{host}/v2/{}/{path}", self.repository);
        Url::parse(&text).map_err(|err| self.nonsense(&text, err.to_string()))
    }

    /// GET with one anonymous token where the registry asks for it.
    async fn get(
        &mut self,
        url: &Url,
        accept: &str,
        what: &str,
        max: usize,
    ) -> Result<Option<(Vec<u8>, HeaderMap)>, RemoteError> {
        let request = self.http.get(url.clone()).header(ACCEPT, accept);
        let response = self.ask(request, what).await?;
        match response.status() {
            StatusCode::OK => {
                let headers = response.headers().clone();
                Ok(Some((self.body(response, what, max).await?, headers)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(response, what).await),
        }
    }

    /// Sends a request, and once more with a token where the registry asks for one.
    pub(super) async fn ask(&mut self, request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
        let again = request.try_clone();
        let had_token = self.token.is_some();
        let response = self.send(request, what).await?;
        match again {
            Some(again) if response.status() == StatusCode::UNAUTHORIZED && !had_token => {
                let header = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
                let Challenge::Bearer { realm, service } = Challenge::parse(header.unwrap_or_default()) else {
                    return Err(self.credentials(what));
                };
                self.token = Some(self.fetch_token(&realm, service.as_deref(), what).await?);
                self.send(again, what).await
            }
            _ => Ok(response),
        }
    }

    async fn send(&self, mut request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.send().await.map_err(|err| self.failed(what, err))
    }

    /// The error that an answer is.
    pub(super) async fn refused(&self, response: Response, what: &str) -> RemoteError {
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return self.credentials(what);
        }
        let message = self.body(response, what, MAX_SMALL).await.map(|body| error_message(&body)).unwrap_or_default();
        RemoteError::Status { host: self.host.clone(), what: what.to_owned(), status: status.as_u16(), message }
    }

    async fn fetch_token(&self, realm: &str, service: Option<&str>, what: &str) -> Result<String, RemoteError> {
        let mut url = Url::parse(realm).map_err(|err| self.nonsense(what, format!("its token service is no URL: {err}")))?;
        if url.scheme() != "https" && !self.plain {
            let to = url.host_str().unwrap_or_default().to_owned();
            return Err(RemoteError::Downgrade { host: self.host.clone(), what: what.to_owned(), to });
        }
        {
            let mut query = url.query_pairs_mut();
            query.append_pair(
                "scope",
                &format!("repository:{}:{}", self.repository, if self.pushes { "pull,push" } else { "pull" }),
            );
            if let Some(service) = service {
                query.append_pair("service", service);
            }
        }
        let response = self.http.get(url).send().await.map_err(|err| self.failed(what, err))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.credentials(what)),
            status => {
                let message = "from its token service".to_owned();
                return Err(RemoteError::Status {
                    host: self.host.clone(),
                    what: what.to_owned(),
                    status: status.as_u16(),
                    message,
                });
            }
        }
        let body = self.body(response, what, MAX_SMALL).await?;
        Token::of(&body).ok_or_else(|| self.nonsense(what, "its token service sends no token".into()))
    }

    /// A body up to its limit. The length that a server announces is believed only where it is too large.
    async fn body(&self, mut response: Response, what: &str, limit: usize) -> Result<Vec<u8>, RemoteError> {
        let too_large = || RemoteError::TooLarge { host: self.host.clone(), what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|err| self.failed(what, err))? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    pub(super) fn failed(&self, what: &str, err: reqwest::Error) -> RemoteError {
        let (host, what) = (self.host.clone(), what.to_owned());
        let err = err.without_url();
        let mut cause: Option<&(dyn Error + 'static)> = Some(&err);
        while let Some(this) = cause {
            if let Some(Downgrade(to)) = this.downcast_ref() {
                return RemoteError::Downgrade { host, what, to: to.clone() };
            }
            cause = this.source();
        }
        let problem = chain(&err);
        // What rustls says of an answer that begins with "HTTP/1.1 400".
        if problem.contains("InvalidContentType") {
            return RemoteError::PlainHttp { host, what };
        }
        RemoteError::Network { host, what, problem }
    }

    fn credentials(&self, what: &str) -> RemoteError {
        RemoteError::Credentials { host: self.host.clone(), what: what.to_owned() }
    }

    pub(super) fn nonsense(&self, what: &str, problem: String) -> RemoteError {
        RemoteError::Nonsense { host: self.host.clone(), what: what.to_owned(), problem }
    }
}

/// True where a host is a name that some name server has to know: neither an address nor `localhost`.
fn needs_resolver(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    !host.starts_with('[') && name != "localhost" && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// The causes of an error, without repetitions.
pub(crate) fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(this) = cause {
        let this_text = this.to_string();
        if !text.contains(&this_text) {
            text = format!("{text}: {this_text}");
        }
        cause = this.source();
    }
    text.chars().take(600).collect()
}

/// The first error of an error body, cut to what fits into a message.
fn error_message(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let first = parsed.as_ref().and_then(|body| body.get("errors")?.get(0));
    let field = |key: &str| first.and_then(|first| first.get(key)?.as_str()).unwrap_or_default();
    let text = format!("{} {}", field("code"), field("message"));
    text.trim().chars().filter(|c| !c.is_control()).take(160).collect()
}
