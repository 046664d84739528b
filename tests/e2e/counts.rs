//! What the hook asks of the kernel on the start path: system calls, bytes read from files, and page faults. Unlike times, they hardly
//! depend on the machine, so a change that makes a start more expensive is noticed when it is made. `BLESS=1` accepts the new figures.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::harness;
use crate::support::bundle::Bundle;
use crate::support::lab::BINARY;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![starts_and_stops_do_not_become_more_expensive];

/// Runs whose page faults are counted. They differ by one or two per cent, with the addresses that a process gets.
const RUNS: usize = 5;

/// The last accepted figures, by what was run.
fn accepted() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts.json")
}

/// Whether the binary is that of `make test`. Only for it are page faults accepted: another profile's code has another size.
fn release() -> bool {
    Path::new(BINARY).parent().is_some_and(|directory| directory.ends_with("release"))
}

/// The logs of `strace -ff` of one run: a file for each thread, so that no call has two lines because another one came in between.
fn logs(bundle: &Bundle, stage: &str) -> String {
    let entries = fs::read_dir(&bundle.dir).unwrap_or_else(|e| harness!("list {}: {e}", bundle.dir.display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let name = format!("{stage}.log.");
    let ours = paths.filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&name)));
    ours.map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
}

/// System calls and bytes read of one run of the hook and its children, from their logs.
fn counts(log: &str) -> (u64, u64) {
    let is_call = |line: &&str| !["+++ ", "--- "].iter().any(|other| line.starts_with(other));
    let calls: Vec<&str> = log.lines().filter(is_call).collect();
    // What /proc and /sys say is as long as this machine has mounts and processors.
    let varies = |line: &str| ["</proc/", "</sys/"].iter().any(|path| line.contains(path));
    let read = |line: &&&str| ["read(", "pread64("].iter().any(|call| line.starts_with(call)) && !varies(line);
    let bytes = calls.iter().filter(read).filter_map(|line| line.rsplit("= ").next()?.split(' ').next()?.parse::<u64>().ok());
    (calls.len() as u64, bytes.sum())
}

/// Minor page faults of the children that a shell waited for, from its /proc/PID/stat: proc_pid_stat(5), cminflt.
fn faults(stat: &str) -> u64 {
    let number = stat.split(' ').nth(10).and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("{stat:?} is no /proc/PID/stat: the hook did not run"))
}

/// The binary under test in memory that has no name, and its path while the file is open. File systems cache a file in pieces whose
/// size depends on how it was written, and a page fault maps a piece; in memory each piece is a page.
fn in_memory() -> (File, String) {
    let written = memfd_create("bpfman-hook", MemfdFlags::CLOEXEC).unwrap_or_else(|e| harness!("make a file in memory: {e}"));
    let path = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
    let written = File::from(written);
    // The kernel runs no file that is open for writing.
    let read = File::open(path(written.as_raw_fd())).unwrap_or_else(|e| harness!("open the file in memory: {e}"));
    let copied = File::open(BINARY).and_then(|mut binary| std::io::copy(&mut binary, &mut &written));
    copied.unwrap_or_else(|e| harness!("copy the binary into memory: {e}"));
    let path = path(read.as_raw_fd());
    (read, path)
}

/// Runs the hooks of a bundle through a script, which is made for each stage.
fn through(bundle: Bundle, script: impl Fn(&str) -> String) -> Bundle {
    bundle.hook_through("createRuntime", &script("start")).hook_through("poststop", &script("stop")).script("true").write()
}

/// Runs a bundle and adds its figures: once under strace, and then in the profile of `make test` some times without it.
fn run(world: &mut World, bundle: Bundle, figures: &mut BTreeMap<String, u64>, what: &str) {
    let plain = bundle.config.clone();
    let bundle = through(bundle, |stage| format!(r#"exec strace -ff -y -o {stage}.log "$@""#));
    assert!(Runtime::Runc.run(&world.lab, &bundle).status.success());
    for stage in ["start", "stop"] {
        let (calls, bytes) = counts(&logs(&bundle, stage));
        assert!(calls > 20, "{what} {stage}: {calls} system calls: the hook did not run");
        figures.insert(format!("{what}, {stage}: system calls"), calls);
        figures.insert(format!("{what}, {stage}: bytes read"), bytes);
    }
    if release() {
        count_faults(world, bundle.edit(|config| *config = plain), figures, what);
    }
}

/// Runs a bundle some times, and adds the least page faults of each stage.
fn count_faults(world: &mut World, bundle: Bundle, figures: &mut BTreeMap<String, u64>, what: &str) {
    let (_open, binary) = in_memory();
    // dash starts the hook with vfork(2), which adds no page faults.
    let count = r#"status=$?; read -r stat </proc/$$/stat; echo "$stat""#;
    let bundle = through(bundle, |stage| format!(r#"shift; {binary} "$@"; {count} >{stage}.stat; exit $status"#));
    for _ in 0..RUNS {
        assert!(Runtime::Runc.run(&world.lab, &bundle).status.success());
        for stage in ["start", "stop"] {
            let stat = bundle.dir.join(format!("{stage}.stat"));
            let now = faults(&fs::read_to_string(&stat).unwrap_or_default());
            fs::remove_file(&stat).unwrap_or_else(|e| harness!("remove {}: {e}", stat.display()));
            let least = figures.entry(format!("{what}, {stage}: page faults")).or_insert(now);
            *least = now.min(*least);
        }
    }
}

fn starts_and_stops_do_not_become_more_expensive(world: &mut World) {
    let mut figures = BTreeMap::new();
    // The first start makes the store and mounts our bpffs.
    let first = Bundle::new(&world.lab, "first").ask("delegate", "maps").script("true").write();
    assert!(Runtime::Runc.run(&world.lab, &first).status.success());
    let token = Bundle::new(&world.lab, "token").ask("delegate", "maps");
    run(world, token, &mut figures, "token");
    let programs = world.counting("programs");
    run(world, programs, &mut figures, "programs");
    if std::env::var_os("BLESS").is_some() {
        assert!(release(), "BLESS=1 accepts figures of `cargo test --release` only, since page faults depend on the profile");
        let text = serde_json::to_string_pretty(&figures).expect("numbers are JSON");
        fs::write(accepted(), format!("{text}\n")).expect("write the figures");
    }
    let text = fs::read_to_string(accepted()).expect("benches/counts.json");
    let before: BTreeMap<String, u64> = serde_json::from_str(&text).expect("figures");
    let mut wrong = Vec::new();
    for (what, now) in &figures {
        let Some(before) = before.get(what) else {
            wrong.push(format!("{what}: {now}, and no accepted figure"));
            continue;
        };
        println!("{what}: {now}, accepted {before}");
        if now * 4 > before * 5 {
            wrong.push(format!("{what}: {now}, more than a quarter above the accepted {before}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts the new figures", wrong.join("\n"));
}
