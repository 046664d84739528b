//! The types that a container or an administrator attaches without an interface: each is attached, pinned, has an effect,
//! and is gone with its pin.

use std::fs;

use bpfman_hook::kernel::{KernelError, Places};
use bpfman_hook::model::attach_point::{
    AttachPoint, CgroupAttach, PacketFamily, PacketHook, ProbedProcess, ProgramKind, Scope, UserProbe,
};
use bpfman_hook::sys::error::chain;

use super::bed::{Bed, Cgroup, LoadedObject, Netns, Wanted, wait_until};
use super::build;

fn load(bed: &Bed, function: &str, kind: ProgramKind, attach: u32, target: Option<&str>, scope: Scope) -> LoadedObject {
    let wanted = Wanted { function, kind, attach, target };
    bed.load(&build::object("kinds"), scope, &[wanted], &[]).unwrap_or_else(|error| panic!("{function}: {}", chain(&error)))
}

#[test]
fn sk_lookup_netfilter_and_flow_dissector_see_their_network_namespace() {
    let (bed, netns, other) = (Bed::new(), Netns::new(), Netns::new());
    let places = Places { netns: Some(netns.fd()), ..Places::default() };
    let lookup = load(&bed, "looks_up", ProgramKind::SkLookup, 36, None, Scope::Container);
    bed.attach(&lookup, 0, AttachPoint::Netns { kind: ProgramKind::SkLookup }, places).unwrap();
    let filter = load(&bed, "filters", ProgramKind::Netfilter, 45, None, Scope::Container);
    let at = |priority| AttachPoint::Netfilter { family: PacketFamily::Ipv4, hook: PacketHook::Input, priority };
    let filters = bed.attach(&filter, 0, at(-5), places);
    if let Ok(link) = &filters {
        let taken = bed.attach(&filter, 0, at(-5), places).unwrap_err();
        assert!(chain(&taken).contains("give another one with priority="), "{}", chain(&taken));
        assert!(link.id > 0);
    }
    netns.send_to_itself(3);
    other.send_to_itself(4);
    assert_eq!(bed.variable(&lookup, "lookups"), 3);
    match filters {
        Ok(_) => assert_eq!(bed.variable(&filter, "packets"), 3),
        Err(error) => assert!(chain(&error).contains("this kernel has no netfilter links (Linux 6.4"), "{}", chain(&error)),
    }
    let dissector = load(&bed, "dissects", ProgramKind::FlowDissector, 17, None, Scope::Container);
    bed.attach(&dissector, 0, AttachPoint::Netns { kind: ProgramKind::FlowDissector }, places).unwrap();
    let second = bed.attach(&dissector, 0, AttachPoint::Netns { kind: ProgramKind::FlowDissector }, places).unwrap_err();
    assert!(chain(&second).contains("takes one flow dissector"), "{}", chain(&second));
    bed.end();
}

#[test]
fn cgroup_programs_refuse_options_sysctls_and_devices() {
    let cases = [
        ("sets_option", CgroupAttach::Setsockopt, "options", "import socket; socket.socket().setsockopt(1, 2, 1)"),
        ("reads_sysctl", CgroupAttach::Sysctl, "names", "open('/proc/sys/kernel/ostype').read()"),
        ("opens_device", CgroupAttach::Device, "devices", "open('/dev/zero').close()"),
    ];
    for (function, attach, counter, code) in cases {
        let (bed, cgroup) = (Bed::new(), Cgroup::new());
        let places = Places { cgroup: Some(cgroup.fd()), ..Places::default() };
        let loaded = load(&bed, function, attach.kind(), attach.raw(), None, Scope::Container);
        let line = format!("python3 -c \"{code}\" 2>/dev/null");
        assert!(cgroup.run(&line).success(), "{function}: before it is attached");
        bed.attach(&loaded, 0, AttachPoint::Cgroup { attach }, places).unwrap();
        assert!(!cgroup.run(&line).success(), "{function}");
        assert!(bed.variable(&loaded, counter) > 0, "{function}");
        bed.end();
    }
}

#[test]
fn iterators_are_files() {
    let bed = Bed::new();
    let loaded = load(&bed, "each_task", ProgramKind::Iter, 28, Some("task"), Scope::Host);
    let at = AttachPoint::Loaded { kind: ProgramKind::Iter, target: "task".into() };
    let link = bed.attach(&loaded, 0, at, Places::default()).unwrap();
    let text = fs::read_to_string(link.pin.path(&bed.directory)).unwrap();
    assert!(text.lines().count() > 1 && text.lines().all(|line| line == "a task"), "{text}");
    let wanted = Wanted { function: "each_task", kind: ProgramKind::Iter, attach: 28, target: Some("nothing") };
    let error = bed.load(&build::object("kinds"), Scope::Host, &[wanted], &[]).unwrap_err();
    assert!(chain(&error).contains("this kernel has no iterator \"nothing\""), "{}", chain(&error));
    bed.end();
}

#[test]
fn typed_tracepoints_and_processor_clocks_count() {
    let bed = Bed::new();
    let traced = load(&bed, "switches_tasks", ProgramKind::TpBtf, 23, Some("sched_switch"), Scope::Host);
    let at = AttachPoint::Loaded { kind: ProgramKind::TpBtf, target: "sched_switch".into() };
    bed.attach(&traced, 0, at, Places::default()).unwrap();
    assert!(wait_until(|| bed.variable(&traced, "switches") > 0));
    let sampled = load(&bed, "samples_cpu", ProgramKind::PerfEvent, 0, None, Scope::Host);
    let at = |cpu| AttachPoint::PerfEvent { cpu, frequency: 199 };
    bed.attach(&sampled, 0, at(0), Places::default()).unwrap();
    assert!(wait_until(|| bed.variable(&sampled, "samples") > 0));
    let error = bed.attach(&sampled, 0, at(4000), Places::default()).unwrap_err();
    assert!(chain(&error).contains("the processor does not exist"), "{}", chain(&error));
    bed.end();
}

/// Kernels of some clouds have no kprobes; then the message says what is missing.
#[test]
fn many_functions_are_probed_by_one_link() {
    let bed = Bed::new();
    let unless = |error: KernelError, said: &[&str]| {
        let text = chain(&error);
        assert!(said.iter().any(|said| text.contains(said)), "{text}");
    };
    let kernel = load(&bed, "enters_many", ProgramKind::KprobeMulti, 42, None, Scope::Host);
    let at = AttachPoint::KprobeMulti { kind: ProgramKind::KprobeMulti, functions: "vfs_*".into() };
    match bed.attach(&kernel, 0, at, Places::default()) {
        Ok(_) => {
            fs::read("/proc/version").unwrap();
            assert!(bed.variable(&kernel, "functions") > 0);
        }
        Err(error) => unless(error, &["this kernel has no kprobe.multi links", "available_filter_functions"]),
    }
    let user = load(&bed, "enters_library", ProgramKind::UprobeMulti, 48, None, Scope::Host);
    let probe = |symbols: &str| UserProbe {
        target: "libc.so.6".into(),
        symbol: Some(symbols.into()),
        offset: 0,
        process: ProbedProcess::Any,
        container_pid: None,
    };
    let at = |symbols: &str| AttachPoint::UprobeMulti { kind: ProgramKind::UprobeMulti, probe: probe(symbols) };
    let error = bed.attach(&user, 0, at("malloc,there_is_no_such_function"), Places::default()).unwrap_err();
    assert!(chain(&error).contains("there_is_no_such_function"), "{}", chain(&error));
    match bed.attach(&user, 0, at("malloc,free"), Places::default()) {
        Ok(_) => {
            // The probes are in the file before the program starts; the counter follows at once.
            bed.run_named("uses_malloc");
            assert!(wait_until(|| bed.variable(&user, "functions") > 0));
        }
        Err(error) => unless(error, &["this kernel has no uprobe.multi links"]),
    }
    let call = load(&bed, "enters_call", ProgramKind::Ksyscall, 0, None, Scope::Host);
    match bed.attach(&call, 0, AttachPoint::Syscall { name: "getppid".into(), ret: false }, Places::default()) {
        Ok(_) => {
            let _ = rustix::process::getppid();
            assert!(bed.variable(&call, "calls") > 0);
        }
        Err(error) => unless(error, &["this kernel has no kprobes"]),
    }
    bed.end();
}
