//! Questions to the kernel whose answer is an errno: calls that cannot succeed, and fail differently where the kernel has
//! what is asked for.

use std::os::fd::BorrowedFd;

use aya_obj::generated::bpf_cmd::{BPF_LINK_CREATE, BPF_PROG_LOAD, BPF_TOKEN_CREATE};
use rustix::io::Errno;

use super::{new_fd, raw, zeroed};

/// No descriptor: EBADF wherever it is looked at.
const NO_FD: u32 = u32::MAX;

/// What BPF_TOKEN_CREATE says of a descriptor that is none: EBADF where the command is known, EINVAL where it is not.
pub fn token() -> Option<Errno> {
    let mut attr = zeroed();
    attr.token_create.bpffs_fd = NO_FD;
    // SAFETY: no field is a pointer.
    failure(unsafe { new_fd(BPF_TOKEN_CREATE, &mut attr) })
}

/// What BPF_LINK_CREATE says of a good program and a target that is none: EBADF or ENODEV where links of the attach type are
/// known, EINVAL where they are not.
pub fn link(program: BorrowedFd<'_>, attach_type: u32, target: NoTarget) -> Option<Errno> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    match target {
        NoTarget::Fd => attr.link_create.__bindgen_anon_2.target_fd = NO_FD,
        NoTarget::Interface => attr.link_create.__bindgen_anon_2.target_ifindex = 0,
    }
    attr.link_create.attach_type = attach_type;
    // SAFETY: no field of these kinds of links is a pointer.
    failure(unsafe { new_fd(BPF_LINK_CREATE, &mut attr) })
}

/// The target that [`link`] leaves out.
#[derive(Debug, Clone, Copy)]
pub enum NoTarget {
    /// A cgroup or a perf event.
    Fd,
    /// An interface: there is none of index 0.
    Interface,
}

/// What BPF_PROG_LOAD says of a program without instructions: E2BIG, unless it refuses the type before it looks at them.
pub fn empty_program(program_type: u32, expected_attach_type: u32) -> Option<Errno> {
    let mut attr = zeroed();
    let license = c"GPL";
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = program_type;
    fields.expected_attach_type = expected_attach_type;
    fields.license = license.as_ptr() as u64;
    // SAFETY: `license` is NUL-terminated and static; there are no instructions and no log.
    failure(unsafe { new_fd(BPF_PROG_LOAD, &mut attr) })
}

/// The errno of a call that cannot succeed. A success, which would be a kernel of another mind, is closed again: None.
fn failure<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}
