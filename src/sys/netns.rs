//! Runs code inside another network namespace, on a thread that ends there. A thread never switches back.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::model::attach_point::Interface;
use crate::sys::SysError;

/// Stack size in bytes of a thread that enters a namespace or drops capabilities: the default of other threads, since
/// whole objects are loaded there. Only pages that are touched use memory.
pub(crate) const THREAD_STACK: usize = 2 * 1024 * 1024;

/// Runs `f` on a separate thread inside `netns`, an open `/proc/PID/ns/net`, and returns its result.
///
/// The calling thread's namespace does not change. Needs CAP_SYS_ADMIN in the user namespace that owns `netns`. A
/// panic of `f` is propagated to the caller.
pub fn on_thread<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T, SysError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(SysError::io("enter", "the network namespace"))?;
                Ok(f())
            })
            .map_err(SysError::io("start", "a thread for the network namespace"))?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Moves the calling thread into a network namespace for good. For a process that does nothing else than work there.
///
/// # Errors
/// If it lacks CAP_SYS_ADMIN in the user namespace that owns `netns`, or `netns` is something else.
pub fn enter(netns: BorrowedFd<'_>) -> Result<(), SysError> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(SysError::io("enter", "the network namespace"))
}

/// The inode of the namespace behind a descriptor; None if it is not one of a namespace.
pub fn inode_of_descriptor(descriptor: BorrowedFd<'_>) -> Option<u64> {
    let is_namespace = rustix::fs::fstatfs(descriptor).ok()?.f_type == NSFS_MAGIC;
    is_namespace.then(|| rustix::fs::fstat(descriptor).ok().map(|stat| stat.st_ino))?
}

/// The name of an interface in the network namespace of the calling thread; None if it has no such interface.
pub fn interface_name(index: u32) -> Option<String> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    rustix::net::netdevice::index_to_name(&socket, index).ok()
}

/// include/uapi/linux/magic.h
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Opens the file of a network namespace. The path may come from an untrusted user, so nothing but a namespace is
/// opened: opening a fifo would block, and opening a device may have side effects.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let seen = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&seen)?.f_type != NSFS_MAGIC {
        return Err(io::Error::other("it is not a namespace file"));
    }
    let same = format!("/proc/self/fd/{}", seen.as_raw_fd());
    Ok(rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Returns the cookie and the interfaces of `netns`, entering it once: see [`cookie`] and [`interfaces`].
pub fn survey(netns: BorrowedFd<'_>) -> Result<(u64, Vec<Interface>), SysError> {
    on_thread(netns, || Ok((cookie_here()?, interfaces_here()?)))?
}

/// All interfaces of `netns`, including `lo`, in the kernel's order.
pub fn interfaces(netns: BorrowedFd<'_>) -> Result<Vec<Interface>, SysError> {
    on_thread(netns, interfaces_here)?
}

/// The cookie of `netns` (SO_NETNS_COOKIE, Linux 5.14): unlike the inode of the namespace's file, the kernel never
/// reuses this number during a boot.
pub fn cookie(netns: BorrowedFd<'_>) -> Result<u64, SysError> {
    on_thread(netns, cookie_here)?
}

/// Finds the network namespace with this cookie: our own, the one at `path`, or that of any process or any name on
/// this host. None if it is gone or not reachable.
///
/// It enters each namespace once. Only for kernels on which a program is attached in a namespace without a link.
pub fn find(sought: u64, path: Option<&Path>) -> Result<Option<OwnedFd>, SysError> {
    const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];
    let own = [PathBuf::from("/proc/thread-self/ns/net")];
    let of_processes = super::pid::all_processes()?.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    let named = NAMED.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let named = named.filter_map(|entry| Some(entry.ok()?.path()));
    let mut visited = HashSet::new();
    for path in own.into_iter().chain(path.map(Path::to_owned)).chain(of_processes).chain(named) {
        let Ok(file) = File::open(&path) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        if visited.insert((metadata.dev(), metadata.ino())) && cookie(file.as_fd()).is_ok_and(|found| found == sought) {
            return Ok(Some(file.into()));
        }
    }
    Ok(None)
}

/// All interfaces of the calling thread's network namespace.
pub(crate) fn interfaces_here() -> Result<Vec<Interface>, SysError> {
    // SAFETY: takes no arguments; the result is checked for null and freed below with its own function.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(SysError::io("list", "the network interfaces")(io::Error::last_os_error()));
    }
    let mut found = Vec::new();
    let mut entry = list;
    loop {
        // SAFETY: `entry` points into the array that if_nameindex returned, which ends with an element with index 0
        // and a null name; the loop stops there and never goes beyond it.
        let current = unsafe { &*entry };
        if current.if_index == 0 || current.if_name.is_null() {
            break;
        }
        // SAFETY: the name is a NUL-terminated string that lives as long as the array.
        let name = unsafe { CStr::from_ptr(current.if_name) }.to_string_lossy().into_owned();
        found.push(Interface { name, index: current.if_index });
        // SAFETY: the current element is not the last one.
        entry = unsafe { entry.add(1) };
    }
    // SAFETY: `list` came from if_nameindex and is freed once; nothing borrows from it any more.
    unsafe { libc::if_freenameindex(list) };
    Ok(found)
}

fn cookie_here() -> Result<u64, SysError> {
    /// include/uapi/asm-generic/socket.h
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let fail = |source: io::Error| SysError::io("read the cookie of", "the network namespace")(source);
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(|e| fail(e.into()))?;
    let mut value = 0_u64;
    let mut len = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, `value` has `len` writable bytes, and the kernel writes at most that many.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut value).cast(), &raw mut len)
    };
    if done != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    if len as usize != mem::size_of::<u64>() {
        return Err(fail(io::Error::from(io::ErrorKind::InvalidData)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn this_namespace_has_lo_and_a_cookie() {
        // Listing without entering a namespace does not need privileges.
        assert!(interfaces_here().unwrap().iter().any(|i| i.name == "lo" && i.index > 0));
        assert_ne!(cookie_here().unwrap(), 0);
        assert_eq!(cookie_here().unwrap(), cookie_here().unwrap());
    }

    #[test]
    fn a_file_that_is_not_a_namespace_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        let error = on_thread(null.as_fd(), || ()).unwrap_err();
        assert_eq!(error.to_string(), "enter the network namespace");
    }
}
