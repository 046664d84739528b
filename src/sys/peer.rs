//! The peer of a unix stream socket, as recorded by the kernel when it connected, never by its own claim.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;

use crate::model::ids::Pid;
use crate::sys::SysError;
use crate::sys::namespaces::own_namespaces;
use crate::sys::pid::open_process;
use crate::sys::sock::wait_readable;

/// Maximum number of supplementary groups to read. The kernel allows 65536, but real users have fewer.
const GROUPS_MAX: usize = 4096;

/// The process that connected. Its ids are as seen from our user namespace: root of a container with its own user
/// namespace has the uid that it is mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its pid when it connected; None if it is in a pid namespace that is not visible to us.
    pub pid: Option<Pid>,
    /// Effective uid when it connected.
    pub uid: u32,
    /// Effective gid when it connected.
    pub gid: u32,
    /// Supplementary groups when it connected.
    pub groups: Vec<u32>,
    /// True if it is verified to be in our own user namespace. Uid 0 alone does not mean root: a user namespace can
    /// map 0 to 0, and its root does not have capabilities outside of it.
    pub same_user_namespace: bool,
}

/// Reads the credentials of the peer of a connected socket.
///
/// # Errors
/// Only if the kernel does not provide ids and groups. For a peer that has ended meanwhile, `same_user_namespace` is
/// false.
pub fn credentials(socket: impl AsFd) -> Result<PeerCredentials, SysError> {
    let socket = socket.as_fd();
    let cred = peercred(socket)?;
    let groups = groups(socket).map_err(SysError::io("read the groups of", "a client"))?;
    let same_user_namespace = cred.pid.is_some_and(|pid| is_in_our_user_namespace(socket, pid));
    Ok(PeerCredentials { groups, same_user_namespace, ..cred })
}

/// Reads pid, uid and gid. The pid of a process that is not visible is 0, which rustix cannot represent.
fn peercred(socket: BorrowedFd<'_>) -> Result<PeerCredentials, SysError> {
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = socklen(size_of::<libc::ucred>());
    // SAFETY: `cred` is a ucred of `length` bytes that outlives the call, and any bytes are a valid ucred.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut length)
    };
    if done != 0 || length != socklen(size_of::<libc::ucred>()) {
        return Err(SysError::io("read the credentials of", "a client")(io::Error::last_os_error()));
    }
    let pid = u32::try_from(cred.pid).ok().and_then(|pid| Pid::new(pid).ok());
    Ok(PeerCredentials { pid, uid: cred.uid, gid: cred.gid, groups: Vec::new(), same_user_namespace: false })
}

fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; GROUPS_MAX];
    let mut length = socklen(size_of::<u32>() * GROUPS_MAX);
    // SAFETY: `groups` has `length` bytes and outlives the call; any bytes are valid u32s.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(usize::try_from(length).unwrap_or(0) / size_of::<u32>());
    Ok(groups)
}

/// Looks up the process by its number. The socket's pidfd (Linux 6.5) proves afterwards that the number still belonged
/// to that process. Without it, the result is that of the process that has the number now.
fn is_in_our_user_namespace(socket: BorrowedFd<'_>, pid: Pid) -> bool {
    let pidfd = match peer_pidfd(socket) {
        Ok(pidfd) => Some(pidfd),
        Err(error) if error.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => None,
        Err(_) => return false,
    };
    let theirs = open_process(pid).and_then(|process| process.namespaces());
    let (Ok(theirs), Ok(ours)) = (theirs, own_namespaces()) else { return false };
    let alive = pidfd.is_none_or(|pidfd| matches!(wait_readable(pidfd.as_fd(), Instant::now()), Ok(false)));
    alive && theirs.user == ours.user
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // include/uapi/asm-generic/socket.h
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut length = socklen(size_of::<libc::c_int>());
    // SAFETY: `fd` is an int of `length` bytes that outlives the call.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor for us, close-on-exec, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).expect("the options read here are a few kilobytes at most")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_our_own_socket_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = credentials(&a).unwrap();
        assert_eq!(peer.pid.map(Pid::get), Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert!(peer.same_user_namespace);
    }

    #[test]
    fn a_socket_without_a_peer_is_an_error() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(credentials(&socket).is_err());
    }
}
