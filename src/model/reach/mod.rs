//! The reach of the functions that the kernel offers to BPF programs: helpers by number, kfuncs by name.
//!
//! One table answers two questions. The loader asks which helpers a program of container scope may call ([`allows`]).
//! The scope of a BPF token depends on which functions reach beyond a container if the kernel offers them to a program
//! type ([`beyond`]).
//!
//! Sources: uapi/linux/bpf.h, `*_func_proto` in kernel/bpf/helpers.c, kernel/bpf/cgroup.c and net/core/filter.c, and
//! what Linux 6.12, 6.18 and 7.2 offered to each program type without CAP_PERFMON when tested.

mod allowed;
mod guard;
mod helpers;
mod kfuncs;
mod verdict;

use std::fmt;

pub use guard::{GuardBinding, GuardRefusal, GuardedContainer, KFUNCS_FOR_ALL, allowed_whatever_the_arguments};
pub use verdict::{Beyond, DelegationBeyond, MemoryRead, TokenReach, TypeAnswer, kernel_name};

/// What a function gives to a program or allows it to change, apart from the object that the program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Nothing beyond it: the program's maps, its packet or socket, its network namespace, its cgroup, the current
    /// task's ids.
    Own,
    /// Sockets and states of any network namespace that has an id in the program's own.
    OtherNetns {
        /// The register that selects it, 1 to 5; None if a structure in memory selects it.
        netns: Option<u8>,
    },
    /// Connection tracking entries of any network namespace.
    Connections,
    /// The secret of all SYN cookies on the host: cookies can be created for any listener.
    SynCookies,
    /// Kernel addresses and single per-CPU variables, but not memory in general.
    KernelAddresses,
    /// All kernel memory.
    KernelMemory,
    /// Processes outside the container: their memory, their names, signals to them.
    Processes,
    /// Any cgroup of the host.
    Cgroups,
    /// Any other resource that exists once per host: its logs, files, keys, devices, the scheduler.
    Host,
    /// A CPU, for an unlimited time.
    Processor,
}

impl Reach {
    /// True for everything but [`Reach::Own`].
    pub fn is_beyond(self) -> bool {
        self != Self::Own
    }
}

/// The text after "reaches" in a sentence.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "nothing beyond the container",
            Self::OtherNetns { .. } => "sockets of other network namespaces",
            Self::Connections => "connections of other network namespaces",
            Self::SynCookies => "the host's secret of SYN cookies",
            Self::KernelAddresses => "kernel addresses",
            Self::KernelMemory => "kernel memory",
            Self::Processes => "other processes of the host",
            Self::Cgroups => "other cgroups of the host",
            Self::Host => "the host",
            Self::Processor => "a processor without a bound",
        })
    }
}

/// How a program calls a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// By number: `enum bpf_func_id`.
    Helper(u32),
    /// By the id of a BTF type of the kernel or of a module, which has this name.
    Kfunc,
}

/// A function that the kernel offers to programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelFunction {
    /// How it is called.
    pub call: Call,
    /// Its name: a helper's without `bpf_`, as in the kernel's enum; a kfunc's full name.
    pub name: &'static str,
    /// Its reach.
    pub reach: Reach,
}

/// The helper with this number; None for 0 and for helpers that are newer than the table.
pub fn helper(number: u32) -> Option<KernelFunction> {
    let (name, reach) = helpers::HELPERS.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
    Some(KernelFunction { call: Call::Helper(number), name, reach: *reach })
}

/// The number of a helper by its name, with or without `bpf_`.
pub fn helper_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("bpf_").unwrap_or(name);
    (1..).map_while(|number| helper(number).map(|function| (number, function))).find(|(_, f)| f.name == name).map(|(n, _)| n)
}

/// The reach of a kfunc, if known: None means unknown, not harmless.
pub fn kfunc(name: &str) -> Option<Reach> {
    let listed = kfuncs::KFUNCS.iter().find(|(known, _)| *known == name);
    listed.or_else(|| kfuncs::FAMILIES.iter().find(|(start, _)| name.starts_with(start))).map(|(_, reach)| *reach)
}

/// Every function that reaches beyond a container, helpers first. A kernel offers each of them only to some program
/// types, and those it does not have to none. Kfuncs that are identified by a prefix of their name (`kfuncs::FAMILIES`) are
/// not included.
pub fn beyond() -> impl Iterator<Item = KernelFunction> {
    let helpers = (1..).map_while(helper);
    let kfuncs = kfuncs::KFUNCS.iter().map(|(name, reach)| KernelFunction { call: Call::Kfunc, name, reach: *reach });
    helpers.chain(kfuncs).filter(|function| function.reach.is_beyond())
}

/// Decides whether a program of container scope may call a helper, regardless of the arguments: socket lookups only
/// with BPF_F_CURRENT_NETNS, `loop` only with a bound. False for types that container scope does not load.
pub fn allows(program_type: u32, number: u32) -> bool {
    allowed::helpers(program_type).is_some_and(|helpers| helpers.contains(number))
}

/// True if programs of a type (`enum bpf_prog_type`) can have container scope.
pub fn reviewed(program_type: u32) -> bool {
    allowed::helpers(program_type).is_some()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::attach_point::{ProgramKind, Scope};

    #[test]
    fn numbers_and_names_match_the_kernel() {
        for (number, name, reach) in [
            (1, "map_lookup_elem", Reach::Own),
            (4, "probe_read", Reach::KernelMemory),
            (84, "sk_lookup_tcp", Reach::OtherNetns { netns: Some(4) }),
            (99, "skc_lookup_tcp", Reach::OtherNetns { netns: Some(4) }),
            (109, "send_signal", Reach::Processes),
            (154, "this_cpu_ptr", Reach::KernelAddresses),
            (181, "loop", Reach::Processor),
            (211, "cgrp_storage_delete", Reach::Own),
        ] {
            assert_eq!(helper(number), Some(KernelFunction { call: Call::Helper(number), name, reach }));
        }
        assert_eq!((helper(0), helper(212), helper(u32::MAX)), (None, None, None));
        let numbers = ["sk_lookup_tcp", "bpf_sk_lookup_tcp", "bpf_nothing", "bpf_"].map(helper_number);
        assert_eq!(numbers, [Some(84), Some(84), None, None]);
    }

    /// The rows of the table in docs/policy.md.
    fn documented() -> String {
        let mut rows: Vec<(Reach, String)> = Vec::new();
        let families = kfuncs::FAMILIES.iter().map(|(start, reach)| (format!("`{start}*`"), *reach));
        for (name, reach) in beyond().map(|function| (format!("`{}`", function.name), function.reach)).chain(families) {
            match rows.iter_mut().find(|(known, _)| known.to_string() == reach.to_string()) {
                Some((_, names)) => names.extend([" ", &name]),
                None => rows.push((reach, name)),
            }
        }
        let rows = rows.into_iter().map(|(reach, names)| format!("| {reach} | {names} |\n"));
        "| Reaches | Helpers (without `bpf_`) and kfuncs |\n| --- | --- |\n".to_owned() + &rows.collect::<String>()
    }

    #[test]
    fn the_documentation_contains_the_whole_table() {
        let expected = documented();
        assert!(include_str!("../../../docs/policy.md").contains(&expected), "docs/policy.md must contain:\n{expected}");
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = helpers::HELPERS.iter().chain(kfuncs::KFUNCS).map(|(name, _)| name).collect();
        assert_eq!(names.len(), helpers::HELPERS.len() + kfuncs::KFUNCS.len());
    }

    #[test]
    fn kfuncs_are_found_by_name() {
        assert_eq!(kfunc("bpf_rdonly_cast"), Some(Reach::KernelMemory));
        assert_eq!(kfunc("scx_bpf_kick_cpu"), Some(Reach::Host));
        assert_eq!(kfunc("bpf_rcu_read_lock"), None);
    }

    #[test]
    fn helpers_and_kfuncs_reach_beyond() {
        let found: Vec<_> = beyond().map(|function| function.name).collect();
        for name in
            ["probe_read_kernel", "skc_lookup_tcp", "loop", "bpf_rdonly_cast", "bpf_xdp_ct_lookup", "bpf_send_signal_task"]
        {
            assert!(found.contains(&name), "{name}");
        }
        assert!(!found.contains(&"map_lookup_elem") && !found.contains(&"task_storage_get"));
    }

    /// The reach of an allowed helper is either bounded by its arguments, which the loader checks, or nothing.
    #[test]
    fn allowed_helpers_reach_beyond_only_by_their_arguments() {
        for program_type in (0..64).filter(|program_type| reviewed(*program_type)) {
            for function in beyond() {
                let Call::Helper(number) = function.call else { continue };
                let bounded = matches!(function.reach, Reach::OtherNetns { netns: Some(_) } | Reach::Processor);
                assert!(bounded || !allows(program_type, number), "type {program_type}: {function:?}");
            }
            assert!((212..=300).all(|newer| !allows(program_type, newer)));
            assert!(!allows(program_type, 0) && !allows(program_type, u32::MAX));
        }
    }

    #[test]
    fn exactly_the_kinds_of_container_scope_have_a_list() {
        for (kind, word) in ProgramKind::ALL {
            assert_eq!(reviewed(kind.kernel_type()), kind.scope() == Scope::Container, "{word}");
        }
        // syscall, struct_ops, ext, lirc_mode2
        assert!([20, 27, 28, 31, 33].iter().all(|program_type| !reviewed(*program_type)));
    }

    #[test]
    fn types_have_the_helpers_of_their_attach_point() {
        const XDP: u32 = 6;
        const SCHED_CLS: u32 = 3;
        const CGROUP_SKB: u32 = 8;
        const CGROUP_SOCK: u32 = 9;
        const NETFILTER: u32 = 32;
        for (program_type, number, allowed) in [
            (XDP, 44, true),
            (XDP, 9, false),
            (SCHED_CLS, 9, true),
            (SCHED_CLS, 153, false),
            (SCHED_CLS, 204, false),
            (CGROUP_SKB, 84, true),
            (CGROUP_SKB, 16, false),
            (CGROUP_SOCK, 16, true),
            (NETFILTER, 1, true),
            (NETFILTER, 84, false),
            (2, 1, false),
        ] {
            assert_eq!(allows(program_type, number), allowed, "type {program_type}, helper {number}");
        }
    }
}
