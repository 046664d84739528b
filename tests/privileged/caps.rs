//! Capabilities of threads and processes on the real kernel.

use std::fs::File;
use std::os::fd::AsFd;

use bpfman_hook::hooks::stage::CAPABILITIES;
use bpfman_hook::sys::bpf::{self, MapCreate, ProgramLoad};
use bpfman_hook::sys::caps::{self, Capability, has, limit_process, with_caps};
use bpfman_hook::sys::netns;

use crate::container::{Container, in_child};

const ALL_BUT: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// An XDP program that calls a helper or returns immediately.
fn load_xdp(helper: Option<i32>) -> Result<(), String> {
    let call = |id: i32| {
        let [a, b, c, d] = id.to_ne_bytes();
        [0x85, 0, 0, 0, a, b, c, d]
    };
    let mut instructions = Vec::new();
    if let Some(helper) = helper {
        // bpf_probe_read_kernel(fp - 8, 8, 0)
        instructions.extend([
            [0xbf, 0xa1, 0, 0, 0, 0, 0, 0],
            [0x07, 1, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            [0xb7, 2, 0, 0, 8, 0, 0, 0],
            [0xb7, 3, 0, 0, 0, 0, 0, 0],
            call(helper),
        ]);
    }
    instructions.extend([[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]]);
    let program = ProgramLoad {
        name: "caps",
        program_type: 6,
        expected_attach_type: 37,
        attach_btf_id: 0,
        attach_to: None,
        modules: &[],
        flags: 0,
        instructions: &instructions,
        license: "GPL",
        debug: None,
        token: None,
    };
    bpf::program_load(&program, None).map(drop).map_err(|e| e.to_string())
}

#[test]
fn a_thread_with_bpf_and_net_admin_loads_programs_that_cannot_read_the_kernel() {
    const PROBE_READ_KERNEL: i32 = 113;
    assert!(has(Capability::CAP_PERFMON) && has(Capability::CAP_SYS_ADMIN), "run this as root");
    // With all capabilities, the program that reads kernel memory is accepted: this is what the restriction prevents.
    load_xdp(Some(PROBE_READ_KERNEL)).unwrap();
    let (plain, reading) = with_caps(&ALL_BUT, || (load_xdp(None), load_xdp(Some(PROBE_READ_KERNEL)))).unwrap();
    assert_eq!(plain, Ok(()));
    assert!(reading.is_err());
    let with_perfmon = [ALL_BUT.as_slice(), &[Capability::CAP_PERFMON]].concat();
    with_caps(&with_perfmon, || load_xdp(Some(PROBE_READ_KERNEL))).unwrap().unwrap();
}

#[test]
fn a_thread_without_cap_bpf_cannot_create_maps() {
    let map = MapCreate {
        name: "caps",
        map_type: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        flags: 0,
        extra: 0,
        numa_node: 0,
        kernel_value: 0,
        module: None,
        inner: None,
        types: None,
        token: None,
        exclusive: None,
    };
    assert!(with_caps(&[Capability::CAP_NET_ADMIN], || bpf::map_create(&map).is_err()).unwrap());
    assert!(with_caps(&[Capability::CAP_BPF], || bpf::map_create(&map).is_ok()).unwrap());
}

#[test]
fn a_limited_process_cannot_regain_capabilities_by_exec() {
    let (effective, after_exec) = in_child(|| {
        let keep = [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN, Capability::CAP_SETPCAP];
        limit_process(&keep).unwrap();
        let held = |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
            u64::from_str_radix(&line, 16).unwrap()
        };
        caps::bound_children().unwrap();
        let own = held(&std::fs::read_to_string("/proc/self/status").unwrap());
        let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
        (own, held(&String::from_utf8(output.stdout).unwrap()))
    });
    let expected = (1 << 39) | (1 << 21) | (1 << 8);
    assert_eq!((effective, after_exec), (expected, expected));
    assert!(caps::has(Capability::CAP_NET_ADMIN), "the runner keeps its own");
}

#[test]
fn capabilities_that_the_caller_lacks_are_not_an_error() {
    let permitted = in_child(|| {
        limit_process(&[Capability::CAP_BPF, Capability::CAP_SETPCAP]).unwrap();
        // The second time, CAP_NET_ADMIN is already gone.
        limit_process(&[Capability::CAP_NET_ADMIN, Capability::CAP_BPF]).unwrap();
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        text.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim().to_owned()
    });
    assert_eq!(u64::from_str_radix(&permitted, 16).unwrap(), 1 << 39);
}

#[test]
fn killing_a_child_of_another_user_needs_cap_kill() {
    let ended = |keep: &[Capability]| {
        let mut child = std::process::Command::new("setpriv");
        let mut child = child.args(["--reuid=12345", "--clear-groups", "--", "sleep", "60"]).spawn().unwrap();
        let changed = || std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap().contains("Uid:\t12345");
        while !changed() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let ended = with_caps(keep, || child.kill().is_ok()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        ended
    };
    let less = CAPABILITIES.into_iter().filter(|c| *c != Capability::CAP_KILL && has(*c)).collect::<Vec<_>>();
    assert!(!ended(&less));
    assert!(ended(&[less.as_slice(), &[Capability::CAP_KILL]].concat()));
}

#[test]
fn only_a_thread_enters_another_network_namespace() {
    let container = Container::start("ip link set lo name inner");
    let theirs = container.namespace("net");
    let ours = File::open("/proc/self/ns/net").unwrap();
    let names = |list: Vec<bpfman_hook::model::attach_point::Interface>| list.into_iter().map(|i| i.name).collect::<Vec<_>>();
    let before = names(netns::interfaces(ours.as_fd()).unwrap());
    assert!(before.iter().any(|name| name == "lo"));
    assert_eq!(names(netns::interfaces(theirs.as_fd()).unwrap()), ["inner"]);
    assert_ne!(netns::cookie(theirs.as_fd()).unwrap(), netns::cookie(ours.as_fd()).unwrap());
    assert_eq!(netns::survey(theirs.as_fd()).unwrap().0, netns::cookie(theirs.as_fd()).unwrap());
    assert_eq!(names(netns::interfaces(ours.as_fd()).unwrap()), before);
}
