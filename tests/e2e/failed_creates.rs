//! Containers whose creation fails after our hook: podman does not run poststop for them, and a host-scope program
//! would keep running.

use std::process::Command;

use crate::support::podman::{IMAGE, Podman};
use crate::support::process::{ended, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![with_runc_nothing_is_left, with_crun_list_says_dead_and_gc_releases];

/// What makes a creation fail: flags, command, and whether another hook fails.
const FAILURES: [(&str, &[&str], &str, bool); 4] = [
    ("a mistyped command", &[], "/no/such/command", false),
    ("the command is a directory", &[], "/bin", false),
    ("a sysctl is refused", &["--sysctl", "net.ipv4.ip_forward=nonsense"], "/bin/true", false),
    ("another hook fails", &[], "/bin/true", true),
];

/// A probe on every process of the host.
fn asked(world: &mut World) -> Vec<String> {
    let image = world.signed("trace");
    let rules = "scope = \"host\"\n[[container]]\nprograms = [\"raw_tracepoint\"]\nhost-scope = true\n";
    world.lab.policy(&(world.image_rule() + rules));
    let annotation = |key: &str, value: &str| format!("--annotation=hook.bpfman.io/{key}={value}");
    vec![annotation("image", &image), annotation("programs", "raw_tracepoint:raw_trace_exec")]
}

/// Starts a container that cannot be created, and one that is removed before its first start; calls `look` each time.
fn each(world: &mut World, podman: &Podman, look: impl Fn(&World, &str)) {
    let asked = asked(world);
    let name = format!("{}-failed", world.lab.word());
    for (what, flags, command, hook) in FAILURES {
        let other = hook.then(|| podman.other_hook("createContainer", "/bin/false"));
        let mut run = podman.command(&["run", "--rm", "--network", "none", "--name", &name]);
        let failed = ended(run.args(&asked).args(flags).args([IMAGE, command]));
        assert!(!failed.status.success(), "{what}: the container started");
        other.into_iter().for_each(|path| std::fs::remove_file(path).expect("the other hook can be removed"));
        look(world, what);
    }
    let mut run = podman.command(&["run", "-d", "--network", "none", "--name", &name]);
    assert!(!ended(run.args(&asked).args([IMAGE, "/no/such/command"])).status.success());
    tool(&mut podman.command(&["rm", "-f", &name]));
    look(world, "podman rm -f of a container that never ran");
    tool(podman.command(&["create", "--network", "none", "--name", &name]).args(&asked).args([IMAGE, "/bin/true"]));
    tool(&mut podman.command(&["init", &name]));
    world.lab.expect_links(1, "podman init runs our hook");
    tool(&mut podman.command(&["rm", "-f", &name]));
    look(world, "podman rm -f of a created one");
    let acquired = world.lab.ours(&["events"]).matches("acquired").count();
    assert!(acquired >= 5, "{acquired} starts came as far as our hook");
}

fn with_runc_nothing_is_left(world: &mut World) {
    world.mount_bpffs();
    let podman = Podman::new(&world.lab, Runtime::Runc).with_precreate(&world.lab);
    each(world, &podman, |world, what| world.lab.expect_links(0, what));
    let asked = asked(world);
    let flags: Vec<&str> = asked.iter().map(String::as_str).collect();
    let ran = ended(&mut podman.run(&world.lab, "ordinary", &flags, "echo ran"));
    assert_eq!(ran.stdout.trim(), "ran", "poststop runs twice here, which is harmless: {}", ran.stderr);
    assert!(!world.lab.log().contains("poststop: "), "{}", world.lab.log());
}

fn with_crun_list_says_dead_and_gc_releases(world: &mut World) {
    world.mount_bpffs();
    let podman = Podman::new(&world.lab, Runtime::Crun).with_precreate(&world.lab);
    each(world, &podman, |world, what| {
        for owner in world.lab.json(&["list", "containers"]).as_array().into_iter().flatten() {
            assert!(owner["state"] == "dead" || owner["state"] == "failed", "{what}: {owner:#}");
            if owner["state"] == "dead" {
                let text = world.lab.ours(&["list", "containers"]);
                assert!(text.contains("  dead  ") && text.contains("bpfman-hook gc"), "{what}: {text}");
            }
        }
        // The command that the timer runs.
        let mut gc = Command::new(crate::support::lab::BINARY);
        tool(gc.arg("--root").arg(world.lab.root()).arg("gc"));
        world.lab.expect_links(0, what);
    });
}
