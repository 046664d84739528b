//! Derives complete attach points from an entry and its ELF section.

use crate::model::annotations::{AttachRequest, InterfaceSelector, kernel_place};
use crate::model::attach_point::{
    AttachPoint, CgroupAttach, Direction, Interface, Order, PlaceOptions, ProbedProcess, ProgramKind, UserProbe, is_told,
    told_place,
};
use crate::model::delegation::section_load;
use crate::model::facts::{CgroupFact, Facts, NetnsFact};
use crate::model::object::{ProgramFacts, SectionAttach};
use crate::model::plan::PlanError;
use crate::model::text::list;

/// BPF_XDP of `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// BPF_TCX_INGRESS; BPF_TCX_EGRESS follows it.
const BPF_TCX_INGRESS: u32 = 46;
/// BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_LSM_MAC
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_TRACE_FEXIT: u32 = 25;
const BPF_LSM_MAC: u32 = 27;

/// The attach types of kinds that have exactly one, or for which a section without a name of one means this one.
const OTHERS: [(ProgramKind, u32); 19] = [
    (ProgramKind::SockOps, 3),
    (ProgramKind::CgroupDevice, 6),
    (ProgramKind::SkMsg, 7),
    (ProgramKind::LircMode2, 16),
    (ProgramKind::FlowDissector, 17),
    (ProgramKind::CgroupSysctl, 18),
    (ProgramKind::TpBtf, 23),
    (ProgramKind::FmodRet, 26),
    (ProgramKind::Iter, 28),
    (ProgramKind::SkLookup, 36),
    (ProgramKind::SkReuseport, 39),
    (ProgramKind::KprobeMulti, 42),
    (ProgramKind::KretprobeMulti, 42),
    (ProgramKind::LsmCgroup, 43),
    (ProgramKind::Netfilter, 45),
    (ProgramKind::UprobeMulti, 48),
    (ProgramKind::UretprobeMulti, 48),
    (ProgramKind::Usdt, 48),
    (ProgramKind::Fsession, 58),
];

/// Added if only `lo` exists and the engine configures the network later.
pub const LATE_NETWORK: &str = "; podman configures the network of a container with a user namespace only after its hooks have run: attach to lo, or run it without one";

/// The `expected_attach_type` that a kind has wherever it attaches; 0 for kinds where it depends on the place.
pub(super) fn attach_type(kind: ProgramKind) -> u32 {
    match kind {
        ProgramKind::Xdp => BPF_XDP,
        ProgramKind::Fentry => BPF_TRACE_FENTRY,
        ProgramKind::Fexit => BPF_TRACE_FEXIT,
        ProgramKind::Lsm => BPF_LSM_MAC,
        kind => OTHERS.iter().find(|(known, _)| *known == kind).map_or(0, |(_, raw)| *raw),
    }
}

/// The entry that `image` without `programs` implies for one program: its section decides.
pub fn from_section(program: &ProgramFacts) -> Result<AttachRequest, PlanError> {
    let eth0 = || InterfaceSelector::Named("eth0".to_owned());
    match &program.declared {
        Some(SectionAttach::Xdp) => Ok(AttachRequest::Xdp { iface: eth0(), mode: None }),
        Some(SectionAttach::Tcx(direction)) => Ok(AttachRequest::Tcx { iface: eth0(), direction: *direction }),
        Some(SectionAttach::Cgroup(kind, attach)) => Ok(AttachRequest::Cgroup { kind: *kind, attach: *attach }),
        Some(SectionAttach::Tracepoint(target)) => Ok(AttachRequest::Tracepoint { target: target.clone() }),
        Some(SectionAttach::RawTracepoint(target)) => Ok(AttachRequest::RawTracepoint { target: target.clone() }),
        Some(SectionAttach::Function(kind @ (ProgramKind::Kprobe | ProgramKind::Kretprobe), _)) => {
            Ok(AttachRequest::Kprobe { target: None, ret: *kind == ProgramKind::Kretprobe })
        }
        Some(SectionAttach::Function(kind, _)) if is_told(*kind) => {
            Ok(AttachRequest::Told { kind: *kind, target: None, options: PlaceOptions::default() })
        }
        Some(SectionAttach::Function(kind, _)) if !kind.supported() => {
            Err(PlanError::Unsupported { function: program.function.clone(), kind: *kind })
        }
        Some(SectionAttach::Function(kind, _)) => Ok(AttachRequest::Trampoline { kind: *kind, target: None }),
        Some(SectionAttach::Uprobe(kind, _)) => Ok(AttachRequest::Uprobe {
            target: None,
            symbol: None,
            offset: 0,
            process: ProbedProcess::Any,
            ret: *kind == ProgramKind::Uretprobe,
        }),
        Some(SectionAttach::Other(kind, _)) if is_told(*kind) => {
            Ok(AttachRequest::Told { kind: *kind, target: None, options: PlaceOptions::default() })
        }
        // The programs of cpumap and devmap run after a redirect, not on an interface.
        Some(SectionAttach::Other(ProgramKind::Xdp, _)) => Err(no_place(program, "an entry for it in programs")),
        Some(SectionAttach::Other(kind, _)) => Err(PlanError::Unsupported { function: program.function.clone(), kind: *kind }),
        None => Err(PlanError::NoPlace {
            function: program.function.clone(),
            section: program.section.clone(),
            remedy: "an entry for it in programs".to_owned(),
        }),
    }
}

/// Refuses an entry whose kind differs from that of the section.
pub fn check_kind(asked: ProgramKind, program: &ProgramFacts) -> Result<(), PlanError> {
    match program.declared.as_ref().map(SectionAttach::kind) {
        // A classifier is loaded in the same way for tc and tcx.
        Some(actual) if !actual.loads_as(asked) => {
            Err(PlanError::OtherKind { function: program.function.clone(), section: program.section.clone(), actual, asked })
        }
        _ => Ok(()),
    }
}

/// The attach points of one entry (several for `iface=*`), the `expected_attach_type` to load the program with, and the
/// function it is loaded for if loading fixes that.
pub fn places(
    asked: &AttachRequest,
    order: Option<&Order>,
    program: &ProgramFacts,
    facts: &Facts,
    late_network: bool,
) -> Result<(Vec<AttachPoint>, u32, Option<String>), PlanError> {
    if let AttachRequest::Trampoline { kind, target } = asked {
        let target = match (target, &program.declared) {
            (Some(target), _) | (None, Some(SectionAttach::Function(_, Some(target)))) => target.clone(),
            _ => {
                return Err(no_place(
                    program,
                    &format!("{kind}:FUNCTION:{}", if *kind == ProgramKind::Lsm { "hook" } else { "function" }),
                ));
            }
        };
        let at = match kind {
            ProgramKind::Lsm => AttachPoint::Lsm { hook: target.clone() },
            ProgramKind::Fexit => AttachPoint::Fexit { function: target.clone() },
            _ => AttachPoint::Fentry { function: target.clone() },
        };
        return Ok((vec![at], attach_type(*kind), Some(target)));
    }
    if let AttachRequest::Told { kind, target, options } = asked {
        let declared = match &program.declared {
            Some(SectionAttach::Function(_, declared) | SectionAttach::Other(_, declared)) => declared.clone(),
            _ => None,
        };
        let target = target.clone().or(declared);
        let at = told_place(*kind, target.as_deref(), options).map_err(|remedy| no_place(program, &remedy))?;
        let load = section_load(&program.section).filter(|_| program.declared.as_ref().is_some_and(|d| d.kind() == *kind));
        let attach = load.map_or_else(|| attach_type(*kind), |load| load.attach_type);
        return Ok((vec![at], attach, target.filter(|_| kind.fixed_at_load())));
    }
    let (at, attach) = told_when_attached(asked, order, program, facts, late_network)?;
    Ok((at, attach, None))
}

/// The number of attach points of one entry.
pub(super) fn count(asked: &AttachRequest, facts: &Facts) -> usize {
    match asked {
        AttachRequest::Xdp { iface: InterfaceSelector::All, .. }
        | AttachRequest::Tcx { iface: InterfaceSelector::All, .. }
        | AttachRequest::Tc { iface: InterfaceSelector::All, .. } => every_interface(facts).count(),
        _ => 1,
    }
}

/// The interfaces that `iface=*` stands for.
fn every_interface(facts: &Facts) -> impl Iterator<Item = &Interface> {
    facts.interfaces.iter().filter(|interface| interface.name != "lo")
}

pub(super) fn no_place(program: &ProgramFacts, remedy: &str) -> PlanError {
    PlanError::NoPlace { function: program.function.clone(), section: program.section.clone(), remedy: remedy.to_owned() }
}

fn told_when_attached(
    asked: &AttachRequest,
    order: Option<&Order>,
    program: &ProgramFacts,
    facts: &Facts,
    late_network: bool,
) -> Result<(Vec<AttachPoint>, u32), PlanError> {
    let no_place = |remedy: &str| no_place(program, remedy);
    let direction_of = |asked: Option<Direction>| {
        let declared = match &program.declared {
            Some(SectionAttach::Tcx(direction)) => *direction,
            _ => None,
        };
        asked.or(declared).ok_or_else(|| no_place("direction=ingress or direction=egress"))
    };
    match asked {
        AttachRequest::Xdp { iface, mode } => {
            let found = interfaces(iface, ProgramKind::Xdp, program, facts, late_network)?;
            let at = found.into_iter().map(|iface| AttachPoint::Xdp { iface, mode: *mode }).collect();
            Ok((at, attach_type(ProgramKind::Xdp)))
        }
        AttachRequest::Tcx { iface, direction } => {
            let direction = direction_of(*direction)?;
            let found = interfaces(iface, ProgramKind::Tcx, program, facts, late_network)?;
            let at = found.into_iter().map(|iface| AttachPoint::Tcx { iface, direction }).collect();
            Ok((at, BPF_TCX_INGRESS + u32::from(direction == Direction::Egress)))
        }
        AttachRequest::Tc { iface, direction } => {
            let direction = direction_of(*direction)?;
            let priority = order.map_or(Order::DEFAULT_PRIORITY, |order| order.priority);
            let found = interfaces(iface, ProgramKind::Tc, program, facts, late_network)?;
            Ok((found.into_iter().map(|iface| AttachPoint::Tc { iface, direction, priority }).collect(), 0))
        }
        AttachRequest::Cgroup { kind, attach } => {
            let attach =
                cgroup_attach(*kind, *attach, program)?.ok_or_else(|| no_place("attach= with one of its attach types"))?;
            Ok((vec![AttachPoint::Cgroup { attach }], attach.raw()))
        }
        AttachRequest::Tracepoint { target } => {
            let declared = match &program.declared {
                Some(SectionAttach::Tracepoint(declared)) => declared.clone(),
                _ => None,
            };
            let tracepoint = target.clone().or(declared).ok_or_else(|| no_place("tracepoint:FUNCTION:category/name"))?;
            Ok((vec![AttachPoint::Tracepoint { tracepoint }], 0))
        }
        AttachRequest::RawTracepoint { target } => {
            let declared = match &program.declared {
                Some(SectionAttach::RawTracepoint(declared)) => declared.clone(),
                _ => None,
            };
            let name = target.clone().or(declared).ok_or_else(|| no_place("raw_tracepoint:FUNCTION:name"))?;
            Ok((vec![AttachPoint::RawTracepoint { name }], 0))
        }
        AttachRequest::Kprobe { target, ret } => {
            let declared = match &program.declared {
                Some(SectionAttach::Function(_, Some(declared))) => kernel_place(declared, *ret),
                _ => None,
            };
            let kind = asked.kind();
            let remedy = format!("{kind}:FUNCTION:function");
            let (function, offset) = target.clone().or(declared).ok_or_else(|| no_place(&remedy))?;
            Ok((vec![AttachPoint::Kprobe { function, offset, ret: *ret }], 0))
        }
        AttachRequest::Uprobe { target, symbol, offset, process, ret } => {
            let declared = match &program.declared {
                Some(SectionAttach::Uprobe(_, declared)) => declared.clone(),
                _ => None,
            };
            let remedy = format!("{}:FUNCTION:path-or-library symbol=name", asked.kind());
            let (target, symbol) = match (target, symbol, declared) {
                (Some(target), symbol, _) => (target.clone(), symbol.clone()),
                (None, symbol, Some((target, declared))) => (target, symbol.clone().or(Some(declared))),
                (None, _, None) => return Err(no_place(&remedy)),
            };
            if symbol.is_none() && *offset == 0 {
                return Err(no_place(&remedy));
            }
            let probe = UserProbe { target, symbol, offset: *offset, process: *process, container_pid: None };
            Ok((vec![AttachPoint::Uprobe { probe, ret: *ret }], 0))
        }
        AttachRequest::Trampoline { .. } | AttachRequest::Told { .. } => Err(no_place("its function")),
    }
}

fn cgroup_attach(
    kind: ProgramKind,
    asked: Option<CgroupAttach>,
    program: &ProgramFacts,
) -> Result<Option<CgroupAttach>, PlanError> {
    if let Some(attach) = asked
        && attach.kind() != kind
    {
        return Err(PlanError::OtherAttach {
            function: program.function.clone(),
            attach: attach.word(),
            belongs: attach.kind(),
            kind,
        });
    }
    let declared = match &program.declared {
        Some(SectionAttach::Cgroup(_, declared)) => *declared,
        _ => None,
    };
    let only = match kind {
        ProgramKind::SockOps => Some(CgroupAttach::SockOps),
        ProgramKind::CgroupSysctl => Some(CgroupAttach::Sysctl),
        ProgramKind::CgroupDevice => Some(CgroupAttach::Device),
        _ => None,
    };
    Ok(asked.or(declared).or(only))
}

fn interfaces(
    wanted: &InterfaceSelector,
    kind: ProgramKind,
    program: &ProgramFacts,
    facts: &Facts,
    late_network: bool,
) -> Result<Vec<Interface>, PlanError> {
    let only_lo = facts.interfaces.iter().all(|i| i.name == "lo");
    let hint = if late_network && only_lo { LATE_NETWORK } else { "" };
    let function = program.function.clone();
    match wanted {
        InterfaceSelector::Named(name) => match facts.interfaces.iter().find(|i| i.name == *name) {
            Some(found) => Ok(vec![found.clone()]),
            None => {
                let known = list(facts.interfaces.iter().map(|i| i.name.as_str()));
                Err(PlanError::NoInterface { kind, function, name: name.clone(), known, hint })
            }
        },
        InterfaceSelector::All => {
            let found: Vec<_> = every_interface(facts).cloned().collect();
            if found.is_empty() { Err(PlanError::NoInterfaces { kind, function, hint }) } else { Ok(found) }
        }
    }
}

/// Refuses an attach point that is not the container's own, unless the policy allows host scope.
pub fn check_place(function: &str, kind: ProgramKind, facts: &Facts, host_scope: bool) -> Result<(), PlanError> {
    let function = function.to_owned();
    if kind.on_cgroup() {
        match facts.cgroup.as_ref() {
            Some(CgroupFact::Own { .. }) => {}
            Some(CgroupFact::Root) | None => return Err(PlanError::RootCgroup { function, kind }),
            Some(CgroupFact::Elsewhere { path, expected }) => {
                return Err(PlanError::OtherCgroup {
                    function,
                    actual: path.display().to_string(),
                    expected: expected.clone(),
                });
            }
            Some(CgroupFact::Shared { path, other }) if !host_scope => {
                let why = format!(
                    "process {other}, which does not belong to the container, is also in its cgroup {}",
                    path.display()
                );
                return Err(PlanError::HostScopePlace { function, kind, why });
            }
            Some(CgroupFact::Shared { .. }) => {}
        }
    }
    if kind.on_netns()
        && !host_scope
        && let Some(why) = foreign_network(facts)
    {
        return Err(PlanError::HostScopePlace { function, kind, why });
    }
    Ok(())
}

/// Why the container could open cgroups other than its own; None if it has its own cgroup and sees only that.
pub fn foreign_cgroup(facts: &Facts) -> Option<String> {
    if facts.cgroup_ns.shared_with_host {
        return Some("it shares the host's cgroup namespace".to_owned());
    }
    if let Some(why) = no_own_cgroup(facts) {
        return Some(why);
    }
    let point = facts.wide_cgroup_mount.as_ref()?;
    Some(format!("cgroups other than its own are mounted at its {}", point.display()))
}

/// Why the container has no cgroup of its own; None if it has one.
pub fn no_own_cgroup(facts: &Facts) -> Option<String> {
    match facts.cgroup.as_ref() {
        Some(CgroupFact::Own { .. }) => None,
        Some(CgroupFact::Root) | None => Some("it is in the root cgroup".to_owned()),
        Some(CgroupFact::Elsewhere { path, expected }) => {
            Some(format!("it is in cgroup {} and not in {expected}, as its configuration says", path.display()))
        }
        Some(CgroupFact::Shared { path, other }) => {
            Some(format!("process {other}, which does not belong to the container, is also in its cgroup {}", path.display()))
        }
    }
}

/// The owner of the container's network if it is neither the container nor its sandbox.
pub fn foreign_network(facts: &Facts) -> Option<String> {
    match &facts.netns {
        NetnsFact::Own | NetnsFact::Sandbox { .. } => None,
        NetnsFact::Host => Some("the container is on the host's network".to_owned()),
        NetnsFact::Foreign { other } => {
            Some(format!("process {other}, which does not belong to the container, is also in its network namespace"))
        }
    }
}
