//! A command in user, mount and network namespaces of its own, which starts once they have been prepared.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::model::ids::Pid;
use crate::sys::SysError;
use crate::sys::pid;
use crate::sys::sock::{Socket, recv_raw, send_raw};

/// Time limit for the child to create its namespaces.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to run, and as whom.
#[derive(Debug, Clone)]
pub struct UnsharedCommand<'a> {
    /// The program and its arguments; at least one.
    pub words: &'a [OsString],
    /// The user and group of the host to which root of the user namespace is mapped; not 0.
    pub ids: (u32, u32),
    /// Variables to add to the environment.
    pub variables: &'a [(&'a str, OsString)],
}

/// Runs the command, and then ends every process that it left in its user namespace. `prepare` gets the pid of the
/// process that will execute it, once its namespaces exist and before anything of it runs.
///
/// SIGINT and SIGQUIT, which a terminal sends to both processes, end only the command.
///
/// # Errors
/// The error of `prepare`, after which the command has not run; or that it could not be started.
pub fn run<E: From<SysError>>(
    command: &UnsharedCommand<'_>,
    prepare: impl FnOnce(Pid) -> Result<(), E>,
) -> Result<ExitStatus, E> {
    let shown = command.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let fail = |doing: &'static str| SysError::io(doing, shown.clone());
    let (ours, theirs) = Socket::pair()?;
    let mut words = command.words.iter();
    let mut process = Command::new(words.next().map(OsString::as_os_str).unwrap_or_default());
    process.args(words).envs(command.variables.iter().map(|(key, value)| (*key, value)));
    // SAFETY: the closure runs between fork and exec of a process that has threads. It makes system calls on integers
    // and on a socket created before the fork, and does not allocate.
    unsafe { process.pre_exec(move || enter(theirs.as_fd())) };
    // spawn returns once the child has executed the command, and for that the child waits for us. The thread also waits
    // for the command's end: the command is bound to the life of the thread that started it.
    let running = thread::spawn(move || process.spawn()?.wait());
    let prepared = namespaces_of(&ours, command.ids).map_err(E::from).and_then(|(number, namespace)| {
        prepare(number)?;
        Ok(namespace)
    });
    // Both signals are for the command: this process has to clean up after it.
    let before = [libc::SIGINT, libc::SIGQUIT].map(|signal| {
        // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context.
        (signal, unsafe { libc::signal(signal, libc::SIG_IGN) })
    });
    let sent = if prepared.is_ok() { ours.send(b"go", &[]) } else { Ok(()) };
    // Without a message, the child gives up.
    ours.shutdown();
    let ended = running.join().unwrap_or_else(|_| Err(io::Error::other("the thread that waits for it panicked")));
    for (signal, handler) in before {
        // SAFETY: the handler is the one that was installed before.
        unsafe { libc::signal(signal, handler) };
    }
    let namespace = prepared?;
    end_all(&namespace)?;
    sent?;
    Ok(ended.map_err(fail("run"))?)
}

/// A user namespace, held, so that no other one gets its inode.
struct HeldNamespace {
    inode: u64,
    _held: OwnedFd,
}

/// Receives the child's pid, maps root of its user namespace, and holds that.
fn namespaces_of(socket: &Socket, (uid, gid): (u32, u32)) -> Result<(Pid, HeldNamespace), SysError> {
    let what = "the pid of the command";
    let message = socket.recv(what, 4, Some(Instant::now() + PATIENCE))?;
    let gone = || SysError::Message { what, problem: "its process could not create the namespaces".to_owned() };
    let bytes = message.ok_or_else(gone)?.bytes;
    let number = bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(gone)?;
    let number = Pid::new(number).map_err(|_| gone())?;
    for (file, id) in [("uid_map", uid), ("gid_map", gid)] {
        let path = format!("/proc/{number}/{file}");
        fs::write(&path, format!("0 {id} 1\n")).map_err(SysError::io("write", path))?;
    }
    let namespace = fs::File::open(format!("/proc/{number}/ns/user")).map_err(SysError::io("open", "its user namespace"))?;
    let inode = namespace.metadata().map_err(SysError::io("stat", "its user namespace"))?.ino();
    Ok((number, HeldNamespace { inode, _held: namespace.into() }))
}

/// Runs in the child: creates the namespaces, waits until they are prepared, and becomes their root.
fn enter(socket: BorrowedFd<'_>) -> io::Result<()> {
    let check = |done: libc::c_int| if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: takes an integer; this process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET) })?;
    send_raw(socket, &std::process::id().to_ne_bytes(), &[])?;
    let mut go = [0; 2];
    if recv_raw(socket, &mut go)?.0 == 0 {
        return Err(io::Error::from_raw_os_error(libc::ECANCELED));
    }
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_DFL installs no handler. The parent may already ignore them, which an exec would keep.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: a list of length 0 is never read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresgid(0, 0, 0) })?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresuid(0, 0, 0) })?;
    // A change of ids clears it, so that it comes last.
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) })
}

/// Ends every process in a user namespace. Those that are created meanwhile are found by the next pass.
fn end_all(namespace: &HeldNamespace) -> Result<(), SysError> {
    const PASSES: usize = 16;
    for _ in 0..PASSES {
        let mut found = false;
        for number in pid::all_processes()? {
            let Ok(process) = pid::open_process(number) else { continue };
            if process.namespaces().is_ok_and(|namespaces| namespaces.user == namespace.inode) {
                found = true;
                process.pidfd().kill()?;
                let _ = process.pidfd().ends_within(Duration::from_secs(1));
            }
        }
        if !found {
            return Ok(());
        }
    }
    Err(SysError::Message { what: "the processes that the command left", problem: "they do not end".to_owned() })
}
