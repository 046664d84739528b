//! Objects of bpfman-hook itself, on the real kernel: calls of kernel functions, sleepable LSM programs, LSM programs of a
//! cgroup. If a kernel does not support LSM programs, the error must say so; `tests/vm` runs these tests where it does.

use std::os::fd::{AsFd, OwnedFd};

use bpfman_hook::kernel::{BuiltIn, BuiltInRequest, Feature, KernelError, Support, features};
use bpfman_hook::sys::Errno;
use bpfman_hook::sys::bpf::{self, MapCreate, ObjectKind};

use crate::objects::bed::{Bed, Cgroup, object, wait_until};
use crate::probes::{has, refusal};

fn load(programs: &[&str]) -> Result<BuiltIn, KernelError> {
    BuiltIn::load(BuiltInRequest {
        object: &object("kernel_calls"),
        programs,
        globals: vec![("watched_pid".to_owned(), std::process::id().to_ne_bytes().to_vec())],
        maps: Vec::new(),
    })
}

fn make_map() -> Result<OwnedFd, Errno> {
    bpf::map_create(&MapCreate {
        name: "made",
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
    })
}

fn seen(loaded: &BuiltIn, which: u32) -> u64 {
    let value = bpf::map_lookup(loaded.map("seen").unwrap(), &which.to_ne_bytes()).unwrap();
    u64::from_ne_bytes(value.try_into().unwrap())
}

fn kernel_has(function: &str) -> bool {
    let types =
        std::process::Command::new("bpftool").args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux"]).output().unwrap();
    assert!(types.status.success());
    String::from_utf8(types.stdout).unwrap().contains(&format!("FUNC '{function}' "))
}

#[test]
fn kernel_functions_are_called_if_the_kernel_has_them() {
    let loaded = load(&["calls_the_kernel"]).unwrap();
    let program = bpf::program_id(loaded.program("calls_the_kernel").unwrap()).unwrap();
    let link = bpf::raw_tracepoint_open(loaded.program("calls_the_kernel").unwrap(), "sys_enter").unwrap();
    std::fs::metadata("/").unwrap();
    let (called, absent) = (seen(&loaded, 0), seen(&loaded, 1));
    assert!(absent > 0, "the program did not run");
    assert_eq!(called > 0, kernel_has("bpf_rcu_read_lock"));
    // The object's BTF is accepted although it declares functions of the kernel: line information is there.
    assert_ne!(bpf::program_info(loaded.program("calls_the_kernel").unwrap()).unwrap().btf, 0);
    drop((link, loaded));
    assert!(wait_until(|| !bpf::exists(ObjectKind::Program, program)));
}

#[test]
fn kernel_functions_that_are_missing_are_named() {
    let error = refusal(load(&["calls_nowhere"]));
    let remedy = "declare it __weak and ask bpf_ksym_exists() first";
    let named = "link program calls_nowhere: it calls bpf_nowhere, which this kernel does not have";
    assert_eq!(error, format!("{named}; {remedy}"));
    let error = refusal(load(&["calls_what_is_absent"]));
    let named = "load program calls_what_is_absent: this kernel has no bpf_no_such_function, which the program uses";
    assert!(error.starts_with(named), "{error}");
}

#[test]
fn sleepable_lsm_programs_sleep() {
    let tried = load(&["sleeps"]);
    if !has(Feature::Lsm, &tried) {
        return;
    }
    let loaded = tried.unwrap();
    let link = loaded.link("sleeps").unwrap();
    make_map().unwrap();
    assert_eq!(seen(&loaded, 2), 1);
    assert_eq!(seen(&loaded, 3) == 1, kernel_has("bpf_get_task_exe_file"));
    let id = bpf::link_info(link.as_fd()).unwrap().id;
    drop((link, loaded));
    assert!(wait_until(|| !bpf::exists(ObjectKind::Link, id)));
}

#[test]
fn lsm_programs_attach_to_a_cgroup_and_go_with_it() {
    let tried = load(&["refuses_queues"]);
    if !has(Feature::Lsm, &tried) {
        return;
    }
    let bed = Bed::new();
    let make = |cgroup: &Cgroup, kind: &str, key: u32| {
        let pin = bed.bpffs.path().join("made");
        let line = format!("bpftool map create {} type {kind} key {key} value 8 entries 1 name made", pin.display());
        let made = cgroup.run(&line).success();
        assert_eq!(std::fs::remove_file(&pin).is_ok(), made);
        made
    };
    let loaded = tried.unwrap();
    let program = bpf::program_id(loaded.program("refuses_queues").unwrap()).unwrap();
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let works = |inside: &Cgroup| make(inside, "array", 4) && !make(inside, "queue", 0) && make(&outside, "queue", 0);
    assert!(make(&inside, "queue", 0));
    loaded.attach("refuses_queues", inside.fd()).unwrap();
    assert!(works(&inside));
    assert!(loaded.detach("refuses_queues", inside.fd()).unwrap());
    assert!(make(&inside, "queue", 0));
    assert!(!loaded.detach("refuses_queues", inside.fd()).unwrap());
    let link = loaded.link_to("refuses_queues", inside.fd()).unwrap();
    assert!(works(&inside));
    drop(link);
    assert!(wait_until(|| make(&inside, "queue", 0)));
    // Without any descriptor the program stays, until the cgroup is removed.
    loaded.attach("refuses_queues", inside.fd()).unwrap();
    drop(loaded);
    assert!(works(&inside));
    drop(inside);
    assert!(wait_until(|| !bpf::exists(ObjectKind::Program, program)));
    bed.end();
}

#[test]
fn without_support_the_refusal_says_what_is_missing() {
    let Support::No(why) = features::probe(Feature::Lsm) else { return };
    for program in ["sleeps", "refuses_queues"] {
        let error = refusal(load(&[program]));
        assert!(error.starts_with(&format!("load program {program}: this kernel has no LSM programs")), "{error}");
        assert!(error.contains(&why), "{error}");
    }
}
