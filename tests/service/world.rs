//! One service under test, and its clients.

use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bpfman_hook::grpc::wire::bpfman_client::BpfmanClient;
use tonic::transport::{Channel, Endpoint};

use crate::support::lab::{Hooks, Lab};
use crate::support::process::eventually;

pub type Client = BpfmanClient<Channel>;

/// Timeout of any operation on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A service and the directory that it works in.
pub struct World {
    pub lab: Lab,
    pub socket: PathBuf,
}

/// A running service; killed when dropped.
pub struct Service {
    pub child: Child,
}

impl Service {
    /// Waits until it exits by itself.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the service to end", PATIENCE, || self.child.try_wait().unwrap())
    }

    /// Stops it like systemd.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.ended().success());
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    pub fn new() -> Self {
        let lab = Lab::new(Hooks::Ours);
        let socket = lab.path("root/run/bpfman-hook/bpfman.sock");
        Self { lab, socket }
    }

    /// Starts a service with these arguments after `system service`, and waits until it listens.
    pub fn start(&self, args: &[&str]) -> Service {
        let service = self.spawn(args, &mut self.lab.command(&[]));
        let socket = self.socket.clone();
        eventually("the service to listen", PATIENCE, || StdStream::connect(&socket).ok());
        service
    }

    pub fn spawn(&self, args: &[&str], command: &mut Command) -> Service {
        command.args(["system", "service"]).args(args).stdin(Stdio::null());
        Service { child: command.spawn().unwrap() }
    }

    pub async fn client(&self) -> Client {
        client(&self.socket).await
    }
}

/// A channel over a unix socket.
pub async fn channel(path: &Path) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await
}

pub async fn client(path: &Path) -> Client {
    BpfmanClient::new(channel(path).await.unwrap())
}

/// Runs on a runtime of its own, within `PATIENCE`.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it took too long") })
}
