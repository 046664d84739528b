//! Feature probes: calls that cannot succeed and fail with a different errno if the kernel supports the feature.

use std::os::fd::BorrowedFd;

use aya_obj::generated::bpf_cmd::{BPF_LINK_CREATE, BPF_PROG_LOAD, BPF_TOKEN_CREATE};
use rustix::io::Errno;

use super::{new_fd, raw, zeroed};

/// An invalid descriptor: EBADF when it is used.
const NO_FD: u32 = u32::MAX;

/// The errno of BPF_TOKEN_CREATE for an invalid descriptor: EBADF if the command is supported, EINVAL if it is not.
pub fn token() -> Option<Errno> {
    let mut attr = zeroed();
    attr.token_create.bpffs_fd = NO_FD;
    // SAFETY: no field is a pointer.
    failure(unsafe { new_fd(BPF_TOKEN_CREATE, &mut attr) })
}

/// The errno of BPF_LINK_CREATE for a valid program and an invalid target: EBADF or ENODEV if links of the attach type
/// are supported, EINVAL if they are not.
pub fn link(program: BorrowedFd<'_>, attach_type: u32, target: NoTarget) -> Option<Errno> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    match target {
        NoTarget::Fd => attr.link_create.__bindgen_anon_2.target_fd = NO_FD,
        NoTarget::Interface => attr.link_create.__bindgen_anon_2.target_ifindex = 0,
    }
    attr.link_create.attach_type = attach_type;
    // SAFETY: these kinds of links do not have pointer fields.
    failure(unsafe { new_fd(BPF_LINK_CREATE, &mut attr) })
}

/// The kind of invalid target for [`link`].
#[derive(Debug, Clone, Copy)]
pub enum NoTarget {
    /// A cgroup or a perf event.
    Fd,
    /// An interface: index 0 does not exist.
    Interface,
}

/// The errno of BPF_PROG_LOAD for a program without instructions: E2BIG, unless the type is refused first.
pub fn empty_program(program_type: u32, expected_attach_type: u32) -> Option<Errno> {
    let mut attr = zeroed();
    let license = c"GPL";
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = program_type;
    fields.expected_attach_type = expected_attach_type;
    fields.license = license.as_ptr() as u64;
    // SAFETY: `license` is NUL-terminated and static; there are no instructions and no log buffer.
    failure(unsafe { new_fd(BPF_PROG_LOAD, &mut attr) })
}

/// The errno of a call that is expected to fail. If it succeeds nevertheless, the result is closed and None is
/// returned.
fn failure<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}
