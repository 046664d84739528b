//! Runs a command with all its children under ptrace(2), numbers the system calls that change something, and kills or
//! fails one of them.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use libc::{c_long, pid_t};

/// The fault at the call with a number, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None: the calls are only counted.
    None,
    /// Every process of the tree is killed before the call.
    KillTree(usize),
    /// The calling process is killed before the call.
    KillCaller(usize),
    /// The call has no effect and fails with this errno.
    Fail(usize, i32),
    /// The thread that makes the first call with this name stops before it, and never continues.
    Freeze(&'static str),
}

/// The result of a command.
#[derive(Debug)]
pub struct Stepped {
    /// Exit status; None if a signal ended it.
    pub status: Option<i32>,
    /// The names of the counted calls.
    pub calls: Vec<&'static str>,
    /// The name of the call at which the fault occurred.
    pub hit: Option<&'static str>,
    /// Standard output and standard error.
    pub said: String,
}

/// Longer than any run with one fault can take, including its own deadline.
const PATIENCE: Duration = Duration::from_secs(60);

/// PTRACE_GET_SYSCALL_INFO, and the two kinds of stops that are counted (linux/ptrace.h).
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;
const EXIT: u8 = 2;

/// The kernel's description of a stop: `struct ptrace_syscall_info` as words.
#[derive(Debug, Default)]
#[repr(C)]
struct Info {
    op: u8,
    _pad: [u8; 3],
    _arch: u32,
    _pointers: [u64; 2],
    nr: u64,
    args: [u64; 6],
    _rest: [u64; 2],
}

macro_rules! names {
    ($nr:expr, $($plain:literal = $number:ident),+ $(,)?) => {
        match c_long::try_from($nr).ok()? { $(libc::$number => Some($plain),)+ _ => None }
    };
}

/// The name of a call that changes something outside of its process, or creates a process.
fn changing(info: &Info) -> Option<&'static str> {
    let flag = |at: usize, flag: i32| info.args[at] & u64::from(flag.unsigned_abs()) != 0;
    let name = names!(
        info.nr,
        "openat" = SYS_openat,
        "mmap" = SYS_mmap,
        "bpf" = SYS_bpf,
        "mkdir" = SYS_mkdir,
        "mkdirat" = SYS_mkdirat,
        "write" = SYS_write,
        "pwrite64" = SYS_pwrite64,
        "writev" = SYS_writev,
        "pwritev" = SYS_pwritev,
        "rename" = SYS_rename,
        "renameat" = SYS_renameat,
        "renameat2" = SYS_renameat2,
        "unlink" = SYS_unlink,
        "unlinkat" = SYS_unlinkat,
        "rmdir" = SYS_rmdir,
        "mount" = SYS_mount,
        "umount2" = SYS_umount2,
        "fsopen" = SYS_fsopen,
        "fsconfig" = SYS_fsconfig,
        "fsmount" = SYS_fsmount,
        "move_mount" = SYS_move_mount,
        "setns" = SYS_setns,
        "unshare" = SYS_unshare,
        "clone" = SYS_clone,
        "clone3" = SYS_clone3,
        "fork" = SYS_fork,
        "vfork" = SYS_vfork,
        "execve" = SYS_execve,
        "ftruncate" = SYS_ftruncate,
        "fallocate" = SYS_fallocate,
        "fchmod" = SYS_fchmod,
        "fchmodat" = SYS_fchmodat,
        "chmod" = SYS_chmod,
        "fchownat" = SYS_fchownat,
        "linkat" = SYS_linkat,
        "symlinkat" = SYS_symlinkat,
        "sendmsg" = SYS_sendmsg,
        "sendto" = SYS_sendto,
        "flock" = SYS_flock,
        "memfd_create" = SYS_memfd_create,
        "fsync" = SYS_fsync,
        "exit_group" = SYS_exit_group,
    )?;
    match name {
        "openat" => flag(2, libc::O_CREAT).then_some(name),
        "mmap" => (flag(2, libc::PROT_WRITE) && flag(3, libc::MAP_SHARED)).then_some(name),
        _ => Some(name),
    }
}

/// Runs a command with all its children to its end, with one fault.
pub fn step(command: &mut Command, input: &str, fault: Fault) -> Stepped {
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut stdin, mut said) = (file(), file());
    stdin.write_all(input.as_bytes()).expect("write the input");
    stdin.rewind().expect("rewind the input");
    let out = || Stdio::from(said.try_clone().expect("a descriptor"));
    command.stdin(stdin).stdout(out()).stderr(out());
    // SAFETY: between fork and exec it makes one system call, which takes no memory.
    #[allow(unsafe_code, reason = "a process can only ask for itself to be traced from its start")]
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    #[allow(clippy::zombie_processes, reason = "the tracer waits for it, as for every process of its tree")]
    let child = command.spawn().expect("the command starts");
    let main = pid_t::try_from(child.id()).expect("a pid");
    let (done, running) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = running.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            kill(main);
        }
        late
    });
    let mut tracer = Tracer { main, fault, calls: Vec::new(), hit: None, tracees: BTreeMap::from([(main, None)]) };
    let status = tracer.run();
    drop(done);
    assert!(!watch.join().expect("the watch"), "{fault:?}: it did not end within {PATIENCE:?}");
    let mut text = String::new();
    said.rewind().expect("rewind the output");
    said.read_to_string(&mut text).expect("read the output");
    Stepped { status, calls: tracer.calls, hit: tracer.hit, said: text }
}

struct Tracer {
    main: pid_t,
    fault: Fault,
    calls: Vec<&'static str>,
    hit: Option<&'static str>,
    /// Every traced thread, with the errno that its current call is to fail with.
    tracees: BTreeMap<pid_t, Option<i32>>,
}

impl Tracer {
    /// Follows the tree to its end; returns the exit status of the first process.
    fn run(&mut self) -> Option<i32> {
        let mut ended = None;
        let mut begun = false;
        while !self.tracees.is_empty() {
            let Some((pid, status)) = wait_any() else { continue };
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.tracees.remove(&pid);
                if pid == self.main {
                    ended = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                }
                continue;
            }
            self.tracees.entry(pid).or_insert(None);
            let mut deliver = 0;
            match libc::WSTOPSIG(status) {
                // The exec of the command itself.
                libc::SIGTRAP if !begun => {
                    begun = true;
                    let options = libc::PTRACE_O_TRACESYSGOOD
                        | libc::PTRACE_O_TRACEFORK
                        | libc::PTRACE_O_TRACEVFORK
                        | libc::PTRACE_O_TRACECLONE
                        | libc::PTRACE_O_TRACEEXEC
                        | libc::PTRACE_O_EXITKILL;
                    trace(libc::PTRACE_SETOPTIONS, pid, 0, c_long::from(options));
                }
                signal if signal == libc::SIGTRAP | 0x80 => {
                    if self.at_call(pid) {
                        continue;
                    }
                }
                libc::SIGTRAP => {}
                // The initial stop of a new thread.
                libc::SIGSTOP => {}
                signal => deliver = signal,
            }
            trace(libc::PTRACE_SYSCALL, pid, 0, c_long::from(deliver));
        }
        ended
    }

    /// Handles the entry or exit of a call. True: the thread must not continue.
    fn at_call(&mut self, pid: pid_t) -> bool {
        let info = info(pid);
        if info.op == EXIT {
            if let Some(errno) = self.tracees.get_mut(&pid).and_then(Option::take) {
                registers(pid, |registers| registers.rax = u64::from(errno.unsigned_abs()).wrapping_neg());
            }
            return false;
        }
        let Some(name) = changing(&info).filter(|_| info.op == ENTRY) else { return false };
        self.calls.push(name);
        let now = self.calls.len();
        match self.fault {
            // exit_group is left out: a failed call would not end the process.
            Fault::Fail(at, errno) if at == now && name != "exit_group" => {
                registers(pid, |registers| registers.orig_rax = u64::MAX);
                self.tracees.insert(pid, Some(errno));
            }
            Fault::KillTree(at) if at == now => self.tracees.keys().for_each(|pid| kill(*pid)),
            Fault::KillCaller(at) if at == now => kill(pid),
            Fault::Freeze(wanted) if wanted == name => {}
            _ => return false,
        }
        self.hit = Some(name);
        matches!(self.fault, Fault::Freeze(_))
    }
}

/// The next stop or exit of a child of this thread; other threads of the test have their own children.
fn wait_any() -> Option<(pid_t, i32)> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    #[allow(unsafe_code, reason = "no safe wrapper waits for clones of this thread alone")]
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (pid > 0).then_some((pid, status))
}

fn kill(pid: pid_t) {
    // SAFETY: takes two numbers; the process is traced by us, so that its number is not another's.
    #[allow(unsafe_code, reason = "a thread's number kills its process")]
    unsafe {
        libc::kill(pid, libc::SIGKILL);
    }
}

/// A request that fails only if the process was killed meanwhile: its exit is reported next.
fn trace(request: libc::c_uint, pid: pid_t, address: c_long, data: c_long) {
    // SAFETY: these requests take numbers and write no memory of ours.
    #[allow(unsafe_code, reason = "no crate of ours wraps ptrace")]
    unsafe {
        libc::ptrace(request, pid, address, data);
    }
}

fn info(pid: pid_t) -> Info {
    let mut info = Info::default();
    // SAFETY: the kernel writes at most the given number of bytes to `info`, of which any are valid.
    #[allow(unsafe_code, reason = "no crate of ours wraps ptrace")]
    unsafe {
        libc::ptrace(GET_SYSCALL_INFO, pid, size_of::<Info>(), &raw mut info);
    }
    info
}

fn registers(pid: pid_t, change: impl FnOnce(&mut libc::user_regs_struct)) {
    // SAFETY: all zero bits are a valid set of registers; the kernel writes one, and reads it back.
    #[allow(unsafe_code, reason = "no crate of ours wraps ptrace")]
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        if libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers) == 0 {
            change(&mut registers);
            libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw mut registers);
        }
    }
}
