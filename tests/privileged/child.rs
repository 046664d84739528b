//! Child roles on the real kernel: what a child inherits, when it ends, and what it can still do once it is confined.
//!
//! A child is this test binary itself: [`ROLE`] runs before the test runner and takes over if a role is requested.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::process::exit;
use std::time::{Duration, Instant};

use bpfman_hook::sys::SysError;
use bpfman_hook::sys::child::{CONFINED_ID, Child, ChildLimits, Output, Role, confine, parent_socket, role_from_args};
use bpfman_hook::sys::sandbox;
use serde_json::{Value, json};

use crate::container::ForkedHook;

const LIMITS: ChildLimits = ChildLimits { address_space: 1 << 30, data: 256 << 20, cpu: 60, files: 32, file_size: 4096 };

#[used]
#[unsafe(link_section = ".init_array")]
#[allow(unsafe_code, reason = "the one way to run before the test runner's main; std has its arguments by then")]
static ROLE: extern "C" fn() = {
    extern "C" fn start() {
        let args: Vec<OsString> = std::env::args_os().collect();
        if role_from_args(&args).is_some() {
            // No panic may unwind out of here.
            let done = std::panic::catch_unwind(serve);
            exit(if done.is_ok() { 0 } else { 99 });
        }
    }
    start
};

/// The child: does what the message requests and replies in JSON.
fn serve() {
    let socket = parent_socket().unwrap();
    let request = socket.recv("the request", 64, None).unwrap().unwrap();
    let answer = match request.bytes.as_slice() {
        b"look around" => json!({
            "environment": std::env::vars_os().count(),
            "directory": std::env::current_dir().unwrap(),
            "files": open_files(),
            "stdin": fs::read_link("/proc/self/fd/0").unwrap(),
        }),
        b"exit" => exit(7),
        b"close and hang" => {
            drop(socket);
            hang()
        }
        b"hang" => hang(),
        b"confine" => {
            confine(&socket, LIMITS).unwrap();
            confined()
        }
        b"close the sandbox" => {
            let readable = sandbox::with_targets(&["/etc/hosts"]);
            confine(&socket, LIMITS).unwrap();
            let made = sandbox::close(&readable).unwrap();
            sandboxed(made.landlock)
        }
        b"confine and hang" => {
            confine(&socket, LIMITS).unwrap();
            socket.send(b"{}", &[]).unwrap();
            hang()
        }
        other => panic!("{other:?}"),
    };
    socket.send(answer.to_string().as_bytes(), &[]).unwrap();
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn open_files() -> Vec<String> {
    let directory = File::open("/proc/self/fd").unwrap();
    let listing = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut files: Vec<_> = listing.map(|entry| fs::read_link(entry.path())).collect();
    drop(directory);
    // The descriptor of the listing itself is closed by now, or shows the directory.
    files.retain(|link| link.as_ref().is_ok_and(|path| !path.starts_with("/proc")));
    files.into_iter().map(|link| link.unwrap().display().to_string()).collect()
}

/// What a confined child can still do: each of these must fail, and the test checks how.
fn confined() -> Value {
    let raw = |result: io::Result<()>| result.err().and_then(|e| e.raw_os_error());
    let errno = |result: i32| if result == 0 { None } else { io::Error::last_os_error().raw_os_error() };
    let memfd = || -> io::Result<()> {
        let fd = rustix::fs::memfd_create("big", rustix::fs::MemfdFlags::CLOEXEC)?;
        File::from(fd).write_all(&[0; 8192])
    };
    let everything = caps::all();
    // SAFETY: these take integers only and are expected to fail.
    #[allow(unsafe_code, reason = "calls that safe wrappers would not make")]
    let (setuid, setgid, bounding, securebits) = unsafe {
        (
            errno(libc::setresuid(0, 0, 0)),
            errno(libc::setresgid(0, 0, 0)),
            everything.iter().filter(|c| libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(c.index())) == 1).count(),
            libc::prctl(libc::PR_GET_SECUREBITS),
        )
    };
    json!({
        "status": fs::read_to_string("/proc/self/status").unwrap(),
        "pid": std::process::id(),
        "setuid": setuid,
        "setgid": setgid,
        "bounding": bounding,
        "securebits": securebits,
        "shadow": raw(File::open("/etc/shadow").map(drop)),
        "large file": raw(memfd()),
        "raise": caps::set(None, caps::CapSet::Effective, &everything).is_err(),
        "ambient": caps::raise(None, caps::CapSet::Ambient, caps::Capability::CAP_CHOWN).is_err(),
        "limits": fs::read_to_string("/proc/self/limits").unwrap(),
    })
}

/// The remaining system calls, as errno, or None if the call succeeded.
fn sandboxed(landlock: bool) -> Value {
    let raw = |result: io::Result<()>| result.err().and_then(|e| e.raw_os_error());
    // SAFETY: integers, null pointers and static strings; no call changes memory of ours.
    #[allow(unsafe_code, reason = "calls that safe wrappers would not make")]
    let call = |number: i64, a: usize, b: usize, c: usize| {
        let done = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
        if done < 0 { io::Error::last_os_error().raw_os_error() } else { None }
    };
    let open = |flags: i32| call(libc::SYS_openat, libc::AT_FDCWD as usize, c"/etc/hosts".as_ptr() as usize, flags as usize);
    let socket = |family: i32, kind: i32| call(libc::SYS_socket, family as usize, kind as usize, 0);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").map(drop);
    let thread = std::thread::Builder::new().spawn(|| fs::read("/proc/self/attr/current").is_err()).map(|t| t.join().unwrap());
    json!({
        "landlock": landlock,
        "refused": {
            "execve": call(libc::SYS_execve, c"/bin/true".as_ptr() as usize, 0, 0),
            "fork": call(libc::SYS_clone, libc::SIGCHLD as usize, 0, 0),
            "bpf": call(libc::SYS_bpf, 0, 0, 0),
            "ptrace": call(libc::SYS_ptrace, 0, 0, 0),
            "io_uring": call(libc::SYS_io_uring_setup, 1, 0, 0),
            "kill": call(libc::SYS_kill, std::process::id() as usize, 0, 0),
            "unshare": call(libc::SYS_unshare, libc::CLONE_NEWUSER as usize, 0, 0),
            "write": open(libc::O_WRONLY),
            "create": open(libc::O_RDONLY | libc::O_CREAT),
            "unix": socket(libc::AF_UNIX, libc::SOCK_STREAM),
            "netlink": socket(libc::AF_NETLINK, libc::SOCK_RAW),
            "packet": socket(libc::AF_PACKET, libc::SOCK_RAW),
            "executable memory": call(libc::SYS_mmap, 0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as usize),
            "terminal": call(libc::SYS_ioctl, 0, libc::TIOCSTI as usize, 0),
        },
        "listen": raw(tcp),
        "clone3": call(libc::SYS_clone3, 0, 0, 0),
        "hosts": raw(File::open("/etc/hosts").map(drop)),
        "hostname": raw(File::open("/etc/hostname").map(drop)),
        "udp": raw(udp),
        "thread": thread.is_ok(),
    })
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn ask(request: &str) -> (Child, Value) {
    let mut child = Child::spawn(Role::Fetch, Output::Inherit).unwrap();
    child.socket().send(request.as_bytes(), &[]).unwrap();
    let answer = child.recv("the answer", 65_536, soon()).unwrap();
    let value = serde_json::from_slice(&answer.bytes).unwrap();
    (child, value)
}

#[test]
fn a_child_inherits_nothing() {
    // A descriptor without close-on-exec, as a runtime may leak one.
    let leaked = File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let (child, seen) = ask("look around");
    assert_eq!(seen["environment"], 0);
    assert_eq!(seen["directory"], "/");
    assert_eq!(seen["stdin"], "/dev/null");
    let files = seen["files"].as_array().unwrap();
    // stdin is null, stdout and stderr are the runner's, and there is the socket to the parent.
    assert_eq!(files.len(), 4, "{files:?}");
    assert!(!seen["files"].to_string().contains("hostname"), "{files:?}");
    assert!(child.wait(soon()).unwrap().success());
}

#[test]
fn a_child_that_exits_early_is_reported_with_its_status() {
    let mut child = Child::spawn(Role::Fetch, Output::Null).unwrap();
    child.socket().send(b"exit", &[]).unwrap();
    let error = child.recv("the answer", 64, soon()).unwrap_err();
    assert_eq!(error.to_string(), "the fetch process ended early: exit status: 7");
}

#[test]
fn a_child_that_hangs_is_killed_at_the_deadline() {
    for request in ["hang", "close and hang"] {
        let mut child = Child::spawn(Role::Fetch, Output::Null).unwrap();
        let pid = child.pid();
        child.socket().send(request.as_bytes(), &[]).unwrap();
        let error = child.recv("the answer", 64, Instant::now() + Duration::from_millis(200)).unwrap_err();
        assert!(
            matches!(error, SysError::Deadline { role: "fetch", .. } | SysError::ChildGone { role: "fetch", .. }),
            "{error:?}"
        );
        drop(child);
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "{request}");
    }
}

#[test]
fn dropping_a_child_kills_and_reaps_it() {
    let child = Child::spawn(Role::Fetch, Output::Null).unwrap();
    let pid = child.pid();
    child.socket().send(b"hang", &[]).unwrap();
    drop(child);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_role_argument_is_refused_on_a_terminal_or_pipe() {
    let word = "@bpfman-hook-child:fetch";
    assert_eq!(role_from_args(&["x".into(), word.into()]), Some(Role::Fetch));
    let status = std::process::Command::new("/proc/self/exe")
        .arg(word)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(99));
}

#[test]
fn a_confined_child_has_no_rights_and_cannot_gain_any() {
    let (child, seen) = ask("confine");
    let status = seen["status"].as_str().unwrap();
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let id = (CONFINED_ID + u32::try_from(seen["pid"].as_u64().unwrap()).unwrap()).to_string();
    assert_eq!(field("Uid"), vec![id.clone(); 4]);
    assert_eq!(field("Gid"), vec![id; 4]);
    assert_eq!(field("Groups"), Vec::<String>::new());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    // NOROOT, NO_SETUID_FIXUP's and KEEP_CAPS' locks, NO_CAP_AMBIENT_RAISE, and the locks of both.
    assert_eq!(seen["securebits"], 0b1110_1011);
    assert_eq!(seen["bounding"], 0);
    for refused in ["setuid", "setgid"] {
        assert_eq!(seen[refused], libc::EPERM, "{refused}");
    }
    assert_eq!(seen["shadow"], libc::EACCES);
    assert_eq!(seen["large file"], libc::EFBIG);
    assert_eq!(seen["raise"], true);
    assert_eq!(seen["ambient"], true);
    let limits = seen["limits"].as_str().unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max address space"), ["1073741824", "1073741824"]);
    assert_eq!(limit("Max open files"), ["32", "32"]);
    assert_eq!(limit("Max file size"), ["4096", "4096"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert!(child.wait(soon()).unwrap().success());
}

#[test]
fn a_child_in_the_sandbox_is_a_network_client_and_nothing_else() {
    let (child, seen) = ask("close the sandbox");
    for (what, errno) in seen["refused"].as_object().unwrap() {
        assert_eq!(*errno, libc::EPERM, "{what}");
    }
    assert_eq!(seen["clone3"], libc::ENOSYS);
    for open in ["hosts", "udp"] {
        assert_eq!(seen[open], Value::Null, "{open}");
    }
    assert_eq!(seen["thread"], true);
    // World-readable, but not needed by the child. Kernels without Landlock leave it to the file's mode.
    let expected = if seen["landlock"] == true { json!(libc::EACCES) } else { Value::Null };
    println!("landlock: {}", seen["landlock"]);
    assert_eq!(seen["hostname"], expected);
    // Landlock refuses the bind, the seccomp filter what comes after it.
    let expected = if seen["landlock"] == true { libc::EACCES } else { libc::EPERM };
    assert_eq!(seen["listen"], expected);
    assert!(child.wait(soon()).unwrap().success());
}

#[test]
fn a_confined_child_dies_with_its_parent() {
    let (mut reader, writer) = io::pipe().unwrap();
    let hook = ForkedHook::start(|| {
        let mut child = Child::spawn(Role::Fetch, Output::Null).unwrap();
        child.socket().send(b"confine and hang", &[]).unwrap();
        child.recv("the answer", 64, soon()).unwrap();
        (&writer).write_all(child.pid().to_string().as_bytes()).unwrap();
        // Killed here: no destructor runs, so only the kernel's parent-death signal is left.
        hang()
    });
    drop(writer);
    let mut pid = [0; 16];
    let len = reader.read(&mut pid).unwrap();
    let pid: i32 = std::str::from_utf8(&pid[..len]).unwrap().parse().unwrap();
    let pidfd = rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::PidfdFlags::empty())
        .unwrap();
    hook.kill_after(Duration::ZERO);
    let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&timeout)).unwrap(), 1, "the child outlived its parent");
}
