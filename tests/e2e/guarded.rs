//! Tokens of containers while the guard is in force. A kernel that calls no LSM programs refuses the guard with the sentence
//! that says what is missing; tests/vm/containers.sh runs the same tests on kernels that have both tokens and BPF LSM.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::policing::{client, hear, missing, with_client};
use crate::support::bundle::Bundle;
use crate::support::kernel::cgroup2;
use crate::support::lab::Hooks;
use crate::support::process::{Running, ended};
use crate::support::runtime::Runtime;
use crate::world::World;

const OK: &str = "0 0";
const EPERM: &str = "-1 1";
const BPFFS: &str = "/sys/fs/bpf";
const TOKEN: (&str, &str) = ("token:/sys/fs/bpf", OK);

/// Everything that container scope may have where the guard is in force.
const RULE: &str = "[[container]]\ndelegate = [\"networking\", \"sockets\", \"cgroup\", \"probes\"]\n";
const CAPABLE: [&str; 4] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"];

/// Runs a test, and ends the guard afterwards. Where the kernel has none, the refusal must say what is missing.
fn check(run: fn(&mut World)) {
    let mut world = World::new(Hooks::Ours);
    world.mount_bpffs();
    world.lab.policy(RULE);
    match missing() {
        Some(why) => refused(&world, &why),
        None => {
            run(&mut world);
            world.lab.ours(&["guard", "unload"]);
        }
    }
    world.lab.residue();
}

fn refused(world: &World, why: &str) {
    let said = ended(&mut world.lab.command(&["guard", "load"]));
    let sentence = format!(
        "put the guard in force: judge what is loaded with a token: this kernel has no LSM programs, which came with Linux 5.7 \
         ({why})"
    );
    assert!(!said.status.success() && said.stderr.contains(&sentence), "{said:?}");
    println!("no guard, as it should be: {}", said.stderr);
}

fn load_guard(world: &World) {
    world.lab.ours(&["guard", "load"]);
}

/// A container that asks for a delegation, with the client.
fn asking(world: &World, name: &str, delegate: &str, steps: &[(&str, &str)]) -> Bundle {
    let words: Vec<&str> = steps.iter().map(|(step, _)| *step).chain(["wait"]).collect();
    with_client(Bundle::new(&world.lab, name).ask("delegate", delegate), &words)
}

/// Starts a container and asserts the answers of its steps. It then waits.
fn started(world: &World, bundle: &Bundle, steps: &[(&str, &str)]) -> Running {
    let mut running = Runtime::Runc.start(&world.lab, bundle);
    hear(&mut running, steps);
    running.hear("waiting");
    running
}

fn explained(world: &World, bundle: &Bundle) -> String {
    let init = Runtime::Runc.init(&world.lab, &bundle.id).to_string();
    let by_id = world.lab.ours(&["token", "explain", "--container", &bundle.id]);
    assert_eq!(world.lab.ours(&["token", "explain", "--pid", &init]), by_id);
    by_id
}

/// How often the guard in force has refused something for a reason.
fn refusals(world: &World, why: &str) -> u64 {
    let status = world.lab.json(&["guard", "status"]);
    assert_eq!(status["in_force"], true, "{status:#}");
    let counted = status["refused"].as_array().into_iter().flatten().find(|one| one["why"] == why);
    counted.and_then(|one| one["count"].as_u64()).unwrap_or_else(|| panic!("no {why} in {status:#}"))
}

/// The answers of the client, run by the host's root in a cgroup.
fn outside(cgroup: Option<&PathBuf>, steps: &[&str]) -> String {
    let mut command = Command::new("sh");
    let move_there = cgroup.map_or_else(|| "true".to_owned(), |path| format!("echo $$ >{}/cgroup.procs", path.display()));
    command.args(["-c", &format!("{move_there} && exec \"$@\""), "sh"]).arg(client()).args(steps);
    let ended = ended(&mut command);
    let answers = ended.stdout.lines().map(|line| line.split_once(' ').expect("a step and its answer").1);
    answers.collect::<Vec<_>>().join(", ")
}

/// The cgroup of a container.
fn cgroup_of(world: &World, bundle: &Bundle) -> PathBuf {
    let init = Runtime::Runc.init(&world.lab, &bundle.id);
    let text = fs::read_to_string(format!("/proc/{init}/cgroup")).expect("it runs");
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("it is in the v2 hierarchy");
    cgroup2().join(path)
}

/// Asserts that a container does not start while the guard is in force, and what the hook says.
fn not_started(world: &World, bundle: Bundle, status: i32, words: &[&str]) {
    let ended = Runtime::Runc.run(&world.lab, &bundle.write());
    assert!(!ended.status.success() && ended.stdout.is_empty(), "the container started: {}", ended.stdout);
    world.said(&ended, status, words);
}

fn finish(mut running: Running) {
    running.say("go\n");
    running.finish();
}

#[test]
fn a_refused_delegation_is_container_scope() {
    check(|world| {
        // Without the guard: by what the kernel lets programs reach, and by a capability of the container.
        let steps =
            [TOKEN, ("prog:6:37", OK), ("prog:3:46", OK), ("prog:1:0", OK), ("helper:1:113", EPERM), ("prog:2:0", EPERM)];
        let sockets = |name: &str| asking(world, name, "sockets", &steps);
        world.refused(sockets("refused"), 1, &["on this kernel (", "no host-scope = true: add it, or request delegate="]);
        load_guard(world);
        let bundle = sockets("sockets").write();
        let running = started(world, &bundle, &steps);
        let said = explained(world, &bundle);
        assert!(said.contains("The guard binds its token to its user namespace and its cgroup\n"), "{said}");
        assert!(refusals(world, "helper") > 0);
        finish(running);

        // CAP_PERFMON and CAP_SYS_ADMIN of the container do not reach the verifier: neither the types nor the helpers that need them.
        let bundle = asking(world, "capable", "sockets", &steps).capabilities(&CAPABLE).write();
        let before = refusals(world, "capability");
        finish(started(world, &bundle, &steps));
        assert!(refusals(world, "capability") > before);

        // Cgroup types: not where the container sees foreign cgroups.
        let steps = [TOKEN, ("prog:9:2", OK), ("prog:13:3", OK), ("prog:25:21", OK)];
        let cgroup = asking(world, "cgroup", "cgroup", &steps).write();
        finish(started(world, &cgroup, &steps));
        let sees_others = asking(world, "wide", "cgroup", &steps).mount("none", &cgroup2(), "/cgroups", &["rbind", "ro"]);
        not_started(world, sees_others, 1, &["cgroup"]);

        // Never: syscall, and what needs CAP_PERFMON.
        world.lab.policy("[[container]]\ndelegate = [\"sockets\", \"tracing\"]\n");
        not_started(
            world,
            asking(world, "tracing", "tracing", &steps),
            2,
            &["cannot be kept inside a container; add host-scope = true"],
        );
        world.lab.policy(RULE);
        let syscall = Bundle::new(&world.lab, "syscall");
        let syscall = syscall.ask("delegate-cmds", "prog_load").ask("delegate-progs", "syscall").ask("delegate-attachs", "xdp");
        not_started(world, syscall, 2, &["syscall"]);
    });
}

#[test]
fn a_token_works_only_in_its_container() {
    check(|world| {
        let steps = [TOKEN, ("map:2", OK)];
        let bundle = asking(world, "owner", "maps", &steps).write();
        let pid = |bundle: &Bundle| Runtime::Runc.init(&world.lab, &bundle.id).to_string();
        // Without the guard the host's root can use it, since it created the user namespace.
        let running = started(world, &bundle, &steps);
        let borrow = format!("borrow:{}:{BPFFS}", pid(&bundle));
        assert_eq!(outside(None, &[&borrow, "map:2"]), format!("{OK}, {OK}"));
        load_guard(world);
        // From now on, also with a token from before: it is bound to its user namespace.
        assert_eq!(outside(None, &[&borrow, "map:2"]), format!("{OK}, {EPERM}"));
        finish(running);

        let bundle = asking(world, "bound", "maps", &steps).write();
        let running = started(world, &bundle, &steps);
        let (borrow, enter) = (format!("borrow:{}:{BPFFS}", pid(&bundle)), format!("enter:{}", pid(&bundle)));
        let own = cgroup_of(world, &bundle);
        for (cgroup, words, answer, why) in [
            (None, &[&borrow[..], "map:2"][..], format!("{OK}, {EPERM}"), Some("user-namespace")),
            (Some(&own), &[&borrow, "map:2"], format!("{OK}, {EPERM}"), Some("user-namespace")),
            (None, &[&borrow, &enter, "map:2"], format!("{OK}, {OK}, {EPERM}"), Some("cgroup")),
            (Some(&own), &[&borrow, &enter, "map:2"], format!("{OK}, {OK}, {OK}"), None),
        ] {
            let before = why.map(|why| refusals(world, why));
            assert_eq!(outside(cgroup, words), answer, "{words:?} in {cgroup:?}");
            assert!(why.is_none_or(|why| Some(refusals(world, why)) > before), "{words:?} in {cgroup:?}");
        }
        finish(running);
    });
}

#[test]
fn without_a_cgroup_of_its_own_the_user_namespace_counts() {
    check(|world| {
        load_guard(world);
        let name = format!("{}-shared", world.lab.word());
        let cgroup = cgroup2().join(&name);
        fs::create_dir(&cgroup).expect("root makes cgroups");
        let other = Running::start(Command::new("sleep").arg("600"));
        fs::write(cgroup.join("cgroup.procs"), other.pid().to_string()).expect("root moves processes");
        let steps = [TOKEN, ("prog:1:0", OK)];
        let shared = |name: &str, delegate: &str| {
            asking(world, name, delegate, &steps).cgroup(&format!("/{}", cgroup.file_name().expect("a name").display()))
        };
        let bundle = shared("shared", "networking").write();
        let running = started(world, &bundle, &steps);
        let said = explained(world, &bundle);
        assert!(said.contains("The guard binds its token to its user namespace only: "), "{said}");
        let pid = Runtime::Runc.init(&world.lab, &bundle.id);
        let (borrow, enter) = (format!("borrow:{pid}:{BPFFS}"), format!("enter:{pid}"));
        assert_eq!(outside(None, &[&borrow, &enter, "map:2"]), format!("{OK}, {OK}, {OK}"));
        assert_eq!(outside(None, &[&borrow, "map:2"]), format!("{OK}, {EPERM}"));
        finish(running);
        // Host scope cannot be bound to it.
        world.lab.policy("[[container]]\nhost-scope = true\ndelegate = [\"tracing\"]\n");
        let ended = Runtime::Runc.run(&world.lab, &shared("tracing", "tracing").write());
        let process = format!("process {}, which does not belong to the container", other.pid());
        drop(other);
        let _runc_may_have_removed_it = fs::remove_dir(&cgroup);
        let words = "the guard grants host scope only to a container with a user namespace and a v2 cgroup of its own";
        let reason = world.lab.log() + &ended.stderr;
        assert!(ended.stdout.is_empty() && reason.contains(words) && reason.contains(&process), "{reason}");
    });
}

#[test]
fn host_scope_is_granted_beside_it() {
    check(|world| {
        load_guard(world);
        world.lab.policy("[[container]]\nhost-scope = true\ndelegate = [\"tracing\"]\n");
        let traces = [TOKEN, ("prog:2:0", OK), ("helper:2:113", OK)];
        let tracer = asking(world, "tracer", "tracing", &traces).capabilities(&CAPABLE).write();
        let tracing = started(world, &tracer, &traces);
        let said = explained(world, &tracer);
        assert!(said.contains("and its cgroup, and grants it host scope\n"), "{said}");
        world.lab.policy(RULE);
        let steps = [TOKEN, ("prog:1:0", OK), ("helper:1:113", EPERM)];
        let neighbour = asking(world, "neighbour", "networking", &steps).capabilities(&CAPABLE).write();
        finish(started(world, &neighbour, &steps));
        // Neither another cgroup nor another user namespace has that host scope.
        let pid = Runtime::Runc.init(&world.lab, &tracer.id);
        let (borrow, enter) = (format!("borrow:{pid}:{BPFFS}"), format!("enter:{pid}"));
        assert_eq!(outside(None, &[&borrow, &enter, "prog:2:0"]), format!("{OK}, {OK}, {EPERM}"));
        let own = cgroup_of(world, &tracer);
        assert_eq!(outside(Some(&own), &[&borrow, "prog:2:0"]), format!("{OK}, {EPERM}"));
        assert_eq!(outside(Some(&own), &[&borrow, &enter, "prog:2:0"]), format!("{OK}, {OK}, {OK}"));
        finish(tracing);
        let records = world.lab.records();
        assert_eq!(Value::from(records), Value::Array(Vec::new()), "released with the container");
    });
}
