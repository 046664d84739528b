//! What the forked child does.
//!
//! Everything in [`run`] is bound to what may happen between fork and exit of a process with threads: system calls, and nothing that
//! allocates, locks or panics. rustix makes its calls directly, without the C library.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_cmd::{BPF_BTF_LOAD, BPF_MAP_CREATE, BPF_PROG_LOAD};
use aya_obj::generated::{BPF_F_TOKEN_FD, bpf_attr};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::{MAX_INSTRUCTIONS, Trial};
use crate::sys::SysError;
use crate::sys::sock::{recv_raw, send_raw};
use crate::sys::token::{create_raw, last_errno};

/// Bytes of a message: an errno and the beginning of a log.
pub(super) const MESSAGE_MAX: usize = 4 + 1024;
/// Bytes for the verifier's log. One that is cut short is an error of its own (ENOSPC).
const LOG: usize = 64 * 1024;
/// BTFs that trials may name.
const MAX_BTFS: usize = 4;

/// All that the child needs, made before the fork.
#[derive(Debug)]
pub(super) struct Job<'a> {
    btfs: &'a [Vec<u8>],
    trials: &'a [Trial],
    log: Vec<u8>,
}

impl<'a> Job<'a> {
    pub(super) fn new(btfs: &'a [Vec<u8>], trials: &'a [Trial]) -> Result<Self, SysError> {
        let fits = |trial: &Trial| {
            let wide = |at| at + 1 < trial.instructions.len();
            trial.instructions.len() <= MAX_INSTRUCTIONS
                && trial.map_at.is_none_or(wide)
                && trial.btf.is_none_or(|at| at < btfs.len())
        };
        if btfs.len() > MAX_BTFS || !trials.iter().all(fits) {
            return Err(SysError::Message { what: "a trial of a token", problem: "a program does not fit".into() });
        }
        Ok(Self { btfs, trials, log: vec![0; LOG] })
    }
}

/// Does the job and ends the process.
pub(super) fn run(job: &Job<'_>, socket: BorrowedFd<'_>) -> ! {
    if let Err(errno) = work(job, socket) {
        // The parent may be gone, and then nobody needs to know.
        let _ = send_raw(socket, &(-errno.raw_os_error()).to_ne_bytes(), &[]);
    }
    // SAFETY: _exit ends the process at once. It runs no handlers of the parent's that were copied along.
    unsafe { libc::_exit(0) }
}

fn work(job: &Job<'_>, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    // SAFETY: takes an integer; this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Err(last_errno());
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let context = fsopen(c"bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    send_raw(socket, &0i32.to_ne_bytes(), &[context.as_fd()])?;
    drop(context);
    let mut byte = [0];
    let mount = recv_raw(socket, &mut byte)?.1.ok_or(Errno::PIPE)?;
    let root = openat(&mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    drop(mount);
    let both = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    set_capabilities(None, CapabilitySets { effective: both, permitted: both, inheritable: CapabilitySet::empty() })?;
    let token = create_raw(root.as_fd())?;

    let map = array_map(token.as_fd());
    let mut btfs = [const { None }; MAX_BTFS];
    for (slot, bytes) in btfs.iter_mut().zip(job.btfs) {
        *slot = Some(load_btf(bytes, token.as_fd()));
    }
    // A copy of the parent's buffer, which is this process's own since the fork.
    let log = job.log.as_ptr().cast_mut();
    for trial in job.trials {
        // SAFETY: `log` is writable for LOG bytes and nothing else refers to it in this process.
        unsafe { log.write(0) };
        let btf = trial.btf.and_then(|at| btfs.get(at)).map_or(Ok(None), |btf| match btf {
            Some(Ok(btf)) => Ok(Some(btf.as_fd())),
            Some(Err(errno)) => Err(*errno),
            None => Err(Errno::BADF),
        });
        let map = match (trial.map_at, &map) {
            (None, _) => Ok(None),
            (Some(at), Ok(map)) => Ok(Some((at, map.as_fd()))),
            (Some(_), Err(errno)) => Err(*errno),
        };
        let errno = match (btf, map) {
            (Ok(btf), Ok(map)) => load(trial, btf, map, token.as_fd(), log).err().map_or(0, Errno::raw_os_error),
            (Err(errno), _) | (_, Err(errno)) => errno.raw_os_error(),
        };
        answer(socket, errno, log)?;
    }
    Ok(())
}

fn answer(socket: BorrowedFd<'_>, errno: i32, log: *const u8) -> Result<(), Errno> {
    let mut message = [0; MESSAGE_MAX];
    let (head, text) = message.split_at_mut(4);
    head.copy_from_slice(&errno.to_ne_bytes());
    let mut len = 0;
    for (at, place) in text.iter_mut().enumerate() {
        // SAFETY: `text` is shorter than the log, and the kernel wrote bytes or the parent zeroes.
        let byte = unsafe { *log.add(at) };
        if byte == 0 {
            break;
        }
        *place = byte;
        len = at + 1;
    }
    send_raw(socket, message.get(..4 + len).unwrap_or(&message), &[])
}

fn load(
    trial: &Trial,
    btf: Option<BorrowedFd<'_>>,
    map: Option<(usize, BorrowedFd<'_>)>,
    token: BorrowedFd<'_>,
    log: *mut u8,
) -> Result<OwnedFd, Errno> {
    let mut instructions = [[0u8; 8]; MAX_INSTRUCTIONS];
    for (to, from) in instructions.iter_mut().zip(&trial.instructions) {
        *to = *from;
    }
    if let Some((at, map)) = map
        && let Some([_, _, _, _, value @ ..]) = instructions.get_mut(at)
    {
        *value = map.as_raw_fd().to_ne_bytes();
    }
    let license = c"GPL";
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = trial.program_type;
    fields.expected_attach_type = trial.attach_type;
    fields.insns = instructions.as_ptr() as u64;
    fields.insn_cnt = count(trial.instructions.len());
    fields.license = license.as_ptr() as u64;
    fields.log_level = 1;
    fields.log_buf = log as u64;
    fields.log_size = count(LOG);
    if let Some(btf) = btf {
        fields.prog_btf_fd = btf.as_raw_fd().unsigned_abs();
        fields.func_info = trial.functions.as_ptr() as u64;
        fields.func_info_rec_size = count(size_of::<[u32; 2]>());
        fields.func_info_cnt = count(trial.functions.len());
    }
    fields.prog_flags = BPF_F_TOKEN_FD;
    fields.prog_token_fd = token.as_raw_fd();
    // SAFETY: `insns` and `func_info` are readable for their counts, `license` is NUL-terminated, `log_buf` is writable for `log_size`
    // bytes; all outlive the call.
    unsafe { new_fd(BPF_PROG_LOAD as libc::c_long, &attr) }
}

/// An array with one value of 64 bytes.
fn array_map(token: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const ARRAY: u32 = 2;
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_1 };
    (fields.map_type, fields.key_size, fields.value_size, fields.max_entries) = (ARRAY, 4, 64, 1);
    fields.map_flags = BPF_F_TOKEN_FD;
    fields.map_token_fd = token.as_raw_fd();
    // SAFETY: no field is a pointer.
    unsafe { new_fd(BPF_MAP_CREATE as libc::c_long, &attr) }
}

fn load_btf(btf: &[u8], token: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_7 };
    fields.btf = btf.as_ptr() as u64;
    fields.btf_size = count(btf.len());
    fields.btf_flags = BPF_F_TOKEN_FD;
    fields.btf_token_fd = token.as_raw_fd();
    // SAFETY: `btf` is readable for `btf_size` bytes; there is no log buffer.
    unsafe { new_fd(BPF_BTF_LOAD as libc::c_long, &attr) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: the union consists of integers and arrays of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// A length for a 32-bit field; what is too long is too long for the kernel as well.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// # Safety
/// Every pointer in the fields that `cmd` reads has to be valid for what `cmd` does with it, and a success has to be a new descriptor.
unsafe fn new_fd(cmd: libc::c_long, attr: &bpf_attr) -> Result<OwnedFd, Errno> {
    // The verifier gives up with EAGAIN when a signal is pending (kernel/bpf/verifier.c).
    const ATTEMPTS: u32 = 5;
    let mut attempt = 1;
    loop {
        // SAFETY: the kernel reads `attr`, of the size that we give; what the fields point to is the caller's promise.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, cmd, &raw const *attr, size_of::<bpf_attr>()) };
        if fd >= 0 {
            let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
            // SAFETY: the kernel just made this descriptor for us, and nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let errno = last_errno();
        if errno != Errno::AGAIN || attempt == ATTEMPTS {
            return Err(errno);
        }
        attempt += 1;
    }
}
