//! BPF objects: reading, loading, attaching, pinning, probing.
//!
//! The bytes are untrusted. `elf`, `btf` and `btf_ext` read them and check every reference; `object`, `map` and
//! `section` extract the declarations; `link`, `fixup` and `core_relo` turn them into the input of BPF_PROG_LOAD;
//! `review` refuses what container scope does not allow. All of these are pure. `load`, `attach`, `pins`, `features`
//! and `inspect` make the system calls. docs/decisions/0004 explains why this does not use a crate.

mod attach;
mod btf;
mod btf_ext;
mod built_in;

mod call_order;
mod core_answer;
mod core_match;
mod core_relo;
mod core_spec;
mod elf;
mod error;
mod externs;
pub mod features;
mod fixup;
#[cfg(test)]
mod fuzz;
pub mod gate;
pub mod gate_exemption;
pub mod guard;
mod implied;
mod insn;
pub mod inspect;
mod kallsyms;
mod kconfig;
mod kernel_function;
mod link;
mod load;
mod map;
mod modules;
mod object;
mod object_error;
pub mod pins;
pub mod police;
mod program_signature;
mod requirements;
mod review;
mod section;
mod shared_library;
mod signable;
mod signed_load;
mod struct_members;
mod submitted;
mod token_matrix;
mod token_needs;
mod token_reach;
mod trial;
mod user_elf;
mod verifier;

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::path::Path;

pub use crate::kernel::btf::BtfError;
pub use crate::kernel::built_in::{BuiltIn, BuiltInRequest};
pub use crate::kernel::call_order::{in_call_order, is_trial, programs_in_call_order};
pub use crate::kernel::core_relo::CoreError;
pub use crate::kernel::elf::ElfError;
pub use crate::kernel::error::KernelError;
pub use crate::kernel::features::{Feature, KERNEL_BTF, Support};
use crate::kernel::inspect::{Inspected, ProgramInfo};
pub use crate::kernel::link::LinkError;
use crate::kernel::object::BpfObject;
pub use crate::kernel::object_error::ObjectError;
pub use crate::kernel::program_signature::{ProgramSignatures, with_signatures};
pub use crate::kernel::requirements::{Requirement, Survey, SurveyedMap, SurveyedProgram, survey};
pub use crate::kernel::review::{
    ExecutionBound, FunctionTypes, GrantedKfuncs, Objection, ReviewRefusal, ReviewedProgram, SubmittedRefusal, TagsError,
    kernel_symbol, review_functions, review_submitted,
};
pub use crate::kernel::signable::{SignableProgram, signable};
pub use crate::kernel::submitted::{
    CodeReference, SubmittedCalls, function_names, replace_references, submitted_calls, without_descriptors,
};
pub use crate::kernel::token_matrix::token_matrix;
pub use crate::kernel::token_needs::object_use;
pub use crate::kernel::token_reach::Probed;
pub use crate::kernel::trial::{TriedProgram, try_programs};
pub use crate::kernel::user_elf::UserElfError;
pub use crate::kernel::verifier::VerifierLog;
use crate::model::attach_point::XdpMode;
use crate::model::gate::GatedContainer;
use crate::model::ids::{OwnerNo, PinName};
use crate::model::object::ObjectFacts;
use crate::model::plan::{PlannedLink, PlannedObject};
use crate::model::police::{CountedCall, Police};
use crate::model::reach::GuardedContainer;
use crate::model::record::LinkRecord;
use crate::sys::keyring;

/// Kernel ids of the loaded objects, in the order of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadedIds {
    /// One id for each planned program.
    pub programs: Vec<u32>,
    /// One id for each planned map; None for one that no program uses and that the kernel does not create.
    pub maps: Vec<Option<u32>>,
}

/// The places that the links of one container attach to, open while the links are created.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places<'a> {
    /// The container's network namespace, for xdp and tcx.
    pub netns: Option<BorrowedFd<'a>>,
    /// The container's cgroup directory, for the cgroup kinds.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The root directory in which the targets of uprobes are looked up; None for our own.
    pub root: Option<BorrowedFd<'a>>,
    /// The pid of the container's init in the host's pid namespace, for uprobes of that process only.
    pub init: Option<u32>,
}

/// The interface to the kernel: everything that has an effect on BPF objects. `LinuxKernel` is the production
/// implementation.
///
/// The methods keep no state between calls: what `load` created is found again by its pin, so that a record with the
/// pins is sufficient for release.
pub trait Kernel {
    /// Probes for a feature by trying it.
    fn probe(&self, feature: Feature) -> Support;

    /// Finds out what this kernel lets a program reach that is loaded with a BPF token. Takes some tenths of a second,
    /// without side effects.
    fn token_reach(&self) -> Probed;

    /// Whether the guard of this version is in force; `directory` is [`crate::paths::Paths::guard`]. A few calls, without
    /// side effects.
    fn is_guarded(&self, directory: &Path) -> bool;

    /// Has the guard in force bind a container's token to its cgroup, and grant it host scope if the policy does.
    fn guard_token(&self, directory: &Path, container: &GuardedContainer) -> Result<(), KernelError>;

    /// Undoes `guard_token`. If it was not done, this is a success; the result says whether it was.
    fn forget_token(&self, directory: &Path, container: &GuardedContainer) -> Result<bool, KernelError>;

    /// Reads the declarations of an object. No system calls: pure parsing of untrusted input.
    fn describe(&self, object: &[u8]) -> Result<ObjectFacts, KernelError>;

    /// Creates an owner's directory in our bpffs, accessible to root only.
    fn make_directory(&self, directory: &Path) -> Result<(), KernelError>;

    /// Creates the maps, loads the programs with the capabilities of the object's scope, and pins each under
    /// `directory`, an existing directory of our bpffs. On error some pins may be left: the caller releases them by the
    /// record.
    fn load(&self, directory: &Path, object: &PlannedObject) -> Result<LoadedIds, KernelError>;

    /// Attaches a program that is pinned under `directory`, pins the link there, and returns the link's id and mode.
    fn attach(&self, directory: &Path, link: &PlannedLink, places: Places<'_>) -> Result<AttachedLink, KernelError>;

    /// Undoes `attach` from the record alone: removes the pin, and what the pin does not hold. If the link is absent,
    /// this is a success; the result says whether it existed.
    fn detach(&self, directory: &Path, link: &LinkRecord) -> Result<bool, KernelError>;

    /// True if a pinned xdp or tcx link still has its interface. It loses the interface when that is deleted.
    fn has_interface(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError>;

    /// Removes one pin. If it is absent, this is a success; the result says whether it existed.
    fn unpin(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError>;

    /// Removes an owner's directory with all pins in it, links first. If it is absent, this is a success.
    fn remove_directory(&self, directory: &Path) -> Result<(), KernelError>;

    /// The kernel's information about a pinned program; None without such a pin. No side effects.
    fn program(&self, directory: &Path, pin: &PinName) -> Result<Option<Inspected<ProgramInfo>>, KernelError>;

    /// Polices a container's bpf(2) calls: pins the counters under `directory`, an existing directory of our bpffs, and
    /// attaches the programs to its cgroup. They stay there until the cgroup is removed.
    fn police(&self, directory: &Path, police: &Police, cgroup: BorrowedFd<'_>) -> Result<(), KernelError>;

    /// What the counters under `directory` say; None without counters. No side effects.
    fn policed_calls(&self, directory: &Path) -> Result<Option<Vec<CountedCall>>, KernelError>;

    /// Gives a container a list of executables in the gate that is in force; `directory` is [`crate::paths::Paths::gate`].
    fn list_executables(&self, directory: &Path, container: &GatedContainer) -> Result<(), KernelError>;

    /// Undoes `list_executables`. If it was not done, this is a success; the result says whether it was.
    fn forget_executables(&self, directory: &Path, container: &GatedContainer) -> Result<bool, KernelError>;

    /// The serial number of the node's keyring for signatures of programs, which `file` contains; None if there is none.
    fn program_keyring(&self, file: &Path) -> Option<i32>;

    /// The owners that have a directory below `fs`, our bpffs; empty if it is not mounted.
    fn directories(&self, fs: &Path) -> Result<Vec<OwnerNo>, KernelError>;
}

/// The result of attaching a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachedLink {
    /// The kernel's id; None for a filter of the traffic control layer, which has no id.
    pub id: Option<u32>,
    /// The mode in which xdp actually runs, whatever was requested.
    pub mode: Option<XdpMode>,
}

/// The running kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxKernel;

impl Kernel for LinuxKernel {
    fn probe(&self, feature: Feature) -> Support {
        features::probe(feature)
    }

    fn token_reach(&self) -> Probed {
        token_reach::probe()
    }

    fn is_guarded(&self, directory: &Path) -> bool {
        guard::is_in_force(directory)
    }

    fn guard_token(&self, directory: &Path, container: &GuardedContainer) -> Result<(), KernelError> {
        guard::bind(directory, container)
    }

    fn forget_token(&self, directory: &Path, container: &GuardedContainer) -> Result<bool, KernelError> {
        guard::unbind(directory, container)
    }

    fn describe(&self, object: &[u8]) -> Result<ObjectFacts, KernelError> {
        Ok(BpfObject::parse(object)?.facts())
    }

    fn load(&self, directory: &Path, object: &PlannedObject) -> Result<LoadedIds, KernelError> {
        load::load(directory, object)
    }

    fn attach(&self, directory: &Path, link: &PlannedLink, places: Places<'_>) -> Result<AttachedLink, KernelError> {
        attach::attach(directory, link, places)
    }

    fn detach(&self, directory: &Path, link: &LinkRecord) -> Result<bool, KernelError> {
        attach::detach(directory, link)
    }

    fn has_interface(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError> {
        let link = inspect::link(directory, pin)?;
        Ok(link.and_then(|link| link.info.interface).is_some_and(|index| index != 0))
    }

    fn unpin(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError> {
        pins::unpin(directory, pin)
    }

    fn make_directory(&self, directory: &Path) -> Result<(), KernelError> {
        pins::make_directory(directory)
    }

    fn remove_directory(&self, directory: &Path) -> Result<(), KernelError> {
        pins::remove_directory(directory)
    }

    fn program(&self, directory: &Path, pin: &PinName) -> Result<Option<Inspected<ProgramInfo>>, KernelError> {
        inspect::program(directory, pin)
    }

    fn police(&self, directory: &Path, police: &Police, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
        police::attach(directory, police, cgroup)
    }

    fn policed_calls(&self, directory: &Path) -> Result<Option<Vec<CountedCall>>, KernelError> {
        police::pinned_calls(directory)
    }

    fn list_executables(&self, directory: &Path, container: &GatedContainer) -> Result<(), KernelError> {
        gate::bind(directory, container)
    }

    fn forget_executables(&self, directory: &Path, container: &GatedContainer) -> Result<bool, KernelError> {
        gate::unbind(directory, container)
    }

    fn program_keyring(&self, file: &Path) -> Option<i32> {
        let serial = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
        keyring::exists(serial).then_some(serial)
    }

    fn directories(&self, fs: &Path) -> Result<Vec<OwnerNo>, KernelError> {
        Ok(pins::list(fs)?.owners.into_iter().map(|(owner, _)| owner).collect())
    }
}
