//! Messages between this process and its children: AF_UNIX SOCK_SEQPACKET, which preserves message boundaries, reports
//! when the other side is closed, and carries descriptors (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair, sockopt,
};

use crate::sys::SysError;

/// Maximum number of descriptors in one message. A message with more is refused.
pub const MAX_FDS: usize = 16;

/// One end of a socket pair, closed on drop. The other end then reads what was already sent, followed by the end of
/// the stream.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// A received message.
#[derive(Debug)]
pub struct SocketMessage {
    /// The bytes, never empty.
    pub bytes: Vec<u8>,
    /// The descriptors, close-on-exec. What they refer to is not checked: the sender may be hostile.
    pub fds: Vec<OwnedFd>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

impl Socket {
    /// A connected pair, both ends close-on-exec.
    pub fn pair() -> Result<(Self, Self), SysError> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(SysError::io("make", "a socket pair"))?;
        Ok((Self(a), Self(b)))
    }

    /// Takes a descriptor that should be such a socket, for example standard input, and checks it.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SysError> {
        let fail = || SysError::io("use as a message socket", "the given descriptor");
        let domain = sockopt::socket_domain(&fd).map_err(fail())?;
        let kind = sockopt::socket_type(&fd).map_err(fail())?;
        if domain != AddressFamily::UNIX || kind != SocketType::SEQPACKET {
            return Err(fail()(Errno::PROTOTYPE));
        }
        Ok(Self(fd))
    }

    /// Sends one message. Empty messages are refused, because the receiver could not distinguish them from the end of
    /// the stream. The limits are about 200 kB (the socket's send buffer) and [`MAX_FDS`] descriptors; use a memfd for
    /// larger data. If the receiver is gone, it fails with EPIPE, without a signal.
    ///
    /// Blocks while the receiver's queue is full.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SysError> {
        if bytes.is_empty() || fds.len() > MAX_FDS {
            return Err(SysError::Message { what: "a message to send", problem: "it is empty or has too many files".into() });
        }
        send_raw(self.as_fd(), bytes, fds).map_err(SysError::io("send a message of", format!("{} bytes", bytes.len())))
    }

    /// Receives one message of at most `limit` bytes and [`MAX_FDS`] descriptors. Returns `None` once the other side
    /// has closed its end.
    ///
    /// A larger message is an error; it is lost and its descriptors are closed. `what` names the message in errors. If
    /// `deadline` passes, the result is an `Io` error of kind `TimedOut`.
    pub fn recv(&self, what: &'static str, limit: usize, deadline: Option<Instant>) -> Result<Option<SocketMessage>, SysError> {
        if let Some(deadline) = deadline
            && !wait_readable(self.as_fd(), deadline).map_err(SysError::io("wait for", what))?
        {
            return Err(SysError::io("wait for", what)(io::Error::from(io::ErrorKind::TimedOut)));
        }
        let mut bytes = vec![0; limit];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = retry(|| recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))
            .map_err(SysError::io("receive", what))?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let problem = format!("it has more than {limit} bytes or {MAX_FDS} files");
            return Err(SysError::Message { what, problem });
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(got.bytes);
        Ok(Some(SocketMessage { bytes, fds }))
    }

    /// Shuts down both directions: the other side reads the end of the stream, even if a copy of this end is still
    /// open elsewhere.
    pub fn shutdown(&self) {
        // This fails only if the other side has already shut down.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// Waits until `fd` is readable or its other side is closed. Returns false once `deadline` has passed.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Restarts a system call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Sends one message with at most [`MAX_FDS`] descriptors, without memory allocation, so that it can be used between
/// fork and exit.
pub(crate) fn send_raw(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let sent = retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Receives one message of at most `bytes.len()` bytes and one descriptor, without memory allocation. A length of 0
/// means the end of the stream.
pub(crate) fn recv_raw(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = retry(|| recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fd = received.last();
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((got.bytes, fd))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    #[test]
    fn message_boundaries_and_descriptors_are_preserved() {
        let (a, b) = Socket::pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        a.send(b"first", &[file.as_fd()]).unwrap();
        a.send(b"second", &[]).unwrap();
        drop(a);
        let first = b.recv("the first", 64, None).unwrap().unwrap();
        assert_eq!(first.bytes, b"first");
        let mut text = String::new();
        File::from(first.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, std::fs::read_to_string("/proc/self/comm").unwrap());
        let second = b.recv("the second", 64, None).unwrap().unwrap();
        assert_eq!((second.bytes.as_slice(), second.fds.len()), (b"second".as_slice(), 0));
        assert!(b.recv("the end", 64, None).unwrap().is_none());
    }

    #[test]
    fn received_descriptors_are_close_on_exec() {
        let (a, b) = Socket::pair().unwrap();
        a.send(b"x", &[a.as_fd()]).unwrap();
        let got = b.recv("a file", 1, None).unwrap().unwrap();
        assert!(rustix::io::fcntl_getfd(&got.fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_message_that_is_too_large_is_an_error_and_only_it_is_lost() {
        let (a, b) = Socket::pair().unwrap();
        a.send(&[7; 65], &[]).unwrap();
        a.send(b"next", &[]).unwrap();
        let error = b.recv("a verdict", 64, None).unwrap_err();
        assert_eq!(error.to_string(), "receive a verdict: it has more than 64 bytes or 16 files");
        assert_eq!(b.recv("a verdict", 64, None).unwrap().unwrap().bytes, b"next");
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (_a, b) = Socket::pair().unwrap();
        let start = Instant::now();
        let error = b.recv("nothing", 64, Some(start + Duration::from_millis(30))).unwrap_err();
        assert!(matches!(&error, SysError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut), "{error:?}");
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn a_closed_receiver_is_an_error_not_a_signal() {
        let (a, b) = Socket::pair().unwrap();
        drop(b);
        let error = a.send(b"x", &[]).unwrap_err();
        assert!(matches!(&error, SysError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe), "{error:?}");
    }

    #[test]
    fn only_unix_seqpacket_sockets_are_accepted() {
        let file = File::open("/dev/null").unwrap();
        assert!(Socket::from_fd(file.into()).is_err());
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Socket::from_fd(stream.into()).is_err());
        let (a, _b) = Socket::pair().unwrap();
        assert!(Socket::from_fd(a.into()).is_ok());
    }

    #[test]
    fn empty_messages_are_refused() {
        let (a, _b) = Socket::pair().unwrap();
        assert!(matches!(a.send(b"", &[]), Err(SysError::Message { .. })));
    }
}
