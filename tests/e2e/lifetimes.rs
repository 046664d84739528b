//! All ways in which containers, runtimes and hooks end, and what is left afterwards.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::bundle::Bundle;
use crate::support::lab::{pins, wait_gone};
use crate::support::process::{PATIENCE, Running, eventually};
use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, World};

crate::cases![
    init_is_killed,
    runc_and_init_are_killed_and_gc_cleans,
    runc_is_killed_in_mid_start_and_gc_cleans,
    the_hook_is_killed_at_every_step_and_gc_cleans,
    the_hook_is_killed_and_poststop_cleans,
    poststop_without_a_record,
    a_second_start_hook_changes_nothing,
    a_second_start_hook_with_another_request_fails,
    gc_leaves_running_containers_alone,
    a_lost_store_and_gc_cleans,
    created_started_and_deleted_step_by_step,
];

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id is positive");
    let _gone = kill_process(pid, Signal::KILL);
}

fn both(world: &mut World, name: &str) -> Bundle {
    world.counting(name).ask("delegate", "maps")
}

fn init_is_killed(world: &mut World) {
    let bundle = both(world, "init").script(TRAFFIC).write();
    let running = world.start(&bundle);
    world.lab.expect_links(2, "both programs are attached");
    kill(Runtime::Runc.init(&world.lab, &bundle.id));
    assert_eq!(running.finish().status.code(), Some(137));
}

/// Kills the runtime first, so that poststop does not run.
fn orphan(world: &World, mut running: Running, bundle: &Bundle) {
    let init = Runtime::Runc.init(&world.lab, &bundle.id);
    running.kill();
    wait_gone(running.pid());
    kill(init);
    wait_gone(init);
}

fn runc_and_init_are_killed_and_gc_cleans(world: &mut World) {
    let bundle = both(world, "orphan").script(TRAFFIC).write();
    let running = world.start(&bundle);
    orphan(world, running, &bundle);
    world.lab.expect_links(2, "nothing has been cleaned up yet");
    let planned = world.lab.ours(&["gc", "--dry-run"]);
    assert!(planned.contains(&bundle.id), "{planned}");
    world.lab.expect_links(2, "a dry run changes nothing");
    world.lab.ours(&["gc"]);
    // The runtime's own leftovers are not ours to clean.
    forget(world, &bundle);
    world.lab.residue();
}

/// Removes what a killed runtime left, without running poststop.
fn forget(world: &World, bundle: &Bundle) {
    let _gone = fs::remove_dir_all(world.lab.path("runc").join(&bundle.id));
    eventually("empty cgroups", PATIENCE, || {
        let mut left = crate::support::kernel::cgroups_named(&bundle.id);
        left.retain(|path| fs::remove_dir(path).is_err());
        left.is_empty().then_some(())
    });
}

fn runc_is_killed_in_mid_start_and_gc_cleans(world: &mut World) {
    // The hook's parent is the runtime; its poststop never runs.
    let bundle =
        both(world, "midstart").hook_through("createRuntime", r#""$@" && kill -KILL $PPID"#).script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(!ended.status.success() && !ended.stdout.contains("started"), "the container started");
    world.lab.expect_links(2, "the hook was done before the runtime died");
    // The container's init waits for its parent and exits with it.
    eventually("gc to find the container dead", PATIENCE, || {
        world.lab.ours(&["gc"]);
        world.lab.records().is_empty().then_some(())
    });
    forget(world, &bundle);
    world.lab.residue();
}

/// A hook that strace kills before its nth call of one of these system calls; each of them leaves something behind.
fn killed_at(n: u32) -> String {
    let calls = "bpf,mount,fsopen,fsconfig,fsmount,move_mount,mkdir,mkdirat";
    format!(
        r#"strace -f -o /dev/null -e trace={calls} -e inject={calls}:signal=KILL:when={n} "$@"; status=$?; echo $status >>survived; exit $status"#
    )
}

fn killed_at_every_step(world: &mut World, poststop: &str, clean: impl Fn(&World)) {
    let mut left = 0;
    for n in 1.. {
        let bundle = both(world, &format!("kill-{n}")).hook_through("createRuntime", &killed_at(n));
        let bundle = bundle.hook_through("poststop", poststop).script("echo started").write();
        let ended = Runtime::Runc.run(&world.lab, &bundle);
        if ended.stdout.contains("started") {
            assert!(n > 10, "the hook made only {n} of the calls that leave something: it did not do its work");
            clean(world);
            break;
        }
        assert!(bundle.dir.join("survived").exists(), "the hook did not run: {}", ended.stderr);
        assert!(n < 200, "the hook is still killed at its {n}th call");
        left += usize::from(!pins(&world.lab.bpffs()).is_empty());
        clean(world);
        world.lab.residue();
    }
    if poststop == "exit 0" {
        assert!(left > 5, "only {left} kills left a pin: they did not come in the middle of the work");
    }
}

fn the_hook_is_killed_at_every_step_and_gc_cleans(world: &mut World) {
    killed_at_every_step(world, "exit 0", |world| {
        eventually("gc to find the hook dead", Duration::from_secs(10), || {
            world.lab.ours(&["gc"]);
            world.lab.records().is_empty().then_some(())
        });
    });
}

fn the_hook_is_killed_and_poststop_cleans(world: &mut World) {
    killed_at_every_step(world, r#"exec "$@""#, |_| ());
}

fn poststop_without_a_record(world: &mut World) {
    let bundle = both(world, "recordless").hook_through("createRuntime", "exit 0");
    let bundle = bundle.hook_through("poststop", r#""$@"; echo $? >ended"#).script("true").write();
    assert!(Runtime::Runc.run(&world.lab, &bundle).status.success());
    let ended = fs::read_to_string(bundle.dir.join("ended")).unwrap_or_default();
    assert_eq!(ended.trim(), "0", "poststop's exit status");
}

fn a_second_start_hook_changes_nothing(world: &mut World) {
    let twice = r#"cat >state; "$@" <state && "$@" <state; echo $? >ended; exit $(cat ended)"#;
    let bundle = both(world, "twice").hook_through("createRuntime", twice).script(TRAFFIC).write();
    let running = world.start(&bundle);
    assert_eq!(ended_with(&bundle.dir), "0");
    world.lab.expect_links(2, "the container has what it had");
    assert_eq!(world.lab.records().len(), 1);
    running.finish();
}

fn a_second_start_hook_with_another_request_fails(world: &mut World) {
    let twice = r#"cat >state; "$@" <state || exit 9; sed -i 's/count_egress/count_packets/' config.json; sed -i 's/; *cgroup_skb:count_egress//' state; \
        sed -i 's/cgroup_skb:count_packets/xdp:count_packets/' config.json; "$@" <state; echo $? >ended; exit 0"#;
    let bundle = both(world, "changed").hook_through("createRuntime", twice).script(TRAFFIC).write();
    let running = world.start(&bundle);
    assert_eq!(ended_with(&bundle.dir), "1", "a living container's request was changed");
    world.lab.expect_links(2, "the container has what it had");
    running.finish();
}

fn ended_with(bundle: &Path) -> String {
    fs::read_to_string(bundle.join("ended")).unwrap_or_default().trim().to_owned()
}

fn gc_leaves_running_containers_alone(world: &mut World) {
    let bundle = both(world, "living").script(TRAFFIC).write();
    let running = world.start(&bundle);
    world.lab.ours(&["gc"]);
    world.lab.expect_links(2, "the container has what it had");
    assert_eq!(world.lab.records().len(), 1);
    running.finish();
}

/// The procedure of docs/operations.md for a damaged store: stop the containers, remove the store, run gc.
fn a_lost_store_and_gc_cleans(world: &mut World) {
    let bundle = both(world, "lost").hook_through("poststop", "exit 0").script(TRAFFIC).write();
    let running = world.start(&bundle);
    running.finish();
    world.lab.expect_links(2, "nothing has been cleaned up yet");
    fs::remove_dir_all(world.lab.path("root/run/bpfman-hook/store")).expect("the store can be removed");
    let left = pins(&world.lab.bpffs());
    assert!(!left.is_empty());
    let found = crate::support::process::ended(&mut world.lab.command(&["doctor", "-q"])).stdout;
    assert!(found.contains("no record names it") && found.contains("bpfman-hook gc"), "{found}");
    let planned = world.lab.ours(&["gc", "--dry-run"]);
    assert!(planned.contains("no record names them"), "{planned}");
    assert_eq!(pins(&world.lab.bpffs()), left, "a dry run changes nothing");
    world.lab.ours(&["gc"]);
    world.lab.residue();
}

fn created_started_and_deleted_step_by_step(world: &mut World) {
    // `create` gives the container the command's pipes, so its standard streams are redirected.
    let bundle = both(world, "steps").script("while :; do sleep 1; done").write();
    let runc = |args: &[&str]| {
        let mut command = Runtime::Runc.command(&world.lab, args);
        let null = || fs::File::options().read(true).write(true).open("/dev/null").expect("/dev/null opens");
        command.stdin(null()).stdout(null()).stderr(null());
        let status = command.status().expect("runc runs");
        assert!(status.success(), "runc {args:?}: {status}");
    };
    runc(&["create", "-b", &bundle.dir.display().to_string(), &bundle.id]);
    world.lab.expect_links(2, "createRuntime runs at create");
    runc(&["start", &bundle.id]);
    assert_eq!(world.lab.records().len(), 1);
    runc(&["kill", &bundle.id, "KILL"]);
    runc(&["delete", "-f", &bundle.id]);
}
