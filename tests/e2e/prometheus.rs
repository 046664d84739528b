//! A real Prometheus from Debian, unpacked beside the system: it scrapes our pages, and evaluates the rules and the
//! dashboard's queries.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness;
use crate::support::process::{Running, ended, eventually, fed};
use crate::watching::{PATIENCE, SCRIPT, as_nobody, export, public_binary};
use crate::world::World;

crate::cases![a_real_prometheus_reads_every_page_and_answers_the_dashboard];

/// Untrusted text that an engine may put into an annotation.
const HOSTILE: &str = "a\"} 1\nbpfman_hook_owners{kind=\"container\"} 99\n\\\u{0}\r\u{1b}[2J";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// The directory of Debian's prometheus and promtool.
fn tools() -> PathBuf {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/suite.sh");
    let unpacked = ended(Command::new(suite).args(["bookworm", "prometheus"]));
    match (unpacked.status.success(), unpacked.stdout.lines().last()) {
        (true, Some(directory)) => Path::new(directory).join("prometheus/usr/bin"),
        _ => harness!("Debian's prometheus cannot be had: {}{}", unpacked.stdout, unpacked.stderr),
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("an address").port()
}

/// One response of Prometheus' HTTP API.
fn ask(port: u16, path: &str, query: &str) -> Option<Value> {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET /api/v1/{path}?query={escaped} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
}

fn found(answer: &Value) -> usize {
    answer["data"]["result"].as_array().map_or(0, Vec::len)
}

fn a_real_prometheus_reads_every_page_and_answers_the_dashboard(world: &mut World) {
    let (tools, export) = (tools(), export(world));
    let binary = public_binary(world);
    let bundle = world.counting("measured").script(SCRIPT).write();
    let mut container = world.start(&bundle);
    world.lab.ours(&["metrics", "--sample"]);
    let owner_file = json!({"no": 999, "kind": "container", "id": "hostile", "created": 1, "engine": "podman", "namespace": HOSTILE,
        "pod": "\u{e9}".repeat(10_000), "container": "", "delegated": false, "maps": 0, "images": [], "programs": [], "links": []});
    fs::write(export.join("owners/999"), owner_file.to_string()).expect("write an owner file");

    let page = world.lab.ours(&["metrics"]);
    let checked = fed(Command::new(tools.join("promtool")).args(["check", "metrics"]), &page);
    assert!(checked.status.success() && checked.stderr.is_empty(), "{}\n{page}", checked.stderr);
    let rules = packaging().join("prometheus/bpfman-hook.rules.yml");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prometheus/rules.test.yml");
    for words in [["check", "rules"].map(Path::new), ["test", "rules"].map(Path::new)] {
        let file = if words[0] == Path::new("check") { &rules } else { &tests };
        let checked = ended(Command::new(tools.join("promtool")).args(words).arg(file));
        assert!(checked.status.success(), "{words:?}: {}{}", checked.stdout, checked.stderr);
    }

    let (ours, theirs) = (free_port(), free_port());
    let mut exporter = Running::start(
        as_nobody(&binary).arg("--root").arg(world.lab.root()).arg("metrics").arg(format!("--listen=tcp://127.0.0.1:{ours}")),
    );
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [ {} ]\nscrape_configs:\n  - job_name: bpfman-hook\n    \
         static_configs: [ {{ targets: [ \"127.0.0.1:{ours}\" ] }} ]\n",
        rules.display()
    );
    let config = world.lab.write("prometheus.yml", config.as_bytes());
    let mut prometheus = Running::start(
        Command::new(tools.join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", world.lab.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{theirs}")),
    );
    eventually("three scrapes", Duration::from_secs(60), || {
        let answer = ask(theirs, "query", "count_over_time(bpfman_hook_owner_info{owner=\"999\"}[5m]) >= 3")?;
        (found(&answer) == 1).then_some(())
    });
    let targets = ask(theirs, "targets", "").expect("the targets");
    let target = &targets["data"]["activeTargets"][0];
    assert_eq!((&target["health"], &target["lastError"]), (&json!("up"), &json!("")), "{targets:#}");
    let hostile = ask(theirs, "query", "bpfman_hook_owner_info{owner=\"999\"}").expect("an answer");
    let labels = &hostile["data"]["result"][0]["metric"];
    assert_eq!(labels["namespace"], HOSTILE.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"), "{hostile:#}");
    assert_eq!(labels["pod"].as_str().map(str::len), Some(256));

    let dashboard = fs::read_to_string(packaging().join("grafana/bpfman-hook.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query").replace("$instance", ".+").replace("$__rate_interval", "1m");
            let answer = ask(theirs, "query", &query).expect("an answer");
            assert_eq!(answer["status"], "success", "{}: {query}: {answer:#}", panel["title"]);
            assert!(found(&answer) > 0, "{}: nothing to show for {query}", panel["title"]);
            asked += 1;
        }
    }
    assert!(asked > 10, "{asked}");
    let evaluated = eventually("the rules", PATIENCE, || {
        let answer = ask(theirs, "rules", "")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert!(evaluated.len() > 4 && evaluated.iter().all(|rule| rule["health"] == "ok"), "{evaluated:#?}");

    for process in [&mut exporter, &mut prometheus] {
        process.kill();
    }
    exporter.finish();
    prometheus.finish();
    fs::remove_file(export.join("owners/999")).expect("remove the owner file");
    container.say("go\n");
    container.finish();
}
