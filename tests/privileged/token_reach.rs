//! What a program that is loaded with a BPF token reaches on this kernel, compared with manual measurements on Linux
//! 6.12, 6.18 and 7.2. Programs are only verified, never run.

use std::fs;

use bpfman_hook::kernel::{Feature, Kernel, LinuxKernel, Support};
use bpfman_hook::lifecycle::token_reach::{kept, token_reach};
use bpfman_hook::model::delegation::{Category, Preset};
use bpfman_hook::model::reach::{MemoryRead, TokenReach, TypeAnswer};
use bpfman_hook::sys::machine::kernel_release;

/// Types that cannot see sockets of another network namespace.
const QUIET: [&str; 10] = [
    "socket_filter",
    "sk_reuseport",
    "sk_lookup",
    "flow_dissector",
    "netfilter",
    "sk_msg",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "lwt_seg6local",
];
/// Cgroup program types that cannot either.
const CGROUP: [&str; 5] = ["cgroup_sock", "cgroup_sockopt", "cgroup_sysctl", "cgroup_device", "sock_ops"];
/// Types that can look up sockets in other network namespaces.
const SOCKETS: [&str; 3] = ["cgroup_skb", "cgroup_sock_addr", "sk_skb"];
/// Types that can also access their data.
const TCP_DATA: [&str; 3] = ["sched_act", "sched_cls", "xdp"];

const LOOKUPS: [&str; 3] = ["bpf_sk_lookup_tcp", "bpf_sk_lookup_udp", "bpf_skc_lookup_tcp"];

fn offers<'a>(reach: &'a TokenReach, name: &str) -> &'a [String] {
    match &reach.types[&Category::Progs.value(name).unwrap()] {
        TypeAnswer::Offers(functions) => functions,
        TypeAnswer::Absent => panic!("{name} cannot be loaded with a token"),
    }
}

fn is_offered(reach: &TokenReach, name: &str, function: &str) -> bool {
    offers(reach, name).iter().any(|offered| offered == function)
}

/// Major and minor number.
fn version() -> (u32, u32) {
    let release = kernel_release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn the_scope_of_each_type_is_what_was_measured() {
    if LinuxKernel.probe(Feature::Token) != Support::Yes {
        println!("skipped: no BPF tokens before Linux 6.9");
        return;
    }
    let programs = || bpfman_hook::sys::bpf::ids(bpfman_hook::sys::bpf::ObjectKind::Program).unwrap();
    let before = programs();
    let started = std::time::Instant::now();
    let probed = LinuxKernel.token_reach();
    println!("token reach: probed in {:?}: {:?}", started.elapsed(), probed.reach);
    assert_eq!(probed.reach.undecided, Vec::<String>::new());
    assert!(probed.bare, "no LSM program intercepts loads here, and everything was determined");
    // Other tests load programs meanwhile, which are gone when those tests end.
    let mut stayed: Vec<u32> = programs().into_iter().filter(|id| !before.contains(id)).collect();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !stayed.is_empty() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = programs();
        stayed.retain(|id| now.contains(id));
    }
    assert_eq!(stayed, [0; 0], "no program is left");
    let reach = probed.reach;

    let scope = |name: &str| reach.type_beyond(Category::Progs.value(name).unwrap());
    for name in ["kprobe", "tracepoint", "perf_event", "raw_tracepoint", "tracing", "struct_ops", "ext", "lsm", "lirc_mode2"] {
        assert!(scope(name).is_some(), "{name} needs CAP_PERFMON");
    }
    for name in SOCKETS.into_iter().chain(TCP_DATA) {
        assert!(LOOKUPS.iter().any(|lookup| is_offered(&reach, name, lookup)), "{name} sees sockets");
        assert!(scope(name).is_some(), "{name}");
    }
    for name in QUIET.into_iter().chain(CGROUP) {
        assert!(!LOOKUPS.iter().any(|lookup| is_offered(&reach, name, lookup)), "{name} sees no sockets");
    }
    for name in TCP_DATA {
        let listing = reach.listing(Category::Progs.value(name).unwrap());
        assert!(listing.keys().any(|what| what.contains("TCP data")), "{name}: {listing:?}");
    }
    let kills = |name: &str| is_offered(&reach, name, "bpf_send_signal_task");
    let killing: Vec<&str> = CGROUP.into_iter().chain(["cgroup_skb", "cgroup_sock_addr", "sched_cls", "xdp"]).collect();
    match version() {
        (6, 12) => {
            assert_eq!(reach.memory, Vec::new());
            for name in QUIET.into_iter().chain(CGROUP) {
                assert_eq!(scope(name), None, "{name}");
            }
            assert!(!killing.iter().any(|name| kills(name)), "Linux 6.12 has no such kfunc");
        }
        (6, 17..) | (7.., _) => {
            assert_eq!(reach.memory, MemoryRead::ALL, "all three ways are open");
            for name in QUIET.into_iter().chain(CGROUP).chain(SOCKETS).chain(TCP_DATA) {
                assert_eq!(scope(name).map(|beyond| beyond.what).as_deref(), Some("kernel memory"), "{name}");
            }
            for name in killing {
                assert!(kills(name), "{name}");
            }
            for name in QUIET.into_iter().chain(["sched_act", "sk_skb"]) {
                assert!(!kills(name), "{name}");
            }
        }
        other => println!("skipped: nothing was measured on Linux {other:?}"),
    }
    let maps = reach.delegation_beyond(&Preset::Maps.delegation());
    assert_eq!(maps, None, "maps loads no program");
}

#[test]
fn the_verdict_is_determined_once_per_boot() {
    if LinuxKernel.probe(Feature::Token) != Support::Yes {
        println!("skipped: no BPF tokens before Linux 6.9");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = directory.path().join("token-reach.json");
    let no_guard = file.with_file_name("guard");
    let first = token_reach(&LinuxKernel, &file, &no_guard);
    assert_eq!(kept(&file), Some(first.clone()));
    // The stored verdict is trusted: the next call returns another one that root has written.
    let text = fs::read_to_string(&file).unwrap();
    let other = text.replacen("bpf_iter_task_new", "bpf_iter_css_new", 1);
    assert_ne!(text, other);
    fs::write(&file, &other).unwrap();
    assert_ne!(token_reach(&LinuxKernel, &file, &no_guard), first);
    fs::write(&file, "not JSON").unwrap();
    assert_eq!(token_reach(&LinuxKernel, &file, &no_guard), first);
    assert_eq!(kept(&file), Some(first), "and it is kept anew");
}
