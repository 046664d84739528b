//! A network namespace of a single test.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bpfman_hook::sys::netns;

use super::process::{PATIENCE, eventually, tool};

/// A network namespace with a process in it; ends on drop.
#[derive(Debug)]
pub struct Netns {
    holder: Child,
    file: OwnedFd,
}

impl Netns {
    /// Creates one, with lo up.
    pub fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let holder = holder.unwrap_or_else(|e| crate::harness!("start unshare: {e}"));
        let own = std::fs::read_link("/proc/self/ns/net").ok();
        let path = format!("/proc/{}/ns/net", holder.id());
        // Not the one in which the process started.
        eventually("the namespace", PATIENCE, || std::fs::read_link(&path).ok().filter(|theirs| Some(theirs) != own.as_ref()));
        let file = File::open(&path).unwrap_or_else(|e| crate::harness!("open {path}: {e}"));
        let netns = Self { holder, file: file.into() };
        netns.within(|| tool(Command::new("ip").args(["link", "set", "lo", "up"])));
        netns
    }

    /// The file that names it.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Runs a closure inside.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        netns::on_thread(self.file.as_fd(), f).unwrap_or_else(|e| crate::harness!("enter the namespace: {e}"))
    }

    /// Sends packets over lo and receives them.
    pub fn send_to_itself(&self, packets: usize) {
        self.within(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|e| crate::harness!("bind on lo: {e}"));
            let address = socket.local_addr().unwrap_or_else(|e| crate::harness!("the port: {e}"));
            let _same = socket.set_read_timeout(Some(Duration::from_secs(5)));
            for _ in 0..packets {
                let sent = socket.send_to(b"packet", address).and_then(|_| socket.recv(&mut [0; 16]));
                assert!(matches!(sent, Ok(6)), "a packet over lo: {sent:?}");
            }
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = self.holder.kill();
        let _gone = self.holder.wait();
    }
}
