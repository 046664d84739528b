//! The recipes of docs/tokens.md, run in containers as they are written there, and `token explain` about containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness;
use crate::support::bpftool::TokenBpftool;
use crate::support::bundle::Bundle;
use crate::support::lab::{BINARY, Hooks};
use crate::support::process::{ended, tool};
use crate::support::runtime::Runtime;
use crate::support::world::{object_bytes, object_path};
use crate::world::World;

crate::cases![system_calls_work_as_the_recipe_says, a_container_is_explained];

/// The code block after a marker in docs/tokens.md.
fn recipe(name: &str) -> String {
    let text = include_str!("../../docs/tokens.md");
    let (_, rest) = text.split_once(&format!("<!-- recipe: {name} -->\n```")).expect("docs/tokens.md has the recipe");
    let (_, rest) = rest.split_once('\n').expect("a block has a first line");
    rest.split_once("\n```").expect("a block ends").0.to_owned() + "\n"
}

fn system_calls_work_as_the_recipe_says(world: &mut World) {
    world.lab.policy("[[container]]\nhost-scope = true\ndelegate = [\"maps\", \"probes\"]\n");
    let source = world.lab.write("calls.c", recipe("calls").as_bytes());
    let program = world.lab.path("calls");
    tool(Command::new("gcc").args(["-static", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source));
    let bundle = Bundle::new(&world.lab, "calls")
        .ask("delegate-cmds", "map_create:prog_load")
        .ask("delegate-maps", "array")
        .ask("delegate-progs", "socket_filter")
        .ask("delegate-attachs", "cgroup_inet_ingress")
        .rootfs(|root| _ = fs::copy(&program, root.join("calls")).expect("the program is there"));
    let bundle = bundle.script("echo ready; /calls && echo said yes || echo said no; read go").write();
    let mut running = world.start(&bundle);
    assert_eq!(running.hear("said "), "yes");
    running.say("go\n");
    running.finish();
}

/// The container has what `token explain --object` prints for the object, and nothing else.
#[test]
fn bpftool_loads_as_the_recipe_says() {
    let bpftool = match TokenBpftool::get() {
        Ok(bpftool) => bpftool,
        Err(why) => return crate::tools::skipped("libbpf with a token", &why),
    };
    let mut world = World::new(Hooks::Ours);
    let object = object_path("counter");
    let explain =
        |spelling| world.lab.ours(&["token", "explain", "--object", object.to_str().expect("a plain path"), "--as", spelling]);
    let (policy, annotations) = (explain("policy"), explain("annotations"));
    loads_in_a_container(&mut world, &bpftool, &policy, &annotations);
    world.lab.residue();
}

/// The container has what `token profile` prints for the same bpftool on the host. Its library's probes are left out.
#[test]
fn bpftool_loads_with_what_was_recorded() {
    let bpftool = match TokenBpftool::get() {
        Ok(bpftool) => bpftool,
        Err(why) => return crate::tools::skipped("token profile of libbpf 1.5", &why),
    };
    let mut world = World::new(Hooks::Ours);
    let pins = world.lab.path("pins");
    fs::create_dir(&pins).unwrap_or_else(|e| harness!("create {}: {e}", pins.display()));
    tool(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&pins));
    let mut command = Command::new(&bpftool.words[0]);
    command.args(&bpftool.words[1..]).args(["prog", "loadall"]).arg(object_path("counter")).arg(pins.join("recorded"));
    let (profile, ended) = crate::profile::profiled(&world, &command);
    tool(Command::new("umount").arg(&pins));
    assert!(ended.status.success(), "{ended:?}");
    let text = |spelling: &str| profile["token"]["text"][spelling].as_str().expect("a text").to_owned();
    loads_in_a_container(&mut world, &bpftool, &text("policy"), &text("annotations"));
    world.lab.residue();
}

/// The recipe for libbpf works in a container with a policy and annotations.
fn loads_in_a_container(world: &mut World, bpftool: &TokenBpftool, policy: &str, annotations: &str) {
    world.lab.policy(policy);
    let mut bundle = Bundle::new(&world.lab, "bpftool");
    for line in annotations.lines() {
        let (key, value) = line.split_once(": ").expect("an annotation");
        bundle = bundle.annotate(key, value);
    }
    // The packages are at the same place inside, and `bpftool` is a script.
    let words: Vec<String> = bpftool.words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "));
    let inside = bpftool.suite.to_str().expect("a plain path").to_owned();
    bundle = bundle.mount("none", &bpftool.suite, &inside, &["bind", "ro"]).rootfs(|root| {
        let program = root.join("bin/bpftool");
        fs::write(&program, script).expect("root writes");
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("root's file");
        fs::write(root.join("packets.bpf.o"), object_bytes("counter")).expect("root writes");
        fs::write(root.join("recipe"), format!("set -e\n{}", recipe("libbpf"))).expect("root writes");
        fs::create_dir_all(root.join(Path::new(&inside).strip_prefix("/").expect("absolute"))).expect("root makes it");
    });
    let said = "if sh /recipe 2>&1; then echo said yes; else echo said no; fi";
    let list = "echo pins $(ls /sys/fs/bpf/packets 2>&1) end";
    let bundle = bundle.script(&format!("echo ready; cd /; {said}; {list}; read go")).write();
    let mut running = world.start(&bundle);
    let verdict = running.hear("said ");
    let pins = running.hear("pins ");
    running.say("go\n");
    let ended = running.finish();
    assert_eq!(verdict, "yes", "{}", ended.stdout);
    assert!(pins.contains("count"), "{pins}");
}

/// Builds a recipe in a language of its own; None if its library cannot be had.
fn built(name: &str, file: &str) -> Option<PathBuf> {
    let out = Path::new(BINARY).parent().expect("the build's directory").join("recipes").join(name);
    fs::create_dir_all(&out).unwrap_or_else(|e| harness!("create {}: {e}", out.display()));
    let source = out.join(file);
    fs::write(&source, recipe(name)).unwrap_or_else(|e| harness!("write {}: {e}", source.display()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recipes/build.sh");
    // It compiles a library, which may take longer than anything else here.
    let built = Command::new(script).arg(name).arg(&source).arg(&out).output().unwrap_or_else(|e| harness!("{script}: {e}"));
    let said = String::from_utf8_lossy(&built.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default();
    match built.status.code() {
        Some(0) => Some(PathBuf::from(last)),
        Some(77) => {
            crate::tools::skipped(name, last);
            None
        }
        _ => panic!("tests/recipes/build.sh {name}: {}", String::from_utf8_lossy(&built.stderr)),
    }
}

/// A recipe reads a map that bpfman-hook shows, in a container without capabilities.
fn reads_packets(world: &mut World, program: &Path) {
    for access in ["packets:rw", "packets"] {
        let name = access.replace(':', "-");
        let bundle = world.counting(&name).ask("maps", access).capabilities(&[]).rootfs(|root| {
            fs::copy(program, root.join("recipe")).unwrap_or_else(|e| harness!("copy the recipe: {e}"));
        });
        let traffic = "for i in 1 2 3; do nc -w 2 127.0.0.1 9 </dev/null; done 2>/dev/null";
        let script = format!("echo ready; read go; {traffic}; /recipe || echo packets failed; read go");
        let bundle = bundle.script(&script).write();
        let mut running = world.start(&bundle);
        running.say("go\n");
        let said = running.hear("packets ");
        running.say("go\n");
        let ended = running.finish();
        assert!(said.parse::<u64>().is_ok_and(|count| count > 0), "{access}: {said} {}", ended.stderr);
    }
}

#[test]
fn aya_opens_maps_as_the_recipe_says() {
    let Some(program) = built("aya", "main.rs") else { return };
    let mut world = World::new(Hooks::Ours);
    reads_packets(&mut world, &program);
    world.lab.residue();
}

/// With Debian 12's version, which is older than tokens.
#[test]
fn cilium_opens_maps_as_the_recipe_says() {
    let Some(program) = built("cilium", "recipe.go") else { return };
    let mut world = World::new(Hooks::Ours);
    reads_packets(&mut world, &program);
    world.lab.residue();
}

fn a_container_is_explained(world: &mut World) {
    world.lab.policy("[[container]]\ndelegate = [\"maps\"]\nhost-scope = true\n");
    let bundle = Bundle::new(&world.lab, "explained").ask("delegate", "maps").script("echo ready; read go").write();
    let running = world.start(&bundle);
    let explained = world.lab.json(&["token", "explain", "--container", &bundle.id]);
    assert_eq!(explained["container"], Value::from(bundle.id.as_str()));
    assert_eq!(explained["bpffs"][0]["mounted_by"], "bpfman-hook", "{explained:#}");
    // By whom: the rule, which is in the policy's first line, and the record.
    let rule = format!("the container rule at {}:1", world.lab.path("root/etc/bpfman-hook/policy.toml").display());
    assert_eq!(explained["record"]["granted_by"], Value::from(rule.as_str()), "{explained:#}");
    assert_eq!(explained["record"]["bpffs"], "/sys/fs/bpf", "{explained:#}");
    let owner = explained["record"]["owner"].to_string();
    let init = Runtime::Runc.init(&world.lab, &bundle.id).to_string();
    let text = world.lab.ours(&["token", "explain", "--pid", &init]);
    let by = format!("/sys/fs/bpf, mounted by bpfman-hook (owner {owner}, granted by {rule}), delegates");
    assert!(text.lines().any(|line| line == by), "{by} is not in\n{text}");
    let names = explained["bpffs"][0]["names"].as_array().into_iter().flatten();
    assert!(names.into_iter().any(|name| name["name"] == "ringbuf" && name["scope"] == "container"), "{explained:#}");
    let certain = explained["problems"].as_array().into_iter().flatten().filter(|problem| problem["certain"] == true);
    assert_eq!(certain.count(), 0, "{explained:#}");
    running.finish();
    // This process is in the initial user namespace.
    let explained = world.lab.json(&["token", "explain", "--pid", &std::process::id().to_string()]);
    let mut problems = explained["problems"].as_array().into_iter().flatten();
    let found = problems.any(|problem| problem["errno"] == "EOPNOTSUPP" && problem["certain"] == true);
    assert!(found, "{explained:#}");
}

/// A container that requested nothing when it started.
fn plain(world: &World, name: &str) -> Bundle {
    Bundle::new(&world.lab, name)
        .with_binary(&world.lab)
        .script("echo ready; read go; /bpfman-hook token probe -o json; read go")
}

/// The arguments of `token create` for a container of this lab's runc.
fn create<'a>(state: &'a str, id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["token", "create", "--state", state, "--container", id], more].concat()
}

// Without hooks, `token create` works too: these are no cases.
#[test]
fn running_containers() {
    crate::check(a_running_container_gets_a_token);
    crate::check(a_running_container_gets_no_more_than_its_rule_allows);
}

/// A container that runs already gets what its rule allows; it is recorded, shown, and released after its end.
fn a_running_container_gets_a_token(world: &mut World) {
    world.lab.policy("[[container]]\ndelegate = [\"maps\"]\n");
    let state = world.lab.path("runc");
    let state = state.to_str().expect("a plain path");
    let bundle = plain(world, "late").write();
    let mut running = world.start(&bundle);
    assert_eq!(world.lab.records().len(), 0, "it requested nothing");
    let made = world.lab.json(&create(state, &bundle.id[..bundle.id.len() - 1], &["--delegate", "maps"]));
    assert_eq!(made["container"], Value::from(bundle.id.as_str()), "{made:#}");
    assert_eq!(made["pid"], Value::from(Runtime::Runc.init(&world.lab, &bundle.id)));
    let inspected = world.inspect(&bundle.id).to_string();
    assert!(inspected.contains("/sys/fs/bpf"), "{inspected}");
    // It has a record now, which only its end changes.
    let again = ended(&mut world.lab.command(&create(state, &bundle.id, &["--delegate", "maps"])));
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(again.stderr.contains("has a record already"), "{again:?}");
    running.say("go\n");
    running.say("go\n");
    running.finish();
    // Its configuration has our poststop hook only if it has our hooks; gc finds it otherwise.
    world.lab.ours(&["gc"]);
    assert_eq!(world.lab.records().len(), 0, "the record is gone");
}

/// What the policy would refuse at a start, it refuses later.
fn a_running_container_gets_no_more_than_its_rule_allows(world: &mut World) {
    world.lab.policy("[[container]]\ndelegate = [\"maps\"]\n");
    let state = world.lab.path("runc");
    let state = state.to_str().expect("a plain path");
    let bundle = plain(world, "bounded").write();
    let mut running = world.start(&bundle);
    let init = Runtime::Runc.init(&world.lab, &bundle.id).to_string();
    let refused = |arguments: &[&str], words: &str| {
        let ended = ended(&mut world.lab.command(arguments));
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{arguments:?}: {}", ended.stderr);
        let mounts = fs::read_to_string(format!("/proc/{init}/mountinfo")).expect("it runs");
        assert!(!mounts.contains("delegate_"), "{arguments:?}: {mounts}");
    };
    refused(&create(state, &bundle.id, &["--delegate", "sockets"]), "delegate");
    // Its pid is the container, whatever root names.
    refused(&["token", "create", "--state", state, "--pid", &init, "--delegate", "sockets"], "delegate");
    refused(&create(state, "no-such-container", &["--delegate", "maps"]), "no container has an id");
    // A process of the host has no namespaces of its own.
    let me = std::process::id().to_string();
    refused(&["token", "create", "--pid", &me, "--delegate", "maps"], "mount namespace");
    running.say("go\n");
    running.say("go\n");
    running.finish();
    world.lab.ours(&["gc"]);
    // Without a user namespace there is no token.
    let bundle = plain(world, "without").without_userns().write();
    let mut running = world.start(&bundle);
    let ended = ended(&mut world.lab.command(&create(state, &bundle.id, &["--delegate", "maps"])));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("user namespace"), "{}", ended.stderr);
    running.say("go\n");
    running.say("go\n");
    running.finish();
}

#[test]
fn a_command_runs_with_a_token() {
    crate::check(|world| {
        let create = ["token", "create", "--delegate", "maps", "--exec", "--"];
        // The command is a static binary that any user may execute.
        let binary = world.lab.path("command");
        fs::copy(crate::support::lab::BINARY, &binary).expect("our binary is there");
        let probe = [&create[..], &[binary.to_str().expect("a plain path"), "token", "probe", "-o", "json"]].concat();
        let ended = ended(&mut world.lab.command(&probe));
        // Programs are not delegated.
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let probed: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let outcome = |stage: &str| {
            let steps = probed["steps"].as_array().into_iter().flatten();
            steps.into_iter().find(|step| step["stage"] == stage).map(|step| step["outcome"].clone())
        };
        assert_eq!(outcome("create-map"), Some("done".into()), "{probed:#}");
        assert_eq!(outcome("load-socket-filter"), Some("failed".into()), "{probed:#}");
        assert_eq!(world.lab.records().len(), 0, "released with the command");
        // What it leaves in its namespace ends, and its exit status is ours.
        let script = "sleep 300 & echo left $!; exit 7";
        let ended = crate::support::process::ended(&mut world.lab.command(&[&create[..], &["sh", "-c", script]].concat()));
        assert_eq!(ended.status.code(), Some(7), "{ended:?}");
        let left = ended.stdout.trim().trim_start_matches("left ").to_owned();
        // One that is not reaped yet is dead, too.
        let status = fs::read_to_string(format!("/proc/{left}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{left}: {status}");
        assert_eq!(world.lab.records().len(), 0);
    });
}
