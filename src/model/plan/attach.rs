//! From what an entry asks for and what its ELF section says to places, complete.

use crate::model::annotations::{AttachRequest, InterfaceSelector};
use crate::model::attach_point::{AttachPoint, CgroupAttach, Direction, Interface, ProgramKind};
use crate::model::facts::{CgroupFact, Facts, NetnsFact};
use crate::model::object::{ProgramFacts, SectionAttach};
use crate::model::plan::PlanError;

/// BPF_XDP of `enum bpf_attach_type`.
const BPF_XDP: u32 = 37;
/// BPF_TCX_INGRESS; BPF_TCX_EGRESS follows it.
const BPF_TCX_INGRESS: u32 = 46;

/// Said where only `lo` is there and the engine configures the network later.
pub const LATE_NETWORK: &str = "; podman configures the network of a container with a user namespace only after its hooks ran, so attach to lo or run it without one";

/// What `image` without `programs` means for one program: as its section says.
pub fn from_section(program: &ProgramFacts) -> Result<AttachRequest, PlanError> {
    let eth0 = || InterfaceSelector::Named("eth0".to_owned());
    match &program.declared {
        Some(SectionAttach::Xdp) => Ok(AttachRequest::Xdp { iface: eth0(), mode: None }),
        Some(SectionAttach::Tcx(direction)) => Ok(AttachRequest::Tcx { iface: eth0(), direction: *direction }),
        Some(SectionAttach::Cgroup(kind, attach)) => Ok(AttachRequest::Cgroup { kind: *kind, attach: *attach }),
        Some(SectionAttach::Tracepoint(target)) => Ok(AttachRequest::Tracepoint { target: target.clone() }),
        Some(SectionAttach::RawTracepoint(target)) => Ok(AttachRequest::RawTracepoint { target: target.clone() }),
        Some(SectionAttach::Other(kind)) => Err(PlanError::Unsupported { function: program.function.clone(), kind: *kind }),
        None => Err(PlanError::NoPlace {
            function: program.function.clone(),
            section: program.section.clone(),
            remedy: "an entry for it in programs".to_owned(),
        }),
    }
}

/// Refuses an entry whose kind is another than the section's.
pub fn check_kind(asked: ProgramKind, program: &ProgramFacts) -> Result<(), PlanError> {
    match program.declared.as_ref().map(SectionAttach::kind) {
        // A classifier is loaded in the same way for tc and for tcx.
        Some(actual) if actual != asked && !(actual == ProgramKind::Tc && asked == ProgramKind::Tcx) => {
            Err(PlanError::OtherKind { function: program.function.clone(), section: program.section.clone(), actual, asked })
        }
        _ => Ok(()),
    }
}

/// The places of one entry, several where `iface=*`, and the `expected_attach_type` to load the program with.
pub fn places(
    asked: &AttachRequest,
    program: &ProgramFacts,
    facts: &Facts,
    late_network: bool,
) -> Result<(Vec<AttachPoint>, u32), PlanError> {
    let no_place = |remedy: &str| PlanError::NoPlace {
        function: program.function.clone(),
        section: program.section.clone(),
        remedy: remedy.to_owned(),
    };
    match asked {
        AttachRequest::Xdp { iface, mode } => {
            let found = interfaces(iface, ProgramKind::Xdp, program, facts, late_network)?;
            let at = found.into_iter().map(|iface| AttachPoint::Xdp { iface, mode: *mode }).collect();
            Ok((at, BPF_XDP))
        }
        AttachRequest::Tcx { iface, direction } => {
            let declared = match &program.declared {
                Some(SectionAttach::Tcx(direction)) => *direction,
                _ => None,
            };
            let direction = direction.or(declared).ok_or_else(|| no_place("direction=ingress or direction=egress"))?;
            let found = interfaces(iface, ProgramKind::Tcx, program, facts, late_network)?;
            let at = found.into_iter().map(|iface| AttachPoint::Tcx { iface, direction }).collect();
            Ok((at, BPF_TCX_INGRESS + u32::from(direction == Direction::Egress)))
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
    let only = (kind == ProgramKind::SockOps).then_some(CgroupAttach::SockOps);
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
                let known = super::make::list(facts.interfaces.iter().map(|i| i.name.as_str()));
                Err(PlanError::NoInterface { kind, function, name: name.clone(), known, hint })
            }
        },
        InterfaceSelector::All => {
            let found: Vec<_> = facts.interfaces.iter().filter(|i| i.name != "lo").cloned().collect();
            if found.is_empty() { Err(PlanError::NoInterfaces { kind, function, hint }) } else { Ok(found) }
        }
    }
}

/// Refuses a place that is not the container's own, unless policy allows host scope.
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
                let why = format!("process {other}, which is not the container's, is in its cgroup {} too", path.display());
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

/// Why the container could open cgroups that are not its own; None where it has one, and sees that one only.
pub fn foreign_cgroup(facts: &Facts) -> Option<String> {
    if facts.cgroup_ns.shared_with_host {
        return Some("it shares the host's cgroup namespace".to_owned());
    }
    match facts.cgroup.as_ref() {
        Some(CgroupFact::Own { .. }) => {}
        Some(CgroupFact::Root) | None => return Some("it is in the root cgroup".to_owned()),
        Some(CgroupFact::Elsewhere { path, expected }) => {
            return Some(format!("it is in cgroup {} and not in {expected}, as its configuration says", path.display()));
        }
        Some(CgroupFact::Shared { path, other }) => {
            return Some(format!("process {other}, which is not the container's, is in its cgroup {} too", path.display()));
        }
    }
    let point = facts.wide_cgroup_mount.as_ref()?;
    Some(format!("cgroups of others are mounted at its {}", point.display()))
}

/// Whose the container's network is, where it is not its own or its sandbox's.
pub fn foreign_network(facts: &Facts) -> Option<String> {
    match &facts.netns {
        NetnsFact::Own | NetnsFact::Sandbox { .. } => None,
        NetnsFact::Host => Some("the container is on the host's network".to_owned()),
        NetnsFact::Foreign { other } => {
            Some(format!("process {other}, which is not the container's, is in its network namespace too"))
        }
    }
}
