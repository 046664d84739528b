//! `events` and `metrics`: an unprivileged user sees what a run exports, and tampering with it does not stop a start.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::lab::{BINARY, Hooks, Lab};
use crate::support::process::{Running, ended, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::{World, object_path};

crate::cases![
    an_unprivileged_user_scrapes_while_containers_start,
    a_compromised_exporter_stops_no_start,
    events_are_followed_in_order,
    a_spoiled_export_stops_no_start,
    the_daemonsets_exporter_can_read_and_others_get_an_error,
];

/// The ids of the users nobody and nogroup.
const NOBODY: u32 = 65534;
/// Waits for a line, and exits.
pub const SCRIPT: &str = "echo ready; read go; exit 7";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The export directory as `install --metrics` creates it: for a group that its files inherit.
pub fn export(world: &World) -> PathBuf {
    let run = world.lab.path("root/run/bpfman-hook");
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&run).expect("make the run directory");
    let path = run.join("export");
    fs::DirBuilder::new().mode(0o750).create(&path).expect("make the export directory");
    chown(&path, Some(0), Some(NOBODY)).expect("chgrp");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2750)).expect("chmod");
    path
}

/// A command as the user nobody, without capabilities.
pub fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.arg("--no-new-privs").arg(program);
    command
}

/// The binary in a place where the user nobody can run it.
pub fn public_binary(world: &World) -> PathBuf {
    let binary = world.lab.path("bin/bpfman-hook");
    fs::copy(BINARY, &binary).expect("copy the binary to where nobody can run it");
    binary
}

fn scrape(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn events(world: &World, args: &[&str]) -> Vec<Value> {
    let text = world.lab.ours(&[&["events", "-o", "json"], args].concat());
    text.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
}

fn an_unprivileged_user_scrapes_while_containers_start(world: &mut World) {
    let export = export(world);
    let binary = public_binary(world);
    let sockets = world.lab.path("sockets");
    fs::DirBuilder::new().mode(0o700).create(&sockets).expect("make a directory");
    chown(&sockets, Some(NOBODY), Some(NOBODY)).expect("chown");
    let socket = sockets.join("http.sock");
    let root = world.lab.root();
    let mut exporter = Running::start(
        as_nobody(&binary).arg("--root").arg(&root).arg("metrics").arg(format!("--listen=unix://{}", socket.display())),
    );
    eventually("the exporter answers", PATIENCE, || scrape(&socket).filter(|text| text.starts_with("HTTP/1.1 200 OK")));

    let bundle = world.counting("scraped").script(SCRIPT).write();
    let (stop, told) = std::sync::mpsc::channel::<()>();
    let scraper = std::thread::spawn({
        let socket = socket.clone();
        move || {
            let mut pages = 0;
            while told.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let text = scrape(&socket).expect("a page while a container starts");
                assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("# EOF\n"), "{text}");
                pages += 1;
            }
            pages
        }
    });
    let running = world.start(&bundle);
    drop(stop);
    assert!(scraper.join().expect("the scraper") > 0);

    let page = scrape(&socket).expect("a page");
    for line in [
        "bpfman_hook_events_total{type=\"acquired\"} ",
        "bpfman_hook_owners{kind=\"container\"} 1",
        "bpfman_hook_run_duration_seconds_count{stage=\"createRuntime\",outcome=\"done\"} 1",
        "bpfman_hook_verifications_total{result=\"verified\"} 1",
        "name=\"count_packets\",type=\"xdp\",scope=\"container\"",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(page.contains(&format!("id=\"{}\"", bundle.id)), "{page}");
    assert!(!page.contains("bpfman_hook_program_memory_bytes{"), "nobody may not ask the kernel:\n{page}");
    world.lab.ours(&["metrics", "--sample"]);
    let page = scrape(&socket).expect("a page");
    for line in [
        "bpfman_hook_program_memory_bytes{",
        "bpfman_hook_program_verified_instructions{",
        "bpfman_hook_program_run_time_seconds_total{",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }

    // A compromised exporter can read, but cannot change anything.
    let writable = tool(as_nobody(Path::new("find")).arg(&export).arg("-writable"));
    assert_eq!(writable, "", "nobody can write there");
    for entry in [export.join("counters"), export.join("events"), export.join("owners")] {
        let found = fs::metadata(&entry).expect("stat");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o022), (0, NOBODY, 0), "{}", entry.display());
    }
    let store = tool(
        as_nobody(Path::new("sh")).args(["-c", &format!("ls {}/run/bpfman-hook/store 2>/dev/null || true", root.display())]),
    );
    assert_eq!(store, "", "nobody sees the store");
    exporter.kill();
    exporter.finish();
    let mut running = running;
    running.say("go\n");
    running.finish();
    let page = world.lab.ours(&["metrics"]);
    assert!(page.contains("bpfman_hook_owners{kind=\"container\"} 0"), "{page}");
    assert!(page.contains("bpfman_hook_events_total{type=\"released\"} "), "{page}");
}

/// A process that can read a file can lock it. No run waits for a lock that the exporter could hold.
fn a_compromised_exporter_stops_no_start(world: &mut World) {
    let export = export(world);
    let first = world.counting("before").script(SCRIPT).write();
    let mut running = world.start(&first);
    running.say("go\n");
    running.finish();
    let mut holders: Vec<Running> = ["counters", "events", "owners", "."]
        .map(|name| {
            let mut command = as_nobody(Path::new("flock"));
            command.arg("--exclusive").arg(export.join(name)).args(["sh", "-c", "echo held; read end"]);
            Running::start(&mut command)
        })
        .into();
    holders.iter_mut().for_each(|holder| {
        holder.hear("held");
    });
    // The exporter cannot read the store either, so it cannot hold a lock there.
    let locked = ended(as_nobody(Path::new("ls")).arg(world.lab.root().join("run/bpfman-hook/store")));
    assert!(!locked.status.success(), "{}", locked.stdout);
    let second = world.counting("locked").script(SCRIPT).write();
    let mut running = world.start(&second);
    assert_eq!(world.link_ids(&second.id).len(), 2);
    running.say("go\n");
    assert_eq!(running.finish().status.code(), Some(7));
    let of: Vec<Value> = events(world, &["-F", &format!("container={}", second.id)]);
    assert_eq!(of.iter().map(|event| &event["type"]).collect::<Vec<_>>(), ["acquired", "released"], "{of:#?}");
    for holder in holders {
        holder.finish();
    }
}

fn events_are_followed_in_order(world: &mut World) {
    export(world);
    let bundle = world.counting("followed").script(SCRIPT).write();
    let follow = |what: &str| {
        let (container, what) = (format!("container={}", bundle.id), format!("type={what}"));
        Running::start(&mut world.lab.command(&["events", "-f", "-F", &container, "-F", &what]))
    };
    let (mut first, mut second) = (follow("acquired"), follow("released"));
    let mut running = world.start(&bundle);
    assert!(first.hear("20").contains(&format!(" container acquired {}", bundle.id)));
    running.say("go\n");
    running.finish();
    assert!(second.hear("20").contains(&format!(" container released {}", bundle.id)));
    for mut follower in [first, second] {
        follower.kill();
        follower.finish();
    }
    let refused = world.counting("refused").ask("programs", "xdp:nothing_of_this_name").write();
    Runtime::Runc.run(&world.lab, &refused);
    let all = events(world, &[]);
    let of = |id: &str| -> Vec<String> {
        let mine = all.iter().filter(|event| event["container"] == id);
        mine.map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(of(&bundle.id), ["acquired", "released"], "{all:#?}");
    assert_eq!(of(&refused.id), ["refused"], "{all:#?}");
    let reason = all.iter().find(|event| event["type"] == "refused").map(|event| event["reason"].to_string());
    assert!(reason.is_some_and(|reason| reason.contains("nothing_of_this_name")), "{all:#?}");
    assert!(all.is_sorted_by(|a, b| a["time"].as_str() <= b["time"].as_str()), "{all:#?}");
    assert_eq!(events(world, &["--since", "2100-01-01T00:00:00Z"]).len(), 0);
    let page = world.lab.ours(&["metrics"]);
    assert!(page.contains("bpfman_hook_refusals_total{reason=\"request\"} 1"), "{page}");
}

fn a_spoiled_export_stops_no_start(world: &mut World) {
    let export = export(world);
    let spoilers: [&dyn Fn(); 4] = [
        &|| {
            fs::write(export.join("counters"), b"x").expect("spoil");
            fs::create_dir(export.join("events")).expect("spoil");
            fs::write(export.join("owners"), b"x").expect("spoil");
        },
        &|| {
            tool(Command::new("mkfifo").arg(export.join("events")).arg(export.join("counters")));
            symlink("/etc", export.join("owners")).expect("spoil");
        },
        &|| fs::set_permissions(&export, fs::Permissions::from_mode(0o777)).expect("spoil"),
        &|| {
            fs::remove_dir_all(&export).expect("spoil");
            symlink("/etc", &export).expect("spoil");
        },
    ];
    for (nth, spoil) in spoilers.iter().enumerate() {
        spoil();
        let bundle = world.counting(&format!("spoiled{nth}")).script(SCRIPT).write();
        let mut running = world.start(&bundle);
        assert_eq!(world.link_ids(&bundle.id).len(), 2, "{nth}");
        running.say("go\n");
        assert_eq!(running.finish().status.code(), Some(7), "{nth}");
        assert!(!Path::new("/etc/counters").exists() && !Path::new("/etc/events").exists(), "{nth}: a link was followed");
        if fs::symlink_metadata(&export).is_ok_and(|found| found.is_dir()) {
            let _ = ended(Command::new("sh").arg("-c").arg(format!("rm -rf {}/* && chmod 2750 {0}", export.display())));
        }
    }
}

/// Involves no container, so it is not a case for the suite without hooks.
#[test]
fn manual_commands_are_followed() {
    let lab = Lab::new(Hooks::Ours);
    let path = object_path("counter").display().to_string();
    let loaded = lab.json(&["load", "file", "--path", &path, "--programs", "xdp:count", "--application", "shop"]);
    let program = loaded[0]["id"].to_string();
    let mut follower = Running::start(&mut lab.command(&["events", "-f", "-F", "application=shop", "-F", "type=unloaded"]));
    let mut netns = Running::start(Command::new("unshare").args(["--net", "sh", "-c", "echo ready; read end"]));
    let at = format!("/proc/{}/ns/net", netns.pid());
    netns.hear("ready");
    let there = ["xdp", "--iface", "lo", "--priority", "50", "--netns", &at];
    let attach = || lab.json(&[&["attach", &program], &there[..]].concat())["id"].to_string();
    let first = attach();
    lab.ours(&["detach", &first]);
    let second = attach();
    lab.ours(&["unload", &program]);
    assert!(follower.hear("20").contains(" program unloaded count (application=shop"));
    let told = lab.ours(&["events", "-o", "json", "-F", "application=shop"]);
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect();
    let expected = [
        ("loaded", None),
        ("attached", Some(&first)),
        ("detached", Some(&first)),
        ("attached", Some(&second)),
        ("detached", Some(&second)),
        ("unloaded", None),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (event, (what, link)) in told.iter().zip(expected) {
        assert_eq!((event["type"].as_str(), event["program"].as_str()), (Some(what), Some("count")), "{event}");
        assert_eq!(event["program_id"].to_string(), program, "{event}");
        assert_eq!(event.get("link_id").map(Value::to_string).as_ref(), link, "{event}");
    }
    follower.kill();
    follower.finish();
    let page = lab.ours(&["metrics"]);
    for (what, count) in [("loaded", 1), ("attached", 2), ("detached", 2), ("unloaded", 1)] {
        assert!(page.contains(&format!("bpfman_hook_events_total{{type=\"{what}\"}} {count}\n")), "{what}: {page}");
    }
    netns.finish();
    lab.residue();
}

/// With the directory as the hook creates it, and the ids of the DaemonSet.
fn the_daemonsets_exporter_can_read_and_others_get_an_error(world: &mut World) {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/nri/base/daemonset.yaml")).expect("the manifest");
    let (_, container) = manifest.split_once("- name: metrics").expect("the container");
    let id = |key: &str| {
        let (_, rest) = container.split_once(key).expect("its ids");
        rest.split_whitespace().next().expect("a number").to_owned()
    };
    let binary = world.lab.path("bin/bpfman-hook");
    fs::copy(BINARY, &binary).expect("copy the binary to where others can run it");
    let bundle = world.counting("seen").script(SCRIPT).write();
    let mut running = world.start(&bundle);
    let metrics = |uid: &str, gid: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--regid", gid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        ended(command.arg(&binary).arg("--root").arg(world.lab.root()).arg("metrics"))
    };
    let page = metrics(&id("runAsUser:"), &id("runAsGroup:"));
    assert!(page.stdout.contains("bpfman_hook_owners{kind=\"container\"} 1"), "{} {}", page.stdout, page.stderr);
    // Zeros would claim that nothing runs here.
    let refused = metrics("65532", "65532");
    assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("only root and the directory's group may; run this as one of them"), "{}", refused.stderr);
    running.say("go\n");
    running.finish();
}
