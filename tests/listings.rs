//! Listings as users see them: their width, names and colours, and their JSON by its schema.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "support/json_schema.rs"]
mod json_schema;
#[path = "support/recorded_host.rs"]
mod recorded_host;

use recorded_host::World;

/// The output of a command, whatever its exit status, on a terminal with 80 columns.
fn table(world: &World, line: &str) -> String {
    let output = world.program().args(line.split(' ')).env("COLUMNS", "80").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn json(world: &World, line: &str) -> Value {
    let output = world.program().args(line.split(' ')).args(["-o", "json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {output:?}"))
}

fn write_policy(world: &World, text: &str) {
    let file = world.root().join("etc/bpfman-hook/policy.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
}

const POLICY: &str = "[[image]]\nrepository = \"registry.example/acme/**\"\nunsigned = true\n\
    [[container]]\nmatch = { engine = \"podman\" }\nprograms = [\"xdp\"]\ndelegate = [\"networking\"]\n";

#[test]
fn tables_fit_80_columns_and_name_what_users_know() {
    let world = World::new();
    write_policy(&world, POLICY);
    for line in ["list programs", "list links", "list containers", "image list", "inspect c1", "doctor"] {
        let text = table(&world, line);
        // The remedies below a table are sentences.
        let rows = text.lines().filter(|line| !line.contains("; remove it with") && !line.contains("; start the "));
        for long in rows.filter(|line| line.chars().count() > 80) {
            // A word is never broken.
            assert!(long.split(' ').any(|word| word.chars().count() > 24), "{line}: {long}\n{text}");
        }
    }
    let programs = table(&world, "list programs");
    for part in ["front/web", "c1", "warehouse", "v1.2.3", " 81 ", "4721"] {
        assert!(programs.contains(part), "{part}: {programs}");
    }
    assert!(!programs.contains("abababababababab"), "{programs}");
    let whole = table(&world, "list programs --no-trunc");
    assert!(whole.contains(&"ab".repeat(32)) && whole.contains("observability/probes/count-packets:v1.2.3"), "{whole}");

    let containers = table(&world, "list containers");
    assert!(containers.contains("3f9c1b7a42d0  shop/front/web  dead  containerd"), "{containers}");
    assert!(containers.contains("abababababab  c1  dead  podman  pid 4194305"), "its process is gone: {containers}");
    assert!(containers.contains("cdcdcdcdcdcd  failed  podman") && containers.contains(" ago\n"), "{containers}");
    assert!(containers.contains("networking (3 commands, 32 map types, 6 program types, 6 attach types)"), "{containers}");
    assert!(table(&world, "list containers -v").contains("delegate_progs=socket_filter:"));
    assert!(table(&world, "list containers --no-trunc").contains(&"ab".repeat(32)));
    assert_eq!(table(&world, "list containers -q").lines().nth(1).unwrap(), "ab".repeat(32), "scripts get whole ids");
}

#[test]
fn inspect_takes_names_and_says_more_than_list() {
    let world = World::new();
    for (name, id) in
        [("c1", "ab".repeat(32)), ("front/web", "3f9c1b7a42d0".to_owned()), ("shop/front/web", "3f9c1b7a42d0".to_owned())]
    {
        let text = table(&world, &format!("inspect {name}"));
        assert!(text.starts_with(&id), "{name}: {text}");
        for part in ["created 1970-01-01T00:28:20Z", "bundle", "record ", "digest", "sha256:", "image rule acme"] {
            assert!(text.contains(part), "{name}: {part}: {text}");
        }
    }
    let output = world.program().args(["inspect", "nonsense"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("has this name, or an id that begins with it"), "{output:?}");
}

#[test]
fn json_is_as_its_schema_says() {
    let world = World::new();
    write_policy(&world, POLICY);
    for command in ["list containers", "list programs", "list links", "image list", "doctor", "version"] {
        json_schema::require(command, &json(&world, command));
    }
    json_schema::require("inspect", &json(&world, "inspect c1"));
    json_schema::require("gc", &json(&world, "gc --dry-run"));
    json_schema::require("install --check", &json(&world, "install --check"));
    let explained = json(&world, "policy explain -a delegate=networking --engine podman");
    json_schema::require("policy explain", &explained);
    json_schema::require("token probe", &json(&world, "token probe /none"));
    let programs = json(&world, "list programs");
    assert_eq!((&programs[1]["owner"]["kind"], &programs[1]["owner"]["name"]), (&"container".into(), &"c1".into()));
    assert_eq!(programs[2]["owner"]["id"], "warehouse");
}

#[test]
fn a_picture_of_the_host_is_drawn() {
    let world = World::new();
    let text = table(&world, "graph --all");
    assert!(text.starts_with("flowchart LR\n") && text.contains("container c1<br/>podman, dead"), "{text}");
    let svg = table(&world, "graph c1 -o svg");
    assert!(svg.starts_with("<svg ") && svg.contains("networking (3 commands"), "{svg}");
    assert!(!svg.contains("front/web"));
}

#[test]
fn a_manifest_is_judged_container_by_container() {
    let world = World::new();
    write_policy(&world, &POLICY.replace("podman", "containerd"));
    let file = world.root().join("pod.yaml");
    let manifest = "\
apiVersion: apps/v1
kind: Deployment
metadata: { name: front, namespace: shop }
spec:
  template:
    metadata:
      annotations:
        description: not ours
        hook.bpfman.io/delegate: networking
        web.hook.bpfman.io/programs: kprobe:trace:do_unlinkat
        web.hook.bpfman.io/image: registry.example/acme/trace:v1
    spec:
      hostUsers: false
      containers:
        - name: web
        - name: sidecar
---
apiVersion: v1
kind: Service
metadata: { name: front }
";
    fs::write(&file, manifest).unwrap();
    let judge = |more: &[&str]| world.program().args(["policy", "explain", "-f"]).arg(&file).args(more).output().unwrap();
    let output = judge(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (web, sidecar) = text.split_once("shop/front/sidecar\n").unwrap_or_else(|| panic!("{text}"));
    assert!(web.starts_with("shop/front/web\n") && web.contains("does not allow kprobe programs"), "{text}");
    assert!(sidecar.contains("delegates   networking (") && !sidecar.contains("kprobe"), "{text}");
    let json: Value = serde_json::from_slice(&judge(&["-o", "json"]).stdout).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["allowed"], &json[0]["pod"]), (&"web".into(), &false.into(), &"shop/front".into()));
    fs::write(&file, "kind: [").unwrap();
    assert_eq!(judge(&[]).status.code(), Some(2));
    fs::write(&file, "kind: Service\n").unwrap();
    let output = judge(&[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no pod in it"), "{output:?}");
}

/// `script` gives a command a terminal.
fn on_a_terminal(world: &World, line: &str, variable: Option<(&str, &str)>) -> String {
    let command = format!("{} --root {} {line}", env!("CARGO_BIN_EXE_bpfman-hook"), world.root().display());
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--command", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    script.envs(variable);
    String::from_utf8_lossy(&script.output().unwrap().stdout).into_owned()
}

#[test]
fn states_have_colours_on_a_terminal_only() {
    let world = World::new();
    for line in ["list containers", "doctor"] {
        assert!(on_a_terminal(&world, line, None).contains("\u{1b}[3"), "{line}");
        assert!(!on_a_terminal(&world, line, Some(("NO_COLOR", "1"))).contains('\u{1b}'), "{line}");
        assert!(!on_a_terminal(&world, line, Some(("TERM", "dumb"))).contains('\u{1b}'), "{line}");
        assert!(!table(&world, line).contains('\u{1b}'), "{line}");
    }
    assert!(on_a_terminal(&world, "list containers", None).contains("\u{1b}[31mdead\u{1b}[0m"));
}
