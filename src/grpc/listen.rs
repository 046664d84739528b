//! The service's sockets: passed by systemd, or created by the service itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::cli::service::ServiceAddress;
use crate::paths::Paths;
use crate::sys::accounts;
use crate::sys::activation::Listener;
use crate::sys::error::SysError;
use crate::sys::fsutil::{self, TrustError};

/// The group that may connect to a socket that the service creates, if the group exists.
const GROUP: &str = "bpfman";
/// Owner and group may connect; the policy decides what they may do.
const MODE: u32 = 0o660;

/// Why the service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket's directory.
    #[error(transparent)]
    Directory(#[from] TrustError),
    /// A system call.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// An address was given in addition to passed sockets.
    #[error("listen on an address: systemd has already passed {0} sockets; remove the address from the unit")]
    Both(usize),
    /// A process accepts connections there.
    #[error("listen on {}: another process already listens there; stop it, or choose another address", .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("listen on {}: it exists and is not a socket; remove it, or choose another address", .0.display())]
    NotASocket(PathBuf),
    /// TCP without TLS.
    #[error(
        "listen on TCP without TLS: any client that reaches the port could load programs; give --tls-cert, --tls-key and --tls-client-ca"
    )]
    NoTls,
    /// One step of creating the socket.
    #[error("{doing} {}", .path.display())]
    Io {
        /// The failed step.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// All sockets of one service. Dropping it removes the socket that it created.
#[derive(Debug)]
pub struct Sockets {
    /// The sockets, non-blocking.
    pub listeners: Vec<Listener>,
    _own: Option<OwnSocket>,
}

/// A socket file that the service created.
#[derive(Debug)]
struct OwnSocket {
    path: PathBuf,
    inode: u64,
    /// Held while the service runs, so that of two services only one removes a stale socket.
    _lock: OwnedFd,
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Another process may have replaced it.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    /// Returns the passed sockets, else one at the address, else one at the default path.
    ///
    /// # Errors
    /// With the message for the administrator who starts the service.
    pub fn open(
        paths: &Paths,
        handed: Vec<Listener>,
        address: Option<&ServiceAddress>,
        tls: bool,
    ) -> Result<Self, ListenError> {
        if !handed.is_empty() && address.is_some() {
            return Err(ListenError::Both(handed.len()));
        }
        let sockets = if handed.is_empty() {
            match address {
                Some(ServiceAddress::Tcp(address)) => {
                    let listener = TcpListener::bind(address)
                        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                        .map_err(SysError::io("listen on", format!("tcp://{address}")))?;
                    Self { listeners: vec![Listener::Tcp(listener)], _own: None }
                }
                Some(ServiceAddress::Unix(path)) => Self::at(path)?,
                None => {
                    fsutil::ensure_directory(&paths.run, 0o755)?;
                    Self::at(&paths.service_socket())?
                }
            }
        } else {
            Self { listeners: handed, _own: None }
        };
        if !tls && sockets.listeners.iter().any(|listener| matches!(listener, Listener::Tcp(_))) {
            return Err(ListenError::NoTls);
        }
        Ok(sockets)
    }

    /// Creates a socket that has its mode and group before any client can find it.
    fn at(path: &Path) -> Result<Self, ListenError> {
        let failed = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ListenError::Io { doing, path, source }
        };
        let Some(lock) = fsutil::lock_while_open(&beside(path, "lock"))? else {
            return Err(ListenError::InUse(path.to_owned()));
        };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
            // systemd's own socket, for example.
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(ListenError::InUse(path.to_owned())),
            _ => {}
        }
        let new = beside(path, "new");
        fsutil::unlink_if_present(&new)?;
        let listener = UnixListener::bind(&new).map_err(failed("create the socket", &new))?;
        let inode = fsutil::adopt_socket(&new, MODE, accounts::gid_of(GROUP))?;
        listener.set_nonblocking(true).map_err(failed("set up", &new))?;
        std::fs::rename(&new, path).map_err(failed("put into place", path))?;
        let own = OwnSocket { path: path.to_owned(), inode, _lock: lock };
        Ok(Self { listeners: vec![Listener::Unix(listener)], _own: Some(own) })
    }
}

/// `.name.suffix` beside `path`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::error::chain;

    fn open(path: &Path) -> Result<Sockets, ListenError> {
        Sockets::open(&Paths::system(), Vec::new(), Some(&ServiceAddress::Unix(path.to_owned())), false)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        // Its listener is gone but the file remains, as after kill -9.
        drop(UnixListener::bind(&path).unwrap());
        let first = open(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o660);
        assert!(UnixStream::connect(&path).is_ok());
        let sentence =
            format!("listen on {}: another process already listens there; stop it, or choose another address", path.display());
        assert_eq!(chain(&open(&path).unwrap_err()), sentence);
        drop(first);
        assert!(!path.exists());

        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(open(&path), Err(ListenError::InUse(_))));
        drop(foreign);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_of_another_process_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let sockets = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(sockets);
        assert!(path.exists());
    }

    #[test]
    fn tcp_needs_tls_and_an_address_excludes_passed_sockets() {
        let tcp = ServiceAddress::Tcp(([127, 0, 0, 1], 0).into());
        assert!(matches!(Sockets::open(&Paths::system(), Vec::new(), Some(&tcp), false), Err(ListenError::NoTls)));
        assert!(Sockets::open(&Paths::system(), Vec::new(), Some(&tcp), true).is_ok());
        let handed = || {
            let listener = Listener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
            vec![listener]
        };
        assert!(matches!(Sockets::open(&Paths::system(), handed(), None, false), Err(ListenError::NoTls)));
        assert!(matches!(Sockets::open(&Paths::system(), handed(), Some(&tcp), true), Err(ListenError::Both(1))));
    }
}
