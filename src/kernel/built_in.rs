//! BPF objects that are part of bpfman-hook: compiled with the source tree, embedded in the binary, and loaded with the
//! capabilities of host scope. Unlike the objects of images they may call kernel functions.
//!
//! The section of a program says what it is, as in libbpf: `lsm/HOOK`, `lsm.s/HOOK` (sleepable), `lsm_cgroup/HOOK`, or
//! any section of an image's program.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::kernel::error::KernelError;
use crate::kernel::gate_exemption::exempted;
use crate::kernel::load::{self, BuiltInParts};
use crate::kernel::object::BpfObject;
use crate::kernel::section;
use crate::model::attach_point::ProgramKind;
use crate::model::ids::PinName;
use crate::model::object::SectionAttach;
use crate::model::plan::PlannedProgram;
use crate::sys::bpf::{self, LinkTarget};
use crate::sys::{Errno, SysError};

/// `enum bpf_attach_type`
const LSM_MAC: u32 = 27;
const LSM_CGROUP: u32 = 43;

/// What to load of an object.
#[derive(Debug, Default)]
pub struct BuiltInRequest<'o> {
    /// The object, ELF.
    pub object: &'o [u8],
    /// The functions of the programs to load.
    pub programs: &'o [&'o str],
    /// Values for variables in `.rodata` and `.data`: the name, and exactly as many bytes as the variable has.
    pub globals: Vec<(String, Vec<u8>)>,
    /// Maps to use instead of the object's own maps of these names.
    pub maps: Vec<(&'o str, OwnedFd)>,
}

/// A loaded object: its programs and the maps that they use. Nothing is pinned. When it is dropped, the kernel frees
/// what no link, cgroup or pin refers to.
#[derive(Debug)]
pub struct BuiltIn {
    programs: BTreeMap<String, (PlannedProgram, OwnedFd)>,
    maps: BTreeMap<String, OwnedFd>,
}

impl BuiltIn {
    /// Loads programs. The caller needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    ///
    /// # Errors
    /// [`KernelError::Feature`] if the kernel refuses LSM programs or does not call them; [`KernelError::Link`] for a
    /// kernel function that is neither there nor weak; [`KernelError::Rejected`] with the verifier's log.
    pub fn load(request: BuiltInRequest<'_>) -> Result<Self, KernelError> {
        let planned = plan(&BpfObject::parse(request.object)?, request.programs)?;
        let load = || load::load_built_in(request.object, &planned, &request.globals, request.maps);
        let parts = exempted(load)?;
        let BuiltInParts { programs, maps } = parts;
        let named = planned.into_iter().zip(programs).map(|(planned, fd)| (planned.function.clone(), (planned, fd)));
        Ok(Self { programs: named.collect(), maps })
    }

    /// A program by its function.
    pub fn program(&self, function: &str) -> Option<BorrowedFd<'_>> {
        self.programs.get(function).map(|(_, fd)| fd.as_fd())
    }

    /// A map by its name in the object, if a loaded program uses it.
    pub fn map(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.maps.get(name).map(AsFd::as_fd)
    }

    /// Attaches an LSM program to its hook for the whole host. It is detached when the link has neither a descriptor nor
    /// a pin.
    pub fn link(&self, function: &str) -> Result<OwnedFd, KernelError> {
        let (planned, fd) = self.find(function)?;
        bpf::trampoline_link(fd.as_fd()).map_err(|errno| failed(planned, "the host", errno))
    }

    /// Attaches an `lsm_cgroup` program to a cgroup by a link: for the processes in it and below it, until the link has
    /// neither a descriptor nor a pin.
    pub fn link_to(&self, function: &str, cgroup: BorrowedFd<'_>) -> Result<OwnedFd, KernelError> {
        let (planned, fd) = self.find(function)?;
        let made = bpf::link_create(fd.as_fd(), LinkTarget::Fd(cgroup), planned.expected_attach_type, 0);
        made.map_err(|errno| failed(planned, CGROUP, errno))
    }

    /// Attaches an `lsm_cgroup` program to a cgroup without a link: it stays until [`BuiltIn::detach`] or until the
    /// cgroup is removed, without a process, a descriptor or a pin.
    pub fn attach(&self, function: &str, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
        let (planned, fd) = self.find(function)?;
        let made = bpf::cgroup_attach(fd.as_fd(), cgroup, planned.expected_attach_type);
        made.map_err(|errno| failed(planned, CGROUP, errno))
    }

    /// Undoes [`BuiltIn::attach`]. If the program is not attached there, this is a success; the result says whether it was.
    pub fn detach(&self, function: &str, cgroup: BorrowedFd<'_>) -> Result<bool, KernelError> {
        let (planned, fd) = self.find(function)?;
        match bpf::cgroup_detach(fd.as_fd(), cgroup, planned.expected_attach_type) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(SysError::io("detach from the cgroup", function.to_owned())(errno).into()),
        }
    }

    fn find(&self, function: &str) -> Result<(&PlannedProgram, &OwnedFd), KernelError> {
        self.programs.get(function).map(|(planned, fd)| (planned, fd)).ok_or_else(|| KernelError::NoProgram {
            function: function.to_owned(),
            there: self.programs.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

const CGROUP: &str = "the cgroup";

fn failed(planned: &PlannedProgram, place: &str, source: Errno) -> KernelError {
    KernelError::Attach {
        kind: planned.kind.word(),
        program: planned.function.clone(),
        place: place.to_owned(),
        why: match source {
            Errno::PERM => "a program is attached exclusively to a parent cgroup, or CAP_NET_ADMIN is missing",
            Errno::BADF => "it is not a directory of the cgroup2 hierarchy",
            Errno::NOENT => "the cgroup is gone",
            Errno::TOOBIG => "the place already has the maximum number of programs",
            _ => "",
        },
        source,
    }
}

/// The programs with what their sections declare.
fn plan(object: &BpfObject<'_>, functions: &[&str]) -> Result<Vec<PlannedProgram>, KernelError> {
    let planned = |(n, function): (usize, &&str)| {
        let found = object.programs().find(|program| program.name == **function).ok_or_else(|| KernelError::NoProgram {
            function: (*function).to_owned(),
            there: object.programs().map(|program| program.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let (kind, expected_attach_type, target) = declared(object.elf.sections[found.section].name);
        Ok(PlannedProgram { function: found.name.clone(), kind, expected_attach_type, target, pin: PinName::program(n) })
    };
    functions.iter().enumerate().map(planned).collect()
}

/// Kind, `expected_attach_type` and LSM hook by the section. A section that declares nothing is treated as an LSM program
/// without a hook, which loading refuses by name.
fn declared(section: &str) -> (ProgramKind, u32, Option<String>) {
    if let Some(hook) = section.strip_prefix("lsm_cgroup/") {
        return (ProgramKind::LsmCgroup, LSM_CGROUP, Some(hook.to_owned()));
    }
    match section::declared(section) {
        Some(SectionAttach::Function(ProgramKind::Lsm, hook)) => (ProgramKind::Lsm, LSM_MAC, hook),
        Some(other) => (other.kind(), 0, None),
        None => (ProgramKind::Lsm, LSM_MAC, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_say_how_a_program_attaches() {
        let hook = || Some("bpf".to_owned());
        for (section, expected) in [
            ("lsm/bpf", (ProgramKind::Lsm, LSM_MAC, hook())),
            ("lsm.s/bpf", (ProgramKind::Lsm, LSM_MAC, hook())),
            ("lsm_cgroup/bpf", (ProgramKind::LsmCgroup, LSM_CGROUP, hook())),
            ("raw_tp/sys_enter", (ProgramKind::RawTracepoint, 0, None)),
            ("xdp", (ProgramKind::Xdp, 0, None)),
        ] {
            assert_eq!(declared(section), expected, "{section}");
        }
    }
}
