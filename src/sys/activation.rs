//! Socket activation: sockets passed by systemd, sd_listen_fds(3).

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::sys::SysError;

/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// Maximum number of sockets, more than any unit of bpfman-hook has.
const SOCKETS_MAX: usize = 64;

/// A listening stream socket.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// A socket that was passed.
#[derive(Debug)]
pub struct Handed {
    /// Its name from LISTEN_FDNAMES, or `unknown`.
    pub name: String,
    /// The socket, close-on-exec and non-blocking.
    pub listener: Listener,
}

/// The environment variables of socket activation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// `LISTEN_PID`.
    pub pid: Option<OsString>,
    /// `LISTEN_FDS`.
    pub fds: Option<OsString>,
    /// `LISTEN_FDNAMES`.
    pub names: Option<OsString>,
}

impl Variables {
    /// Reads them from this process's environment.
    pub fn read() -> Self {
        let var = |name| std::env::var_os(name);
        Self { pid: var("LISTEN_PID"), fds: var("LISTEN_FDS"), names: var("LISTEN_FDNAMES") }
    }

    /// The names of the descriptors passed to process `own`: none if the variables are not set or are for another
    /// process.
    fn names_for(&self, own: u32) -> Result<Vec<String>, SysError> {
        let Some(fds) = &self.fds else { return Ok(Vec::new()) };
        let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u32>().ok());
        if self.pid.as_ref().and_then(number) != Some(own) {
            return Ok(Vec::new());
        }
        let count = number(fds).and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= SOCKETS_MAX);
        let count = count.ok_or_else(|| SysError::Message {
            what: "the sockets of LISTEN_FDS",
            problem: format!("{} is not a number from 0 to {SOCKETS_MAX}", fds.to_string_lossy()),
        })?;
        let names = self.names.as_ref().map(|names| names.to_string_lossy().into_owned()).unwrap_or_default();
        let mut names: Vec<String> = names.split(':').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        names.resize(count, "unknown".to_owned());
        Ok(names)
    }
}

/// Takes the sockets that were passed to this process. It must be called once, before other descriptors are opened.
///
/// # Errors
/// If one of them is not a listening stream socket: a unit with `Accept=yes`, or a datagram socket.
pub fn take(variables: &Variables) -> Result<Vec<Handed>, SysError> {
    let names = variables.names_for(std::process::id())?;
    let mut handed = Vec::new();
    for (fd, name) in (FIRST..).zip(names) {
        // SAFETY: F_GETFD does not take a pointer; it fails for a number that is not open.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(SysError::io("take", format!("the socket {name}"))(io::Error::last_os_error()));
        }
        // SAFETY: it is open, and by the LISTEN_FDS protocol it belongs to this process; nothing else has taken it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let listener = listener(fd).map_err(SysError::io("take", format!("the socket {name}")))?;
        handed.push(Handed { name, listener });
    }
    Ok(handed)
}

fn listener(fd: OwnedFd) -> io::Result<Listener> {
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
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
    fn variables_for_other_processes_are_ignored() {
        let variables = |pid: &str, fds: &str, names: Option<&str>| Variables {
            pid: Some(pid.into()),
            fds: Some(fds.into()),
            names: names.map(Into::into),
        };
        let none: [&str; 0] = [];
        assert_eq!(Variables::default().names_for(7).unwrap(), none);
        assert_eq!(variables("8", "2", None).names_for(7).unwrap(), none);
        assert_eq!(variables("x", "2", None).names_for(7).unwrap(), none);
        assert_eq!(variables("7", "2", None).names_for(7).unwrap(), ["unknown", "unknown"]);
        assert_eq!(variables("7", "2", Some("a.socket:b")).names_for(7).unwrap(), ["a.socket", "b"]);
        assert_eq!(variables("7", "1", Some("a:b:c")).names_for(7).unwrap(), ["a"]);
        assert_eq!(variables("7", "0", None).names_for(7).unwrap(), none);
        for wrong in ["-1", "65", "two", "99999999999"] {
            let error = variables("7", wrong, None).names_for(7).unwrap_err();
            let sentence = format!("receive the sockets of LISTEN_FDS: {wrong} is not a number from 0 to 64");
            assert_eq!(error.to_string(), sentence);
        }
    }

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
