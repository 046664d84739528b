//! What the guard refuses: the reasons that its programs count, and the lists that they have.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Reach, allows, helper, reviewed};

/// A container whose token the guard binds to its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedContainer {
    /// The inode of its user namespace, by which the guard knows the token.
    pub userns: u32,
    /// The id of its cgroup. Ids are not used twice in a boot, unlike inodes of namespaces.
    pub cgroup: u64,
    /// True if policy allows it host scope: then its programs are not judged, and its token may stand in for CAP_PERFMON.
    pub host_scope: bool,
}

/// What the guard binds the tokens of a user namespace to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardBinding {
    /// The user namespace alone, as every token.
    UserNamespace,
    /// Its container's cgroup too.
    Cgroup,
    /// Its container's cgroup too, and within it the container has host scope.
    CgroupWithHostScope,
}

impl fmt::Display for GuardBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => {
                "The guard binds its token to its user namespace only: bpfman-hook did not give it the token, or it had no user \
                 namespace and v2 cgroup of its own"
            }
            Self::Cgroup => "The guard binds its token to its user namespace and its cgroup",
            Self::CgroupWithHostScope => "The guard binds its token to its user namespace and its cgroup, and grants it host scope",
        })
    }
}

/// The kfuncs that any program which is loaded with a token may call: they lock, or they access the program's own packet
/// or memory. String functions are not among them: they read any address (mm/maccess.c, `__get_kernel_nofault`).
pub const KFUNCS_FOR_ALL: [&str; 11] = [
    "bpf_rcu_read_lock",
    "bpf_rcu_read_unlock",
    "bpf_dynptr_adjust",
    "bpf_dynptr_clone",
    "bpf_dynptr_from_skb",
    "bpf_dynptr_from_xdp",
    "bpf_dynptr_is_null",
    "bpf_dynptr_is_rdonly",
    "bpf_dynptr_size",
    "bpf_dynptr_slice",
    "bpf_dynptr_slice_rdwr",
];

/// Why the guard refused something, in the order of src/bpf/guard.bpf.c.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuardRefusal {
    /// A type that container scope never loads.
    ProgramType,
    /// A helper that is not on the list of the program's type.
    Helper,
    /// A kernel function that is not in [`KFUNCS_FOR_ALL`].
    Kfunc,
    /// The address of a variable of the kernel.
    KernelVariable,
    /// A loop without a bound, if those are refused.
    Loop,
    /// A tag of an argument that was not reviewed.
    ArgumentTag,
    /// CAP_PERFMON or CAP_SYS_ADMIN by a token.
    Capability,
    /// A process outside the user namespace of the token.
    UserNamespace,
    /// A process outside the cgroup of the token's container.
    Cgroup,
}

impl GuardRefusal {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::ProgramType,
        Self::Helper,
        Self::Kfunc,
        Self::KernelVariable,
        Self::Loop,
        Self::ArgumentTag,
        Self::Capability,
        Self::UserNamespace,
        Self::Cgroup,
    ];

    /// Its index in the guard's counters, `enum reason`.
    pub fn index(self) -> u32 {
        self as u32 + 1
    }
}

impl fmt::Display for GuardRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProgramType => "the program type",
            Self::Helper => "a helper",
            Self::Kfunc => "a kfunc",
            Self::KernelVariable => "a variable of the kernel",
            Self::Loop => "a loop without a bound",
            Self::ArgumentTag => "an argument's tag",
            Self::Capability => "CAP_PERFMON or CAP_SYS_ADMIN",
            Self::UserNamespace => "a process of another user namespace",
            Self::Cgroup => "a process of another cgroup",
        })
    }
}

/// The helpers that programs of a type may call whatever they pass, a bit for each number; None for types that container
/// scope never loads. Of the helpers of [`allows`], socket lookups are missing: their arguments select the network
/// namespace, and the guard sees instructions, not values.
pub fn allowed_whatever_the_arguments(program_type: u32) -> Option<[u64; 4]> {
    let selects = |number| helper(number).is_some_and(|known| matches!(known.reach, Reach::OtherNetns { .. }));
    reviewed(program_type).then(|| {
        let mut bits = [0; 4];
        for number in (0..256_u32).filter(|number| allows(program_type, *number) && !selects(*number)) {
            bits[number as usize / 64] |= 1 << (number % 64);
        }
        bits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::{beyond, kfunc};

    #[test]
    fn nothing_that_reaches_beyond_is_on_a_list_of_the_guard() {
        assert!(KFUNCS_FOR_ALL.iter().all(|name| kfunc(name).is_none()));
        for program_type in 0..64 {
            let Some(bits) = allowed_whatever_the_arguments(program_type) else {
                assert!(!reviewed(program_type));
                continue;
            };
            assert!(bits[0] & 1 << 1 != 0, "every list has map_lookup_elem, by which the guard tells lists from none");
            for function in beyond() {
                let crate::model::reach::Call::Helper(number) = function.call else { continue };
                let listed = bits[number as usize / 64] >> (number % 64) & 1 == 1;
                assert!(!listed || function.reach == Reach::Processor, "type {program_type}: {function:?}");
            }
        }
    }

    #[test]
    fn indices_are_those_of_the_programs() {
        let source = include_str!("../../bpf/guard.bpf.c");
        let body = source.split_once("enum reason {").unwrap().1.split_once('}').unwrap().0;
        let names: Vec<_> = body.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        for why in GuardRefusal::ALL {
            let word = serde_json::to_string(&why).unwrap().trim_matches('"').replace('-', "_").to_uppercase();
            assert_eq!(names[why.index() as usize], word);
        }
        assert_eq!(names.len(), GuardRefusal::ALL.len() + 2, "NOT_REFUSED and REASONS");
    }
}
