//! The environment for tests of BPF objects: each test's own bpffs, network namespaces and cgroups, and the final check
//! that nothing is left.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bpfman_hook::kernel::{Kernel, KernelError, LinuxKernel, LoadedIds, Places, pins};
use bpfman_hook::model::attach_point::{AttachPoint, ProgramKind, Scope};
use bpfman_hook::model::bytecode::ImageVerdict;
use bpfman_hook::model::ids::{Digest, OwnerNo, PinName};
use bpfman_hook::model::plan::{PlannedLink, PlannedMap, PlannedObject, PlannedProgram};
use bpfman_hook::model::program_signing::KernelSigning;
use bpfman_hook::model::record::ImageRecord;
use bpfman_hook::sys::bpf::{self, ObjectKind};
use bpfman_hook::sys::{mounts, netns};
use rustix::thread::{UnshareFlags, unshare_unsafe};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// One of the committed objects.
pub fn object(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.o"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits for a condition for at most five seconds.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program to load.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'w> {
    pub function: &'w str,
    pub kind: ProgramKind,
    pub attach: u32,
    /// The kernel function that it is loaded for.
    pub target: Option<&'w str>,
}

/// A loaded object, with the names of its maps in the object file.
#[derive(Debug)]
pub struct LoadedObject {
    pub ids: LoadedIds,
    pub programs: Vec<PlannedProgram>,
    pub maps: Vec<PlannedMap>,
    variables: Vec<(String, String, usize, usize)>,
}

impl LoadedObject {
    pub fn map_id(&self, name: &str) -> u32 {
        let n = self.maps.iter().position(|map| map.name == name).unwrap_or_else(|| panic!("no map {name}"));
        self.ids.maps[n].unwrap_or_else(|| panic!("map {name} was not created"))
    }
}

/// A pinned link.
#[derive(Debug)]
pub struct Linked {
    pub pin: PinName,
    pub id: u32,
}

/// A bpffs with the directory of one owner.
#[derive(Debug)]
pub struct Bed {
    pub bpffs: tempfile::TempDir,
    pub directory: PathBuf,
    pub owner: OwnerNo,
    counts: [AtomicUsize; 3],
    ids: Mutex<Vec<(ObjectKind, u32)>>,
    ended: bool,
    signing: Mutex<KernelSigning>,
}

impl Bed {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: sudo make test-privileged");
        let root = tempfile::Builder::new().prefix("bpfman-kernel-bed-").tempdir_in("/run").unwrap();
        mounts::ensure_bpffs(root.path()).unwrap();
        let owner = OwnerNo(NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = root.path().join(owner.directory());
        LinuxKernel.make_directory(&directory).unwrap();
        Self {
            bpffs: root,
            directory,
            owner,
            counts: Default::default(),
            ids: Mutex::default(),
            ended: false,
            signing: Mutex::default(),
        }
    }

    /// How loads use the signatures of programs.
    pub fn signing(&self) -> KernelSigning {
        *self.signing.lock().unwrap()
    }

    pub fn set_signing(&self, signing: KernelSigning) {
        *self.signing.lock().unwrap() = signing;
    }

    pub fn load(
        &self,
        bytes: &[u8],
        scope: Scope,
        wanted: &[Wanted<'_>],
        globals: &[(&str, Vec<u8>)],
    ) -> Result<LoadedObject, KernelError> {
        self.load_planned(bytes, scope, wanted, globals, &[])
    }

    pub fn load_frozen(
        &self,
        bytes: &[u8],
        scope: Scope,
        wanted: &[Wanted<'_>],
        frozen: &[&str],
    ) -> Result<LoadedObject, KernelError> {
        self.load_planned(bytes, scope, wanted, &[], frozen)
    }

    fn load_planned(
        &self,
        bytes: &[u8],
        scope: Scope,
        wanted: &[Wanted<'_>],
        globals: &[(&str, Vec<u8>)],
        frozen: &[&str],
    ) -> Result<LoadedObject, KernelError> {
        let facts = LinuxKernel.describe(bytes)?;
        let number = |n: usize| self.counts[n].fetch_add(1, Ordering::Relaxed);
        let programs: Vec<PlannedProgram> = wanted
            .iter()
            .map(|wanted| PlannedProgram {
                function: wanted.function.into(),
                kind: wanted.kind,
                expected_attach_type: wanted.attach,
                target: wanted.target.map(str::to_owned),
                pin: PinName::program(number(0)),
            })
            .collect();
        let maps: Vec<PlannedMap> = facts
            .maps
            .iter()
            .map(|map| PlannedMap {
                name: map.name.clone(),
                pin: PinName::map(number(1)),
                freeze: frozen.contains(&map.name.as_str()),
                reuse: None,
                from_pod: false,
                named: false,
                entries: None,
                shown: false,
            })
            .collect();
        let planned = PlannedObject {
            image: ImageRecord {
                reference: "file:/test".into(),
                digest: Digest::from_bytes([0; 32]),
                object: Digest::from_bytes([0; 32]),
                rule: "test".into(),
                verdict: ImageVerdict::Unsigned,
            },
            bytes: bytes.to_vec(),
            scope,
            programs,
            maps,
            globals: globals.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect(),
            core: facts.core,
            signing: self.signing(),
        };
        let ids = LinuxKernel.load(&self.directory, &planned)?;
        assert_eq!((ids.programs.len(), ids.maps.len()), (planned.programs.len(), planned.maps.len()));
        let mut all = self.ids.lock().unwrap();
        all.extend(ids.programs.iter().map(|id| (ObjectKind::Program, *id)));
        all.extend(ids.maps.iter().flatten().map(|id| (ObjectKind::Map, *id)));
        // The locations of variables, for reading them back: from the test's own parsing of the symbol table.
        let variables = variables(bytes);
        Ok(LoadedObject { ids, programs: planned.programs, maps: planned.maps, variables })
    }

    /// Attaches the n-th program of a loaded object.
    pub fn attach(&self, loaded: &LoadedObject, n: usize, at: AttachPoint, places: Places<'_>) -> Result<Linked, KernelError> {
        let program = &loaded.programs[n];
        let pin = PinName::link(self.counts[2].fetch_add(1, Ordering::Relaxed));
        let planned = PlannedLink {
            program: program.pin.clone(),
            function: program.function.clone(),
            at,
            pin: pin.clone(),
            order: None,
            netns: None,
        };
        let Some(id) = LinuxKernel.attach(&self.directory, &planned, places)?.id else { return Ok(Linked { pin, id: 0 }) };
        assert!(bpf::ids(ObjectKind::Link).unwrap().contains(&id));
        self.ids.lock().unwrap().push((ObjectKind::Link, id));
        Ok(Linked { pin, id })
    }

    pub fn open_map(&self, loaded: &LoadedObject, name: &str) -> OwnedFd {
        let map = loaded.maps.iter().find(|map| map.name == name).unwrap_or_else(|| panic!("no map {name}"));
        bpf::open_pin(&map.pin.path(&self.directory)).unwrap()
    }

    /// The eight bytes of an array entry as a number.
    pub fn counter(&self, loaded: &LoadedObject, map: &str, key: u32) -> u64 {
        let value = bpf::map_lookup(self.open_map(loaded, map).as_fd(), &key.to_ne_bytes()).unwrap();
        u64::from_ne_bytes(value.try_into().unwrap())
    }

    /// The current value of an eight-byte variable, from its section's map.
    pub fn variable(&self, loaded: &LoadedObject, name: &str) -> u64 {
        let (_, section, offset, size) = loaded.variables.iter().find(|v| v.0 == name).unwrap();
        let value = bpf::map_lookup(self.open_map(loaded, section).as_fd(), &[0; 4]).unwrap();
        u64::from_ne_bytes(value[*offset..offset + size].try_into().unwrap())
    }

    /// Runs a program under a name and returns its pid.
    pub fn run_named(&self, name: &str) -> u32 {
        let directory = tempfile::Builder::new().prefix("kernel-run-").tempdir().unwrap();
        let path = directory.path().join(name);
        // Not one of busybox: it would look for a part of itself with that name.
        std::os::unix::fs::symlink("/bin/bash", &path).unwrap();
        let mut child = Command::new(&path).args(["-c", ":"]).spawn().unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        pid
    }

    /// Removes everything by its pins, links first, and checks that the kernel has freed all of it.
    pub fn end(mut self) {
        let found = pins::list(self.bpffs.path()).unwrap();
        assert!(found.foreign.is_empty(), "{:?}", found.foreign);
        for (owner, pins) in &found.owners {
            assert_eq!(*owner, self.owner);
            for pin in pins {
                assert!(LinuxKernel.unpin(&self.directory, pin).unwrap());
            }
        }
        LinuxKernel.remove_directory(&self.directory).unwrap();
        assert_eq!(LinuxKernel.directories(self.bpffs.path()).unwrap(), []);
        assert_eq!(pins::list(self.bpffs.path()).unwrap(), pins::PinnedOwners::default());
        for (kind, id) in self.ids.lock().unwrap().iter() {
            let gone = wait_until(|| !bpf::ids(*kind).unwrap().contains(id));
            assert!(gone, "{kind:?} {id} is still there");
        }
        self.ended = true;
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What a failed test leaves is removed with the mount.
        let _ = mounts::unmount(self.bpffs.path());
        assert!(self.ended || thread::panicking(), "a test must end with the residue check");
    }
}

/// A network namespace with lo up. It ends with its last user.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: a new network namespace for this thread, which ends right after, does not affect other threads.
            #[allow(unsafe_code, reason = "a thread of the test in a namespace of its own")]
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let netns = Self(made.join().unwrap());
        netns.ip("link set lo up");
        netns
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs ip(8) inside and returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        let output = netns::on_thread(self.fd(), || Command::new("ip").args(arguments.split(' ')).output().unwrap()).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `f` while a process is in the namespace.
    pub fn while_a_process_is_in_it(&self, f: impl FnOnce()) {
        let mut child = netns::on_thread(self.fd(), || Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
        f();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// True as soon as a counter no longer sees what is sent.
    pub fn is_quiet(&self, counter: impl Fn() -> u64) -> bool {
        wait_until(|| {
            let before = counter();
            self.send_to_itself(1);
            counter() == before
        })
    }

    /// Sends packets over lo and receives them.
    pub fn send_to_itself(&self, packets: usize) {
        netns::on_thread(self.fd(), || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for _ in 0..packets {
                socket.send_to(b"packet", socket.local_addr().unwrap()).unwrap();
                assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 6);
            }
        })
        .unwrap();
    }
}

/// A cgroup in the v2 hierarchy, wherever that is mounted.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    pub fn new() -> Self {
        let mount = mounts::own_mounts().unwrap().into_iter().find(|mount| mount.kind == "cgroup2");
        let mount = mount.expect("a cgroup2 mount").point;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("bpfman-kernel-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let directory = File::open(&path).unwrap().into();
        Self { path, directory }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).unwrap().ino()
    }

    /// Runs a line of bash in the cgroup; bash itself is started outside.
    pub fn run(&self, line: &str) -> ExitStatus {
        let script = format!("echo $$ > '{}/cgroup.procs' && {line}", self.path.display());
        let status = Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
        assert!(wait_until(|| fs::read_to_string(self.path.join("cgroup.procs")).unwrap().is_empty()));
        status
    }

    /// Opens a TCP connection from the cgroup and closes it.
    pub fn connect(&self, port: u16) -> ExitStatus {
        self.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = wait_until(|| fs::remove_dir(&self.path).is_ok());
        assert!(removed || thread::panicking(), "{} stays", self.path.display());
    }
}

/// Runs `f` while the kernel's own types (BTF) are hidden.
pub fn without_kernel_types<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: changes mounts and the working directory of this thread only, which ends right after.
            #[allow(unsafe_code, reason = "a thread of the test in a namespace of its own")]
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            let status = |args: &[&str]| assert!(Command::new("mount").args(args).status().unwrap().success());
            status(&["--make-rprivate", "/"]);
            status(&["-t", "tmpfs", "tmpfs", "/sys/kernel/btf"]);
            f()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Name, section, offset and size of each variable, read with LLVM's tool instead of our parser.
fn variables(bytes: &[u8]) -> Vec<(String, String, usize, usize)> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let Ok(output) = Command::new("readelf").args(["-W", "-S", "-s"]).arg(file.path()).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut sections = std::collections::HashMap::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((number, rest)) = line.trim_start().strip_prefix('[').and_then(|l| l.split_once(']')) {
            if let Some(name) = rest.split_whitespace().next() {
                sections.insert(number.trim().to_owned(), name.to_owned());
            }
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, value, size, "OBJECT", _, _, section, name] = words.as_slice() {
            let (Ok(value), Ok(size)) = (usize::from_str_radix(value, 16), size.parse()) else { continue };
            if let Some(section) = sections.get(*section) {
                found.push(((*name).to_owned(), section.clone(), value, size));
            }
        }
    }
    found
}
