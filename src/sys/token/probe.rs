//! `token probe`: determines what a workload can do with its bpffs by trying it.
//!
//! It runs inside the container. Every step is tried whose prerequisites succeeded, and each failure explains its
//! errno.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use serde::Serialize;

use super::BpfToken;
use super::pinning::try_pin;
use crate::model::confinement::{Confinement, SecurityModule};
use crate::model::delegation::Delegation;
use crate::sys::SysError;
use crate::sys::bpf::{LinkTarget, MapCreate, ProgramLoad, link_create, map_create, map_lookup, program_load};
use crate::sys::caps::{self, Capability};
use crate::sys::lsm;
use crate::sys::netns::interfaces_here;

/// uapi/linux/bpf.h
const CMD_MAP_CREATE: u32 = 0;
const CMD_PROG_LOAD: u32 = 5;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const CGROUP_INET_INGRESS: u32 = 0;
const XDP: u32 = 37;
const TCX_INGRESS: u32 = 46;
const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;
/// uapi/linux/if_link.h: the mode that every interface supports.
const XDP_FLAGS_SKB_MODE: u32 = 2;

/// A step of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeStage {
    /// Open the bpffs.
    OpenBpffs,
    /// Mint a token from it.
    MintToken,
    /// Read what the token allows.
    ReadToken,
    /// Create an array map with the token.
    CreateMap,
    /// Pin that map in the bpffs and unpin it.
    PinMap,
    /// Load a socket filter with the token.
    LoadSocketFilter,
    /// Load an XDP program that counts packets.
    LoadXdp,
    /// Attach it to the interface.
    AttachXdp,
    /// Load a tcx program that counts packets.
    LoadTcx,
    /// Attach it to the interface's ingress.
    AttachTcx,
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum ProbeOutcome {
    /// It succeeded.
    Done,
    /// It failed.
    Failed {
        /// The errno's name or text.
        error: String,
        /// The errno; None if the failure was not that of a system call.
        errno: Option<i32>,
        /// What it means here, and the remedy.
        meaning: String,
    },
    /// A step on which it depends failed.
    Skipped,
}

/// A step and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeStep {
    /// The step.
    pub stage: ProbeStage,
    /// Its outcome.
    #[serde(flatten)]
    pub outcome: ProbeOutcome,
}

/// The result of the probe. The programs stay attached until it is dropped. Dropping it also closes the token, which
/// would otherwise keep the bpffs alive.
#[derive(Debug)]
pub struct Probe {
    /// Every step, in the order of [`ProbeStage`].
    pub steps: Vec<ProbeStep>,
    /// What the token allows, if there is one.
    pub allowed: Option<Delegation>,
    counters: Option<OwnedFd>,
    _token: Option<BpfToken>,
    _programs: Vec<OwnedFd>,
    xdp: Option<OwnedFd>,
    tcx: Option<OwnedFd>,
}

/// Packets that the probe's programs have counted so far; None if the program is not attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Packets {
    /// Packets seen by the XDP program.
    pub xdp: Option<u64>,
    /// Packets seen by the tcx program.
    pub tcx: Option<u64>,
}

impl Probe {
    /// True if every step succeeded. Two failures do not count: an XDP program that was attached before, and a refused
    /// pin, because the token works without pins.
    pub fn works(&self) -> bool {
        let fine = |step: &ProbeStep| match &step.outcome {
            ProbeOutcome::Done => true,
            ProbeOutcome::Failed { errno, .. } => match step.stage {
                ProbeStage::AttachXdp => *errno == Some(Errno::BUSY.raw_os_error()),
                ProbeStage::PinMap => true,
                _ => false,
            },
            ProbeOutcome::Skipped => false,
        };
        self.steps.iter().all(fine)
    }

    /// Reads the packet counters.
    pub fn packets(&self) -> Result<Packets, SysError> {
        let count = |link: &Option<OwnedFd>, slot: u32| match (link, &self.counters) {
            (Some(_), Some(map)) => {
                let value =
                    map_lookup(map.as_fd(), &slot.to_ne_bytes()).map_err(SysError::io("read", "the packet counters"))?;
                let bytes = value.try_into().map_err(|_| Errno::INVAL).map_err(SysError::io("read", "the packet counters"))?;
                Ok(Some(u64::from_ne_bytes(bytes)))
            }
            _ => Ok::<_, SysError>(None),
        };
        Ok(Packets { xdp: count(&self.xdp, 0)?, tcx: count(&self.tcx, 1)? })
    }

    fn note<T>(&mut self, stage: ProbeStage, result: Result<T, ProbeOutcome>) -> Option<T> {
        let (outcome, value) = match result {
            Ok(value) => (ProbeOutcome::Done, Some(value)),
            Err(outcome) => (outcome, None),
        };
        self.steps.push(ProbeStep { stage, outcome });
        value
    }
}

/// Tries every step with the bpffs at `path` and an interface of the calling process's network namespace.
pub fn probe(path: &Path, interface: &str) -> Probe {
    let mut probe =
        Probe { steps: Vec::new(), allowed: None, counters: None, _token: None, _programs: Vec::new(), xdp: None, tcx: None };

    let directory = File::open(path)
        .map_err(|error| failed(error.raw_os_error(), error.to_string(), &unopened(&error, lsm::confinement(None), path)));
    let directory = probe.note(ProbeStage::OpenBpffs, directory);

    let token = directory.ok_or(ProbeOutcome::Skipped).and_then(|directory| {
        BpfToken::mint(directory.as_fd()).map_err(|e| {
            let errno = e.errno().raw_os_error();
            failed(Some(errno), text(errno), &e.to_string())
        })
    });
    let token = probe.note(ProbeStage::MintToken, token);

    let allowed = token.as_ref().ok_or(ProbeOutcome::Skipped).and_then(|token| {
        token.allowed().map_err(|e| failed(None, e.to_string(), "mount /proc in the container to read what its token allows"))
    });
    probe.allowed = probe.note(ProbeStage::ReadToken, allowed);

    let allowed = probe.allowed;
    let map = with(&token, |token| {
        let map = MapCreate {
            name: "probe_count",
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 2,
            flags: 0,
            extra: 0,
            numa_node: 0,
            kernel_value: 0,
            module: None,
            inner: None,
            types: None,
            token: Some(token.as_fd()),
            exclusive: None,
        };
        map_create(&map).map_err(|e| refused(e, allowed, NeededRight::map(MAP_TYPE_ARRAY)))
    });
    probe.counters = probe.note(ProbeStage::CreateMap, map);

    let pinned = probe.counters.as_ref().ok_or(ProbeOutcome::Skipped).and_then(|map| {
        try_pin(map.as_fd(), path).map_err(|(errno, meaning)| {
            let errno = errno.raw_os_error();
            failed(Some(errno), text(errno), &meaning)
        })
    });
    probe.note(ProbeStage::PinMap, pinned);

    let filter = with(&token, |token| {
        // Accept zero bytes of every packet.
        load(token, NeededRight::program(PROG_TYPE_SOCKET_FILTER, CGROUP_INET_INGRESS), allowed, &[mov(0, 0), exit()])
    });
    let filter = probe.note(ProbeStage::LoadSocketFilter, filter);
    probe._programs.extend(filter);

    for (loading, attaching, kind, attach, slot, verdict, flags) in [
        (ProbeStage::LoadXdp, ProbeStage::AttachXdp, PROG_TYPE_XDP, XDP, 0, XDP_PASS, XDP_FLAGS_SKB_MODE),
        (ProbeStage::LoadTcx, ProbeStage::AttachTcx, PROG_TYPE_SCHED_CLS, TCX_INGRESS, 1, TCX_NEXT, 0),
    ] {
        let program = with(&token, |token| {
            let map = probe.counters.as_ref().ok_or(ProbeOutcome::Skipped)?;
            load(token, NeededRight::program(kind, attach), allowed, &counting(map, slot, verdict))
        });
        let program = probe.note(loading, program);
        let link = program.as_ref().ok_or(ProbeOutcome::Skipped).and_then(|p| attach_to(p, interface, attach, flags));
        let link = probe.note(attaching, link);
        if attaching == ProbeStage::AttachXdp {
            probe.xdp = link
        } else {
            probe.tcx = link
        }
        probe._programs.extend(program);
    }
    probe._token = token;
    probe
}

/// Explains why the bpffs could not be opened. SELinux checks permissions that no default policy grants; AppArmor
/// checks none.
fn unopened(error: &std::io::Error, confinement: Option<Confinement>, path: &Path) -> String {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let selinux = confinement.filter(|confinement| denied && confinement.module == SecurityModule::SeLinux);
    match selinux.and_then(|confinement| confinement.hinders(path, None)) {
        Some(hindrance) => hindrance.to_string(),
        None => "the container has no bpffs there; request one with the annotation bpffs or delegate".to_owned(),
    }
}

/// What a call needs the token to allow.
#[derive(Debug, Clone, Copy)]
struct NeededRight {
    cmd: u32,
    map: Option<u32>,
    /// The program type and its attach type.
    program: Option<(u32, u32)>,
}

impl NeededRight {
    fn map(kind: u32) -> Self {
        Self { cmd: CMD_MAP_CREATE, map: Some(kind), program: None }
    }

    fn program(kind: u32, attach: u32) -> Self {
        Self { cmd: CMD_PROG_LOAD, map: None, program: Some((kind, attach)) }
    }

    /// The first required right that `allowed` does not include.
    fn lacking(self, allowed: &Delegation) -> Option<&'static str> {
        let has = |mask: u64, bit: u32| mask & (1 << bit) != 0;
        if !has(allowed.cmds, self.cmd) {
            return Some("the token does not allow this command; request it with delegate-cmds");
        }
        if self.map.is_some_and(|kind| !has(allowed.maps, kind)) {
            return Some("the token does not allow this type of map; request it with delegate-maps");
        }
        match self.program {
            Some((kind, _)) if !has(allowed.progs, kind) => {
                Some("the token does not allow this type of program; request it with delegate-progs")
            }
            Some((_, attach)) if !has(allowed.attachs, attach) => {
                Some("the token does not allow this attach type; request it with delegate-attachs")
            }
            _ => None,
        }
    }

    fn needs_net_admin(self) -> bool {
        self.program.is_some_and(|(kind, _)| kind != PROG_TYPE_SOCKET_FILTER)
    }
}

fn with<T>(token: &Option<BpfToken>, f: impl FnOnce(&BpfToken) -> Result<T, ProbeOutcome>) -> Result<T, ProbeOutcome> {
    token.as_ref().ok_or(ProbeOutcome::Skipped).and_then(f)
}

fn load(
    token: &BpfToken,
    wanted: NeededRight,
    allowed: Option<Delegation>,
    instructions: &[[u8; 8]],
) -> Result<OwnedFd, ProbeOutcome> {
    let (program_type, expected_attach_type) = wanted.program.unwrap_or_default();
    let program = ProgramLoad {
        name: "probe",
        program_type,
        expected_attach_type,
        attach_btf_id: 0,
        attach_to: None,
        modules: &[],
        flags: 0,
        instructions,
        license: "Apache-2.0",
        debug: None,
        token: Some(token.as_fd()),
    };
    program_load(&program, None).map_err(|errno| refused(errno, allowed, wanted))
}

fn attach_to(program: &OwnedFd, interface: &str, attach: u32, flags: u32) -> Result<OwnedFd, ProbeOutcome> {
    let interfaces = interfaces_here().map_err(|e| failed(None, e.to_string(), "the interfaces could not be listed"))?;
    let Some(found) = interfaces.iter().find(|i| i.name == interface) else {
        let names: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
        let meaning = format!("there is no interface {interface}; there are {}", names.join(", "));
        return Err(failed(Some(Errno::NODEV.raw_os_error()), text(Errno::NODEV.raw_os_error()), &meaning));
    };
    link_create(program.as_fd(), LinkTarget::Interface(found.index), attach, flags).map_err(|errno| {
        let meaning = match errno {
            Errno::BUSY => {
                "the interface has an XDP program already, perhaps the one that bpfman-hook attached; name another one with --iface"
            }
            Errno::PERM => "attaching needs CAP_NET_ADMIN in the user namespace that owns the network namespace",
            Errno::INVAL => "the kernel does not support this type of link",
            _ => "the kernel refused the link",
        };
        failed(Some(errno.raw_os_error()), text(errno.raw_os_error()), meaning)
    })
}

/// Explains why a map or program was refused. The kernel returns EPERM for all causes, so they are checked one by one.
fn refused(errno: Errno, allowed: Option<Delegation>, wanted: NeededRight) -> ProbeOutcome {
    let meaning = match errno {
        Errno::PERM | Errno::ACCESS => {
            let lacking = allowed.and_then(|allowed| wanted.lacking(&allowed));
            match lacking {
                Some(meaning) => meaning,
                None if !caps::has(Capability::CAP_BPF) => "the process lacks CAP_BPF; give the container that capability",
                None if wanted.needs_net_admin() && !caps::has(Capability::CAP_NET_ADMIN) => {
                    "this type of program needs CAP_NET_ADMIN; give the container that capability"
                }
                None => "a seccomp profile or a security module forbids it",
            }
        }
        Errno::INVAL => "the kernel does not support this type, or does not have tokens (Linux 6.9)",
        Errno::NOMEM => "there is not enough memory for it in this memory cgroup",
        _ => "the kernel refused it",
    };
    failed(Some(errno.raw_os_error()), text(errno.raw_os_error()), meaning)
}

fn failed(errno: Option<i32>, error: String, meaning: &str) -> ProbeOutcome {
    ProbeOutcome::Failed { error, errno, meaning: meaning.to_owned() }
}

fn text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// A program that increments a slot of the map and returns `verdict`.
fn counting(map: &OwnedFd, slot: i32, verdict: i32) -> [[u8; 8]; 12] {
    use std::os::fd::AsRawFd;
    /// `BPF_PSEUDO_MAP_FD`, `BPF_FUNC_map_lookup_elem`
    const MAP_FD: u8 = 1;
    const LOOKUP: i32 = 1;
    [
        mov(1, slot),
        // *(u32 *)(r10 - 4) = r1
        instruction(0x63, 10, 1, -4, 0),
        // r2 = r10 - 4
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        // r1 = map, in two slots
        instruction(0x18, 1, MAP_FD, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, LOOKUP),
        // if r0 == 0 skip two
        instruction(0x15, 0, 0, 2, 0),
        mov(1, 1),
        // lock *(u64 *)(r0 + 0) += r1
        instruction(0xdb, 0, 1, 0, 0),
        mov(0, verdict),
        exit(),
    ]
}

fn mov(register: u8, value: i32) -> [u8; 8] {
    instruction(0xb7, register, 0, 0, value)
}

fn exit() -> [u8; 8] {
    instruction(0x95, 0, 0, 0, 0)
}

/// `struct bpf_insn`: the two register numbers share a byte, in the order of the machine's bit fields.
fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "little") { target | source << 4 } else { target << 4 | source };
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [code, registers, o0, o1, v0, v1, v2, v3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Delegation = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };

    #[test]
    fn missing_token_rights_are_named() {
        let xdp = NeededRight::program(PROG_TYPE_XDP, XDP);
        let without = |change: fn(&mut Delegation)| {
            let mut allowed = ALL;
            change(&mut allowed);
            allowed
        };
        assert_eq!(xdp.lacking(&ALL), None);
        for (allowed, key) in [
            (without(|a| a.cmds = 1), "delegate-cmds"),
            (without(|a| a.progs = 2), "delegate-progs"),
            (without(|a| a.attachs = 1), "delegate-attachs"),
        ] {
            assert!(xdp.lacking(&allowed).unwrap().ends_with(key));
        }
        assert!(NeededRight::map(MAP_TYPE_ARRAY).lacking(&without(|a| a.maps = 2)).unwrap().ends_with("delegate-maps"));
    }

    #[test]
    fn a_missing_bpffs_skips_all_later_steps() {
        let probe = probe(Path::new("/nonexistent"), "lo");
        assert!(matches!(probe.steps[0].outcome, ProbeOutcome::Failed { errno: Some(2), .. }));
        assert!(probe.steps[1..].iter().all(|step| step.outcome == ProbeOutcome::Skipped));
        assert_eq!(probe.steps.len(), 10);
        assert!(!probe.works());
        assert_eq!(probe.packets().unwrap(), Packets { xdp: None, tcx: None });
    }

    #[test]
    fn a_bpffs_hidden_by_selinux_is_not_reported_as_missing() {
        let said = |errno: Errno, confinement| unopened(&errno.into(), confinement, Path::new("/sys/fs/bpf"));
        let selinux = || Confinement::selinux("system_u:system_r:container_t:s0");
        let apparmor = || Confinement::apparmor("docker-default (enforce)");
        assert!(said(Errno::ACCESS, selinux()).contains("packaging/selinux"));
        for (errno, confinement) in [(Errno::NOENT, selinux()), (Errno::ACCESS, apparmor()), (Errno::ACCESS, None)] {
            assert!(said(errno, confinement).starts_with("the container has no bpffs there"), "{errno}");
        }
    }

    #[test]
    fn a_token_works_without_pins() {
        let mut probe = probe(Path::new("/nonexistent"), "lo");
        for step in &mut probe.steps {
            step.outcome = ProbeOutcome::Done;
        }
        let fail = |probe: &mut Probe, stage| {
            let step = probe.steps.iter_mut().find(|step| step.stage == stage).unwrap();
            step.outcome = failed(Some(13), "denied".into(), "why");
        };
        fail(&mut probe, ProbeStage::PinMap);
        assert!(probe.works());
        fail(&mut probe, ProbeStage::LoadSocketFilter);
        assert!(!probe.works());
    }

    #[test]
    fn steps_are_serialized_flat() {
        let step = ProbeStep { stage: ProbeStage::MintToken, outcome: failed(Some(1), "denied".into(), "why") };
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(json, r#"{"stage":"mint-token","outcome":"failed","error":"denied","errno":1,"meaning":"why"}"#);
    }
}
