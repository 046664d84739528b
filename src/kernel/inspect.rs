//! The kernel's information about pinned objects, for `list`, `get` and `inspect`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::kernel::error::KernelError;
use crate::kernel::pins;
use crate::model::ids::PinName;
use crate::sys::{Errno, bpf};

pub use crate::sys::bpf::{LinkInfo, MapInfo, ProgramInfo};

/// The kernel's information about an object, and its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected<T> {
    /// The kernel's information.
    pub info: T,
    /// Kernel memory in bytes by the kernel's own estimate; None for objects without one, such as links.
    pub memory: Option<u64>,
}

/// The kernel's information about a pinned program; None if the pin does not exist.
pub fn program(directory: &Path, pin: &PinName) -> Result<Option<Inspected<ProgramInfo>>, KernelError> {
    inspect(directory, pin, |object| bpf::program_info(object.as_fd()))
}

/// The kernel's information about the program with an id.
///
/// # Errors
/// ENOENT if it does not exist, EPERM without CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> Result<Inspected<ProgramInfo>, Errno> {
    let program = bpf::program_by_id(id)?;
    Ok(Inspected { info: bpf::program_info(program.as_fd())?, memory: bpf::locked_memory(program.as_fd()) })
}

/// The kernel's link ids are below this value, the end of a positive `int`; we assign ids from here on to filters.
pub const FILTERS: u32 = 1 << 31;

/// True if the kernel has a program with this id.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn has_program(id: u32) -> Result<bool, Errno> {
    bpf::has_id(bpf::ObjectKind::Program, id)
}

/// The kernel's information about the link with an id; None if it does not exist.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn link_by_id(id: u32) -> Result<Option<LinkInfo>, Errno> {
    match bpf::link_by_id(id) {
        Ok(link) => bpf::link_info(link.as_fd()).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The kernel's information about a pinned link; None if the pin does not exist.
pub fn link(directory: &Path, pin: &PinName) -> Result<Option<Inspected<LinkInfo>>, KernelError> {
    inspect(directory, pin, |object| match bpf::is_link(object.as_fd()) {
        true => bpf::link_info(object.as_fd()),
        // A filter: its program is pinned instead of a link.
        false => {
            let program = bpf::program_id(object.as_fd())?;
            Ok(LinkInfo { id: 0, link_type: 0, program, interface: None, cgroup: None })
        }
    })
}

/// Every program of the kernel by its id. Programs that are unloaded in the meantime are left out.
pub fn all_programs() -> Result<Vec<(u32, Inspected<ProgramInfo>)>, KernelError> {
    let ids = bpf::ids(bpf::ObjectKind::Program);
    let ids = ids.map_err(|source| KernelError::Info { what: "the programs of the kernel".to_owned(), source })?;
    let mut programs = Vec::new();
    for id in ids {
        match program_by_id(id) {
            Ok(program) => programs.push((id, program)),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(KernelError::Info { what: format!("program {id}"), source }),
        }
    }
    Ok(programs)
}

fn inspect<T>(
    directory: &Path,
    pin: &PinName,
    ask: impl FnOnce(&OwnedFd) -> Result<T, Errno>,
) -> Result<Option<Inspected<T>>, KernelError> {
    let Some(object) = pins::open(directory, pin)? else { return Ok(None) };
    let info = ask(&object).map_err(|source| KernelError::Info { what: pin.to_string(), source })?;
    Ok(Some(Inspected { info, memory: bpf::locked_memory(object.as_fd()) }))
}
