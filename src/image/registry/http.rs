//! Requests to one registry: time limits, authorization and redirects.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Request, RequestBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::Mutex;

use crate::image::access::{Access, HttpProxy};
use crate::image::error::RemoteError;
use crate::image::registry::challenge::{Authorization, Challenge};
use crate::image::registry::limits::{CONNECT, SILENCE};
use crate::image::registry::redirects;
use crate::model::credentials::Credential;
use crate::model::registries::is_loopback;
use crate::sys::error::chain;

/// Attempts for one request if the registry is overloaded.
const TRIES: u32 = 3;
/// The pause between the first and the second attempt; it doubles each time.
const PAUSE: Duration = Duration::from_millis(200);

/// One repository of one registry.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    pub(super) http: reqwest::Client,
    /// For other hosts that the registry refers to; without our client certificate.
    foreign: Option<reqwest::Client>,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) plain: bool,
    /// The credential to send if the registry asks for one.
    pub(super) credential: Option<Credential>,
    /// True if we send a client certificate.
    pub(super) identified: bool,
    /// The proxy in use.
    pub(super) proxy: Option<Proxied>,
    /// Locked while a token is fetched, so that concurrent requests do not each fetch one.
    standing: Mutex<RegistryAccess>,
    /// The parent's deadline.
    until: Instant,
    /// What has arrived of the bodies.
    pub(super) arrived: ArrivedBytes,
}

/// How much of the bodies has arrived, and how much was announced.
#[derive(Debug, Default)]
pub(super) struct ArrivedBytes {
    pub arrived: AtomicU64,
    pub announced: AtomicU64,
}

/// What messages may contain about a proxy.
#[derive(Debug)]
pub(super) struct Proxied {
    /// `proxy.example:3128`
    pub host: String,
    /// True if its URL has a user.
    pub login: bool,
}

/// The access that the registry has granted.
#[derive(Debug, Default)]
pub(super) struct RegistryAccess {
    /// The `Authorization` header to send.
    authorization: Option<Authorization>,
    /// True once something was uploaded: a token for reading is then not enough.
    pub(super) pushes: bool,
}

impl RegistryClient {
    /// Sets up TLS, if it is needed, with the system's certificate authorities and the additional `authorities` (PEM).
    pub fn new(
        access: Access,
        authorities: Option<Vec<u8>>,
        identity: Option<Vec<u8>>,
        until: Instant,
    ) -> Result<Self, RemoteError> {
        let Access { host, repository, http: plain, credential, proxy: way, .. } = access;
        let failed = |problem: String| RemoteError::Network { host: host.clone(), what: "a connection".into(), problem };
        // An error would quote the URL, which may hold a password.
        let proxied = way.as_ref().map(|way| proxied(way).ok_or_else(|| failed("the proxy's URL is not valid".to_owned())));
        let proxied = proxied.transpose()?;
        // Without this file the resolver would ask a public name server that the administrator did not choose. A proxy
        // resolves names itself.
        let asked = proxied.as_ref().map_or(host.as_str(), |proxy| &proxy.host);
        if needs_resolver(asked) {
            std::fs::File::open("/etc/resolv.conf").map_err(|err| failed(format!("read /etc/resolv.conf: {err}")))?;
        }
        // Err: a provider is already installed, which is equally good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authorities = authorities.map(|pem| reqwest::Certificate::from_pem_bundle(&pem)).transpose();
        let authorities = authorities.map_err(|err| failed(chain(&err)))?;
        let build = |identity: Option<reqwest::Identity>| {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("bpfman-hook/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .no_proxy()
                .referer(false)
                .redirect(redirect::Policy::none());
            if let Some(way) = &way {
                let proxy = reqwest::Proxy::all(&way.url).map_err(|_| failed("the proxy's URL is not valid".to_owned()))?;
                let not_for = format!("localhost,127.0.0.0/8,::1,{}", way.not_for);
                builder = builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&not_for)));
            } else if plain {
                // No certificate is verified here, and this must not fail on a machine without certificate authorities.
                builder = builder.tls_certs_only([]);
            }
            if let Some(authorities) = &authorities {
                builder = builder.tls_certs_merge(authorities.iter().cloned());
            }
            if let Some(identity) = identity {
                builder = builder.identity(identity);
            }
            builder.build().map_err(|err| failed(explained(chain(&err))))
        };
        let identified = identity.is_some();
        let foreign = if identified { Some(build(None)?) } else { None };
        let wrong = |_| failed("our client certificate and its key are not PEM".to_owned());
        let identity = identity.map(|pem| reqwest::Identity::from_pem(&pem)).transpose().map_err(wrong)?;
        let http = build(identity)?;
        let standing = Mutex::default();
        let arrived = ArrivedBytes::default();
        Ok(Self { http, foreign, host, repository, plain, credential, identified, proxy: proxied, standing, until, arrived })
    }

    /// From now on, tokens must allow writing.
    pub(super) async fn will_push(&self) {
        let mut standing = self.standing.lock().await;
        if !standing.pushes {
            *standing = RegistryAccess { authorization: None, pushes: true };
        }
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, RemoteError> {
        let scheme = if self.plain { "http" } else { "https" };
        // docker.io is a name, not the registry's host.
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        let text = format!("{scheme}://{host}/v2/{}/{path}", self.repository);
        Url::parse(&text).map_err(|err| self.nonsense(&text, err.to_string()))
    }

    /// Sends a request that changes nothing, and repeats it if the registry reports overload: after the registry's
    /// `Retry-After`, and only within the parent's deadline.
    pub(super) async fn ask_patiently(&self, request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
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

    /// Sends a request, and repeats it once with the authorization that the registry asks for.
    pub(super) async fn ask(&self, request: RequestBuilder, what: &str) -> Result<Response, RemoteError> {
        let again = request.try_clone();
        let shown = self.standing.lock().await.authorization.clone();
        let response = self.send(request, shown.as_ref(), what).await?;
        let Some(again) = again.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else { return Ok(response) };
        let mut standing = self.standing.lock().await;
        // Another request may have got a better authorization meanwhile. A token may have expired, so another one is
        // fetched even if we had one.
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
        self.follow(request, true, what).await
    }

    /// Sends a request and follows redirects, within the registry or to another host. Other hosts get neither our
    /// credentials nor our certificate; the first host gets them if it is `known`.
    pub(super) async fn follow(&self, request: RequestBuilder, known: bool, what: &str) -> Result<Response, RemoteError> {
        let mut request = request.build().map_err(|err| self.failed(what, err))?;
        let home = request.url().origin();
        for _ in 0..=redirects::MAX_REDIRECTS {
            let url = request.url().clone();
            let again = request.try_clone();
            let response = self.execute(request, known && url.origin() == home, what).await?;
            let Some(mut on) = again else { return Ok(response) };
            let Some(to) = redirects::target(&url, &response, on.method().is_safe()) else { return Ok(response) };
            redirects::check(&to, self.plain, is_loopback(&self.host)).map_err(|refused| self.stray(refused, what))?;
            if to.origin() != home {
                on.headers_mut().remove(AUTHORIZATION);
            }
            *on.url_mut() = to;
            request = on;
        }
        Err(self.nonsense(what, "it redirects too often".to_owned()))
    }

    /// Sends one request to one host, and once more over a new connection if the first one breaks.
    async fn execute(&self, request: Request, known: bool, what: &str) -> Result<Response, RemoteError> {
        let http = if known { &self.http } else { self.foreign.as_ref().unwrap_or(&self.http) };
        // An upload may take longer.
        let patience = match request.method().is_safe() {
            true => SILENCE,
            false => self.until.saturating_duration_since(Instant::now()),
        };
        let again = request.try_clone().filter(|request| request.method().is_safe());
        let sent = async {
            match (http.execute(request).await, again) {
                (Err(err), Some(again)) if is_broken(&err) => http.execute(again).await,
                (response, _) => response,
            }
        };
        self.within(patience, what, sent).await
    }

    /// Waits for one step of a request, with a time limit.
    pub(super) async fn within<T>(
        &self,
        patience: Duration,
        what: &str,
        step: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, RemoteError> {
        match tokio::time::timeout(patience, step).await {
            Ok(done) => done.map_err(|err| self.failed(what, err)),
            Err(_) => Err(self.silent(what, patience.as_secs())),
        }
    }
}

/// True if a connection broke before the answer: an idle connection may end at any time, or hold more than the previous
/// answer announced. A second connection shows whether the registry always does this.
fn is_broken(err: &reqwest::Error) -> bool {
    err.is_request() && !(err.is_connect() || err.is_timeout() || err.is_redirect() || err.is_builder())
}

/// How long to wait before a request is repeated; None if that would not help.
fn pause(status: StatusCode, headers: &HeaderMap, tries: u32) -> Option<Duration> {
    match status.as_u16() {
        429 | 500 | 502 | 503 | 504 => {}
        _ => return None,
    }
    let said = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Some(said.map_or(PAUSE * tries, Duration::from_secs))
}

/// True if a host is a name that requires a name server: neither an address nor `localhost`.
fn needs_resolver(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    !host.starts_with('[') && name != "localhost" && name.parse::<std::net::Ipv4Addr>().is_err()
}

fn proxied(way: &HttpProxy) -> Option<Proxied> {
    let url = Url::parse(&way.url).ok()?;
    let port = url.port_or_known_default()?;
    Some(Proxied { host: format!("{}:{port}", url.host_str()?), login: !url.username().is_empty() })
}

/// The TLS library's message, reworded if it is about our own configuration.
fn explained(problem: String) -> String {
    match problem.contains("KeyMismatch") {
        true => "our client certificate and its key do not match".to_owned(),
        false => problem,
    }
}
