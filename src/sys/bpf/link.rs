//! Links: a program at a place. A link detaches when its last fd or pin is gone; with a pin a little later than that, after
//! an RCU grace period and on a kernel thread (kernel/bpf/inode.c, bpf_free_inode; kernel/bpf/syscall.c, bpf_link_put).

use std::ffi::CString;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_cmd::{BPF_LINK_CREATE, BPF_RAW_TRACEPOINT_OPEN};
use rustix::io::Errno;

use super::{new_fd, raw, zeroed};

/// Where a link goes.
#[derive(Debug, Clone, Copy)]
pub enum LinkTarget<'a> {
    /// A cgroup directory or a perf event.
    Fd(BorrowedFd<'a>),
    /// A network interface of the calling thread's network namespace.
    Interface(u32),
}

/// Attaches a program. `attach_type` is of `enum bpf_attach_type`, `flags` are those of the attach type.
pub fn link_create(program: BorrowedFd<'_>, target: LinkTarget<'_>, attach_type: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
    match target {
        LinkTarget::Fd(fd) => attr.link_create.__bindgen_anon_2.target_fd = raw(fd),
        LinkTarget::Interface(index) => attr.link_create.__bindgen_anon_2.target_ifindex = index,
    }
    attr.link_create.attach_type = attach_type;
    attr.link_create.flags = flags;
    // SAFETY: no field of these kinds of links is a pointer.
    unsafe { new_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a raw tracepoint program to a tracepoint by name, host-wide.
///
/// # Errors
/// ENOENT where the kernel has no such tracepoint.
pub fn raw_tracepoint_open(program: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut attr = zeroed();
    attr.raw_tracepoint.name = name.as_ptr() as u64;
    attr.raw_tracepoint.prog_fd = raw(program);
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    unsafe { new_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attr) }
}

/// Opens the perf event of a tracepoint, by the number in tracefs' `events/<category>/<name>/id`, on CPU 0 for all
/// processes. A program that is linked to it runs on every CPU: tracepoint programs hang on the event, not on the CPU
/// (kernel/trace/bpf_trace.c, perf_event_attach_bpf_prog).
///
/// # Errors
/// EACCES without CAP_PERFMON where perf_event_paranoid forbids it.
pub fn tracepoint_event(id: u64) -> Result<OwnedFd, Errno> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    /// `struct perf_event_attr` up to and with its first version, PERF_ATTR_SIZE_VER0 of uapi/linux/perf_event.h.
    #[repr(C)]
    struct Attr {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        bp_type: u32,
        config1: u64,
    }
    const { assert!(size_of::<Attr>() == 64, "PERF_ATTR_SIZE_VER0") };
    let attr = Attr {
        kind: PERF_TYPE_TRACEPOINT,
        size: 64,
        config: id,
        sample_period: 1,
        sample_type: 0,
        read_format: 0,
        flags: 0,
        wakeup_events: 1,
        bp_type: 0,
        config1: 0,
    };
    // SAFETY: the kernel reads `size` bytes of `attr`, which it has; the other arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
