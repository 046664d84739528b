//! The registry protocol as far as reading needs it: github.com/opencontainers/distribution-spec/spec.md.
//!
//! 200 is an answer and 404 says "none"; every other status is an error, so that a registry that is overloaded or denies
//! access never looks like one that has no signatures. Bodies are cut off at their limit while they arrive.

use std::error::Error;
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, HeaderMap, LINK, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use tokio::sync::Mutex;

use crate::image::access::Access;
use crate::image::error::RemoteError;
use crate::image::fetch::auth::{Authorization, Challenge};
use crate::image::fetch::bounds::{self, Refused};
use crate::image::fetch::protocol::{Referrers, Wanted};
use crate::image::manifest::Document;
use crate::image::source::MAX_SIGNATURES;
use crate::image::{MAX_MANIFEST, MAX_OBJECT};
use crate::model::credentials::Credential;
use crate::model::ids::Digest;

/// For TCP and TLS to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// For the next bytes to arrive.
const READ: Duration = Duration::from_secs(8);
/// Pages of referrers that are read.
const MAX_PAGES: usize = 8;
/// Error bodies and tokens.
pub(super) const MAX_SMALL: usize = 64 << 10;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// Tries of one request, where the registry is overloaded.
const TRIES: u32 = 3;
/// Between the first and the second; then twice that.
const PAUSE: Duration = Duration::from_millis(200);

/// One repository of one registry.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) http: reqwest::Client,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) plain: bool,
    /// What is shown where the registry asks for it.
    pub(super) credential: Option<Credential>,
    /// Held while a token is fetched, so that requests that run at once do not fetch one each.
    standing: Mutex<Standing>,
    /// When the parent gives up.
    until: Instant,
}

/// What the registry lets us do.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What goes along with requests now.
    authorization: Option<Authorization>,
    /// True once something was put: a token for reading alone does not do.
    pub(super) pushes: bool,
}

impl Client {
    /// Sets up TLS with the system's certificate authorities and `authorities` (PEM) besides, where it is needed.
    pub fn new(
        access: Access,
        authorities: Option<Vec<u8>>,
        identity: Option<Vec<u8>>,
        until: Instant,
    ) -> Result<Self, RemoteError> {
        let Access { host, repository, http: plain, credential, proxy, .. } = access;
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
            .redirect(bounds::policy(plain, &host));
        if let Some(way) = proxy {
            // Its words would quote the URL, and that may hold a password.
            let proxy = reqwest::Proxy::all(&way.url).map_err(|_| failed("the proxy's URL is none".to_owned()))?;
            let not_for = format!("localhost,127.0.0.0/8,::1,{}", way.not_for);
            builder = builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&not_for)));
        } else if plain {
            // No certificate is checked, and a machine without any must not fail for it.
            builder = builder.tls_certs_only([]);
        }
        if let Some(authorities) = authorities {
            let certificates = reqwest::Certificate::from_pem_bundle(&authorities).map_err(|err| failed(chain(&err)))?;
            builder = builder.tls_certs_merge(certificates);
        }
        if let Some(identity) = identity {
            let wrong = |_| failed("our client certificate and its key are not PEM".to_owned());
            builder = builder.identity(reqwest::Identity::from_pem(&identity).map_err(wrong)?);
        }
        let http = builder.build().map_err(|err| failed(chain(&err)))?;
        Ok(Self { http, host, repository, plain, credential, standing: Mutex::default(), until })
    }

    /// From now on, tokens must allow to write.
    pub(super) async fn will_push(&self) {
        let mut standing = self.standing.lock().await;
        if !standing.pushes {
            *standing = Standing { authorization: None, pushes: true };
        }
    }

    /// Reads one thing; None where there is no such thing.
    pub async fn read(&self, want: Wanted) -> Result<Option<Vec<u8>>, RemoteError> {
        match want {
            Wanted::Manifest { reference } => self.manifest(&reference).await,
            Wanted::Blob { digest, max } => self.blob(&digest, max.min(MAX_OBJECT)).await,
            Wanted::Referrers { digest } => {
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

    /// What refers to an image, by the referrers API; None where the registry has no such API. All pages are read, without
    /// filter, since filters and the types that they go by are not reliable.
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

    /// GET: 200 is an answer, 404 says "none", everything else is an error.
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

    /// Sends a request that changes nothing, and again where the registry says that it is overloaded: no longer than the parent
    /// waits, and when the registry says that it may.
    async fn ask_patiently(&self, request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
        let mut tries = 1;
        loop {
            let again = request.try_clone().expect("a request without a body can be sent twice");
            let response = self.ask(again, what).await?;
            let wait = pause(response.status(), response.headers(), tries);
            let left = self.until.saturating_duration_since(Instant::now());
            match wait.filter(|wait| tries < TRIES && *wait < left) {
                None => return Ok(response),
                Some(wait) => tokio::time::sleep(wait).await,
            }
            tries += 1;
        }
    }

    /// Sends a request, and once more with what the registry asks for.
    pub(super) async fn ask(&self, request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
        let again = request.try_clone();
        let shown = self.standing.lock().await.authorization.clone();
        let response = self.send(request, shown.as_ref(), what).await?;
        let Some(again) = again.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else { return Ok(response) };
        let mut standing = self.standing.lock().await;
        // Another request may have got something better meanwhile. A token may have run out, so another one is fetched even
        // where we had one.
        if standing.authorization == shown {
            let headers = response.headers().get_all(WWW_AUTHENTICATE);
            let challenges: Vec<_> = headers.iter().filter_map(|value| value.to_str().ok()).map(Challenge::parse).collect();
            match self.answer_to(&challenges, standing.pushes, what).await? {
                Some(answer) if standing.authorization.as_ref() != Some(&answer) => standing.authorization = Some(answer),
                _ => return Ok(response),
            }
        }
        let shown = standing.authorization.clone();
        drop(standing);
        self.send(again, shown.as_ref(), what).await
    }

    async fn send(
        &self,
        mut request: RequestBuilder,
        shown: Option<&Authorization>,
        what: &str,
    ) -> Result<Response, RemoteError> {
        request = match shown {
            None => request,
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            Some(Authorization::Basic { user, password }) => request.basic_auth(user, Some(password)),
        };
        let (http, request) = request.build_split();
        let request = request.map_err(|err| self.failed(what, err))?;
        let again = request.try_clone().filter(|request| request.method().is_safe());
        let response = match (http.execute(request).await, again) {
            (Err(err), Some(again)) if is_broken(&err) => http.execute(again).await,
            (response, _) => response,
        };
        response.map_err(|err| self.failed(what, err))
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

    /// A body up to its limit. The length that a server announces is believed only where it is too large.
    pub(super) async fn body(&self, mut response: Response, what: &str, limit: usize) -> Result<Vec<u8>, RemoteError> {
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
            if let Some(refused) = this.downcast_ref::<Refused>() {
                return self.stray(refused.clone(), &what);
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

    pub(super) fn credentials(&self, what: &str) -> RemoteError {
        RemoteError::Credentials { host: self.host.clone(), what: what.to_owned(), shown: self.credential.is_some() }
    }

    /// The error for a place that we are sent to and do not go.
    pub(super) fn stray(&self, refused: Refused, what: &str) -> RemoteError {
        let (host, what) = (self.host.clone(), what.to_owned());
        match refused {
            Refused::Downgrade(to) => RemoteError::Downgrade { host, what, to },
            Refused::Inward(to) => RemoteError::Inward { host, what, to },
        }
    }

    pub(super) fn nonsense(&self, what: &str, problem: String) -> RemoteError {
        RemoteError::Nonsense { host: self.host.clone(), what: what.to_owned(), problem }
    }
}

/// True where a connection did not last until the answer: one that was kept may end at any time, or hold more than the answer
/// before announced. Another connection tells whether it is the registry's habit.
fn is_broken(err: &reqwest::Error) -> bool {
    err.is_request() && !(err.is_connect() || err.is_timeout() || err.is_redirect() || err.is_builder())
}

/// How long to wait before a request is sent again; None where that would not help.
fn pause(status: StatusCode, headers: &HeaderMap, tries: u32) -> Option<Duration> {
    match status.as_u16() {
        429 | 500 | 502 | 503 | 504 => {}
        _ => return None,
    }
    let said = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Some(said.map_or(PAUSE * tries, Duration::from_secs))
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
