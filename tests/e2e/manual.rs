//! Programs that are loaded without a container: every command on the real kernel.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::support::docker_registry::DockerRegistry;
use crate::support::kernel::{bpftool, sum};
use crate::support::lab::{Hooks, Lab, pins};
use crate::support::netns::Netns;
use crate::support::process::{PATIENCE, eventually};
use crate::world::{World, object_path};

/// The only program of this load.
fn load(lab: &Lab, more: &[&str]) -> String {
    let path = object_path("counter").display().to_string();
    let loaded = lab.json(&[&["load", "file", "--path", &path, "--programs", "xdp:count"], more].concat());
    assert_eq!(loaded.as_array().map(Vec::len), Some(1), "{loaded}");
    loaded[0]["id"].to_string()
}

/// Runs a command that must fail with this status and these words.
fn refused(lab: &Lab, args: &[&str], status: i32, words: &str) {
    let output = lab.command(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    assert!(said.contains(words), "{words:?} is not in: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

fn ids(listed: &Value) -> Vec<String> {
    listed.as_array().unwrap().iter().map(|each| each["id"].to_string()).collect()
}

#[test]
fn a_program_goes_through_every_command() {
    let lab = Lab::new(Hooks::Ours);
    let netns = Netns::new();
    let program = load(&lab, &["--application", "shop", "--metadata", "team=a"]);
    let other = load(&lab, &[]);
    let listed = |args: &[&str]| ids(&lab.json(&[&["list", "programs"], args].concat()));
    assert_eq!(listed(&[]), [program.clone(), other.clone()]);
    assert_eq!(listed(&["--application", "shop"]), [program.clone()]);
    assert_eq!(listed(&["--metadata-selector", "team=a"]), [program.clone()]);
    assert!(listed(&["--metadata-selector", "team=b"]).is_empty() && listed(&["--program-type", "tcx"]).is_empty());

    let at = netns.path();
    let there = ["xdp", "--iface", "lo", "--priority", "55", "--netns", &at];
    let link = lab.json(&[&["attach", &program], &there[..]].concat())["id"].to_string();
    assert_eq!(listed(&["--attached"]), [program.clone()]);
    assert_eq!(listed(&["--unattached"]), [other.clone()]);
    let kernel = crate::support::kernel::link(link.parse().unwrap());
    assert_eq!(kernel["prog_id"].to_string(), program);
    refused(&lab, &[&["attach", &other], &there[..]].concat(), 1, "which is application shop's");

    lab.ours(&["detach", &link]);
    refused(&lab, &["detach", &link], 1, "bpfman-hook has no link");
    lab.ours(&["detach", "--ignore-missing", &link]);
    assert!(listed(&["--attached"]).is_empty());

    // The program still has its link, which must be removed first: the residue check shows it.
    lab.json(&[&["attach", &program], &there[..]].concat());
    lab.ours(&["unload", "--application", "shop"]);
    assert_eq!(listed(&[]), [other.clone()]);
    refused(&lab, &["unload", "--application", "shop"], 1, "it has no programs");
    refused(&lab, &["unload", &program], 1, "bpfman-hook has no program");
    lab.ours(&["unload", "--ignore-missing", &program, &other]);
    drop(netns);
    lab.residue();
}

/// The remedies of `doctor` for records.
fn remedies(lab: &Lab) -> Vec<String> {
    // Other checks may fail on this host.
    let output = lab.command(&["doctor", "-o", "json"]).output().unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let ours = findings.iter().filter(|finding| finding["check"] == "records");
    ours.filter_map(|finding| Some(finding["remedy"].as_str()?.to_owned())).collect()
}

/// Another process removes pins, and an interface disappears: every command that shows or checks objects says the same,
/// and what they advise works.
#[test]
fn lost_objects_are_reported_alike_and_the_remedy_works() {
    let lab = Lab::new(Hooks::Ours);
    let netns = Netns::new();
    let program = load(&lab, &[]);
    let at = netns.path();
    let attached = lab.json(&["attach", &program, "xdp", "--iface", "lo", "--netns", &at]);
    let link = attached["id"].to_string();
    let says = |words: &str, object: &str, remedy: &str| {
        for args in [&["list", "programs"][..], &["list", "links"], &["gc"], &["gc", "--dry-run"]] {
            let said = lab.ours(args);
            let line = said.lines().any(|line| line.contains(object) && line.contains(words) && line.contains(remedy));
            assert!(line, "{args:?}: {said}");
        }
        assert!(remedies(&lab).iter().any(|told| told == remedy), "{:?}", remedies(&lab));
    };
    assert!(remedies(&lab).is_empty());
    drop(netns);
    let gone = || lab.ours(&["list", "links"]).contains("gone: ").then_some(());
    eventually("the interface to go with its namespace", PATIENCE, gone);
    says("its interface is gone", &format!("link {link}"), &format!("remove it with `bpfman-hook detach {link}`"));
    assert_eq!(lab.json(&["list", "links"])[0]["gone"], "interface");
    lab.ours(&["detach", &link]);
    assert!(remedies(&lab).is_empty() && lab.ours(&["gc"]).contains("nothing to release"));

    for pin in pins(&lab.bpffs()).into_iter().filter(|pin| pin.is_file()) {
        std::fs::remove_file(pin).unwrap();
    }
    let gone = || lab.ours(&["list", "programs"]).contains("gone: ").then_some(());
    eventually("the kernel to free the program", PATIENCE, gone);
    says("its pin was removed", &format!("program {program}"), &format!("remove it with `bpfman-hook unload {program}`"));
    assert_eq!(lab.json(&["list", "programs"])[0]["gone"], "removed");
    lab.ours(&["unload", &program]);
    assert!(remedies(&lab).is_empty() && lab.json(&["list", "programs"]) == Value::Array(Vec::new()));
    lab.residue();
}

/// The kernel ids of a program's maps by their names.
fn maps_of(program: &str) -> BTreeMap<String, u64> {
    let shown = bpftool(&["prog", "show", "id", program]);
    let ids = shown["map_ids"].as_array().unwrap().iter().filter_map(Value::as_u64);
    ids.map(|id| (bpftool(&["map", "show", "id", &id.to_string()])["name"].as_str().unwrap().to_owned(), id)).collect()
}

#[test]
fn maps_are_shared_and_live_as_long_as_one_of_their_programs() {
    let lab = Lab::new(Hooks::Ours);
    let netns = Netns::new();
    let first = load(&lab, &["--application", "one"]);
    let second = load(&lab, &["--map-owner-id", &first, "--global", "step:=5"]);
    let (of_first, of_second) = (maps_of(&first), maps_of(&second));
    assert_eq!(of_first["counter"], of_second["counter"]);
    let own = |maps: &BTreeMap<String, u64>| maps.values().copied().filter(|id| *id != of_first["counter"]).collect::<Vec<_>>();
    assert!(own(&of_first).iter().all(|id| !own(&of_second).contains(id)), "data sections must not be shared");

    let get = |id: &str| lab.json(&["get", "program", id]);
    let users = |shown: &Value| shown["map_used_by"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    assert_eq!(users(&get(&first)), [first.clone(), second.clone()]);
    let shown = get(&second);
    assert_eq!((shown["map_owner_id"].to_string(), users(&shown)), (first.clone(), vec![first.clone(), second.clone()]));
    assert_eq!(shown["globals"]["step"], "05000000");
    assert_eq!((&shown["kernel"]["id"], &shown["kernel"]["name"]), (&shown["id"], &shown["name"]));
    assert!(shown["kernel"]["verified_insns"].as_u64() > Some(0), "{shown}");
    // Where bpfman's clients look for a map.
    let by_name = format!("{}/counter", shown["map_pin_path"].as_str().unwrap());
    assert_eq!(bpftool(&["map", "show", "pinned", &by_name])["id"].as_u64(), Some(of_first["counter"]));

    // The second program counts in the first one's map, which keeps the value when the first program is gone.
    let at = netns.path();
    lab.json(&["attach", &second, "xdp", "--iface", "lo", "--netns", &at]);
    netns.send_to_itself(3);
    let counted = sum(of_first["counter"]);
    assert!(counted >= 3 * 5, "{counted}");
    lab.ours(&["unload", &first]);
    netns.send_to_itself(3);
    assert!(sum(of_first["counter"]) > counted);
    let shown = get(&second);
    assert_eq!((shown["map_owner_id"].to_string(), users(&shown)), (first.clone(), vec![second.clone()]));

    // A third program shares the maps of one that shares already, and is refused if the maps do not match.
    let third = load(&lab, &["--map-owner-id", &second]);
    assert_eq!(maps_of(&third)["counter"], of_first["counter"]);
    assert_eq!(users(&get(&third)), [second.clone(), third.clone()]);
    let refused = |object: &str, program: &str, owner: &str, words: &str| {
        let path = object_path(object).display().to_string();
        refused(&lab, &["load", "file", "--path", &path, "--programs", program, "--map-owner-id", owner], 1, words);
    };
    refused("wide", "xdp:count_wide", &third, "value size 16, but the existing map has 8");
    refused("tcx", "tcx:ingress", &third, "it has no map \"traffic\"");
    refused("counter", "xdp:count", &first, "bpfman-hook has no program");
    lab.ours(&["unload", &second, &third]);
    drop(netns);
    lab.residue();
}

/// Ring buffers of a rounded size, per-CPU arrays, maps with flags, maps of maps.
#[test]
fn every_kind_of_map_is_shared() {
    let lab = Lab::new(Hooks::Ours);
    let path = object_path("maps").display().to_string();
    let load = |more: &[&str]| {
        let loaded = lab.json(&[&["load", "file", "--path", &path, "--programs", "xdp:use_all"], more].concat());
        loaded[0]["id"].to_string()
    };
    let first = load(&[]);
    let second = load(&["--map-owner-id", &first]);
    let maps = maps_of(&first);
    assert!(maps.len() > 3 && maps == maps_of(&second), "{maps:?}");
    lab.ours(&["unload", &first, &second]);
    lab.residue();
}

#[test]
fn links_have_labels_and_listings_have_filters() {
    let lab = Lab::new(Hooks::Ours);
    let netns = Netns::new();
    let program = load(&lab, &["--application", "shop", "--metadata", "team=a,stage=b"]);
    let other = load(&lab, &[]);
    let at = netns.path();
    let there = ["xdp", "--iface", "lo", "--netns", &at, "--priority", "55", "--proceed-on", "pass", "--metadata", "site=here"];
    let link = lab.json(&[&["attach", &program], &there[..]].concat());
    assert_eq!((&link["metadata"]["site"], &link["priority"]), (&Value::from("here"), &Value::from(55)), "{link}");
    assert_eq!(link["netns"].as_str(), Some(at.as_str()));
    let id = link["id"].to_string();
    assert_eq!(lab.json(&["get", "link", &id]), link);
    assert_eq!((link["kernel"]["link_type"].as_str(), link["kernel"]["interface"].as_u64()), (Some("xdp"), Some(1)), "{link}");

    let links = |args: &[&str]| ids(&lab.json(&[&["list", "links"], args].concat()));
    for chosen in
        [&["--metadata-selector", "site=here"][..], &["-m", "team=a,site=here"], &["-t", "xdp"], &["--program-id", &program]]
    {
        assert_eq!(links(chosen), [id.clone()], "{chosen:?}");
    }
    for others in [&["-m", "site=there"][..], &["-t", "tc"], &["--program-id", &other], &["--application", "other"]] {
        assert!(links(others).is_empty(), "{others:?}");
    }
    assert_eq!(lab.ours(&["list", "links", "-q", "--application", "shop"]).trim(), id);
    assert_eq!(lab.ours(&["list", "programs", "-q", "--program-id", &other]).trim(), other);

    // A program that bpfman-hook did not load: only the kernel's data.
    let pin = lab.bpffs().join("stranger").display().to_string();
    let object = object_path("counter").display().to_string();
    assert!(Command::new("bpftool").args(["prog", "load", &object, &pin]).status().unwrap().success());
    let foreign = bpftool(&["prog", "show", "pinned", &pin])["id"].to_string();
    let all = lab.json(&["list", "programs", "--all", "-t", "xdp"]);
    let entry = all.as_array().unwrap().iter().find(|entry| entry["id"].to_string() == foreign).unwrap();
    assert_eq!((&entry["type"], &entry["name"]), (&Value::from("xdp"), &Value::from("count")));
    assert!(entry["kernel"]["tag"].as_str().is_some_and(|tag| tag.len() == 16), "{entry}");
    assert!(ids(&all).contains(&program));
    assert!(!ids(&lab.json(&["list", "programs"])).contains(&foreign));
    let got = lab.json(&["get", "program", &foreign]);
    assert_eq!((&got["type"], &got["kernel"]["tag"]), (&entry["type"], &entry["kernel"]["tag"]));
    std::fs::remove_file(&pin).unwrap();
    lab.ours(&["unload", &program, &other]);
    drop(netns);
    lab.residue();
}

#[test]
fn loaded_and_attached_in_one_step() {
    let lab = Lab::new(Hooks::Ours);
    let path = object_path("probes").display().to_string();
    let at = |entry: &str| format!("{entry}:libc symbol=gnu_get_libc_version");
    let load = ["load", "file", "--path", &path, "--attach", &at("uprobe:enter_user"), &at("uretprobe:leave_user")];
    let loaded = lab.json(&load);
    let kinds: Vec<_> = loaded.as_array().unwrap().iter().map(|program| program["links"][0]["at"]["ret"].clone()).collect();
    assert_eq!(kinds, [false, true], "{loaded}");
    // The second attach point does not exist: both programs are unloaded.
    let wrong = "uretprobe:leave_user:libc symbol=no_such_function";
    refused(&lab, &["load", "file", "--path", &path, "--attach", &at("uprobe:enter_user"), wrong], 1, "no_such_function");
    assert_eq!(ids(&lab.json(&["list", "programs"])), ids(&loaded));
    lab.ours(&[&["unload"], &ids(&loaded).iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    lab.residue();
}

#[test]
fn a_return_probe_by_flag() {
    let lab = Lab::new(Hooks::Ours);
    let path = object_path("probes").display().to_string();
    let loaded = lab.json(&["load", "file", "--path", &path, "--programs", "uprobe:enter_user"]);
    let program = loaded[0]["id"].to_string();
    let link = lab.json(&["attach", &program, "uprobe", "--target", "libc", "--fn-name", "gnu_get_libc_version", "--retprobe"]);
    assert_eq!(link["at"]["ret"], true, "{link}");
    lab.ours(&["unload", &program]);
    lab.residue();
}

/// The credentials of the command line are used for a private registry in this load only.
#[test]
fn credentials_are_for_one_image_only() {
    let lab = Lab::new(Hooks::Ours);
    let registry = DockerRegistry::start_private(&lab.path("registry"));
    let image = format!("{}/acme/demo:v1", registry.host());
    let certificates = lab.root().join(format!("etc/containers/certs.d/{}", registry.host()));
    std::fs::create_dir_all(&certificates).unwrap();
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls/ca.pem"), certificates.join("ca.crt")).unwrap();
    lab.policy(&format!("[[image]]\nrepository = \"{}/acme/*\"\nunsigned = true\n", registry.host()));
    const LOGIN: &str = "dXNlcjpzZWNyZXQ=";
    let made = format!("oci:{}:v1", lab.path("made").display());
    lab.ours(&["image", "build", "--quiet", &made, &format!("linux/amd64={}", object_path("demo").display())]);
    lab.ours(&["image", "push", &made, &image, "--registry-auth", LOGIN]);

    let asked = ["load", "image", "--image-url", &image, "--programs", "xdp:count_packets"];
    refused(&lab, &asked, 1, "requires credentials");
    refused(&lab, &[&asked[..], &["--registry-auth", "c2VjcmV0"]].concat(), 2, "--registry-auth: it is not user:password");
    refused(&lab, &[&asked[..], &["--registry-auth", "dXNlcjp3cm9uZw=="]].concat(), 1, "refuses our credentials");
    let loaded = lab.json(&[&asked[..], &["--registry-auth", LOGIN]].concat());
    let program = loaded[0]["id"].to_string();
    drop(registry);
    // The credentials are not in the store, the log, the cache or the exported files.
    let found = Command::new("grep").args(["-rlE", "dXNlcjp|secret"]).arg(lab.root()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    lab.ours(&["unload", &program]);
    lab.residue();
}

#[test]
fn invalid_requests_are_explained() {
    let lab = Lab::new(Hooks::Ours);
    let path = object_path("counter").display().to_string();
    let program = load(&lab, &[]);
    let file = |path: &str, program: &str, more: &[&str], status, words| {
        let args = [&["load", "file", "--path", path, "--programs", program], more].concat();
        refused(&lab, &args, status, words);
    };
    file("/nonexistent", "xdp:count", &[], 1, "No such file");
    file(&path, "xdp:nope", &[], 2, "it has count");
    file(&path, "tcx:count", &[], 2, "its section");
    file(&path, "xdp:count", &["--global", "nope=00"], 2, "no program declares");
    file(&path, "xdp:count", &["--global", "step:=-1"], 2, "is not in 0 to 4294967295");
    file(&path, "cgroup_skb:count", &[], 2, "its section");
    refused(&lab, &["attach", &program, "tcx", "--iface", "lo", "--direction", "ingress"], 2, "it was loaded as xdp");
    refused(&lab, &["attach", &program, "xdp", "--iface", "nope0"], 1, "there is no such interface");
    refused(&lab, &["attach", "4294967295", "xdp", "--iface", "lo"], 1, "bpfman-hook has no program");
    lab.ours(&["unload", &program]);
    lab.residue();
}

/// `unload` of a container's program is refused, and the container keeps it.
#[test]
fn programs_of_containers_are_not_unloaded() {
    let mut world = World::new(Hooks::Ours);
    let bundle = world.counting("kept").script("echo ready; read go").write();
    let running = world.start(&bundle);
    let listed = ids(&world.lab.json(&["list", "programs"]));
    for program in &listed {
        refused(&world.lab, &["unload", program], 1, "it is removed together with it");
        let path = object_path("counter").display().to_string();
        let share = ["load", "file", "--path", &path, "--programs", "xdp:count", "--map-owner-id", program];
        refused(&world.lab, &share, 1, "cannot be changed manually");
    }
    assert_eq!(ids(&world.lab.json(&["list", "programs"])), listed);
    running.finish();
    world.lab.residue();
}
