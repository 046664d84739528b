//! Requests to one registry: how long they may take, what goes along with them, where they are sent on to.

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

/// Tries of one request, where the registry is overloaded.
const TRIES: u32 = 3;
/// Between the first and the second; then twice that.
const PAUSE: Duration = Duration::from_millis(200);

/// One repository of one registry.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    pub(super) http: reqwest::Client,
    /// For other hosts that the registry sends us to: our certificate is none of their business.
    foreign: Option<reqwest::Client>,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) plain: bool,
    /// What is shown where the registry asks for it.
    pub(super) credential: Option<Credential>,
    /// True where we show a certificate.
    pub(super) identified: bool,
    /// The proxy that requests go through.
    pub(super) proxy: Option<Proxied>,
    /// Held while a token is fetched, so that requests that run at once do not fetch one each.
    standing: Mutex<RegistryAccess>,
    /// When the parent gives up.
    until: Instant,
}

/// What may be told of a proxy.
#[derive(Debug)]
pub(super) struct Proxied {
    /// `proxy.example:3128`
    pub host: String,
    /// True where its URL has a user.
    pub login: bool,
}

/// What the registry lets us do.
#[derive(Debug, Default)]
pub(super) struct RegistryAccess {
    /// What goes along with requests now.
    authorization: Option<Authorization>,
    /// True once something was put: a token for reading alone does not do.
    pub(super) pushes: bool,
}

impl RegistryClient {
    /// Sets up TLS with the system's certificate authorities and `authorities` (PEM) besides, where it is needed.
    pub fn new(
        access: Access,
        authorities: Option<Vec<u8>>,
        identity: Option<Vec<u8>>,
        until: Instant,
    ) -> Result<Self, RemoteError> {
        let Access { host, repository, http: plain, credential, proxy: way, .. } = access;
        let failed = |problem: String| RemoteError::Network { host: host.clone(), what: "a connection".into(), problem };
        // What an error would quote is the URL, and that may hold a password.
        let proxied = way.as_ref().map(|way| proxied(way).ok_or_else(|| failed("the proxy's URL is none".to_owned())));
        let proxied = proxied.transpose()?;
        // Without this file the resolver would ask a public name server, which nobody here has chosen. A proxy knows names itself.
        let asked = proxied.as_ref().map_or(host.as_str(), |proxy| &proxy.host);
        if needs_resolver(asked) {
            std::fs::File::open("/etc/resolv.conf").map_err(|err| failed(format!("read /etc/resolv.conf: {err}")))?;
        }
        // Err: one is there already, which is as good.
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
                let proxy = reqwest::Proxy::all(&way.url).map_err(|_| failed("the proxy's URL is none".to_owned()))?;
                let not_for = format!("localhost,127.0.0.0/8,::1,{}", way.not_for);
                builder = builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&not_for)));
            } else if plain {
                // No certificate is checked, and a machine without any must not fail for it.
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
        Ok(Self { http, foreign, host, repository, plain, credential, identified, proxy: proxied, standing, until })
    }

    /// From now on, tokens must allow to write.
    pub(super) async fn will_push(&self) {
        let mut standing = self.standing.lock().await;
        if !standing.pushes {
            *standing = RegistryAccess { authorization: None, pushes: true };
        }
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, RemoteError> {
        let scheme = if self.plain { "http" } else { "https" };
        // docker.io is a name, not a host.
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        let text = format!("{scheme}://{host}/v2/{}/{path}", self.repository);
        Url::parse(&text).map_err(|err| self.nonsense(&text, err.to_string()))
    }

    /// Sends a request that changes nothing, and again where the registry says that it is overloaded: no longer than the parent
    /// waits, and when the registry says that it may.
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
        self.follow(request, true, what).await
    }

    /// Sends a request to where the registry wants it: to itself, or on to another host, where neither credentials nor our
    /// certificate go along. They do to the first one, where it is `known`.
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

    /// Sends one request to one host, and once more over a new connection where the first one breaks.
    async fn execute(&self, request: Request, known: bool, what: &str) -> Result<Response, RemoteError> {
        let http = if known { &self.http } else { self.foreign.as_ref().unwrap_or(&self.http) };
        // What is put may take its time on the way.
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

    /// Waits for a step of a request.
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

fn proxied(way: &HttpProxy) -> Option<Proxied> {
    let url = Url::parse(&way.url).ok()?;
    let port = url.port_or_known_default()?;
    Some(Proxied { host: format!("{}:{port}", url.host_str()?), login: !url.username().is_empty() })
}

/// The TLS library's words, where they are ours to explain.
fn explained(problem: String) -> String {
    match problem.contains("KeyMismatch") {
        true => "our client certificate and its key do not belong together".to_owned(),
        false => problem,
    }
}
