//! Work inside another network namespace, on a thread that ends there. Nobody ever comes back from a namespace.

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

/// Stack of a thread that enters a namespace or drops capabilities, in bytes: as much as any other thread has, since whole
/// objects are loaded there. Only what is touched takes memory.
pub(crate) const THREAD_STACK: usize = 2 * 1024 * 1024;

/// Runs `f` on a thread of its own inside `netns`, an open `/proc/PID/ns/net`, and returns what it returned.
///
/// The calling thread's namespace never changes. Needs CAP_SYS_ADMIN in the user namespace that owns `netns`. A panic
/// of `f` goes on in the caller.
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

/// Opens the file that names a network namespace. Whoever gave the path may be a stranger: nothing but a namespace is opened, since
/// opening a fifo would wait, and opening a device may do things.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    let seen = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&seen)?.f_type != NSFS_MAGIC {
        return Err(io::Error::other("it is not the file of a namespace"));
    }
    let same = format!("/proc/self/fd/{}", seen.as_raw_fd());
    Ok(rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Cookie and interfaces of `netns`, by one visit: see [`cookie`] and [`interfaces`].
pub fn survey(netns: BorrowedFd<'_>) -> Result<(u64, Vec<Interface>), SysError> {
    on_thread(netns, || Ok((cookie_here()?, interfaces_here()?)))?
}

/// All interfaces of `netns`, `lo` included, in the kernel's order.
pub fn interfaces(netns: BorrowedFd<'_>) -> Result<Vec<Interface>, SysError> {
    on_thread(netns, interfaces_here)?
}

/// The cookie of `netns` (SO_NETNS_COOKIE, Linux 5.14): a number that the kernel never gives out twice in one boot, unlike
/// the inode of the namespace's file.
pub fn cookie(netns: BorrowedFd<'_>) -> Result<u64, SysError> {
    on_thread(netns, cookie_here)?
}

/// The network namespace of a cookie: our own, the one at `path`, or that of any process or name on this host. None: it is gone,
/// or nothing that we can see leads to it.
///
/// Visits each namespace once. Only for kernels on which something hangs in a namespace by no link.
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
        // SAFETY: `entry` points into the array that if_nameindex returned, which ends with an element of index 0 and a
        // null name; we stop there and never step over it.
        let current = unsafe { &*entry };
        if current.if_index == 0 || current.if_name.is_null() {
            break;
        }
        // SAFETY: the name is a NUL-terminated string that lives as long as the array.
        let name = unsafe { CStr::from_ptr(current.if_name) }.to_string_lossy().into_owned();
        found.push(Interface { name, index: current.if_index });
        // SAFETY: the element at hand was not the last one.
        entry = unsafe { entry.add(1) };
    }
    // SAFETY: `list` came from if_nameindex and is freed once; nothing borrowed from it is left.
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
        // Listing needs no privilege where the namespace is not entered.
        assert!(interfaces_here().unwrap().iter().any(|i| i.name == "lo" && i.index > 0));
        assert_ne!(cookie_here().unwrap(), 0);
        assert_eq!(cookie_here().unwrap(), cookie_here().unwrap());
    }

    #[test]
    fn what_is_no_namespace_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        let error = on_thread(null.as_fd(), || ()).unwrap_err();
        assert_eq!(error.to_string(), "enter the network namespace");
    }
}
