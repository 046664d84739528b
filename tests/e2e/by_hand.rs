//! Programs that a person loads: no container, every command on the real kernel.

use serde_json::Value;

use crate::support::lab::{Hooks, Lab};
use crate::support::netns::Netns;
use crate::world::{World, object_path};

/// The only program that this load makes.
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
    refused(&lab, &["detach", &link], 1, "no link of ours");
    lab.ours(&["detach", "--ignore-missing", &link]);
    assert!(listed(&["--attached"]).is_empty());

    // With its link, which must go first: the residue shows it.
    lab.json(&[&["attach", &program], &there[..]].concat());
    lab.ours(&["unload", "--application", "shop"]);
    assert_eq!(listed(&[]), [other.clone()]);
    refused(&lab, &["unload", "--application", "shop"], 1, "it has no programs");
    refused(&lab, &["unload", &program], 1, "no program of ours");
    lab.ours(&["unload", "--ignore-missing", &program, &other]);
    drop(netns);
    lab.residue();
}

#[test]
fn what_is_wrong_is_said() {
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
    file(&path, "xdp:count", &["--global", "nope=00"], 2, "no such variable");
    refused(&lab, &["attach", &program, "tcx", "--iface", "lo", "--direction", "ingress"], 2, "it was loaded as xdp");
    refused(&lab, &["attach", &program, "xdp", "--iface", "nope0"], 1, "there is no such interface");
    refused(&lab, &["attach", "4294967295", "xdp", "--iface", "lo"], 1, "no program of ours");
    lab.ours(&["unload", &program]);
    lab.residue();
}

/// `unload` of a container's program is refused, and the container keeps it.
#[test]
fn programs_of_containers_stay() {
    let mut world = World::new(Hooks::Ours);
    let bundle = world.counting("kept").script("echo ready; read go").write();
    let running = world.start(&bundle);
    let listed = ids(&world.lab.json(&["list", "programs"]));
    for program in &listed {
        refused(&world.lab, &["unload", program], 1, "it goes when that goes");
    }
    assert_eq!(ids(&world.lab.json(&["list", "programs"])), listed);
    running.finish();
    world.lab.residue();
}
