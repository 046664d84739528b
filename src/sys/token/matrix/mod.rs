//! Tries what a BPF token can be used for: each command, map type, program type, attach type and link type, in a
//! separate process with user, mount and network namespaces of its own.
//!
//! The parent configures the bpffs of the process, which delegates everything, and lends it an empty cgroup. Programs
//! that are attached accept everything, and are detached at once. When the process ends, nothing remains.

mod attempts;
mod attr;
mod commands;
mod programs;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::set_no_new_privs;

use crate::model::token_matrix::{MatrixRow, MatrixTypes};
use crate::sys::caps::{self, Capability};
use crate::sys::child::{self, Child, Output, Role};
use crate::sys::fsutil::{read_sealed, sealed_memfd};
use crate::sys::token::trial::configure;
use crate::sys::token::{BpfToken, last_errno};
use crate::sys::{SysError, cgroup, tracefs};

/// Maximum size of the rows in bytes, as JSON.
const ROWS_MAX: usize = 1 << 20;
/// Time limit: some thousand system calls.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every name in the kernel's BTF that the attempts refer to.
pub fn type_names() -> impl Iterator<Item = &'static str> {
    programs::names()
}

/// Runs the attempts in a child and returns one row for each. `types` are those of the running kernel.
///
/// # Errors
/// If the namespaces, the bpffs or the token cannot be created (missing capabilities, no user namespaces, no BPF tokens
/// before Linux 6.9). The child is gone in any case.
pub fn rows(types: &MatrixTypes) -> Result<Vec<MatrixRow>, SysError> {
    let deadline = Instant::now() + PATIENCE;
    let cgroup = LentCgroup::make();
    let mut forked = Child::spawn(Role::Matrix, Output::Inherit)?;
    let types = serde_json::to_vec(types).map_err(unreadable)?;
    forked.socket().send(&types, &[])?;
    let context = forked.recv("the bpffs of the token matrix", 64, deadline)?.fds.into_iter().next().ok_or_else(missing)?;
    let mount = configure(&context)?;
    match cgroup.as_ref().map(|cgroup| cgroup.directory.as_fd()) {
        Some(cgroup) => forked.socket().send(b"mount", &[mount.as_fd(), cgroup])?,
        None => forked.socket().send(b"mount", &[mount.as_fd()])?,
    }
    drop((mount, context));
    let answer = forked.recv("the rows of the token matrix", 64, deadline)?.fds.into_iter().next().ok_or_else(missing)?;
    let rows = read_sealed(answer, "the token matrix", ROWS_MAX)?;
    let rows = serde_json::from_slice(&rows).map_err(unreadable)?;
    // Programs on the cgroup are gone when the child is.
    drop(forked);
    Ok(rows)
}

fn missing() -> SysError {
    SysError::Message { what: "a message of the token matrix", problem: "it has no file".into() }
}

fn unreadable(error: serde_json::Error) -> SysError {
    SysError::Message { what: "a message of the token matrix", problem: error.to_string() }
}

/// An empty cgroup, which is removed when it is dropped.
struct LentCgroup {
    directory: OwnedFd,
    parent: OwnedFd,
    name: String,
}

impl LentCgroup {
    /// None where there is no v2 hierarchy, or none that we may write.
    fn make() -> Option<Self> {
        let parent = cgroup::Hierarchy::find().ok()??.open(Path::new("/")).ok()?;
        let name = format!("bpfman-hook-token-matrix-{}", std::process::id());
        mkdirat(&parent, &name, Mode::from_raw_mode(0o755)).ok()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(&parent, &name, flags, Mode::empty()) {
            Ok(directory) => Some(Self { directory, parent, name }),
            Err(_) => {
                let _ = unlinkat(&parent, &name, AtFlags::REMOVEDIR);
                None
            }
        }
    }
}

impl Drop for LentCgroup {
    fn drop(&mut self) {
        // It has no process and no child, so only its own removal by another process could make this fail.
        let _ = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Runs in the child: receives the types, creates the namespaces, tries everything, and sends the rows.
pub fn child() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %crate::sys::error::chain(&error), "try what a token can be used for");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), SysError> {
    let socket = child::parent_socket()?;
    let fail = |doing| SysError::io(doing, "the token matrix process");
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(fail("bind to its parent"))?;
    set_no_new_privs(true).map_err(fail("restrict"))?;
    let until = Instant::now() + PATIENCE;
    let Some(types) = socket.recv("the types for the token matrix", 64 << 10, Some(until))? else { return Ok(()) };
    let types: MatrixTypes = serde_json::from_slice(&types.bytes).map_err(unreadable)?;
    // Where tracefs is not mounted, reading it needs a capability that is gone afterwards. Only BPF_PROG_TEST_RUN passes
    // this tracepoint.
    let tracepoint = tracefs::tracepoint_id("bpf_test_run", "bpf_test_finish").ok().flatten();
    leave().map_err(SysError::io("create the namespaces of", "the token matrix process"))?;
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("open a bpffs in"))?;
    socket.send(b"context", &[context.as_fd()])?;
    drop(context);
    let Some(message) = socket.recv("the bpffs of the token matrix", 64, Some(until))? else { return Ok(()) };
    let mut files = message.fds.into_iter();
    let mount = files.next().ok_or_else(missing)?;
    let root = openat(&mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail("open the bpffs of"))?;
    let token = BpfToken::mint(root.as_fd())
        .map_err(|error| SysError::Message { what: "the token for the token matrix", problem: error.to_string() })?;
    let mut lab = Lab { token, root, cgroup: files.next(), sockmap: None, tracepoint, types };
    lab.sockmap = attempts::map(&lab, attempts::SOCKMAP, Some(lab.token())).ok();
    let mut rows = commands::rows(&lab);
    rows.extend(attempts::map_rows(&lab));
    rows.extend(programs::rows(&lab));
    let rows = serde_json::to_vec(&rows).map_err(unreadable)?;
    socket.send(b"rows", &[sealed_memfd("rows", &rows)?.as_fd()])
}

/// Creates the namespaces and maps the user, so that files can be created in the bpffs.
fn leave() -> Result<(), std::io::Error> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
    // SAFETY: takes an integer; this process has one thread.
    if unsafe { libc::unshare(flags) } != 0 {
        return Err(last_errno().into());
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// What the attempts use.
struct Lab {
    token: BpfToken,
    /// The root directory of the bpffs.
    root: OwnedFd,
    /// An empty cgroup; None if there is no v2 hierarchy.
    cgroup: Option<OwnedFd>,
    /// The id of a tracepoint; None if the kernel has none.
    tracepoint: Option<u64>,
    /// A map to which programs of sockets attach; None if it cannot be created.
    sockmap: Option<OwnedFd>,
    types: MatrixTypes,
}

impl Lab {
    fn token(&self) -> BorrowedFd<'_> {
        self.token.as_fd()
    }

    fn id(&self, name: &str) -> Option<u32> {
        self.types.ids.get(name).copied()
    }
}

use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN};

/// Sets of capabilities, each tried only if those before it do not suffice.
const SETS: [&[Capability]; 9] = [
    &[],
    &[CAP_BPF],
    &[CAP_NET_ADMIN],
    &[CAP_PERFMON],
    &[CAP_BPF, CAP_NET_ADMIN],
    &[CAP_BPF, CAP_PERFMON],
    &[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON],
    &[CAP_BPF, CAP_SYS_ADMIN],
    &[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN],
];

/// The smallest set with which an operation succeeds, or its errno with the largest.
fn smallest(operation: impl Fn() -> Result<(), Errno> + Sync) -> crate::model::token_matrix::MatrixOutcome {
    use crate::model::token_matrix::MatrixOutcome as O;
    let mut last = Errno::PERM;
    for set in SETS {
        match caps::with_caps(set, &operation) {
            Ok(Ok(())) => return O::Needs(set.iter().map(ToString::to_string).collect()),
            Ok(Err(errno)) => last = errno,
            Err(error) => return O::NotTried(error.to_string()),
        }
    }
    O::Fails { errno: last.raw_os_error(), error: errno_name(last) }
}

/// Whether an operation needs the token, by trying it without; None if it fails with it.
fn needs_token(
    outcome: &crate::model::token_matrix::MatrixOutcome,
    without: impl FnOnce() -> Result<(), Errno>,
) -> Option<bool> {
    outcome.works().then(|| without().is_err())
}

fn errno_name(errno: Errno) -> String {
    let name = match errno {
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::INVAL => "EINVAL",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::NOENT => "ENOENT",
        Errno::NODEV => "ENODEV",
        Errno::NXIO => "ENXIO",
        Errno::BUSY => "EBUSY",
        Errno::TOOBIG => "E2BIG",
        Errno::BADF => "EBADF",
        Errno::NOMEM => "ENOMEM",
        Errno::NOSYS => "ENOSYS",
        other if other.raw_os_error() == 524 => "ENOTSUPP",
        other => return format!("errno {}", other.raw_os_error()),
    };
    name.to_owned()
}
