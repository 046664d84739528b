//! A cgroup that exists for one command.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::sys::SysError;
use crate::sys::cgroup::{CgroupError, Hierarchy};

/// How often, and with which pause, the removal of a cgroup whose processes were killed is tried.
const TRIES: (usize, Duration) = (100, Duration::from_millis(10));

/// A new cgroup in the v2 hierarchy, below the mounted one. When it is dropped, its processes are killed and it is removed.
#[derive(Debug)]
pub struct CommandCgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl CommandCgroup {
    /// Creates it. Its name has the number of this process; an empty one that a dead process with this number left is used.
    ///
    /// # Errors
    /// If there is no v2 hierarchy, or it cannot be written.
    pub fn create() -> Result<Self, CgroupError> {
        let name = PathBuf::from(format!("bpfman-hook-{}", std::process::id()));
        let nowhere = || CgroupError::NotVisible(name.clone());
        let (hierarchy, mount) = (Hierarchy::find()?.ok_or_else(nowhere)?, Hierarchy::mount_point()?.ok_or_else(nowhere)?);
        let path = mount.join(&name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SysError::io("create the cgroup", path.display().to_string())(error).into());
            }
            _ => {}
        }
        let directory = hierarchy.open_below(Path::new(&name))?;
        Ok(Self { path, directory })
    }

    /// Its directory, to which programs attach.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Runs a command in it. `words` are the program and its arguments. SIGINT and SIGQUIT, which a terminal sends to both
    /// processes, end only the command.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, words: &[OsString]) -> Result<ExitStatus, SysError> {
        let shown = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let procs = self.path.join("cgroup.procs");
        let file = File::options().write(true).open(&procs).map_err(SysError::io("open", procs.display().to_string()))?;
        let mut command = Command::new(words.first().map(OsString::as_os_str).unwrap_or_default());
        command.args(words.iter().skip(1));
        // SAFETY: between fork and exec the closure makes system calls on integers and on a file that was opened before, and
        // does not allocate. 0 stands for the process that writes it.
        unsafe {
            command.pre_exec(move || {
                restore()?;
                (&file).write_all(b"0")
            })
        };
        let before = SIGNALS.map(|signal| {
            // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context.
            (signal, unsafe { libc::signal(signal, libc::SIG_IGN) })
        });
        let ended = command.status();
        for (signal, handler) in before {
            // SAFETY: the handler is the one that was installed before.
            unsafe { libc::signal(signal, handler) };
        }
        ended.map_err(SysError::io("run", shown))
    }
}

const SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGQUIT];

/// In the child: an exec keeps signals that are ignored.
fn restore() -> io::Result<()> {
    for signal in SIGNALS {
        // SAFETY: SIG_DFL installs no handler.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        let (tries, pause) = TRIES;
        for _ in 0..tries {
            // Since Linux 5.14. Before, a process that the command left keeps the cgroup.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(pause),
                _ => return,
            }
        }
    }
}
