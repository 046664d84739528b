//! `token profile`: what is recorded of a command is sufficient for a container in which the same command runs, and each
//! name is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness;
use crate::proxy::{proxied, steps};
use crate::support::bpf_proxy::{client, listen};
use crate::support::bundle::Bundle;
use crate::support::kernel::bpftool;
use crate::support::podman::Podman;
use crate::support::process::{Ended, Running, ended, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::{World, object_path};

/// Runs a command under `token profile`, which must write its answer; returns that, and how the command ended.
pub(super) fn profiled(world: &World, command: &Command) -> (Value, Ended) {
    let to = world.lab.path("profile.json");
    let mut profile = world.lab.command(&["token", "profile", "-o", "json", "--to", to.to_str().expect("a plain path"), "--"]);
    profile.arg(command.get_program()).args(command.get_args());
    profile.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let ended = ended(&mut profile);
    let text = fs::read_to_string(&to).unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr));
    (serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")), ended)
}

/// The names of one way by set.
fn names(profile: &Value, way: &str) -> BTreeMap<String, Vec<String>> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for needed in profile[way]["names"].as_array().into_iter().flatten() {
        let word = |key: &str| needed[key].as_str().expect("a word").to_owned();
        names.entry(word("set")).or_default().push(word("name"));
    }
    names
}

/// A rule of the policy for the proxy, and the annotations.
fn written(names: &BTreeMap<String, Vec<String>>) -> (String, Value) {
    let sets = names.iter().map(|(set, names)| format!("{set} = {names:?}")).collect::<Vec<_>>().join(", ");
    let mut annotations = json!({ "hook.bpfman.io/delegate-via": "proxy" });
    for set in ["cmds", "maps", "progs", "attachs"] {
        if let Some(names) = names.get(set).filter(|names| !names.is_empty()) {
            annotations[format!("hook.bpfman.io/delegate-{set}")] = names.join(":").into();
        }
    }
    (format!("[[container]]\nproxy = {{ {sets} }}\n"), annotations)
}

const STEPS: [&str; 4] = ["map", "ringbuf", "ktime", "xdp"];

/// Whether all steps work in a container with a rule and annotations.
fn works(world: &World, name: &str, (policy, annotations): (String, Value)) -> bool {
    world.lab.policy(&policy);
    let bundle = proxied(world, name, "maps").edit(|config| config["annotations"] = annotations);
    let bundle = steps(bundle, &STEPS).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    STEPS.iter().all(|step| ended.line(&format!("{step} ")) == Some("0 0"))
}

#[test]
fn each_recorded_name_is_needed() {
    crate::check(|world| {
        let mut command = Command::new("unshare");
        command.arg("-n").arg(client()).args(STEPS);
        let (profile, ended) = profiled(world, &command);
        assert!(ended.status.success(), "{ended:?}");
        for step in STEPS {
            assert_eq!(ended.line(&format!("{step} ")), Some("0 0"), "{}", ended.stdout);
        }
        assert_eq!(profile["calls"], json!({ "map_create": 2, "prog_load": 2, "link_create": 1 }), "{profile:#}");
        let names = names(&profile, "proxy");
        let expected = [
            ("attachs", vec!["xdp"]),
            ("cmds", vec!["map_create", "prog_load"]),
            ("helpers", vec!["ktime_get_ns"]),
            ("maps", vec!["array", "ringbuf"]),
            ("progs", vec!["xdp"]),
        ];
        let expected = expected.map(|(set, names)| (set.to_owned(), names.into_iter().map(str::to_owned).collect()));
        assert_eq!(names, BTreeMap::from(expected), "{profile:#}");
        assert_eq!(profile["proxy"]["host_scope"], json!([]), "{profile:#}");
        listen(&world.lab);
        // What is printed to paste.
        let text = |way: &str, spelling: &str| profile[way]["text"][spelling].as_str().expect("a text").to_owned();
        let lines = text("proxy", "annotations");
        let annotations: BTreeMap<_, _> = lines.lines().filter_map(|line| line.split_once(": ")).collect();
        assert!(works(world, "printed", (text("proxy", "policy"), json!(annotations))), "{}", world.lab.log());
        for (set, all) in &names {
            for name in all {
                let mut less = names.clone();
                less.entry(set.clone()).or_default().retain(|other| other != name);
                assert!(!works(world, &format!("{set}-{name}"), written(&less)), "{set} {name} is not needed");
            }
        }
    });
}

/// libbpf probes the kernel before it loads: its probes are told apart, and what is left of them is sufficient.
#[test]
fn libbpf_loads_with_what_was_recorded() {
    crate::check(|world| {
        let pins = world.lab.path("pins");
        fs::create_dir(&pins).unwrap_or_else(|e| harness!("create {}: {e}", pins.display()));
        tool(Command::new("mount").args(["-t", "bpf", "-o", "mode=1777", "bpf"]).arg(&pins));
        let object = object_path("counter");
        let mut command = Command::new("bpftool");
        command.args(["prog", "loadall"]).arg(&object).arg(pins.join("recorded"));
        let (profile, ended) = profiled(world, &command);
        assert!(ended.status.success(), "{ended:?}");
        let loaded = bpftool(&["prog", "show"]);
        fs::remove_dir_all(pins.join("recorded")).unwrap_or_else(|e| harness!("remove the pins: {e}: {loaded:#}"));
        let found = names(&profile, "proxy");
        assert!(!found["progs"].iter().any(|name| name == "cgroup_sock" || name == "kprobe"), "{profile:#}");
        assert!(found["progs"].contains(&"xdp".to_owned()), "{profile:#}");
        assert!(!profile["probes"].as_array().expect("a list").is_empty(), "{profile:#}");
        listen(&world.lab);
        let text = |spelling: &str| profile["proxy"]["text"][spelling].as_str().expect("a text").to_owned();
        world.lab.policy(&text("policy"));
        let lines = text("annotations");
        let annotations: BTreeMap<_, _> = lines.lines().filter_map(|line| line.split_once(": ")).collect();
        let script = "bpftool prog loadall /object.o /pins/loaded && echo load ok || echo load failed; echo ready; read go; rm -r /pins/*";
        let mut bundle = proxied(world, "bpftool", "maps").edit(|config| {
            config["annotations"] = json!(annotations);
            config["process"]["env"] = json!(["PATH=/bin:/usr/sbin:/usr/bin"]);
            config["root"]["readonly"] = json!(false);
        });
        for part in ["/usr", "/lib", "/lib64"] {
            bundle = bundle.mount("bind", Path::new(part), part, &["rbind", "ro"]);
        }
        let bundle: Bundle = bundle
            .mount("bind", &object, "/object.o", &["bind", "ro"])
            .mount("bind", &pins, "/pins", &["rbind", "rw"])
            .script(script)
            .write();
        let mut running = Runtime::Runc.start(&world.lab, &bundle);
        assert_eq!(running.hear("load "), "ok", "{} {} {}", running.stderr(), world.lab.log(), text("policy"));
        running.hear("ready");
        running.say("go\n");
        running.finish();
        tool(Command::new("umount").arg(&pins));
    });
}

/// A container inherits the filter of the podman that starts it. Its calls are made for it, although it has no capability.
#[test]
fn a_container_of_podman_is_recorded() {
    crate::check(|world| {
        let podman = Podman::new(&world.lab, Runtime::Runc);
        let volume = format!("{}:/client:ro", client().display());
        let flags = ["--user", "65534", "--cap-drop", "all", "--security-opt", "seccomp=unconfined", "--volume", &volume];
        let command = podman.run(&world.lab, "recorded", &flags, "/client map xdp readkernel");
        let (profile, ended) = profiled(world, &command);
        assert_eq!(ended.line("map "), Some("0 0"), "{ended:?}");
        assert_eq!(ended.line("xdp "), Some("0 0"), "{ended:?}");
        let host = tool(Command::new("ip").args(["-d", "link", "show", "lo"]));
        assert!(!host.contains("xdp"), "{host}");
        let names = names(&profile, "token");
        assert_eq!((&names["progs"], &names["maps"]), (&vec!["xdp".to_owned()], &vec!["array".to_owned()]), "{profile:#}");
        fs::remove_dir_all(world.lab.path("podman")).unwrap_or_else(|e| harness!("remove podman's store: {e}"));
    });
}

#[test]
fn the_exit_status_is_that_of_the_command() {
    crate::check(|world| {
        let profile = |words: &[&str]| ended(&mut world.lab.command(&[&["token", "profile", "--"], words].concat()));
        let seven = profile(&["sh", "-c", "echo said; exit 7"]);
        assert_eq!(seven.status.code(), Some(7), "{seven:?}");
        assert!(seven.stdout.starts_with("said\n") && seven.stdout.contains("no calls of bpf(2)"), "{seven:?}");
        let missing = profile(&["/no/such/command"]);
        assert_eq!(missing.status.code(), Some(1), "{missing:?}");
        assert!(missing.stderr.contains("/no/such/command"), "{missing:?}");
        // What the command leaves behind is recorded until its end.
        let later = profile(&["sh", "-c", &format!("(sleep 1; {} map) & exit 0", client().display())]);
        assert!(later.stdout.contains("1 map_create"), "{later:?}");
    });
}

/// `token profile --container ID -- COMMAND`, with the state of the lab's runtime.
fn profiled_in(world: &World, runtime: Runtime, id: &str, command: &[&str]) -> (Value, Ended) {
    let (to, state) = (world.lab.path("profile.json"), world.lab.path(runtime.name()));
    let [to, state] = [&to, &state].map(|path| path.to_str().expect("a plain path"));
    let words = ["token", "profile", "-o", "json", "--to", to, "--state", state, "--container", id, "--"];
    let ended = ended(&mut world.lab.command(&[&words[..], command].concat()));
    let text = fs::read_to_string(to).unwrap_or_else(|e| panic!("{e}: {} {}", ended.stdout, ended.stderr));
    (serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")), ended)
}

/// A command in a container that runs already has its root, user, capabilities, environment and namespaces. The container's
/// own seccomp profile does not apply to it.
#[test]
fn a_command_in_a_running_container_is_recorded() {
    crate::check(|world| {
        for runtime in [Runtime::Runc, Runtime::Crun] {
            for userns in [false, true] {
                let name = format!("inside-{}-{userns}", runtime.name());
                let bundle = Bundle::new(&world.lab, &name);
                let bundle = if userns { bundle } else { bundle.without_userns() };
                let bundle = bundle.rootfs(|rootfs| {
                    fs::copy(client(), rootfs.join("client")).unwrap_or_else(|e| harness!("copy the client: {e}"));
                });
                let bundle = bundle.edit(|config| {
                    config["process"]["user"] = json!({ "uid": 33, "gid": 34, "additionalGids": [35] });
                    config["process"]["capabilities"] = json!({ "bounding": ["CAP_CHOWN"], "permitted": [], "effective": [] });
                    config["process"]["env"] = json!(["PATH=/bin", "GIVEN=yes"]);
                    config["process"]["noNewPrivileges"] = json!(true);
                    config["hostname"] = json!("inside");
                    config["linux"]["seccomp"] = json!({
                        "defaultAction": "SCMP_ACT_ALLOW",
                        "syscalls": [{ "names": ["bpf"], "action": "SCMP_ACT_ERRNO" }],
                    });
                });
                let bundle = bundle.script("echo ready; read go").write();
                let mut running = runtime.start(&world.lab, &bundle);
                running.hear("ready");
                let script = "id; echo given $GIVEN; cat /proc/self/status /etc/hostname 2>/dev/null; hostname; ls /proc/1/exe
                    cat /proc/self/cgroup /proc/1/cgroup | sort | uniq -u; /client map xdp; exit 7";
                let (profile, ended) = profiled_in(world, runtime, &bundle.id, &["sh", "-c", script]);
                assert_eq!(ended.status.code(), Some(7), "{ended:?}");
                assert!(ended.stdout.contains("uid=33 gid=34 groups=35"), "{}", ended.stdout);
                assert!(!ended.stdout.contains(":/"), "it is in other cgroups: {}", ended.stdout);
                for line in ["given yes", "CapBnd:\t0000000000000001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "inside"]
                {
                    assert!(ended.stdout.lines().any(|found| found == line), "{line}: {}", ended.stdout);
                }
                assert_eq!((ended.line("map "), ended.line("xdp ")), (Some("0 0"), Some("0 0")), "{}", ended.stdout);
                let names = names(&profile, "proxy");
                assert_eq!(
                    (&names["progs"], &names["maps"]),
                    (&vec!["xdp".to_owned()], &vec!["array".to_owned()]),
                    "{profile:#}"
                );
                let host = tool(Command::new("ip").args(["-d", "link", "show", "lo"]));
                assert!(!host.contains("xdp"), "{host}");
                running.say("go\n");
                running.finish();
            }
        }
        let (id, state) = ("no-such-container", world.lab.path("runc"));
        let words = ["token", "profile", "--state", state.to_str().expect("a plain path"), "--container", id, "--", "true"];
        let missing = ended(&mut world.lab.command(&words));
        assert!(!missing.status.success() && missing.stderr.contains("no container has an id"), "{missing:?}");
    });
}

/// The same in a container of podman with its default seccomp profile, found where podman's runtime keeps its state.
#[test]
fn a_command_in_a_running_container_of_podman_is_recorded() {
    crate::check(|world| {
        let podman = Podman::new(&world.lab, Runtime::Runc);
        let volume = format!("{}:/client:ro", client().display());
        let flags = ["--user", "65534", "--cap-drop", "all", "--volume", &volume];
        let mut running = Running::start(&mut podman.run(&world.lab, "inside", &flags, "echo ready; read go; /client map"));
        running.hear("ready");
        let inspect = ["inspect", "--format", "{{.Id}}", &format!("{}-inside", world.lab.word())];
        let id = tool(&mut podman.command(&inspect)).trim().to_owned();
        let to = world.lab.path("profile.json");
        let to = to.to_str().expect("a plain path");
        let words = ["token", "profile", "-o", "json", "--to", to, "--container", &id, "--", "/client", "map", "ringbuf"];
        let ended = ended(&mut world.lab.command(&words));
        assert_eq!((ended.line("map "), ended.line("ringbuf ")), (Some("0 0"), Some("0 0")), "{ended:?}");
        let profile = fs::read_to_string(to).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        let profile = serde_json::from_str(&profile).unwrap_or_else(|e| panic!("{e}: {profile}"));
        assert_eq!(names(&profile, "token")["maps"], ["array", "ringbuf"], "{profile:#}");
        running.say("go\n");
        assert_eq!(running.hear("map "), "-1 1", "podman's profile still refuses it");
        running.finish();
        fs::remove_dir_all(world.lab.path("podman")).unwrap_or_else(|e| harness!("remove podman's store: {e}"));
    });
}

/// Of a container that the proxy serves, everything from now on is recorded: what it may do, and what it may not.
#[test]
fn a_container_with_the_proxy_is_watched() {
    crate::check(|world| {
        listen(&world.lab);
        world.lab.policy("[[container]]\nproxy = [\"sockets\"]\n");
        let words = ["map", "wait", "ringbuf", "ktime", "xdp", "readkernel", "kprobe", "wait"];
        let bundle = steps(proxied(world, "watched", "sockets"), &words).write();
        let mut running = Runtime::Runc.start(&world.lab, &bundle);
        assert_eq!(running.hear("map "), "0 0");
        running.hear("waiting");
        let to = world.lab.path("profile.json");
        let to = to.to_str().expect("a plain path");
        let words = ["token", "profile", "-o", "json", "--to", to, "--container", &bundle.id];
        let profile = Running::start(&mut world.lab.command(&words));
        let socket = world.lab.path("root/run/bpfman-hook/proxy-recordings").join(&*bundle.id);
        eventually("the recording", Duration::from_secs(10), || socket.exists().then_some(()));
        let second = ended(&mut world.lab.command(&words));
        assert!(second.stderr.contains("another command does"), "{second:?}");
        running.say("go\n");
        for (step, answer) in
            [("ringbuf ", "0 0"), ("ktime ", "0 0"), ("xdp ", "0 0"), ("readkernel ", "-1 13"), ("kprobe ", "-1 1")]
        {
            assert_eq!(running.hear(step), answer, "{step}");
        }
        running.hear("waiting");
        // The calls of an exec are served by another process.
        let exec = ended(&mut Runtime::Runc.command(&world.lab, &["exec", &bundle.id, "/client", "map"]));
        assert_eq!(exec.line("map "), Some("0 0"), "{exec:?}");
        profile.signal(rustix::process::Signal::INT);
        let profile = profile.finish();
        assert!(profile.status.success() && profile.stderr.contains("recording container"), "{profile:?}");
        let text = fs::read_to_string(to).unwrap_or_else(|e| panic!("{e}: {profile:?}"));
        let profile: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(profile["calls"], json!({ "map_create": 2, "prog_load": 4, "link_create": 1 }), "{profile:#}");
        let names = names(&profile, "proxy");
        assert_eq!(names["maps"], ["array", "ringbuf"], "{profile:#}");
        assert!(names["progs"].contains(&"kprobe".to_owned()), "what was refused is wanted too: {profile:#}");
        let refused = profile["refused"].to_string();
        assert!(refused.contains("bpf_probe_read_kernel") && refused.contains("program type kprobe"), "{profile:#}");
        assert!(!profile["proxy"]["host_scope"].as_array().expect("a list").is_empty(), "{profile:#}");
        assert!(!socket.exists());
        running.say("go\n");
        running.finish();
        // Nothing can be recorded of one without the proxy.
        let bundle = Bundle::new(&world.lab, "plain").script("echo ready; read go").write();
        let mut running = Runtime::Runc.start(&world.lab, &bundle);
        running.hear("ready");
        let none = ended(&mut world.lab.command(&["token", "profile", "--for", "1", "--container", &bundle.id]));
        assert!(!none.status.success(), "{none:?}");
        for part in ["name a command", "delegate-via=proxy"] {
            assert!(none.stderr.contains(part), "{}", none.stderr);
        }
        running.say("go\n");
        running.finish();
    });
}
