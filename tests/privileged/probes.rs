//! Programs on functions, on the real kernel: of the kernel by kprobes and trampolines, of user space by uprobes. If a
//! kernel does not support them, the error must be the right one. `tests/vm` runs these tests on kernels that support
//! all of them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use bpfman_hook::kernel::{Feature, Kernel, KernelError, LinuxKernel, Places, Support, features};
use bpfman_hook::model::attach_point::{AttachPoint, ProbedProcess, ProgramKind, Scope, UserProbe};

use crate::objects::bed::{Bed, LoadedObject, Wanted, object, wait_until};

const FUNCTION: &str = "vfs_unlink";

fn wanted<'w>(function: &'w str, kind: ProgramKind) -> Wanted<'w> {
    let (attach, target) = match kind {
        ProgramKind::Fentry => (24, Some(FUNCTION)),
        ProgramKind::Fexit => (25, Some(FUNCTION)),
        ProgramKind::Lsm => (27, Some("inode_mkdir")),
        _ => (0, None),
    };
    Wanted { function, kind, attach, target }
}

fn load(bed: &Bed, programs: &[Wanted<'_>]) -> Result<LoadedObject, KernelError> {
    let globals = [("counted_pid", std::process::id().to_ne_bytes().to_vec())];
    bed.load(&object("probes"), Scope::Host, programs, &globals)
}

fn unlink_one() {
    drop(tempfile::NamedTempFile::new().unwrap());
}

pub fn refusal<T>(result: Result<T, KernelError>) -> String {
    let error = result.err().expect("it is refused");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// True if this kernel has the feature; otherwise the error must name the feature and the reason.
pub fn has<T>(feature: Feature, tried: &Result<T, KernelError>) -> bool {
    let Support::No(why) = features::probe(feature) else { return true };
    let error = tried.as_ref().err().unwrap_or_else(|| panic!("{feature} is refused by this kernel: {why}")).to_string();
    let named = format!("this kernel has no {feature}, which came with Linux {} ({why})", feature.since());
    assert!(error.ends_with(&named), "{error}");
    eprintln!("refused as it should be: {error}");
    false
}

#[test]
fn kprobes_count_entries_and_returns() {
    let bed = Bed::new();
    let programs = [wanted("enter_function", ProgramKind::Kprobe), wanted("leave_function", ProgramKind::Kretprobe)];
    let loaded = load(&bed, &programs).unwrap();
    let at = |ret| AttachPoint::Kprobe { function: FUNCTION.into(), offset: 0, ret };
    let tried = bed.attach(&loaded, 0, at(false), Places::default());
    if !has(Feature::Kprobe, &tried) {
        return bed.end();
    }
    let link = tried.unwrap();
    bed.attach(&loaded, 1, at(true), Places::default()).unwrap();
    let calls = || (bed.counter(&loaded, "calls", 0), bed.counter(&loaded, "calls", 1));
    unlink_one();
    assert_eq!(calls(), (1, 1));
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(wait_until(|| {
        let before = calls();
        unlink_one();
        calls() == (before.0, before.1 + 1)
    }));
    let none = AttachPoint::Kprobe { function: "no_such_function".into(), offset: 0, ret: false };
    let error = refusal(bed.attach(&loaded, 0, none, Places::default()));
    assert!(
        error.starts_with("attach kprobe enter_function to no_such_function: this kernel does not have the function"),
        "{error}"
    );
    bed.end();
}

#[test]
fn trampolines_count_entries_and_exits() {
    let bed = Bed::new();
    let programs = [wanted("enter_traced", ProgramKind::Fentry), wanted("leave_traced", ProgramKind::Fexit)];
    let tried = load(&bed, &programs);
    if !has(Feature::Tracing, &tried) {
        return bed.end();
    }
    let loaded = tried.unwrap();
    let link = bed.attach(&loaded, 0, AttachPoint::Fentry { function: FUNCTION.into() }, Places::default()).unwrap();
    bed.attach(&loaded, 1, AttachPoint::Fexit { function: FUNCTION.into() }, Places::default()).unwrap();
    let calls = || (bed.counter(&loaded, "calls", 2), bed.counter(&loaded, "calls", 3));
    unlink_one();
    assert_eq!(calls(), (1, 1));
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(wait_until(|| {
        let before = calls();
        unlink_one();
        calls() == (before.0, before.1 + 1)
    }));
    bed.end();
}

#[test]
fn functions_missing_in_the_kernels_btf_are_named() {
    let bed = Bed::new();
    let none = Wanted { target: Some("no_such_function"), ..wanted("enter_traced", ProgramKind::Fentry) };
    let error = refusal(load(&bed, &[none]));
    assert_eq!(error, "fentry enter_traced: this kernel has no function \"no_such_function\" that programs can attach to");
    if features::probe(Feature::Lsm) == Support::Yes {
        let none = Wanted { target: Some("no_such_hook"), ..wanted("refuse_mkdir", ProgramKind::Lsm) };
        assert_eq!(refusal(load(&bed, &[none])), "lsm refuse_mkdir: this kernel has no LSM hook \"no_such_hook\"");
    }
    bed.end();
}

#[test]
fn an_lsm_program_refuses() {
    let bed = Bed::new();
    let tried = load(&bed, &[wanted("refuse_mkdir", ProgramKind::Lsm)]);
    if !has(Feature::Lsm, &tried) {
        return bed.end();
    }
    let loaded = tried.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let make = || fs::create_dir(directory.path().join("made"));
    let link = bed.attach(&loaded, 0, AttachPoint::Lsm { hook: "inode_mkdir".into() }, Places::default()).unwrap();
    assert_eq!(make().unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(bed.counter(&loaded, "calls", 6), 1);
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(wait_until(|| make().is_ok()), "without the link it is not refused");
    bed.end();
}

/// The target of the uprobes. It has a symbol, and its body is not optimized away.
#[allow(unsafe_code, reason = "a name that the test can look up, and nobody else has")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bpfman_test_called_by_tests(n: u64) -> u64 {
    std::hint::black_box(n) + 1
}

/// A helper process, not a test: children of other tests run it to call the function.
#[test]
fn the_function_is_called() {
    assert_eq!(bpfman_test_called_by_tests(std::hint::black_box(1)), 2);
}

fn probe(target: &str, process: ProbedProcess) -> AttachPoint {
    let symbol = Some("bpfman_test_called_by_tests".to_owned());
    let probe = UserProbe { target: target.to_owned(), symbol, offset: 0, process, container_pid: None };
    AttachPoint::Uprobe { probe, ret: false }
}

#[test]
fn uprobes_count_in_a_file_below_a_root_directory() {
    let bed = Bed::new();
    let root = tempfile::tempdir_in("/run").unwrap();
    fs::create_dir_all(root.path().join("usr/bin")).unwrap();
    let program = root.path().join("usr/bin/program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    // An absolute link stays inside, and one that leads out finds nothing.
    symlink("/usr/bin", root.path().join("bin")).unwrap();
    symlink("../../../../../../etc/passwd", root.path().join("out")).unwrap();
    let directory = File::open(root.path()).unwrap();
    let places = Places { root: Some(directory.as_fd()), init: Some(1), ..Places::default() };
    let programs = [wanted("enter_user", ProgramKind::Uprobe), wanted("leave_user", ProgramKind::Uretprobe)];
    // Every process is counted: children call the function.
    let loaded = bed.load(&object("probes"), Scope::Host, &programs, &[]).unwrap();
    let calls = || (bed.counter(&loaded, "calls", 4), bed.counter(&loaded, "calls", 5));
    let call = || {
        let arguments = ["--exact", "probes::the_function_is_called", "--test-threads=1"];
        let output = Command::new(&program).args(arguments).output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    };
    let link = bed.attach(&loaded, 0, probe("/bin/program", ProbedProcess::Any), places).unwrap();
    let AttachPoint::Uprobe { probe: returns, .. } = probe("/usr/bin/program", ProbedProcess::Any) else { unreachable!() };
    bed.attach(&loaded, 1, AttachPoint::Uprobe { probe: returns, ret: true }, places).unwrap();
    // Another process, which never calls it.
    bed.attach(&loaded, 0, probe("/bin/program", ProbedProcess::Init), places).unwrap();
    call();
    assert_eq!(calls(), (1, 1));
    LinuxKernel.unpin(&bed.directory, &link.pin).unwrap();
    assert!(wait_until(|| {
        let before = calls();
        call();
        calls() == (before.0, before.1 + 1)
    }));

    fs::write(root.path().join("script"), "#!/bin/sh\n").unwrap();
    for (target, reason) in [
        ("/out", "No such file or directory"),
        ("/usr", "it is not a regular file"),
        ("/script", "it is not a 64-bit ELF program or library"),
        ("libc", "no such library"),
    ] {
        let error = refusal(bed.attach(&loaded, 0, probe(target, ProbedProcess::Any), places));
        assert!(error.starts_with(&format!("attach uprobe enter_user: {target:?}: ")) && error.contains(reason), "{error}");
    }
    let AttachPoint::Uprobe { probe: mut none, .. } = probe("/bin/program", ProbedProcess::Any) else { unreachable!() };
    none.symbol = Some("no_such_symbol".into());
    let error = refusal(bed.attach(&loaded, 0, AttachPoint::Uprobe { probe: none, ret: false }, places));
    assert!(error.contains("it has no function \"no_such_symbol\" in its symbol tables"), "{error}");
    bed.end();
}

#[test]
fn uprobes_are_limited_to_a_process_and_find_libraries() {
    let bed = Bed::new();
    let programs = [wanted("enter_user", ProgramKind::Uprobe)];
    let loaded = bed.load(&object("probes"), Scope::Host, &programs, &[]).unwrap();
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    bed.attach(&loaded, 0, probe(own, ProbedProcess::Pid(std::process::id())), Places::default()).unwrap();
    assert_eq!(bpfman_test_called_by_tests(std::hint::black_box(1)), 2);
    assert!(bed.counter(&loaded, "calls", 4) >= 1);
    if !Path::new("/etc/ld.so.cache").exists() {
        eprintln!("no shared libraries here");
        return bed.end();
    }
    let other = bed.load(&object("probes"), Scope::Host, &programs, &[]).unwrap();
    let AttachPoint::Uprobe { probe: mut library, .. } = probe("libc", ProbedProcess::Any) else { unreachable!() };
    library.symbol = Some("__libc_start_main".into());
    // Two versions of one function have the same address, or the error says that there are several.
    bed.attach(&other, 0, AttachPoint::Uprobe { probe: library, ret: false }, Places::default()).unwrap();
    assert!(Command::new("/bin/ls").output().unwrap().status.success());
    assert!(bed.counter(&other, "calls", 4) >= 1);
    bed.end();
}
