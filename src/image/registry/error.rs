//! Errors of requests to a registry.

use serde::{Deserialize, Serialize};

/// Why a request to a registry failed. The fetch child sends it, so it is plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RemoteError {
    /// No connection, no TLS, or a broken stream.
    #[error("request {what} from registry {host}: {problem}")]
    Network {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The whole chain of causes.
        problem: String,
    },
    /// No registry listens on `localhost`, the name that podman gives to images of its own storage.
    #[error(
        "request {what} from registry localhost: {problem}; podman gives this name to local images, which are in no registry: push the image to a registry, \
         or write it with `podman save --format oci-archive` and use oci-archive:/FILE"
    )]
    LocalStorage {
        /// What was requested.
        what: String,
        /// The whole chain of causes.
        problem: String,
    },
    /// No data for too long.
    #[error("request {what} from registry {host}: the registry did not answer within {seconds} s")]
    Silent {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The proxy to the registry refuses the connection.
    #[error("request {what} from registry {host} through proxy {said}")]
    Proxy {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The proxy's host and port, and its answer.
        said: String,
    },
    /// The registry's certificate is not signed by a trusted authority.
    #[error(
        "request {what} from registry {host}: the registry's certificate is not trusted: {problem}; put its CA certificate into \
         /etc/containers/certs.d/{host}/ca.crt; TLS verification cannot be disabled"
    )]
    Certificate {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The TLS library's message.
        problem: String,
    },
    /// The registry requires a client certificate.
    #[error(
        "request {what} from registry {host}: the registry {} client certificate; put one that it accepts into \
         /etc/containers/certs.d/{host}/client.cert and its key into client.key",
        if *shown { "refuses our" } else { "requires a" }
    )]
    ClientCertificate {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// True if we sent one.
        shown: bool,
    },
    /// The registry is configured for plain http, but requires TLS.
    #[error(
        "request {what} from registry {host}: the registry requires TLS, but is configured for plain http (http = true in registries.toml, or \
         insecure = true in registries.conf, which does not mean unverified TLS here); remove that, and put its CA certificate \
         into /etc/containers/certs.d/{host}/ca.crt"
    )]
    WantsTls {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
    },
    /// The registry speaks plain http, which is not allowed for it.
    #[error(
        "request {what} from registry {host}: the registry does not speak TLS; allow plain http for it in /etc/bpfman-hook/registries.toml"
    )]
    PlainHttp {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
    },
    /// The registry refers to a plain http address.
    #[error("request {what} from registry {host}: the registry refers to {to} over plain http; only https is allowed")]
    Downgrade {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The host that it refers to.
        to: String,
    },
    /// The registry refers to a local or link-local address.
    #[error(
        "request {what} from registry {host}: the registry refers to {to}, a local or link-local address, which is not allowed"
    )]
    Inward {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The host that it refers to.
        to: String,
    },
    /// 401 or 403.
    #[error(
        "request {what} from registry {host}: the registry {}, or the repository does not exist; {}",
        if *shown { "refuses our credentials" } else { "requires credentials" },
        if *shown { "log in again" } else { "put them into /etc/bpfman-hook/auth.json" }
    )]
    Credentials {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// True if we have credentials for this registry.
        shown: bool,
    },
    /// Any other status than 200 and 404.
    #[error("request {what} from registry {host}: the registry answers {status}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The error's code and message, truncated.
        message: String,
    },
    /// Larger than the limit.
    #[error("request {what} from registry {host}: the answer is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The child could not drop its privileges, so it sent no request.
    #[error("drop the privileges of the process that connects to registries: {problem}")]
    Unconfined {
        /// Which step failed, and why.
        problem: String,
    },
    /// An invalid answer.
    #[error("request {what} from registry {host}: the answer is invalid: {problem}")]
    Nonsense {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// What is wrong.
        problem: String,
    },
}
