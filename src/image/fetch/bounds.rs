//! Where a registry may send us: redirects and token services.

use std::net::IpAddr;

use reqwest::{Url, redirect};

use crate::model::registries::is_loopback;

const MAX_REDIRECTS: usize = 5;

/// Why a redirect was not followed; found again in the chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// From https to http.
    #[error("it redirects to {0} by plain http")]
    Downgrade(String),
    /// To an address of this machine or its link.
    #[error("it redirects to {0}, an address of this machine or its link")]
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

/// The redirects that are followed for a host.
pub(crate) fn policy(plain: bool, host: &str) -> redirect::Policy {
    let from_loopback = is_loopback(host);
    redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("it redirects too often");
        }
        match check(attempt.url(), plain, from_loopback) {
            Ok(()) => attempt.follow(),
            Err(refused) => attempt.error(refused),
        }
    })
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
