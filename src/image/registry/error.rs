//! What can be wrong with a registry's answer.

use serde::{Deserialize, Serialize};

/// Why a registry did not answer as it should. Sent by the fetch child, so it is plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RemoteError {
    /// No connection, no TLS, a broken stream.
    #[error("ask registry {host} for {what}: {problem}")]
    Network {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The whole chain of causes.
        problem: String,
    },
    /// No registry listens at `localhost`, the name that podman gives to images of its own storage.
    #[error(
        "ask registry localhost for {what}: {problem}; podman's own images have that name and are in no registry: push the image to \
         one, or write it with `podman save --format oci-archive` and use oci-archive:/FILE"
    )]
    LocalStorage {
        /// What was asked for.
        what: String,
        /// The whole chain of causes.
        problem: String,
    },
    /// Nothing came for too long.
    #[error("ask registry {host} for {what}: it has not answered within {seconds} s")]
    Silent {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The way to the registry is a proxy that does not let us.
    #[error("ask registry {host} for {what} by way of proxy {said}")]
    Proxy {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The proxy's host and port, and what it said.
        said: String,
    },
    /// The registry's certificate is nobody's that we know.
    #[error(
        "ask registry {host} for {what}: its certificate does not count: {problem}; put its authority into \
         /etc/containers/certs.d/{host}/ca.crt, there is no TLS without verification"
    )]
    Certificate {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The TLS library's words.
        problem: String,
    },
    /// The registry wants a certificate of ours.
    #[error(
        "ask registry {host} for {what}: it {} client certificate; put one that it knows into \
         /etc/containers/certs.d/{host}/client.cert and its key into client.key",
        if *shown { "refuses our" } else { "asks for a" }
    )]
    ClientCertificate {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// True where we have shown one.
        shown: bool,
    },
    /// The registry is spoken to by plain http, and wants TLS.
    #[error(
        "ask registry {host} for {what}: it speaks TLS, and is configured for plain http (http = true in registries.toml, or \
         insecure = true in registries.conf, which is not TLS without verification here); take that away, and put an authority of \
         its own into /etc/containers/certs.d/{host}/ca.crt"
    )]
    WantsTls {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry speaks plain http, which is not allowed for it.
    #[error(
        "ask registry {host} for {what}: it does not speak TLS; allow plain http for it in /etc/bpfman-hook/registries.toml"
    )]
    PlainHttp {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry sent us on to a plain http address.
    #[error("ask registry {host} for {what}: it sends us on to {to} by plain http, which is refused")]
    Downgrade {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to.
        to: String,
    },
    /// The registry sends us on to an address of this machine or link.
    #[error("ask registry {host} for {what}: it sends us on to {to}, an address of this machine or its link, which is refused")]
    Inward {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to.
        to: String,
    },
    /// 401 or 403.
    #[error(
        "ask registry {host} for {what}: it {}, or there is no such repository; {}",
        if *shown { "refuses our credentials" } else { "asks for credentials" },
        if *shown { "log in anew" } else { "put them into /etc/bpfman-hook/auth.json" }
    )]
    Credentials {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// True where we have some for this registry.
        shown: bool,
    },
    /// Any other status than 200 and 404.
    #[error("ask registry {host} for {what}: it answers {status}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The error's code and message, cut.
        message: String,
    },
    /// More bytes than are accepted.
    #[error("ask registry {host} for {what}: it is larger than {limit} bytes, which is the limit")]
    TooLarge {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The child kept its privileges, so it asked nobody.
    #[error("give up the privileges of the process that asks registries: {problem}")]
    Unconfined {
        /// Which step failed, and why.
        problem: String,
    },
    /// An answer that is no answer.
    #[error("ask registry {host} for {what}: the answer makes no sense: {problem}")]
    Nonsense {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
}
