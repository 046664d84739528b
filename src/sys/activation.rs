//! Socket activation: sockets passed by systemd, sd_listen_fds(3).

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::sys::SysError;

/// A listening stream socket.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// Takes the sockets that were passed to this process, close-on-exec and non-blocking: none if `LISTEN_FDS` is not set,
/// or is for another process. It must be called once, before other descriptors are opened.
///
/// The variables stay in the environment, since changing it is not safe once there are threads. They carry this
/// process's pid, so that child processes ignore them.
///
/// # Errors
/// If the variables are malformed, or one of the descriptors is not a listening stream socket: a unit with
/// `Accept=yes`, or a datagram socket.
pub fn take() -> Result<Vec<Listener>, SysError> {
    let passed = sd_notify::listen_fds_with_names().map_err(SysError::io("take", "the sockets of LISTEN_FDS"))?;
    let listeners = passed.map(|(fd, name)| {
        // SAFETY: the call above found it open, and by the LISTEN_FDS protocol it belongs to this process; nothing else
        // has taken it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        listener(fd).map_err(SysError::io("take", format!("the socket {name}")))
    });
    listeners.collect()
}

fn listener(fd: OwnedFd) -> io::Result<Listener> {
    if sockopt::socket_type(&fd)? != SocketType::STREAM || !sockopt::socket_acceptconn(&fd)? {
        return Err(io::Error::other("it is not a listening stream socket; the unit needs ListenStream= and Accept=no"));
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    match sockopt::socket_domain(fd.as_fd())? {
        AddressFamily::UNIX => Ok(Listener::Unix(fd.into())),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Listener::Tcp(fd.into())),
        _ => Err(Errno::AFNOSUPPORT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_stream_sockets_are_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(matches!(listener(unix.into()), Ok(Listener::Unix(_))));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(listener(tcp.into()), Ok(Listener::Tcp(_))));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listener(udp.into()).unwrap_err().to_string().contains("ListenStream="));
        let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(listener(connected.into()).is_err());
        assert!(listener(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }
}
