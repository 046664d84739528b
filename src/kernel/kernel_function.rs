//! Programs that are loaded for something of the kernel: a function, an LSM hook, a tracepoint, an iterator, a structure
//! of functions.

use crate::kernel::btf::BtfKind;
use crate::kernel::core_relo::CoreTarget;
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, Support};
use crate::kernel::modules::KernelType;
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::struct_members;
use crate::model::attach_point::ProgramKind;
use crate::model::plan::PlannedProgram;

/// The kernel feature that a kind requires.
pub(crate) fn feature(kind: ProgramKind) -> Feature {
    if matches!(kind, ProgramKind::Lsm | ProgramKind::LsmCgroup) { Feature::Lsm } else { Feature::Tracing }
}

/// Refuses an LSM program that would load and attach but never be called, because bpf is not an active LSM.
pub(crate) fn check(planned: &PlannedProgram) -> Result<(), KernelError> {
    if feature(planned.kind) != Feature::Lsm {
        return Ok(());
    }
    match features::probe(Feature::Lsm) {
        found @ Support::No(_) => Err(KernelError::feature(format!("load program {}", planned.function), Feature::Lsm, found)),
        // Loading the program reports this itself.
        Support::Yes | Support::Unknown(_) => Ok(()),
    }
}

/// What a program is loaded for, in the kernel's types: a function, a tracepoint, an iterator.
pub(crate) fn find(planned: &PlannedProgram, target: Option<&CoreTarget<'_>>) -> Result<KernelType, KernelError> {
    let name = planned.target.as_deref().unwrap_or_default();
    let (kind, wanted, what) = match planned.kind {
        ProgramKind::Lsm | ProgramKind::LsmCgroup => (BtfKind::Func, format!("bpf_lsm_{name}"), format!("LSM hook {name:?}")),
        ProgramKind::TpBtf => (BtfKind::Typedef, format!("btf_trace_{name}"), format!("tracepoint {name:?}")),
        ProgramKind::Iter => (BtfKind::Func, format!("bpf_iter_{name}"), format!("iterator {name:?}")),
        _ => (BtfKind::Func, name.to_owned(), format!("function {name:?} that programs can attach to")),
    };
    target.and_then(|target| target.find(kind, &wanted)).ok_or_else(|| KernelError::NoKernelFunction {
        kind: planned.kind,
        program: planned.function.clone(),
        what,
    })
}

/// The structure of the kernel that a function of a structure is loaded for, and the index of its member there, which is
/// the attach type.
pub(crate) fn member(
    object: &BpfObject<'_>,
    planned: &PlannedProgram,
    function: &Function,
    target: Option<&CoreTarget<'_>>,
) -> Result<(KernelType, u32), KernelError> {
    let missing = |what: String| KernelError::NoKernelFunction { kind: planned.kind, program: planned.function.clone(), what };
    let mut members = struct_members::members(object, target.map(CoreTarget::btf));
    let member = members
        .remove(&(function.section, function.start))
        .ok_or_else(|| missing("place for it: no structure in a section .struct_ops of the object has it".to_owned()))?;
    let structure = target.and_then(|target| target.find(BtfKind::Struct, &member.structure));
    match (structure, member.index) {
        (Some(structure), Some(index)) => Ok((structure, index)),
        (None, _) => Err(missing(format!("structure {}", member.structure))),
        (_, None) => Err(missing(format!("member {} of the structure {}", member.name, member.structure))),
    }
}
