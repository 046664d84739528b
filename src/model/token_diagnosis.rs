//! Why calls with a BPF token fail for one process: from what is known about the process and its bpffs.

use std::path::PathBuf;

use serde::Serialize;

use crate::model::delegation::{Category, Delegation, needs_net_admin, needs_perfmon};
use crate::model::text::listed;

/// A process that would use a token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenHolder {
    /// True if it is in the initial user namespace.
    pub initial_user_namespace: bool,
    /// Its effective capabilities, as a mask.
    pub capabilities: u64,
    /// True if a seccomp filter is active.
    pub seccomp: bool,
    /// Each bpffs in its mount namespace that delegates something, or that is ours.
    pub bpffs: Vec<HeldBpffs>,
}

/// A bpffs of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldBpffs {
    /// The mount point.
    pub path: PathBuf,
    /// What it delegates; None if the mount options cannot be parsed.
    pub delegation: Option<Delegation>,
    /// True if a sub-directory is mounted, not the root directory.
    pub part: bool,
    /// True if a later mount covers the mount point.
    pub covered: bool,
    /// True if it is mounted read-only.
    pub read_only: bool,
    /// The errno of BPF_TOKEN_CREATE, tried in the process's user namespace with every capability; 0 if it succeeded,
    /// None if it was not tried.
    pub tried: Option<i32>,
}

/// A call that fails, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallProblem {
    /// The call: `BPF_TOKEN_CREATE`.
    pub call: &'static str,
    /// What it returns: `EPERM`.
    pub errno: &'static str,
    /// False if it depends on what the process does, or could not be determined.
    pub certain: bool,
    /// Why.
    pub because: String,
    /// What to do.
    pub remedy: &'static str,
}

const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// A name of `enum bpf_cmd`, of the other enums: their bits.
const BTF_LOAD: u64 = 1 << 18;
const PROG_LOAD: u64 = 1 << 5;
const SOCKET_FILTER: u64 = 1 << 1;
const ARRAY: u64 = 1 << 2;
const NO_ATTACH_TYPE: u64 = 1;

impl TokenHolder {
    /// Every call that fails, or may fail, in the order in which a process makes them.
    pub fn problems(&self) -> Vec<CallProblem> {
        let mut found = Vec::new();
        let mut say = |call, errno, certain, because: String, remedy| {
            let problem = CallProblem { call, errno, certain, because, remedy };
            if !found.contains(&problem) {
                found.push(problem);
            }
        };
        if self.bpffs.is_empty() {
            say(
                "open of the bpffs",
                "ENOENT",
                true,
                "the process has no bpffs that delegates anything".to_owned(),
                "request one with the annotation delegate, or mount one: bpfman-hook token create",
            );
        }
        if self.initial_user_namespace {
            say(
                "BPF_TOKEN_CREATE",
                "EOPNOTSUPP",
                true,
                "the process is in the initial user namespace, where tokens do not exist".to_owned(),
                "give the container a user namespace: --userns=auto, --uidmap, hostUsers: false",
            );
        }
        if self.seccomp {
            say(
                "every bpf(2)",
                "EPERM or ENOSYS",
                false,
                "a seccomp filter is active, and may refuse bpf(2) for want of a capability or always".to_owned(),
                "run `bpfman-hook token probe` in the container; podman: --security-opt seccomp=FILE, or grant = true in the policy",
            );
        }
        if self.capabilities & BPF == 0 {
            say(
                "BPF_TOKEN_CREATE",
                "EPERM",
                true,
                "the process has no CAP_BPF in its user namespace, without which no token is created or used".to_owned(),
                "add CAP_BPF to the container, and run the process as its uid 0 or give its file the capability",
            );
        }
        for bpffs in &self.bpffs {
            mount_problems(bpffs, &mut say);
            if let Some(delegation) = &bpffs.delegation {
                self.capability_problems(delegation, &mut say);
                library_problems(delegation, &mut say);
            }
        }
        found
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & (capability | SYS_ADMIN) != 0
    }

    fn capability_problems(
        &self,
        delegation: &Delegation,
        say: &mut impl FnMut(&'static str, &'static str, bool, String, &'static str),
    ) {
        let lacking = |category: Category, needs: fn(u32) -> bool| {
            let mut mask = Delegation::default();
            // A token for everything lacks nothing that has no name.
            let needed = |at: &u32| delegation.mask(category) & 1 << at != 0 && category.name(*at).is_some() && needs(*at);
            *mask.mask_mut(category) = (0..64).filter(needed).fold(0, |all, at| all | 1u64 << at);
            mask.names(category)
        };
        let types = |names: &[String]| listed(names.iter().map(String::as_str), 4);
        let network = lacking(Category::Progs, |at| needs_net_admin(Category::Progs, at));
        if !self.has(NET_ADMIN) && !network.is_empty() {
            let because = format!("the process has no CAP_NET_ADMIN in its user namespace, which {} need", types(&network));
            say("BPF_PROG_LOAD", "EPERM", true, because, "add CAP_NET_ADMIN to the container");
        }
        let devices = lacking(Category::Maps, |at| needs_net_admin(Category::Maps, at));
        if !self.has(NET_ADMIN) && !devices.is_empty() {
            let because =
                format!("the process has no CAP_NET_ADMIN in its user namespace, which {} maps need", types(&devices));
            say("BPF_MAP_CREATE", "EPERM", true, because, "add CAP_NET_ADMIN to the container");
        }
        let tracing = lacking(Category::Progs, needs_perfmon);
        if !self.has(PERFMON) && !tracing.is_empty() {
            let because = format!("the process has no CAP_PERFMON in its user namespace, which {} need", types(&tracing));
            say("BPF_PROG_LOAD", "EPERM", true, because, "add CAP_PERFMON to the container, which makes its token host scope");
        }
    }
}

/// What the mount itself prevents.
fn mount_problems(bpffs: &HeldBpffs, say: &mut impl FnMut(&'static str, &'static str, bool, String, &'static str)) {
    let path = bpffs.path.display();
    if bpffs.covered {
        let because = format!("another mount covers the bpffs at {path}");
        say("open of the bpffs", "ENOENT", true, because, "unmount what covers it, or choose another bpffs-path");
        return;
    }
    if bpffs.part {
        let because =
            format!("a sub-directory of a bpffs is mounted at {path}; a token is created only from its root directory");
        say("BPF_TOKEN_CREATE", "EINVAL", true, because, "mount the root directory; a bind mount of it is enough");
    } else {
        match bpffs.tried {
            None | Some(0) => {}
            Some(EPERM) => {
                let because = format!("the bpffs at {path} belongs to another user namespace than the process");
                say("BPF_TOKEN_CREATE", "EPERM", true, because, "mount one that is created in the process's user namespace");
            }
            Some(ENOENT) => {
                let because = format!("the bpffs at {path} delegates nothing; the kernel ignores mistyped options");
                say("BPF_TOKEN_CREATE", "ENOENT", true, because, "mount it with delegate_cmds and the other options");
            }
            Some(EOPNOTSUPP) => {
                let because = format!("the bpffs at {path} belongs to the initial user namespace");
                say(
                    "BPF_TOKEN_CREATE",
                    "EOPNOTSUPP",
                    true,
                    because,
                    "mount one that is created in the process's user namespace",
                );
            }
            Some(EINVAL) => {
                let because = format!("{path} is not a bpffs, or the kernel has no tokens");
                say("BPF_TOKEN_CREATE", "EINVAL", true, because, "use Linux 6.9 or newer");
            }
            Some(_) => {
                let because = format!("the kernel refuses to create a token from the bpffs at {path}");
                say("BPF_TOKEN_CREATE", "another errno", true, because, "see bpfman-hook doctor");
            }
        }
    }
    if bpffs.read_only {
        let because = format!("the bpffs at {path} is mounted read-only; its token works, pins do not");
        say("BPF_OBJ_PIN", "EROFS", true, because, "pin elsewhere, or keep the objects open");
    }
    if let Some(why) = bpffs.delegation.and_then(|delegation| delegation.useless()) {
        say("BPF_PROG_LOAD, BPF_MAP_CREATE", "EPERM", true, format!("at {path}: {why}"), "request what is missing");
    }
}

/// What libraries make of a delegation that lacks what they use by themselves.
fn library_problems(delegation: &Delegation, say: &mut impl FnMut(&'static str, &'static str, bool, String, &'static str)) {
    let loads = delegation.loads_programs();
    if delegation.maps != u64::MAX && delegation.maps != 0 {
        let because =
            "a map of a type that is not delegated; libbpf adds \"try raising 'ulimit -l'\", which does not help, since \
                       the kernel charges maps to the memory cgroup"
                .to_owned();
        say("BPF_MAP_CREATE", "EPERM", false, because, "compare with `bpfman-hook token explain --object FILE`");
    }
    if loads && delegation.attachs & NO_ATTACH_TYPE == 0 {
        let because =
            "programs without an attach type of their own (tc, tracepoint, kprobe), and xdp or cgroup programs as libbpf \
                       loads them, have attach type 0, which is cgroup_inet_ingress and is not delegated"
                .to_owned();
        say("BPF_PROG_LOAD", "EPERM", false, because, "request delegate-attachs=cgroup_inet_ingress too");
    }
    if loads && (delegation.progs & SOCKET_FILTER == 0 || delegation.maps & ARRAY == 0) {
        let because =
            "libbpf probes for global variables with a socket filter and an array, and without these reports that the \
                       kernel does not support them"
                .to_owned();
        say(
            "load of an object with global variables",
            "ENOTSUP",
            false,
            because,
            "request the preset probes and the map type array",
        );
    }
    if loads && delegation.cmds & BTF_LOAD == 0 {
        let because =
            "the object's types cannot be loaded, and libbpf goes on without: callbacks, timers, spin locks and storages \
                       need them"
                .to_owned();
        say("BPF_BTF_LOAD", "EPERM", false, because, "request delegate-cmds=btf_load if the object needs it");
    }
    if delegation.cmds & PROG_LOAD != 0 && delegation.progs != 0 && delegation.progs != u64::MAX {
        let because =
            "a program of a type, or with an attach type, that is not delegated; the kernel does not say which".to_owned();
        say("BPF_PROG_LOAD", "EPERM", false, because, "compare with `bpfman-hook token explain --object FILE`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Preset;

    fn holder(delegation: Delegation) -> TokenHolder {
        TokenHolder {
            capabilities: BPF | NET_ADMIN,
            bpffs: vec![HeldBpffs {
                path: "/sys/fs/bpf".into(),
                delegation: Some(delegation),
                tried: Some(0),
                ..HeldBpffs::default()
            }],
            ..TokenHolder::default()
        }
    }

    /// The certain problems as `call errno: because`.
    fn certain(holder: &TokenHolder) -> Vec<String> {
        let certain = holder.problems().into_iter().filter(|problem| problem.certain);
        certain.map(|problem| format!("{} {}: {}", problem.call, problem.errno, problem.because)).collect()
    }

    #[test]
    fn a_complete_delegation_has_no_certain_problem() {
        assert_eq!(certain(&holder(Preset::Networking.delegation())), [""; 0]);
    }

    #[test]
    fn each_cause_is_named() {
        let networking = Preset::Networking.delegation();
        let change = |change: &dyn Fn(&mut TokenHolder)| {
            let mut changed = holder(networking);
            change(&mut changed);
            certain(&changed)
        };
        let cases: [(Vec<String>, &str); 11] = [
            (change(&|holder| holder.bpffs.clear()), "open of the bpffs ENOENT"),
            (change(&|holder| holder.initial_user_namespace = true), "BPF_TOKEN_CREATE EOPNOTSUPP"),
            (change(&|holder| holder.capabilities = NET_ADMIN), "BPF_TOKEN_CREATE EPERM: the process has no CAP_BPF"),
            (change(&|holder| holder.capabilities = SYS_ADMIN), "BPF_TOKEN_CREATE EPERM: the process has no CAP_BPF"),
            (change(&|holder| holder.capabilities = BPF), "which lwt_xmit, flow_dissector, netfilter need"),
            (change(&|holder| holder.bpffs[0].part = true), "BPF_TOKEN_CREATE EINVAL: a sub-directory"),
            (change(&|holder| holder.bpffs[0].covered = true), "another mount covers"),
            (change(&|holder| holder.bpffs[0].read_only = true), "BPF_OBJ_PIN EROFS"),
            (change(&|holder| holder.bpffs[0].tried = Some(EPERM)), "belongs to another user namespace"),
            (change(&|holder| holder.bpffs[0].tried = Some(ENOENT)), "delegates nothing"),
            (
                change(&|holder| holder.bpffs[0].delegation = Some(Delegation { attachs: 0, ..networking })),
                "program types without attach types",
            ),
        ];
        for (found, words) in cases {
            assert!(found.iter().any(|problem| problem.contains(words)), "{words}: {found:?}");
        }
        let tracing = certain(&holder(Preset::Tracing.delegation()));
        assert!(tracing.iter().any(|problem| problem.contains("CAP_PERFMON") && problem.contains("kprobe")), "{tracing:?}");
        let sockets = certain(&TokenHolder { capabilities: BPF, ..holder(Preset::Sockets.delegation()) });
        assert!(sockets.iter().any(|problem| problem.contains("sockmap")), "{sockets:?}");
    }

    #[test]
    fn what_may_fail_is_said_too() {
        let xdp = Delegation { cmds: 0x21, maps: 2, progs: 1 << 6, attachs: 1 << 37 };
        let problems = TokenHolder { seccomp: true, ..holder(xdp) }.problems();
        let said = |words: &str| problems.iter().any(|problem| !problem.certain && problem.because.contains(words));
        for words in ["seccomp filter", "ulimit -l", "attach type 0", "socket filter and an array", "goes on without"] {
            assert!(said(words), "{words}: {problems:?}");
        }
        assert!(certain(&TokenHolder { seccomp: true, ..holder(xdp) }).is_empty());
    }
}
