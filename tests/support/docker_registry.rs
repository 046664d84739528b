//! Debian's docker-registry on a loopback port: a real registry that accepts uploads.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::harness;
use crate::support::process::{PATIENCE, Running, eventually};

/// A registry that runs until this value is dropped. Its blobs are in the given directory.
#[derive(Debug)]
pub struct DockerRegistry {
    host: String,
    _running: Running,
}

impl DockerRegistry {
    /// Starts a registry without TLS and authentication.
    pub fn start(dir: &Path) -> Self {
        Self::serve(dir, "")
    }

    /// Starts a registry for `user` with the password `secret` only, over TLS with the certificate of tests/data/tls.
    pub fn start_private(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap_or_else(|e| harness!("create {}: {e}", dir.display()));
        let users = dir.join("htpasswd");
        let line = "user:$2b$04$2v4PGYhXztZyUDBCcOkqZ.o2JayV1NubgyEXlFYRCrRolfXB5cDmm\n";
        fs::write(&users, line).unwrap_or_else(|e| harness!("write {}: {e}", users.display()));
        let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
        Self::serve(
            dir,
            &format!(
                "  tls: {{ certificate: {}, key: {} }}\nauth:\n  htpasswd: {{ realm: test, path: {} }}\n",
                tls.join("server.pem").display(),
                tls.join("server.key").display(),
                users.display()
            ),
        )
    }

    /// `more` is appended after the address.
    fn serve(dir: &Path, more: &str) -> Self {
        // The port is free now, and it is unlikely that another process takes it within a moment.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let host = port.unwrap_or_else(|e| harness!("find a port: {e}")).to_string();
        fs::create_dir_all(dir.join("data")).unwrap_or_else(|e| harness!("create {}: {e}", dir.display()));
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\nhttp:\n  addr: \"{host}\"\n{more}",
            dir.join("data").display()
        );
        fs::write(&config, text).unwrap_or_else(|e| harness!("write {}: {e}", config.display()));
        let running = Running::start(Command::new("docker-registry").arg("serve").arg(&config));
        eventually("docker-registry to answer", PATIENCE, || TcpStream::connect(&host).ok());
        Self { host, _running: running }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> &str {
        &self.host
    }
}
