//! What the hook asks of the kernel on the start path: system calls, and bytes read from files. Unlike times, both hardly depend on the
//! machine, so a change that makes a start more expensive is noticed when it is made. `BLESS=1` accepts the new figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::bundle::Bundle;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![starts_and_stops_do_not_become_more_expensive];

/// The last accepted figures, by what was run.
fn accepted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts.json")
}

/// System calls and bytes read of one run of the hook and its children, from the log of `strace -f`.
fn counts(log: &str) -> (u64, u64) {
    // A call that another process interrupts has two lines; the second one has the result.
    let is_call = |line: &&str| !["<unfinished ...>", " +++ ", " --- "].iter().any(|other| line.contains(other));
    let calls: Vec<&str> = log.lines().filter(is_call).collect();
    // What /proc and /sys say is as long as this machine has mounts and processors.
    let varies = |line: &str| ["</proc/", "</sys/"].iter().any(|path| line.contains(path));
    let read = |line: &&&str| ["read(", "pread64("].iter().any(|call| line.contains(call)) && !varies(line);
    let bytes = calls.iter().filter(read).filter_map(|line| line.rsplit("= ").next()?.split(' ').next()?.parse::<u64>().ok());
    (calls.len() as u64, bytes.sum())
}

fn run(world: &mut World, bundle: Bundle, figures: &mut BTreeMap<String, u64>, what: &str) {
    let traced = |stage: &str| format!(r#"exec strace -f -y -o {stage}.log "$@""#);
    let bundle = bundle.hook_through("createRuntime", &traced("start")).hook_through("poststop", &traced("stop"));
    let bundle = bundle.script("true").write();
    assert!(Runtime::Runc.run(&world.lab, &bundle).status.success());
    for stage in ["start", "stop"] {
        let log = fs::read_to_string(bundle.dir.join(format!("{stage}.log"))).unwrap_or_default();
        let (calls, bytes) = counts(&log);
        assert!(calls > 20, "{what} {stage}: {calls} system calls: the hook did not run");
        figures.insert(format!("{what}, {stage}: system calls"), calls);
        figures.insert(format!("{what}, {stage}: bytes read"), bytes);
    }
}

fn starts_and_stops_do_not_become_more_expensive(world: &mut World) {
    let mut figures = BTreeMap::new();
    // The first start makes the store and mounts our bpffs.
    let first = Bundle::new(&world.lab, "first").ask("delegate", "maps");
    run(world, first, &mut BTreeMap::new(), "first");
    let token = Bundle::new(&world.lab, "token").ask("delegate", "maps");
    run(world, token, &mut figures, "token");
    let programs = world.counting("programs");
    run(world, programs, &mut figures, "programs");
    if std::env::var_os("BLESS").is_some() {
        let text = serde_json::to_string_pretty(&figures).expect("numbers are JSON");
        fs::write(accepted(), format!("{text}\n")).expect("write the figures");
    }
    let text = fs::read_to_string(accepted()).expect("benches/counts.json");
    let before: BTreeMap<String, u64> = serde_json::from_str(&text).expect("figures");
    for (what, now) in &figures {
        let before = before[what];
        println!("{what}: {now}, accepted {before}");
        assert!(now * 4 <= before * 5, "{what}: {now}, more than a quarter above the accepted {before} (BLESS=1 accepts it)");
    }
}
