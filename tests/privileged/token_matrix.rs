//! `token probe --matrix`: what a token can be used for on this kernel, and that docs/tokens.md says the same.

use std::process::{Command, Stdio};

use bpfman_hook::kernel::{Feature, Kernel, LinuxKernel, Support};
use serde_json::Value;

/// What a command prints, and the process that it was.
fn ours(arguments: &[&str]) -> (String, u32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
    let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), pid)
}

fn has_tokens() -> bool {
    let has = LinuxKernel.probe(Feature::Token) == Support::Yes;
    if !has {
        println!("skipped: no BPF tokens before Linux 6.9");
    }
    has
}

#[test]
fn each_command_and_type_is_tried() {
    if !has_tokens() {
        return;
    }
    let (printed, pid) = ours(&["token", "probe", "--matrix", "-o", "json"]);
    let matrix: Value = serde_json::from_str(&printed).unwrap();
    let row = |set: &str, name: &str| {
        let rows = matrix["rows"].as_array().unwrap().iter();
        rows.into_iter().find(|row| row["set"] == set && row["name"] == name).unwrap_or_else(|| panic!("{set} {name}")).clone()
    };
    let bpf = serde_json::json!({ "needs": ["CAP_BPF"] });
    let network = serde_json::json!({ "needs": ["CAP_BPF", "CAP_NET_ADMIN"] });
    let tracing = serde_json::json!({ "needs": ["CAP_BPF", "CAP_PERFMON"] });
    for (set, name, expected, token) in [
        ("cmds", "map_create", &bpf, Some(true)),
        ("cmds", "btf_load", &bpf, Some(true)),
        ("maps", "hash", &bpf, Some(true)),
        ("maps", "sockmap", &network, Some(true)),
        ("progs", "socket_filter", &bpf, Some(true)),
        ("progs", "xdp", &network, Some(true)),
        ("progs", "raw_tracepoint", &tracing, Some(true)),
        ("progs", "sk_lookup", &bpf, Some(true)),
    ] {
        let found = row(set, name);
        assert_eq!((&found["outcome"], found["token"].as_bool()), (expected, token), "{set} {name}");
    }
    // Ids are those of the host, whatever is delegated.
    for name in ["prog_get_next_id", "map_get_fd_by_id", "enable_stats"] {
        assert_eq!(row("cmds", name)["outcome"]["fails"]["error"], "EPERM", "{name}");
    }
    // Attaching what is loaded takes no token and, but for cgroup_skb, no capability.
    for (set, name) in [("links", "xdp"), ("links", "tcx"), ("links", "netns"), ("links", "raw_tracepoint")] {
        assert_eq!(row(set, name)["outcome"]["needs"], serde_json::json!([]), "{name}");
    }
    // Nothing is left.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    if let Some(point) = cgroups {
        let left = std::fs::read_dir(point).unwrap().flatten().map(|entry| entry.file_name());
        // Another test makes some at the same time, in another process.
        let made = format!("bpfman-hook-token-matrix-{pid}");
        assert!(left.into_iter().all(|name| name.to_string_lossy() != made));
    }
}

#[test]
fn the_documented_matrix_is_this_kernels() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tokens.md");
    if !has_tokens() {
        return;
    }
    let document = std::fs::read_to_string(path).unwrap();
    let release = bpfman_hook::sys::machine::kernel_release();
    let version: Vec<&str> = release.split('.').take(2).collect();
    let marker = format!("<!-- token matrix of Linux {} -->\n", version.join("."));
    let Some((_, rest)) = document.split_once(&marker) else {
        println!("skipped: docs/tokens.md has no matrix of Linux {}", version.join("."));
        return;
    };
    let (documented, _) = rest.split_once("<!-- end -->").expect("each matrix has an end");
    assert_eq!(documented.trim(), ours(&["token", "probe", "--matrix", "--markdown"]).0.trim(), "regenerate it");
}
