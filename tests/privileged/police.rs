//! Policing of a cgroup on the real kernel: what is refused, what is counted, and what a policed process can do against it.
//! If a kernel does not call LSM programs, the error must say so; `tests/vm` runs these tests where it does.

use std::cell::RefCell;
use std::path::Path;

use bpfman_hook::kernel::police::PoliceProgram;
use bpfman_hook::kernel::{Feature, Kernel as _, KernelError, LinuxKernel};
use bpfman_hook::model::police::{CallProfile, CountedSet, Police};
use bpfman_hook::model::policy::Policy;
use bpfman_hook::sys::bpf::{self, ObjectKind};

use crate::objects::bed::{Bed, Cgroup, wait_until};
use crate::probes::{has, refusal};

/// `police = RULE` in a container rule.
fn police(rule: &str) -> Police {
    parsed(&format!("[[container]]\npolice = {rule}\n"))
}

fn parsed(text: &str) -> Police {
    let policy = Policy::parse(&[("/p.toml".into(), text.to_owned())]).unwrap();
    policy.containers[0].police.clone().unwrap()
}

/// What loading a pinned program or creating a pinned map needs, with what bpftool asks the kernel about it.
const BASE: &str = "presets = [\"probes\"], maps = [\"array\"], progs = [\"xdp\", \"kprobe\", \"tracepoint\"], \
                    attachs = [\"xdp\"], cmds = [\"map_create\", \"obj_get\"]";

fn test_object(name: &str) -> String {
    format!("{}/tests/bpf/{name}.bpf.o", env!("CARGO_MANIFEST_DIR"))
}

/// A cgroup with a bpffs for what its commands pin.
struct Policed {
    bed: Bed,
    cgroup: Cgroup,
    /// The programs that policing loaded, by id.
    programs: RefCell<Vec<u32>>,
}

impl Policed {
    fn new() -> Self {
        Self { bed: Bed::new(), cgroup: Cgroup::new(), programs: RefCell::default() }
    }

    fn directory(&self) -> &Path {
        self.bed.bpffs.path()
    }

    fn attach(&self, police: &Police) -> Result<(), KernelError> {
        let before = bpf::ids(ObjectKind::Program).unwrap();
        let attached = LinuxKernel.police(self.directory(), police, self.cgroup.fd());
        let new = bpf::ids(ObjectKind::Program).unwrap().into_iter().filter(|id| !before.contains(id));
        *self.programs.borrow_mut() = new.collect();
        attached
    }

    /// True if bpftool succeeds in the cgroup; its pin is removed.
    fn makes(&self, arguments: &str) -> bool {
        let pin = self.directory().join("made");
        let made =
            self.cgroup.run(&format!("bpftool {} >/dev/null", arguments.replace("PIN", pin.to_str().unwrap()))).success();
        let removed = std::fs::remove_file(&pin).or_else(|_| std::fs::remove_dir_all(&pin)).is_ok();
        assert_eq!(removed, made, "{arguments}");
        made
    }

    fn map(&self, kind: &str) -> bool {
        self.makes(&format!("map create PIN type {kind} key 4 value 8 entries 1 name made"))
    }

    fn load(&self, object: &str) -> bool {
        self.makes(&format!("prog load {} PIN", test_object(object)))
    }

    fn refused(&self, set: CountedSet, name: &str) -> u64 {
        let calls = LinuxKernel.policed_calls(self.directory()).unwrap().unwrap();
        calls.iter().find(|call| call.set == set && call.name == name).map_or(0, |call| call.refused)
    }

    /// Ends a test on a kernel that does not police.
    fn end_without(self) {
        let Self { bed, cgroup, .. } = self;
        drop(cgroup);
        bed.end();
    }

    /// Removes the counters and the cgroup, and with it the programs.
    fn end(self) {
        let Self { bed, cgroup, programs } = self;
        for n in 0..2 {
            let _ = std::fs::remove_file(bed.bpffs.path().join(format!("police_{n}")));
        }
        drop(cgroup);
        let programs = programs.into_inner();
        assert!(!programs.is_empty() && wait_until(|| programs.iter().all(|id| !bpf::exists(ObjectKind::Program, *id))));
        bed.end();
    }
}

#[test]
fn what_is_not_allowed_is_refused_and_counted() {
    let policed = Policed::new();
    assert!(policed.map("hash") && policed.load("one_xdp"));
    let tried = policed.attach(&police(&format!("{{ mode = \"enforce\", {BASE} }}")));
    if !has(Feature::Lsm, &tried) {
        return policed.end_without();
    }
    tried.unwrap();
    // Nothing but the cgroup keeps the programs.
    assert!(policed.programs.borrow().iter().all(|id| bpf::exists(ObjectKind::Program, *id)));
    assert!(policed.map("array"));
    assert!(!policed.map("hash"));
    assert_eq!(policed.refused(CountedSet::Maps, "hash"), 1);
    assert_eq!(policed.refused(CountedSet::Maps, "array"), 0);
    assert!(policed.load("one_xdp"));
    assert!(!policed.load("cgroup_skb"));
    assert!(policed.refused(CountedSet::Progs, "cgroup_skb") > 0);
    // A cgroup below inherits it, and others do not have it.
    let sub = "mkdir \"$d/sub\" && echo $$ >\"$d/sub/cgroup.procs\" && bpftool map create PIN type hash key 4 value 8 entries 1 name m";
    let pin = policed.directory().join("below");
    let path = "$(sed -n 's,^0::,/sys/fs/cgroup,p' /proc/self/cgroup)";
    let line = format!(
        "d={path}; {}; s=$?; echo $$ >\"$d/cgroup.procs\"; rmdir \"$d/sub\"; exit $s",
        sub.replace("PIN", pin.to_str().unwrap())
    );
    assert!(!policed.cgroup.run(&line).success() && !pin.exists());
    assert_eq!(policed.refused(CountedSet::Maps, "hash"), 2);
    let other = Cgroup::new();
    assert!(other.run(&format!("bpftool map create {} type hash key 4 value 8 entries 1 name m", pin.display())).success());
    std::fs::remove_file(pin).unwrap();
    policed.end();
}

#[test]
fn a_warning_refuses_nothing_and_counts() {
    let policed = Policed::new();
    let tried = policed.attach(&police("{ mode = \"warn\" }"));
    if !has(Feature::Lsm, &tried) {
        return policed.end_without();
    }
    tried.unwrap();
    assert!(policed.map("hash") && policed.load("cgroup_skb"));
    assert_eq!(policed.refused(CountedSet::Maps, "hash"), 1);
    assert!(policed.refused(CountedSet::Progs, "cgroup_skb") > 0);
    assert!(policed.refused(CountedSet::Cmds, "prog_load") > 0);
    policed.end();
}

#[test]
fn a_policed_process_cannot_undo_it() {
    let everything = "cmds = [\"map_create\", \"map_lookup_elem\", \"map_update_elem\", \"map_delete_elem\", \"map_get_next_key\", \
                      \"obj_get\", \"obj_pin\", \"prog_attach\", \"prog_detach\", \"prog_get_next_id\", \"prog_get_fd_by_id\", \
                      \"map_get_next_id\", \"map_get_fd_by_id\", \"obj_get_info_by_fd\", \"prog_query\", \"btf_load\", \
                      \"btf_get_fd_by_id\", \"link_get_next_id\", \"link_get_fd_by_id\", \"task_fd_query\"], maps = [\"array\"]";
    for mode in ["enforce", "warn"] {
        let policed = Policed::new();
        let tried = policed.attach(&police(&format!("{{ mode = \"{mode}\", {everything} }}")));
        if !has(Feature::Lsm, &tried) {
            return policed.end_without();
        }
        tried.unwrap();
        let enforces = mode == "enforce";
        assert_eq!(policed.map("hash"), !enforces);
        // The program is detached from the process's own cgroup, by its id.
        let path = "/sys/fs/cgroup$(sed -n 's,^0::,,p' /proc/self/cgroup)";
        let detach = "bpftool cgroup detach \"$d\" lsm_cgroup id $(bpftool prog show name police_call | sed -n '1s/:.*//p')";
        let detached = policed.cgroup.run(&format!("d={path}; {detach}")).success();
        assert_eq!(detached, !enforces, "{mode}");
        if enforces {
            assert!(policed.refused(CountedSet::Cmds, "prog_detach") > 0);
        }
        // The counters and the sets are written, by the pin and by the id.
        let counters = policed.directory().join("police_0");
        let zero = format!("bpftool map update pinned {} key 0 0 0 0 value {}", counters.display(), "0 ".repeat(582 * 24));
        assert!(!policed.cgroup.run(&zero).success());
        let kfuncs = policed.directory().join("police_1");
        if kfuncs.exists() {
            let key = "1 0 0 0 0 0 0 0";
            let list = format!("bpftool map update pinned {} key {key} value {}", kfuncs.display(), "1 ".repeat(32));
            assert!(!policed.cgroup.run(&list).success());
        }
        let sets =
            "bpftool map update id $(bpftool map show | sed -n 's/^\\([0-9]*\\): array  name .*rodata .*/\\1/p' | tail -1)";
        assert!(!policed.cgroup.run(&format!("{sets} key 0 0 0 0 value {}", "255 ".repeat(88))).success());
        // It still holds, with its sets.
        assert_eq!(policed.map("hash"), !enforces);
        policed.end();
    }
}

#[test]
fn a_helper_that_is_not_listed_does_not_come_back_under_another_number() {
    let helpers = "\"map_update_elem\", \"ktime_get_coarse_ns\", \"get_current_comm\"";
    let tried = Policed::new();
    let rule = |more: &str| police(&format!("{{ mode = \"enforce\", {BASE}, helpers = [{helpers}{more}] }}"));
    let attached = tried.attach(&rule(""));
    if !has(Feature::Lsm, &attached) {
        return tried.end_without();
    }
    if let Err(KernelError::NoLoadHook) = attached {
        let sentence = refusal(attached);
        assert!(sentence.contains("no LSM hook bpf_prog_load (Linux 6.9); remove helpers and kfuncs"), "{sentence}");
        println!("without the hook: {sentence}");
        return tried.end_without();
    }
    attached.unwrap();
    // An object that reads kernel memory: libbpf replaces the helper that is refused by the older one.
    let load = |policed: &Policed| policed.makes(&format!("prog load {} PIN type tracepoint", test_object("reads_kernel")));
    assert!(!load(&tried));
    assert!(tried.refused(CountedSet::Helpers, "probe_read_kernel") > 0);
    assert!(tried.refused(CountedSet::Helpers, "probe_read") > 0, "libbpf has not tried the other number");
    tried.end();
    for (more, loads) in [(", \"probe_read_kernel\"", true), (", \"probe_read\"", true), (", \"probe_read_user\"", false)] {
        let policed = Policed::new();
        policed.attach(&rule(more)).unwrap();
        assert_eq!(load(&policed), loads, "{more}");
        policed.end();
    }
}

#[test]
fn a_recorded_profile_allows_what_was_recorded() {
    let policed = Policed::new();
    let attach = format!(
        "bpftool prog load {} PIN && bpftool net attach xdpgeneric pinned PIN dev lo && bpftool net detach xdpgeneric dev lo",
        test_object("one_xdp")
    );
    let attach = attach.replace("PIN", policed.directory().join("made").to_str().unwrap());
    let work = |cgroup: &Cgroup| {
        let done = cgroup.run(&format!("{attach} >/dev/null")).success();
        let _ = std::fs::remove_file(policed.directory().join("made"));
        done
    };
    let recorder = PoliceProgram::load(&police("{ mode = \"warn\" }"));
    if !has(Feature::Lsm, &recorder) {
        return policed.end_without();
    }
    let recorder = recorder.unwrap();
    let links = recorder.link(policed.cgroup.fd()).unwrap();
    assert!(work(&policed.cgroup));
    let calls = recorder.calls().unwrap();
    let has_functions = recorder.has_functions();
    drop((links, recorder));
    let text = CallProfile { of: "the test", calls: &calls, has_functions }.to_string();
    println!("{text}");
    assert!(text.contains("progs = [") && text.contains("\"xdp\""), "{text}");
    policed.attach(&parsed(&text)).unwrap();
    assert!(work(&policed.cgroup), "{text}");
    let unused = ["hash", "lru_hash"].into_iter().find(|kind| !text.contains(&format!("\"{kind}\""))).unwrap();
    assert!(!policed.map(unused));
    let calls = LinuxKernel.policed_calls(policed.directory()).unwrap().unwrap();
    let refused: Vec<_> = calls.iter().filter(|call| call.refused > 0).map(|call| call.name.as_str()).collect();
    assert_eq!(refused, [unused]);
    policed.end();
}

#[test]
fn without_lsm_programs_the_refusal_says_what_is_missing() {
    let policed = Policed::new();
    let tried = policed.attach(&police("\"enforce\""));
    if has(Feature::Lsm, &tried) {
        tried.unwrap();
        return policed.end();
    }
    let sentence = refusal(tried);
    assert!(sentence.starts_with("judge each call: this kernel has no LSM programs"), "{sentence}");
    policed.end_without();
}
