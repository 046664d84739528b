//! `token`: explain what a BPF token is, try one from inside a container, or mount a delegated bpffs by hand.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::{Format, TokenCreateArgs, TokenProbeArgs};
use crate::frontend::{fail, print};
use crate::lifecycle::error::chain;
use crate::model::annotations::{BpffsRequest, PREFIX, Request};
use crate::model::delegation::Delegation;
use crate::model::ids::Pid;
use crate::sys::bpffs::{self, Spec};
use crate::sys::pid::{self, Namespace};
use crate::sys::token::probe::{self, Outcome, Packets, Step};

/// How long `token create` waits for the process that works in the other namespaces.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that can be delegated, which `any` stands for where no policy is asked.
const EVERYTHING: Delegation = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };

/// The text of `token explain`; 80 columns.
pub const EXPLAIN: &str = "\
A BPF token lets a process in a user namespace use bpf(2) for what somebody
outside allowed: these commands, map types, program types and attach types.
The permission is not in the process. It is in a bpffs that was made for its
user namespace, and the token is a file descriptor made from that bpffs.

    host                                 container (its own user namespace)
    ------------------------------       ----------------------------------
 1  podman, runc ... start it, with  ->  init waits; namespaces and mounts
    delegate=networking among its        are there, the workload is not
    annotations
 2  bpfman-hook reads the policy
 3  bpfman-hook, in the container's  ->  fsopen(\"bpf\"): the bpffs belongs to
    user and mount namespace             the container's user namespace
 4  bpfman-hook, back as root on the
    host: sets delegate_cmds, _maps,
    _progs, _attachs; makes the bpffs
 5  mounts it at bpffs-path          ->  /sys/fs/bpf
 6  tries it once                    ->  BPF_TOKEN_CREATE, closed again
 7  lets the container start         ->  the workload makes its own token and
                                         gives it along with its commands

What has to be there
  kernel   6.9 or newer                            bpfman-hook doctor
  container
           a user namespace of its own             podman: --userns=auto, --uidmap
           CAP_BPF in it, and CAP_NET_ADMIN        podman: --cap-add=BPF
           for networking and cgroup types,        (the capabilities count in its
           CAP_PERFMON for tracing types           user namespace, not on the host)
           a seccomp profile that allows bpf(2)    podman: --security-opt seccomp=...
  policy   delegate = [...] in a [[container]]     bpfman-hook policy explain
           rule that matches the container; with grant = true podman's containers
           get the capabilities and the seccomp rule as well

What a token does not do
  - It adds no capability: without CAP_BPF in the container it is worth nothing.
  - It is no file: it cannot be pinned, only made again from the bpffs.
  - It lists nothing: going through ids stays forbidden, so `bpftool prog list`
    does not work in the container.
  - Tracing types see the whole host whoever loads them. The policy has to say
    host-scope = true for them.

Who uses it by itself
  libbpf 1.4 and newer, from /sys/fs/bpf or LIBBPF_BPF_TOKEN_PATH; cilium/ebpf
  0.22 and newer, from any bpffs that is mounted.

When it fails inside the container
  ENOENT      the bpffs delegates nothing, or it is not the one you mean
  EOPNOTSUPP  no user namespace of its own
  EPERM       no CAP_BPF, another user namespace, or seccomp; after the token was
              made: a type or command that was not delegated. The kernel does not
              say which: `bpfman-hook token probe` in the container tries each
";

/// `token explain`
pub fn explain() -> ExitCode {
    print(EXPLAIN)
}

/// `token probe`, as JSON.
#[derive(Serialize)]
struct Probed<'a> {
    path: &'a Path,
    interface: &'a str,
    works: bool,
    steps: &'a [Step],
    allowed: Option<String>,
    packets: Option<Packets>,
}

/// `token probe`: exit status 1 where a step failed.
pub fn probe(args: &TokenProbeArgs) -> ExitCode {
    let probe = probe::probe(&args.path, &args.iface);
    if args.count > 0 && probe.packets().is_ok_and(|packets| packets.xdp.is_some() || packets.tcx.is_some()) {
        thread::sleep(Duration::from_secs(args.count.into()));
    }
    let probed = Probed {
        path: &args.path,
        interface: &args.iface,
        works: probe.works(),
        steps: &probe.steps,
        allowed: probe.allowed.map(|delegation| delegation.to_string()),
        packets: probe.packets().ok(),
    };
    let printed = print(&match args.format.output {
        Format::Json => json(&probed),
        Format::Table => probed.table(),
    });
    if probed.works { printed } else { ExitCode::FAILURE }
}

impl Probed<'_> {
    fn table(&self) -> String {
        let mut text = String::new();
        for step in self.steps {
            let name =
                serde_json::to_value(step.stage).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default();
            let outcome = match &step.outcome {
                Outcome::Done => "ok".to_owned(),
                Outcome::Failed { error, meaning, .. } => format!("failed: {error}\n{:<20}  -> {meaning}", ""),
                Outcome::Skipped => "skipped".to_owned(),
            };
            text.push_str(&format!("{name:<20}  {outcome}\n"));
        }
        if let Some(allowed) = &self.allowed {
            text.push_str(&format!("{:<20}  {allowed}\n", "allowed"));
        }
        let packets = self.packets.unwrap_or(Packets { xdp: None, tcx: None });
        for (name, count) in [("xdp", packets.xdp), ("tcx", packets.tcx)] {
            if let Some(count) = count {
                text.push_str(&format!("{:<20}  {count}\n", format!("packets by {name}")));
            }
        }
        text
    }
}

/// `token create`, as JSON.
#[derive(Serialize)]
struct Created<'a> {
    pid: u32,
    path: &'a Path,
    delegates: String,
}

/// `token create`: mounts a delegated bpffs into a running process's namespaces. No policy is asked: whoever may do this may
/// do anything. Nothing is recorded either: the bpffs goes with the mount namespace, and `umount` takes it away before.
pub fn create(args: &TokenCreateArgs) -> ExitCode {
    let created = match mount(args) {
        Ok(delegation) => Created { pid: args.pid, path: &args.path, delegates: delegation.to_string() },
        Err(sentence) => return fail(&sentence),
    };
    print(&match args.format.output {
        Format::Json => json(&created),
        Format::Table => format!(
            "mounted a bpffs at {} of process {}; it delegates {}\n",
            created.path.display(),
            created.pid,
            created.delegates
        ),
    })
}

fn mount(args: &TokenCreateArgs) -> Result<Delegation, String> {
    let (target, delegation) = wanted(args)?;
    let doing = format!("mount a bpffs for process {}", args.pid);
    let process = Pid::new(args.pid)
        .map_err(|e| format!("{doing}: {e}"))
        .and_then(|pid| pid::open_process(pid).map_err(|e| chain(&e)))?;
    let open = |namespace| process.open_namespace(namespace).map_err(|e| chain(&e));
    let (user_ns, mount_ns) = (open(Namespace::User)?, open(Namespace::Mount)?);
    let spec = Spec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        // It runs, so its root is no longer a directory of the host's tree.
        root: Path::new("/"),
        target: &target,
        delegation,
        maps: &[],
        owner: (0, 0),
    };
    bpffs::mount(&spec, Instant::now() + PATIENCE).map_err(|e| format!("{doing}: {}", chain(&e)))?;
    Ok(delegation)
}

/// The annotations' own grammar decides what the options mean.
fn wanted(args: &TokenCreateArgs) -> Result<(std::path::PathBuf, Delegation), String> {
    let mut annotations = BTreeMap::new();
    let path = args.path.to_string_lossy().into_owned();
    for (key, value) in [
        ("bpffs-path", Some(&path)),
        ("delegate", args.delegate.as_ref()),
        ("delegate-cmds", args.cmds.as_ref()),
        ("delegate-maps", args.maps.as_ref()),
        ("delegate-progs", args.progs.as_ref()),
        ("delegate-attachs", args.attachs.as_ref()),
    ] {
        if let Some(value) = value {
            annotations.insert(format!("{PREFIX}{key}"), value.clone());
        }
    }
    match Request::parse(&annotations, None).map_err(|e| chain(&e))?.map(|request| request.bpffs) {
        Some(BpffsRequest::Token { path, delegation }) => Ok((path, delegation.under(&EVERYTHING))),
        _ => Err("nothing is to be delegated: use --delegate".to_owned()),
    }
}

fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("strings, numbers and lists are JSON");
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, Token};

    fn create_args(args: &[&str]) -> TokenCreateArgs {
        let all = ["bpfman-hook", "token", "create", "--pid", "1"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Token(Token::Create(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_mean_what_the_annotations_mean() {
        let (path, delegation) = wanted(&create_args(&["--delegate", "networking"])).unwrap();
        assert_eq!(path, Path::new("/sys/fs/bpf"));
        assert!(delegation.progs & (1 << 6) != 0 && delegation.progs & (1 << 5) == 0, "{delegation}");
        let (path, all) = wanted(&create_args(&["--path", "/run/bpf", "--delegate-progs", "any"])).unwrap();
        assert_eq!((path.as_path(), all.progs), (Path::new("/run/bpf"), u64::MAX));
        for bad in [&["--delegate", "nonsense"][..], &["--delegate", "maps", "--path", "/etc"]] {
            assert!(wanted(&create_args(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let args = TokenCreateArgs { pid: u32::MAX >> 1, ..create_args(&["--delegate", "maps"]) };
        let sentence = mount(&args).unwrap_err();
        assert!(sentence.contains("2147483647"), "{sentence}");
    }

    #[test]
    fn a_probe_without_a_bpffs_says_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let probe = probe::probe(&path, "lo");
        assert!(!probe.works());
        let probed = Probed {
            path: &path,
            interface: "lo",
            works: false,
            steps: &probe.steps,
            allowed: None,
            packets: probe.packets().ok(),
        };
        let table = probed.table();
        assert!(table.starts_with("open-bpffs            failed: ") && table.contains("-> "), "{table}");
        assert!(table.contains("\nmint-token            skipped\n"), "{table}");
        let value: serde_json::Value = serde_json::from_str(&json(&probed)).unwrap();
        assert_eq!(value["steps"][0]["outcome"], "failed");
        assert_eq!(value["steps"][1]["stage"], "mint-token");
    }

    #[test]
    fn the_text_fits_a_terminal() {
        for line in EXPLAIN.lines() {
            assert!(line.chars().count() <= 88 && line.is_ascii() && line.trim_end() == line, "{line}");
        }
    }
}
