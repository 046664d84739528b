//! The fetch child in production: the installed binary pulls from a registry, and the test observes which process does
//! what.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test it is called from")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bpfman_hook::hooks::stage::CAPABILITIES;

use crate::registry::{Behaviour, Registry, Reply};

const OBJECT: &str = "3d75ff1bb0b69c67490829d7e2e8fee5b86502b9f23a588ccde9870896986f5d";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// An installation of its own with the keys of the recorded signatures and no policy file: the built-in rule applies.
struct Installation(tempfile::TempDir);

impl Installation {
    fn new() -> Self {
        assert_eq!(fs::metadata("/proc/self").unwrap().uid(), 0, "run as root: make test-privileged");
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("etc/bpfman-hook/keys");
        fs::create_dir_all(&keys).unwrap();
        for name in ["cosign-v2.pub", "cosign-v3.pub"] {
            fs::copy(data("signatures/keys").join(name), keys.join(name)).unwrap();
            fs::set_permissions(keys.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        for path in [dir.path(), &dir.path().join("etc"), &dir.path().join("etc/bpfman-hook"), &keys] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(dir)
    }

    fn pull(&self, reference: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
        command.arg("--root").arg(self.0.path()).args(["pull", reference]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Pulls a signed image with some of root's rights, as set by setpriv(1).
    fn pulled_with(&self, rights: &[&str], registry: &Registry) -> Output {
        let mut command = Command::new("setpriv");
        command.args(rights).arg("--").arg(env!("CARGO_BIN_EXE_bpfman-hook"));
        command.arg("--root").arg(self.0.path()).args(["pull", &format!("{}/bpf/key-v2:v1", registry.host())]);
        command.output().unwrap()
    }

    fn pulled(&self, reference: &str) -> Output {
        self.pull(reference).wait_with_output().unwrap()
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The inodes of the sockets that a process holds.
fn sockets(pid: u32) -> BTreeSet<u64> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

/// The inodes of TCP connections to a port of 127.0.0.1.
fn connections(port: u16) -> BTreeSet<u64> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(2) == Some(&remote.as_str()))
        .filter_map(|row| row.get(9)?.parse().ok())
        .filter(|i| *i != 0)
        .collect()
}

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{key}:"))).unwrap_or_else(|| panic!("{key}"));
    line[key.len() + 1..].trim().to_owned()
}

#[test]
fn the_child_fetches_a_signed_image_and_refuses_an_unsigned_one() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    for image in ["bpf/key-v2:v1", "bpf/key-v3:v1", "bpf/index:v1"] {
        let installation = Installation::new();
        let output = installation.pulled(&format!("{}/{image}", registry.host()));
        assert!(output.status.success(), "{image}: {output:?}");
        let object = installation.0.path().join("var/cache/bpfman-hook/blobs/sha256").join(OBJECT);
        assert_eq!(fs::read(object).unwrap(), fs::read(data("images/pass.bpfel.o")).unwrap());
    }
    for (image, sentence) in [
        ("bpf/unsigned:v1", "it is not signed"),
        ("bpf/key-v2-copied:v1", "it is for another image"),
        ("bpf/keyless:v1", "the rule names only keys"),
    ] {
        let installation = Installation::new();
        let output = installation.pulled(&format!("{}/{image}", registry.host()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(sentence), "{image}: {said}");
        assert!(!installation.0.path().join("var/cache/bpfman-hook/refs").exists(), "{image}: nothing is kept");
    }
}

#[test]
fn dns_and_certificates_work_without_privileges() {
    let registry = Registry::start_tls(&data("signatures/registry"), Behaviour::default());
    let installation = Installation::new();
    let etc = installation.0.path().join("etc/bpfman-hook");
    let host = registry.host().replace("127.0.0.1", "localhost");
    let ca = etc.join("ca.pem");
    let config = format!("[[registry]]\nhost = \"{host}\"\nca = \"{}\"\n", ca.display());
    for (name, text) in [("ca.pem", fs::read(data("tls/ca.pem")).unwrap()), ("registries.toml", config.into_bytes())] {
        fs::write(etc.join(name), text).unwrap();
        fs::set_permissions(etc.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let output = installation.pulled(&format!("{host}/bpf/key-v3:v1"));
    assert!(output.status.success(), "{output:?}");
    assert!(!registry.requests().is_empty());
}

/// Without one of these the child cannot drop its privileges permanently, and then it must not contact a registry.
#[test]
fn a_child_that_cannot_be_confined_contacts_no_registry() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    for lacking in ["setuid", "setgid", "setpcap"] {
        let installation = Installation::new();
        let output = installation.pulled_with(&["--bounding-set", &format!("-{lacking}")], &registry);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{lacking}: {said}");
        assert!(said.contains("drop the privileges of the process that connects to registries"), "{lacking}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(registry.requests(), Vec::<String>::new(), "{lacking}");
    }
}

#[test]
fn what_the_hook_keeps_is_enough_to_pull() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let installation = Installation::new();
    let kept = CAPABILITIES.map(|c| c.to_string().trim_start_matches("CAP_").to_lowercase());
    let output = installation.pulled_with(&["--bounding-set", &format!("-all,+{}", kept.join(",+"))], &registry);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn only_an_unprivileged_child_that_dies_with_its_parent_uses_the_network() {
    let hook = |request: &crate::registry::Request| match request.target.contains("/blobs/") {
        true => Reply::Stall,
        false => Reply::Normal,
    };
    let registry = Registry::start(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
    let installation = Installation::new();
    // The built-in rule requires a signature first; this repository has none, so the policy accepts everything.
    let policy = "[[image]]\nrepository = \"**\"\nunsigned = true\n";
    let path = installation.0.path().join("etc/bpfman-hook/policy.toml");
    fs::write(&path, policy).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();

    let mut pull = installation.pull(&format!("{}/img/gzip:v1", registry.host()));
    until("the child asks for a blob", || registry.requests().iter().any(|target| target.contains("/blobs/")));
    let [child] = children(pull.id())[..] else { panic!("{:?}", children(pull.id())) };

    let port: u16 = registry.host().rsplit(':').next().unwrap().parse().unwrap();
    let connected = connections(port);
    assert!(!connected.is_empty());
    assert!(connected.is_subset(&sockets(child)), "the child has the connection");
    assert!(connected.is_disjoint(&sockets(pull.id())), "its parent has not");

    let ids: BTreeSet<String> = status(child, "Uid").split_whitespace().map(str::to_owned).collect();
    assert_eq!(ids.len(), 1, "real, effective, saved and file system id are one");
    assert!(ids.iter().all(|id| id.parse::<u32>().unwrap() > 65_536), "{ids:?}: and not used by another account");
    assert_eq!(status(child, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(child, set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(status(child, "NoNewPrivs"), "1");
    assert_eq!(fs::read(format!("/proc/{child}/environ")).unwrap(), b"", "no environment");

    pull.kill().unwrap();
    pull.wait().unwrap();
    until("the child dies with its parent", || !Path::new(&format!("/proc/{child}")).exists());
}

#[test]
fn a_child_that_is_killed_is_an_error_of_its_own() {
    let hook = |request: &crate::registry::Request| match request.target.contains("/manifests/") {
        true => Reply::Stall,
        false => Reply::Normal,
    };
    let registry = Registry::start(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
    let installation = Installation::new();
    let pull = installation.pull(&format!("{}/img/gzip:v1", registry.host()));
    until("the child asks for the manifest", || !registry.requests().is_empty());
    let [child] = children(pull.id())[..] else { panic!("{:?}", children(pull.id())) };
    let killed = Command::new("kill").args(["-KILL", &child.to_string()]).status().unwrap();
    assert!(killed.success());
    let output = pull.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the fetch process ended early: signal: 9"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// A small file system mounted on a directory; unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let small = Self(at.to_owned());
        small.run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "none"]);
        small
    }

    fn grow(&self, size: &str) {
        self.run("mount", &["-o", &format!("remount,size={size}")]);
    }

    fn run(&self, tool: &str, words: &[&str]) {
        assert!(Command::new(tool).args(words).arg(&self.0).status().unwrap().success(), "{tool} {words:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_one_error_and_leaves_nothing_incomplete() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let image = format!("{}/bpf/key-v2:v1", registry.host());
    // From no space at all to space for everything but the last files.
    for kib in [4, 8, 16, 24, 32, 40, 48] {
        let installation = Installation::new();
        let root = installation.0.path();
        for directory in ["var", "var/cache"] {
            fs::create_dir_all(root.join(directory)).unwrap();
            fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let cache = root.join("var/cache/bpfman-hook");
        let small = Small::mount(&cache, &format!("{kib}k"));
        let output = installation.pulled(&image);
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            assert!(kib > 32, "{kib} KiB hold it all");
            continue;
        }
        let last = said.lines().last().unwrap();
        assert!(last.contains(&format!("write the image cache {}", cache.display())), "{kib}: {said}");
        assert!(last.contains("No space left on device"), "{kib}: {said}");
        let mut left = Vec::new();
        let mut todo = vec![cache.clone()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => todo.push(entry.path()),
                    false => left.push(entry.path()),
                }
            }
        }
        // No temporary file, no lock; the remaining files are complete.
        for file in &left {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(!name.starts_with('.') && !name.ends_with(".lock"), "{kib}: {left:?}");
            assert!(fs::metadata(file).unwrap().len() > 0, "{kib}: {}", file.display());
        }
        small.grow("1m");
        let again = installation.pulled(&image);
        assert!(again.status.success(), "{kib}: {}", String::from_utf8_lossy(&again.stderr));
    }
}
