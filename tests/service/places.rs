//! Programs of every type, with the command line and with the service: loaded, attached, checked for their effect,
//! detached, attached again and unloaded. If a kernel does not support a type, the error must say so. `tests/vm` runs
//! these tests on kernels that support all of them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bpfman_hook::grpc::wire::attach_info::Info;
use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::prog_specific_info::Info as Specific;
use bpfman_hook::grpc::wire::{
    AttachInfo, AttachRequest, BytecodeLocation, DetachRequest, FentryAttachInfo, FentryLoadInfo, FexitAttachInfo,
    FexitLoadInfo, GetRequest, KprobeAttachInfo, LoadInfo, LoadRequest, ProgSpecificInfo, TcAttachInfo, TcxAttachInfo,
    TracepointAttachInfo, UnloadRequest, UprobeAttachInfo, XdpAttachInfo,
};
use bpfman_hook::kernel::{Feature, Support, features};
use bpfman_hook::sys::bpf::{self, ObjectKind};
use serde_json::Value;

use crate::support::helper_process;
use crate::support::kernel;
use crate::support::netns::Netns;
use crate::support::process::{PATIENCE, ended, eventually};
use crate::world::{World, run};

/// An environment in which programs of every type have something to observe: a network namespace, this process, and one
/// with its own root directory.
struct Ground {
    world: World,
    netns: Netns,
    elsewhere: Elsewhere,
}

/// A program type under test.
struct Kind {
    /// Its name on the command line.
    word: &'static str,
    /// `BpfmanProgramType`; None for a type that the service's interface does not have.
    number: Option<i32>,
    object: &'static str,
    function: &'static str,
    /// The function or hook it is loaded for.
    target: Option<&'static str>,
    /// The feature that a kernel may lack.
    feature: Option<Feature>,
    /// The map in which it counts.
    map: &'static str,
    cli: fn(&Ground) -> Vec<String>,
    wire: fn(&Ground) -> Option<Info>,
    effect: Effect,
}

/// What shows that a program is attached.
enum Effect {
    /// A counter that increases when this is done.
    Counts(fn(&Ground)),
    /// A directory cannot be created.
    Refuses,
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn classifier(word: &str, ground: &Ground, direction: &str) -> Vec<String> {
    words(&format!("{word} --direction {direction} --iface lo --priority 40 --netns {}", ground.netns.path()))
}

fn tc(ground: &Ground, direction: &str) -> Option<Info> {
    let (iface, direction, netns) = ("lo".to_owned(), direction.to_owned(), Some(ground.netns.path()));
    Some(Info::TcAttachInfo(TcAttachInfo { priority: 40, iface, direction, netns, ..TcAttachInfo::default() }))
}

fn tcx(ground: &Ground, direction: &str) -> Option<Info> {
    let (iface, direction, netns) = ("lo".to_owned(), direction.to_owned(), Some(ground.netns.path()));
    Some(Info::TcxAttachInfo(TcxAttachInfo { priority: 40, iface, direction, netns, ..TcxAttachInfo::default() }))
}

fn kprobe(_: &Ground) -> Option<Info> {
    Some(Info::KprobeAttachInfo(KprobeAttachInfo { fn_name: UNLINK.to_owned(), ..KprobeAttachInfo::default() }))
}

fn packets(ground: &Ground) {
    ground.netns.send_to_itself(2);
}

fn unlink(_: &Ground) {
    drop(tempfile::NamedTempFile::new().unwrap());
}

fn called(_: &Ground) {
    assert_eq!(bpfman_test_called_by_clients(std::hint::black_box(1)), 2);
}

fn own_program() -> String {
    std::env::current_exe().unwrap().display().to_string()
}

const UNLINK: &str = "vfs_unlink";
const CALLED: &str = "bpfman_test_called_by_clients";
const ELSEWHERE: &str = "/usr/bin/program";

#[rustfmt::skip]
fn kinds() -> Vec<Kind> {
    use Effect::{Counts, Refuses};
    let (xdp, tc_number, tracepoint, kprobe_number, uprobe, fentry, fexit, tcx_number) = (0, 1, 2, 3, 4, 5, 6, 7);
    vec![
        Kind {
            word: "xdp", number: Some(xdp), object: "counter", function: "count", target: None, feature: None, map: "counter",
            cli: |ground| words(&format!("xdp --iface lo --priority 40 --netns {}", ground.netns.path())),
            wire: |ground| {
                let (iface, netns) = ("lo".to_owned(), Some(ground.netns.path()));
                Some(Info::XdpAttachInfo(XdpAttachInfo { iface, priority: 40, netns, ..XdpAttachInfo::default() }))
            },
            effect: Counts(packets),
        },
        Kind {
            word: "tcx", number: Some(tcx_number), object: "tcx", function: "ingress", target: None,
            feature: Some(Feature::Tcx), map: "traffic",
            cli: |ground| classifier("tcx", ground, "ingress"), wire: |ground| tcx(ground, "ingress"), effect: Counts(packets),
        },
        // A filter if the kernel has no tcx.
        Kind {
            word: "tc", number: Some(tc_number), object: "tcx", function: "ingress", target: None, feature: None, map: "traffic",
            cli: |ground| classifier("tc", ground, "ingress"), wire: |ground| tc(ground, "ingress"), effect: Counts(packets),
        },
        Kind {
            word: "tc", number: Some(tc_number), object: "tcx", function: "egress", target: None, feature: None, map: "traffic",
            cli: |ground| classifier("tc", ground, "egress"), wire: |ground| tc(ground, "egress"), effect: Counts(packets),
        },
        Kind {
            word: "tracepoint", number: Some(tracepoint), object: "trace", function: "trace_exec", target: None,
            feature: None, map: "executed",
            cli: |_| words("tracepoint --tracepoint sched/sched_process_exec"),
            wire: |_| {
                let tracepoint = "sched/sched_process_exec".to_owned();
                Some(Info::TracepointAttachInfo(TracepointAttachInfo { tracepoint, ..TracepointAttachInfo::default() }))
            },
            effect: Counts(|_| assert!(Command::new("true").status().unwrap().success())),
        },
        Kind {
            word: "kprobe", number: Some(kprobe_number), object: "probes", function: "enter_function", target: None,
            feature: Some(Feature::Kprobe), map: "calls",
            cli: |_| words("kprobe --fn-name vfs_unlink"), wire: kprobe, effect: Counts(unlink),
        },
        // bpfman has no such type name: the program's section tells that it is a return probe.
        Kind {
            word: "kprobe", number: Some(kprobe_number), object: "probes", function: "leave_function", target: None,
            feature: Some(Feature::Kprobe), map: "calls",
            cli: |_| words("kprobe --fn-name vfs_unlink"), wire: kprobe, effect: Counts(unlink),
        },
        Kind {
            word: "fentry", number: Some(fentry), object: "probes", function: "enter_traced", target: Some(UNLINK),
            feature: Some(Feature::Tracing), map: "calls",
            cli: |_| words("fentry"), wire: |_| Some(Info::FentryAttachInfo(FentryAttachInfo::default())), effect: Counts(unlink),
        },
        Kind {
            word: "fexit", number: Some(fexit), object: "probes", function: "leave_traced", target: Some(UNLINK),
            feature: Some(Feature::Tracing), map: "calls",
            cli: |_| words("fexit"), wire: |_| Some(Info::FexitAttachInfo(FexitAttachInfo::default())), effect: Counts(unlink),
        },
        Kind {
            word: "lsm", number: None, object: "probes", function: "refuse_mkdir", target: Some("inode_mkdir"),
            feature: Some(Feature::Lsm), map: "calls",
            cli: |_| words("lsm"), wire: |_| None, effect: Refuses,
        },
        Kind {
            word: "uprobe", number: Some(uprobe), object: "probes", function: "enter_user", target: None,
            feature: Some(Feature::Uprobe), map: "calls",
            cli: |_| words(&format!("uprobe --target {} --fn-name {CALLED} --pid {}", own_program(), std::process::id())),
            wire: |_| {
                let (fn_name, pid) = (Some(CALLED.to_owned()), Some(std::process::id().cast_signed()));
                let target = own_program();
                Some(Info::UprobeAttachInfo(UprobeAttachInfo { fn_name, target, pid, ..UprobeAttachInfo::default() }))
            },
            effect: Counts(called),
        },
        Kind {
            word: "uprobe", number: Some(uprobe), object: "probes", function: "leave_user", target: None,
            feature: Some(Feature::Uprobe), map: "calls",
            cli: |ground| words(&format!("uprobe --target {ELSEWHERE} --fn-name {CALLED} --container-pid {}", ground.elsewhere.pid())),
            wire: |ground| {
                let (fn_name, container_pid) = (Some(CALLED.to_owned()), Some(ground.elsewhere.pid().cast_signed()));
                let target = ELSEWHERE.to_owned();
                Some(Info::UprobeAttachInfo(UprobeAttachInfo { fn_name, target, container_pid, ..UprobeAttachInfo::default() }))
            },
            effect: Counts(|ground| ground.elsewhere.calls()),
        },
    ]
}

impl Kind {
    /// Values of the object's variables: which process or cgroup is counted.
    fn globals(&self) -> Vec<(String, Vec<u8>)> {
        match self.object {
            // The process with its own root directory is a different process.
            "probes" if self.function == "leave_user" => Vec::new(),
            "probes" => vec![("counted_pid".to_owned(), std::process::id().to_ne_bytes().to_vec())],
            "trace" => vec![("bpfman_cgroup_id".to_owned(), own_cgroup().to_ne_bytes().to_vec())],
            _ => Vec::new(),
        }
    }

    fn path(&self) -> String {
        format!("{}/tests/bpf/{}.bpf.o", env!("CARGO_MANIFEST_DIR"), self.object)
    }

    /// True if this kernel supports the type; otherwise the error must name the missing feature and the reason.
    fn is_here<T>(&self, tried: &Result<T, String>) -> bool {
        let Some(feature) = self.feature else { return true };
        let Support::No(why) = features::probe(feature) else { return true };
        let error = tried.as_ref().err().unwrap_or_else(|| panic!("{feature} is refused by this kernel: {why}"));
        let named = format!("this kernel has no {feature}, which came with Linux {} ({why})", feature.since());
        assert!(error.ends_with(&named), "{error}");
        eprintln!("refused as it should be: {error}");
        false
    }
}

/// The id of the cgroup of this process, in which its children start.
fn own_cgroup() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup of version 2");
    std::fs::metadata(kernel::cgroup2().join(path)).unwrap().ino()
}

/// The interface under test.
#[derive(Debug, Clone, Copy)]
enum Door {
    CommandLine,
    Service,
}

impl Door {
    fn load(self, ground: &Ground, kind: &Kind) -> Result<u32, String> {
        match self {
            Self::CommandLine => {
                let target = kind.target.map(|target| format!(":{target}")).unwrap_or_default();
                let program = format!("{}:{}{target}", kind.word, kind.function);
                let mut args =
                    vec!["load".to_owned(), "file".into(), "--path".into(), kind.path(), "--programs".into(), program];
                for (name, value) in kind.globals() {
                    let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                    args.extend(["--global".to_owned(), format!("{name}={digits}")]);
                }
                let loaded = command(ground, &args)?;
                Ok(id_of(&loaded[0]))
            }
            Self::Service => {
                let fn_name = kind.target.unwrap_or_default().to_owned();
                let specific = match kind.word {
                    "fentry" => Some(Specific::FentryLoadInfo(FentryLoadInfo { fn_name })),
                    "fexit" => Some(Specific::FexitLoadInfo(FexitLoadInfo { fn_name })),
                    _ => None,
                };
                let info = specific.map(|info| ProgSpecificInfo { info: Some(info) });
                let program_type = kind.number.expect("a type of the service's");
                let request = LoadRequest {
                    bytecode: Some(BytecodeLocation { location: Some(Location::File(kind.path())) }),
                    global_data: kind.globals().into_iter().collect::<HashMap<_, _>>(),
                    info: vec![LoadInfo { name: kind.function.to_owned(), program_type, info }],
                    ..LoadRequest::default()
                };
                run(async {
                    let loaded = ground.world.client().await.load(request).await.map_err(said)?;
                    Ok(loaded.into_inner().programs[0].kernel_info.as_ref().unwrap().id)
                })
            }
        }
    }

    fn attach(self, ground: &Ground, kind: &Kind, id: u32) -> Result<u32, String> {
        match self {
            Self::CommandLine => {
                let args = [vec!["attach".to_owned(), id.to_string()], (kind.cli)(ground)].concat();
                Ok(id_of(&command(ground, &args)?))
            }
            Self::Service => {
                let request = AttachRequest { id, attach: Some(AttachInfo { info: (kind.wire)(ground) }) };
                run(async { Ok(ground.world.client().await.attach(request).await.map_err(said)?.into_inner().link_id) })
            }
        }
    }

    /// The links of a program, as the interface reports them.
    fn links(self, ground: &Ground, id: u32) -> Vec<u32> {
        match self {
            Self::CommandLine => {
                let shown = ground.world.lab.json(&["get", "program", &id.to_string()]);
                shown["links"].as_array().into_iter().flatten().map(|link| link["id"].as_u64().unwrap() as u32).collect()
            }
            Self::Service => run(async {
                let got = ground.world.client().await.get(GetRequest { id }).await.unwrap().into_inner();
                assert_eq!(got.kernel_info.unwrap().id, id);
                got.info.unwrap().links
            }),
        }
    }

    fn detach(self, ground: &Ground, link_id: u32) {
        match self {
            Self::CommandLine => _ = ground.world.lab.ours(&["detach", &link_id.to_string()]),
            Self::Service => run(async {
                ground.world.client().await.detach(DetachRequest { link_id }).await.unwrap();
            }),
        }
    }

    fn unload(self, ground: &Ground, id: u32) {
        match self {
            Self::CommandLine => _ = ground.world.lab.ours(&["unload", &id.to_string()]),
            Self::Service => run(async {
                ground.world.client().await.unload(UnloadRequest { id }).await.unwrap();
            }),
        }
    }
}

fn said(status: tonic::Status) -> String {
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
    status.message().to_owned()
}

/// Runs one of our commands; returns its JSON or its error message.
fn command(ground: &Ground, args: &[String]) -> Result<Value, String> {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["-o", "json"]).collect();
    let ended = ended(&mut ground.world.lab.command(&args));
    if ended.status.success() {
        Ok(serde_json::from_str(&ended.stdout).unwrap())
    } else {
        Err(ended.stderr.trim_end().to_owned())
    }
}

fn id_of(object: &Value) -> u32 {
    object["id"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_else(|| panic!("no id in {object}"))
}

/// The sum of the counters of the only program that is loaded.
fn count(ground: &Ground, map: &str) -> u64 {
    let owners = std::fs::read_dir(ground.world.lab.bpffs()).unwrap().map(|owner| owner.unwrap().path().join("maps").join(map));
    let pins: Vec<_> = owners.filter(|pin| pin.exists()).collect();
    let [pin] = pins.as_slice() else { panic!("not one map {map}: {pins:?}") };
    let pinned = bpf::open_pin(pin).unwrap();
    let entries = (0_u32..).map_while(|key| bpf::map_lookup(pinned.as_fd(), &key.to_ne_bytes()).ok());
    entries.map(|value| u64::from_ne_bytes(value.try_into().expect("a counter has eight bytes"))).sum()
}

/// Does what the program observes, and returns whether the program had its effect.
fn has_effect(ground: &Ground, kind: &Kind) -> bool {
    match kind.effect {
        Effect::Counts(act) => {
            let before = count(ground, kind.map);
            act(ground);
            count(ground, kind.map) > before
        }
        Effect::Refuses => {
            let directory = tempfile::tempdir_in(ground.world.lab.path("bin"));
            directory.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        }
    }
}

fn goes_all_the_way(ground: &Ground, kind: &Kind, door: Door) {
    let context = format!("{} {} by {door:?}", kind.word, kind.function);
    let loaded = door.load(ground, kind);
    if kind.target.is_some() && !kind.is_here(&loaded) {
        return;
    }
    let program = loaded.unwrap_or_else(|error| panic!("{context}: {error}"));
    let attached = door.attach(ground, kind, program);
    if kind.target.is_none() && !kind.is_here(&attached) {
        return door.unload(ground, program);
    }
    let link = attached.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(has_effect(ground, kind), "{context}: attached, but without effect");
    assert_eq!(door.links(ground, program), [link], "{context}");
    door.detach(ground, link);
    assert!(door.links(ground, program).is_empty(), "{context}");
    // The kernel may let a program run for a moment longer.
    eventually(&format!("{context}: the end of its effect"), PATIENCE, || (!has_effect(ground, kind)).then_some(()));
    let again = door.attach(ground, kind, program).unwrap_or_else(|error| panic!("{context}: again: {error}"));
    assert_ne!(again, link, "{context}: ids are never reused");
    assert!(has_effect(ground, kind), "{context}: attached again, but without effect");
    // Unloading removes its link as well.
    door.unload(ground, program);
    eventually(&format!("{context}: the end of the program"), PATIENCE, || {
        let there = |kind, id| bpf::ids(kind).unwrap().contains(&id);
        (!there(ObjectKind::Program, program) && !there(ObjectKind::Link, again)).then_some(())
    });
}

#[test]
fn every_type_by_the_command_line() {
    let ground = Ground::new();
    for kind in kinds() {
        goes_all_the_way(&ground, &kind, Door::CommandLine);
    }
    ground.end();
}

#[test]
fn every_type_by_the_service() {
    let ground = Ground::new();
    let service = ground.world.start(&["--timeout", "0"]);
    for kind in kinds().iter().filter(|kind| kind.number.is_some()) {
        goes_all_the_way(&ground, kind, Door::Service);
    }
    service.stop();
    ground.end();
}

impl Ground {
    fn new() -> Self {
        let world = World::new();
        let elsewhere = Elsewhere::new(&world.lab.path("elsewhere"));
        Self { world, netns: Netns::new(), elsewhere }
    }

    fn end(self) {
        drop((self.netns, self.elsewhere));
        self.world.lab.residue();
    }
}

/// The target of the uprobes. It has a symbol, and its body is not optimized away.
#[allow(unsafe_code, reason = "a name that the test can look up, and nobody else has")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bpfman_test_called_by_clients(n: u64) -> u64 {
    std::hint::black_box(n) + 1
}

/// The variable that makes this test binary the process with its own root directory.
const ROLE: &str = "BPFMAN_HOOK_TEST_ELSEWHERE";

/// A helper process, not a test: `Elsewhere` runs it in another root directory, where it calls the function on request.
#[test]
fn elsewhere_process() {
    let Some(_) = helper_process::task(ROLE) else { return };
    for line in std::io::stdin().lines() {
        let n = line.unwrap().parse().unwrap();
        println!("called {}", bpfman_test_called_by_clients(std::hint::black_box(n)));
    }
}

/// A process whose root directory has this binary at another path.
struct Elsewhere {
    child: Child,
    said: std::cell::RefCell<BufReader<std::process::ChildStdout>>,
}

impl Elsewhere {
    fn new(root: &Path) -> Self {
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::copy(own_program(), root.join(&ELSEWHERE[1..])).unwrap();
        let mut command = Command::new("chroot");
        command.arg(root).args([ELSEWHERE, "--exact", "places::elsewhere_process", "--nocapture"]).env(ROLE, "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let elsewhere = Self { child, said: said.into() };
        // Once it responds, it is in its root directory.
        elsewhere.calls();
        elsewhere
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn calls(&self) {
        writeln!(self.child.stdin.as_ref().unwrap(), "7").unwrap();
        let mut line = String::new();
        while !line.contains("called 8") {
            line.clear();
            assert_ne!(self.said.borrow_mut().read_line(&mut line).unwrap(), 0, "the process elsewhere ended");
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
