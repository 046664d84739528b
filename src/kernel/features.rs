//! Kernel features, determined by trying them. Each probe takes a few microseconds, leaves nothing behind, and needs
//! the same capabilities as using the feature.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::kernel::gate_exemption::exempted;
use crate::sys::Errno;
use crate::sys::bpf::probe::{self, NoTarget};
use crate::sys::bpf::{self, BtfRecords, IndexedLoad, MapCreate, ProgramLoad, ProgramSignature};
use crate::sys::pid;

/// The kernel's own BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// A kernel feature that not every kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// BPF_TOKEN_CREATE and `delegate_*` mount options.
    Token,
    /// tcx links.
    Tcx,
    /// Links on cgroups.
    CgroupLink,
    /// Links on perf events, for tracepoints.
    PerfLink,
    /// Trampoline programs: fentry, fexit.
    Tracing,
    /// LSM programs.
    Lsm,
    /// Kprobes.
    Kprobe,
    /// Uprobes.
    Uprobe,
    /// The kernel's own BTF.
    Btf,
    /// Signatures of programs that the kernel checks.
    ProgramSignatures,
    /// Maps that only one program may use.
    ExclusiveMaps,
}

impl Feature {
    /// Every feature, in the order in which `doctor` lists them.
    pub const ALL: [Self; 11] = [
        Self::Token,
        Self::Tcx,
        Self::CgroupLink,
        Self::PerfLink,
        Self::Btf,
        Self::Tracing,
        Self::Lsm,
        Self::Kprobe,
        Self::Uprobe,
        Self::ProgramSignatures,
        Self::ExclusiveMaps,
    ];

    /// The first kernel version that has it.
    pub fn since(self) -> &'static str {
        match self {
            Self::Token => "6.9",
            Self::Tcx => "6.6",
            Self::CgroupLink => "5.7",
            Self::PerfLink => "5.15",
            Self::Tracing => "5.5",
            Self::Lsm => "5.7",
            Self::Kprobe | Self::Uprobe => "4.17",
            Self::Btf => "5.4",
            Self::ProgramSignatures | Self::ExclusiveMaps => "6.18",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "BPF tokens",
            Self::Tcx => "tcx links",
            Self::CgroupLink => "cgroup links",
            Self::PerfLink => "perf event links",
            Self::Tracing => "fentry and fexit programs",
            Self::Lsm => "LSM programs",
            Self::Kprobe => "kprobes",
            Self::Uprobe => "uprobes",
            Self::Btf => "kernel BTF",
            Self::ProgramSignatures => "checks of programs' signatures",
            Self::ExclusiveMaps => "exclusive maps",
        })
    }
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// The kernel has it.
    Yes,
    /// The kernel does not have it, or refuses it to root: the reason.
    No(String),
    /// The probe was inconclusive: the reason.
    Unknown(String),
}

/// Probes for a feature.
pub fn probe(feature: Feature) -> Support {
    match feature {
        Feature::Token => match probe::token() {
            Some(Errno::BADF) => Support::Yes,
            Some(Errno::INVAL) => Support::No("BPF_TOKEN_CREATE is not known".to_owned()),
            other => unclear("BPF_TOKEN_CREATE", other),
        },
        Feature::Tcx => link(SCHED_CLS, 0, TCX_INGRESS, NoTarget::Interface),
        Feature::CgroupLink => link(CGROUP_SKB, CGROUP_INGRESS, CGROUP_INGRESS, NoTarget::Fd),
        Feature::PerfLink => link(TRACEPOINT, 0, PERF_EVENT, NoTarget::Fd),
        Feature::Btf => kernel_btf(),
        Feature::Tracing => trampoline(TRACING, TRACE_FENTRY),
        Feature::Lsm => match trampoline(LSM, LSM_MAC) {
            Support::Yes => active_lsm(),
            other => other,
        },
        Feature::Kprobe => pmu("kprobe", "CONFIG_KPROBES or CONFIG_KPROBE_EVENTS is off"),
        Feature::Uprobe => pmu("uprobe", "CONFIG_UPROBE_EVENTS is off"),
        Feature::ProgramSignatures => match signed_smallest_program() {
            Err(Errno::BADMSG) => Support::Yes,
            Err(Errno::OPNOTSUPP) => {
                Support::No("CONFIG_SYSTEM_DATA_VERIFICATION is off, or it checks them only since Linux 7.2".to_owned())
            }
            Err(Errno::INVAL | Errno::TOOBIG) => Support::No("BPF_PROG_LOAD takes no signature".to_owned()),
            other => unclear("BPF_PROG_LOAD with a malformed signature", other.err()),
        },
        Feature::ExclusiveMaps => match exclusive_map() {
            Ok(_) => Support::Yes,
            Err(Errno::INVAL | Errno::TOOBIG) => Support::No("BPF_MAP_CREATE takes no hash of a program".to_owned()),
            Err(errno) => unclear("BPF_MAP_CREATE with the hash of a program", Some(errno)),
        },
    }
}

/// `enum bpf_prog_type`
const SCHED_CLS: u32 = 3;
const TRACEPOINT: u32 = 5;
const CGROUP_SKB: u32 = 8;
const TRACING: u32 = 26;
const LSM: u32 = 29;
/// `enum bpf_attach_type`
const CGROUP_INGRESS: u32 = 0;
const TRACE_FENTRY: u32 = 24;
const LSM_MAC: u32 = 27;
const PERF_EVENT: u32 = 41;
const TCX_INGRESS: u32 = 46;

fn link(program_type: u32, expected_attach_type: u32, attach_type: u32, target: NoTarget) -> Support {
    let program = match smallest_program(program_type, expected_attach_type) {
        Ok(program) => program,
        Err(errno) => return unclear("BPF_PROG_LOAD of a two-instruction program", Some(errno)),
    };
    match probe::link(program.as_fd(), attach_type, target) {
        Some(Errno::BADF | Errno::NODEV) => Support::Yes,
        Some(Errno::INVAL) => Support::No("BPF_LINK_CREATE does not support the attach type".to_owned()),
        other => unclear("BPF_LINK_CREATE", other),
    }
}

/// Loads a program of two instructions, a socket filter, and closes it. It shows whether this process may load programs.
///
/// # Errors
/// The errno of BPF_PROG_LOAD.
pub fn load_smallest_program() -> Result<(), Errno> {
    const SOCKET_FILTER: u32 = 1;
    load_smallest(SOCKET_FILTER, 0).map(drop)
}

/// `r0 = 1; exit`, which programs of every type may do. For cgroup_skb it lets packets pass, and it is never run here.
fn smallest_program(program_type: u32, expected_attach_type: u32) -> Result<OwnedFd, Errno> {
    exempted(|| load_smallest(program_type, expected_attach_type))
}

fn load_smallest(program_type: u32, expected_attach_type: u32) -> Result<OwnedFd, Errno> {
    bpf::program_load(&smallest(program_type, expected_attach_type, &smallest_code()), None)
}

/// The same with a signature that is none, which the kernel refuses for another reason if it cannot check signatures.
fn signed_smallest_program() -> Result<OwnedFd, Errno> {
    const SOCKET_FILTER: u32 = 1;
    const USER_KEYRING: i32 = -4;
    let signature = ProgramSignature { bytes: b"no signature", keyring: USER_KEYRING };
    let indexed = IndexedLoad { maps: &[], core: BtfRecords { bytes: &[], size: 0 }, signature: Some(signature) };
    bpf::program_load_indexed(&smallest(SOCKET_FILTER, 0, &smallest_code()), &indexed, None)
}

fn exclusive_map() -> Result<OwnedFd, Errno> {
    const ARRAY: u32 = 2;
    bpf::map_create(&MapCreate {
        name: "bpfman_probe",
        map_type: ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        extra: 0,
        numa_node: 0,
        kernel_value: 0,
        module: None,
        inner: None,
        types: None,
        token: None,
        exclusive: Some(&[0; 32]),
    })
}

fn smallest_code() -> [[u8; 8]; 2] {
    const MOV64_R0_IMM: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    let one = 1i32.to_ne_bytes();
    [[MOV64_R0_IMM, 0, 0, 0, one[0], one[1], one[2], one[3]], [EXIT, 0, 0, 0, 0, 0, 0, 0]]
}

fn smallest(program_type: u32, expected_attach_type: u32, instructions: &[[u8; 8]]) -> ProgramLoad<'_> {
    ProgramLoad {
        name: "bpfman_probe",
        program_type,
        expected_attach_type,
        attach_btf_id: 0,
        attach_to: None,
        modules: &[],
        flags: 0,
        instructions,
        license: "",
        debug: None,
        token: None,
    }
}

fn kernel_btf() -> Support {
    match Path::new(KERNEL_BTF).try_exists() {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No(format!("no {KERNEL_BTF}: CONFIG_DEBUG_INFO_BTF is off")),
        Err(error) => Support::Unknown(format!("{KERNEL_BTF}: {error}")),
    }
}

/// Programs that attach to a kernel function by a trampoline. Some hardened kernels refuse them to root before any
/// other check.
fn trampoline(program_type: u32, attach_type: u32) -> Support {
    // Without kernel BTF there is nothing to attach to.
    match kernel_btf() {
        Support::Yes => {}
        other => return other,
    }
    match probe::empty_program(program_type, attach_type) {
        Some(Errno::TOOBIG) => Support::Yes,
        // Another user is refused on every kernel.
        Some(Errno::PERM) if pid::own_uid() != 0 => unclear("BPF_PROG_LOAD", Some(Errno::PERM)),
        Some(Errno::PERM) => Support::No("the kernel refuses the program type to root (lockdown or hardening)".to_owned()),
        Some(Errno::INVAL) => Support::No("the program type is not supported".to_owned()),
        other => unclear("BPF_PROG_LOAD", other),
    }
}

/// A program of this type loads and attaches even if the LSM is not active, and is then never called.
fn active_lsm() -> Support {
    const ACTIVE: &str = "/sys/kernel/security/lsm";
    match fs::read_to_string(ACTIVE) {
        Ok(text) if text.trim().split(',').any(|lsm| lsm == "bpf") => Support::Yes,
        Ok(text) => Support::No(format!("bpf is not an active LSM; boot with lsm={},bpf", text.trim())),
        Err(error) => Support::Unknown(format!("{ACTIVE}: {error}")),
    }
}

/// Probes are events of a PMU of their own since Linux 4.17.
fn pmu(name: &str, why: &str) -> Support {
    let path = format!("/sys/bus/event_source/devices/{name}/type");
    match Path::new(&path).try_exists() {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No(format!("no {path}: {why}")),
        Err(error) => Support::Unknown(format!("{path}: {error}")),
    }
}

fn unclear(call: &str, errno: Option<Errno>) -> Support {
    Support::Unknown(match errno {
        Some(Errno::PERM | Errno::ACCESS) => format!("{call} is refused: run this as root, outside containers"),
        Some(Errno::NOSYS) => format!("{call}: bpf(2) does not exist, or a seccomp profile blocks it"),
        Some(other) => format!("{call}: {other}"),
        None => format!("{call} succeeded unexpectedly"),
    })
}
