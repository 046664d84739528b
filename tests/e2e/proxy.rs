//! The proxy of bpf(2): containers without any capability that load programs themselves.
//!
//! The client is tests/e2e/proxy_client.c: one line for each step, with result and errno. In place of systemd's socket,
//! a thread of the test starts `bpfman-hook proxy -` for each connection.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness;
use crate::support::bpf_proxy::{client, listen, profile};
use crate::support::bundle::Bundle;
use crate::support::kernel::{Cgroups, bpftool, cgroup2, cgroups, processes_of};
use crate::support::lab::Hooks;
use crate::support::podman::Podman;
use crate::support::process::{Ended, Running, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    a_container_without_capabilities_loads_and_attaches,
    crun_connects_before_the_hooks,
    what_reaches_beyond_is_refused_with_its_name,
    malformed_calls_get_the_kernels_errnos,
    programs_stay_in_the_containers_network,
    programs_stay_in_the_containers_cgroup,
    an_exec_has_a_listener_of_its_own,
    an_interrupted_call_is_executed_once,
    arguments_that_change_are_judged_once,
    limits_count_what_exists,
    limits_hold_across_execs,
    the_policy_narrows_helpers,
    without_the_annotation_nothing_is_passed_on,
    a_profile_without_the_listener_is_refused,
    a_profile_that_lets_a_command_through_is_refused,
    the_hosts_network_is_refused,
    nothing_is_allowed_without_a_policy,
    a_killed_proxy_means_enosys,
    twenty_containers_at_once,
    bpftool_works_unchanged,
    podman_containers_get_a_proxy_of_their_own,
];

/// Calls of one step each, and what they must answer: result and errno.
pub type Steps<'a> = &'a [(&'a str, &'a str)];

pub const OK: &str = "0 0";
pub const EPERM: &str = "-1 1";

/// A container of user 65534 without a user namespace and without capabilities, that asks for `delegate` through the
/// proxy.
pub fn proxied(world: &World, name: &str, delegate: &str) -> Bundle {
    proxied_program(world, name, delegate, client(), "client")
}

/// The same with another program in its root directory.
pub(crate) fn proxied_program(world: &World, name: &str, delegate: &str, program: &Path, at: &str) -> Bundle {
    let bundle = Bundle::new(&world.lab, name).without_userns().rootfs(|rootfs| {
        fs::copy(program, rootfs.join(at)).unwrap_or_else(|e| harness!("copy {}: {e}", program.display()));
    });
    let profile = profile(&world.lab, false);
    bundle.ask("delegate", delegate).ask("delegate-via", "proxy").edit(|config| {
        config["linux"]["seccomp"] = profile;
        config["process"]["user"] = json!({ "uid": 65534, "gid": 65534 });
        config["process"]["capabilities"] =
            json!({ "bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": [] });
    })
}

pub fn steps(bundle: Bundle, words: &[&str]) -> Bundle {
    bundle.edit(|config| config["process"]["args"] = json!([&["/client"], words].concat()))
}

/// A world whose policy allows `proxy` in every container.
pub fn allow(world: &World, proxy: &str) {
    listen(&world.lab);
    policy(world, proxy);
}

pub(crate) fn policy(world: &World, rule: &str) {
    world.lab.policy(&format!("[[container]]\n{rule}\n"));
}

/// Runs the steps with a runtime and compares the answers.
pub fn answers(world: &World, runtime: Runtime, bundle: Bundle, expected: Steps<'_>) -> Ended {
    let words: Vec<_> = expected.iter().flat_map(|(step, _)| step.split(' ')).collect();
    let bundle = steps(bundle, &words).write();
    let ended = runtime.run(&world.lab, &bundle);
    for (step, answer) in expected {
        let step = step.split(' ').next().unwrap_or_default();
        let line = ended.stdout.lines().find_map(|line| line.strip_prefix(step)).map(str::trim);
        assert_eq!(line, Some(*answer), "{step}: {}\n{}\n{}", ended.stdout, ended.stderr, world.lab.log());
    }
    ended
}

fn a_container_without_capabilities_loads_and_attaches(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = steps(proxied(world, "plain", "sockets"), &["map", "ringbuf", "ktime", "wait", "keep"]).write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    for step in ["map ", "ringbuf ", "ktime "] {
        assert_eq!(running.hear(step), OK, "{step}");
    }
    running.say("go\n");
    assert_eq!(running.hear("keep "), OK);
    // The link is on the container's lo, not on the host's.
    let links = bpftool(&["link", "show"]);
    let xdp: Vec<_> = links.as_array().into_iter().flatten().filter(|link| link["type"] == "xdp").collect();
    assert_eq!(xdp.len(), 1, "{links:#}");
    let host = tool(Command::new("ip").args(["-d", "link", "show", "lo"]));
    assert!(!host.contains("xdp"), "{host}");
    // What the container may do is on record.
    let record = world.inspect(&bundle.id);
    assert!(record[0]["proxy"]["cmds"].to_string().contains("prog_load"), "{record:#}");
    Runtime::Runc.delete(&world.lab, &bundle.id);
    running.finish();
}

fn crun_connects_before_the_hooks(world: &mut World) {
    world.mount_bpffs();
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "crun", "sockets");
    answers(world, Runtime::Crun, bundle, &[("map", OK), ("prog", OK), ("xdp", OK), ("token", EPERM)]);
}

fn what_reaches_beyond_is_refused_with_its_name(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "beyond", "sockets");
    let steps = [("ktime", OK), ("readkernel", "-1 13"), ("kprobe", EPERM), ("token", EPERM), ("verifier", "-1 13")];
    let ended = answers(world, Runtime::Runc, bundle, &steps);
    // The reason is in the log that the caller asked for, where the verifier's would be.
    let reason = "log bpfman-hook: program calling calls bpf_probe_read_kernel (instruction 3): that reaches kernel memory";
    assert!(ended.stdout.contains(reason), "{}", ended.stdout);
    // And the verifier's own log is passed on.
    assert!(ended.stdout.contains("log names R2"), "{}", ended.stdout);
    if !Path::new("/run/systemd/journal/socket").exists() {
        let log = world.lab.log();
        assert!(log.contains("bpf_probe_read_kernel") && log.contains("program type kprobe"), "{log}");
    }
}

fn malformed_calls_get_the_kernels_errnos(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "malformed", "sockets");
    let steps = [
        // BPF_COMMON_ATTRS: a filter that compares the whole argument would miss it.
        ("common", "-1 22"),
        ("wrongfd", "-1 22"),
        ("notopen", "-1 9"),
        ("large", "-1 7"),
        ("beyond", "-1 7"),
        ("padded", OK),
        ("nowhere", "-1 14"),
        ("manyinsns", "-1 7"),
        // No number is left in the caller: it gets an answer in any case.
        ("emfile", "-1 24"),
        // A 32-bit call.
        ("int80", "-1 38"),
        ("map", OK),
    ];
    answers(world, Runtime::Runc, bundle, &steps);
}

fn programs_stay_in_the_containers_network(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "other-netns", "sockets");
    let words = ["xdp", "other-netns"];
    let ended = Runtime::Runc.run(&world.lab, &steps(bundle, &words).write());
    assert_eq!(ended.line("xdp "), Some(OK), "{}", ended.stdout);
    let other = ended.line("other-netns ").unwrap_or_default();
    // Hosts may refuse user namespaces to such users.
    assert!(other == EPERM || other.starts_with("cannot"), "{}", ended.stdout);
}

fn programs_stay_in_the_containers_cgroup(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "cgroup", "sockets");
    let own = match cgroups() {
        // runc names the cgroup after the container.
        Cgroups::Hybrid(_) => format!("/cg/{}", bundle.id),
        Cgroups::Unified => "/own".to_owned(),
    };
    let mut bundle = bundle.mount("bind", &cgroup2(), "/cg", &["rbind", "ro"]);
    if cgroups() == Cgroups::Unified {
        bundle = bundle.namespace("cgroup", None).mount("cgroup", Path::new("cgroup"), "/own", &["ro"]);
    }
    let words = ["cgroup", &own, "cgroup", "/cg", "wrongfd"];
    let ended = Runtime::Runc.run(&world.lab, &steps(bundle, &words).write());
    let found: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("cgroup ")).collect();
    assert_eq!(found, ["cgroup 0 0", "cgroup -1 1"], "{}\n{}", ended.stderr, world.lab.log());
}

fn an_exec_has_a_listener_of_its_own(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let bundle = steps(proxied(world, runtime.name(), "sockets"), &["map", "wait"]).write();
        let mut running = runtime.start(&world.lab, &bundle);
        running.hear("waiting");
        // For an exec crun passes the pid 0: a proxy that believed it would attach to the host's lo.
        let mut exec = runtime.command(&world.lab, &["exec", "--cap", "CAP_CHOWN", &bundle.id, "/client", "map", "xdp"]);
        let ended = crate::support::process::ended(&mut exec);
        assert_eq!(ended.line("map "), Some(OK), "{} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.line("xdp "), Some(OK), "{} {}", ended.stdout, ended.stderr);
        // Its process has ended with it, and the container's has not.
        let record = eventually("the end of the exec's proxy", Duration::from_secs(5), || {
            let record = world.inspect(&bundle.id);
            (record[0]["proxy"]["processes"].as_array().map(Vec::len) == Some(1)).then_some(record)
        });
        let process = &record[0]["proxy"]["processes"][0];
        assert_eq!((&process["of"], &process["lost"]), (&json!("container"), &json!(false)), "{record:#}");
        let host = tool(Command::new("ip").args(["-d", "link", "show", "lo"]));
        assert!(!host.contains("xdp"), "{host}");
        running.say("go\n");
        running.finish();
    }
}

fn an_interrupted_call_is_executed_once(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let bundle = steps(proxied(world, &format!("storm-{}", runtime.name()), "sockets"), &["storm", "wait"]).write();
        let mut running = runtime.start(&world.lab, &bundle);
        assert_eq!(running.hear("storm "), OK);
        let alarms: u32 = running.hear("alarms ").parse().unwrap_or_default();
        assert!(alarms > 0, "no signal came while the call was made");
        running.hear("waiting");
        let programs = bpftool(&["prog", "show"]);
        let stormed = programs.as_array().into_iter().flatten().filter(|program| program["name"] == "stormed").count();
        assert_eq!(stormed, 1, "{alarms} signals");
        running.say("go\n");
        running.finish();
    }
}

fn arguments_that_change_are_judged_once(world: &mut World) {
    allow(world, "proxy = { cmds = [\"map_create\"], maps = [\"array\"] }");
    let bundle = proxied(world, "race", "maps").ask("delegate-maps", "array");
    let bundle =
        bundle.edit(|config| drop(config["annotations"].as_object_mut().map(|all| all.remove("hook.bpfman.io/delegate"))));
    let bundle = steps(bundle.ask("delegate-cmds", "map_create"), &["race"]).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let said = ended.line("race ").unwrap_or_else(|| panic!("{} {}", ended.stdout, ended.stderr));
    let (wrong, made) = said.split_once(" made ").unwrap_or_default();
    assert_eq!(wrong, "0", "maps of a type that was not granted: {said}");
    assert_ne!(made, "0", "{said}");
}

fn limits_count_what_exists(world: &mut World) {
    listen(&world.lab);
    world.lab.policy("[[container]]\nproxy = [\"sockets\"]\n[limits]\nprograms = 2\nlinks = 1\nmap-memory = \"1MiB\"\n");
    let bundle = proxied(world, "limits", "sockets");
    answers(world, Runtime::Runc, bundle, &[("bigmap", "-1 28"), ("map", OK), ("xdp", OK)]);
    let bundle = steps(proxied(world, "programs", "sockets"), &["prog", "prog", "prog", "map"]).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let found: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("prog ")).collect();
    assert_eq!(found, ["prog 0 0", "prog 0 0", "prog -1 28"], "{}", world.lab.log());
    // What was closed does not count: the cost step makes thousands of objects, one after the other.
    let bundle = steps(proxied(world, "closed", "sockets"), &["cost"]).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(ended.line("cost ").is_some(), "{}", ended.stderr);
    if !Path::new("/run/systemd/journal/socket").exists() {
        let log = world.lab.log();
        assert!(!log.contains("closed proxy"), "{log}");
    }
}

/// An exec has a process of its own, which knows at once what the container's has made, and the reverse.
fn limits_hold_across_execs(world: &mut World) {
    listen(&world.lab);
    world.lab.policy("[[container]]\nproxy = [\"sockets\"]\n[limits]\nprograms = 3\n");
    let bundle = steps(proxied(world, "execs", "sockets"), &["prog", "prog", "wait", "prog", "prog"]).write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    running.hear("waiting");
    let account = world.lab.path("root/run/bpfman-hook/proxy-accounts").join(&bundle.id);
    assert!(account.exists());
    let exec = Runtime::Runc.command(&world.lab, &["exec", &bundle.id, "/client", "prog", "prog", "map"]);
    let exec = crate::support::process::ended(&mut { exec });
    let found: Vec<_> = exec.stdout.lines().collect();
    assert_eq!(found, ["prog 0 0", "prog -1 28", "map 0 0"], "{}\n{}", exec.stderr, world.lab.log());
    // The exec's programs are gone with it.
    running.say("go\n");
    let ended = running.finish();
    let found: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("prog ")).collect();
    assert_eq!(found, ["prog 0 0", "prog 0 0", "prog 0 0", "prog -1 28"], "{}", ended.stderr);
    eventually("the end of the account", Duration::from_secs(10), || (!account.exists()).then_some(()));
}

fn the_policy_narrows_helpers(world: &mut World) {
    allow(world, "proxy = { presets = [\"sockets\"], helpers = [\"map_lookup_elem\"] }");
    let bundle = proxied(world, "helpers", "sockets");
    let ended = answers(world, Runtime::Runc, bundle, &[("prog", OK), ("ktime", "-1 13")]);
    assert!(ended.stdout.contains("bpf_ktime_get_ns (instruction 3): that is not among the helpers"), "{}", ended.stdout);
}

fn without_the_annotation_nothing_is_passed_on(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]\nprograms = [\"xdp\"]");
    let bundle = proxied(world, "unasked", "sockets").edit(|config| config["annotations"] = json!({}));
    answers(world, Runtime::Runc, bundle, &[("map", EPERM), ("prog", EPERM)]);
    assert!(world.lab.records().is_empty());
    // The counterpart, which makes this case fail without our hooks.
    let bundle = proxied(world, "asked", "sockets");
    answers(world, Runtime::Runc, bundle, &[("map", OK)]);
}

fn a_profile_without_the_listener_is_refused(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let none = proxied(world, "none", "sockets").edit(|config| config["linux"]["seccomp"] = Value::Null);
    world.refused(none, 1, &["needs a seccomp profile with bpfman-hook's listener", "proxy profile"]);
    let other = proxied(world, "metadata", "sockets")
        .edit(|config| config["linux"]["seccomp"]["listenerMetadata"] = json!("bpfman-hook/0"));
    world.refused(other, 1, &["listenerMetadata \"bpfman-hook/0\""]);
}

fn a_profile_that_lets_a_command_through_is_refused(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "through", "sockets").edit(|config| {
        let rules = config["linux"]["seccomp"]["syscalls"].as_array_mut();
        if let Some(rules) = rules {
            rules.retain(|rule| rule["args"][0]["valueTwo"] != 28);
        }
    });
    world.refused(bundle, 1, &["the rules for bpf(2)", "are not those"]);
}

fn the_hosts_network_is_refused(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "hostnet", "sockets").without_namespace("network").without_mount("/sys");
    world.refused(bundle, 1, &["delegate-via=proxy", "the container is on the host's network"]);
}

fn nothing_is_allowed_without_a_policy(world: &mut World) {
    allow(world, "delegate = [\"sockets\"]");
    world.refused(proxied(world, "unlisted", "sockets"), 1, &["allows nothing with delegate-via=proxy; add proxy"]);
    policy(world, "proxy = [\"maps\"]");
    world.refused(proxied(world, "above", "sockets"), 1, &["does not delegate progs socket_filter"]);
}

fn a_killed_proxy_means_enosys(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = steps(proxied(world, "killed", "sockets"), &["map", "wait", "prog"]).write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    assert_eq!(running.hear("map "), OK);
    running.hear("waiting");
    let proxies: Vec<_> = processes_of(&world.lab.root()).into_iter().filter(|(_, line)| line.contains("proxy -")).collect();
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    tool(Command::new("kill").args(["-9", &proxies[0].0.to_string()]));
    eventually("the end of the proxy", Duration::from_secs(5), || {
        let left = processes_of(&world.lab.root());
        (!left.iter().any(|(_, line)| line.contains("proxy -"))).then_some(())
    });
    let pid = proxies[0].0;
    let record = world.inspect(&bundle.id);
    let process = json!([{ "pid": pid, "of": "container", "lost": true }]);
    assert_eq!(record[0]["proxy"]["processes"], process, "{record:#}");
    let listed = world.lab.ours(&["list", "containers"]);
    assert!(listed.contains(&format!("process {pid} of the container  gone: bpf(2) calls get ENOSYS")), "{listed}");
    let sentence = format!("the proxy (process {pid}) of container {}: gone: its process has ended", bundle.id);
    assert!(listed.contains(&sentence) && listed.contains("start the container again"), "{listed}");
    let doctor = crate::support::process::ended(&mut world.lab.command(&["doctor"]));
    assert!(doctor.stdout.contains(&format!("the proxy (process {pid}) of container")), "{}", doctor.stdout);
    let collected = crate::support::process::ended(&mut world.lab.command(&["gc"]));
    assert!(collected.stdout.contains("left: start the container again"), "{}", collected.stdout);
    // One event, however often somebody looked.
    let events = world.lab.ours(&["events", "-o", "json", "-F", "type=lost"]);
    let events: Vec<Value> = events.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["container"], json!(bundle.id));
    assert!(events[0]["reason"].to_string().contains(&pid.to_string()), "{events:?}");
    running.say("go\n");
    assert_eq!(running.hear("prog "), "-1 38");
    running.finish();
    Runtime::Runc.delete(&world.lab, &bundle.id);
    let files = world.lab.path("root/run/bpfman-hook/export/proxies");
    assert_eq!(fs::read_dir(&files).map_or(0, Iterator::count), 0, "{}", files.display());
}

fn twenty_containers_at_once(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundles: Vec<_> =
        (0..20).map(|n| steps(proxied(world, &format!("many-{n}"), "sockets"), &["map", "xdp", "wait"]).write()).collect();
    let mut all: Vec<_> = bundles.iter().map(|bundle| Runtime::Runc.start(&world.lab, bundle)).collect();
    for running in &mut all {
        assert_eq!(running.hear("map "), OK);
        assert_eq!(running.hear("xdp "), OK);
        running.hear("waiting");
    }
    for mut running in all {
        running.say("go\n");
        running.finish();
    }
}

fn bpftool_works_unchanged(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let object = crate::world::object_path("one_xdp");
    let script = "bpftool prog load /one.o /pins/one type xdp pinmaps /pins/maps && echo load ok || echo load failed; \
                  echo ready; read go; rm -r /pins/*";
    let pins = world.lab.path("pins");
    fs::create_dir(&pins).unwrap_or_else(|e| harness!("create {}: {e}", pins.display()));
    tool(Command::new("mount").args(["-t", "bpf", "-o", "mode=1777", "bpf"]).arg(&pins));
    let mut bundle = proxied(world, "bpftool", "sockets").edit(|config| {
        config["process"]["env"] = json!(["PATH=/bin:/usr/sbin:/usr/bin"]);
        config["root"]["readonly"] = json!(false);
    });
    for part in ["/usr", "/lib", "/lib64"] {
        bundle = bundle.mount("bind", Path::new(part), part, &["rbind", "ro"]);
    }
    let bundle = bundle
        .mount("bind", &object, "/one.o", &["bind", "ro"])
        .mount("bind", &pins, "/pins", &["rbind", "rw"])
        .script(script)
        .write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    assert_eq!(running.hear("load "), "ok", "{}", running.stderr());
    running.hear("ready");
    running.say("go\n");
    running.finish();
    tool(Command::new("umount").arg(&pins));
}

/// Without a socket of systemd, precreate starts a proxy for each container and edits podman's own profile.
fn podman_containers_get_a_proxy_of_their_own(world: &mut World) {
    world.mount_bpffs();
    policy(world, "proxy = [\"sockets\"]");
    let asked = ["--annotation", "hook.bpfman.io/delegate=sockets", "--annotation", "hook.bpfman.io/delegate-via=proxy"];
    let volume = format!("{}:/client:ro", client().display());
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let podman = Podman::new(&world.lab, runtime).with_precreate(&world.lab);
        let flags = [&asked[..], &["--user", "65534", "--cap-drop", "all", "--volume", &volume]].concat();
        let script = "/client map xdp readkernel token; echo ready; read go";
        let mut running = Running::start(&mut podman.run(&world.lab, runtime.name(), &flags, script));
        assert_eq!(running.hear("map "), OK, "{}", running.stderr());
        assert_eq!(running.hear("xdp "), OK);
        assert_eq!(running.hear("readkernel "), "-1 13");
        assert_eq!(running.hear("token "), EPERM);
        running.hear("ready");
        let mut exec = podman.command(&["exec", &format!("{}-{}", world.lab.word(), runtime.name()), "/client", "map"]);
        let exec = crate::support::process::ended(&mut exec);
        assert_eq!(exec.line("map "), Some(OK), "{}", exec.stderr);
        running.say("go\n");
        running.finish();
        eventually("the end of the container's proxy", Duration::from_secs(10), || {
            let left = fs::read_dir(world.lab.path("root/run/bpfman-hook/proxy")).map_or(0, Iterator::count);
            (left == 0).then_some(())
        });
        fs::remove_dir_all(world.lab.path("podman")).unwrap_or_else(|e| harness!("remove podman's store: {e}"));
    }
}

#[test]
fn the_client_is_told_what_it_does_not_know() {
    let ended = crate::support::process::ended(Command::new(client()).arg("nonsense"));
    assert_eq!((ended.status.code(), ended.stderr.trim()), (Some(2), "unknown step nonsense"));
}

#[test]
fn a_socket_without_a_proxy_stops_the_container() {
    // The runtime itself reports it: nothing of ours has run yet under crun.
    let world = World::new(Hooks::Ours);
    policy(&world, "proxy = [\"sockets\"]");
    let bundle = steps(proxied(&world, "unserved", "sockets"), &["map"]).write();
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let ended = runtime.run(&world.lab, &bundle);
        assert!(!ended.status.success() && !ended.stdout.contains("map"), "{}", ended.stdout);
        runtime.delete(&world.lab, &bundle.id);
    }
    world.lab.residue();
}
