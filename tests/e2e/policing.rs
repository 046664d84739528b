//! Containers whose rule polices their bpf(2) calls, with runc, crun and podman. A kernel that calls no LSM programs refuses
//! each of them with the sentence that says what is missing; tests/vm/containers.sh runs the same cases on kernels that
//! police.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bpfman_hook::cli::HookStage;
use bpfman_hook::kernel::{Feature, Support, features};
use bpfman_hook::model::policy::Engine;
use bpfman_hook::setup::hook_files::{self, Engines, Invocation};
use serde_json::{Value, json};

use crate::harness;
use crate::support::bpf_proxy::compiled;
use crate::support::bundle::Bundle;
use crate::support::kernel::{Cgroups, bpftool, cgroup2, cgroups};
use crate::support::lab::{BINARY, Hooks, Lab};
use crate::support::podman::Podman;
use crate::support::process::{Ended, Running, ended, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    runc_polices_a_container_that_requests_nothing,
    crun_polices_a_container_that_requests_nothing,
    podman_polices_containers_without_annotations,
    a_request_and_policing_work_together,
    a_warning_counts_and_refuses_nothing,
    a_policed_container_cannot_undo_it,
    a_cgroup_with_other_processes_is_refused,
    a_recorded_workload_works_under_enforce,
];

const OK: &str = "0 0";
const EPERM: &str = "-1 1";
const PATIENCE: Duration = Duration::from_secs(60);
/// What loads programs of every type.
const CAPABILITIES: [&str; 4] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"];

/// Why this kernel polices nothing; None if it does.
pub fn missing() -> Option<String> {
    match features::probe(Feature::Lsm) {
        Support::Yes => None,
        Support::No(why) | Support::Unknown(why) => Some(why),
    }
}

/// Whether the kernel shows the instructions of programs to LSM programs: Linux 6.9, which has tokens too.
fn judges_helpers() -> bool {
    features::probe(Feature::Token) == Support::Yes
}

/// tests/e2e/bpf_client.c.
pub fn client() -> &'static PathBuf {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| compiled("bpf_client"))
}

/// Adds the client, which makes calls of bpf(2).
pub fn with_client(bundle: Bundle, steps: &[&str]) -> Bundle {
    let words = ["/client"].iter().chain(steps).copied().collect::<Vec<_>>();
    bundle
        .rootfs(|root| _ = fs::copy(client(), root.join("client")).unwrap_or_else(|e| harness!("copy the client: {e}")))
        .edit(|config| config["process"]["args"] = json!(words))
}

/// A container of the host's root with capabilities, without annotations, whose hook is that of `install --police`.
fn capable(world: &World, name: &str) -> Bundle {
    Bundle::new(&world.lab, name).without_userns().capabilities(&CAPABILITIES).edit(|config| {
        if let Some(Value::Array(words)) = config["hooks"]["createRuntime"].get_mut(0).and_then(|hook| hook.get_mut("args")) {
            words.push(json!("--police"));
        }
    })
}

/// Asserts the answers of the client's steps.
pub fn hear(running: &mut Running, answers: &[(&str, &str)]) {
    for (step, answer) in answers {
        assert_eq!(running.hear(&format!("{step} ")), *answer, "{step}");
    }
}

/// Asserts that a container does not start because this kernel polices nothing, and that its record says what is missing.
fn refused(world: &World, runtime: Runtime, bundle: &Bundle, why: &str) {
    let ended = runtime.run(&world.lab, bundle);
    assert!(!ended.status.success() && ended.stdout.is_empty(), "the container started: {}", ended.stdout);
    let reason = world.inspect(&bundle.id)[0]["reason"].as_str().unwrap_or_default().to_owned();
    // On a hybrid host crun's containers have no cgroup of their own either, which is found first.
    let rootless = runtime == Runtime::Crun && cgroups() != Cgroups::Unified;
    let sentence = match rootless {
        true => "police bpf(2) calls: it is in the root cgroup; policing needs a cgroup of the container's own".to_owned(),
        false => format!(
            "police the container's bpf(2) calls: judge each call: this kernel has no LSM programs, which came with Linux 5.7 ({why})"
        ),
    };
    assert!(reason.contains(&sentence), "{reason}");
    println!("refused as it should be: {reason}");
    world.lab.residue();
}

/// What gc read from the counters of a container: the reasons of its events.
fn told(world: &World, id: &str) -> Vec<String> {
    world.lab.ours(&["gc"]);
    let events = world.lab.ours(&["events", "-F", "type=policed", "-o", "json"]);
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("an event is JSON"));
    let of_it = events.filter(|event| event["container"] == *id);
    of_it.map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

fn enforced(world: &mut World, runtime: Runtime) {
    world.mount_bpffs();
    let (helpers, helper_steps) = match judges_helpers() {
        // Of each three numbers that read memory, one is listed.
        true => (
            ", helpers = [\"probe_read_user\", \"probe_read_kernel_str\"]",
            &[
                ("helper:2:112", OK),
                ("helper:2:113", EPERM),
                ("helper:2:4", EPERM),
                ("helper:2:115", OK),
                ("helper:2:114", EPERM),
                ("helper:2:45", EPERM),
            ][..],
        ),
        false => ("", &[][..]),
    };
    world.lab.policy(&format!(
        "[[container]]\npolice = {{ mode = \"enforce\", cmds = [\"map_create\", \"prog_load\"], maps = [\"array\"], \
         progs = [\"xdp\", \"kprobe\"], attachs = [\"xdp\", \"cgroup_inet_ingress\"]{helpers} }}\n"
    ));
    // An unknown command is none that is allowed; the kernel alone would say EINVAL.
    let steps = [
        ("map:2", OK),
        ("map:1", EPERM),
        ("prog:6:37", OK),
        ("prog:1:0", EPERM),
        ("prog:6:46", EPERM),
        ("call:7", EPERM),
        ("call:11", EPERM),
        ("call:60", EPERM),
    ];
    let words: Vec<&str> = steps.iter().chain(helper_steps).map(|(step, _)| *step).chain(["wait", "map:2", "map:5"]).collect();
    let bundle = with_client(capable(world, "agent"), &words).write();
    if let Some(why) = missing() {
        return refused(world, runtime, &bundle, &why);
    }
    let mut running = runtime.start(&world.lab, &bundle);
    hear(&mut running, &steps);
    hear(&mut running, helper_steps);
    running.hear("waiting");
    // An exec is in the cgroup too; other processes are not.
    let exec = ended(&mut runtime.command(&world.lab, &["exec", &bundle.id, "/client", "map:2", "map:1"]));
    assert_eq!(exec.stdout, format!("map:2 {OK}\nmap:1 {EPERM}\n"), "{}", exec.stderr);
    assert_eq!(tool(Command::new(client()).arg("map:1")), format!("map:1 {OK}\n"));

    let said = told(world, &bundle.id);
    for reason in
        ["map type hash: refused, 2 times", "program type socket_filter: refused, once", "bpf command 60: refused, once"]
    {
        assert!(said.iter().any(|line| line == reason), "{reason} is not in {said:?}");
    }
    if judges_helpers() {
        assert!(said.contains(&"helper probe_read_kernel: refused, once".to_owned()), "{said:?}");
    }
    assert!(told(world, &bundle.id).len() == said.len(), "nothing was refused since");
    let page = world.lab.ours(&["metrics"]);
    let line = |set: &str, name: &str| {
        let sample = page.lines().find(|line| line.contains(&format!("set=\"{set}\",name=\"{name}\"}}")));
        sample.unwrap_or_else(|| panic!("{set} {name} is not in\n{page}")).to_owned()
    };
    let sample = line("maps", "hash");
    assert!(sample.starts_with("bpfman_hook_policed_calls_total{") && sample.ends_with(" 2"), "{sample}");
    assert!(sample.contains(&format!("id=\"{}\"", bundle.id)) && sample.contains("mode=\"enforce\""), "{sample}");
    let shown = world.inspect(&bundle.id);
    assert_eq!(shown[0]["police"]["mode"], "enforce", "{shown:#}");
    let text = world.lab.ours(&["inspect", &bundle.id]);
    assert!(text.contains("policed (enforce): ") && text.contains("map type hash: refused, 2 times"), "{text}");
    let text = world.lab.ours(&["list", "containers"]);
    assert!(text.contains("policed (enforce): ") && !text.contains("map type hash"), "{text}");

    // What is refused afterwards is told at the release.
    running.say("go\n");
    hear(&mut running, &[("map:5", EPERM)]);
    running.finish();
    let _deleted = runtime.delete(&world.lab, &bundle.id);
    let said = told(world, &bundle.id);
    assert!(said.iter().any(|line| line == "map type percpu_hash: refused, once"), "{said:?}");
}

fn runc_polices_a_container_that_requests_nothing(world: &mut World) {
    enforced(world, Runtime::Runc);
}

fn crun_polices_a_container_that_requests_nothing(world: &mut World) {
    enforced(world, Runtime::Crun);
}

/// The hook files of `install --police` in podman's directory, for the lab's root.
fn police_hook_files(lab: &Lab) {
    let engines = Engines([Engine::Podman].into());
    let invocation = Invocation { binary: BINARY.into(), engines, root: Some(lab.root()) };
    for stage in [HookStage::CreateRuntime, HookStage::Poststop] {
        let name = hook_files::police_path(stage);
        let name = name.file_name().expect("it is a file").to_string_lossy().into_owned();
        lab.write(&format!("podman/hooks.d/{name}"), hook_files::police_hook(stage, &invocation).as_bytes());
    }
}

fn podman_polices_containers_without_annotations(world: &mut World) {
    world.mount_bpffs();
    world.lab.policy(
        "[[container]]\nmatch = { engine = \"podman\" }\npolice = { mode = \"enforce\", cmds = [\"map_create\"], maps = [\"array\"] }\n",
    );
    let podman = Podman::new(&world.lab, Runtime::Runc);
    if world.lab.hooks == Hooks::Ours {
        police_hook_files(&world.lab);
    }
    let volume = format!("{}:/client:ro", client().display());
    let flags = ["--cap-add", "BPF,SYS_ADMIN", "--security-opt", "seccomp=unconfined", "-v", &volume];
    let mut running = Running::start(&mut podman.run(&world.lab, "agent", &flags, "exec /client map:2 map:1 wait"));
    if let Some(why) = missing() {
        let ended = running.finish();
        assert!(!ended.status.success() && !ended.stdout.contains("map:2"), "the container started: {}", ended.stdout);
        let log = format!("{}{}", world.lab.log(), ended.stderr);
        assert!(log.contains("judge each call: this kernel has no LSM programs") && log.contains(&why), "{log}");
        println!("refused as it should be: {log}");
        return;
    }
    hear(&mut running, &[("map:2", OK), ("map:1", EPERM)]);
    running.hear("waiting");
    let records = world.lab.records();
    assert!(
        records.len() == 1 && records[0]["engine"] == "podman" && records[0]["police"]["mode"] == "enforce",
        "{records:#?}"
    );
    running.say("go\n");
    running.finish();
}

/// A container with a request has one run of the hook that polices, although there is one for all containers too.
fn a_request_and_policing_work_together(world: &mut World) {
    world.mount_bpffs();
    let rule = "programs = [\"xdp\"]\npolice = { mode = \"enforce\", cmds = [\"map_create\"], maps = [\"array\"] }\n";
    world.lab.policy(&format!("{}[[container]]\n{rule}", world.image_rule()));
    let image = world.signed("demo");
    let bundle = Bundle::new(&world.lab, "counted").without_userns().capabilities(&CAPABILITIES);
    let bundle = bundle.ask("image", &image).ask("programs", "xdp:count_packets iface=lo");
    let bundle = with_client(bundle, &["map:2", "map:1", "prog:6:37", "wait"]);
    // As with podman: the hook of `install --police` runs as well.
    let bundle = bundle.edit(|config| {
        if let Some(Value::Array(hooks)) = config["hooks"].get_mut("createRuntime") {
            let mut second = hooks[0].clone();
            second["args"].as_array_mut().expect("arguments").push(json!("--police"));
            hooks.push(second);
        }
    });
    let bundle = bundle.write();
    if let Some(why) = missing() {
        return refused(world, Runtime::Runc, &bundle, &why);
    }
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    hear(&mut running, &[("map:2", OK), ("map:1", EPERM), ("prog:6:37", EPERM)]);
    world.lab.expect_links(1, "its own program is attached, whatever it may load itself");
    assert_eq!(world.lab.records().len(), 1);
    running.say("go\n");
    running.finish();
}

fn a_warning_counts_and_refuses_nothing(world: &mut World) {
    world.mount_bpffs();
    world.lab.policy("[[container]]\npolice = \"warn\"\n");
    let bundle = with_client(capable(world, "warned"), &["map:1", "prog:2:0", "wait"]).write();
    if let Some(why) = missing() {
        return refused(world, Runtime::Runc, &bundle, &why);
    }
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    hear(&mut running, &[("map:1", OK), ("prog:2:0", OK)]);
    running.hear("waiting");
    let said = told(world, &bundle.id);
    assert!(said.contains(&"map type hash: would be refused, once".to_owned()), "{said:?}");
    assert!(said.contains(&"program type kprobe: would be refused, once".to_owned()), "{said:?}");
    running.say("go\n");
    running.finish();
}

/// The commands that would undo policing are listed, and the container sees the bpffs of the host.
fn a_policed_container_cannot_undo_it(world: &mut World) {
    world.mount_bpffs();
    let cmds = "\"map_create\", \"map_update_elem\", \"obj_get\", \"obj_get_info_by_fd\", \"prog_detach\", \"prog_get_next_id\", \
                \"prog_get_fd_by_id\"";
    world.lab.policy(&format!(
        "[[container]]\npolice = {{ mode = \"enforce\", cmds = [{cmds}], maps = [\"array\"], helpers = [] }}\n"
    ));
    let pins = ["/pins/owner_1/police_0", "/pins/owner_1/police_1"].map(|pin| format!("edit:{pin}"));
    let steps = ["map:1", "detach:/sys/fs/cgroup", &pins[0], &pins[1], "map:1", "map:2", "wait"];
    let bundle = capable(world, "hostile").mount("none", &world.lab.bpffs(), "/pins", &["rbind", "rw"]);
    let bundle = with_client(bundle, &steps).write();
    if !judges_helpers() && missing().is_none() {
        return refused_for_helpers(world, &bundle);
    }
    if let Some(why) = missing() {
        return refused(world, Runtime::Runc, &bundle, &why);
    }
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    running.hear("waiting");
    running.say("go\n");
    let ended = running.finish();
    // EPERM for the detachment and for what user space may not write.
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let expected = [
        format!("map:1 {EPERM}"),
        format!("detach:/sys/fs/cgroup {EPERM}"),
        format!("{} {EPERM}", pins[0]),
        format!("{} {EPERM}", pins[1]),
        format!("map:1 {EPERM}"),
        format!("map:2 {OK}"),
        "waiting".to_owned(),
    ];
    assert_eq!(lines, expected, "{}", ended.stderr);
}

fn refused_for_helpers(world: &World, bundle: &Bundle) {
    let ended = Runtime::Runc.run(&world.lab, bundle);
    assert!(!ended.status.success() && ended.stdout.is_empty(), "the container started: {}", ended.stdout);
    let reason = world.inspect(&bundle.id)[0]["reason"].to_string();
    assert!(reason.contains("no LSM hook bpf_prog_load (Linux 6.9); remove helpers and kfuncs"), "{reason}");
    world.lab.residue();
}

fn a_cgroup_with_other_processes_is_refused(world: &mut World) {
    world.mount_bpffs();
    world.lab.policy("[[container]]\npolice = \"enforce\"\n");
    let name = format!("{}-shared", world.lab.word());
    let cgroup = cgroup2().join(&name);
    fs::create_dir(&cgroup).expect("root makes cgroups");
    let other = Running::start(Command::new("sleep").arg("600"));
    fs::write(cgroup.join("cgroup.procs"), other.pid().to_string()).expect("root moves processes");
    let bundle = with_client(capable(world, "shared"), &["map:2"]).cgroup(&format!("/{name}")).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let pid = other.pid();
    drop(other);
    let _runc_may_have_removed_it = fs::remove_dir(&cgroup);
    assert!(ended.stdout.is_empty(), "the container started");
    let process = format!("process {pid}, which does not belong to the container, is also in its cgroup");
    let need = "policing needs a cgroup of the container's own in the v2 hierarchy";
    world.said(&ended, 1, &["police bpf(2) calls: ", &process, need]);
    world.lab.residue();
}

/// bpftool and xdp-filter with what they need of the host, and a bpffs.
fn tools(world: &World, name: &str, script: &str) -> Bundle {
    let mut bundle = capable(world, name);
    for directory in ["/usr", "/lib", "/lib64"] {
        bundle = bundle.mount("none", &PathBuf::from(directory), directory, &["rbind", "ro"]);
    }
    bundle
        .mount("bpf", &PathBuf::from("bpf"), "/sys/fs/bpf", &["rw"])
        .mount("tmpfs", &PathBuf::from("tmpfs"), "/run", &["rw"])
        .mount("none", &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/bpf"), "/objects", &["bind", "ro"])
        .edit(|config| config["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/bin", "HOME=/run"]))
        .script(script)
}

/// Loads an object and reads its map, and filters packets of a protocol on `lo`.
const WORK: &str = "set -e; echo ready; read go
    ip link set lo up
    bpftool prog loadall /objects/one_xdp.bpf.o /sys/fs/bpf/programs type xdp
    bpftool map create /sys/fs/bpf/seen type array key 4 value 8 entries 1 name seen
    bpftool map update pinned /sys/fs/bpf/seen key 0 0 0 0 value 7 0 0 0 0 0 0 0
    bpftool -j map lookup pinned /sys/fs/bpf/seen key 0 0 0 0
    xdp-filter load -m skb -f udp lo && xdp-filter port -p udp 9 && xdp-loader status lo && xdp-filter unload lo
    echo done; read go
    bpftool map create /sys/fs/bpf/other type lru_hash key 4 value 8 entries 1 name other && echo other yes || echo other no";

fn a_recorded_workload_works_under_enforce(world: &mut World) {
    world.mount_bpffs();
    world.lab.policy("[[container]]\npolice = \"warn\"\n");
    let bundle = tools(world, "recorded", WORK).write();
    if let Some(why) = missing() {
        refused(world, Runtime::Runc, &bundle, &why);
        nothing_is_recorded(world, &why);
        return;
    }
    let mut running = world.start(&bundle);
    running.say("go\n");
    running.hear("done");
    let state = world.lab.path("runc");
    let profile = ["police", "profile", &bundle.id, "--state", state.to_str().expect("a plain path")];
    let rule = world.lab.ours(&profile);
    running.say("go\n");
    assert_eq!(running.hear("other "), "yes", "a warning refuses nothing");
    running.finish();
    println!("{rule}");
    assert!(rule.contains("\"xdp\"") && !rule.contains("\"lru_hash\""), "{rule}");

    // Another run, with the printed rule as the policy.
    world.lab.policy(&rule);
    world.lab.ours(&["policy", "check"]);
    let bundle = tools(world, "enforced", WORK).write();
    let mut running = world.start(&bundle);
    running.say("go\n");
    running.hear("done");
    assert!(told(world, &bundle.id).is_empty(), "{:?}", told(world, &bundle.id));
    running.say("go\n");
    assert_eq!(running.hear("other "), "no");
    let Ended { stdout, stderr, .. } = running.finish();
    assert!(stdout.contains("xdpfilt_alw_udp") && stderr.contains("Operation not permitted"), "{stdout}\n{stderr}");
}

/// Without LSM programs nothing can be recorded either.
fn nothing_is_recorded(world: &World, why: &str) {
    let said = ended(&mut world.lab.command(&["police", "profile", "--run", "--", "true"]));
    let sentence =
        format!("record bpf(2) calls: judge each call: this kernel has no LSM programs, which came with Linux 5.7 ({why})");
    assert!(!said.status.success() && said.stderr.contains(&sentence), "{said:?}");
}

/// `police profile` of a container that is not policed, and of a command.
#[test]
fn containers_and_commands_are_recorded() {
    crate::check(|world| {
        if let Some(why) = missing() {
            return nothing_is_recorded(world, &why);
        }
        let client = client().to_str().expect("a plain path");
        let recorded = world.lab.ours(&["police", "profile", "--run", "--", client, "map:2", "prog:6:37"]);
        assert!(recorded.starts_with(&format!("map:2 {OK}\nprog:6:37 {OK}\n# bpf(2) of the command")), "{recorded}");
        for line in ["maps = [\"array\"]", "progs = [\"xdp\"]", "attachs = [\"xdp\"]"] {
            assert!(recorded.lines().any(|other| other == line), "{line} is not in\n{recorded}");
        }
        // Its exit status is that of the command.
        let failed = ended(&mut world.lab.command(&["police", "profile", "--run", "--", "sh", "-c", "exit 7"]));
        assert_eq!(failed.status.code(), Some(7), "{failed:?}");

        let bundle = with_client(capable(world, "observed"), &["wait", "map:1", "helper:2:113"]);
        let bundle = bundle.edit(|config| config["hooks"] = json!({})).write();
        let mut running = Runtime::Runc.start(&world.lab, &bundle);
        running.hear("waiting");
        let state = world.lab.path("runc");
        let state = state.to_str().expect("a plain path");
        let mut recorder =
            Running::start(&mut world.lab.command(&["police", "profile", &bundle.id, "--state", state, "--for", "60"]));
        let attached = || {
            let programs = bpftool(&["prog", "show"]);
            let is_there = programs.as_array().into_iter().flatten().any(|program| program["name"] == "police_call");
            (is_there || recorder.has_ended()).then_some(())
        };
        eventually("the recorder", PATIENCE, attached);
        // The program is there a moment before it is attached.
        std::thread::sleep(Duration::from_secs(1));
        running.say("go\n");
        running.finish();
        let profile = recorder.finish();
        assert!(profile.status.success(), "{}", profile.stderr);
        assert!(profile.stdout.contains("maps = [\"hash\"]"), "{}", profile.stdout);
        let helpers = if judges_helpers() { "helpers = [\"probe_read_kernel\"]" } else { "were not recorded" };
        assert!(profile.stdout.contains(helpers), "{}", profile.stdout);
    });
}
