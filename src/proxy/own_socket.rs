//! A socket for the listeners of one container, where systemd has none for all: a process that is started before the
//! runtime, and ends with the container's first listener.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::sys::fsutil::FileLock;
use crate::sys::{SysError, environment, fsutil};

/// How long the runtime may take to connect: an engine may pull an image in between.
const FIRST: Duration = Duration::from_secs(300);

/// A process that waits to be told to serve a socket. It has the capabilities that this process still had when it was
/// started; dropped without [`Launcher::launch`], it ends.
#[derive(Debug)]
pub struct Launcher {
    process: Child,
    socket: PathBuf,
}

impl Launcher {
    /// Starts the process, before capabilities are dropped.
    ///
    /// # Errors
    /// If the directory of sockets cannot be made, or the process cannot be started.
    pub fn start(paths: &Paths) -> io::Result<Self> {
        fsutil::ensure_directory(&paths.run, 0o755).map_err(io::Error::other)?;
        let directory = paths.proxy_directory();
        fsutil::ensure_directory(&directory, 0o700).map_err(io::Error::other)?;
        let mut random = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let socket = directory.join(format!("{:016x}.sock", u64::from_ne_bytes(random)));
        let mut command = Command::new("/proc/self/exe");
        command.arg("--root").arg(paths.root()).args(["proxy", "own-socket"]).arg(&socket);
        // Neither the engine's terminal nor its pipes: the process outlives the engine.
        command.env_clear().current_dir("/").process_group(0);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        Ok(Self { process, socket })
    }

    /// Lets it serve, and returns the socket once a runtime can connect to it; None if it failed.
    pub fn launch(mut self) -> Option<PathBuf> {
        self.process.stdin.take()?.write_all(b"go").ok()?;
        let mut answer = String::new();
        self.process.stdout.take()?.read_to_string(&mut answer).ok()?;
        (answer == READY).then_some(self.socket)
    }
}

const READY: &str = "ready";

/// Waits for the word to serve, then takes listeners at a socket, each in a process of its own.
///
/// # Errors
/// If it cannot listen there.
pub fn serve(path: &Path) -> Result<ExitCode, CommandError> {
    let mut word = String::new();
    match io::stdin().read_to_string(&mut word) {
        Ok(_) if word == "go" => {}
        _ => return Ok(ExitCode::SUCCESS),
    }
    // Held for as long as this process runs.
    let _lock = lock_socket(path)?;
    let failed = |error: io::Error| CommandError::new(format!("listen at {}: {error}", path.display()));
    let listener = UnixListener::bind(path).map_err(failed)?;
    // The directory is root's alone.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let told = io::stdout().write_all(READY.as_bytes()).and_then(|()| io::stdout().flush());
    told.and_then(|()| environment::close_standard_streams()).map_err(|error| {
        remove(path);
        failed(error)
    })?;
    let path = path.to_owned();
    static CONNECTED: AtomicBool = AtomicBool::new(false);
    let unused = path.clone();
    thread::spawn(move || {
        thread::sleep(FIRST);
        if !CONNECTED.load(Ordering::Relaxed) {
            end(&unused);
        }
    });
    for connection in listener.incoming().flatten() {
        let is_first = !CONNECTED.swap(true, Ordering::Relaxed);
        let child = serve_connection(connection, &path);
        let path = path.clone();
        thread::spawn(move || {
            if let Ok(mut child) = child {
                let _ = child.wait();
            }
            if is_first {
                end(&path);
            }
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends this process; those of execs go on until their own listeners end.
fn end(path: &Path) -> ! {
    remove(path);
    exit(0)
}

fn remove(socket: &Path) {
    let _ = fs::remove_file(socket);
    let _ = fs::remove_file(lock_of(socket));
}

fn serve_connection(connection: UnixStream, path: &Path) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // <root>/run/bpfman-hook/proxy/NAME
    let root = path.ancestors().nth(4).unwrap_or(Path::new("/"));
    command.arg("--root").arg(root).args(["proxy", "-"]);
    command.env_clear().current_dir("/").stdin(OwnedFd::from(connection)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// The extension of the files that tell which sockets have a process. A connection would tell that too, but the process
/// would take it for that of its runtime.
const LOCK: &str = "lock";
/// How long to wait for others that start at the same time.
const PATIENCE: Duration = Duration::from_secs(5);

fn lock_of(socket: &Path) -> PathBuf {
    socket.with_extension(LOCK)
}

/// Locks the file beside a socket that is to be made, and removes the sockets of processes that were killed.
///
/// # Errors
/// If the file cannot be locked.
fn lock_socket(socket: &Path) -> Result<OwnedFd, SysError> {
    let lock = lock_of(socket);
    let failed = |doing: &'static str, path: &Path| SysError::io(doing, path.display().to_string());
    let directory = socket.parent().unwrap_or(Path::new("/"));
    let opened: OwnedFd = fs::File::open(directory).map_err(failed("open", directory))?.into();
    // Another process could otherwise take a new file for that of a dead process, before it is locked.
    let alone = FileLock::wait_for(&opened, directory, PATIENCE)?;
    if alone.is_some() {
        remove_dead(directory);
    }
    let held = || io::Error::from(io::ErrorKind::WouldBlock);
    fsutil::lock_while_open(&lock)?.ok_or_else(|| failed("lock", &lock)(held()))
}

/// Removes the sockets whose process does not run.
fn remove_dead(directory: &Path) {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    for lock in files.filter(|path| path.extension().is_some_and(|end| end == LOCK)) {
        if let Ok(Some(_dead)) = fsutil::lock_while_open(&lock) {
            remove(&lock.with_extension("sock"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_without_a_process_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let [dead, unused, own] = ["dead", "unused", "own"].map(|name| directory.path().join(name).with_extension("sock"));
        drop(lock_socket(&dead).unwrap());
        let _dead = UnixListener::bind(&dead).unwrap();
        let held = lock_socket(&unused).unwrap();
        let listener = UnixListener::bind(&unused).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(!dead.exists() && !lock_of(&dead).exists());
        let _own = lock_socket(&own).unwrap();
        assert!(unused.exists() && lock_of(&unused).exists() && lock_of(&own).exists());
        // Nothing has connected to it.
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(lock_socket(&unused).is_err());
        drop(held);
        remove_dead(directory.path());
        assert!(!unused.exists());
    }
}
