//! bpfman's own client, as its authors generated it, in another process and at the socket where it looks.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::lab::{BINARY, Hooks};
use crate::support::netns::Netns;
use crate::support::process::{PATIENCE, ended, eventually};
use crate::support::world::{World, object_path};

/// Where bpfman's clients look.
const SOCKET: &str = "/run/bpfman-sock/bpfman.sock";

/// What `build.sh` ends with where the crate cannot be fetched.
const CANNOT_FETCH: i32 = 77;

#[test]
fn makes_all_seven_calls() {
    let mut world = World::new(Hooks::Ours);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpfman-client/build.sh");
    // Beside the binaries of this build: it is made once.
    let out = Path::new(BINARY).parent().unwrap().join("bpfman-client");
    let built = Command::new("sh").arg(script).arg(&out).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    if built.status.code() == Some(CANNOT_FETCH) {
        eprintln!("{said}");
        return;
    }
    assert!(built.status.success(), "{said}");
    let client = String::from_utf8(built.stdout).unwrap();
    let image = world.signed("counter");

    let new = !Path::new(SOCKET).parent().unwrap().exists();
    assert!(UnixStream::connect(SOCKET).is_err(), "harness: something answers at {SOCKET} already");
    let mut service = Command::new("systemd-socket-activate");
    service.arg(format!("--listen={SOCKET}")).args([BINARY, "--root"]).arg(world.lab.root());
    let mut service = service.args(["system", "service", "--timeout", "1"]).stdin(Stdio::null()).spawn().unwrap();
    drop(eventually("the socket", PATIENCE, || UnixStream::connect(SOCKET).ok()));
    let (netns, object) = (Netns::new(), object_path("counter"));
    let asked = ended(Command::new(client.trim()).arg(SOCKET).arg(&object).args([&netns.path(), &image]));
    let over = eventually("the service to end", PATIENCE, || service.try_wait().unwrap());
    std::fs::remove_file(SOCKET).unwrap();
    if new {
        std::fs::remove_dir(Path::new(SOCKET).parent().unwrap()).unwrap();
    }
    assert!(asked.status.success(), "{}{}", asked.stdout, asked.stderr);
    for call in ["Load", "Attach", "Get", "List", "PullBytecode", "Detach", "Unload"] {
        assert!(asked.line(&format!("{call}: ")).is_some(), "{call}: {}", asked.stdout);
    }
    assert!(over.success());
    drop(netns);
    world.lab.residue();
}
