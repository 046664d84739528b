//! What a container gets, seen from inside and from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::bundle::{Bundle, FIRST_ID, busybox};
use crate::support::kernel::{self, bpftool};
use crate::support::process::{Ended, eventually};
use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, TRAFFIC_PACKETS, World};

crate::cases![
    counters_count_the_containers_own_traffic,
    the_container_creates_and_uses_its_token,
    an_unannotated_container_gets_nothing,
    maps_makes_maps_and_loads_no_program,
    networking_delegates_no_tracing,
    a_private_bpffs_delegates_nothing,
    a_read_only_map_is_readable_in_the_container_and_frozen,
    a_writable_map_is_written_in_the_container,
    globals_reach_the_program,
    facts_reach_the_program,
    connect_is_refused_only_in_the_container,
    every_kind_of_container_scope_attaches,
    tracepoints_need_and_get_host_scope,
    what_reaches_other_namespaces_needs_host_scope,
    uprobes_see_the_containers_own_files,
];

fn counters_count_the_containers_own_traffic(world: &mut World) {
    let bundle = world.counting("counting").script(TRAFFIC).write();
    let mut running = world.start(&bundle);
    let before = world.counted(&bundle.id, "packets");
    running.say("go\n");
    running.hear("done");
    let after = world.counted(&bundle.id, "packets");
    // XDP sees each packet that arrives on lo, the cgroup program each that leaves a socket of the container.
    assert!(after >= before + TRAFFIC_PACKETS, "{before} packets before the traffic, {after} after it");

    let links: Vec<_> = world.link_ids(&bundle.id).into_iter().map(kernel::link).collect();
    let kinds: Vec<_> = links.iter().map(|link| link["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds, ["xdp", "cgroup"], "{links:#?}");
    let init = Runtime::Runc.init(&world.lab, &bundle.id);
    assert_eq!(links[1]["cgroup_id"].as_u64(), Some(cgroup_id(init)), "the link is on another cgroup: {links:#?}");

    let tree = world.lab.ours(&["list", "containers"]);
    for part in [&bundle.id, "count_packets", "count_egress", "lo"] {
        assert!(tree.contains(part), "{part} is not in the tree:\n{tree}");
    }
    running.say("go\n");
    let ended = running.finish();
    assert_eq!(ended.status.code(), Some(7), "the workload's own exit status is kept: {}", ended.stderr);
}

/// The inode of a process's cgroup directory in the version 2 hierarchy, which is the cgroup id.
fn cgroup_id(pid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let directory = kernel::cgroup2().join(path.trim_start_matches('/'));
    fs::metadata(&directory).map(|found| found.ino()).unwrap_or_default()
}

/// The probe creates a token, and a map and programs with it, attaches XDP to `lo` and counts packets.
const PROBE: &str = "echo ready; \
    (while :; do nc -w 1 127.0.0.1 9 </dev/null; done 2>/dev/null) & \
    if /bpfman-hook token probe --iface lo --count 1; then echo probe ok; else echo probe failed; fi; \
    echo caps $(grep CapEff /proc/self/status); read go";

fn the_container_creates_and_uses_its_token(world: &mut World) {
    world.allow("host-scope = true");
    let bundle =
        Bundle::new(&world.lab, "token").ask("delegate", "networking:sockets").with_binary(&world.lab).script(PROBE).write();
    let mut running = world.start(&bundle);
    let verdict = running.hear("probe ");
    running.say("go\n");
    let ended = running.finish();
    assert_eq!(verdict, "ok", "{}\n{}", ended.stdout, ended.stderr);
    let counted = ended.stdout.lines().find(|line| line.contains("packets")).unwrap_or_default();
    let number = counted.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(number.is_some_and(|n| n > 0), "the container's own program counted nothing: {}", ended.stdout);
}

fn an_unannotated_container_gets_nothing(world: &mut World) {
    world.allow("host-scope = true");
    // Two containers: one requests programs, the other does not.
    let asks =
        Bundle::new(&world.lab, "asks").ask("delegate", "networking:sockets").with_binary(&world.lab).script(PROBE).write();
    let plain = Bundle::new(&world.lab, "plain").with_binary(&world.lab).script(PROBE).write();
    for (bundle, expected) in [(&plain, "failed"), (&asks, "ok")] {
        let mut running = world.start(bundle);
        let verdict = running.hear("probe ");
        if expected == "failed" {
            assert_eq!(world.lab.records().len(), 0, "an unannotated container has a record");
        }
        running.say("go\n");
        let ended = running.finish();
        assert_eq!(verdict, expected, "{}\n{}", ended.stdout, ended.stderr);
    }
}

fn maps_makes_maps_and_loads_no_program(world: &mut World) {
    let script = "echo ready; echo probed $(/bpfman-hook token probe -o json); read go";
    let bundle = Bundle::new(&world.lab, "maps").ask("delegate", "maps").with_binary(&world.lab).script(script).write();
    let mut running = world.start(&bundle);
    let said = running.hear("probed ");
    running.say("go\n");
    running.finish();
    let probed: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let outcome = |stage: &str| {
        let steps = probed["steps"].as_array().into_iter().flatten();
        steps.into_iter().find(|step| step["stage"] == stage).map(|step| step["outcome"].clone())
    };
    for (stage, expected) in [
        ("mint-token", "done"),
        ("create-map", "done"),
        ("load-socket-filter", "failed"),
        ("load-xdp", "failed"),
        ("load-tcx", "failed"),
    ] {
        assert_eq!(outcome(stage), Some(expected.into()), "{stage}: {probed:#}");
    }
}

fn networking_delegates_no_tracing(world: &mut World) {
    world.allow("host-scope = true");
    let bundle = Bundle::new(&world.lab, "preset").ask("delegate", "networking:sockets").script("echo ready; read go").write();
    let running = world.start(&bundle);
    let options = bpffs_options(Runtime::Runc.init(&world.lab, &bundle.id), "/sys/fs/bpf");
    let progs = option(&options, "delegate_progs");
    for wanted in ["xdp", "sched_cls", "socket_filter"] {
        assert!(progs.split(':').any(|name| name == wanted), "{wanted} is not delegated: {options}");
    }
    for unwanted in ["any", "kprobe", "tracepoint", "raw_tracepoint", "tracing", "perf_event", "syscall", "lsm"] {
        assert!(!progs.split(':').any(|name| name == unwanted), "{unwanted} is delegated: {options}");
    }
    assert_eq!(option(&options, "uid"), FIRST_ID.to_string(), "{options}");
    assert_eq!(option(&options, "gid"), FIRST_ID.to_string(), "{options}");
    running.finish();
}

fn a_private_bpffs_delegates_nothing(world: &mut World) {
    let script = "echo ready; ls -ld /run/own; read go";
    let bundle =
        Bundle::new(&world.lab, "private").ask("bpffs", "private").ask("bpffs-path", "/run/own").script(script).write();
    let running = world.start(&bundle);
    let options = bpffs_options(Runtime::Runc.init(&world.lab, &bundle.id), "/run/own");
    assert!(!options.contains("delegate_"), "{options}");
    running.finish();
}

/// The super options of the bpffs that a process sees at a path.
pub fn bpffs_options(pid: u32, at: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let line = text.lines().find(|line| line.split(' ').nth(4) == Some(at) && line.contains(" - bpf "));
    let line = line.unwrap_or_else(|| panic!("no bpffs on {at}:\n{text}"));
    line.rsplit(' ').next().unwrap_or_default().to_owned()
}

fn option<'a>(options: &'a str, key: &str) -> &'a str {
    options.split(',').find_map(|one| one.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
}

/// Mounts that let a container run the host's bpftool.
fn with_bpftool(bundle: Bundle) -> Bundle {
    let bundle = bundle.mount("none", &PathBuf::from("/usr"), "/usr", &["rbind", "ro"]).rootfs(|root| {
        for (name, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")] {
            std::os::unix::fs::symlink(target, root.join(name)).expect("a link in a new directory");
        }
    });
    bundle
}

const READ_MAP: &str = "echo ready; read go; stat -c 'file %u %a' /sys/fs/bpf/packets; \
    if /usr/sbin/bpftool map lookup pinned /sys/fs/bpf/packets key 0 0 0 0; then echo read ok; else echo read failed; fi; \
    if /usr/sbin/bpftool map update pinned /sys/fs/bpf/packets key 0 0 0 0 value 1 0 0 0 0 0 0 0; \
    then echo written ok; else echo written failed; fi; read go";

fn a_read_only_map_is_readable_in_the_container_and_frozen(world: &mut World) {
    // Reading needs no capability.
    let bundle = with_bpftool(world.counting("readonly").ask("maps", "packets").capabilities(&[]).script(READ_MAP)).write();
    let mut running = world.start(&bundle);
    running.say("go\n");
    assert_eq!(running.hear("file "), "0 600");
    let (read, written) = (running.hear("read "), running.hear("written "));
    // Even the host's root cannot write it: the map is frozen.
    let map = world.map_id(&bundle.id, "packets").to_string();
    let update = ["map", "update", "id", &map, "key", "0", "0", "0", "0", "value", "1", "0", "0", "0", "0", "0", "0", "0"];
    let ended = crate::support::process::ended(std::process::Command::new("bpftool").args(update));
    assert!(!ended.status.success(), "the map is not frozen");
    let Ended { stdout, stderr, .. } = running.finish();
    assert_eq!((read.as_str(), written.as_str()), ("ok", "failed"), "{stdout}{stderr}");
}

fn a_writable_map_is_written_in_the_container(world: &mut World) {
    let bundle = with_bpftool(world.counting("writable").ask("maps", "packets:rw").capabilities(&[]).script(READ_MAP)).write();
    let mut running = world.start(&bundle);
    running.say("go\n");
    let (read, written) = (running.hear("read "), running.hear("written "));
    let Ended { stdout, stderr, .. } = running.finish();
    assert_eq!((read.as_str(), written.as_str()), ("ok", "ok"), "{stdout}{stderr}");
}

fn globals_reach_the_program(world: &mut World) {
    let image = world.signed("counter");
    let bundle = Bundle::new(&world.lab, "globals")
        .ask("image", &image)
        .ask("programs", "xdp:count iface=lo")
        .ask("globals", "step=1000")
        .script(TRAFFIC)
        .write();
    let mut running = world.start(&bundle);
    running.say("go\n");
    running.hear("done");
    let counted = world.counted(&bundle.id, "counter");
    assert!(counted >= TRAFFIC_PACKETS * 1000 && counted.is_multiple_of(1000), "{counted}");
    running.finish();
}

fn facts_reach_the_program(world: &mut World) {
    let image = world.signed("counter");
    let bundle = Bundle::new(&world.lab, "facts").ask("image", &image).ask("programs", "xdp:count iface=lo");
    let bundle = bundle.script("echo ready; read go").write();
    let running = world.start(&bundle);
    let init = Runtime::Runc.init(&world.lab, &bundle.id);
    let netns = fs::metadata(format!("/proc/{init}/ns/net")).map(|found| std::os::unix::fs::MetadataExt::ino(&found));
    let rodata = world.inspect(&bundle.id)[0]["maps"].as_array().cloned().unwrap_or_default();
    let rodata = rodata.iter().find(|map| map["name"].as_str().is_some_and(|name| name.contains("rodata")));
    let id = rodata.and_then(|map| map["id"].as_u64()).expect("the object's read-only data is a map on record");
    let dump = bpftool(&["map", "dump", "id", &id.to_string()]).to_string();
    for (name, value) in [("bpfman_init_pid", u64::from(init)), ("bpfman_netns", netns.expect("a namespace has an inode"))] {
        assert!(dump.contains(&format!("\"{name}\":{value}")), "{name} is not {value}: {dump}");
    }
    assert!(dump.contains("\"bpfman_container_id\""), "{dump}");
    running.finish();
}

const CONNECT: &str = "echo ready; read go; nc -w 2 127.0.0.1 9 </dev/null 2>/tmp/said; cat /tmp/said; echo end; read go";

fn connect_is_refused_only_in_the_container(world: &mut World) {
    let image = world.signed("connect4");
    let blocked = Bundle::new(&world.lab, "blocked").ask("image", &image).ask("programs", "cgroup_sock_addr:block_connect4");
    let blocked = blocked.mount("tmpfs", &PathBuf::from("tmpfs"), "/tmp", &[]).script(CONNECT).write();
    let plain =
        Bundle::new(&world.lab, "unblocked").mount("tmpfs", &PathBuf::from("tmpfs"), "/tmp", &[]).script(CONNECT).write();
    let mut both: Vec<_> = [&blocked, &plain].into_iter().map(|bundle| world.start(bundle)).collect();
    let mut said = Vec::new();
    for running in &mut both {
        running.say("go\n");
        running.hear("end");
    }
    for running in both {
        said.push(running.finish().stdout);
    }
    assert!(said[0].contains("not permitted"), "connect was not refused: {}", said[0]);
    assert!(said[1].contains("refused") && !said[1].contains("not permitted"), "another container is affected: {}", said[1]);
}

/// bpftool of Debian 12 prints BPF_LINK_TYPE_TCX only as a number.
const TCX: &str = "tcx";

fn every_kind_of_container_scope_attaches(world: &mut World) {
    for (n, (object, entry, link)) in [
        ("tcx", "tcx:ingress iface=lo", TCX),
        ("tcx", "tcx:egress iface=lo direction=egress", TCX),
        ("tcx", "tc:ingress iface=lo priority=50 proceed-on=ok:pipe", TCX),
        ("sock", "cgroup_sock:made", "cgroup"),
        ("sock", "sock_ops:connected", "cgroup"),
        ("cgroup_skb", "cgroup_skb:received", "cgroup"),
        ("cgroup_skb", "cgroup_skb:either attach=ingress", "cgroup"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = world.signed(object);
        let bundle = Bundle::new(&world.lab, &format!("kind-{n}")).ask("image", &image).ask("programs", entry);
        let bundle = bundle.script("echo ready; read go").write();
        let running = world.start(&bundle);
        let links = world.link_ids(&bundle.id);
        assert_eq!(links.len(), 1, "{object}");
        let kind = kernel::link(links[0])["type"].clone();
        assert!(kind == link || (link == TCX && kind == 11), "{object}: {kind}");
        running.finish();
    }
}

fn tracepoints_need_and_get_host_scope(world: &mut World) {
    let image = world.signed("trace");
    let programs = "tracepoint:trace_exec:sched/sched_process_exec; raw_tracepoint:raw_trace_exec";
    let bundle = |world: &World, name: &str| {
        Bundle::new(&world.lab, name)
            .ask("image", &image)
            .ask("programs", programs)
            .script("echo ready; read go; /bin/id; echo done; read go")
    };
    let rule = "[[container]]\nprograms = [\"tracepoint\", \"raw_tracepoint\"]\n";
    let host = "host-scope = true\n";
    let image_rule = world.image_rule();
    let host_image_rule = image_rule.clone() + "scope = \"host\"\n";
    // Both rules must grant it.
    let not_in_the_container_rule = "has no host-scope = true";
    let not_in_the_image_rule = "scope = \"host\"";
    for (n, (policy, said)) in [
        (image_rule.clone() + rule, not_in_the_container_rule),
        (host_image_rule.clone() + rule, not_in_the_container_rule),
        (image_rule + rule + host, not_in_the_image_rule),
    ]
    .iter()
    .enumerate()
    {
        world.lab.policy(policy);
        world.refused(bundle(world, &format!("container-scope-{n}")), 1, &[said]);
    }
    world.lab.policy(&(host_image_rule + rule + host));
    let bundle = bundle(world, "host-scope").write();
    let mut running = world.start(&bundle);
    let before = world.counted(&bundle.id, "executed");
    running.say("go\n");
    running.hear("done");
    eventually("an event in the container", Duration::from_secs(5), || {
        (world.counted(&bundle.id, "executed") > before).then_some(())
    });
    running.say("go\n");
    running.finish();
}

fn what_reaches_other_namespaces_needs_host_scope(world: &mut World) {
    let image = world.signed("lookup");
    let asking = |world: &World, name: &str, programs: &str| {
        Bundle::new(&world.lab, name).ask("image", &image).ask("programs", programs).script("echo ready; read go")
    };
    world.lab.policy(&world.image_rule());
    let said = [
        "program first_xdp calls bpf_skc_lookup_tcp with a network namespace other than its own",
        "lookup.bpf.c:",
        "it needs host scope in policy",
        "BPF_F_CURRENT_NETNS",
    ];
    world.refused(asking(world, "other-netns", "tcx:own_tcx iface=lo; xdp:first_xdp iface=lo"), 1, &said);
    let own = asking(world, "own-netns", "xdp:own_xdp iface=lo; tcx:own_tcx iface=lo; cgroup_skb:own_skb").write();
    world.start(&own).finish();
    // With host scope in both rules, the administrator accepts the program.
    let rules = world.image_rule() + "scope = \"host\"\n[[container]]\nprograms = [\"xdp\"]\nhost-scope = true\n";
    world.lab.policy(&rules);
    let other = asking(world, "other-netns-host-scope", "xdp:first_xdp iface=lo").write();
    world.start(&other).finish();
}

/// The file offset of a static program's first instruction.
fn entry_offset(program: &Path) -> u64 {
    let bytes = fs::read(program).expect("busybox");
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let entry = word(24);
    let segments = (0..usize::from(bytes[56])).map(|n| word(32) as usize + n * 56);
    let inside = |segment: &usize| (word(segment + 16)..word(segment + 16) + word(segment + 32)).contains(&entry);
    let code = segments.filter(|segment| bytes[*segment] == 1).find(inside).expect("the entry is in a segment");
    entry - word(code + 16) + word(code + 8)
}

fn uprobes_see_the_containers_own_files(world: &mut World) {
    let image = world.signed("probes");
    let policy = world.image_rule() + "scope = \"host\"\n[[container]]\nprograms = [\"uprobe\"]\nhost-scope = true\n";
    world.lab.policy(&policy);
    let offset = entry_offset(&busybox());
    for (process, children) in [("any", true), ("init", false)] {
        let programs = format!("uprobe:enter_user:/bin/busybox offset={offset:#x} pid={process}");
        let bundle = Bundle::new(&world.lab, &format!("uprobe-{process}")).ask("image", &image).ask("programs", &programs);
        let bundle = bundle.script("echo ready; read go; /bin/busybox true; /bin/busybox true; echo done; read go").write();
        let mut running = world.start(&bundle);
        // The runtime's first process becomes the container's init by executing busybox.
        let before = world.counted(&bundle.id, "calls");
        assert!(before >= 1, "pid={process}: the init's own start was not seen");
        running.say("go\n");
        running.hear("done");
        let after = world.counted(&bundle.id, "calls");
        assert_eq!(after >= before + 2, children, "pid={process}: {before} before its children, {after} after them");
        running.say("go\n");
        running.finish();
    }
    let targets = [("/bin/nothing", "No such file"), ("/proc", "not a regular file"), ("libnothing", "no such library")];
    for (n, (target, said)) in targets.into_iter().enumerate() {
        let programs = format!("uprobe:enter_user:{target} offset=0x10");
        let bundle = Bundle::new(&world.lab, &format!("uprobe-refused-{n}")).ask("image", &image).ask("programs", &programs);
        world.refused(bundle.script("exit 0"), 1, &["uprobe", target, said]);
    }
}
