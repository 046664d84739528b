//! Acquire, release and reconcile with a real store, a fake kernel and a fake host: a failure and a kill at each
//! effect.
#![allow(clippy::result_large_err, reason = "an error is made once in a test, and its size is the library's affair")]

#[path = "support/fake.rs"]
mod fake;
#[path = "lifecycle/gated.rs"]
mod gated;
#[path = "lifecycle/by_hand.rs"]
mod manual;
#[path = "lifecycle/policed.rs"]
mod policed;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bpfman_hook::image::{ImageError, Images, Want};
use bpfman_hook::lifecycle::acquire::{Acquired, Start};
use bpfman_hook::lifecycle::missed::MissedOutcome;
use bpfman_hook::lifecycle::policy_files::LoadedPolicy;
use bpfman_hook::lifecycle::reconcile::GcMode;
use bpfman_hook::lifecycle::release::Released;
use bpfman_hook::lifecycle::{Cause, Lifecycle};
use bpfman_hook::model::annotations::Request;
use bpfman_hook::model::attach_point::{CgroupAttach, ProgramKind};
use bpfman_hook::model::bytecode::{Bytecode, ImageVerdict};
use bpfman_hook::model::container::Container;
use bpfman_hook::model::event::Event;
use bpfman_hook::model::facts::NetnsFact;
use bpfman_hook::model::ids::{Digest, Pid};
use bpfman_hook::model::metrics_table::Remedy;
use bpfman_hook::model::missed::Missed;
use bpfman_hook::model::object::{MapFacts, ObjectFacts, ProgramFacts, SectionAttach};
use bpfman_hook::model::policy::{ContainerFacts, Engine, OnMissed, Policy, PolicyId};
use bpfman_hook::model::proxy::profile::ProxySockets;
use bpfman_hook::model::record::{LinkState, Owner, OwnerRecord, Phase};
use bpfman_hook::model::registries::RegistryConfig;
use bpfman_hook::model::state::OciState;
use bpfman_hook::store::{Store, StoreError};
use bpfman_hook::sys::export;
use fake::{Effects, FakeHost, FakeKernel, Killed, Trouble, process};

const BOOT: &str = "11111111-2222-3333-4444-555555555555";
const INIT: u32 = 500;
const HOOK: u32 = 400;

/// Returns one object for every reference.
struct OneImage;

impl Images for OneImage {
    fn fetch(&self, want: &Want<'_>) -> Result<Bytecode, ImageError> {
        Ok(Bytecode {
            reference: want.reference.clone(),
            digest: Digest::from_bytes([1; 32]),
            object_digest: Digest::from_bytes([2; 32]),
            object: Vec::new(),
            rule: want.rules[0].name.clone(),
            verdict: ImageVerdict::Unsigned,
        })
    }
}

/// A temporary installation.
struct World {
    store: Store,
    fs: PathBuf,
    effects: Effects,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let fs = directory.path().join("fs");
        fs::create_dir(&fs).expect("bpffs");
        let store = Store::open(&directory.path().join("store"), BOOT).expect("store");
        Self { store, fs, effects: Effects::default(), _directory: directory }
    }

    fn kernel(&self) -> FakeKernel<'_> {
        FakeKernel::new(&self.effects, object())
    }

    fn records(&self) -> Vec<OwnerRecord> {
        self.store.records().filter_map(Result::ok).collect()
    }

    /// Changes some bytes of the store, wherever they are.
    fn damage(&self, from: &[u8], to: &[u8]) {
        use std::os::unix::fs::FileExt as _;
        let path = self._directory.path().join("store").join(BOOT).join("data.mdb");
        let bytes = fs::read(&path).expect("the store");
        let file = fs::File::options().write(true).open(&path).expect("the store");
        for at in bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from).map(|(at, _)| at) {
            file.write_all_at(to, at as u64).expect("write");
        }
    }

    /// Asserts that records and pins agree: each owner that has programs has a directory, and there are no other
    /// directories.
    fn consistent(&self, context: &str) {
        let named = |r: &OwnerRecord| !r.programs.is_empty();
        let mut owners: Vec<_> = self.records().iter().filter(|r| named(r)).map(|r| r.no.directory()).collect();
        let entries = fs::read_dir(&self.fs).expect("bpffs");
        let mut pins: Vec<_> = entries.map(|e| e.expect("entry").file_name().into_string().expect("name")).collect();
        owners.sort();
        pins.sort();
        assert_eq!(owners, pins, "{context}: {:?}", self.records());
    }

    /// Asserts that there are no pins, and no records except those of failures; returns their reasons.
    fn residue(&self, context: &str) -> Vec<String> {
        let pins: Vec<_> = fs::read_dir(&self.fs).expect("bpffs").map(|e| e.expect("entry").path()).collect();
        assert!(pins.is_empty(), "{context}: left {pins:?}");
        let records = self.records();
        for record in &records {
            assert_eq!(record.phase, Phase::Failed, "{context}: left {record:?}");
            assert!(record.programs.is_empty() && record.links.is_empty() && record.maps.is_empty(), "{context}: {record:?}");
        }
        records.into_iter().filter_map(|r| r.failure).collect()
    }
}

fn object() -> ObjectFacts {
    let program = |function: &str, section: &str, declared| ProgramFacts {
        function: function.to_owned(),
        section: section.to_owned(),
        declared: Some(declared),
    };
    ObjectFacts {
        programs: vec![
            program("count", "xdp", SectionAttach::Xdp),
            program("out", "cgroup_skb/egress", SectionAttach::Cgroup(ProgramKind::CgroupSkb, Some(CgroupAttach::Egress))),
        ],
        maps: vec![MapFacts {
            name: "packets".to_owned(),
            map_type: 2,
            key_size: 4,
            value_size: 8,
            max_entries: 2,
            flags: 0,
            data_section: false,
        }],
        globals: Vec::new(),
        core: false,
        signed: false,
        executables: Default::default(),
    }
}

const PROGRAMS: &str = "xdp:count iface=lo; cgroup_skb:out";

/// A container with the standard parts of a request, and more annotations.
fn container(id: &str, bundle: &str, init: u32, programs: &str, more: &[(&str, &str)]) -> Container {
    let mut annotations: BTreeMap<String, String> = BTreeMap::new();
    annotations.insert("hook.bpfman.io/image".to_owned(), "oci:/images/count".to_owned());
    annotations.insert("hook.bpfman.io/programs".to_owned(), programs.to_owned());
    annotations.extend(more.iter().map(|(k, v)| (format!("hook.bpfman.io/{k}"), (*v).to_owned())));
    let json = serde_json::json!({"id": id, "pid": init, "status": "creating", "bundle": bundle, "annotations": annotations});
    let state = OciState::parse(&json.to_string()).expect("state");
    let map = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let capabilities = serde_json::json!(["CAP_BPF", "CAP_NET_ADMIN"]);
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}},
        "annotations": annotations,
        "linux": {
            "namespaces": [{"type": "user"}, {"type": "network"}, {"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
            "uidMappings": map, "gidMappings": map,
        },
    });
    Container::parse(&state, &config.to_string(), Some(Engine::Oci)).expect("container")
}

fn policy(more: &str) -> LoadedPolicy {
    let text = format!(
        "[[image]]\nname = \"all\"\nrepository = \"oci:/images\"\nunsigned = true\n\
         [[container]]\nprograms = [\"xdp\", \"cgroup_skb\"]\ndelegate = [\"networking\"]\n{more}"
    );
    LoadedPolicy {
        policy: Policy::parse(&[(PathBuf::from("/policy.toml"), text)]).expect("policy"),
        keys: BTreeMap::new(),
        id: PolicyId(Digest::from_bytes([9; 32])),
    }
}

/// One run of createRuntime by a process.
fn create(world: &World, host: &FakeHost<'_>, container: &Container, policy: &LoadedPolicy) -> Result<Acquired, Cause> {
    let kernel = world.kernel();
    let lifecycle = lifecycle(world, &kernel, host);
    let request = Request::parse(&container.config.annotations, None).expect("request").expect("annotations of ours");
    let fetch_until = Instant::now() + Duration::from_secs(1);
    let start = Start {
        container,
        request: &request,
        policy,
        registries: &RegistryConfig::default(),
        fetch_until,
        token_reach: &world.fs.join("token-reach.json"),
        proxy_sockets: &ProxySockets { shared: world.fs.join("proxy.sock"), directory: world.fs.join("proxy") },
    };
    lifecycle.acquire(&OneImage, start)
}

fn lifecycle<'a, 'h>(
    world: &'a World,
    kernel: &'a FakeKernel<'a>,
    host: &'a FakeHost<'h>,
) -> Lifecycle<'a, FakeKernel<'a>, FakeHost<'h>> {
    Lifecycle { kernel, host, store: &world.store, fs: &world.fs, deadline: 1000 }
}

/// One run of poststop by a process.
fn stop(world: &World, host: &FakeHost<'_>, id: &str) -> Vec<Released> {
    let kernel = world.kernel();
    let results = lifecycle(world, &kernel, host).release_container(&id.parse().expect("id")).expect("release");
    results.into_iter().map(|(_, released)| released).collect()
}

fn gc(world: &World, host: &FakeHost<'_>, mode: GcMode) -> Vec<String> {
    let kernel = world.kernel();
    let findings = lifecycle(world, &kernel, host).collect(mode, |_| false).expect("reconcile");
    findings.into_iter().map(|f| format!("{}: {}: {}", f.what, f.why, f.result)).collect()
}

fn web() -> Container {
    container("web", "/bundles/web", INIT, PROGRAMS, &[("delegate", "networking")])
}

/// The number of effects of a whole start, counted on a run without failures.
fn effects_of_a_start() -> usize {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    world.effects.count()
}

#[test]
fn a_stopped_container_leaves_nothing() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    let acquired = create(&world, &host, &web(), &policy("")).expect("start");
    assert!(matches!(acquired, Acquired::Done(_)));
    let records = world.records();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(record.phase, Phase::Ready);
    assert_eq!((record.programs.len(), record.links.len(), record.maps.len()), (2, 2, 1));
    assert!(record.programs.iter().all(|p| p.id().is_some()) && record.links.iter().all(|l| l.id().is_some()));
    let bpffs = record.owner.container().and_then(|container| container.bpffs.as_ref());
    assert!(bpffs.is_some_and(|b| b.delegation.is_some()));

    host.end(INIT);
    assert!(matches!(stop(&world, &host, "web")[..], [Released::Gone]));
    assert!(world.residue("after poststop").is_empty());
    assert!(stop(&world, &host, "web").is_empty(), "a second poststop finds nothing and succeeds");
}

#[test]
fn a_failure_at_each_effect_leaves_only_its_reason() {
    let count = effects_of_a_start();
    assert!(count >= 7, "directory, map, two programs, two links, bpffs: {count}");
    for n in 1..=count {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        world.effects.problem_at(n, Trouble::FailBefore);
        create(&world, &host, &web(), &policy("")).expect_err("the effect failed");
        let reasons = world.residue(&format!("failure at effect {n}"));
        assert_eq!(reasons.len(), 1, "failure at effect {n}: {reasons:?}");
    }
}

#[test]
fn a_kill_at_each_effect_of_a_start_is_collected() {
    let count = effects_of_a_start();
    for problem in [Trouble::KillBefore, Trouble::KillAfter] {
        for n in 1..=count {
            let context = format!("{problem:?} at effect {n}");
            let world = World::new();
            let host = FakeHost::new(&world.effects, HOOK);
            world.effects.problem_at(n, problem);
            let death = catch_unwind(AssertUnwindSafe(|| create(&world, &host, &web(), &policy(""))));
            assert!(death.expect_err(&context).is::<Killed>(), "{context}");
            world.effects.calm();

            // While the hook lives, no other process may touch what it works on.
            let other = FakeHost::new(&world.effects, HOOK + 1);
            assert!(gc(&world, &other, GcMode::Release).is_empty(), "{context}: gc touched a living actor's owner");
            other.end(HOOK);
            other.end(INIT);
            assert_eq!(gc(&world, &other, GcMode::Tell).len(), 1, "{context}");
            assert_eq!(gc(&world, &other, GcMode::Release).len(), 1, "{context}");
            world.residue(&context);
        }
    }
}

#[test]
fn a_kill_at_each_effect_of_a_stop_is_collected() {
    let started = || {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        create(&world, &host, &web(), &policy("")).expect("start");
        world.effects.calm();
        world
    };
    let world = started();
    let host = FakeHost::new(&world.effects, HOOK);
    host.end(INIT);
    stop(&world, &host, "web");
    let count = world.effects.count();
    assert!(count >= 6, "two links, two programs, a map, a directory: {count}");
    for problem in [Trouble::KillBefore, Trouble::KillAfter, Trouble::FailBefore] {
        for n in 1..=count {
            let context = format!("{problem:?} at effect {n}");
            let world = started();
            let host = FakeHost::new(&world.effects, HOOK);
            host.end(INIT);
            world.effects.problem_at(n, problem);
            match catch_unwind(AssertUnwindSafe(|| stop(&world, &host, "web"))) {
                Err(death) => assert!(death.is::<Killed>(), "{context}"),
                Ok(results) => {
                    assert!(matches!(results[..], [Released::Partly(_)]), "{context}: {results:?}");
                    assert!(!world.records()[0].leftovers.is_empty(), "{context}: the record does not say what is left");
                }
            }
            world.effects.calm();
            let other = FakeHost::new(&world.effects, HOOK + 1);
            other.end(HOOK);
            other.end(INIT);
            gc(&world, &other, GcMode::Release);
            assert!(world.residue(&context).is_empty());
        }
    }
}

#[test]
fn a_second_create_runtime_does_nothing_and_another_request_fails() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    let before = world.records();
    world.effects.calm();
    let again = create(&world, &host, &web(), &policy("")).expect("repeat");
    assert!(matches!(again, Acquired::Already(no) if no == before[0].no));
    assert_eq!(world.effects.count(), 0, "the repetition had effects");
    assert_eq!(world.records(), before);

    let other = container("web", "/bundles/web", INIT, "xdp:count iface=lo", &[]);
    let error = create(&world, &host, &other, &policy("")).expect_err("another request");
    assert!(matches!(error, Cause::OtherRequest { .. }), "{error}");
    assert!(world.records().iter().any(|r| *r == before[0]), "the first request lost something");
}

#[test]
fn an_id_belongs_to_one_running_container() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    let twin = container("web", "/elsewhere/web", INIT + 1, PROGRAMS, &[]);
    let error = create(&world, &host, &twin, &policy("")).expect_err("the id is taken");
    assert!(matches!(error, Cause::IdTaken { .. }), "{error}");
    assert!(error.to_string().contains("/bundles/web"), "{error}");

    // The first one died without a poststop: its id is free, and what it owned is released first.
    host.end(INIT);
    create(&world, &host, &twin, &policy("")).expect("the id is free");
    let ready: Vec<_> = world.records().into_iter().filter(|r| r.phase == Phase::Ready).collect();
    assert_eq!(ready.len(), 1);
    assert_eq!(fs::read_dir(&world.fs).expect("bpffs").count(), 1);
}

#[test]
fn poststop_leaves_a_running_container_alone() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    assert!(matches!(stop(&world, &host, "web")[..], [Released::Alive(pid)] if pid.get() == INIT));
    assert_eq!(world.records()[0].phase, Phase::Ready);
}

#[test]
fn gc_finds_what_poststop_missed_and_pins_without_a_record() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    assert!(gc(&world, &host, GcMode::Release).is_empty(), "a living container is nothing to collect");
    host.end(INIT);
    fs::create_dir(world.fs.join("owner_777")).expect("orphan");
    let told = gc(&world, &host, GcMode::Tell);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(gc(&world, &host, GcMode::Tell), told, "a dry run changed something");
    gc(&world, &host, GcMode::Release);
    assert!(world.residue("after gc").is_empty());
}

/// A process records its events in one directory, so this test runs in a process of its own.
#[test]
fn an_event_says_whether_gc_released_a_container() {
    const EXPORT: &str = "LIFECYCLE_TEST_EXPORT";
    if let Ok(directory) = std::env::var(EXPORT) {
        export::install(directory.into());
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        for (id, init) in [("web", 501), ("db", 502)] {
            create(&world, &host, &container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[]), &policy("")).expect("start");
        }
        host.end(501);
        host.end(502);
        stop(&world, &host, "web");
        gc(&world, &host, GcMode::Release);
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let export = directory.path().join("export");
    let mut process = Command::new(std::env::current_exe().expect("this test"));
    process.args(["--exact", "an_event_says_whether_gc_released_a_container"]).env(EXPORT, &export).stdout(Stdio::null());
    assert!(process.status().expect("this test").success());
    let events = fs::read_to_string(export.join(export::EVENTS)).expect("events");
    let events: Vec<Event> = events.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let told: Vec<_> =
        events.iter().map(|event| (event.what.as_str(), event.container.as_deref().unwrap_or_default())).collect();
    assert_eq!(told, [("acquired", "web"), ("acquired", "db"), ("released", "web"), ("collected", "db")]);
}

#[test]
fn a_running_container_keeps_its_programs_if_its_record_does_not_decode() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    world.damage(b"\"bundle\":", b"\"bXndle\":");
    assert!(world.records().is_empty(), "it no longer decodes");
    for mode in [GcMode::Tell, GcMode::Release] {
        let told = gc(&world, &host, mode);
        assert!(told.len() == 1 && told[0].contains("left: its container's init, process 500, is alive"), "{told:?}");
    }
    assert_eq!(fs::read_dir(&world.fs).expect("bpffs").count(), 1);
    host.end(INIT);
    let told = gc(&world, &host, GcMode::Release);
    assert!(told[0].starts_with("record 1: ") && told[0].ends_with(": released"), "{told:?}");
    assert!(world.residue("after gc").is_empty());
}

/// As after an upgrade within a boot whose records have another form.
#[test]
fn poststop_releases_a_container_whose_record_does_not_decode() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    world.damage(b"\"bundle\":", b"\"bXndle\":");
    let running = stop(&world, &host, "web");
    assert!(matches!(running[..], [Released::Alive(_)]), "{running:?}");
    assert_eq!(fs::read_dir(&world.fs).expect("bpffs").count(), 1);
    host.end(INIT);
    let released = stop(&world, &host, "web");
    assert!(matches!(released[..], [Released::Gone]), "{released:?}");
    assert!(world.residue("after poststop").is_empty());
}

#[test]
fn a_start_that_completes_during_gc_is_left_alone() {
    // gc reads a Pending record; the start is completed and its process ends; gc finds the process dead.
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    let mut pending = world.records()[0].clone();
    pending.phase = Phase::Pending;
    let other = FakeHost::new(&world.effects, HOOK + 1);
    other.end(HOOK);
    let kernel = world.kernel();
    let released = lifecycle(&world, &kernel, &other).release(&pending).expect("release");
    assert!(matches!(released, Released::Changed), "{released:?}");
    assert_eq!(world.records()[0].phase, Phase::Ready, "a living container lost its programs");
    assert_eq!(fs::read_dir(&world.fs).expect("bpffs").count(), 1);
}

#[test]
fn a_container_that_starts_during_poststop_keeps_its_programs() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("")).expect("start");
    let old = world.records()[0].clone();
    host.end(INIT);
    create(&world, &host, &container("web", "/bundles/web", INIT + 1, PROGRAMS, &[]), &policy("")).expect("the next start");
    let kernel = world.kernel();
    let released = lifecycle(&world, &kernel, &host).release(&old).expect("release");
    assert!(matches!(released, Released::Absent), "{released:?}");
    assert_eq!(world.records().len(), 1);
}

#[test]
fn containers_of_a_pod_share_its_network_programs() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: Some("pod".to_owned()), pause: None };
    let member = |id: &str, init, programs: &str| container(id, &format!("/bundles/{id}"), init, programs, &[]);
    create(&world, &host, &member("a", 501, PROGRAMS), &policy("")).expect("first");
    create(&world, &host, &member("b", 502, PROGRAMS), &policy("")).expect("second joins");
    let netns: Vec<_> = world.records().into_iter().filter(|r| matches!(r.owner, Owner::Netns(_))).collect();
    assert_eq!(netns.len(), 1, "{netns:?}");
    assert_eq!((netns[0].links.len(), netns[0].owner.holders().len()), (1, 2));

    let error = create(&world, &host, &member("c", 503, "xdp:count iface=*"), &policy("")).map(|_| ());
    assert!(error.is_ok(), "another interface is free: {error:?}");
    let error = create(&world, &host, &member("d", 504, "xdp:count iface=lo mode=skb"), &policy("")).expect_err("taken");
    assert!(matches!(&error, Cause::NetnsTaken { iface, holders } if iface == "lo" && holders == "a, b"), "{error}");

    for (init, id) in [(501, "a"), (503, "c")] {
        host.end(init);
        assert!(matches!(stop(&world, &host, id)[..], [Released::Gone]));
    }
    let netns: Vec<_> = world.records().into_iter().filter(|r| matches!(r.owner, Owner::Netns(_))).collect();
    assert_eq!(netns.len(), 1, "b still holds the pod's programs: {netns:?}");
    host.end(502);
    stop(&world, &host, "b");
    assert_eq!(world.residue("after the last of the pod").len(), 1, "d's refusal alone is kept");
}

#[test]
fn containers_of_a_pod_see_the_maps_of_its_programs() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: Some("pod".to_owned()), pause: None };
    let member = |id: &str, init, maps: &str| container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[("maps", maps)]);
    create(&world, &host, &member("a", 501, "packets:rw"), &policy("")).expect("first");
    create(&world, &host, &member("b", 502, "packets:rw"), &policy("")).expect("second joins");
    let records = world.records();
    let pod = records.iter().find(|r| matches!(r.owner, Owner::Netns(_))).expect("the pod's record");
    let ids: Vec<_> = records.iter().flat_map(|r| &r.maps).map(|map| map.id().expect("an id")).collect();
    assert_eq!(ids, [pod.maps[0].id().expect("an id"); 3], "one map: {records:#?}");

    // A map that one container writes cannot be read-only for another one, in either order.
    let error = create(&world, &host, &member("c", 503, "packets:ro"), &policy("")).expect_err("a and b write it");
    assert!(error.to_string().contains("container a of the pod has it as rw; request it in the same way in both"), "{error}");
    for (init, id) in [(501, "a"), (502, "b")] {
        host.end(init);
        assert!(matches!(stop(&world, &host, id)[..], [Released::Gone]));
    }
    create(&world, &host, &member("d", 504, "packets:ro"), &policy("")).expect("the next pod");
    let error = create(&world, &host, &member("e", 505, "packets:rw"), &policy("")).expect_err("it is frozen");
    assert!(error.to_string().contains("container d of the pod has it as ro"), "{error}");
    create(&world, &host, &member("f", 506, "packets:ro"), &policy("")).expect("the same as d");
    for (init, id) in [(504, "d"), (506, "f")] {
        host.end(init);
        stop(&world, &host, id);
    }
    assert_eq!(world.residue("after the pod").len(), 2, "two refusals");
}

#[test]
fn a_pods_programs_outlive_the_restart_of_its_containers() {
    let pause = 400;
    // The sandbox has a process, or only the interfaces show that the pod lives.
    for by_process in [true, false] {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        world.effects.interfaces.set(true);
        *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: None, pause: by_process.then(|| process(pause)) };
        let member = |id: &str, init, programs: &str| container(id, &format!("/bundles/{id}"), init, programs, &[]);
        let netns = || -> Vec<_> { world.records().into_iter().filter(|r| matches!(r.owner, Owner::Netns(_))).collect() };

        // A first start that fails leaves nothing in a pod that lives.
        world.effects.problem_at(8, Trouble::FailBefore);
        create(&world, &host, &member("a", 500, PROGRAMS), &policy("")).expect_err("its own program fails");
        world.effects.calm();
        assert_eq!(netns(), [], "by_process {by_process}");

        create(&world, &host, &member("a", 501, PROGRAMS), &policy("")).expect("first");
        let before = netns();
        for (n, init) in [(1, 502), (2, 503)] {
            host.end(init - 1);
            stop(&world, &host, if n == 1 { "a" } else { "b" });
            assert_eq!((netns().len(), netns()[0].owner.holders().len()), (1, 0), "by_process {by_process}");
            assert_eq!(gc(&world, &host, GcMode::Release), [""; 0], "the pod lives");
            create(&world, &host, &member("b", init, PROGRAMS), &policy("")).expect("restart");
            assert_eq!((netns().len(), netns()[0].no, &netns()[0].links), (1, before[0].no, &before[0].links));
        }
        // The pod's new request replaces programs that no container holds any more.
        host.end(503);
        stop(&world, &host, "b");
        create(&world, &host, &member("c", 504, "xdp:count iface=lo mode=skb"), &policy("")).expect("another request");
        assert_eq!(netns().len(), 1);
        assert_ne!(netns()[0].no, before[0].no);
        host.end(504);
        stop(&world, &host, "c");
        assert_eq!(netns().len(), 1);

        if by_process {
            host.end(pause)
        } else {
            world.effects.interfaces.set(false)
        }
        let found = gc(&world, &host, GcMode::Release);
        assert!(matches!(&found[..], [one] if one.contains("its pod is gone")), "{found:?}");
        world.residue("after the pod");
    }
}

#[test]
fn a_missed_container_is_recorded_once_and_killed_if_the_policy_says_so() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    let kernel = world.kernel();
    let lifecycle = lifecycle(&world, &kernel, &host);
    let missed = |id: &str, pid: u32, cgroups_path: &str| Missed {
        id: id.parse().expect("legal"),
        pid: Pid::new(pid).expect("not zero"),
        cgroups_path: cgroups_path.to_owned(),
        facts: ContainerFacts {
            engine: Engine::Containerd,
            namespace: Some("shop".to_owned()),
            pod: Some("front".to_owned()),
            container: Some("web".to_owned()),
            labels: BTreeMap::new(),
            runtime_user: 0,
            userns: false,
        },
        annotations: BTreeMap::new(),
        token_of: None,
    };
    let deal = |missed: &Missed, remedy| lifecycle.missed(missed, remedy).expect("dealt with");
    let reasons =
        || -> Vec<_> { world.records().into_iter().map(|r| (r.owner.is_missed(), r.failure.expect("a reason"))).collect() };

    let web = missed("web", 601, "/pods/web");
    assert_eq!(deal(&web, OnMissed::Report), MissedOutcome::New(Remedy::Reported));
    assert_eq!(deal(&web, OnMissed::Report), MissedOutcome::Known, "the next Synchronize");
    assert!(matches!(&reasons()[..], [(true, reason)] if reason.contains("delete its pod")), "{:?}", reasons());
    assert_eq!(gc(&world, &host, GcMode::Release), [""; 0], "it runs");
    // It was restarted under its own id, first without our hooks and then with them.
    host.end(601);
    assert_eq!(deal(&missed("web", 602, "/pods/web"), OnMissed::Report), MissedOutcome::New(Remedy::Reported));
    assert_eq!(world.records().len(), 1);
    host.end(602);
    create(&world, &host, &container("web", "/bundles/web", 603, PROGRAMS, &[]), &policy("")).expect("start");
    assert_eq!(deal(&missed("web", 603, "/pods/web"), OnMissed::Kill), MissedOutcome::Well, "it has what it asked for");
    assert!(!world.records()[0].owner.is_missed());
    host.end(603);
    stop(&world, &host, "web");
    assert_eq!(deal(&missed("web", 603, "/pods/web"), OnMissed::Kill), MissedOutcome::Well, "it has ended");

    // The record is removed with its init.
    assert_eq!(deal(&missed("db", 604, "/pods/db"), OnMissed::Report), MissedOutcome::New(Remedy::Reported));
    host.end(604);
    let found = gc(&world, &host, GcMode::Release);
    assert!(matches!(&found[..], [one] if one.contains("container db") && one.contains("process 604, is gone")), "{found:?}");
    assert!(world.residue("after gc").is_empty());

    let elsewhere = missed("web", 605, "/pods/db");
    assert_eq!(deal(&elsewhere, OnMissed::Kill), MissedOutcome::New(Remedy::Spared));
    assert_eq!(deal(&elsewhere, OnMissed::Kill), MissedOutcome::Known);
    assert!(matches!(&reasons()[..], [(true, reason)] if reason.contains("it is elsewhere")), "{:?}", reasons());
    // The next check sees its real place.
    assert_eq!(deal(&missed("web", 605, "/pods/web"), OnMissed::Kill), MissedOutcome::New(Remedy::Killed));
    assert!(host.dead.borrow().contains(&605));
    gc(&world, &host, GcMode::Release);
    assert!(
        matches!(&reasons()[..], [(false, reason)] if reason.ends_with("killed, as the policy demands")),
        "{:?}",
        reasons()
    );
}

#[test]
fn on_failure_continue_needs_the_policys_permission() {
    let asking = container("web", "/bundles/web", INIT, "xdp:count iface=eth7", &[("on-failure", "continue")]);
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &asking, &policy("")).expect_err("policy does not allow it");
    let allowed = policy("on-failure = [\"stop\", \"continue\"]\n");
    let acquired = create(&world, &host, &asking, &allowed).expect("starts without");
    assert!(matches!(acquired, Acquired::Without(_)));
    let reasons = world.residue("continue");
    assert!(reasons.len() == 1 && reasons[0].contains("eth7"), "{reasons:?}");
}

#[test]
fn a_container_with_a_mounted_bpffs_does_not_start_without_its_record() {
    let asking = container("web", "/bundles/web", INIT, PROGRAMS, &[("delegate", "networking"), ("on-failure", "continue")]);
    let allowed = policy("on-failure = [\"stop\", \"continue\"]\n");
    let looks = {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        create(&world, &host, &asking, &allowed).expect("start");
        host.looks()
    };
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    // The last check of the clock is before the mount.
    let lose = || {
        let no = world.records()[0].no;
        world.store.write::<_, StoreError>(|txn| txn.delete(no)).expect("delete");
    };
    host.meanwhile(looks, &lose);
    let error = create(&world, &host, &asking, &allowed).expect_err("the bpffs cannot be taken away again");
    assert!(matches!(error, Cause::RecordGone { .. }), "{error}");
}

#[test]
fn a_token_without_a_user_namespace_is_refused_before_anything_happens() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    host.userns.set(false);
    let error = create(&world, &host, &web(), &policy("")).expect_err("no user namespace");
    assert!(error.to_string().contains("user namespace"), "{error}");
    assert_eq!(world.effects.count(), 0);
    assert_eq!(world.residue("refusal").len(), 1);
}

/// Concurrent activity at each moment of a start; afterwards the start, and every other start that succeeded, has
/// everything it requested.
#[test]
fn concurrent_activity_between_two_steps_of_a_start() {
    let looks = {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        create(&world, &host, &web(), &policy("")).expect("start");
        host.looks()
    };
    assert!(looks >= 4, "after the images, before each object, link and the bpffs: {looks}");
    let twin = container("web", "/elsewhere/web", INIT + 1, PROGRAMS, &[]);
    let refused = container("web", "/elsewhere/web", INIT + 1, "xdp:count iface=eth7", &[]);
    type Other<'a> = Box<dyn Fn(&World, &FakeHost<'_>) + 'a>;
    let others: [(&str, Other<'_>); 5] = [
        ("poststop", Box::new(|world, host| _ = stop(world, host, "web"))),
        ("gc", Box::new(|world, host| _ = gc(world, host, GcMode::Release))),
        ("a refused twin", Box::new(|world, host| _ = create(world, host, &refused, &policy("")))),
        ("a dry run", Box::new(|world, host| _ = gc(world, host, GcMode::Tell))),
        (
            "another container",
            Box::new(|world, host| {
                create(world, host, &container("db", "/bundles/db", INIT + 2, PROGRAMS, &[]), &policy("")).expect("db");
            }),
        ),
    ];
    for (what, act) in &others {
        for n in 1..=looks {
            let context = format!("{what} at {n}");
            let world = World::new();
            let happens = || act(&world, &FakeHost::new(&world.effects, HOOK + 1));
            let host = FakeHost::new(&world.effects, HOOK);
            host.meanwhile(n, &happens);
            let acquired = create(&world, &host, &web(), &policy("")).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(matches!(acquired, Acquired::Done(_)), "{context}");
            world.consistent(&context);
        }
    }
    // A twin that is started while the images are looked up gets the id; later it does not.
    for n in 1..=looks {
        let context = format!("a twin at {n}");
        let world = World::new();
        let happens = || _ = create(&world, &FakeHost::new(&world.effects, HOOK + 1), &twin, &policy(""));
        let host = FakeHost::new(&world.effects, HOOK);
        host.meanwhile(n, &happens);
        let result = create(&world, &host, &web(), &policy(""));
        world.consistent(&context);
        let ready: Vec<_> = world.records().into_iter().filter(|r| r.phase == Phase::Ready).collect();
        assert_eq!(ready.len(), 1, "{context}");
        if let Err(error) = result {
            assert!(n == 1 && matches!(error, Cause::IdTaken { .. }), "{context}: {error}");
        }
    }
}

#[test]
fn a_container_that_ends_while_it_is_started_leaves_nothing() {
    for n in 1..=4 {
        for poststop in [false, true] {
            let world = World::new();
            let dead = Rc::new(RefCell::new(BTreeSet::new()));
            let happens = || {
                dead.borrow_mut().insert(INIT);
                if poststop {
                    let other = FakeHost::new(&world.effects, HOOK + 1);
                    other.end(INIT);
                    stop(&world, &other, "web");
                }
            };
            let mut host = FakeHost::new(&world.effects, HOOK);
            host.dead = Rc::clone(&dead);
            host.meanwhile(n, &happens);
            let error = create(&world, &host, &web(), &policy("")).expect_err("nothing would release it");
            assert!(matches!(error, Cause::InitEnded { pid } if pid.get() == INIT), "{error}");
            assert_eq!(world.residue(&format!("dead at {n}, poststop: {poststop}")).len(), 1);
        }
    }
}

#[test]
fn pins_of_a_removed_record_are_removed() {
    for n in 2..=4 {
        let world = World::new();
        let happens = || {
            let no = world.records()[0].no;
            world.store.write::<_, StoreError>(|txn| txn.delete(no)).expect("delete");
        };
        let host = FakeHost::new(&world.effects, HOOK);
        host.meanwhile(n, &happens);
        let error = create(&world, &host, &web(), &policy("")).expect_err("the record is gone");
        assert!(matches!(error, Cause::RecordGone { .. }), "{error}");
        world.residue(&format!("record gone at {n}"));
    }
}

#[test]
fn a_dead_member_of_a_pod_does_not_keep_its_interface() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: Some("pod".to_owned()), pause: None };
    let member = |id: &str, init, programs: &str| container(id, &format!("/bundles/{id}"), init, programs, &[]);
    create(&world, &host, &member("a", 501, PROGRAMS), &policy("")).expect("first");
    create(&world, &host, &member("b", 502, PROGRAMS), &policy("")).expect("second");
    let other = || create(&world, &host, &member("c", 503, "xdp:count iface=lo mode=skb"), &policy(""));
    host.end(501);
    assert!(matches!(other().expect_err("b has it"), Cause::NetnsTaken { holders, .. } if holders == "b"));
    // Both were killed together with their runtime, and poststop did not run.
    host.end(502);
    other().expect("the dead have nothing");
    world.consistent("after the dead");
    host.end(503);
    stop(&world, &host, "c");
    world.residue("after the pod");
}

#[test]
fn a_failing_creator_keeps_the_programs_of_members_that_joined() {
    let world = World::new();
    let member = |id: &str, init| container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[]);
    let of_the_pod = |me| {
        let host = FakeHost::new(&world.effects, me);
        *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: None, pause: None };
        host
    };
    let first = of_the_pod(HOOK);
    create(&world, &first, &member("a", 501), &policy("")).expect("start");
    let looks = first.looks();
    first.end(501);
    stop(&world, &first, "a");
    // The last check of a start is before its last link, when the pod's programs already exist.
    let happens = || {
        create(&world, &of_the_pod(HOOK + 1), &member("b", 502), &policy("")).expect("b joins");
        world.effects.problem_at(1, Trouble::FailBefore);
    };
    let host = of_the_pod(HOOK);
    host.meanwhile(looks, &happens);
    create(&world, &host, &member("a", 501), &policy("")).expect_err("its own link fails");
    world.effects.calm();
    world.consistent("after the creator's failure");
    let netns: Vec<_> = world.records().into_iter().filter(|r| matches!(r.owner, Owner::Netns(_))).collect();
    assert_eq!((netns.len(), netns[0].phase, netns[0].owner.holders().len()), (1, Phase::Ready, 1));
    host.end(502);
    stop(&world, &host, "b");
    world.residue("after the last");
}

#[test]
fn a_long_reason_is_shortened() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    let kernel = world.kernel();
    lifecycle(&world, &kernel, &host).record_refusal(&web(), &"ä".repeat(100_000));
    let reason = world.records()[0].failure.clone().expect("a reason");
    assert!(reason.len() < 5000 && reason.ends_with("ä […]"), "{} bytes", reason.len());
}

/// Makes a record unreadable, in the file that LMDB has mapped.
fn damage(world: &World, no: u64) {
    let data = world.store.path().join("data.mdb");
    let bytes = fs::read(&data).expect("data");
    let needle = format!("{{\"no\":{no},");
    let file = fs::File::options().write(true).open(&data).expect("data");
    for (at, part) in bytes.windows(needle.len()).enumerate() {
        if part == needle.as_bytes() {
            std::os::unix::fs::FileExt::write_all_at(&file, b"!", at as u64).expect("write");
        }
    }
}

#[test]
fn a_record_that_does_not_decode_blocks_no_other() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    *host.netns.borrow_mut() = NetnsFact::Sandbox { sandbox: None, pause: None };
    let member = |id: &str, init| container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[]);
    create(&world, &host, &member("a", 501), &policy("")).expect("start");
    *host.netns.borrow_mut() = NetnsFact::Own;
    create(&world, &host, &member("other", 502), &policy("")).expect("start");
    damage(&world, 1);
    host.end(502);
    let told = gc(&world, &host, GcMode::Tell);
    assert_eq!(told.len(), 2, "a's record and the dead one, not the pod that a holds: {told:?}");
    assert!(told[0].contains("record 1") && told[0].contains("bpfman-hook gc removes it"), "{told:?}");
    let kernel = world.kernel();
    let passing = lifecycle(&world, &kernel, &host).collect_in_passing().expect("in passing");
    assert_eq!(passing.len(), 1, "{passing:?}");
    gc(&world, &host, GcMode::Release);
    assert_eq!(fs::read_dir(&world.fs).expect("bpffs").count(), 2, "a lives, with its pod");
    host.end(501);
    gc(&world, &host, GcMode::Release);
    assert!(world.residue("after gc").is_empty());
}

#[test]
fn only_owners_that_are_certainly_alive_are_settled() {
    let world = World::new();
    let mut host = FakeHost::new(&world.effects, HOOK);
    for (id, init) in [("a", 501), ("b", 502), ("c", 503), ("d", 504), ("e", 505)] {
        create(&world, &host, &container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[]), &policy("")).expect("start");
    }
    let mut records = world.records();
    host.end(502);
    host.unknown.insert(503);
    // The actor of these two has died.
    host.end(HOOK + 1);
    for record in &mut records[3..] {
        record.actor.process = process(HOOK + 1);
    }
    records[3].phase = Phase::Pending;
    records[4].links[0].state = LinkState::Attaching;
    let kernel = world.kernel();
    let living: Vec<_> = records.iter().map(|record| lifecycle(&world, &kernel, &host).is_living(record)).collect();
    assert_eq!(living, [true, false, false, false, false]);
}

#[test]
fn a_process_of_unknown_state_does_not_stop_gc() {
    let world = World::new();
    let mut host = FakeHost::new(&world.effects, HOOK);
    for (id, init) in [("a", 501), ("b", 502), ("c", 503)] {
        create(&world, &host, &container(id, &format!("/bundles/{id}"), init, PROGRAMS, &[]), &policy("")).expect("start");
    }
    host.unknown.insert(502);
    for init in [501, 502, 503] {
        host.end(init);
    }
    let found = gc(&world, &host, GcMode::Release);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[1].contains("container b") && found[1].ends_with(": left"), "{found:?}");
    assert_eq!(world.records().len(), 1);
    world.consistent("after gc");
}
