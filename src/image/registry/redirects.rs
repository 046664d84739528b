//! Where a registry may send us: redirects and token services.

use std::net::IpAddr;

use reqwest::header::LOCATION;
use reqwest::{Response, StatusCode, Url};

pub(crate) const MAX_REDIRECTS: usize = 5;

/// Where we are sent to and do not go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// From https to http.
    Downgrade(String),
    /// To an address of this machine or its link.
    Inward(String),
}

/// Checks one target of a registry that is spoken to by https, or not. Names are not looked up here: a name that leads to this
/// machine is caught by nothing, but what comes back is hashed and shown to nobody.
pub(crate) fn check(url: &Url, plain: bool, from_loopback: bool) -> Result<(), Refused> {
    let host = url.host_str().unwrap_or_default().to_owned();
    match url.scheme() {
        "https" => {}
        "http" if plain => {}
        _ => return Err(Refused::Downgrade(host)),
    }
    if !from_loopback && is_inward(&host) { Err(Refused::Inward(host)) } else { Ok(()) }
}

/// Where an answer sends us on to, if it does. A request that changes something stays what it is, or is not sent on. A user and password
/// in the address are not ours to show.
pub(crate) fn target(from: &Url, response: &Response, safe: bool) -> Option<Url> {
    match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if safe => {}
        _ => return None,
    }
    let mut to = from.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    // Err: an address that cannot have any.
    let _ = to.set_username("").and_then(|()| to.set_password(None));
    Some(to)
}

/// Loopback, link-local (where clouds keep their metadata) and unspecified addresses, in either family.
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
    fn strangers_do_not_send_us_inward_or_down() {
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
