//! What is to be seen of the proxy of bpf(2) from outside: events, metrics, listings.

use std::time::Duration;

use serde_json::{Value, json};

use crate::proxy::{EPERM, OK, allow, answers, proxied, steps};
use crate::support::process::eventually;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![what_a_workload_loads_is_told, refusals_are_told_and_bounded, only_listed_instructions_are_loaded,];

/// For what a process of the proxy does after it has answered.
const PATIENCE: Duration = Duration::from_secs(10);

fn events(world: &World, what: &str) -> Vec<Value> {
    let text = world.lab.ours(&["events", "-o", "json", "-F", &format!("type={what}")]);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// The same, once there is this number of them: the proxy answers a call before it reports it.
fn wait_for(world: &World, what: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} events {what}"), PATIENCE, || {
        let found = events(world, what);
        (found.len() >= count).then_some(found)
    })
}

/// The value of a metric, by its name and labels.
fn metric(world: &World, series: &str) -> u64 {
    let page = world.lab.ours(&["metrics"]);
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("bpfman_hook_{series} ")));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series}: {page}"))
}

fn what_a_workload_loads_is_told(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = steps(proxied(world, "told", "sockets"), &["map", "xdp", "wait"]).write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    assert_eq!(running.hear("map "), OK);
    assert_eq!(running.hear("xdp "), OK);
    running.hear("waiting");
    let [loaded, attached] = ["loaded", "attached"].map(|what| wait_for(world, what, 1));
    assert_eq!((loaded.len(), attached.len()), (1, 1), "{loaded:?} {attached:?}");
    for event in [&loaded[0], &attached[0]] {
        let said = (&event["container"], &event["origin"], &event["target"]);
        assert_eq!(said, (&json!(bundle.id), &json!("workload"), &json!("xdp")), "{event:#}");
    }
    let program = loaded[0]["program_id"].as_u64().unwrap_or_default();
    assert!(attached[0]["link_id"].as_u64().is_some() && program > 0, "{attached:?}");
    assert_eq!(metric(world, "proxy_calls_total{command=\"prog_load\",outcome=\"done\"}"), 1);
    assert_eq!(metric(world, "proxies{state=\"running\"}"), 1);
    assert_eq!(metric(world, "proxied_containers"), 1);
    // The record is written when the container pauses.
    let listed = eventually("the listing", PATIENCE, || {
        let listed = world.lab.json(&["list", "programs"]);
        listed[0]["id"].as_u64().is_some().then_some(listed)
    });
    assert_eq!((&listed[0]["id"], &listed[0]["origin"]), (&json!(program), &json!("workload")), "{listed:#}");
    for (what, count) in [("programs", 1), ("links", 1)] {
        let table = world.lab.ours(&["list", what]);
        assert_eq!(table.matches("(loaded by the workload)").count(), count, "{table}");
    }
    assert!(
        world.lab.ours(&["list", "links"]).contains("xdp lo (loaded by the workload)"),
        "{}",
        world.lab.ours(&["list", "links"])
    );
    assert_eq!(world.lab.json(&["list", "links"])[0]["attached_to"], "xdp lo");
    assert_eq!(metric(world, "proxied_objects{kind=\"program\"}"), 1);
    assert_eq!(world.lab.ours(&["list", "programs", "-q"]).trim(), program.to_string());
    running.say("go\n");
    running.finish();
    let running = || metric(world, "proxies{state=\"running\"}");
    eventually("the end of the proxy", PATIENCE, || (running() == 0).then_some(()));
}

fn refusals_are_told_and_bounded(world: &mut World) {
    allow(world, "proxy = [\"sockets\"]");
    let bundle = proxied(world, "denied", "sockets");
    let id = bundle.id.clone();
    let once = [("readkernel", "-1 13"), ("kprobe", EPERM)];
    answers(world, Runtime::Runc, bundle, &once);
    let denied = wait_for(world, "denied", 2);
    let reasons: Vec<_> = denied.iter().map(|event| event["reason"].as_str().unwrap_or_default()).collect();
    assert_eq!(denied.len(), 2, "{denied:?}");
    assert!(reasons[0].contains("bpf_probe_read_kernel") && reasons[1].contains("program type kprobe"), "{reasons:?}");
    assert!(denied.iter().all(|event| event["container"] == id), "{denied:?}");
    for reason in ["instructions", "grant"] {
        assert_eq!(metric(world, &format!("proxy_refusals_total{{reason=\"{reason}\"}}")), 1);
    }
    // Hundreds of reasons, which the workload chooses.
    let bundle = steps(proxied(world, "many", "sockets"), &["refusals"]).write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert_eq!(ended.line("refusals "), Some("-1 13"), "{}", ended.stdout);
    let refused = || metric(world, "proxy_calls_total{command=\"prog_load\",outcome=\"refused\"}");
    eventually("the count of the refusals", PATIENCE, || (refused() > 500).then_some(()));
    let many = events(world, "denied").iter().filter(|event| event["container"] == *bundle.id).count();
    assert!(many >= 65, "{many}");
    // 64 different ones and the others, at most six times each, and a last time.
    assert!(many <= 65 * 7, "{many}");
}

fn only_listed_instructions_are_loaded(world: &mut World) {
    allow(world, "proxy = { presets = [\"sockets\"], instructions = [] }");
    let bundle = proxied(world, "unlisted", "sockets");
    let ended = answers(world, Runtime::Runc, bundle, &[("map", OK), ("ktime", "-1 13")]);
    let refusal = ended.stdout.split("has the instructions ").nth(1).unwrap_or_else(|| panic!("{}", ended.stdout));
    let digest = refusal.split(',').next().unwrap_or_default();
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{refusal}");
    assert!(refusal.contains("add them there"), "{refusal}");
    let denied = wait_for(world, "denied", 1);
    assert!(denied.iter().any(|event| event["reason"].to_string().contains(digest)), "{denied:?}");
    // The same program of another container and process.
    world.lab.policy(&format!("[[container]]\nproxy = {{ presets = [\"sockets\"], instructions = [\"{digest}\"] }}\n"));
    let bundle = steps(proxied(world, "listed", "sockets"), &["map", "ktime", "prog", "readkernel", "wait"]).write();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    for (step, answer) in [("map ", OK), ("ktime ", OK), ("prog ", "-1 13"), ("readkernel ", "-1 13")] {
        assert_eq!(running.hear(step), answer, "{step}");
    }
    running.hear("waiting");
    let record = world.inspect(&bundle.id);
    assert_eq!(record[0]["proxy"]["instructions"], json!([digest]), "{record:#}");
    let loaded: Vec<_> = wait_for(world, "loaded", 1).into_iter().filter(|event| event["container"] == *bundle.id).collect();
    assert_eq!((loaded.len(), &loaded[0]["digest"]), (1, &json!(digest)), "{loaded:?}");
    running.say("go\n");
    running.finish();
}
