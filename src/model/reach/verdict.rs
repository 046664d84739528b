//! What one kernel allows a program to reach that is loaded with a BPF token, and thus the scope of a delegation there.
//!
//! The kernel's version does not determine it, because distributions backport features. The probes of
//! `kernel::token_reach` offer programs to the verifier and record the results here. What they cannot determine counts
//! as host scope.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Call, Reach};
use crate::model::delegation::{Category, Delegation};
use crate::model::text::listed;

/// A way for a program to read all kernel memory without CAP_PERFMON. Each of them is open to every program type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryRead {
    /// The kfunc bpf_rdonly_cast turns a number into a pointer, through which the program reads.
    RdonlyCast,
    /// The kfunc bpf_probe_read_kernel_dynptr copies from a number that it uses as an address.
    ProbeReadDynptr,
    /// A global function has a pointer argument with the BTF tag `arg:untrusted`, and is called with a number.
    UntrustedArgument,
}

impl MemoryRead {
    /// All ways, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::RdonlyCast, Self::ProbeReadDynptr, Self::UntrustedArgument];
}

impl fmt::Display for MemoryRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RdonlyCast => "bpf_rdonly_cast",
            Self::ProbeReadDynptr => "bpf_probe_read_kernel_dynptr",
            Self::UntrustedArgument => "arg:untrusted",
        })
    }
}

/// The probes' result for one program type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TypeAnswer {
    /// The kernel does not have the type, or refuses to load it with a token without CAP_PERFMON.
    Absent,
    /// The functions of our table that reach beyond the container and that the verifier offers to the type, by the
    /// kernel's name.
    Offers(Vec<String>),
}

/// What the kernel allows programs to reach that are loaded with a token by a process with CAP_BPF and CAP_NET_ADMIN
/// and no other capability.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReach {
    /// The open ways to kernel memory.
    pub memory: Vec<MemoryRead>,
    /// The results by `enum bpf_prog_type`. A type that is missing was not probed, or gave no result.
    pub types: BTreeMap<u32, TypeAnswer>,
    /// What could not be determined, one sentence each. If it is not empty, every delegation with prog_load is host
    /// scope.
    pub undecided: Vec<String>,
    /// True if the guard is in force, which refuses programs that reach beyond the container when they are loaded. It is
    /// checked at each use, and not part of the result that is kept for the boot.
    #[serde(skip)]
    pub guarded: bool,
}

/// Why something is host scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    /// What is reached, after "reaches": `kernel memory`.
    pub what: String,
    /// The function; if there are several ways to kernel memory, the first one and how many more.
    pub by: String,
}

/// The part of a delegation that reaches beyond the container, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationBeyond {
    /// The program types.
    pub progs: u64,
    /// The reason for the first of them.
    pub beyond: Beyond,
}

impl fmt::Display for DelegationBeyond {
    /// `progs xdp, sched_cls and 3 more reach kernel memory on this kernel (bpf_rdonly_cast)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Delegation { progs: self.progs, ..Delegation::default() }.names(Category::Progs);
        let verb = if self.progs.count_ones() == 1 { "reaches" } else { "reach" };
        let shown = listed(names.iter().map(String::as_str), 2);
        write!(f, "progs {shown} {verb} {} on this kernel ({})", self.beyond.what, self.beyond.by)
    }
}

/// sched_cls, sched_act, xdp: they can put a socket that they looked up into a sockmap (seen on 6.12, 6.18 and 7.2).
/// The verifier refuses that in sk_skb, and the cgroup types have no such map update.
const TAKES_TCP_DATA: u64 = 1 << 3 | 1 << 4 | 1 << 6;

/// Kfuncs that only return a pointer: without CAP_PERFMON the verifier does not allow reading through it
/// (kernel/bpf/verifier.c, `check_ptr_to_btf_access`). If another function can read the memory, its probes report that.
const POINTERS_ALONE: [&str; 9] = [
    "bpf_rdonly_cast",
    "bpf_iter_task_new",
    "bpf_iter_task_vma_new",
    "bpf_iter_css_new",
    "bpf_iter_css_task_new",
    "bpf_task_from_pid",
    "bpf_task_from_vpid",
    "bpf_cgroup_from_id",
    "bpf_task_under_cgroup",
];

impl TokenReach {
    /// Why programs of a type are host scope on this kernel; None if they stay in the container.
    ///
    /// The cgroup types stay in it only if the container sees no other cgroup; the plan of a start checks that.
    pub fn type_beyond(&self, program_type: u32) -> Option<Beyond> {
        if Delegation::program_type(program_type).host_scope().progs != 0 {
            let (what, by) = ("the whole host", "on every kernel");
            return Some(Beyond { what: what.to_owned(), by: by.to_owned() });
        }
        if self.guarded {
            return None;
        }
        if !self.memory.is_empty() {
            let ways: Vec<String> = self.memory.iter().map(ToString::to_string).collect();
            let by = listed(ways.iter().map(String::as_str), 1);
            return Some(Beyond { what: Reach::KernelMemory.to_string(), by });
        }
        let unknown =
            |by: &str| Some(Beyond { what: "something that the probes could not determine".to_owned(), by: by.to_owned() });
        if let Some(first) = self.undecided.first() {
            return unknown(first);
        }
        match self.types.get(&program_type) {
            None => unknown("the type was not probed"),
            Some(TypeAnswer::Absent) => unknown("this kernel does not load the type with a token"),
            Some(TypeAnswer::Offers(functions)) => functions.iter().find_map(|name| offered_beyond(program_type, name)),
        }
    }

    /// Everything that programs of a probed type reach, for a listing: each reach with its functions, in the order of
    /// the table, without functions that only use a CPU or only return addresses.
    pub fn listing(&self, program_type: u32) -> BTreeMap<String, Vec<String>> {
        let mut reached: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let Some(TypeAnswer::Offers(functions)) = self.types.get(&program_type) else { return reached };
        if !self.memory.is_empty() {
            let ways = self.memory.iter().map(ToString::to_string).collect();
            reached.insert(Reach::KernelMemory.to_string(), ways);
        }
        for beyond in functions.iter().filter_map(|name| offered_beyond(program_type, name)) {
            let by = reached.entry(beyond.what).or_default();
            if !by.contains(&beyond.by) {
                by.push(beyond.by);
            }
        }
        reached
    }

    /// The part of a delegation that reaches beyond the container on this kernel, in addition to what does so on every
    /// kernel ([`Delegation::host_scope`]). None if a token with it stays in the container.
    pub fn delegation_beyond(&self, delegation: &Delegation) -> Option<DelegationBeyond> {
        if !delegation.loads_programs() {
            return None;
        }
        let mut found: Option<DelegationBeyond> = None;
        for program_type in (0..64).filter(|at| delegation.progs & 1 << at != 0) {
            let Some(beyond) = self.type_beyond(program_type) else { continue };
            found.get_or_insert(DelegationBeyond { progs: 0, beyond }).progs |= 1 << program_type;
        }
        found
    }

    /// The result as it is kept for the boot: one line of JSON. None if something is undecided; such a result is never
    /// kept.
    pub fn keep(&self, boot: &str, kernel: &str) -> Option<String> {
        let kept =
            StoredReach { version: VERSION, table: table(), boot: boot.into(), kernel: kernel.into(), reach: self.clone() };
        self.undecided.is_empty().then(|| serde_json::to_string(&kept).expect("plain data with string keys"))
    }

    /// Parses what [`Self::keep`] wrote. None if it belongs to another boot, kernel, version or table, or cannot be
    /// parsed: then the kernel is probed again.
    pub fn kept(text: &str, boot: &str, kernel: &str) -> Option<Self> {
        let kept: StoredReach = serde_json::from_str(text).ok()?;
        let same = kept.version == VERSION && kept.table == table() && kept.boot == boot && kept.kernel == kernel;
        (same && kept.reach.undecided.is_empty()).then_some(kept.reach)
    }
}

/// The file's format.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredReach {
    version: u32,
    /// A hash of the functions that were probed: a newer version of this program may know more.
    table: u64,
    boot: String,
    kernel: String,
    reach: TokenReach,
}

/// FNV-1a of the names in the table of functions.
fn table() -> u64 {
    let names = super::beyond().flat_map(|function| function.name.bytes().chain([0]));
    names.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The kernel's name of a function: helpers have `bpf_` before the table's name.
pub fn kernel_name(function: &super::KernelFunction) -> String {
    match function.call {
        Call::Helper(_) => format!("bpf_{}", function.name),
        Call::Kfunc => function.name.to_owned(),
    }
}

/// The reach of a function offered to a type, if it reaches beyond the container. A function that is not in the table
/// does.
fn offered_beyond(program_type: u32, name: &str) -> Option<Beyond> {
    let known = super::beyond().find(|function| kernel_name(function) == name).map(|function| function.reach);
    let reach = known.unwrap_or(Reach::Host);
    match reach {
        Reach::Own | Reach::KernelAddresses | Reach::Processor => return None,
        _ if POINTERS_ALONE.contains(&name) => return None,
        _ => {}
    }
    let tcp = matches!(reach, Reach::OtherNetns { .. }) && 1 << program_type & TAKES_TCP_DATA != 0;
    let what = if tcp { format!("{reach} and, with a sockmap, their TCP data") } else { reach.to_string() };
    Some(Beyond { what, by: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Preset;

    fn offers(types: &[(u32, &[&str])]) -> TokenReach {
        let answer = |names: &[&str]| TypeAnswer::Offers(names.iter().map(|name| (*name).to_owned()).collect());
        TokenReach { types: types.iter().map(|(at, names)| (*at, answer(names))).collect(), ..TokenReach::default() }
    }

    #[test]
    fn a_type_stays_in_the_container_unless_functions_reach_beyond() {
        let kernel = offers(&[
            (1, &["bpf_rdonly_cast", "bpf_iter_task_new", "bpf_this_cpu_ptr", "bpf_loop"]),
            (3, &["bpf_skc_lookup_tcp"]),
            (6, &["bpf_xdp_ct_alloc", "bpf_sk_lookup_tcp"]),
            (8, &["bpf_task_from_pid", "bpf_sk_lookup_udp"]),
            (9, &["bpf_task_from_pid", "bpf_cgroup_from_id"]),
            (13, &["bpf_send_signal_task"]),
            (30, &["bpf_of_a_newer_kernel"]),
        ]);
        let sockets = "sockets of other network namespaces";
        let cases = [
            (1, None),
            (3, Some((format!("{sockets} and, with a sockmap, their TCP data"), "bpf_skc_lookup_tcp"))),
            (6, Some(("connections of other network namespaces".to_owned(), "bpf_xdp_ct_alloc"))),
            (8, Some((sockets.to_owned(), "bpf_sk_lookup_udp"))),
            (9, None),
            (13, Some(("other processes of the host".to_owned(), "bpf_send_signal_task"))),
            (30, Some(("the host".to_owned(), "bpf_of_a_newer_kernel"))),
            // Not probed, of CAP_PERFMON, never delegated, newer than the table.
            (32, Some(("something that the probes could not determine".to_owned(), "the type was not probed"))),
            (2, Some(("the whole host".to_owned(), "on every kernel"))),
            (31, Some(("the whole host".to_owned(), "on every kernel"))),
            (40, Some(("the whole host".to_owned(), "on every kernel"))),
        ];
        for (program_type, expected) in cases {
            let found = kernel.type_beyond(program_type).map(|beyond| (beyond.what, beyond.by));
            assert_eq!(found, expected.map(|(what, by)| (what, by.to_owned())), "{program_type}");
        }
    }

    #[test]
    fn access_to_kernel_memory_makes_loading_delegations_host_scope() {
        let mut kernel = offers(&[(1, &[]), (30, &[])]);
        let probes = Preset::Probes.delegation();
        assert_eq!(kernel.delegation_beyond(&probes), None);
        kernel.memory = vec![MemoryRead::RdonlyCast, MemoryRead::UntrustedArgument];
        let beyond = kernel.delegation_beyond(&probes).expect("host scope");
        let sentence = "progs socket_filter reaches kernel memory on this kernel (bpf_rdonly_cast and 1 more)";
        assert_eq!(beyond.to_string(), sentence);
        let maps = Preset::Maps.delegation();
        assert_eq!(kernel.delegation_beyond(&maps), None, "no program, no reach");
        assert_eq!(kernel.delegation_beyond(&Delegation { cmds: 1, ..probes }), None, "no prog_load");
    }

    #[test]
    fn an_undecided_reach_is_host_scope_and_not_kept() {
        let mut kernel = offers(&[(1, &[])]);
        assert!(kernel.keep("boot", "6.12").is_some());
        kernel.undecided.push("control program of socket_filter: EPERM".to_owned());
        assert_eq!(kernel.keep("boot", "6.12"), None);
        let beyond = kernel.type_beyond(1).expect("host scope");
        assert_eq!(beyond.by, "control program of socket_filter: EPERM");
        let mut absent = offers(&[]);
        absent.types.insert(22, TypeAnswer::Absent);
        assert!(absent.type_beyond(22).is_some());
    }

    #[test]
    fn a_kept_reach_is_valid_for_this_boot_kernel_and_table() {
        let kernel = TokenReach { memory: vec![MemoryRead::RdonlyCast], ..offers(&[(1, &["bpf_rdonly_cast"])]) };
        let text = kernel.keep("boot", "6.18").expect("decided");
        assert_eq!(TokenReach::kept(&text, "boot", "6.18"), Some(kernel));
        assert_eq!(TokenReach::kept(&text, "other", "6.18"), None);
        assert_eq!(TokenReach::kept(&text, "boot", "6.19"), None);
        for (from, to) in [("\"version\":1", "\"version\":2"), ("\"table\":", "\"table\":1"), ("}", "")] {
            assert_eq!(TokenReach::kept(&text.replacen(from, to, 1), "boot", "6.18"), None, "{from}");
        }
        let undecided = text.replace("\"undecided\":[]", "\"undecided\":[\"x\"]");
        assert_ne!(undecided, text);
        assert_eq!(TokenReach::kept(&undecided, "boot", "6.18"), None);
    }

    #[test]
    fn under_the_guard_only_what_reaches_the_host_on_every_kernel_does() {
        let reads = TokenReach { memory: MemoryRead::ALL.to_vec(), ..offers(&[(6, &["bpf_skc_lookup_tcp"])]) };
        let guarded = TokenReach { guarded: true, ..reads.clone() };
        for (program_type, host) in
            [(1, false), (6, false), (8, false), (2, true), (26, true), (29, true), (31, true), (40, true)]
        {
            assert!(reads.type_beyond(program_type).is_some());
            assert_eq!(guarded.type_beyond(program_type).is_some(), host, "{program_type}");
        }
        let kept = TokenReach { undecided: Vec::new(), ..guarded }.keep("boot", "7.2").expect("decided");
        assert_eq!(TokenReach::kept(&kept, "boot", "7.2"), Some(reads), "the guard is not kept");
    }

    #[test]
    fn listings_contain_everything_beyond() {
        let mut kernel = offers(&[(8, &["bpf_sk_lookup_tcp", "bpf_sk_lookup_udp", "bpf_send_signal_task", "bpf_loop"])]);
        kernel.memory.push(MemoryRead::ProbeReadDynptr);
        assert!(kernel.listing(2).is_empty(), "a type that was not probed");
        let listing = kernel.listing(8);
        assert_eq!(listing["sockets of other network namespaces"], ["bpf_sk_lookup_tcp", "bpf_sk_lookup_udp"]);
        assert_eq!(listing["other processes of the host"], ["bpf_send_signal_task"]);
        assert_eq!(listing["kernel memory"], ["bpf_probe_read_kernel_dynptr"]);
        assert_eq!(listing.len(), 3);
    }
}
