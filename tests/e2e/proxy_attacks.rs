//! Attacks on the host through the proxy, by a workload of uid 65534 without capabilities: kernel memory, processes,
//! sockets and processors. Each is refused, and the verifier's log and ours name the function.
//!
//! The attacker is tests/e2e/proxy_attacks.c.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use crate::harness;
use crate::proxy::{policy, proxied_program};
use crate::support::bpf_proxy::{compiled, listen};
use crate::support::bundle::Bundle;
use crate::support::podman::Podman;
use crate::support::process::{Ended, Running, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    attacks_are_refused_by_name_under_runc,
    attacks_are_refused_by_name_under_crun,
    attacks_are_refused_by_name_under_podman,
    maps_that_are_not_the_containers_are_refused,
    a_map_that_is_shown_read_only_is_not_written_by_a_program,
    maps_that_reach_beyond_are_refused,
    a_few_loops_are_accepted,
];

/// An attack, and what the refusal says after the program's name. A `{kernel function}` that this kernel does not have has
/// no id, so that the refusal cannot name it.
const ATTACKS: &[(&str, &str)] = &[
    ("cast", "calls the kernel function {bpf_rdonly_cast} (instruction 3): that reaches kernel memory"),
    ("dynptr", "calls the kernel function {bpf_probe_read_kernel_dynptr} (instruction 6): that reaches kernel memory"),
    ("untrusted", "has a function with an argument tagged \"arg:untrusted\": that reaches kernel memory"),
    ("variable", "uses the kernel variable {runqueues} (instruction 0): that can reach kernel memory"),
    (
        "kill-xdp VICTIM",
        "calls the kernel function {bpf_task_from_pid} (instruction 1): that reaches other processes of the host",
    ),
    (
        "kill-cgroup VICTIM",
        "calls the kernel function {bpf_task_from_pid} (instruction 1): that reaches other processes of the host",
    ),
    ("take-xdp", "calls bpf_skc_lookup_tcp with a network namespace other than its own (instruction 8)"),
    ("take-tc", "calls bpf_sk_lookup_tcp with a network namespace other than its own (instruction 8)"),
    ("take-cgroup", "calls bpf_sk_lookup_udp with a network namespace other than its own (instruction 8)"),
    ("hold-goto", "uses may_goto (instruction 2): that can hold a processor"),
    (
        "hold-loop",
        "calls bpf_loop with a count that is not a constant of at most 65536 (instruction 5): that can hold a processor",
    ),
    ("hold-nested", "calls bpf_loop from a callback (instruction 15): nested loops can hold a processor"),
    // 64 loops of 65536 rounds and 101 instructions.
    ("hold-many", "can execute 423625"),
    ("helper-4", "calls bpf_probe_read (instruction 5): that reaches kernel memory"),
    ("helper-6", "calls bpf_trace_printk (instruction 5): that reaches the host"),
    ("helper-27", "calls bpf_get_stackid (instruction 5): that reaches kernel addresses"),
    ("helper-35", "calls bpf_get_current_task (instruction 5): that reaches kernel memory"),
    ("helper-36", "calls bpf_probe_write_user (instruction 5): that reaches other processes of the host"),
    ("helper-45", "calls bpf_probe_read_str (instruction 5): that reaches kernel memory"),
    ("helper-109", "calls bpf_send_signal (instruction 5): that reaches other processes of the host"),
    ("helper-110", "calls bpf_tcp_gen_syncookie (instruction 5): that reaches the host's secret of SYN cookies"),
    ("helper-113", "calls bpf_probe_read_kernel (instruction 5): that reaches kernel memory"),
    ("helper-148", "calls bpf_copy_from_user (instruction 5): that reaches other processes of the host"),
    ("helper-154", "calls bpf_this_cpu_ptr (instruction 5): that reaches kernel addresses"),
    ("helper-165", "calls bpf_snprintf (instruction 5): that reaches kernel memory"),
    ("helper-166", "calls bpf_sys_bpf (instruction 5): that reaches the host"),
];

const PRESETS: &str = "sockets:cgroup:networking";
const RULE: &str = "proxy = [\"sockets\", \"cgroup\", \"networking\"]";

fn attacker() -> &'static Path {
    static ATTACKER: OnceLock<PathBuf> = OnceLock::new();
    ATTACKER.get_or_init(|| compiled("proxy_attacks"))
}

/// A container that makes these attacks.
fn attacking(world: &World, name: &str, words: &[&str]) -> Bundle {
    let bundle = proxied_program(world, name, PRESETS, attacker(), "attacks");
    bundle.edit(|config| config["process"]["args"] = json!([&["/attacks"], words].concat()))
}

/// A process of root on the host.
fn victim() -> Running {
    Running::start(Command::new("sleep").arg("120"))
}

/// The words of all attacks.
fn all_attacks(victim: &Running) -> Vec<String> {
    let words = ATTACKS.iter().flat_map(|(attack, _)| attack.split(' '));
    words.map(|word| if word == "VICTIM" { victim.pid().to_string() } else { word.to_owned() }).collect()
}

/// The refusal, with the names that it can have on this kernel.
fn expected(text: &str) -> String {
    static TYPES: OnceLock<Vec<u8>> = OnceLock::new();
    let Some((before, name, after)) = text.split_once('{').and_then(|(before, rest)| {
        let (name, after) = rest.split_once('}')?;
        Some((before, name, after))
    }) else {
        return text.to_owned();
    };
    let types =
        TYPES.get_or_init(|| fs::read("/sys/kernel/btf/vmlinux").unwrap_or_else(|e| harness!("read the kernel's BTF: {e}")));
    let is_there = types.windows(name.len() + 1).any(|bytes| bytes.strip_suffix(&[0]) == Some(name.as_bytes()));
    if is_there { format!("{before}{name}{after}") } else { before.to_owned() }
}

fn assert_all_refused(world: &World, ended: &Ended, mut victim: Running) {
    let log = world.lab.log();
    for (attack, text) in ATTACKS {
        let attack = attack.split(' ').next().unwrap_or_default();
        let text = format!("program attack {}", expected(text));
        let said = ended.line(&format!("{attack} ")).unwrap_or_else(|| panic!("{attack}: {} {}", ended.stdout, ended.stderr));
        assert!(said.starts_with(&format!("-1 13: bpfman-hook: {text}")), "{attack}: {said}");
        if !Path::new("/run/systemd/journal/socket").exists() {
            assert!(log.contains(&format!("bpf(2) refused: {text}")), "{attack} is not in the log: {log}");
        }
    }
    assert!(!victim.has_ended(), "the process of the host was killed");
    victim.kill();
}

fn attacked_under(world: &World, runtime: Runtime) {
    listen(&world.lab);
    policy(world, RULE);
    let victim = victim();
    let words = all_attacks(&victim);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let bundle = attacking(world, runtime.name(), &words).write();
    let ended = runtime.run(&world.lab, &bundle);
    runtime.delete(&world.lab, &bundle.id);
    assert_all_refused(world, &ended, victim);
}

fn attacks_are_refused_by_name_under_runc(world: &mut World) {
    attacked_under(world, Runtime::Runc);
}

fn attacks_are_refused_by_name_under_crun(world: &mut World) {
    world.mount_bpffs();
    attacked_under(world, Runtime::Crun);
}

fn attacks_are_refused_by_name_under_podman(world: &mut World) {
    world.mount_bpffs();
    policy(world, RULE);
    let victim = victim();
    let podman = Podman::new(&world.lab, Runtime::Runc).with_precreate(&world.lab);
    let volume = format!("{}:/attacks:ro", attacker().display());
    let delegate = format!("hook.bpfman.io/delegate={PRESETS}");
    let asked = ["--annotation", &delegate, "--annotation", "hook.bpfman.io/delegate-via=proxy"];
    let flags = [&asked[..], &["--user", "65534", "--cap-drop", "all", "--volume", &volume]].concat();
    let script = format!("/attacks {}", all_attacks(&victim).join(" "));
    let ended = crate::support::process::ended(&mut podman.run(&world.lab, "attacks", &flags, &script));
    assert_all_refused(world, &ended, victim);
}

/// Asserts that the attack that a line of the output begins with was refused with EPERM, and why.
fn assert_denied(world: &World, ended: &Ended, attack: &str, text: &str) {
    let said = ended.line(&format!("{attack} ")).unwrap_or_else(|| panic!("{} {}", ended.stdout, ended.stderr));
    assert!(said.starts_with("-1 1:"), "{attack}: {said}");
    let log = world.lab.log();
    let is_logged = log.contains(&format!("bpf(2) refused: {text}")) || Path::new("/run/systemd/journal/socket").exists();
    assert!(is_logged, "{attack}: {log}");
}

fn maps_that_are_not_the_containers_are_refused(world: &mut World) {
    const FOREIGN: &str =
        "the map is not the container's own: it was neither created through the proxy nor is it shown to the container as :rw";
    listen(&world.lab);
    policy(world, RULE);
    let pins = world.lab.path("pins");
    fs::create_dir(&pins).unwrap_or_else(|e| harness!("create {}: {e}", pins.display()));
    tool(Command::new("mount").args(["-t", "bpf", "-o", "mode=0755", "bpf"]).arg(&pins));
    for (name, kind) in [("secrets", "array"), ("sockets", "sockmap")] {
        let pin = pins.join(name);
        let words = ["type", kind, "key", "4", "value", "4", "entries", "1", "name", name];
        tool(Command::new("bpftool").args(["map", "create"]).arg(&pin).args(words));
        // The container may open them: only the proxy is in the way.
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o666)).unwrap_or_else(|e| harness!("chmod: {e}"));
    }
    let bundle = attacking(world, "foreign", &["pinned", "/pins/secrets", "verdict", "/pins/sockets"]);
    let bundle = bundle.mount("bind", &pins, "/pins", &["rbind", "rw"]).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert_denied(world, &ended, "pinned", FOREIGN);
    assert_denied(world, &ended, "verdict", FOREIGN);
    let value = tool(
        Command::new("bpftool").args(["map", "lookup", "pinned"]).arg(pins.join("secrets")).args(["key", "0", "0", "0", "0"]),
    );
    assert!(value.contains("00 00 00 00") || value.contains("\"value\": 0"), "{value}");
    tool(Command::new("umount").arg(&pins));
}

fn a_map_that_is_shown_read_only_is_not_written_by_a_program(world: &mut World) {
    listen(&world.lab);
    let image = world.signed("demo");
    world.lab.policy(&format!("{}[[container]]\nprograms = [\"xdp\"]\n{RULE}\n", world.image_rule()));
    let bundle = attacking(world, "readonly", &["pinned", "/sys/fs/bpf/packets"])
        .ask("image", &image)
        .ask("programs", "xdp:count_packets iface=lo")
        .ask("maps", "packets")
        // The maps belong to the container's root, which needs no capability to open them.
        .edit(|config| config["process"]["user"] = json!({ "uid": 0, "gid": 0 }))
        .write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let why = "the map is not the container's own: it is shown to the container read-only, and a program could write to it";
    assert_denied(world, &ended, "pinned", why);
}

fn maps_that_reach_beyond_are_refused(world: &mut World) {
    listen(&world.lab);
    policy(world, RULE);
    let ended = Runtime::Runc.run(&world.lab, &attacking(world, "cpumap", &["cpumap", "sockmap"]).write());
    assert_denied(world, &ended, "cpumap", "map type cpumap: each entry starts a thread of the kernel");
    // A sockmap of the container's own sockets is granted with `sockets`, and with nothing less.
    assert!(ended.line("sockmap ").is_some_and(|said| said.starts_with("0 0")), "{}", ended.stdout);
    let bundle = proxied_program(world, "sockmap", "networking", attacker(), "attacks");
    let bundle = bundle.edit(|config| config["process"]["args"] = json!(["/attacks", "sockmap"])).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert_denied(world, &ended, "sockmap", "the container was not granted the map type sockmap");
}

/// The same loops as in `hold-many`, a few of them.
fn a_few_loops_are_accepted(world: &mut World) {
    listen(&world.lab);
    policy(world, RULE);
    let ended = Runtime::Runc.run(&world.lab, &attacking(world, "few", &["few-loops"]).write());
    assert!(ended.line("few-loops ").is_some_and(|said| said.starts_with("0 0")), "{} {}", ended.stdout, ended.stderr);
}
