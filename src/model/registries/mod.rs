//! Settings for registries: `/etc/bpfman-hook/registries.toml`, parsed.
//!
//! ```toml
//! auth-files = ["/var/lib/kubelet/config.json"]  # besides /etc/bpfman-hook/auth.json, for hooks
//! [proxy]
//! url      = "http://proxy.example:3128"
//! no-proxy = [".example", "10.0.0.0/8"]
//! [[registry]]
//! host = "registry.example:5000"
//! http = true                             # plain http; default false, and true for loopback addresses
//! ca   = "/etc/bpfman-hook/example-ca.pem"  # further certificate authorities, besides the system's
//! client-cert = "/etc/bpfman-hook/client.cert"  # shown to a registry that asks for one
//! client-key  = "/etc/bpfman-hook/client.key"
//! ```
//!
//! Mirrors, blocking and rewriting come from registries.conf, see [`conf`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Deserialize;

use crate::model::credentials::UserEnvironment;

pub mod conf;

/// The administrator's settings for registries. By default https is used for all except loopback addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryConfig {
    hosts: BTreeMap<String, RegistrySettings>,
    /// Files with credentials, in addition to our own.
    pub auth_files: Vec<PathBuf>,
    /// The proxy.
    pub proxy: Option<Proxy>,
    /// The user on whose behalf registries are contacted, with credentials and proxy; None for hooks.
    pub user_env: Option<UserEnvironment>,
}

/// `[proxy]`. `Debug` does not show the URL, which may contain a password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Proxy {
    /// `http://[user:password@]host:port`
    pub url: String,
    /// Hosts, domains and networks that are contacted without the proxy. Loopback addresses always are.
    #[serde(default)]
    pub no_proxy: Vec<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

/// One `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// True for plain http.
    pub http: bool,
    /// A PEM file of certificate authorities for this registry, in addition to the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of our client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why a registries file is invalid.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// Not TOML, or a key with an unknown name or a wrong type.
    #[error("read the registries file: line {line}: {problem}")]
    Toml {
        /// The line, counted from 1.
        line: usize,
        /// The parser's message.
        problem: String,
    },
    /// A host that is listed twice, or is not a host.
    #[error("read the registries file: host {0:?} {1}")]
    Host(String, &'static str),
    /// Only one of client certificate and key.
    #[error("read the registries file: host {0:?} has only one of client-cert and client-key; write both, or neither")]
    HalfAClient(String),
    /// The proxy's URL is invalid.
    #[error("read the registries file: the proxy's url is not http:// or https:// and a host")]
    Proxy,
    /// An unknown key in an entry.
    #[error(
        "read the registries file: host {host:?} has {key:?}, which is not a known key; mirrors are read from registries.conf"
    )]
    Unknown {
        /// The entry.
        host: String,
        /// The key.
        key: String,
    },
    /// An entry with contradictory keys.
    #[error("read the registries file: host {0:?} has both http = true and a ca; plain http has no certificates")]
    HttpWithCa(String),
    /// A path that is not absolute.
    #[error("read the registries file: {host:?} has {ca}, write an absolute path", ca = ca.display())]
    RelativeCa {
        /// The entry.
        host: String,
        /// The given path.
        ca: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RegistriesDocument {
    #[serde(default)]
    auth_files: Vec<PathBuf>,
    proxy: Option<Proxy>,
    #[serde(default)]
    registry: Vec<RegistriesEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistriesEntry {
    host: String,
    #[serde(default)]
    http: bool,
    ca: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

impl RegistryConfig {
    /// Parses the text of a registries file.
    pub fn parse(text: &str) -> Result<Self, RegistriesError> {
        let file: RegistriesDocument = toml::from_str(text).map_err(|err| {
            let before = text.get(..err.span().map_or(0, |span| span.start)).unwrap_or(text);
            RegistriesError::Toml { line: before.matches('\n').count() + 1, problem: err.message().replace('\n', "; ") }
        })?;
        let mut hosts = BTreeMap::new();
        let absolute = |host: &str, path: &PathBuf| match path.is_absolute() {
            true => Ok(()),
            false => Err(RegistriesError::RelativeCa { host: host.to_owned(), ca: path.clone() }),
        };
        file.auth_files.iter().try_for_each(|path| absolute("auth-files", path))?;
        let is_url = |url: &str| {
            ["http://", "https://"]
                .iter()
                .any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.trim_matches('/').is_empty()))
        };
        if file.proxy.as_ref().is_some_and(|proxy| !is_url(&proxy.url)) {
            return Err(RegistriesError::Proxy);
        }
        for RegistriesEntry { host, http, ca, client_cert, client_key, rest } in file.registry {
            if let Some(key) = rest.into_keys().next() {
                return Err(RegistriesError::Unknown { host, key });
            }
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
            if host.is_empty() || !host.bytes().all(plain) {
                return Err(RegistriesError::Host(host, "is not a lower-case host with an optional port"));
            }
            if http && ca.is_some() {
                return Err(RegistriesError::HttpWithCa(host));
            }
            [&ca, &client_cert, &client_key].into_iter().flatten().try_for_each(|path| absolute(&host, path))?;
            let client = match (client_cert, client_key) {
                (None, None) => None,
                (Some(certificate), Some(key)) => Some((certificate, key)),
                _ => return Err(RegistriesError::HalfAClient(host)),
            };
            if hosts.insert(host.clone(), RegistrySettings { http, ca, client }).is_some() {
                return Err(RegistriesError::Host(host, "is listed twice"));
            }
        }
        Ok(Self { hosts, auth_files: file.auth_files, proxy: file.proxy, user_env: None })
    }

    /// The same settings for the user who runs a command.
    pub fn by(self, user_env: UserEnvironment) -> Self {
        Self { user_env: Some(user_env), ..self }
    }

    /// The settings for one registry: `host` or `host:port`, exactly as in references.
    pub fn get(&self, host: &str) -> Option<&RegistrySettings> {
        self.hosts.get(host)
    }

    /// True if the proxy's URL contains a password.
    pub fn holds_a_secret(&self) -> bool {
        let authority = self.proxy.as_ref().and_then(|proxy| proxy.url.split("://").nth(1)?.split(['/', '?', '#']).next());
        let user = authority.and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
        user.is_some_and(|user| user.contains(':'))
    }

    /// The configured hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }
}

/// True for `localhost`, 127.0.0.0/8 and `[::1]`, each with or without a port. Other names are not resolved: the answer
/// of a name server is not a reason to give up TLS.
pub fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']').map_or("", |(address, _)| address);
        return address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_uses_plain_http_by_default() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.9.1:5000", "[::1]", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["ghcr.io", "localhost.example", "127.0.0.1.nip.io", "128.0.0.1", "[::2]:1", "[fe80::1]", "10.0.0.1:80", ""]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn entries_apply_only_to_their_host() {
        let text = "[[registry]]\nhost = \"r.example:5000\"\nhttp = true\n[[registry]]\nhost = \"127.0.0.1:5001\"\nca = \"/etc/ca.pem\"\n";
        let config = RegistryConfig::parse(text).unwrap();
        let http = |host: &str| config.get(host).map(|registry| registry.http);
        assert_eq!((http("r.example:5000"), http("127.0.0.1:5001")), (Some(true), Some(false)));
        assert_eq!((http("r.example"), http("127.0.0.1:5002")), (None, None));
        assert_eq!(config.hosts().collect::<Vec<_>>(), ["127.0.0.1:5001", "r.example:5000"]);
    }

    #[test]
    fn invalid_files_are_refused() {
        for (text, sentence) in [
            (
                "[[registry]]\nhost = \"a\"\nmirror = \"b\"",
                "host \"a\" has \"mirror\", which is not a known key; mirrors are read from registries.conf",
            ),
            ("[[registry]]\nhost = \"a\"\nauth-file = \"/x\"", "\"auth-file\", which is not a known key"),
            ("[[registry]]\nhost = \"a\"\n[[registry]]\nhost = \"a\"", "\"a\" is listed twice"),
            ("[[registry]]\nhost = \"A/b\"", "is not a lower-case host"),
            ("[[registry]]\nhost = \"a\"\nhttp = true\nca = \"/x\"", "plain http has no certificates"),
            ("[[registry]]\nhost = \"a\"\nca = \"x\"", "write an absolute path"),
            ("auth-files = [\"x\"]", "\"auth-files\" has x, write an absolute path"),
            ("[proxy]\nurl = \"proxy:3128\"", "the proxy's url is not http://"),
            ("[[registry]]\nhost = \"a\"\nclient-key = \"/x\"", "write both, or neither"),
            ("[registries]\n", "read the registries file: line 1: unknown field `registries`"),
            ("\n[[registry]]\nhttp = true", "read the registries file: line 2: missing field `host`"),
        ] {
            let err = RegistryConfig::parse(text).unwrap_err().to_string();
            assert!(err.contains(sentence), "{text}: {err}");
        }
    }
}
