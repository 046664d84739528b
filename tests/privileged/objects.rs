//! BPF objects on the real kernel: every supported program type is loaded, attached, pinned, checked for its effect,
//! detached by removing its pin, and gone.

pub mod bed;

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;

use bpfman_hook::kernel::{Feature, Kernel, KernelError, LinuxKernel, Objection, Places, Support, features, inspect, pins};
use bpfman_hook::model::attach_point::{
    AttachPoint, CgroupAttach, Direction, Interface, NetnsRecord, ProgramKind, Scope, TracepointName, XdpMode,
};
use bpfman_hook::model::ids::PinName;
use bpfman_hook::model::plan::PlannedLink;
use bpfman_hook::model::record::{LinkRecord, LinkState};
use bpfman_hook::sys::bpf;
use bpfman_hook::sys::{Errno, netns};

use bed::{Bed, Cgroup, Netns, Wanted, object, wait_until};

const XDP: u32 = 37;

fn lo() -> Interface {
    Interface { name: "lo".into(), index: 1 }
}

fn xdp_on_lo() -> AttachPoint {
    AttachPoint::Xdp { iface: lo(), mode: None }
}

fn xdp(function: &str) -> Wanted<'_> {
    Wanted { function, kind: ProgramKind::Xdp, attach: XDP, target: None }
}

fn on_cgroup(function: &str, attach: CgroupAttach) -> Wanted<'_> {
    Wanted { function, kind: attach.kind(), attach: attach.raw(), target: None }
}

fn cgroup_point(attach: CgroupAttach) -> AttachPoint {
    AttachPoint::Cgroup { attach }
}

fn refused<T>(result: Result<T, KernelError>) -> KernelError {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error,
    }
}

/// The message and its causes, as main prints them.
fn chain(error: &KernelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn an_xdp_and_a_cgroup_program_share_a_map_and_are_gone_when_unpinned() {
    let (bed, netns, cgroup) = (Bed::new(), Netns::new(), Cgroup::new());
    let programs = [xdp("count_packets"), on_cgroup("count_egress", CgroupAttach::Egress)];
    let loaded = bed.load(&object("demo"), Scope::Container, &programs, &[]).unwrap();
    let places = Places { netns: Some(netns.fd()), cgroup: Some(cgroup.fd()), ..Places::default() };
    let arrived = bed.attach(&loaded, 0, xdp_on_lo(), places).unwrap();
    let sent = bed.attach(&loaded, 1, cgroup_point(CgroupAttach::Egress), places).unwrap();

    assert_eq!((bed.counter(&loaded, "packets", 0), bed.counter(&loaded, "packets", 1)), (0, 0));
    netns.send_to_itself(5);
    assert_eq!((bed.counter(&loaded, "packets", 0), bed.counter(&loaded, "packets", 1)), (5, 0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(cgroup.connect(listener.local_addr().unwrap().port()).success());
    let after = bed.counter(&loaded, "packets", 1);
    assert!(after >= 3, "a handshake and an end are three packets at least, and {after} were counted");
    assert_eq!(bed.counter(&loaded, "packets", 0), 5, "the other network namespace is not counted");

    // Both links come from the kernel, and one object has one map.
    let info = inspect::link(&bed.directory, &arrived.pin).unwrap().unwrap();
    assert_eq!((info.info.id, info.info.program, info.info.interface), (arrived.id, loaded.ids.programs[0], Some(1)));
    let info = inspect::link(&bed.directory, &sent.pin).unwrap().unwrap();
    assert_eq!((info.info.program, info.info.cgroup), (loaded.ids.programs[1], Some(cgroup.id())));
    let program = inspect::program(&bed.directory, &PinName::program(0)).unwrap().unwrap();
    assert_eq!(program.info.name, "count_packets");
    assert_eq!(program.info.maps, [loaded.map_id("packets")]);
    assert!(program.memory.is_some_and(|bytes| bytes > 0) && program.info.verified_instructions > 0);
    let map = bpf::map_info(bed.open_map(&loaded, "packets").as_fd()).unwrap();
    assert_eq!((map.name.as_str(), map.max_entries, map.value_size), ("packets", 2, 8));

    // Removing the pin detaches.
    assert!(LinuxKernel.unpin(&bed.directory, &arrived.pin).unwrap());
    assert!(!LinuxKernel.unpin(&bed.directory, &arrived.pin).unwrap());
    assert_eq!(inspect::link(&bed.directory, &arrived.pin).unwrap(), None);
    assert!(netns.is_quiet(|| bed.counter(&loaded, "packets", 0)));
    let found = pins::list(bed.bpffs.path()).unwrap();
    assert_eq!(found.owners, [(bed.owner, vec![sent.pin, PinName::map(0), PinName::program(0), PinName::program(1)])]);
    assert!(found.foreign.is_empty());
    bed.end();
}

#[test]
fn variables_start_with_the_requested_values() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let globals = [
        ("step", 5u32.to_ne_bytes().to_vec()),
        ("mode", 7u32.to_ne_bytes().to_vec()),
        ("ports", [80u16, 2, 0, 0].iter().flat_map(|p| p.to_ne_bytes()).collect()),
        ("label", b"xyz\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        ("base", 1000u64.to_ne_bytes().to_vec()),
        ("seen", 40u64.to_ne_bytes().to_vec()),
    ];
    let loaded = bed.load(&object("counter"), Scope::Container, &[xdp("count")], &globals).unwrap();
    let places = Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() };
    bed.attach(&loaded, 0, xdp_on_lo(), places).unwrap();
    netns.send_to_itself(2);
    assert_eq!(bed.counter(&loaded, "counter", 0), 2 * (5 + 2 + 1000 + 10000));
    assert_eq!(bed.variable(&loaded, "base"), 1000 - 2 * 3, "each packet adds offset, which is -3 unless it is set");
    assert_eq!(bed.variable(&loaded, "seen"), 42, ".bss accepts values as well");

    // .rodata can no longer be written, nor can a map that was to be frozen; others stay writable.
    let rodata = bed.open_map(&loaded, ".rodata");
    let value = bpf::map_lookup(rodata.as_fd(), &[0; 4]).unwrap();
    assert_eq!(bpf::map_update(rodata.as_fd(), &[0; 4], &value), Err(Errno::PERM));
    let counter = bed.open_map(&loaded, "counter");
    assert_eq!(bpf::map_update(counter.as_fd(), &[0; 4], &[0; 8]), Ok(()));

    drop((rodata, counter));
    let wrong = refused(bed.load(&object("counter"), Scope::Container, &[xdp("count")], &[("nothing", vec![1])]));
    assert!(matches!(&wrong, KernelError::NoGlobal { name, there } if name == "nothing" && there.contains("step")), "{wrong}");
    let short = refused(bed.load(&object("counter"), Scope::Container, &[xdp("count")], &[("step", vec![1])]));
    assert_eq!(short.to_string(), "global step takes 4 bytes, not 1");
    bed.end();
}

#[test]
fn cgroup_programs_count_and_refuse() {
    let (bed, cgroup) = (Bed::new(), Cgroup::new());
    let places = Places { netns: None, cgroup: Some(cgroup.fd()), ..Places::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();

    let kinds = [on_cgroup("received", CgroupAttach::Ingress), on_cgroup("sent", CgroupAttach::Egress)];
    let traffic = bed.load(&object("cgroup_skb"), Scope::Container, &kinds, &[]).unwrap();
    bed.attach(&traffic, 0, cgroup_point(CgroupAttach::Ingress), places).unwrap();
    bed.attach(&traffic, 1, cgroup_point(CgroupAttach::Egress), places).unwrap();
    let kinds = [on_cgroup("made", CgroupAttach::SockCreate), on_cgroup("connected", CgroupAttach::SockOps)];
    let sockets = bed.load(&object("sock"), Scope::Container, &kinds, &[]).unwrap();
    bed.attach(&sockets, 0, cgroup_point(CgroupAttach::SockCreate), places).unwrap();
    bed.attach(&sockets, 1, cgroup_point(CgroupAttach::SockOps), places).unwrap();
    assert!(cgroup.connect(port).success());
    assert!(bed.counter(&traffic, "traffic", 0) >= 1 && bed.counter(&traffic, "traffic", 1) >= 3);
    assert_eq!((bed.counter(&sockets, "sockets", 0), bed.counter(&sockets, "sockets", 1)), (1, 1));

    let globals = [("blocked_port", port.to_ne_bytes().to_vec())];
    let kinds = [on_cgroup("block_connect4", CgroupAttach::Connect4)];
    let blocker = bed.load(&object("connect4"), Scope::Container, &kinds, &globals).unwrap();
    let link = bed.attach(&blocker, 0, cgroup_point(CgroupAttach::Connect4), places).unwrap();
    assert!(!cgroup.connect(port).success(), "the connect is refused");
    assert!(cgroup.connect(other.local_addr().unwrap().port()).success(), "another port is not");
    assert_eq!(bed.counter(&blocker, "refused", 0), 1);
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(wait_until(|| cgroup.connect(port).success()), "without the link it is not refused");

    // AF_INET is 2.
    let globals = [("refused_family", 2u32.to_ne_bytes().to_vec())];
    let kinds = [on_cgroup("made", CgroupAttach::SockCreate)];
    let family = bed.load(&object("sock"), Scope::Container, &kinds, &globals).unwrap();
    bed.attach(&family, 0, cgroup_point(CgroupAttach::SockCreate), places).unwrap();
    assert!(!cgroup.connect(port).success(), "the socket is refused");
    assert_eq!(bed.counter(&family, "sockets", 0), 1);
    bed.end();
}

#[test]
fn tcx_programs_count_both_directions() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let tcx = |function| Wanted { function, kind: ProgramKind::Tcx, attach: 0, target: None };
    let loaded = bed.load(&object("tcx"), Scope::Container, &[tcx("ingress"), tcx("egress")], &[]).unwrap();
    let places = Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() };
    let point = |direction| AttachPoint::Tcx { iface: lo(), direction };
    let tried = bed.attach(&loaded, 0, point(Direction::Ingress), places);
    if let Support::No(why) = features::probe(Feature::Tcx) {
        let error = refused(tried);
        assert!(error.to_string().contains("this kernel has no tcx links, which came with Linux 6.6"), "{error}");
        eprintln!("skipped: {why}");
        return bed.end();
    }
    let link = tried.unwrap();
    bed.attach(&loaded, 1, point(Direction::Egress), places).unwrap();
    netns.send_to_itself(4);
    assert_eq!((bed.counter(&loaded, "traffic", 0), bed.counter(&loaded, "traffic", 1)), (4, 4));
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(netns.is_quiet(|| bed.counter(&loaded, "traffic", 0)));
    let sent = bed.counter(&loaded, "traffic", 1);
    netns.send_to_itself(4);
    assert_eq!(bed.counter(&loaded, "traffic", 1), sent + 4, "the other link remains");
    bed.end();
}

#[test]
fn classifiers_are_tcx_links_or_filters_and_are_removed_from_the_record() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let tc = |function| Wanted { function, kind: ProgramKind::Tc, attach: 0, target: None };
    let loaded = bed.load(&object("tcx"), Scope::Container, &[tc("ingress"), tc("egress")], &[]).unwrap();
    let places = Places { netns: Some(netns.fd()), ..Places::default() };
    let point = |direction| AttachPoint::Tc { iface: lo(), direction, priority: 50 };
    let ingress = bed.attach(&loaded, 0, point(Direction::Ingress), places).unwrap();
    let egress = bed.attach(&loaded, 1, point(Direction::Egress), places).unwrap();
    netns.send_to_itself(4);
    let seen = || (bed.counter(&loaded, "traffic", 0), bed.counter(&loaded, "traffic", 1));
    assert_eq!(seen(), (4, 4));
    let filters = matches!(features::probe(Feature::Tcx), Support::No(_));
    let inspected = inspect::link(&bed.directory, &ingress.pin).unwrap().unwrap();
    assert_eq!((inspected.info.id == 0, inspected.info.program), (filters, loaded.ids.programs[0]));

    // Each is found again by the namespace's cookie alone. A thread keeps the namespace visible, as a container's
    // process would.
    let cookie = netns::cookie(netns.fd()).unwrap();
    let record = |pin: &PinName, direction, cookie| LinkRecord {
        pin: pin.clone(),
        program: loaded.programs[0].pin.clone(),
        at: point(direction),
        order: None,
        netns: Some(NetnsRecord { cookie, path: None }),
        metadata: std::collections::BTreeMap::new(),
        state: LinkState::Attached(None),
    };
    netns.while_a_process_is_in_it(|| {
        assert!(LinuxKernel.detach(&bed.directory, &record(&ingress.pin, Direction::Ingress, cookie)).unwrap());
    });
    assert!(!LinuxKernel.detach(&bed.directory, &record(&ingress.pin, Direction::Ingress, cookie)).unwrap());
    assert!(netns.is_quiet(|| seen().0));
    let sent = seen().1;
    netns.send_to_itself(4);
    assert_eq!(seen().1, sent + 4, "the other one remains");
    netns.while_a_process_is_in_it(|| {
        assert!(LinuxKernel.detach(&bed.directory, &record(&egress.pin, Direction::Egress, cookie)).unwrap());
    });
    assert!(netns.is_quiet(|| seen().1));
    bed.end();
}

#[test]
fn tracing_programs_limit_themselves_to_a_cgroup() {
    let (bed, cgroup, elsewhere) = (Bed::new(), Cgroup::new(), Cgroup::new());
    let wanted = [
        Wanted { function: "trace_exec", kind: ProgramKind::Tracepoint, attach: 0, target: None },
        Wanted { function: "raw_trace_exec", kind: ProgramKind::RawTracepoint, attach: 0, target: None },
    ];
    let container = refused(bed.load(&object("trace"), Scope::Container, &wanted, &[]));
    assert!(chain(&container).contains("its kind needs host scope"), "{}", chain(&container));

    let globals = [("bpfman_cgroup_id", cgroup.id().to_ne_bytes().to_vec())];
    let loaded = bed.load(&object("trace"), Scope::Host, &wanted, &globals).unwrap();
    let name = |name: &str| TracepointName { category: "sched".into(), name: name.into() };
    let link =
        bed.attach(&loaded, 0, AttachPoint::Tracepoint { tracepoint: name("sched_process_exec") }, Places::default()).unwrap();
    bed.attach(&loaded, 1, AttachPoint::RawTracepoint { name: "sched_process_exec".into() }, Places::default()).unwrap();
    let executed = || (bed.counter(&loaded, "executed", 0), bed.counter(&loaded, "executed", 1));
    cgroup.run("exec true");
    assert_eq!(executed(), (1, 1));
    elsewhere.run("exec true");
    assert_eq!(executed(), (1, 1), "another cgroup is not counted");
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    let detached = wait_until(|| {
        let before = executed();
        cgroup.run("exec true");
        executed() == (before.0, before.1 + 1)
    });
    assert!(detached, "the other one remains: {:?}", executed());

    for at in [
        AttachPoint::Tracepoint { tracepoint: name("no_such_event") },
        AttachPoint::Tracepoint { tracepoint: name("../../current_tracer") },
    ] {
        let shown = at.to_string();
        let error = refused(bed.attach(&loaded, 0, at, Places::default()));
        assert_eq!(error.to_string(), format!("attach tracepoint trace_exec: this kernel has no tracepoint {shown}"));
    }
    let none = AttachPoint::RawTracepoint { name: "no_such_event".into() };
    let error = refused(bed.attach(&loaded, 1, none, Places::default()));
    assert_eq!(error.to_string(), "attach raw_tracepoint raw_trace_exec: this kernel has no tracepoint no_such_event");
    bed.end();
}

#[test]
fn called_functions_are_loaded_with_the_program() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let loaded = bed.load(&object("subprogs"), Scope::Container, &[xdp("add_up")], &[]).unwrap();
    bed.attach(&loaded, 0, xdp_on_lo(), Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() }).unwrap();
    netns.send_to_itself(1);
    assert_eq!(bed.counter(&loaded, "sum", 0), 4 + 8 + 12, "four times 1, 2 and 3");
    bed.end();
}

#[test]
fn core_reads_this_kernels_structures() {
    let bed = Bed::new();
    let raw = |function| Wanted { function, kind: ProgramKind::RawTracepoint, attach: 0, target: None };
    let loaded = bed.load(&object("core"), Scope::Host, &[raw("read_task")], &[]).unwrap();
    bed.attach(&loaded, 0, AttachPoint::RawTracepoint { name: "sched_process_exec".into() }, Places::default()).unwrap();
    let pid = bed.run_named("core-probe");
    let found: Vec<u64> = (0..10).map(|n| bed.counter(&loaded, "found", n)).collect();
    const COMM_LENGTH: u64 = 16;
    const RINGBUF: u64 = 27;
    assert_eq!(found, [u64::from(pid), u64::from(pid), COMM_LENGTH, 1, 1, 1, 0, 0, RINGBUF, 0]);

    let never = refused(bed.load(&object("core"), Scope::Host, &[raw("read_never")], &[]));
    assert_eq!(
        never.to_string(),
        "load program read_never: this kernel has no task_struct___never.no_such_member, which the program uses"
    );
    bed.end();
}

#[test]
fn only_objects_with_core_relocations_need_the_kernels_types() {
    let bed = Bed::new();
    let raw = [Wanted { function: "read_task", kind: ProgramKind::RawTracepoint, attach: 0, target: None }];
    let (without, with) = bed::without_kernel_types(|| {
        let plain = bed.load(&object("demo"), Scope::Container, &[xdp("count_packets")], &[]);
        (plain.map(drop), bed.load(&object("core"), Scope::Host, &raw, &[]).map(drop))
    });
    without.unwrap();
    let error = refused(with);
    assert!(matches!(&error, KernelError::Feature { feature: Feature::Btf, .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("resolve the object's CO-RE relocations: this kernel has no kernel BTF, which came with Linux 5.4"),
        "{error}"
    );
    bed.end();
}

#[test]
fn maps_of_every_kind_are_created_and_frozen_if_requested() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let loaded = bed.load_frozen(&object("maps"), Scope::Container, &[xdp("use_all")], &["shared", "per_cpu"]).unwrap();
    bed.attach(&loaded, 0, xdp_on_lo(), Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() }).unwrap();
    netns.send_to_itself(1);
    let shared = bed.open_map(&loaded, "shared");
    let event = bpf::map_lookup(shared.as_fd(), &[0; 4]).unwrap();
    assert!(event.iter().any(|byte| *byte != 0), "the program can still write a frozen map");
    assert_eq!(bpf::map_update(shared.as_fd(), &[0; 4], &event), Err(Errno::PERM));
    let events = bpf::map_info(bed.open_map(&loaded, "events").as_fd()).unwrap();
    assert_eq!(events.max_entries, 10000u32.div_ceil(4096).next_power_of_two() * 4096);
    assert_eq!(bpf::map_lookup(bed.open_map(&loaded, "per_cpu").as_fd(), &[0; 4]), Err(Errno::OPNOTSUPP));
    // LIBBPF_PIN_BY_NAME shares a map with the first process that pins it; here the map belongs to the container.
    let again = bed.load(&object("maps"), Scope::Container, &[xdp("use_all")], &[]).unwrap();
    assert_ne!(again.map_id("shared"), loaded.map_id("shared"));
    assert!(!Path::new("/sys/fs/bpf/shared").exists());

    drop(shared);
    // tests/objects shows what is in such a map.
    bed.load(&object("maps"), Scope::Container, &[xdp("use_filled")], &[]).unwrap();
    bed.end();
}

#[test]
fn objects_without_types_and_with_strange_sections_load() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let globals = [("step", 3u32.to_ne_bytes().to_vec())];
    let loaded = bed.load(&object("legacy"), Scope::Container, &[xdp("count")], &globals).unwrap();
    let link =
        bed.attach(&loaded, 0, xdp_on_lo(), Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() }).unwrap();
    netns.send_to_itself(2);
    assert_eq!(bed.counter(&loaded, "counter", 0), 6);
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    bed.load(&object("sections"), Scope::Container, &[xdp("wanted")], &[]).unwrap();
    bed.end();
}

#[test]
fn a_verifier_error_contains_line_and_reason() {
    let bed = Bed::new();
    let error = refused(bed.load(&object("broken"), Scope::Container, &[xdp("passes"), xdp("reads_too_far")], &[]));
    let KernelError::Rejected { program, errno, log } = &error else { panic!("{error}") };
    assert_eq!((program.as_str(), *errno), ("reads_too_far", Errno::ACCESS));
    assert!(log.line.as_deref().is_some_and(|line| line.contains("data[100]")), "{:?}", log.line);
    // "of the packet" or "of the allowed memory range", depending on the kernel.
    assert!(log.reason.starts_with("R1 ") && log.reason.contains("is outside of the"), "{}", log.reason);
    assert!(log.tail.ends_with(&log.reason) && log.tail.contains("invalid access to packet"), "{}", log.tail);
    assert!(error.to_string().len() < 300, "{error}");
    // The other program is accepted, and what was not requested is not checked.
    bed.load(&object("broken"), Scope::Container, &[xdp("passes")], &[]).unwrap();
    bed.end();
}

#[test]
fn container_scope_cannot_read_kernel_memory_or_addresses() {
    let bed = Bed::new();
    let thieves =
        [xdp("read_kernel_xdp"), on_cgroup("read_kernel_skb", CgroupAttach::Egress), xdp("tell_address"), xdp("copy_padding")];
    // Helpers are refused by name by us, the rest by the verifier.
    for thief in &thieves[..2] {
        let error = refused(bed.load(&object("leak"), Scope::Container, std::slice::from_ref(thief), &[]));
        let KernelError::BeyondContainer(refusal) = &error else { panic!("{}: {error}", thief.function) };
        assert_eq!((refusal.program.as_str(), &refusal.objection), (thief.function, &Objection::Helper(113)));
    }
    for thief in &thieves[2..] {
        let error = refused(bed.load(&object("leak"), Scope::Container, std::slice::from_ref(thief), &[]));
        let KernelError::NeedsHostScope { program, log } = &error else { panic!("{}: {error}", thief.function) };
        assert_eq!(program, thief.function);
        assert!(error.to_string().contains("it needs host scope"), "{error}");
        let reasons = ["leaks addr", "read from stack"];
        assert!(reasons.iter().any(|reason| log.reason.contains(reason)), "{}", log.reason);
        assert_eq!(error.to_string().contains("initialize every byte of the stack"), thief.function == "copy_padding");
    }
    // Only the scope makes the difference: the same programs are accepted with CAP_PERFMON.
    bed.load(&object("leak"), Scope::Host, &thieves, &[]).unwrap();
    bed.end();
}

#[test]
fn calls_beyond_container_scope_need_host_scope() {
    let bed = Bed::new();
    let tcx = |function| Wanted { function, kind: ProgramKind::Tcx, attach: 0, target: None };
    let own = [xdp("own_xdp"), tcx("own_tcx"), on_cgroup("own_skb", CgroupAttach::Egress)];
    bed.load(&object("lookup"), Scope::Container, &own, &[]).unwrap();
    bed.load(&object("loops"), Scope::Container, &[xdp("bounded")], &[]).unwrap();
    bed.load(&object("tagged"), Scope::Container, &[xdp("nonnull")], &[]).unwrap();
    let beyond = [
        ("lookup", xdp("first_xdp"), Objection::Netns(99)),
        ("lookup", tcx("any_tcx"), Objection::Netns(99)),
        ("loops", xdp("many"), Objection::Rounds),
        ("loops", xdp("as_many_as_bytes"), Objection::Rounds),
        ("loops", xdp("nested"), Objection::InCallback(181)),
        ("loops", xdp("nested_in_map"), Objection::InCallback(181)),
        ("tagged", xdp("untrusted"), Objection::Tag("arg:untrusted".to_owned())),
    ];
    for (name, wanted, objection) in beyond {
        let error = refused(bed.load(&object(name), Scope::Container, &[wanted], &[]));
        let KernelError::BeyondContainer(refusal) = &error else { panic!("{}: {error}", wanted.function) };
        assert_eq!((refusal.program.as_str(), &refusal.objection), (wanted.function, &objection));
    }
    // Only the scope makes the difference: the kernel itself accepts them.
    bed.load(&object("lookup"), Scope::Host, &[xdp("first_xdp"), tcx("any_tcx")], &[]).unwrap();
    bed.load(&object("loops"), Scope::Host, &[xdp("many"), xdp("nested")], &[]).unwrap();
    bed.end();
}

#[test]
fn load_errors_name_the_reason() {
    let bed = Bed::new();
    let load = |name: &str, wanted: Wanted<'_>| chain(&refused(bed.load(&object(name), Scope::Container, &[wanted], &[])));
    assert_eq!(load("demo", xdp("nothing")), "the object has no program \"nothing\"; it has count_packets, count_egress");
    assert_eq!(
        load("demo", on_cgroup("count_packets", CgroupAttach::Egress)),
        "program count_packets is xdp by its section \"xdp\", not cgroup_skb"
    );
    let iter = Wanted { function: "in_fmod_ret", kind: ProgramKind::Iter, attach: 28, target: None };
    assert!(load("sections", iter).starts_with("program in_fmod_ret is fmod_ret by its section"), "{}", load("sections", iter));
    let said = load("ksym", xdp("reads_cpu_variable"));
    assert!(said.starts_with("program reads_cpu_variable uses the kernel variable bpf_prog_active"), "{said}");
    let broken = refused(LinuxKernel.describe(&object("demo")[..1000]));
    assert!(chain(&broken).starts_with("read the BPF object: "), "{}", chain(&broken));
    bed.end();
}

#[test]
fn attach_errors_name_the_reason() {
    let (bed, netns, cgroup) = (Bed::new(), Netns::new(), Cgroup::new());
    let loaded = bed.load(
        &object("demo"),
        Scope::Container,
        &[xdp("count_packets"), on_cgroup("count_egress", CgroupAttach::Egress)],
        &[],
    );
    let loaded = loaded.unwrap();
    let places = Places { netns: Some(netns.fd()), cgroup: Some(cgroup.fd()), ..Places::default() };
    let fails = |n: usize, at: AttachPoint, places: Places<'_>| chain(&refused(bed.attach(&loaded, n, at, places)));

    let first = bed.attach(&loaded, 0, xdp_on_lo(), places).unwrap();
    assert_eq!(
        fails(0, xdp_on_lo(), places),
        "attach xdp count_packets to lo: another XDP program is already on lo; one interface takes only one XDP program"
    );
    LinuxKernel.unpin(&bed.directory, &first.pin).unwrap();
    let native = AttachPoint::Xdp { iface: lo(), mode: Some(XdpMode::Native) };
    let text = fails(0, native, places);
    assert!(text.contains("the driver has no native XDP; leave out mode=native or use mode=skb"), "{text}");
    let gone = AttachPoint::Xdp { iface: Interface { name: "eth7".into(), index: 77 }, mode: None };
    assert_eq!(fails(0, gone, places), "attach xdp count_packets to eth7: interface eth7 no longer exists");
    assert_eq!(
        fails(0, xdp_on_lo(), Places::default()),
        "attach xdp count_packets: the container's network namespace is not open"
    );
    assert_eq!(
        fails(1, cgroup_point(CgroupAttach::Egress), Places::default()),
        "attach cgroup_skb count_egress: the container's cgroup is not open"
    );
    let text = fails(1, cgroup_point(CgroupAttach::Connect4), places);
    assert!(text.contains("the program was not loaded for this attach type"), "{text}");
    let no_cgroup = std::fs::File::open("/run").unwrap();
    let text = fails(
        1,
        cgroup_point(CgroupAttach::Egress),
        Places { netns: None, cgroup: Some(no_cgroup.as_fd()), ..Places::default() },
    );
    assert!(text.contains("it is not a directory of the cgroup2 hierarchy"), "{text}");

    // A pin that cannot be created leaves nothing attached.
    let taken = PlannedLink {
        program: PinName::program(0),
        function: "count_packets".into(),
        at: xdp_on_lo(),
        pin: PinName::program(0),
        order: None,
        netns: None,
    };
    let error = refused(LinuxKernel.attach(&bed.directory, &taken, places));
    assert!(chain(&error).contains("pin a link at"), "{}", chain(&error));
    netns.send_to_itself(3);
    assert_eq!(bed.counter(&loaded, "packets", 0), 0);
    let missing = PlannedLink { program: PinName::program(9), pin: PinName::link(9), ..taken };
    let error = refused(LinuxKernel.attach(&bed.directory, &missing, places));
    assert!(chain(&error).contains("open the program at") && chain(&error).contains("No such file"), "{}", chain(&error));
    bed.end();
}

#[test]
fn native_xdp_runs_if_the_driver_supports_it() {
    let (bed, netns) = (Bed::new(), Netns::new());
    netns.ip("link add v0 type veth peer name v1");
    netns.ip("link set v0 up");
    netns.ip("link set v1 up");
    let iface = netns::interfaces(netns.fd()).unwrap().into_iter().find(|i| i.name == "v0").unwrap();
    let loaded = bed.load(&object("demo"), Scope::Container, &[xdp("count_packets")], &[]).unwrap();
    let places = Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() };
    for (mode, shown) in [(Some(XdpMode::Native), "xdp "), (Some(XdpMode::Skb), "xdpgeneric "), (None, "xdp ")] {
        let link = bed.attach(&loaded, 0, AttachPoint::Xdp { iface: iface.clone(), mode }, places).unwrap();
        let listing = netns.ip("link show v0");
        assert!(listing.contains(shown), "{mode:?}: {listing}");
        LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    }
    bed.end();
}

#[test]
fn a_link_outlives_its_creator_and_its_network_namespace() {
    let (bed, netns) = (Bed::new(), Netns::new());
    let loaded = bed.load(&object("demo"), Scope::Container, &[xdp("count_packets")], &[]).unwrap();
    let link =
        bed.attach(&loaded, 0, xdp_on_lo(), Places { netns: Some(netns.fd()), cgroup: None, ..Places::default() }).unwrap();
    drop(netns);
    // The interface is gone with its namespace, and the pin can still be opened: release needs only the pin.
    let ended = wait_until(|| inspect::link(&bed.directory, &link.pin).unwrap().unwrap().info.interface == Some(0));
    assert!(ended, "the link releases the interface");
    bed.end();
}

#[test]
fn every_feature_probe_agrees_with_the_kernel() {
    for feature in Feature::ALL {
        let found = LinuxKernel.probe(feature);
        eprintln!("{feature}: {found:?}");
        assert!(!matches!(found, Support::Unknown(_)), "{feature}: {found:?}");
    }
    assert_eq!(features::probe(Feature::Btf) == Support::Yes, Path::new("/sys/kernel/btf/vmlinux").exists());
    assert_eq!(features::probe(Feature::CgroupLink), Support::Yes);
    assert_eq!(features::probe(Feature::PerfLink), Support::Yes);
    // A process without any capability gets the answer that it cannot be determined.
    let blind = bpfman_hook::sys::caps::with_caps(&[], || features::probe(Feature::Tcx)).unwrap();
    assert!(matches!(blind, Support::Unknown(_)), "{blind:?}");
}

#[test]
fn twenty_loads_at_once() {
    let bed = Bed::new();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| bed.load(&object("demo"), Scope::Container, &[xdp("count_packets")], &[]).unwrap());
        }
    });
    bed.end();
}

#[test]
fn tracepoints_are_found_where_tracefs_is_not_mounted() {
    let id = |category, name| bpfman_hook::sys::tracefs::tracepoint_id(category, name).unwrap();
    // Other tests mount other file systems meanwhile.
    let mounts = || -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains("tracefs") || line.contains("debugfs")).map(str::to_owned).collect()
    };
    let before = mounts();
    assert!(id("sched", "sched_switch").is_some_and(|id| id > 0));
    assert_eq!(id("sched", "no_such_event"), None);
    assert_eq!(mounts(), before, "no mount appears");
}
