//! Links: the attachment of a program. A link is detached when its last descriptor or pin is gone. After removing a
//! pin this happens slightly later, after an RCU grace period and on a kernel thread (kernel/bpf/inode.c,
//! bpf_free_inode; kernel/bpf/syscall.c, bpf_link_put).

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_attr;
use aya_obj::generated::bpf_cmd::{BPF_LINK_CREATE, BPF_PROG_ATTACH, BPF_PROG_DETACH, BPF_RAW_TRACEPOINT_OPEN};
use rustix::io::Errno;

use super::{call, len, new_fd, raw, zeroed};

/// The target of a link.
#[derive(Debug, Clone, Copy)]
pub enum LinkTarget<'a> {
    /// A cgroup directory or a perf event.
    Fd(BorrowedFd<'a>),
    /// A network interface of the calling thread's network namespace.
    Interface(u32),
}

/// Attaches a program. `attach_type` is from `enum bpf_attach_type`; `flags` are those of the attach type.
pub fn link_create(program: BorrowedFd<'_>, target: LinkTarget<'_>, attach_type: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    match target {
        LinkTarget::Fd(fd) => attr.link_create.__bindgen_anon_2.target_fd = raw(fd),
        LinkTarget::Interface(index) => attr.link_create.__bindgen_anon_2.target_ifindex = index,
    }
    attr.link_create.attach_type = attach_type;
    attr.link_create.flags = flags;
    // SAFETY: these kinds of links do not have pointer fields.
    unsafe { new_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a netfilter program in the calling thread's network namespace.
///
/// # Errors
/// EBUSY if a program has the same family, hook and priority.
pub fn netfilter_link(program: BorrowedFd<'_>, family: u32, hook: u32, priority: i32) -> Result<OwnedFd, Errno> {
    const NETFILTER: u32 = 45;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.attach_type = NETFILTER;
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.link_create.__bindgen_anon_3.netfilter };
    (fields.pf, fields.hooknum, fields.priority) = (family, hook, priority);
    // SAFETY: the fields of this kind of link are numbers.
    unsafe { new_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a program to kernel functions by their names.
///
/// # Errors
/// ESRCH if one does not exist or cannot be traced, EINVAL before Linux 5.18.
pub fn kprobe_multi_link(
    program: BorrowedFd<'_>,
    attach_type: u32,
    functions: &[CString],
    returns: bool,
) -> Result<OwnedFd, Errno> {
    let names: Vec<u64> = functions.iter().map(|name| name.as_ptr() as u64).collect();
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.attach_type = attach_type;
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.link_create.__bindgen_anon_3.kprobe_multi };
    fields.flags = returns.into();
    fields.cnt = len(names.len())?;
    fields.syms = names.as_ptr() as u64;
    // SAFETY: `syms` has `cnt` pointers to strings that end with a NUL; all outlive the call.
    unsafe { new_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a program to offsets of an open file, for every process that maps it or for one.
///
/// # Errors
/// EINVAL before Linux 6.6, ESRCH if the process is gone.
pub fn uprobe_multi_link(
    program: BorrowedFd<'_>,
    attach_type: u32,
    file: BorrowedFd<'_>,
    offsets: &[u64],
    returns: bool,
    process: Option<u32>,
) -> Result<OwnedFd, Errno> {
    // The kernel takes a path; see `uprobe_event`.
    let path = CString::new(format!("/proc/self/fd/{}", raw(file))).map_err(|_| Errno::INVAL)?;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attr.link_create.attach_type = attach_type;
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.link_create.__bindgen_anon_3.uprobe_multi };
    fields.path = path.as_ptr() as u64;
    fields.offsets = offsets.as_ptr() as u64;
    fields.cnt = len(offsets.len())?;
    fields.flags = returns.into();
    fields.pid = process.unwrap_or_default();
    // SAFETY: `path` ends with a NUL, `offsets` has `cnt` numbers; both outlive the call.
    unsafe { new_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a raw tracepoint program to a tracepoint by name, host-wide.
///
/// # Errors
/// ENOENT if the kernel does not have this tracepoint.
pub fn raw_tracepoint_open(program: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut attr = zeroed();
    attr.raw_tracepoint.name = name.as_ptr() as u64;
    attr.raw_tracepoint.prog_fd = raw(program);
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    unsafe { new_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }
}

/// Attaches a program to the kernel function or LSM hook for which it was loaded. BPF_LINK_CREATE accepts such
/// programs only since Linux 5.19; this command always has.
pub fn trampoline_link(program: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.raw_tracepoint.prog_fd = raw(program);
    // SAFETY: the only pointer is null, which means that the program knows its target.
    unsafe { new_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }
}

/// Attaches a program to a cgroup without a link: it stays attached until it is detached or the cgroup is removed,
/// whatever happens to descriptors and pins. Other programs of the attach type stay attached (BPF_F_ALLOW_MULTI). The
/// caller needs CAP_NET_ADMIN.
///
/// # Errors
/// EPERM if a program is attached exclusively to a parent cgroup, EINVAL if the program is already attached there or the
/// kernel does not know the attach type.
pub fn cgroup_attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> Result<(), Errno> {
    const ALLOW_MULTI: u32 = 1 << 1;
    let mut attr = on_cgroup(program, cgroup, attach_type);
    attr.__bindgen_anon_5.attach_flags = ALLOW_MULTI;
    // SAFETY: no field is a pointer.
    unsafe { call(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Undoes [`cgroup_attach`].
///
/// # Errors
/// ENOENT if the program is not attached there.
pub fn cgroup_detach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> Result<(), Errno> {
    let mut attr = on_cgroup(program, cgroup, attach_type);
    // SAFETY: no field is a pointer.
    unsafe { call(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

fn on_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> bpf_attr {
    let mut attr = zeroed();
    attr.__bindgen_anon_5.attach_type = attach_type;
    attr.__bindgen_anon_5.attach_bpf_fd = raw(program);
    attr.__bindgen_anon_5.__bindgen_anon_1.target_fd = raw(cgroup);
    attr
}
