//! The environment of the operations: a lab, containers, the check that nothing is left, and the selection of faults.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::container::{Container, FIRST_ID};
use crate::stepper::Fault;
use crate::support::kernel::{cgroup2, remove_cgroup};
use crate::support::lab::Hooks;
use crate::support::process::fed;
use crate::support::world::World;

/// How long one operation is sampled in `make test-some-faults`.
const SAMPLE: Duration = Duration::from_secs(8);
/// The minimum number of faults, regardless of time.
const LEAST: usize = 5;

/// Tries all faults, or some of them until the sample time is over. `run` gets the number of the round and returns
/// whether the fault occurred.
pub fn each_fault(operation: &str, calls: &[&str], mut run: impl FnMut(usize, Fault) -> bool) {
    let errnos = [libc::ENOSPC, libc::EIO, libc::ENOMEM, libc::EPERM, libc::EINTR, libc::EAGAIN];
    let mut faults: Vec<Fault> = (1..=calls.len())
        .flat_map(|at| {
            let fails = errnos.iter().map(move |errno| Fault::Fail(at, *errno));
            [Fault::KillTree(at), Fault::KillCaller(at)].into_iter().chain(fails)
        })
        .collect();
    let all = everything();
    if !all {
        shuffle(&mut faults);
    }
    let (begun, count) = (Instant::now(), faults.len());
    let (mut tried, mut hit) = (0, 0);
    for (turn, fault) in faults.into_iter().enumerate() {
        if !all && turn >= LEAST && begun.elapsed() > SAMPLE {
            break;
        }
        tried += 1;
        hit += usize::from(run(turn, fault));
    }
    let calls = calls.len();
    eprintln!("{operation}: {calls} calls, {tried} of {count} faults tried in {:.0?}, {hit} came to pass", begun.elapsed());
    assert!(hit * 2 > tried, "{operation}: only {hit} of {tried} faults came to pass");
}

/// Whether all faults are tried, regardless of time.
pub fn everything() -> bool {
    std::env::var("FAULTS").is_ok_and(|which| which == "all")
}

/// Shuffles the faults; `FAULT_SEED` repeats an order (Knuth's MMIX generator).
fn shuffle(faults: &mut [Fault]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = std::env::var("FAULT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    eprintln!("FAULT_SEED={seed}");
    let mut state: u64 = seed;
    for at in (1..faults.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        faults.swap(at, (state >> 33) as usize % (at + 1));
    }
}

/// The lab and the images it requests.
pub struct Bench {
    pub world: World,
    image: String,
    count: usize,
}

/// A container in the state of createRuntime.
pub struct Pod {
    container: Option<Container>,
    cgroup: PathBuf,
    state: Value,
}

impl Bench {
    /// A lab whose store, bpffs and counters exist, so that each operation runs as on a host after its first container.
    pub fn new() -> Self {
        let bench = Self::with(|_| {});
        bench.clean("before the first fault");
        bench
    }

    /// The same, with preparations before our first run.
    pub fn with(prepare: impl FnOnce(&World)) -> Self {
        let mut world = World::new(Hooks::Ours);
        let image = world.signed("demo");
        prepare(&world);
        let mut bench = Self { world, image, count: 0 };
        let first = bench.started();
        bench.end(first, true);
        bench
    }

    /// A new container that requests programs, a map and a delegation.
    pub fn container(&mut self) -> Pod {
        self.count += 1;
        let container = Container::start("");
        let lab = &self.world.lab;
        let name = format!("{}-{}", lab.word(), self.count);
        let cgroup = cgroup2().join(&name);
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), container.pid().to_string()).unwrap();
        let bundle = lab.path("bundles").join(&name);
        fs::create_dir(&bundle).unwrap();
        let annotations = json!({
            "hook.bpfman.io/image": self.image,
            "hook.bpfman.io/programs": "xdp:count_packets iface=lo; cgroup_skb:count_egress",
            "hook.bpfman.io/maps": "packets:rw",
            "hook.bpfman.io/delegate": "maps",
        });
        let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
        let capabilities: Value = sets.iter().map(|set| ((*set).to_owned(), json!(["CAP_BPF", "CAP_NET_ADMIN"]))).collect();
        let ids = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65536 }]);
        let namespaces: Vec<Value> = ["user", "mount", "network"].iter().map(|kind| json!({ "type": kind })).collect();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/true"], "capabilities": capabilities },
            "root": { "path": container.root },
            "mounts": [{ "destination": "/sys", "type": "sysfs", "source": "sysfs" }],
            "annotations": annotations,
            "linux": { "namespaces": namespaces, "uidMappings": ids, "gidMappings": ids },
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let state = json!({
            "ociVersion": "1.0.2-dev", "id": name, "status": "creating", "pid": container.pid(),
            "bundle": bundle, "annotations": annotations,
        });
        Pod { container: Some(container), cgroup, state }
    }

    /// A container that has everything it requested.
    pub fn started(&mut self) -> Pod {
        let pod = self.container();
        let ended = fed(&mut self.hook("createRuntime"), &pod.creating());
        assert!(ended.status.success(), "{}", ended.stderr);
        pod
    }

    /// One of our hooks.
    pub fn hook(&self, stage: &str) -> Command {
        self.world.lab.command(&["hook", stage])
    }

    /// Fails unless a container has everything exactly once.
    pub fn complete(&self, pod: &Pod, context: &str) {
        let records = self.world.lab.records();
        let ready = records.iter().any(|record| record["id"] == pod.state["id"] && record["state"] == "ready");
        assert!(ready, "{context}: it succeeded without its record: {records:#?}");
        self.world.lab.expect_links(2, context);
        let mounts = pod.container.as_ref().unwrap().bpffs_lines();
        assert_eq!(mounts.len(), 1, "{context}: {mounts:#?}");
    }

    /// Stops a container, and runs poststop if the runtime would.
    pub fn end(&self, mut pod: Pod, poststop: bool) {
        pod.stop();
        if poststop {
            fed(&mut self.hook("poststop"), &pod.stopped());
        }
    }

    /// What cleans up after a fault: `gc`, or the start of another container.
    pub fn recover(&mut self, turn: usize) {
        if turn.is_multiple_of(2) {
            self.world.lab.ours(&["gc"]);
        } else {
            let other = self.started();
            self.end(other, true);
        }
    }

    /// Checks that nothing is left: no object, pin, mount, process, record, owner file or temporary file.
    pub fn clean(&self, context: &str) {
        eprintln!("{context}");
        self.world.lab.residue();
        let run = self.world.lab.path("root/run/bpfman-hook");
        let known = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            ["log", "events", "events.1", "counters", "lock", "data.mdb", "lock.mdb", "writer", "programs", "token-reach.json"]
                .contains(&name)
        };
        let strange: Vec<_> =
            files(&run).into_iter().filter(|path| !path.starts_with(run.join("fs")) && !known(path)).collect();
        assert!(strange.is_empty(), "{context}: left {strange:#?}");
    }

    /// Checks that the image cache contains nothing unfinished.
    pub fn no_unfinished_image(&self, context: &str) {
        let cache = self.world.lab.path("root/var/cache/bpfman-hook");
        let unfinished = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let strange: Vec<_> =
            files(&cache).into_iter().filter(|path| unfinished(path) || path.starts_with(cache.join("flights"))).collect();
        assert!(strange.is_empty(), "{context}: left {strange:#?}");
    }
}

impl Pod {
    /// The state that createRuntime gets.
    pub fn creating(&self) -> String {
        self.state.to_string()
    }

    /// The state that poststop gets.
    pub fn stopped(&self) -> String {
        let mut state = self.state.clone();
        state["status"] = json!("stopped");
        state.as_object_mut().unwrap().remove("pid");
        state.to_string()
    }

    /// Ends its init.
    pub fn stop(&mut self) {
        self.container = None;
        remove_cgroup(&self.cgroup);
    }
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => todo.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}
