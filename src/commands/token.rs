//! `token explain|create|profile|probe`: explains BPF tokens, mounts a bpffs for one, records what a workload needs, and
//! tests what a token can do.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use crate::cli::{Format, TokenExplainArgs, TokenProbeArgs};
use crate::commands::records;
use crate::commands::token_bpffs::Here;
use crate::lifecycle::token_reach;
use crate::output::error::CommandError;
use crate::output::format::json;
use crate::output::print;
use crate::paths::Paths;
use crate::sys::lsm;
use crate::sys::token::probe::{self, ProbeOutcome, ProbeStage};

mod create;
mod matrix;
mod object_needs;
mod profile;
mod request;
mod scope;

pub use create::create;
pub use profile::profile;

/// The text of `token explain`; 80 columns.
pub const EXPLAIN: &str = "\
A BPF token lets a process in a user namespace use bpf(2) for what was delegated
from outside: certain commands, map types, program types and attach types.
The permission does not belong to the process. It belongs to a bpffs that was
created for its user namespace; the token is a file descriptor created from it.

    host                                 container (its own user namespace)
    ------------------------------       ----------------------------------
 1  podman, runc ... start it, with  ->  init waits; namespaces and mounts
    delegate=networking among its        exist, the workload does not run yet
    annotations
 2  bpfman-hook reads the policy
 3  bpfman-hook, in the container's  ->  fsopen(\"bpf\"): the bpffs belongs to
    user and mount namespace             the container's user namespace
 4  bpfman-hook, back as root on the
    host: sets delegate_cmds, _maps,
    _progs, _attachs; creates bpffs
 5  mounts it at bpffs-path          ->  /sys/fs/bpf
 6  tests it once                    ->  BPF_TOKEN_CREATE, closed again
 7  lets the container start         ->  the workload creates its own token and
                                         passes it with its commands

Requirements
  kernel   6.9 or newer                            bpfman-hook doctor
  container
           a user namespace of its own             podman: --userns=auto, --uidmap
           CAP_BPF in it, and CAP_NET_ADMIN        podman: --cap-add=BPF
           for networking and cgroup types,        (the capabilities count in its
           CAP_PERFMON for tracing types           user namespace, not on the host)
           a seccomp profile that allows bpf(2)    podman: --security-opt seccomp=...
  policy   delegate = [...] in a [[container]]     bpfman-hook policy explain
           rule that matches the container; with grant = true podman's containers
           also get the capabilities and the seccomp rule

What a token does not do
  - It does not add capabilities: without CAP_BPF in the container it is useless.
  - It is not a file: it cannot be pinned, only created again from the bpffs.
  - It does not list objects: iterating over ids stays forbidden, so
    `bpftool prog list` does not work in the container.
  - It is not bound to one container: every process of its user namespace that has
    the capabilities can use it, and so can user 0 of the host's user namespace,
    without any capability, if the descriptor is passed on. So below host scope
    the user namespace must be the container's own, and must not map the host's
    root; in a pod the NRI plugin keeps CAP_PERFMON and CAP_SYS_ADMIN away. What a
    rootless user creates would be usable by that user, from any shell.

What a token reaches: bpfman-hook token explain --scope
  - The preset maps loads no program and is confined to the container on every
    kernel.
  - Whether programs are confined depends on the kernel; it is tested once per
    boot. Since about Linux 6.17 a program loader can read all kernel memory; on
    other kernels xdp, tc and cgroup_skb programs see the host's sockets. What
    reaches beyond the container needs host-scope = true in the policy's rule.
  - Tracing types always see the whole host; syscall is never delegated.
  - A program's descriptor can leave the container by a socket or a shared pin, and
    its receiver may attach it elsewhere. A loaded program can occupy a CPU.

Libraries that use it automatically
  libbpf 1.4 and newer, from /sys/fs/bpf or LIBBPF_BPF_TOKEN_PATH; cilium/ebpf
  0.22 and newer, from any bpffs that is mounted.

When it fails inside the container
  ENOENT      the bpffs delegates nothing, or it is a different bpffs
  EOPNOTSUPP  the container has no user namespace of its own
  EPERM       no CAP_BPF, another user namespace, or seccomp; after the token was
              created: a type or command that was not delegated. The kernel does
              not report which: `bpfman-hook token probe` in the container tests
              each. In Kubernetes only uid 0 of the container, or a program file with
              capabilities, has those of securityContext.capabilities.add
  EACCES      from a pin below /sys/fs: AppArmor; see `token explain --pid PID`
";

/// `token explain`: prints the text, or with an option what a process has, an object needs, a request asks for or the
/// kernel offers.
pub fn explain(paths: &Paths, args: &TokenExplainArgs) -> Result<ExitCode, CommandError> {
    if args.scope {
        return scope::print_scope(paths, args.format.output);
    }
    if !args.objects.is_empty() {
        return object_needs::explain(paths, args);
    }
    if !args.request.is_empty() {
        return request::explain(paths, args);
    }
    let record = match (&args.container, args.pid) {
        (Some(id), _) => Some(records::of_container(paths, id)?),
        (None, Some(pid)) => records::of_process(paths, pid),
        (None, None) => None,
    };
    let init = record.as_ref().filter(|_| args.container.is_some()).and_then(|record| record.owner.init());
    let pid = init.map(|init| init.pid.get()).or(args.pid);
    let reach = token_reach::known(paths);
    let here = Here::look(pid, record.as_ref(), reach.as_ref(), &paths.guard());
    match (here, args.format.output) {
        // The text is useful even if /proc is not mounted.
        (Err(_), Format::Table) if pid.is_none() => print(EXPLAIN),
        (Err(error), _) => Err(error),
        (Ok(here), Format::Table) if pid.is_none() => print(&format!("{EXPLAIN}{}", here.hindrances())),
        (Ok(here), Format::Table) => print(&here.text()),
        (Ok(here), Format::Json) => print(&json(&here)),
    }
}

/// `token probe`: tests what a workload can do with its bpffs, in the caller's context. Exit status 1 unless everything
/// works.
pub fn probe(args: &TokenProbeArgs) -> Result<ExitCode, CommandError> {
    if args.matrix {
        return matrix::print_matrix(args);
    }
    let probe = probe::probe(&args.path, args.iface.as_deref().unwrap_or("lo"));
    let works = if probe.works() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.count > 0 {
        std::thread::sleep(Duration::from_secs(args.count.into()));
    }
    let packets = probe.packets()?;
    let text = match args.format.output {
        Format::Json => json(&serde_json::json!({
            "works": probe.works(), "steps": probe.steps, "allowed": probe.allowed.map(|allowed| allowed.by_word()),
            "packets": packets,
            "confinement": lsm::confinement(None),
        })),
        Format::Table => {
            let mut text: String = probe.steps.iter().map(|step| line(&step.stage, &step.outcome)).collect();
            if let Some(allowed) = &probe.allowed {
                let names = if args.verbose { allowed.to_string() } else { allowed.summary() };
                text.push_str(&format!("the token allows: {names}\n"));
            }
            for (program, seen) in [("xdp", packets.xdp), ("tcx", packets.tcx)] {
                if let Some(seen) = seen {
                    text.push_str(&format!("the {program} program has seen {seen} packets\n"));
                }
            }
            text
        }
    };
    print(&text)?;
    Ok(works)
}

/// The exit status of a command that was run, as a shell reports it.
fn ended(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn line(stage: &ProbeStage, outcome: &ProbeOutcome) -> String {
    let what = match stage {
        ProbeStage::OpenBpffs => "open the bpffs",
        ProbeStage::MintToken => "create a token from it",
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
    fn a_signal_is_reported_as_by_a_shell() {
        assert_eq!(ended(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(ended(ExitStatus::from_raw(9)), ExitCode::from(137));
    }

    #[test]
    fn the_text_fits_a_terminal() {
        for line in EXPLAIN.lines() {
            assert!(line.chars().count() <= 88 && line.is_ascii() && line.trim_end() == line, "{line}");
        }
    }
}
