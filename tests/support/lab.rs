//! One test's environment: a directory with only root-owned path components, with our `--root`, images, bundles and
//! runtimes below it, and the final check that nothing is left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::kernel::{self, Objects};
use super::process::{Ended, ended, eventually, tool};
use crate::harness;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_bpfman-hook");

/// Whether bundles have our hooks. Without them every case must fail: this tests the suite itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// createRuntime and poststop run the binary under test.
    Ours,
    /// No hook at all.
    Removed,
}

/// BPF objects have no owner, so a test can tell which ones are new only if no other test creates any: one test at a
/// time on this machine.
static TURN: Mutex<()> = Mutex::new(());
static NEXT: AtomicU32 = AtomicU32::new(0);
const PLACE: &str = "/var/lib";
const NAME: &str = "bpfman-hook-test-";

/// One test's directory, and the state of the machine before the test.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    /// Whether bundles of this lab have our hooks.
    pub hooks: Hooks,
    objects: Objects,
    mounts: BTreeSet<(PathBuf, String)>,
    _turn: (MutexGuard<'static, ()>, File),
}

impl Lab {
    /// Waits for its turn and creates the directory.
    pub fn new(hooks: Hooks) -> Self {
        assert!(is_root(), "harness: these tests make namespaces, mounts and BPF objects: run `sudo make test-e2e`");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = File::create("/run/bpfman-hook-test.lock").unwrap_or_else(|e| harness!("create the lock file: {e}"));
        lock.lock().unwrap_or_else(|e| harness!("wait for other tests: {e}"));
        sweep();
        let dir = Path::new(PLACE).join(format!("{NAME}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        for part in ["", "root", "root/etc", "root/etc/bpfman-hook", "images", "bundles", "bin", "runc", "crun"] {
            let path = dir.join(part);
            fs::create_dir(&path).unwrap_or_else(|e| harness!("create {}: {e}", path.display()));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap_or_else(|e| harness!("chmod: {e}"));
        }
        Self { objects: Objects::now(), mounts: kernel::mounts(), dir, hooks, _turn: (turn, lock) }
    }

    /// A path below the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The value of `--root`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Our bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.path("root/run/bpfman-hook/fs")
    }

    /// A word that is in the id of every container of this lab and in no other id.
    pub fn word(&self) -> String {
        self.dir.file_name().expect("the directory has a name").to_string_lossy().replace("bpfman-hook-test", "bht")
    }

    /// The argv of one of our hooks.
    pub fn hook_arguments(&self, stage: &str, engine: Option<&str>) -> Vec<String> {
        // In the order of the installed hook files, which the binary parses without clap.
        let root = self.root().display().to_string();
        let mut words: Vec<String> = ["bpfman-hook", "hook", stage, "--root", &root].map(str::to_owned).to_vec();
        if let Some(engine) = engine {
            words.extend(["--engine", engine].map(str::to_owned));
        }
        words
    }

    /// One of our commands on this lab's root.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--root").arg(self.root()).args(args);
        command
    }

    /// Runs one of our commands, which must succeed, and returns its standard output.
    pub fn ours(&self, args: &[&str]) -> String {
        let Ended { status, stdout, stderr } = ended(&mut self.command(args));
        assert!(status.success(), "bpfman-hook {args:?}: {status}: {stderr}");
        stdout
    }

    /// Runs one of our commands, which must succeed and print JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ours(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("bpfman-hook {args:?} -o json: {e}: {text}"))
    }

    /// Writes the policy.
    pub fn policy(&self, text: &str) {
        let path = self.path("root/etc/bpfman-hook/policy.toml");
        fs::write(&path, text).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
    }

    /// Writes a world-readable file below the directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
        path
    }

    /// The hook's log, for hosts without a journal.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("root/run/bpfman-hook/log")).unwrap_or_default()
    }

    /// The BPF objects that were created since the lab was made.
    pub fn new_objects(&self) -> Vec<String> {
        Objects::now().since(&self.objects)
    }

    /// Fails unless exactly this number of our recorded links exists in the kernel. Other processes on this machine may
    /// create links too, so only recorded ones count; `residue` finds those that are not recorded.
    pub fn expect_links(&self, number: usize, why: &str) {
        let Value::Array(links) = self.json(&["list", "links"]) else { panic!("list links -o json is not a list") };
        let objects = Objects::now();
        let there = links.iter().filter_map(|link| link["id"].as_u64()).filter(|id| objects.has("link", *id)).count();
        assert_eq!(there, number, "{why}: {links:#?}");
    }

    /// The same for links of a pod that has just been removed: gc releases them asynchronously.
    pub fn expect_links_soon(&self, number: usize, why: &str) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            match self.json(&["list", "links"]) {
                Value::Array(links) if links.len() == number => break,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.expect_links(number, why);
    }

    /// Checks that nothing is left: no object, pin, mount, process or cgroup, and no record except those of failed
    /// requests.
    ///
    /// The kernel frees some objects a moment after their last reference is gone, so each check is retried.
    pub fn residue(&self) {
        self.residue_within(Duration::from_secs(10));
    }

    /// The same with another timeout.
    pub fn residue_within(&self, patience: Duration) {
        let mut left = Vec::new();
        let deadline = std::time::Instant::now() + patience;
        loop {
            left.clear();
            left.extend(self.new_objects());
            left.extend(pins(&self.bpffs()).into_iter().map(|pin| format!("pin {}", pin.display())));
            let ours = (self.bpffs(), "bpf".to_owned());
            left.extend(
                kernel::mounts()
                    .difference(&self.mounts)
                    .filter(|mount| **mount != ours && (mount.1 == "bpf" || mount.0.starts_with(&self.dir)))
                    .map(|(point, kind)| format!("{kind} mount on {}", point.display())),
            );
            left.extend(kernel::processes_of(&self.dir).into_iter().map(|(pid, line)| format!("process {pid} {line}")));
            left.extend(kernel::cgroups_named(&self.word()).into_iter().map(|path| format!("cgroup {}", path.display())));
            if left.is_empty() || std::time::Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
        let records = self.records();
        assert!(records.is_empty(), "records left behind: {records:#?}");
    }

    /// The recorded owners, except those of failed requests, which are kept intentionally with their reason.
    pub fn records(&self) -> Vec<Value> {
        let Value::Array(all) = self.json(&["list", "containers"]) else { panic!("list containers -o json is not a list") };
        all.into_iter().filter(|record| record["state"] != "failed").collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Printed with the failure: libtest captures it otherwise.
        if std::thread::panicking() && !self.log().is_empty() {
            eprintln!("our log:\n{}", self.log());
        }
        clear(&self.dir);
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Every file in a bpffs, and every directory except its root. The kernel's preloaded iterators do not count.
pub fn pins(bpffs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![bpffs.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
            if !matches!(entry.file_name().to_str(), Some("maps.debug" | "progs.debug")) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Removes what killed test runs left.
fn sweep() {
    for entry in fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(NAME)).and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            clear(&entry.path());
        }
    }
}

/// Ends every container and process below a lab's directory, and unmounts and removes everything.
fn clear(dir: &Path) {
    for runtime in ["runc", "crun"] {
        for container in fs::read_dir(dir.join(runtime)).into_iter().flatten().flatten() {
            let id = container.file_name();
            let _gone = Command::new(runtime).arg("--root").arg(dir.join(runtime)).args(["delete", "-f"]).arg(id).output();
        }
    }
    for (pid, _) in kernel::processes_of(dir) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    for (point, _) in kernel::mounts().into_iter().rev().filter(|(point, _)| point.starts_with(dir)) {
        let _gone = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
    if let Some(word) = dir.file_name().and_then(|name| name.to_str()) {
        for cgroup in kernel::cgroups_named(&word.replace("bpfman-hook-test", "bht")) {
            kernel::remove_cgroup(&cgroup);
        }
    }
    let _left = fs::remove_dir_all(dir);
}

/// Waits until a process is gone.
pub fn wait_gone(pid: u32) {
    eventually(&format!("the end of process {pid}"), Duration::from_secs(10), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
        matches!(state, None | Some(Some('Z' | 'X'))).then_some(())
    });
}

/// Changes the owner of a file or a tree.
pub fn chown_tree(path: &Path, id: u32) {
    tool(Command::new("chown").args(["-hR", &format!("{id}:{id}")]).arg(path));
}
