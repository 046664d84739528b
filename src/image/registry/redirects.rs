//! Which hosts a registry may refer us to: redirects and token services.

use std::net::IpAddr;

use reqwest::header::LOCATION;
use reqwest::{Response, StatusCode, Url};

pub(crate) const MAX_REDIRECTS: usize = 5;

/// A host that we refuse to contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// From https to http.
    Downgrade(String),
    /// To a local or link-local address.
    Inward(String),
}

/// Checks one target of a registry that is reached over https, or over plain http. Names are not resolved here: a name
/// that points to this machine is not caught, but what comes back is hashed and never shown.
pub(crate) fn check(url: &Url, plain: bool, from_loopback: bool) -> Result<(), Refused> {
    let host = url.host_str().unwrap_or_default().to_owned();
    match url.scheme() {
        "https" => {}
        "http" if plain => {}
        _ => return Err(Refused::Downgrade(host)),
    }
    if !from_loopback && is_inward(&host) { Err(Refused::Inward(host)) } else { Ok(()) }
}

/// The target of a redirect, if the answer is one. A request that changes something keeps its method, or is not
/// redirected. A user and password in the target URL are dropped.
pub(crate) fn target(from: &Url, response: &Response, safe: bool) -> Option<Url> {
    match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if safe => {}
        _ => return None,
    }
    let mut to = from.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    // Err: a URL that cannot have any.
    let _ = to.set_username("").and_then(|()| to.set_password(None));
    Some(to)
}

/// True for loopback, link-local (where clouds serve their metadata) and unspecified addresses of both families.
fn is_inward(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        Ok(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_lead_to_local_addresses_or_plain_http() {
        for (url, plain, loopback, ok) in [
            ("https://cdn.example/x", false, false, true),
            ("https://10.0.0.1/x", false, false, true),
            ("http://cdn.example/x", false, false, false),
            ("http://cdn.example/x", true, false, true),
            ("ftp://cdn.example/x", true, false, false),
            ("https://127.0.0.1/x", false, false, false),
            ("https://127.0.0.1/x", false, true, true),
            ("http://169.254.169.254/latest", true, false, false),
            ("https://[::1]:1/x", false, false, false),
            ("https://[fe80::1]/x", false, false, false),
            ("https://[::ffff:127.0.0.1]/x", false, false, false),
            ("https://0.0.0.0/x", false, false, false),
            ("https://2130706433/x", false, false, false),
            ("https://localhost/x", false, false, false),
            ("https://a.localhost./x", false, false, false),
        ] {
            assert_eq!(check(&Url::parse(url).unwrap(), plain, loopback).is_ok(), ok, "{url} {plain} {loopback}");
        }
    }
}
