//! How to reach a repository: hosts, scheme, certificates and credentials. The parent reads this only when the network
//! is needed; the fetch child gets only what concerns its one host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::MAX_MANIFEST;
use crate::model::credentials::{AuthFile, Credential, UserEnvironment};
use crate::model::reference::RegistryReference;
use crate::model::registries::conf::{Conf, PullEndpoint};
use crate::model::registries::{Proxy, RegistryConfig, is_loopback};
use crate::sys::SysError;
use crate::sys::credential_helper;
use crate::sys::fsutil::{TrustError, TrustedRoot, names_in, read_text};

/// The size limit of a configuration file, in bytes.
const MAX: usize = 256 << 10;
/// The time limit for a credential helper.
const HELPER: Duration = Duration::from_secs(10);

/// What the fetch child needs to know about a host. `Debug` prints no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// `ghcr.io`, `127.0.0.1:5000`
    pub host: String,
    /// `acme/probes`
    pub repository: String,
    /// True for plain http.
    pub http: bool,
    /// The credential to send if the host asks for one.
    pub credential: Option<Credential>,
    /// The proxy to use.
    pub proxy: Option<HttpProxy>,
    /// True if a file with certificate authorities is passed along.
    pub authorities: bool,
    /// True if a file with our client certificate and its key is passed along, as the last one.
    pub identity: bool,
}

/// An HTTP proxy, and the hosts that are reached without it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HttpProxy {
    /// Its URL, which may hold a password.
    pub url: String,
    /// As in NO_PROXY.
    pub not_for: String,
}

impl std::fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Way(…)")
    }
}

/// A host, with the files that are passed to the child beside the message.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// The content of the message.
    pub access: Access,
    /// PEM certificate authorities.
    pub authorities: Option<Vec<u8>>,
    /// PEM certificate and key.
    pub identity: Option<Vec<u8>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.access.fmt(f)
    }
}

/// Why the access settings of a repository cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// registries.conf blocks it.
    #[error("registries.conf blocks {0}")]
    Blocked(String),
    /// A file that users other than root can write or read, or that cannot be read.
    #[error("read the configuration of registries")]
    Trust(#[source] TrustError),
    /// The same for a user's own file.
    #[error("read the credentials")]
    UserFile(#[source] SysError),
    /// A credential helper failed.
    #[error("get the credentials of {host}")]
    Helper {
        /// The registry.
        host: String,
        /// How it failed.
        #[source]
        source: SysError,
    },
    /// A file that does not parse.
    #[error("read {path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// registries.conf and its drop-ins below `root`, with the warnings about them.
pub fn conf(root: &Path) -> Result<(Conf, Vec<String>), AccessError> {
    let trusted = TrustedRoot::at(root).map_err(AccessError::Trust)?;
    let etc = root.join("etc/containers");
    let mut files = vec![etc.join("registries.conf")];
    let extras = etc.join("registries.conf.d");
    let mut extra: Vec<_> = names_in(&extras).unwrap_or_default().into_iter().map(|name| extras.join(name)).collect();
    extra.retain(|path| path.extension().is_some_and(|end| end == "conf"));
    extra.sort();
    files.extend(extra);
    let (mut conf, mut complaints) = (Conf::default(), Vec::new());
    for path in files {
        let Some(bytes) = present(trusted.read_file(&path, MAX))? else { continue };
        let problem = |problem: String| AccessError::File { path: path.clone(), problem };
        let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".to_owned()))?;
        let said = conf.add(&text).map_err(problem)?;
        complaints.extend(said.into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    Ok((conf, complaints))
}

/// The hosts to ask for an image, in order.
pub(crate) fn sites(root: &Path, config: &RegistryConfig, at: &RegistryReference) -> Result<Vec<Endpoint>, AccessError> {
    let (conf, _) = conf(root)?;
    let blocked = || AccessError::Blocked(format!("{}/{}", at.registry, at.repository));
    conf.places(at).ok_or_else(blocked)?.into_iter().map(|place| site(root, config, at, place)).collect()
}

fn site(root: &Path, config: &RegistryConfig, at: &RegistryReference, place: PullEndpoint) -> Result<Endpoint, AccessError> {
    let PullEndpoint { host, repository, insecure } = place;
    let http = match config.get(&host) {
        Some(entry) => entry.http,
        // A host with configured certificates is always reached over TLS, whatever else is allowed.
        None => (insecure || is_loopback(&host)) && cert_directory(root, &host).is_none(),
    };
    let (authorities, identity) = if http { (None, None) } else { certificates(root, config, &host)? };
    let own = host == at.registry && repository == at.repository;
    let credential = credential(root, config, &host, &repository, own)?;
    let proxy = if is_loopback(&host) { None } else { way(config, http) };
    let access =
        Access { host, repository, http, credential, proxy, authorities: authorities.is_some(), identity: identity.is_some() };
    Ok(Endpoint { access, authorities, identity })
}

/// `certs.d/HOST:PORT`, podman's before docker's: the first one that exists.
fn cert_directory(root: &Path, host: &str) -> Option<PathBuf> {
    ["etc/containers/certs.d", "etc/docker/certs.d"].iter().map(|base| root.join(base).join(host)).find(|path| path.is_dir())
}

type Pem = Option<Vec<u8>>;

fn certificates(root: &Path, config: &RegistryConfig, host: &str) -> Result<(Pem, Pem), AccessError> {
    let trusted = TrustedRoot::at(root).map_err(AccessError::Trust)?;
    let read = |path: &Path| trusted.read_file(path, MAX_MANIFEST).map_err(AccessError::Trust);
    let secret = |path: &Path| trusted.read_secret(path, MAX_MANIFEST).map_err(AccessError::Trust);
    let entry = config.get(host);
    let (mut authorities, mut identity) = (Vec::new(), Vec::new());
    if let Some(ca) = entry.and_then(|entry| entry.ca.as_deref()) {
        authorities = read(ca)?;
    }
    if let Some((certificate, key)) = entry.and_then(|entry| entry.client.as_ref()) {
        identity = [read(certificate)?, b"\n".to_vec(), secret(key)?].concat();
    }
    if let Some(directory) = cert_directory(root, host) {
        let mut names = names_in(&directory).map_err(|source| AccessError::Helper { host: host.to_owned(), source })?;
        names.sort();
        for path in names.into_iter().map(|name| directory.join(name)) {
            match path.extension().and_then(|end| end.to_str()) {
                Some("crt") => {
                    authorities.extend(read(&path)?);
                    authorities.push(b'\n');
                }
                Some("cert") if identity.is_empty() => {
                    let key = path.with_extension("key");
                    identity = [read(&path)?, b"\n".to_vec(), secret(&key)?].concat();
                }
                _ => {}
            }
        }
    }
    let filled = |pem: Vec<u8>| Some(pem).filter(|pem| !pem.is_empty());
    Ok((filled(authorities), filled(identity)))
}

/// The credential for a host. A user's files come first, then ours; a hook uses only ours.
fn credential(
    root: &Path,
    config: &RegistryConfig,
    host: &str,
    repository: &str,
    own: bool,
) -> Result<Option<Credential>, AccessError> {
    if let Some(user_env) = &config.user_env {
        if let Some(login) = user_env.login.as_ref().filter(|_| own) {
            return Ok(Some(login.clone()));
        }
        for path in user_env.auth_files() {
            if !path.exists() && user_env.auth_file.is_none() {
                continue;
            }
            let text = read_text(&path, MAX).map_err(AccessError::UserFile)?;
            if let Some(found) = in_file(&path, &text, host, repository, Some(user_env))? {
                return Ok(Some(found));
            }
        }
        if user_env.auth_file.is_some() {
            return Ok(None);
        }
    }
    let trusted = TrustedRoot::at(root).map_err(AccessError::Trust)?;
    for path in auth_files(root, config) {
        let Some(bytes) = present(trusted.read_secret(&path, MAX))? else { continue };
        let not_text = |_| AccessError::File { path: path.clone(), problem: "it is not UTF-8".to_owned() };
        let text = String::from_utf8(bytes).map_err(not_text)?;
        if let Some(found) = in_file(&path, &text, host, repository, None)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The administrator's files, ours first.
pub fn auth_files(root: &Path, config: &RegistryConfig) -> Vec<PathBuf> {
    std::iter::once(root.join("etc/bpfman-hook/auth.json")).chain(config.auth_files.iter().cloned()).collect()
}

/// Reads every file with credentials and certificates that a hook could need, for `doctor`.
pub fn examine(root: &Path, config: &RegistryConfig) -> Result<Vec<String>, AccessError> {
    let (_, complaints) = conf(root)?;
    let trusted = TrustedRoot::at(root).map_err(AccessError::Trust)?;
    for path in auth_files(root, config) {
        if let Some(bytes) = present(trusted.read_secret(&path, MAX))? {
            let parsed = AuthFile::parse(&String::from_utf8_lossy(&bytes), false);
            parsed.map_err(|problem| AccessError::File { path, problem })?;
        }
    }
    for host in config.hosts() {
        certificates(root, config, host)?;
    }
    Ok(complaints)
}

/// What one file contains for a host. Credential helpers are run for a user only, never for a hook.
fn in_file(
    path: &Path,
    text: &str,
    host: &str,
    repository: &str,
    user_env: Option<&UserEnvironment>,
) -> Result<Option<Credential>, AccessError> {
    let dockercfg = path.ends_with(".dockercfg");
    let file = AuthFile::parse(text, dockercfg).map_err(|problem| AccessError::File { path: path.to_owned(), problem })?;
    let from = |name: &str| {
        let Some(user_env) = user_env else { return Ok(None) };
        // Docker's helpers know Docker Hub by its old URL.
        let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
        let path = user_env.path.as_deref().unwrap_or("/usr/local/bin:/usr/bin:/bin");
        let said = credential_helper::ask(name, server, path, user_env.home.as_deref(), HELPER)
            .map_err(|source| AccessError::Helper { host: host.to_owned(), source })?;
        Ok(said.as_deref().and_then(Credential::from_helper))
    };
    if let Some(name) = file.helper(host) {
        return from(name);
    }
    match (file.credential(host, repository), file.store()) {
        (Some(found), _) => Ok(Some(found.clone())),
        (None, Some(store)) => from(store),
        (None, None) => Ok(None),
    }
}

/// A user's proxy comes from the environment; a hook uses only the proxy of our file.
fn way(config: &RegistryConfig, http: bool) -> Option<HttpProxy> {
    if let Some(user_env) = &config.user_env {
        let url = if http { &user_env.http_proxy } else { &user_env.https_proxy };
        if let Some(url) = url.as_ref().filter(|url| !url.is_empty()) {
            return Some(HttpProxy { url: url.clone(), not_for: user_env.no_proxy.clone().unwrap_or_default() });
        }
    }
    config.proxy.as_ref().map(|Proxy { url, no_proxy }| HttpProxy { url: url.clone(), not_for: no_proxy.join(",") })
}

fn present(read: Result<Vec<u8>, TrustError>) -> Result<Option<Vec<u8>>, AccessError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TrustError::Missing(_)) => Ok(None),
        Err(err) => Err(AccessError::Trust(err)),
    }
}
