//! The connection over which a runtime passes a listener: one JSON document (runtime-spec, `containerProcessState`) with
//! descriptors. crun then closes it; runc 1.1.5 leaves it open until it ends.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType, recvmsg, sockopt,
};

use crate::sys::SysError;
use crate::sys::sock::wait_readable;

/// A state has the annotations of the container, which runtimes do not limit.
const DOCUMENT_MAX: usize = 4 << 20;
/// Descriptors of one message; the runtime-spec has one.
const FDS_MAX: usize = 8;

/// What a runtime passed.
#[derive(Debug)]
pub struct Handover {
    /// The JSON document.
    pub document: Vec<u8>,
    /// The descriptors, close-on-exec. What they are is not checked.
    pub fds: Vec<OwnedFd>,
}

/// Takes the connection that is standard input, and puts /dev/null in its place.
///
/// # Errors
/// If standard input is not a connected stream socket, for example because a user typed the command.
pub fn take_stdin() -> Result<UnixStream, SysError> {
    let fail = SysError::io::<io::Error>("take the connection of", "standard input");
    let connected = || -> io::Result<OwnedFd> {
        let connection = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
        let is_unix = sockopt::socket_domain(&connection)? == AddressFamily::UNIX;
        if !is_unix || sockopt::socket_type(&connection)? != SocketType::STREAM {
            return Err(Errno::PROTOTYPE.into());
        }
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // SAFETY: both are open descriptors. No handle in this process owns descriptor 0, so none becomes stale.
        if unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(connection)
    };
    connected().map(UnixStream::from).map_err(fail)
}

/// True if the process that connected had uid 0 of our user namespace. Only it can pass the mode of the socket's file,
/// and it may have ended since, so nothing else about it is asked.
pub fn peer_is_root(connection: &UnixStream) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: `peer` is a ucred of `length` bytes that outlives the call, and any bytes are a valid ucred.
    let done = unsafe {
        libc::getsockopt(connection.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut length)
    };
    done == 0 && length as usize == size_of::<libc::ucred>() && peer.uid == 0
}

/// Receives a document, up to where `is_whole` says that it ends, or to the end of the connection.
///
/// # Errors
/// If it does not end by `deadline`, or has more than the limits.
pub fn receive(connection: &UnixStream, deadline: Instant, is_whole: impl Fn(&[u8]) -> bool) -> Result<Handover, SysError> {
    let refused = |problem: &str| SysError::Message { what: "the listener of a runtime", problem: problem.to_owned() };
    let fail = || SysError::io("receive", "the listener of a runtime");
    let mut found = Handover { document: Vec::new(), fds: Vec::new() };
    let mut bytes = vec![0; 64 << 10];
    loop {
        if !wait_readable(connection.as_fd(), deadline).map_err(fail())? {
            return Err(refused("the runtime did not finish in time"));
        }
        let length = receive_part(connection.as_fd(), &mut bytes, &mut found.fds).map_err(fail())?;
        found.document.extend_from_slice(&bytes[..length]);
        if length == 0 || is_whole(&found.document) {
            return Ok(found);
        }
        if found.document.len() > DOCUMENT_MAX || found.fds.len() > FDS_MAX {
            return Err(refused("it is larger than 4 MiB, or has more than 8 descriptors"));
        }
    }
}

fn receive_part(connection: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(connection, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) { Err(Errno::MSGSIZE) } else { Ok(received.bytes) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_document_is_received_to_its_end() {
        let (mut runtime, ours) = UnixStream::pair().unwrap();
        let text = "x".repeat(100_000);
        let sent = text.clone();
        let sender = std::thread::spawn(move || runtime.write_all(sent.as_bytes()));
        let found = receive(&ours, Instant::now() + Duration::from_secs(5), |_| false).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!((found.document, found.fds.len()), (text.into_bytes(), 0));
    }

    #[test]
    fn a_whole_document_ends_the_wait() {
        let (mut runtime, ours) = UnixStream::pair().unwrap();
        runtime.write_all(b"{}").unwrap();
        let found = receive(&ours, Instant::now() + Duration::from_secs(5), |document| document == b"{}").unwrap();
        assert_eq!(found.document, b"{}");
    }

    #[test]
    fn a_runtime_that_does_not_finish_is_given_up() {
        let (mut runtime, ours) = UnixStream::pair().unwrap();
        runtime.write_all(b"{").unwrap();
        let error = receive(&ours, Instant::now() + Duration::from_millis(50), |_| false).unwrap_err();
        assert!(error.to_string().contains("did not finish in time"), "{error}");
    }

    #[test]
    fn our_own_connection_is_roots_if_we_are_root() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_is_root(&a), rustix::process::geteuid().is_root());
    }
}
