//! Basic credentials and tokens: distribution.github.io/distribution/spec/auth/token and /oauth. Public registries
//! (ghcr.io, quay.io, docker.io) require a token even for public images.
//!
//! Credentials are sent to the registry, and over TLS to the token service that it names; never to the target of a
//! redirect.

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::image::error::RemoteError;
use crate::image::registry::challenge::{Authorization, Challenge};
use crate::image::registry::http::RegistryClient;
use crate::image::registry::limits::{MAX_SMALL, SILENCE};
use crate::image::registry::redirects;
use crate::model::credentials::Credential;
use crate::model::registries::is_loopback;

/// The answer of a token service.
#[derive(Deserialize)]
pub(crate) struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenResponse {
    /// The token under either of its names (OAuth 2 has the second).
    pub fn of(json: &[u8]) -> Option<String> {
        let token: Self = serde_json::from_slice(json).ok()?;
        token.token.or(token.access_token).filter(|token| !token.is_empty())
    }
}

impl RegistryClient {
    /// The answer to a registry's challenges; None if we have none.
    pub(super) async fn answer_to(
        &self,
        challenges: &[Challenge],
        pushes: bool,
        what: &str,
    ) -> Result<Option<Authorization>, RemoteError> {
        for challenge in challenges {
            if let Challenge::Bearer { realm, service } = challenge {
                return self.fetch_token(realm, service.as_deref(), pushes, what).await.map(Authorization::Bearer).map(Some);
            }
        }
        Ok(match &self.credential {
            Some(Credential::Login { user, password }) if challenges.contains(&Challenge::Basic) => {
                Some(Authorization::Basic { user: user.clone(), password: password.clone() })
            }
            _ => None,
        })
    }

    async fn fetch_token(&self, realm: &str, service: Option<&str>, pushes: bool, what: &str) -> Result<String, RemoteError> {
        let mut url = Url::parse(realm)
            .map_err(|err| self.nonsense(what, format!("the URL of its token service is not valid: {err}")))?;
        let plain = self.plain && self.may_be_plain(&url);
        redirects::check(&url, plain, is_loopback(&self.host)).map_err(|refused| self.stray(refused, what))?;
        let scope = format!("repository:{}:{}", self.repository, if pushes { "pull,push" } else { "pull" });
        let request = match &self.credential {
            Some(Credential::Identity(token)) => {
                let mut form = Url::parse("form:").expect("a scheme is a URL");
                let fields = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "bpfman-hook"),
                    ("refresh_token", token),
                    ("scope", &scope),
                ];
                form.query_pairs_mut().extend_pairs(fields);
                if let Some(service) = service {
                    form.query_pairs_mut().append_pair("service", service);
                }
                let body = form.query().unwrap_or_default().to_owned();
                self.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(body)
            }
            login => {
                url.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                match login {
                    Some(Credential::Login { user, password }) => self.http.get(url).basic_auth(user, Some(password)),
                    _ => self.http.get(url),
                }
            }
        };
        // A redirect would take a refresh token in a form along.
        let response = match &self.credential {
            Some(Credential::Identity(_)) => self.within(SILENCE, what, request.send()).await?,
            _ => self.follow(request, true, what).await?,
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.credentials(what)),
            status => {
                let (host, what, message) = (self.host.clone(), what.to_owned(), "from its token service".to_owned());
                return Err(RemoteError::Status { host, what, status: status.as_u16(), message });
            }
        }
        let body = self.body(response, what, MAX_SMALL).await?;
        TokenResponse::of(&body).ok_or_else(|| self.nonsense(what, "its token service sent no token".into()))
    }

    /// True for the hosts that may be reached over plain http if the registry is: the registry's own host on any port,
    /// and this machine.
    fn may_be_plain(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let own = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        host == own || host == self.host || is_loopback(host) || self.credential.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_two_names() {
        assert_eq!(TokenResponse::of(br#"{"token":"a","expires_in":60}"#).as_deref(), Some("a"));
        assert_eq!(TokenResponse::of(br#"{"access_token":"b"}"#).as_deref(), Some("b"));
        assert_eq!(TokenResponse::of(br#"{"token":""}"#), None);
        assert_eq!(TokenResponse::of(b"<html>"), None);
    }
}
