//! `system service`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `system WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum SystemCommand {
    /// Serve bpfman's gRPC API while clients use it
    Service(ServiceArgs),
}

/// `system service [ADDRESS]`.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// unix:///PATH or tcp://IP:PORT [default: unix:///run/bpfman-hook/bpfman.sock]; not used with socket activation
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub address: Option<ServiceAddress>,
    /// Exit this many seconds after the last request; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub timeout: u32,
    /// TCP: the server's certificate chain, PEM
    #[arg(long, value_name = "FILE", value_parser = super::absolute_path, requires_all = ["tls_key", "tls_client_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// TCP: its private key, PEM
    #[arg(long, value_name = "FILE", value_parser = super::absolute_path, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// TCP: the CA that signs the clients' certificates, PEM
    #[arg(long, value_name = "FILE", value_parser = super::absolute_path, requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

/// `install --service`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct ServiceTarget {
    /// The gRPC service's units and socket; no engine by default
    #[arg(long)]
    pub service: bool,
}

/// The address that the service listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP, always with mutual TLS.
    Tcp(SocketAddr),
}

fn address(text: &str) -> Result<ServiceAddress, String> {
    const FORM: &str = "write unix:///PATH or tcp://IP:PORT";
    if let Some(path) = text.strip_prefix("unix://") {
        // sun_path has 108 bytes; the temporary name beside the socket needs some of them while it is created.
        return match crate::model::text::is_normal_path(path) && path.len() <= 90 && path != "/" {
            true => Ok(ServiceAddress::Unix(path.into())),
            false => Err("write an absolute path without ., .. and //, of at most 90 bytes".to_owned()),
        };
    }
    match text.strip_prefix("tcp://").map(str::parse) {
        Some(Ok(address)) => Ok(ServiceAddress::Tcp(address)),
        _ => Err(FORM.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_an_ip_and_a_port() {
        assert_eq!(address("unix:///run/x.sock"), Ok(ServiceAddress::Unix("/run/x.sock".into())));
        assert_eq!(address("tcp://127.0.0.1:50051"), Ok(ServiceAddress::Tcp(([127, 0, 0, 1], 50051).into())));
        assert!(matches!(address("tcp://[::1]:50051"), Ok(ServiceAddress::Tcp(_))));
        for wrong in
            ["", "/run/x", "unix://run/x", "unix:///a/../b", "unix:///", "tcp://localhost:1", "tcp://127.0.0.1", "http://x"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert!(address(&format!("unix:///{}", "x".repeat(90))).is_err());
    }
}
