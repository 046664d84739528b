//! `token explain|create|probe`: what a BPF token is, a bpffs to make one from, and what one made here can do.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::{Format, TokenCreateArgs, TokenExplainArgs, TokenProbeArgs};
use crate::commands::token_bpffs::Here;
use crate::model::annotations::{BpffsRequest, PREFIX, Request};
use crate::model::delegation::Delegation;
use crate::model::ids::Pid;
use crate::output::format::json;
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::sys::bpffs::{self, BpffsSpec, Mounted};
use crate::sys::error::chain;
use crate::sys::lsm;
use crate::sys::pid::{self, Namespace};
use crate::sys::token::probe::{self, ProbeOutcome, ProbeStage};

mod scope;

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
  - It is not bound to one container: every process of its user namespace that has
    the capabilities can use it, and so can user 0 of the host's user namespace,
    with no capability at all, if the descriptor is passed on. So below host scope
    the user namespace has to be the container's own, and must not map the host's
    root; in a pod the NRI plugin keeps CAP_PERFMON and CAP_SYS_ADMIN away. What a
    rootless user makes would be that user's, from any shell.

What a token reaches: bpfman-hook token explain --scope
  - maps loads no program and stays in the container on every kernel.
  - Whether programs stay in it is the kernel's choice, tried once per boot. Since
    Linux 6.17 or so a loader of programs reads all kernel memory; on others
    xdp, tc and cgroup_skb programs see the host's sockets. What leaves the
    container is refused unless the policy's rule says host-scope = true.
  - Tracing types always see the whole host; syscall is never delegated.
  - A program's descriptor can leave the container by a socket or a shared pin, and
    who gets it may attach it elsewhere. A loaded program can hold a processor.

Who uses it by itself
  libbpf 1.4 and newer, from /sys/fs/bpf or LIBBPF_BPF_TOKEN_PATH; cilium/ebpf
  0.22 and newer, from any bpffs that is mounted.

When it fails inside the container
  ENOENT      the bpffs delegates nothing, or it is not the one you mean
  EOPNOTSUPP  no user namespace of its own
  EPERM       no CAP_BPF, another user namespace, or seccomp; after the token was
              made: a type or command that was not delegated. The kernel does not
              say which: `bpfman-hook token probe` in the container tries each
              In Kubernetes only uid 0 of the container, or a program file with
              capabilities, has those of securityContext.capabilities.add
  EACCES      from a pin below /sys/fs: AppArmor; `token explain --pid PID` says it
";

/// `token explain`: the text, and what stands between a process and its token where that is known; with `--scope` what a token
/// reaches on this kernel.
pub fn explain(paths: &Paths, args: &TokenExplainArgs) -> ExitCode {
    if args.scope {
        return scope::print_scope(paths, args.format.output);
    }
    match (Here::look(args.pid), args.format.output) {
        // The text is of use where /proc is not mounted, too.
        (Err(_), Format::Table) if args.pid.is_none() => print(EXPLAIN),
        (Err(sentence), _) => fail(&sentence),
        (Ok(here), Format::Table) => print(&format!("{EXPLAIN}{}", here.text())),
        (Ok(here), Format::Json) => print(&json(&here)),
    }
}

/// How long making a bpffs in somebody's namespaces may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// `token create`: mounts a delegated bpffs into the namespaces of a running process. Root's own act: policy is for what
/// containers ask for.
pub fn create(args: &TokenCreateArgs) -> ExitCode {
    let delegation = match asked(args) {
        Ok(delegation) => delegation,
        Err(sentence) => {
            fail(&sentence);
            return ExitCode::from(2);
        }
    };
    match try_create(delegation, args) {
        Ok(mount) => {
            let delegates: Vec<_> = delegation.mount_options();
            print(&match args.format.output {
                Format::Json => json(&serde_json::json!({
                    "pid": args.pid, "path": args.path, "mount_id": mount.mount_id,
                    "delegates": delegates.iter().cloned().collect::<BTreeMap<_, _>>(),
                })),
                Format::Table => format!(
                    "process {} has a bpffs at {}, and a token was made from it once:\n  {delegation}\n",
                    args.pid,
                    args.path.display()
                ),
            })
        }
        Err(sentence) => fail(&sentence),
    }
}

/// What the options name, in the same words as in annotations.
fn asked(args: &TokenCreateArgs) -> Result<Delegation, String> {
    let lists = [
        ("delegate", &args.delegate),
        ("delegate-cmds", &args.cmds),
        ("delegate-maps", &args.maps),
        ("delegate-progs", &args.progs),
        ("delegate-attachs", &args.attachs),
    ];
    // The same words as in annotations, so the same parser.
    let annotations = lists.into_iter().filter_map(|(key, value)| Some((format!("{PREFIX}{key}"), value.clone()?)));
    let request = Request::parse(&annotations.collect(), None).map_err(|e| chain(&e))?;
    let Some(BpffsRequest::Token { delegation, .. }) = request.map(|request| request.bpffs) else {
        return Err("nothing is to be delegated: name presets or lists".to_owned());
    };
    let everything = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };
    Ok(delegation.under(&everything).delegable())
}

fn try_create(delegation: Delegation, args: &TokenCreateArgs) -> Result<Mounted, String> {
    let process = Pid::new(args.pid).map_err(|e| chain(&e)).and_then(|pid| pid::open_process(pid).map_err(|e| chain(&e)))?;
    let namespace = |kind| process.open_namespace(kind).map_err(|e| chain(&e));
    let (user_ns, mount_ns) = (namespace(Namespace::User)?, namespace(Namespace::Mount)?);
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: Path::new("/"),
        target: &args.path,
        delegation,
        maps: &[],
        owner: (0, 0),
    };
    bpffs::mount(&spec, Instant::now() + PATIENCE).map_err(|e| chain(&e))
}

/// `token probe`: what a workload can do with its bpffs, tried from where we are. Exit status 1 unless all of it works.
pub fn probe(args: &TokenProbeArgs) -> ExitCode {
    let probe = probe::probe(&args.path, args.iface.as_deref().unwrap_or("lo"));
    let works = if probe.works() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.count > 0 {
        std::thread::sleep(Duration::from_secs(args.count.into()));
    }
    let packets = match probe.packets() {
        Ok(packets) => packets,
        Err(error) => return fail(&chain(&error)),
    };
    let text = match args.format.output {
        Format::Json => json(&serde_json::json!({
            "works": probe.works(), "steps": probe.steps, "allowed": probe.allowed, "packets": packets,
            "confinement": lsm::confinement(None),
        })),
        Format::Table => {
            let mut text: String = probe.steps.iter().map(|step| line(&step.stage, &step.outcome)).collect();
            if let Some(allowed) = &probe.allowed {
                text.push_str(&format!("the token allows: {allowed}\n"));
            }
            for (program, seen) in [("xdp", packets.xdp), ("tcx", packets.tcx)] {
                if let Some(seen) = seen {
                    text.push_str(&format!("the {program} program has seen {seen} packets\n"));
                }
            }
            text
        }
    };
    print(&text);
    works
}

fn line(stage: &ProbeStage, outcome: &ProbeOutcome) -> String {
    let what = match stage {
        ProbeStage::OpenBpffs => "open the bpffs",
        ProbeStage::MintToken => "make a token from it",
        ProbeStage::ReadToken => "read what the token allows",
        ProbeStage::CreateMap => "create a map with the token",
        ProbeStage::PinMap => "pin it in the bpffs, and unpin it",
        ProbeStage::LoadSocketFilter => "load a socket filter with the token",
        ProbeStage::LoadXdp => "load an xdp program with the token",
        ProbeStage::AttachXdp => "attach it",
        ProbeStage::LoadTcx => "load a tcx program with the token",
        ProbeStage::AttachTcx => "attach it",
    };
    match outcome {
        ProbeOutcome::Done => format!("ok       {what}\n"),
        ProbeOutcome::Skipped => format!("skipped  {what}\n"),
        ProbeOutcome::Failed { error, meaning, .. } => format!("failed   {what}: {error}: {meaning}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_fits_a_terminal() {
        for line in EXPLAIN.lines() {
            assert!(line.chars().count() <= 88 && line.is_ascii() && line.trim_end() == line, "{line}");
        }
    }
}
