//! Perf events to which programs are attached: tracepoints, and probes in functions of the kernel and of user space.
//!
//! Probes are events of separate PMUs (`/sys/bus/event_source/devices/{kprobe,uprobe}`): the kernel creates the probe
//! with the event and removes it with the event's last descriptor, so that nothing remains in tracefs when a process
//! dies.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::model::proxy::PerfEventCall;
use crate::model::proxy::perf_event::{EVENT_ATTR_SIZE, event};

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// The `config` bit for return probes: `format/retprobe` of both PMUs is `config:0` (kernel/events/core.c,
/// PERF_PROBE_CONFIG_IS_RETPROBE).
const RETURNS: u64 = 1;
/// `exclude_kernel` of the bit field in `struct perf_event_attr`.
const EXCLUDE_KERNEL: u64 = 1 << 5;

/// `struct perf_event_attr` up to and including `config2`, PERF_ATTR_SIZE_VER1 of uapi/linux/perf_event.h.
#[repr(C)]
#[derive(Default)]
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
    config2: u64,
}
const _: () = assert!(size_of::<Attr>() == EVENT_ATTR_SIZE, "PERF_ATTR_SIZE_VER1");

/// Opens the perf event of a tracepoint by its id from tracefs' `events/<category>/<name>/id`, on CPU 0 for all
/// processes. A program attached to it runs on every CPU: programs are attached to the event, not to the CPU
/// (kernel/trace/bpf_trace.c, perf_event_attach_bpf_prog).
///
/// # Errors
/// EACCES without CAP_PERFMON if perf_event_paranoid forbids it.
pub fn tracepoint_event(id: u64) -> Result<OwnedFd, Errno> {
    let attr = Attr { kind: PERF_TYPE_TRACEPOINT, config: id, sample_period: 1, wakeup_events: 1, ..Attr::default() };
    open(attr, None)
}

/// Opens the perf event of a tracepoint for the calling thread in user space, which is what perf_event_paranoid 2 allows
/// a process without CAP_PERFMON in the initial user namespace.
pub fn own_tracepoint_event(id: u64) -> Result<OwnedFd, Errno> {
    open(Attr { kind: PERF_TYPE_TRACEPOINT, config: id, sample_period: 1, flags: EXCLUDE_KERNEL, ..Attr::default() }, Some(0))
}

/// Opens an event of the calling thread's CPU time, in user space.
pub fn software_event() -> Result<OwnedFd, Errno> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const TASK_CLOCK: u64 = 1;
    let attr = Attr { kind: PERF_TYPE_SOFTWARE, config: TASK_CLOCK, sample_period: 1_000_000_000, ..Attr::default() };
    open(Attr { flags: EXCLUDE_KERNEL, ..attr }, Some(0))
}

/// Opens the clock of a processor, which samples whatever runs there some times per second.
///
/// # Errors
/// ENODEV if the processor is offline, EINVAL if it does not exist or the frequency is above
/// kernel.perf_event_max_sample_rate.
pub fn clock_event(cpu: u32, frequency: u32) -> Result<OwnedFd, Errno> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    /// `freq` of the bit field in `struct perf_event_attr`: `sample_period` is a frequency.
    const FREQUENCY: u64 = 1 << 10;
    let attr = Attr { kind: PERF_TYPE_SOFTWARE, sample_period: frequency.into(), flags: FREQUENCY, ..Attr::default() };
    open_on(attr, -1, i32::try_from(cpu).map_err(|_| Errno::INVAL)?)
}

/// The type number of a PMU; None if the kernel does not have it.
pub fn pmu_type(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/sys/bus/event_source/devices/{name}/type")).ok()?.trim().parse().ok()
}

/// Opens the probe event of a kernel function, host-wide.
///
/// # Errors
/// ENOENT if the function does not exist, EINVAL if it cannot be probed at this offset, ENODEV if the kernel does not
/// have kprobes.
pub fn kprobe_event(function: &str, offset: u64, returns: bool) -> Result<OwnedFd, Errno> {
    let kind = pmu_type("kprobe").ok_or(Errno::NODEV)?;
    let function = CString::new(function).map_err(|_| Errno::INVAL)?;
    let config1 = function.as_ptr() as u64;
    // `function` outlives the call.
    open(Attr { kind, config: u64::from(returns) * RETURNS, config1, config2: offset, ..Attr::default() }, None)
}

/// Opens the probe event at an offset in an open file, for every process that maps the file or for a single one.
///
/// The kernel takes a path. It gets `/proc/self/fd/N` of the descriptor, so that the file cannot be replaced
/// meanwhile.
///
/// # Errors
/// EINVAL if it is not a regular file, ENODEV if the kernel does not have uprobes, ESRCH if the process is gone.
pub fn uprobe_event(file: BorrowedFd<'_>, offset: u64, returns: bool, process: Option<u32>) -> Result<OwnedFd, Errno> {
    let kind = pmu_type("uprobe").ok_or(Errno::NODEV)?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::INVAL)?;
    let config1 = path.as_ptr() as u64;
    // `path` outlives the call.
    open(Attr { kind, config: u64::from(returns) * RETURNS, config1, config2: offset, ..Attr::default() }, process)
}

/// What `config1` of another process's event points to, in our memory.
#[derive(Debug)]
pub enum ProbeTarget {
    /// Nothing: the event is no probe.
    None,
    /// A function of the kernel, by name; None if `config2` is its address.
    Function(Option<CString>),
    /// A file, as [`uprobe_event`] takes it.
    File(OwnedFd),
}

/// Opens an event with the arguments of another process, for the task `process`, or for all with None.
///
/// # Errors
/// The kernel's errno; EINVAL for a type whose `config1` could be a pointer that was not replaced.
pub fn proxied_event(call: &PerfEventCall, target: &ProbeTarget, process: Option<u32>) -> Result<OwnedFd, Errno> {
    // PERF_TYPE_MAX: the numbers from here on are given to devices and probes when the kernel starts.
    const FIXED_TYPES: u32 = 6;
    let mut words = [0u64; size_of::<Attr>() / 8];
    for (word, bytes) in words.iter_mut().zip(call.attr().as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    let kind = u32::from_ne_bytes(*call.attr()[event::TYPE..].first_chunk().ok_or(Errno::INVAL)?);
    set_size(&mut words);
    let path;
    words[event::CONFIG1 / 8] = match target {
        ProbeTarget::None if kind >= FIXED_TYPES => return Err(Errno::INVAL),
        ProbeTarget::None => words[event::CONFIG1 / 8],
        ProbeTarget::Function(name) => name.as_ref().map_or(0, |name| name.as_ptr() as u64),
        ProbeTarget::File(file) => {
            path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::INVAL)?;
            path.as_ptr() as u64
        }
    };
    let pid = process.map_or(Ok(-1), libc::pid_t::try_from).map_err(|_| Errno::SRCH)?;
    // SAFETY: the kernel reads as many bytes of `words` as `set_size` has put there, which is its size. Types below
    // FIXED_TYPES have no pointers in these bytes; for others `config1` is null or points to a string with a NUL that
    // outlives the call. The other arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, words.as_ptr(), pid, call.cpu(), -1, FD_CLOEXEC) };
    owned(fd)
}

/// Sets the field `size` of a `struct perf_event_attr`.
fn set_size(words: &mut [u64; size_of::<Attr>() / 8]) {
    let mut bytes = words[0].to_ne_bytes();
    bytes[event::SIZE..].copy_from_slice(&(size_of::<Attr>() as u32).to_ne_bytes());
    words[0] = u64::from_ne_bytes(bytes);
}

/// PERF_FLAG_FD_CLOEXEC
const FD_CLOEXEC: libc::c_ulong = 8;

fn open(attr: Attr, process: Option<u32>) -> Result<OwnedFd, Errno> {
    // A single process on every CPU, or every process on CPU 0; see `tracepoint_event`.
    let (pid, cpu) = match process {
        Some(pid) => (libc::pid_t::try_from(pid).map_err(|_| Errno::SRCH)?, -1),
        None => (-1, 0),
    };
    open_on(attr, pid, cpu)
}

fn open_on(mut attr: Attr, pid: libc::pid_t, cpu: i32) -> Result<OwnedFd, Errno> {
    attr.size = size_of::<Attr>() as u32;
    // SAFETY: the kernel reads `size` bytes of `attr`, which is its size, and the NUL-terminated string that a probe's
    // `config1` points to, which the caller keeps alive; the other arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, cpu, -1, FD_CLOEXEC) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just created this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
