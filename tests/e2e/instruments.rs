//! Tests the harness itself: a bundle really runs and makes traffic, a hook really gets the state, and every kind of
//! leak is found. Otherwise "nothing is left" might mean that nothing was checked.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::bundle::Bundle;
use crate::support::kernel::cgroup2;
use crate::support::lab::{Hooks, Lab};
use crate::support::process::{Running, tool};
use crate::support::runtime::Runtime;
use crate::world::TRAFFIC;

#[test]
fn a_hook_gets_the_state_and_the_container_makes_its_traffic() {
    let lab = Lab::new(Hooks::Ours);
    for runtime in [Runtime::Runc, Runtime::Crun] {
        runtime.need();
        let bundle = Bundle::new(&lab, runtime.name()).ask("delegate", "maps").script(TRAFFIC);
        let bundle =
            bundle.hook_through("createRuntime", "cat >state.json").hook_through("poststop", "cat >stopped.json").write();
        let mut running = runtime.start(&lab, &bundle);
        running.hear("ready");
        running.say("go\n");
        running.hear("done");
        running.say("go\n");
        assert_eq!(running.finish().status.code(), Some(7));
        for file in ["state.json", "stopped.json"] {
            let state = fs::read_to_string(bundle.dir.join(file)).unwrap_or_default();
            assert!(state.contains(&bundle.id) && state.contains("hook.bpfman.io/delegate"), "{file}: {state}");
        }
    }
}

#[test]
fn a_failing_hook_stops_the_container_and_is_quoted() {
    let lab = Lab::new(Hooks::Ours);
    let bundle =
        Bundle::new(&lab, "fails").hook_through("createRuntime", r#"echo 'it "says" so' >&2; exit 3"#).script("echo started");
    let ended = Runtime::Runc.run(&lab, &bundle.write());
    assert!(!ended.status.success() && !ended.stdout.contains("started"));
    let said = crate::support::runtime::HookSaid::in_error_of_runc(&ended.stderr).expect("runc quotes the hook");
    assert_eq!((said.status, said.stderr.trim()), (3, r#"it "says" so"#));
}

/// What `residue` reports about a leak.
fn complaint(lab: &Lab) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(|| lab.residue_within(Duration::from_millis(100))));
    let panic = outcome.expect_err("the leak was not found");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

fn mount(kind: &str, at: &Path) {
    fs::create_dir_all(at).expect("a directory below the lab");
    tool(Command::new("mount").args(["-t", kind, "none"]).arg(at));
}

fn pinned_map(at: &Path) {
    let sizes = ["type", "array", "key", "4", "value", "8", "entries", "1", "name", "leaked"];
    tool(Command::new("bpftool").args(["map", "create"]).arg(at).args(sizes));
}

#[test]
fn a_leaked_map_is_found() {
    let lab = Lab::new(Hooks::Ours);
    mount("bpf", &lab.path("elsewhere"));
    pinned_map(&lab.path("elsewhere/map"));
    let said = complaint(&lab);
    assert!(said.contains("array leaked") && said.contains("bpf mount on"), "{said}");
}

#[test]
fn a_leaked_pin_is_found_and_an_empty_bpffs_is_not_a_leak() {
    let lab = Lab::new(Hooks::Ours);
    mount("bpf", &lab.bpffs());
    fs::create_dir(lab.bpffs().join("owner_1")).expect("a directory in a bpffs");
    let said = complaint(&lab);
    assert!(said.contains("owner_1") && !said.contains("mount on"), "{said}");
}

#[test]
fn a_leaked_mount_is_found() {
    let lab = Lab::new(Hooks::Ours);
    mount("tmpfs", &lab.path("elsewhere"));
    assert!(complaint(&lab).contains("tmpfs mount on"));
}

#[test]
fn a_leaked_process_is_found() {
    let lab = Lab::new(Hooks::Ours);
    let _sleeper = Running::start(Command::new("sleep").arg("600").current_dir(lab.root()));
    assert!(complaint(&lab).contains("sleep 600"));
}

#[test]
fn a_leaked_cgroup_is_found() {
    let lab = Lab::new(Hooks::Ours);
    let cgroup = cgroup2().join(format!("{}-left", lab.word()));
    fs::create_dir(&cgroup).expect("root makes cgroups");
    assert!(complaint(&lab).contains("-left"));
}

#[test]
fn a_lab_removes_what_its_test_left() {
    let lab = Lab::new(Hooks::Ours);
    let dir = lab.root();
    mount("bpf", &lab.bpffs());
    pinned_map(&lab.bpffs().join("map"));
    let bundle = Bundle::new(&lab, "left").hook_through("createRuntime", "exit 0").hook_through("poststop", "exit 0");
    let bundle = bundle.script(TRAFFIC).write();
    let mut running = Runtime::Runc.start(&lab, &bundle);
    running.hear("ready");
    running.kill();
    drop(lab);
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(crate::support::kernel::cgroups_named(&bundle.id).is_empty());
}
