//! Tracing through the proxy, under rules with `host-scope = true`: perf_event_open(2) of containers without any
//! capability. tests/vm/tracing.sh runs bpftrace and bcc's tools on other kernels.
//!
//! The client is tests/e2e/tracing_client.c: a program that it attaches returns 0, which keeps the kernel from counting
//! the event, so that its counts tell whether the program runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use crate::harness;
use crate::proxy::{allow, policy, proxied};
use crate::support::bpf_proxy::profile;
use crate::support::bundle::Bundle;
use crate::support::podman::Podman;
use crate::support::process::{Running, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    programs_that_trace_are_attached_to_perf_events,
    what_is_no_tracing_is_refused,
    without_host_scope_there_are_no_perf_events,
    a_profile_without_perf_events_is_refused,
    podman_containers_have_perf_events,
];

/// 10 calls are counted before the program is attached, and none after.
const TRACED: &str = "10 10";

fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/tracing_client.c");
        let out = std::env::temp_dir().join(format!("bpfman-hook-tracing-client-{}", std::process::id()));
        tool(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&out).arg(source));
        out
    })
}

/// The number of a system call's tracepoint.
fn tracepoint(name: &str) -> String {
    let script = "mount -t tracefs tracefs /mnt && cat /mnt/events/syscalls/$1/id";
    tool(Command::new("unshare").args(["--mount", "sh", "-c", script, "sh", name])).trim().to_owned()
}

/// A container that asks for `delegate`, with the client and a profile that notifies perf events.
fn tracing(world: &World, name: &str, delegate: &str, words: &[&str]) -> Bundle {
    let profile = profile(&world.lab, true);
    let bundle = proxied(world, name, delegate).rootfs(|rootfs| {
        fs::copy(client(), rootfs.join("tracing")).unwrap_or_else(|e| harness!("copy the client: {e}"));
    });
    bundle.edit(|config| {
        config["linux"]["seccomp"] = profile;
        config["process"]["args"] = json!([&["/tracing"], words].concat());
    })
}

fn programs_that_trace_are_attached_to_perf_events(world: &mut World) {
    allow(world, "host-scope = true\nproxy = [\"tracing\"]");
    let id = tracepoint("sys_enter_getppid");
    let words =
        ["tracepoint", &id, "tracepoint-link", &id, "uprobe", "uprobe-exe", "uprobe-pid", "uprobe-multi", "output", "clock"];
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let bundle = tracing(world, runtime.name(), "tracing", &words).write();
        let ended = runtime.run(&world.lab, &bundle);
        for step in ["tracepoint ", "tracepoint-link ", "uprobe ", "uprobe-exe ", "uprobe-pid "] {
            assert_eq!(ended.line(step), Some(TRACED), "{step}: {}\n{}\n{}", ended.stdout, ended.stderr, world.lab.log());
        }
        for step in ["uprobe-multi ", "output ", "clock "] {
            assert_eq!(ended.line(step), Some("0 0"), "{step}: {}\n{}", ended.stdout, world.lab.log());
        }
    }
}

fn what_is_no_tracing_is_refused(world: &mut World) {
    allow(world, "host-scope = true\nproxy = [\"tracing\"]");
    // A file of the host that the container does not have, and one that only the container has.
    let words = ["breakpoint", "file", "/etc/passwd", "relative", "nobody", "nowhere", "file", "/tracing"];
    let bundle = tracing(world, "refused", "tracing", &words).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let expected = "breakpoint -1 95\nfile -1 2\nrelative -1 22\nnobody -1 3\nnowhere -1 14\nfile 0 0\n";
    assert_eq!(ended.stdout, expected, "{}\n{}", ended.stderr, world.lab.log());
    // The types that are granted decide.
    let bundle = tracing(world, "uprobes", "probes", &["uprobe-exe", "output", "clock", "tracepoint", "1"])
        .ask("delegate-progs", "kprobe")
        .edit(|config| drop(config["annotations"].as_object_mut().map(|all| all.remove("hook.bpfman.io/delegate"))))
        .ask("delegate-cmds", "prog_load:map_create")
        .ask("delegate-maps", "array")
        .ask("delegate-attachs", "cgroup_inet_ingress:perf_event")
        .write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let found: Vec<_> = ["uprobe-exe ", "output ", "clock ", "tracepoint "].map(|step| ended.line(step)).into();
    let expected = [Some(TRACED), Some("0 0"), Some("-1 1"), Some("failed -1 1 -1 9")];
    assert_eq!(found, expected, "{}\n{}", ended.stdout, world.lab.log());
}

fn without_host_scope_there_are_no_perf_events(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let script = "/client map; /tracing output uprobe-exe clock";
    let ended = Runtime::Runc.run(&world.lab, &tracing(world, "contained", "sockets", &[]).script(script).write());
    let said = &ended.stdout;
    let begins = said.starts_with("map 0 0\noutput -1 1\nuprobe-exe failed -1 1 ");
    assert!(begins && said.ends_with("clock -1 1\n"), "{said}\n{}", world.lab.log());
}

fn a_profile_without_perf_events_is_refused(world: &mut World) {
    allow(world, "host-scope = true\nproxy = [\"tracing\"]");
    world.refused(proxied(world, "unnotified", "tracing"), 1, &["does not notify perf_event_open(2)", "--perf-events"]);
}

/// precreate adds the rule to podman's own profile.
fn podman_containers_have_perf_events(world: &mut World) {
    world.mount_bpffs();
    policy(world, "host-scope = true\nproxy = [\"tracing\"]");
    let volume = format!("{}:/tracing:ro", client().display());
    let podman = Podman::new(&world.lab, Runtime::Crun).with_precreate(&world.lab);
    let asked = ["--annotation", "hook.bpfman.io/delegate=tracing", "--annotation", "hook.bpfman.io/delegate-via=proxy"];
    let flags = [&asked[..], &["--user", "65534", "--cap-drop", "all", "--volume", &volume]].concat();
    let mut running =
        Running::start(&mut podman.run(&world.lab, "traced", &flags, "/tracing uprobe output; echo ready; read go"));
    assert_eq!(running.hear("uprobe "), TRACED, "{}", running.stderr());
    assert_eq!(running.hear("output "), "0 0");
    running.hear("ready");
    running.say("go\n");
    running.finish();
    fs::remove_dir_all(world.lab.path("podman")).unwrap_or_else(|e| harness!("remove podman's store: {e}"));
}
