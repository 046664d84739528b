//! `token explain`: what a BPF token is, what it needs, and who does what.

use std::process::ExitCode;

use crate::frontend::print;

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
