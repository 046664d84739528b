//! `token explain --object`: what it prints is sufficient for libbpf, and without any of the names, nothing loads.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bpfman_hook::kernel::{Feature, KERNEL_BTF, Kernel, LinuxKernel, Support, object_use};
use bpfman_hook::model::delegation::{Category, Delegation, ObjectLoader, TokenNeeds};
use bpfman_hook::sys::bpffs::{self, BpffsSpec};

use crate::bpftool::TokenBpftool;
use crate::container::Container;

/// Objects that this kernel loads, each for something else: data sections, an attach type that libbpf sends, one that it
/// does not, callbacks, several types, a helper that libbpf may replace, tracepoints, cgroup types together, networking
/// types together, maps that need types, and a structure of functions.
const OBJECTS: [&str; 15] = [
    "counter",
    "tcx",
    "connect4",
    "one_xdp",
    "subprogs",
    "lookup",
    "leak",
    "trace",
    "sock",
    "cgroup_skb",
    "demo",
    "typed",
    "kinds_net",
    "kinds_cgroup",
    "struct_ops",
];

/// Programs in these objects that must be measured.
const PROGRAMS_MIN: usize = 30;

/// Whether bpftool loads all programs of an object with a delegation and some capabilities.
fn loads(bpftool: &TokenBpftool, object: &Path, delegation: Delegation, capabilities: &[&str]) -> bool {
    // One that had a bpffs before would be taken for an interrupted start.
    let container = Container::start("");
    let (user_ns, mount_ns, root) = (container.namespace("user"), container.namespace("mnt"), container.open_root());
    let target = Path::new("/sys/fs/bpf");
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: root.as_fd(),
        target,
        delegation,
        maps: &[],
        owner: (0, 0),
    };
    bpffs::mount(&spec, Instant::now() + Duration::from_secs(10)).unwrap();
    let path = container.root.join("sys/fs/bpf");
    // The container's user cannot read a checkout in root's home directory.
    let copy = container.root.join("object.bpf.o");
    std::fs::copy(object, &copy).unwrap();
    let mut bounding = "-all".to_owned();
    for capability in capabilities {
        bounding.push_str(&format!(",+{}", capability.trim_start_matches("CAP_").to_lowercase()));
    }
    let output = Command::new("nsenter")
        .args(["-t", &container.pid().to_string(), "-U", "-m", "-n", "-S", "0", "-G", "0", "setpriv", "--inh-caps=-all"])
        .arg(format!("--bounding-set={bounding}"))
        .args(["env", &format!("LIBBPF_BPF_TOKEN_PATH={}", path.display())])
        .args(&bpftool.words)
        .args(["prog", "loadall"])
        .arg(&copy)
        .arg(path.join("loaded"))
        .output()
        .expect("nsenter of util-linux starts");
    output.status.success()
}

#[test]
fn the_printed_delegation_is_the_smallest() {
    if LinuxKernel.probe(Feature::Token) != Support::Yes {
        println!("skipped: no BPF tokens before Linux 6.9");
        return;
    }
    let bpftool = match TokenBpftool::get() {
        Ok(bpftool) => bpftool,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let mut programs = 0;
    for name in OBJECTS {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.o"));
        let used = object_use(&std::fs::read(&object).unwrap(), || std::fs::read(KERNEL_BTF).ok()).unwrap();
        programs += used.programs.len();
        let needs = TokenNeeds::of(&[used], ObjectLoader::Libbpf);
        assert!(needs.problems.is_empty(), "{name}: {:?}", needs.problems);
        let capabilities: Vec<&str> = needs.capabilities.iter().map(|needed| needed.name).collect();
        let tried = |delegation, capabilities: &[&str]| loads(&bpftool, &object, delegation, capabilities);
        assert!(tried(needs.delegation, &capabilities), "{name}: {} is not sufficient", needs.delegation);
        for category in Category::ALL {
            for bit in (0..64).filter(|bit| needs.delegation.mask(category) & 1 << bit != 0) {
                let mut less = needs.delegation;
                *less.mask_mut(category) &= !(1 << bit);
                if less.is_empty() {
                    continue;
                }
                assert!(!tried(less, &capabilities), "{name}: {} {:?} is not needed", category.word(), category.name(bit));
            }
        }
        // bpftool attaches nothing here, for which cgroup_skb alone needs a capability.
        let loading =
            needs.capabilities.iter().filter(|needed| !needed.reasons.iter().all(|why| why.starts_with("attaching ")));
        for needed in loading {
            let less: Vec<&str> = capabilities.iter().copied().filter(|name| *name != needed.name).collect();
            assert!(!tried(needs.delegation, &less), "{name}: {} is not needed", needed.name);
        }
    }
    assert!(programs >= PROGRAMS_MIN, "{programs} programs were measured");
}
