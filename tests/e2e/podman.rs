//! podman, which runs hooks from hook files, sometimes in its own mount namespace, and runs poststop in a separate
//! process.

use crate::support::podman::Podman;
use crate::support::process::{Running, ended, tool};
use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, TRAFFIC_PACKETS, World};

crate::cases![
    hook_files_work_with_runc,
    hook_files_work_with_crun,
    a_user_namespace_gets_a_token_and_precreate_the_capability,
    without_a_grant_the_missing_capability_is_named,
    without_our_bpffs_a_private_mount_namespace_is_refused,
    podman_stop_releases,
    a_value_that_podman_cut_at_a_comma_is_refused,
    keys_that_look_like_ours_are_refused,
];

const UIDMAP: [&str; 4] = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];

/// Our annotations as podman's flags. podman splits values at commas, which our values never need.
fn annotations(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(key, value)| ["--annotation".to_owned(), format!("hook.bpfman.io/{key}={value}")]).collect()
}

fn flags<'a>(annotations: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    annotations.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn counting(world: &mut World, runtime: Runtime, programs: &str) {
    let image = world.signed("demo");
    let podman = Podman::new(&world.lab, runtime);
    // Two entries in one value, separated by a semicolon as documented.
    let asked = annotations(&[("image", &image), ("programs", programs)]);
    let script = TRAFFIC.replace("echo ready", "ip link set lo up; echo ready");
    let flags = flags(&asked, &["--cap-add", "NET_ADMIN"]);
    let mut running = Running::start(&mut podman.run(&world.lab, "counting", &flags, &script));
    running.hear("ready");
    running.say("go\n");
    running.hear("done");
    let records = world.lab.records();
    let id = records.first().and_then(|record| record["id"].as_str()).expect("one record").to_owned();
    assert!(world.counted(&id, "packets") >= TRAFFIC_PACKETS);
    running.say("go\n");
    assert_eq!(running.finish().status.code(), Some(7));
}

fn hook_files_work_with_runc(world: &mut World) {
    counting(world, Runtime::Runc, "xdp:count_packets iface=lo; cgroup_skb:count_egress");
}

fn hook_files_work_with_crun(world: &mut World) {
    world.mount_bpffs();
    // On a hybrid host crun's containers have no cgroup of their own for a program.
    counting(world, Runtime::Crun, "xdp:count_packets iface=lo");
}

const PROBE: &str =
    "if /bpfman-hook token probe >/tmp/said 2>&1; then echo probe ok; else cat /tmp/said; echo probe failed; fi";

fn probing(world: &World, podman: &Podman, name: &str) -> std::process::Command {
    let copy = world.lab.path("bin/bpfman-hook");
    if !copy.exists() {
        std::fs::copy(crate::support::lab::BINARY, &copy).expect("the binary can be copied");
    }
    let asked = annotations(&[("delegate", "sockets")]);
    let volume = format!("{}:/bpfman-hook:ro", copy.display());
    let flags: Vec<&str> = [flags(&asked, &UIDMAP), vec!["-v", &volume, "--tmpfs", "/tmp"]].concat();
    podman.run(&world.lab, name, &flags, PROBE)
}

fn a_user_namespace_gets_a_token_and_precreate_the_capability(world: &mut World) {
    world.allow("grant = true\nhost-scope = true");
    world.mount_bpffs();
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let podman = Podman::new(&world.lab, runtime).with_precreate(&world.lab);
        let ended = ended(&mut probing(world, &podman, runtime.name()));
        assert_eq!(ended.line("probe"), Some("ok"), "{}: {}\n{}", runtime.name(), ended.stdout, ended.stderr);
        std::fs::remove_dir_all(world.lab.path("podman")).expect("podman's store can be removed");
    }
}

fn without_a_grant_the_missing_capability_is_named(world: &mut World) {
    world.allow("host-scope = true");
    world.mount_bpffs();
    let podman = Podman::new(&world.lab, Runtime::Runc).with_precreate(&world.lab);
    let ended = ended(&mut probing(world, &podman, "no-grant"));
    assert_eq!(ended.line("probe"), None, "the container started");
    assert!(ended.stderr.contains("CAP_BPF"), "{}", ended.stderr);
    assert_eq!(ended.status.code(), Some(126), "podman's status for a failed hook");
}

fn without_our_bpffs_a_private_mount_namespace_is_refused(world: &mut World) {
    world.allow("grant = true");
    let podman = Podman::new(&world.lab, Runtime::Runc).with_precreate(&world.lab);
    let image = world.signed("demo");
    let asked = annotations(&[("image", &image), ("programs", "xdp:count_packets iface=lo")]);
    let ended = ended(&mut podman.run(&world.lab, "unmounted", &flags(&asked, &UIDMAP), "echo started"));
    assert!(!ended.stdout.contains("started"), "the container started");
    assert!(ended.stderr.contains(r"run-bpfman\x2dhook-fs.mount"), "{}", ended.stderr);
}

fn podman_stop_releases(world: &mut World) {
    let image = world.signed("demo");
    world.mount_bpffs();
    let podman = Podman::new(&world.lab, Runtime::Runc);
    let asked = annotations(&[("image", &image), ("programs", "xdp:count_packets iface=lo")]);
    let name = format!("{}-stop", world.lab.word());
    let flags = [flags(&asked, &UIDMAP), vec!["-d", "-t"]].concat();
    let mut command = podman.command(&["run", "--rm", "--network", "none", "--name", &name]);
    command.args(&flags).args([crate::support::podman::IMAGE, "/bin/sh", "-c", "cat"]);
    tool(&mut command);
    world.lab.expect_links(1, "the program is attached");
    // The name that podman shows is the one that we show and take.
    let listed = world.lab.ours(&["list", "programs"]);
    assert!(listed.contains(&name), "{name} is not in\n{listed}");
    let inspected = world.lab.json(&["inspect", &name]);
    assert_eq!(inspected[0]["name"].as_str(), Some(name.as_str()), "{inspected:#}");
    assert!(world.lab.ours(&["graph", &name]).contains(&format!("container {name}")), "no picture");
    tool(&mut podman.command(&["stop", "-t", "0", &name]));
}

/// podman's output when `podman run` is refused; the container must not have started.
fn refused(world: &World, podman: &Podman, flags: &[&str]) -> String {
    let ended = ended(&mut podman.run(&world.lab, "refused", flags, "echo started"));
    assert!(!ended.stdout.contains("started"), "the container started with {flags:?}");
    ended.stderr
}

fn a_value_that_podman_cut_at_a_comma_is_refused(world: &mut World) {
    let image = world.signed("tcx");
    let podman = Podman::new(&world.lab, Runtime::Runc);
    for cut in ["tcx:ingress, iface=lo, tcx:egress direction=egress", "tcx:ingress,iface=lo"] {
        let said = refused(world, &podman, &flags(&annotations(&[("image", &image), ("programs", cut)]), &[]));
        assert!(said.contains("cut at a comma"), "{cut}: {said}");
    }
}

fn keys_that_look_like_ours_are_refused(world: &mut World) {
    let podman = Podman::new(&world.lab, Runtime::Runc);
    for key in ["hook.bpfman.io.programs", "hook.bpfman.io /programs", "Hook.bpfman.io/programs", "hook.bpfman.io"] {
        let said = refused(world, &podman, &["--annotation", &format!("{key}=xdp:count_packets")]);
        assert!(said.contains("is misspelt"), "{key}: {said}");
    }
    // An annotation of another program.
    let ended = ended(&mut podman.run(&world.lab, "other", &["--annotation", "webhook.bpfman.io/url=x"], "echo started"));
    assert_eq!(ended.stdout.trim(), "started", "{}", ended.stderr);
}
