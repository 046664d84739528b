//! Containers, command-line users and clients at once on one store, while processes are killed: nothing is lost,
//! nothing is duplicated, and nothing is left behind.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::attach_info::Info;
use bpfman_hook::grpc::wire::bpfman_client::BpfmanClient;
use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{
    AttachInfo, AttachRequest, BytecodeLocation, DetachRequest, GetRequest, ListRequest, LoadInfo, LoadRequest, UnloadRequest,
    XdpAttachInfo,
};
use serde_json::Value;
use tonic::Code;

use crate::support::bundle::Bundle;
use crate::support::lab::{BINARY, Hooks, Lab};
use crate::support::netns::Netns;
use crate::support::process::{PATIENCE, Running, ended, eventually};
use crate::support::runtime::Runtime;
use crate::support::world::{World, object_path};
use crate::world::{channel, run};

/// How long the test runs.
const TIME: Duration = Duration::from_secs(10);

/// Pseudo-random numbers, reproducible from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The results that all callers received.
#[derive(Default)]
struct Told {
    /// Programs that were reported to a caller and not unloaded, nor is an unload in progress.
    loaded: Mutex<BTreeSet<u32>>,
    containers: AtomicU32,
    manual: AtomicU32,
    by_clients: AtomicU32,
    killed: AtomicU32,
}

/// Runs one of our commands, and kills it at random: then None.
fn command(lab: &Lab, dice: &mut Dice, told: &Told, args: &[&str]) -> Option<Result<String, String>> {
    if dice.roll(4) > 0 {
        let ended = ended(&mut lab.command(args));
        return Some(if ended.status.success() { Ok(ended.stdout) } else { Err(ended.stderr) });
    }
    let mut running = Running::start(&mut lab.command(args));
    thread::sleep(Duration::from_micros(dice.roll(40_000)));
    running.kill();
    told.killed.fetch_add(1, Ordering::Relaxed);
    None
}

/// A user who loads, attaches, detaches and unloads, with an interface of their own.
fn manual(lab: &Lab, told: &Told, stop: &AtomicBool, seed: u64) {
    let object = object_path("counter").display().to_string();
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        // Links that are left attached must not outlive it.
        let netns = Netns::new();
        let load = ["load", "file", "--path", &object, "--programs", "xdp:count", "-o", "json"];
        let Some(loaded) = command(lab, &mut dice, told, &load) else { continue };
        let id = id_in(&loaded.unwrap_or_else(|said| panic!("load: {said}")));
        let number = id.parse().unwrap();
        told.loaded.lock().unwrap().insert(number);
        let path = netns.path();
        let link = command(lab, &mut dice, told, &["attach", &id, "xdp", "--iface", "lo", "--netns", &path, "-o", "json"]);
        let link = link.map(|link| id_in(&link.unwrap_or_else(|said| panic!("attach: {said}"))));
        if let Some(link) = link
            && dice.roll(2) == 0
            && let Some(Err(said)) = command(lab, &mut dice, told, &["detach", &link])
        {
            panic!("detach: {said}");
        }
        if dice.roll(4) > 0 {
            told.loaded.lock().unwrap().remove(&number);
            match command(lab, &mut dice, told, &["unload", &id]) {
                Some(Err(said)) => panic!("unload: {said}"),
                Some(Ok(_)) => _ = told.manual.fetch_add(1, Ordering::Relaxed),
                None => {}
            }
        }
    }
}

/// The id in a `-o json` output: that of the only element if it is a list.
fn id_in(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let one = answer.get(0).unwrap_or(&answer);
    one["id"].as_u64().unwrap_or_else(|| panic!("no id in {answer}")).to_string()
}

/// Containers that start, run and stop; other activity must not make any of them fail.
fn containers(lab: &Lab, image: &str, told: &Told, stop: &AtomicBool, name: &str) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let bundle = Bundle::new(lab, &format!("{name}{n}")).ask("image", image);
        let bundle = bundle.ask("programs", "xdp:count_packets iface=lo; cgroup_skb:count_egress").script("echo ran").write();
        let ended = Runtime::Runc.run(lab, &bundle);
        assert!(ended.status.success() && ended.stdout.contains("ran"), "container {name}{n}: {}", ended.stderr);
        told.containers.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client of the service, which is killed repeatedly: then the client connects again.
fn clients(socket: &Path, told: &Told, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let netns = Netns::new();
        let done = run(async {
            let mut client = BpfmanClient::new(channel(socket).await.map_err(|_| Gone)?);
            let request = LoadRequest {
                bytecode: Some(BytecodeLocation {
                    location: Some(Location::File(object_path("counter").display().to_string())),
                }),
                info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
                ..LoadRequest::default()
            };
            let loaded = client.load(request).await.map_err(gone)?.into_inner();
            let id = loaded.programs[0].kernel_info.as_ref().unwrap().id;
            told.loaded.lock().unwrap().insert(id);
            let info =
                XdpAttachInfo { iface: "lo".into(), priority: 50, netns: Some(netns.path()), ..XdpAttachInfo::default() };
            let request = AttachRequest { id, attach: Some(AttachInfo { info: Some(Info::XdpAttachInfo(info)) }) };
            let link_id = client.attach(request).await.map_err(gone)?.into_inner().link_id;
            let shown = client.get(GetRequest { id }).await.map_err(gone)?.into_inner();
            assert_eq!(shown.info.unwrap().links, [link_id]);
            let ours = ListRequest { bpfman_programs_only: Some(true), ..ListRequest::default() };
            let listed = client.list(ours).await.map_err(gone)?.into_inner().results;
            assert_eq!(listed.iter().filter(|one| one.kernel_info.as_ref().is_some_and(|k| k.id == id)).count(), 1);
            client.detach(DetachRequest { link_id }).await.map_err(gone)?;
            told.loaded.lock().unwrap().remove(&id);
            client.unload(UnloadRequest { id }).await.map_err(gone)?;
            told.by_clients.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        if let Err(Gone) = done {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The service has gone away.
struct Gone;

fn gone(status: tonic::Status) -> Gone {
    let lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
    assert!(lost && !status.message().contains("record"), "{status:?}");
    Gone
}

#[test]
fn concurrent_activity_while_processes_are_killed() {
    let mut world = World::new(Hooks::Ours);
    world.mount_bpffs();
    let image = world.signed("demo");
    let lab = &world.lab;
    let socket = lab.path("root/run/bpfman-hook/bpfman.sock");
    let (told, stop) = (Told::default(), AtomicBool::new(false));
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let kills = thread::scope(|scope| {
        let _ended = Ended(&stop);
        for name in ["a", "b"] {
            let (told, stop, image) = (&told, &stop, &image);
            scope.spawn(move || watched(stop, || containers(lab, image, told, stop, name)));
        }
        for n in 0..2 {
            let (told, stop) = (&told, &stop);
            scope.spawn(move || watched(stop, || manual(lab, told, stop, seed + n)));
        }
        for _ in 0..2 {
            let (told, stop, socket) = (&told, &stop, &socket);
            scope.spawn(move || watched(stop, || clients(socket, told, stop)));
        }
        scope.spawn(|| {
            watched(&stop, || {
                while !stop.load(Ordering::Relaxed) {
                    lab.ours(&["gc"]);
                    thread::sleep(Duration::from_millis(300));
                }
            });
        });
        let (mut dice, mut kills, until) = (Dice(seed), 0, Instant::now() + TIME);
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            let mut command = Command::new(BINARY);
            command.arg("--root").arg(lab.root()).args(["system", "service", "--timeout", "0"]);
            let mut service = command.stdin(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(500 + dice.roll(1000)));
            service.kill().unwrap();
            service.wait().unwrap();
            kills += 1;
        }
        kills
    });
    let count = |number: &AtomicU32| number.load(Ordering::Relaxed);
    let done = [count(&told.containers), count(&told.manual), count(&told.by_clients), count(&told.killed), kills];
    println!("containers, commands, client requests, killed commands, killed services: {done:?}");
    assert!(done.iter().all(|n| *n > 0), "{done:?}");

    // Children of a killed service finish their work, and undo what was not reported to a client.
    eventually("the end of all processes", PATIENCE, || (!of_ours()).then_some(()));
    // Whatever was reported to a caller and not unloaded exists, exactly once.
    let listed: Vec<u64> =
        lab.json(&["list", "programs"]).as_array().unwrap().iter().filter_map(|p| p["id"].as_u64()).collect();
    let distinct: BTreeSet<u32> = listed.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    assert_eq!(listed.len(), distinct.len(), "{listed:?}");
    let lost: Vec<_> = told.loaded.lock().unwrap().difference(&distinct).copied().collect();
    assert!(lost.is_empty(), "lost: {lost:?}; there are {listed:?}");
    lab.ours(&["gc"]);
    for id in listed {
        lab.ours(&["unload", "--ignore-missing", &id.to_string()]);
    }
    assert_eq!(lab.json(&["list", "programs"]), Value::Array(Vec::new()));
    std::fs::remove_file(&socket).unwrap();
    lab.residue();
}

/// Whether a process of our binary runs.
fn of_ours() -> bool {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|process| std::fs::read_link(process.path().join("exe")).ok()).any(|program| program == Path::new(BINARY))
}

/// Stops the other threads if one fails.
fn watched(stop: &AtomicBool, work: impl FnOnce()) {
    let failed = Ended(stop);
    work();
    std::mem::forget(failed);
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
