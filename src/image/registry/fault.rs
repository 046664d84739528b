//! Turns failed requests and unexpected answers into errors with a remedy.

use std::error::Error;
use std::io;

use reqwest::{Response, StatusCode};
use rustls::{AlertDescription, InvalidMessage};

use crate::image::error::RemoteError;
use crate::image::registry::http::RegistryClient;
use crate::image::registry::limits::{CONNECT, MAX_SMALL};
use crate::image::registry::redirects::Refused;
use crate::sys::error::chain;

/// What servers that require TLS answer to plain http: Go's, nginx, Apache.
const WANTS_TLS: [&str; 3] = ["to an HTTPS server", "to HTTPS port", "to an SSL-enabled server"];

impl RegistryClient {
    /// The error for an answer with an unexpected status.
    pub(super) async fn refused(&self, response: Response, what: &str) -> RemoteError {
        let status = response.status();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return self.credentials(what),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => return self.proxy_login(what),
            _ => {}
        }
        let body = self.body(response, what, MAX_SMALL).await.unwrap_or_default();
        let (host, what) = (self.host.clone(), what.to_owned());
        let text = String::from_utf8_lossy(&body);
        if self.plain && status == StatusCode::BAD_REQUEST && WANTS_TLS.iter().any(|words| text.contains(words)) {
            return RemoteError::WantsTls { host, what };
        }
        RemoteError::Status { host, what, status: status.as_u16(), message: error_message(&body) }
    }

    /// The error for a request without an answer.
    pub(super) fn failed(&self, what: &str, err: reqwest::Error) -> RemoteError {
        let (timeout, connect) = (err.is_timeout(), err.is_connect());
        // The URL of a redirect may hold a token.
        let err = err.without_url();
        let problem = chain(&err);
        let host = || self.host.clone();
        let said = what.to_owned();
        if timeout {
            return self.silent(what, CONNECT.as_secs());
        }
        if let Some(tls) = tls_error(&err) {
            return match tls {
                // What rustls reports for an answer that begins with "HTTP/1.1 400".
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                    RemoteError::PlainHttp { host: host(), what: said }
                }
                rustls::Error::InvalidCertificate(_) => {
                    let problem = tls.to_string().trim_start_matches("invalid peer certificate: ").to_owned();
                    RemoteError::Certificate { host: host(), what: said, problem }
                }
                rustls::Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
                    RemoteError::ClientCertificate { host: host(), what: said, shown: self.identified }
                }
                _ => RemoteError::Network { host: host(), what: said, problem },
            };
        }
        if problem.contains("proxy authorization required") {
            return self.proxy_login(what);
        }
        if let Some(proxy) = self.proxy.as_ref().filter(|_| connect) {
            let words = match problem.split_once("tunnel error: ").map(|(_, words)| words) {
                Some("unsuccessful") => "the proxy refuses the connection".to_owned(),
                Some("unexpected end of file") => "the proxy closes the connection".to_owned(),
                _ => problem,
            };
            return RemoteError::Proxy { host: host(), what: said, said: format!("{}: {words}", proxy.host) };
        }
        if self.plain && problem.contains("invalid HTTP") {
            return RemoteError::WantsTls { host: host(), what: said };
        }
        if connect && self.host == "localhost" {
            return RemoteError::LocalStorage { what: said, problem };
        }
        RemoteError::Network { host: host(), what: said, problem }
    }

    fn proxy_login(&self, what: &str) -> RemoteError {
        let (host, what) = (self.host.clone(), what.to_owned());
        let Some(proxy) = &self.proxy else {
            // A registry that answers 407, as if it were a proxy.
            return RemoteError::Status { host, what, status: 407, message: String::new() };
        };
        let problem = match proxy.login {
            true => "the proxy refuses the user and password in its url; correct them",
            false => "the proxy requires a user and password; write them into its url, http://user:password@host:port",
        };
        RemoteError::Proxy { host, what, said: format!("{}: {problem}", proxy.host) }
    }

    pub(super) fn silent(&self, what: &str, seconds: u64) -> RemoteError {
        RemoteError::Silent { host: self.host.clone(), what: what.to_owned(), seconds }
    }

    pub(super) fn credentials(&self, what: &str) -> RemoteError {
        RemoteError::Credentials { host: self.host.clone(), what: what.to_owned(), shown: self.credential.is_some() }
    }

    /// The error for a host that the registry refers to and that we refuse to contact.
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

/// The TLS error among the causes. An [`io::Error`] hides what it holds from [`Error::source`].
fn tls_error<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(err);
    while let Some(this) = cause {
        if let Some(tls) = this.downcast_ref() {
            return Some(tls);
        }
        let held = this.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => this.source(),
        };
    }
    None
}

/// The alerts of servers that check a client's certificate or require one.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// The first error of an error body, truncated to fit into a message.
fn error_message(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let first = parsed.as_ref().and_then(|body| body.get("errors")?.get(0));
    let field = |key: &str| first.and_then(|first| first.get(key)?.as_str()).unwrap_or_default();
    let text = format!("{} {}", field("code"), field("message"));
    text.trim().chars().filter(|c| !c.is_control()).take(160).collect()
}
