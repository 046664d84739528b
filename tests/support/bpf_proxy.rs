//! The proxy of bpf(2): what stands for systemd's socket, and the client whose steps containers run.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::lab::{BINARY, Lab};
use super::process::tool;
use crate::harness;

/// Starts `bpfman-hook proxy -` for every connection to the lab's socket, as the unit does. The thread ends with the
/// test binary.
pub fn listen(lab: &Lab) {
    let run = lab.path("root/run/bpfman-hook");
    fs::create_dir_all(&run).unwrap_or_else(|e| harness!("create {}: {e}", run.display()));
    let socket = run.join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap_or_else(|e| harness!("listen at {}: {e}", socket.display()));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap_or_else(|e| harness!("chmod: {e}"));
    let root = lab.root();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut proxy = Command::new(BINARY);
            proxy.arg("--root").arg(&root).args(["proxy", "-"]).stdin(OwnedFd::from(connection)).stdout(Stdio::null());
            let Ok(mut proxy) = proxy.spawn() else { continue };
            std::thread::spawn(move || proxy.wait());
        }
    });
}

/// The compiled client.
pub fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| compiled("proxy_client"))
}

/// Compiles a static program of tests/e2e/, unless it is in the directory TEST_PROGRAMS already.
pub fn compiled(name: &str) -> PathBuf {
    if let Some(programs) = std::env::var_os("TEST_PROGRAMS") {
        return Path::new(&programs).join(name);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/e2e/{name}.c"));
    let out = std::env::temp_dir().join(format!("bpfman-hook-{name}-{}", std::process::id()));
    tool(Command::new("cc").args(["-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&out).arg(source));
    out
}

/// The seccomp profile that the binary prints.
pub fn profile(lab: &Lab, perf_events: bool) -> Value {
    let more: &[&str] = if perf_events { &["--perf-events"] } else { &[] };
    serde_json::from_str(&lab.ours(&[&["proxy", "profile"], more].concat())).unwrap_or_else(|e| panic!("proxy profile: {e}"))
}
