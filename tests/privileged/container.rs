//! A minimal container: a process in its own namespaces with a root file system, in the state in which a runtime runs
//! createRuntime hooks, before pivot_root.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bpfman_hook::model::ids::Pid;
use bpfman_hook::sys::pid;
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_gid, set_thread_res_uid};

/// Host id of the container's root.
pub const FIRST_ID: u32 = 100_000;

/// The namespaces of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// User, mount and network.
    UserMountNet,
    /// Only mount: the container's root is the host's.
    MountOnly,
}

/// A container. It ends when this is dropped, or when the test process dies: it reads from a pipe of ours.
#[derive(Debug)]
pub struct Container {
    process: Child,
    pub root: PathBuf,
    pub directory: tempfile::TempDir,
}

impl Container {
    /// A container with a user namespace. `setup` is shell code that runs inside as its root, with the path of the root
    /// file system in `$R`, after that has been bind-mounted to itself and got a sysfs.
    pub fn start(setup: &str) -> Self {
        Self::with(Namespaces::UserMountNet, |_| (), setup)
    }

    /// Like `start`; `prepare` changes the root file system from the host before anything is mounted.
    pub fn with(namespaces: Namespaces, prepare: impl FnOnce(&Path), setup: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("sys-container-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = directory.path().join("root");
        let first = if namespaces == Namespaces::UserMountNet { FIRST_ID } else { 0 };
        for name in ["", "sys", "run", "mnt", "etc"] {
            fs::create_dir(root.join(name)).unwrap();
            chown(root.join(name), Some(first), Some(first)).unwrap();
        }
        prepare(&root);
        let mut command = Command::new("unshare");
        match namespaces {
            Namespaces::UserMountNet => command.args(["--user", "--mount", "--net", "--keep-caps"]),
            Namespaces::MountOnly => command.arg("--mount"),
        };
        // Nothing is mounted before the ids are mapped (an exec before that loses capabilities that are not kept);
        // `cat` ends with our end of the pipe.
        let script = r#"echo entered; read -r _; exec setpriv --reuid 0 --regid 0 --clear-groups sh -euc "$1" "#;
        let inner = format!(
            "R='{root}'; mount --bind $R $R; \
             if [ -d $R/sys ] && [ ! -L $R/sys ]; then mount -t sysfs sysfs $R/sys; fi; {setup}\necho up; exec cat",
            root = root.display()
        );
        let mut process = command
            .args(["--", "sh", "-ec", script, "sh", &inner])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux starts");
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        if line == "entered\n" {
            if namespaces == Namespaces::UserMountNet {
                for map in ["uid_map", "gid_map"] {
                    fs::write(format!("/proc/{}/{map}", process.id()), format!("0 {FIRST_ID} 65536\n")).unwrap();
                }
            }
            process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
            line.clear();
            output.read_line(&mut line).unwrap();
        }
        if line != "up\n" {
            let mut text = String::new();
            process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            process.wait().unwrap();
            panic!("the container's setup failed: {text}");
        }
        Self { process, root, directory }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn namespace(&self, name: &str) -> OwnedFd {
        File::open(format!("/proc/{}/ns/{name}", self.pid())).unwrap().into()
    }

    /// Its root directory, in its mount namespace.
    pub fn open_root(&self) -> OwnedFd {
        let process = pid::open_process(Pid::new(self.pid()).unwrap()).unwrap();
        process.open_directory(&self.root).unwrap()
    }

    /// The lines of the container's mount table with a bpffs, except those that it inherited with its mount namespace,
    /// since other processes on this machine may have some.
    pub fn bpffs_lines(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap();
        let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
        let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<_> = ours.lines().filter(|line| line.contains(" - bpf ")).filter_map(point).collect();
        let theirs = table.lines().filter(|line| line.contains(" - bpf "));
        theirs.filter(|line| point(line).is_none_or(|point| !ours.contains(&point))).map(str::to_owned).collect()
    }

    /// Runs `f` as container root in all of the container's namespaces, in a process of its own.
    pub fn inside<T>(&self, f: impl FnOnce() -> T) -> T
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let (net, mount, user) = (self.namespace("net"), self.namespace("mnt"), self.namespace("user"));
        in_child(|| {
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            move_into_link_name_space(mount.as_fd(), Some(LinkNameSpaceType::Mount)).unwrap();
            move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).unwrap();
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
            set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
            f()
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A forked process that does a hook's work until it is killed.
#[derive(Debug)]
pub struct ForkedHook(libc::pid_t);

impl ForkedHook {
    /// Starts it; the constraints of `in_child` apply here too.
    pub fn start(f: impl FnOnce()) -> Self {
        // SAFETY: as in `in_child`.
        #[allow(unsafe_code, reason = "a process that can be killed while it works can only be had by forking")]
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            f();
            // SAFETY: ends the process at once.
            #[allow(unsafe_code, reason = "as above")]
            unsafe {
                libc::_exit(0)
            }
        }
        Self(pid)
    }

    /// Kills it after a delay and reaps it.
    pub fn kill_after(self, delay: Duration) {
        std::thread::sleep(delay);
        // SAFETY: the pid is that of our child, which no other code reaps; a null status is not written.
        #[allow(unsafe_code, reason = "as above")]
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Runs `f` in a forked process, which has one thread regardless of the test runner, and returns its result. A panic
/// there becomes a panic here.
///
/// Between fork and exit this allocates memory, which the C library allows (its fork takes the heap's locks along), and
/// it must not print: the runner's output lock may be held.
/// must not print: the runner's output lock may be held.
pub fn in_child<T>(f: impl FnOnce() -> T) -> T
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let parent = std::process::id();
        // The runner's panic hook prints under a lock, which another thread may have held at the fork. The parent
        // reports a child's panic instead.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::process::id() == parent {
                hook(info);
            }
        }));
    });
    // SAFETY: see above; the child leaves through _exit and never returns into the runner.
    #[allow(unsafe_code, reason = "a process with one thread can only be had by forking")]
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        drop(reader);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "a panic".into())
        });
        let sent = serde_json::to_writer(&mut writer, &result).is_ok();
        // SAFETY: ends the process at once, without the runner's exit handlers.
        #[allow(unsafe_code, reason = "as above")]
        unsafe {
            libc::_exit(if sent { 0 } else { 1 })
        }
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let mut status = 0;
    // SAFETY: `status` is writable, and the pid is that of our child, which no other code reaps.
    #[allow(unsafe_code, reason = "as above")]
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(reaped, pid);
    let result: Result<T, String> =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("the child ended with status {status:#x} and said {text:?}"));
    result.unwrap_or_else(|panic| panic!("in the child: {panic}"))
}
