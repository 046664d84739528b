//! The code of the forked child in the container's namespaces.
//!
//! Everything in [`run`] must be safe between fork and exit of a multithreaded process: it makes system calls, and it
//! does not allocate, lock or panic. rustix makes its calls directly, without the C library.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, chownat, mkdirat, openat2, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MoveMountFlags, UnmountFlags, fsopen, move_mount, unmount};
use rustix::process::{DumpableBehavior, Gid, Uid, fchdir, set_dumpable_behavior, umask};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::BpffsSpec;
use super::error::MAX_DEPTH;
use super::filter;
use super::message::{BpffsStep, CallFailure, ChildReport, Exit, OpenedTarget, ParentVerdict};
use crate::sys::SysError;
use crate::sys::sock::{recv_raw, send_raw};
use crate::sys::token::{self, last_errno};
use seccompiler::BpfProgram;

/// How a target is opened: never outside the root, never through any kind of link.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Everything that the child needs, prepared before the fork.
#[derive(Debug)]
pub(super) struct Job<'a> {
    user_ns: Option<BorrowedFd<'a>>,
    mount_ns: BorrowedFd<'a>,
    /// The container's root directory.
    root: BorrowedFd<'a>,
    /// The target's components.
    names: Vec<CString>,
    /// The target and its ancestors relative to the root, longest first.
    prefixes: Vec<CString>,
    maps: Vec<(RawFd, CString)>,
    owner: (Uid, Gid),
    mint: bool,
    /// True if the parent reads this process's mountinfo, so that it waits until the process is inside.
    announce: bool,
    /// Which id of a mount statx(2) is to return.
    ids: StatxFlags,
    /// The allowed system calls, as a seccomp filter.
    calls: BpfProgram,
    /// Descriptors that stay open, in ascending order, without the socket.
    keep: Vec<RawFd>,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        spec: &BpffsSpec<'a>,
        user_ns: Option<BorrowedFd<'a>>,
        names: Vec<CString>,
        maps: Vec<(RawFd, CString)>,
        announce: bool,
    ) -> Result<Self, SysError> {
        let mut prefixes = Vec::with_capacity(names.len());
        let mut path = Vec::new();
        for name in &names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            prefixes.push(CString::new(path.clone()).expect("the path consists of C strings and slashes"));
        }
        prefixes.reverse();
        let mut keep: Vec<RawFd> = maps.iter().map(|(fd, _)| *fd).collect();
        keep.push(spec.mount_ns.as_raw_fd());
        keep.push(spec.root.as_raw_fd());
        keep.extend(user_ns.map(|fd| fd.as_raw_fd()));
        keep.sort_unstable();
        keep.dedup();
        Ok(Self {
            user_ns,
            mount_ns: spec.mount_ns,
            root: spec.root,
            names,
            prefixes,
            maps,
            owner: (Uid::from_raw(spec.owner.0), Gid::from_raw(spec.owner.1)),
            mint: !spec.delegation.is_empty(),
            announce,
            ids: mount_ids(!announce),
            calls: filter::program()?,
            keep,
        })
    }
}

/// The changes that were made so far and can be undone.
struct Done {
    /// The mount, once it is in the container.
    mount: Option<OwnedFd>,
    /// The directories in which we created directories, with the index of each one's name.
    made: [Option<(OwnedFd, usize)>; MAX_DEPTH],
}

/// Runs the job and ends the process. The exit status is an [`Exit`].
pub(super) fn run(job: &Job<'_>, socket: BorrowedFd<'_>) -> ! {
    let mut done = Done { mount: None, made: [const { None }; MAX_DEPTH] };
    let exit = match work(job, socket, &mut done) {
        Ok(()) if wait_for_keep(socket) => Exit::Kept,
        Ok(()) if done.undo(job) => Exit::Undone,
        Ok(()) => Exit::Left,
        Err(mut failed) => {
            failed.left = !done.undo(job);
            // The parent may be gone, and then the report is not needed.
            let _ = send_raw(socket, &ChildReport::Failed(failed).encode(), &[]);
            Exit::Undone
        }
    };
    // SAFETY: _exit ends the process immediately, without running exit handlers copied from the parent.
    unsafe { libc::_exit(exit as i32) }
}

/// Waits for the parent's consent to continue, or to keep the changes. End of stream means no.
fn wait_for_keep(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    matches!(recv_raw(socket, &mut byte), Ok((1, _))) && byte == [ParentVerdict::Keep as u8]
}

/// Adds the step to an errno.
fn at(step: BpffsStep) -> impl Fn(Errno) -> CallFailure {
    move |errno| CallFailure { step, errno: errno.raw_os_error(), index: 0, left: false }
}

fn work(job: &Job<'_>, socket: BorrowedFd<'_>, done: &mut Done) -> Result<(), CallFailure> {
    // Processes of the container may soon be allowed to trace this one, which still has a copy of the parent's memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at(BpffsStep::CloseFiles))?;
    close_others(&job.keep, socket.as_raw_fd()).map_err(at(BpffsStep::CloseFiles))?;
    // From here on the process depends on mounts and paths of a container. The filter limits the effect of whatever
    // they lead to.
    filter::close(&job.calls).map_err(at(BpffsStep::Confine))?;
    umask(Mode::from_raw_mode(0o022));

    move_into_link_name_space(job.mount_ns, Some(LinkNameSpaceType::Mount)).map_err(at(BpffsStep::EnterMountNs))?;
    if let Some(user_ns) = job.user_ns {
        move_into_link_name_space(user_ns, Some(LinkNameSpaceType::User)).map_err(at(BpffsStep::EnterUserNs))?;
    }
    become_root().map_err(at(BpffsStep::BecomeRoot))?;

    let context = fsopen(c"bpf", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at(BpffsStep::OpenFs))?;
    if job.announce {
        send_raw(socket, &ChildReport::Inside.encode(), &[]).map_err(at(BpffsStep::Send))?;
    }
    // A lookup across a file system that a process serves can block forever on that process, and signals do not
    // interrupt it. So the parent checks the mounts first.
    if !wait_for_keep(socket) {
        return Err(at(BpffsStep::Receive)(Errno::PIPE));
    }
    let (directory, missing) = find(job, job.root).map_err(at(BpffsStep::Find))?;
    let place = mount_of(directory.as_fd(), job.ids).map_err(at(BpffsStep::Stat))?;
    let opened = OpenedTarget { mount_id: place.0, at_mount_root: place.1, missing: u8::try_from(missing).unwrap_or(u8::MAX) };
    send_raw(socket, &ChildReport::Opened(opened).encode(), &[context.as_fd()]).map_err(at(BpffsStep::Send))?;
    drop(context);

    let mut byte = [0];
    let (_, mount) = recv_raw(socket, &mut byte).map_err(at(BpffsStep::Receive))?;
    let mount = mount.ok_or(Errno::PIPE).map_err(at(BpffsStep::Receive))?;
    let directory = make_missing(job, directory, missing, done)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, c"", &directory, c"", empty).map_err(at(BpffsStep::Mount))?;
    drop(directory);
    let mount = done.mount.insert(mount);

    // From here on, use the mount as the container will see it: by its path, and with a descriptor that is not O_PATH.
    let seen = open_in(job.root, job.prefixes.first(), OFlags::RDONLY).map_err(at(BpffsStep::Reopen))?;
    let id = |fd| mount_of(fd, job.ids).map(|(id, _)| id).map_err(at(BpffsStep::Stat));
    if id(seen.as_fd())? != id(mount.as_fd())? {
        return Err(at(BpffsStep::Covered)(Errno::BUSY));
    }
    pin_maps(job, seen.as_fd())?;
    let token = match job.mint {
        true => Some(token::create_raw(seen.as_fd()).map_err(at(BpffsStep::Mint))?),
        false => None,
    };
    let sent = match &token {
        Some(token) => send_raw(socket, &ChildReport::Done.encode(), &[token.as_fd()]),
        None => send_raw(socket, &ChildReport::Done.encode(), &[]),
    };
    sent.map_err(at(BpffsStep::Send))
}

/// Closes everything but `keep`, which is sorted, and `socket`. This includes standard input and output, whose readers
/// would wait for us.
fn close_others(keep: &[RawFd], socket: RawFd) -> Result<(), Errno> {
    let mut from = 0;
    let mut rest = keep;
    let mut socket = Some(socket);
    loop {
        let next = match (rest.split_first(), socket) {
            (Some((first, others)), s) if s.is_none_or(|s| *first < s) => {
                rest = others;
                *first
            }
            (_, Some(s)) => {
                socket = None;
                s
            }
            (_, None) => return close_range(from, libc::c_uint::MAX),
        };
        // Descriptors are never negative.
        let next = next.unsigned_abs();
        if next > from {
            close_range(from, next - 1)?;
        }
        from = from.max(next + 1);
    }
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes three integers. The closed descriptors belong to copies of the parent's handles, which this
    // process never uses or drops.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// BPF_OBJ_PIN of a map at a path relative to the working directory.
fn pin(map: RawFd, name: &CStr) -> Result<(), Errno> {
    const BPF_OBJ_PIN: libc::c_long = 6;
    #[repr(C)]
    struct ObjPin {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let attr = ObjPin { pathname: name.as_ptr() as u64, bpf_fd: map.unsigned_abs(), file_flags: 0 };
    // SAFETY: the kernel reads the given number of bytes of `attr`, whose pointer refers to a C string that outlives
    // the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attr, size_of::<ObjPin>()) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Becomes user and group 0 of the user namespace, without supplementary groups, so that they own the bpffs and the
/// created directories. Capabilities in the namespace are kept.
fn become_root() -> Result<(), Errno> {
    match set_thread_groups(&[]) {
        // `setgroups` is denied in user namespaces created by an unprivileged user; the remaining groups have no
        // effect there.
        Err(Errno::PERM) => {}
        other => other?,
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // The change of ids may have reset it (kernel.suid_dumpable).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Opens the target, or its nearest existing ancestor, and returns the number of components missing below it.
fn find(job: &Job<'_>, root: BorrowedFd<'_>) -> Result<(OwnedFd, usize), Errno> {
    for (missing, prefix) in job.prefixes.iter().enumerate() {
        match open_in(root, Some(prefix), OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return Ok((other?, missing)),
        }
    }
    Ok((open_in(root, None, OFlags::PATH)?, job.names.len()))
}

/// Opens a directory below the container's root, or the root itself.
fn open_in(root: BorrowedFd<'_>, path: Option<&CString>, how: OFlags) -> Result<OwnedFd, Errno> {
    let path: &CStr = path.map_or(c".", |path| path.as_c_str());
    openat2(root, path, how | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
}

/// Which id of a mount statx(2) is to return: that of mountinfo, or STATX_MNT_ID_UNIQUE, which is not used again and
/// which statmount(2) takes.
pub(super) const fn mount_ids(unique: bool) -> StatxFlags {
    if unique { StatxFlags::from_bits_retain(0x4000) } else { StatxFlags::MNT_ID }
}

/// The id of the mount that a descriptor is on, and whether the descriptor is that mount's root.
pub(super) fn mount_of(fd: BorrowedFd<'_>, ids: StatxFlags) -> Result<(u64, bool), Errno> {
    let stat = statx(fd, c"", AtFlags::EMPTY_PATH, ids)?;
    if !StatxFlags::from_bits_retain(stat.stx_mask).contains(ids) {
        return Err(Errno::NOSYS);
    }
    Ok((stat.stx_mnt_id, stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)))
}

/// Creates the last `missing` components below `directory` and opens the last one. A component that exists by now must
/// be a directory on the same mount, which is the one that was checked.
fn make_missing(job: &Job<'_>, directory: OwnedFd, missing: usize, done: &mut Done) -> Result<OwnedFd, CallFailure> {
    let mut parent = directory;
    let first = job.names.len().saturating_sub(missing);
    for (slot, (index, name)) in done.made.iter_mut().zip(job.names.iter().enumerate().skip(first)) {
        let made = match mkdirat(&parent, name.as_c_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(at(BpffsStep::MakeDirectory)(errno)),
        };
        let resolve = RESOLVE.difference(ResolveFlags::IN_ROOT) | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat2(&parent, name.as_c_str(), flags, Mode::empty(), resolve);
        // Record it before checking the result, so that it is removed again if it cannot be opened.
        if made {
            *slot = Some((parent, index));
        }
        parent = opened.map_err(at(BpffsStep::MakeDirectory))?;
    }
    Ok(parent)
}

/// Pins every map as a file in `directory`, the root of the bpffs, and changes its owner.
fn pin_maps(job: &Job<'_>, directory: BorrowedFd<'_>) -> Result<(), CallFailure> {
    if job.maps.is_empty() {
        return Ok(());
    }
    // BPF_OBJ_PIN takes a path. A path relative to the working directory needs neither /proc nor BPF_F_PATH_FD (Linux
    // 6.5).
    fchdir(directory).map_err(at(BpffsStep::Pin))?;
    for (index, (map, name)) in job.maps.iter().enumerate() {
        let at = |step| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            move |errno: Errno| CallFailure { step, errno: errno.raw_os_error(), index, left: false }
        };
        // The kernel creates the file with mode 0600, less the umask.
        pin(*map, name).map_err(at(BpffsStep::Pin))?;
        let (user, group) = job.owner;
        chownat(directory, name.as_c_str(), Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(at(BpffsStep::Give))?;
    }
    Ok(())
}

impl Done {
    /// Undoes all changes. Returns true if nothing is left.
    fn undo(&mut self, job: &Job<'_>) -> bool {
        let mut clean = true;
        if let Some(mount) = self.mount.take() {
            // Through the working directory, a mount can be unmounted even if it is covered or moved meanwhile.
            clean &= fchdir(&mount).is_ok() && unmount(c".", UnmountFlags::DETACH).is_ok();
        }
        for made in self.made.iter_mut().rev() {
            if let Some((parent, index)) = made.take() {
                let name = job.names.get(index).map_or(c"", |name| name.as_c_str());
                clean &= unlinkat(&parent, name, AtFlags::REMOVEDIR).is_ok();
            }
        }
        clean
    }
}
