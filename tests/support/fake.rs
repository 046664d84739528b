//! A fake kernel and a fake host with only what the lifecycle tests need. A privileged test verifies each behaviour
//! that they imitate.
//!
//! Pins are files in a temporary directory, so that "nothing is left" is a directory listing. Every effect can be made
//! to fail, or to kill the process: a kill is a panic with [`Killed`], which no code between it and the test catches,
//! so that no rollback runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

use bpfman_hook::kernel::inspect::{Inspected, ProgramInfo};
use bpfman_hook::kernel::{AttachedLink, Feature, Kernel, KernelError, LoadedIds, Places, Probed, Support};
use bpfman_hook::lifecycle::host::{Host, HostError, NeededFacts};
use bpfman_hook::model::attach_point::Interface;
use bpfman_hook::model::container::Container;
use bpfman_hook::model::facts::{CgroupFact, Facts, NamespaceFact, NetnsFact, UsernsFact};
use bpfman_hook::model::gate::GatedContainer;
use bpfman_hook::model::ids::{ContainerId, OwnerNo, Pid, PinName, ProcessIdentity};
use bpfman_hook::model::object::ObjectFacts;
use bpfman_hook::model::plan::{PlannedBpffs, PlannedLink, PlannedObject};
use bpfman_hook::model::police::{CountedCall, Police};
use bpfman_hook::model::reach::{GuardedContainer, TokenReach, TypeAnswer};
use bpfman_hook::model::record::LinkRecord;
use bpfman_hook::sys::SysError;
use bpfman_hook::sys::pid::ProcessError;

/// The payload of the panic that simulates SIGKILL.
#[derive(Debug)]
pub struct Killed;

/// What happens at the nth effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The call fails without an effect.
    FailBefore,
    /// The process dies before the effect.
    KillBefore,
    /// The process dies after the effect.
    KillAfter,
}

/// An action at the nth moment of a kind.
type Once = Cell<Option<(usize, Box<dyn FnOnce()>)>>;

/// Counts effects and makes one of them fail. Shared by kernel and host, so that one number names any effect of a run.
#[derive(Default)]
pub struct Effects {
    count: Cell<usize>,
    problem: Cell<Option<(usize, Trouble)>>,
    /// Whether links still have their interfaces.
    pub interfaces: Cell<bool>,
    meanwhile: Once,
    /// The kernel's ids are never reused, whichever process asks.
    next_id: Cell<u32>,
}

impl std::fmt::Debug for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effects").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Effects {
    /// Makes the `n`th effect fail, counted from 1.
    pub fn problem_at(&self, n: usize, problem: Trouble) {
        self.count.set(0);
        self.problem.set(Some((n, problem)));
    }

    /// Makes no further effect fail.
    pub fn calm(&self) {
        self.count.set(0);
        self.problem.set(None);
    }

    /// The number of effects since the last call of the two functions above.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Runs `what` just before the `n`th effect; its own effects are not counted.
    pub fn meanwhile(&self, n: usize, what: impl FnOnce() + 'static) {
        self.count.set(0);
        self.meanwhile.set(Some((n, Box::new(what))));
    }

    fn effect<T>(&self, what: &str, act: impl FnOnce() -> T) -> Result<T, KernelError> {
        match self.meanwhile.take() {
            Some((n, happens)) if n == self.count.get() + 1 => {
                let before = self.count.get();
                happens();
                self.count.set(before);
            }
            other => self.meanwhile.set(other),
        }
        self.count.set(self.count.get() + 1);
        let problem = self.problem.get().filter(|(n, _)| *n == self.count.get()).map(|(_, problem)| problem);
        match problem {
            Some(Trouble::FailBefore) => return Err(refused(what)),
            Some(Trouble::KillBefore) => std::panic::panic_any(Killed),
            _ => {}
        }
        let done = act();
        if problem == Some(Trouble::KillAfter) {
            std::panic::panic_any(Killed);
        }
        Ok(done)
    }
}

/// The error of a simulated failure.
fn refused(what: &str) -> KernelError {
    KernelError::Sys(SysError::io("try", what)(std::io::Error::from_raw_os_error(libc::EPERM)))
}

/// A kernel whose pins are files.
#[derive(Debug)]
pub struct FakeKernel<'a> {
    pub effects: &'a Effects,
    /// The declarations of every object.
    pub object: ObjectFacts,
    /// What a token reaches: nothing beyond the container, for every type.
    pub reach: TokenReach,
    /// What every policed container has done.
    pub calls: RefCell<Vec<CountedCall>>,
}

impl<'a> FakeKernel<'a> {
    pub fn new(effects: &'a Effects, object: ObjectFacts) -> Self {
        let types = (1..64).map(|program_type| (program_type, TypeAnswer::Offers(Vec::new()))).collect();
        Self { effects, object, reach: TokenReach { types, ..TokenReach::default() }, calls: RefCell::default() }
    }

    fn pin(&self, directory: &Path, pin: &PinName) -> Result<u32, KernelError> {
        self.effects.effect(pin.as_str(), || {
            let id = self.effects.next_id.get() + 1;
            self.effects.next_id.set(id);
            fs::write(pin.path(directory), id.to_string()).expect("the owner's directory is there before its pins");
            id
        })
    }

    /// Pins what is pinned at `other` a second time.
    fn pin_again(&self, directory: &Path, pin: &PinName, other: &Path) -> Result<u32, KernelError> {
        self.effects.effect(pin.as_str(), || {
            let id = fs::read_to_string(other).expect("a map that is reused has a pin");
            fs::write(pin.path(directory), &id).expect("the owner's directory is there before its pins");
            id.parse().expect("a pin has its id in it")
        })
    }
}

impl Kernel for FakeKernel<'_> {
    fn probe(&self, _: Feature) -> Support {
        Support::Yes
    }

    fn token_reach(&self) -> Probed {
        Probed { reach: self.reach.clone(), bare: false }
    }

    fn list_executables(&self, directory: &Path, container: &GatedContainer) -> Result<(), KernelError> {
        self.effects.effect("list executables", || {
            fs::create_dir_all(directory).expect("make the gate's directory");
            fs::write(directory.join(container.cgroup.to_string()), "").expect("list executables");
        })
    }

    fn forget_executables(&self, directory: &Path, container: &GatedContainer) -> Result<bool, KernelError> {
        self.effects.effect("forget executables", || fs::remove_file(directory.join(container.cgroup.to_string())).is_ok())
    }

    fn program_keyring(&self, _: &Path) -> Option<i32> {
        None
    }

    fn is_guarded(&self, _: &Path) -> bool {
        self.reach.guarded
    }

    fn guard_token(&self, directory: &Path, container: &GuardedContainer) -> Result<(), KernelError> {
        self.effects.effect("guard token", || {
            fs::create_dir_all(directory).expect("make the guard's directory");
            fs::write(directory.join(container.userns.to_string()), container.cgroup.to_string()).expect("bind a token");
        })
    }

    fn forget_token(&self, directory: &Path, container: &GuardedContainer) -> Result<bool, KernelError> {
        self.effects.effect("forget token", || fs::remove_file(directory.join(container.userns.to_string())).is_ok())
    }

    fn describe(&self, _: &[u8]) -> Result<ObjectFacts, KernelError> {
        Ok(self.object.clone())
    }

    fn make_directory(&self, directory: &Path) -> Result<(), KernelError> {
        self.effects.effect("directory", || fs::create_dir(directory).expect("a new number has no directory"))
    }

    fn load(&self, directory: &Path, object: &PlannedObject) -> Result<LoadedIds, KernelError> {
        let mut ids = LoadedIds::default();
        for map in &object.maps {
            assert!(map.reuse.is_some() || !map.from_pod, "the pod's owner is known when a map of it is reused");
            ids.maps.push(Some(match &map.reuse {
                Some(other) => self.pin_again(directory, &map.pin, other)?,
                None => self.pin(directory, &map.pin)?,
            }));
        }
        for program in &object.programs {
            ids.programs.push(self.pin(directory, &program.pin)?);
        }
        Ok(ids)
    }

    fn attach(&self, directory: &Path, link: &PlannedLink, _: Places<'_>) -> Result<AttachedLink, KernelError> {
        assert!(link.program.path(directory).exists(), "a link is made from a pinned program");
        self.pin(directory, &link.pin).map(|id| AttachedLink { id: Some(id), mode: None })
    }

    fn detach(&self, directory: &Path, link: &LinkRecord) -> Result<bool, KernelError> {
        self.unpin(directory, &link.pin)
    }

    fn has_interface(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError> {
        Ok(self.effects.interfaces.get() && pin.path(directory).exists())
    }

    fn unpin(&self, directory: &Path, pin: &PinName) -> Result<bool, KernelError> {
        self.effects.effect(pin.as_str(), || fs::remove_file(pin.path(directory)).is_ok())
    }

    fn remove_directory(&self, directory: &Path) -> Result<(), KernelError> {
        self.effects.effect("directory", || {
            if directory.exists() {
                fs::remove_dir_all(directory).expect("remove an owner's directory");
            }
        })
    }

    fn program(&self, directory: &Path, pin: &PinName) -> Result<Option<Inspected<ProgramInfo>>, KernelError> {
        let Ok(text) = fs::read_to_string(pin.path(directory)) else { return Ok(None) };
        let info = ProgramInfo {
            id: text.parse().expect("a pin has its id in it"),
            program_type: 6,
            name: pin.to_string(),
            tag: [0; 8],
            loaded: 0,
            verified_instructions: 1,
            xlated_size: 8,
            gpl_compatible: true,
            btf: 0,
            jited_size: 8,
            run_time: 0,
            runs: 0,
            maps: Vec::new(),
        };
        Ok(Some(Inspected { info, memory: Some(4096) }))
    }

    fn police(&self, directory: &Path, _: &Police, _: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.pin(directory, &PinName::police(0)).map(drop)
    }

    fn policed_calls(&self, directory: &Path) -> Result<Option<Vec<CountedCall>>, KernelError> {
        Ok(PinName::police(0).path(directory).exists().then(|| self.calls.borrow().clone()))
    }

    fn directories(&self, below: &Path) -> Result<Vec<OwnerNo>, KernelError> {
        let numbers = fs::read_dir(below).expect("the bpffs is there").filter_map(|entry| {
            let name = entry.expect("entry").file_name().into_string().ok()?;
            name.strip_prefix("owner_")?.parse().ok().map(OwnerNo)
        });
        Ok(numbers.collect())
    }
}

/// An action at the host's nth check of something.
type Meanwhile<'a> = (usize, &'a dyn Fn());

/// A host with processes that live until a test ends them.
pub struct FakeHost<'a> {
    pub effects: &'a Effects,
    pub me: ProcessIdentity,
    pub dead: Rc<RefCell<BTreeSet<u32>>>,
    /// Processes whose state cannot be determined.
    pub unknown: BTreeSet<u32>,
    pub time: Cell<u64>,
    pub netns: RefCell<NetnsFact>,
    pub userns: Cell<bool>,
    looks: Cell<usize>,
    meanwhile: Cell<Option<Meanwhile<'a>>>,
    /// After this many checks of the clock, the deadline has passed.
    pub late_after: Option<usize>,
    on_me: Once,
    asked: Cell<usize>,
}

/// A process of the fake host.
pub fn process(pid: u32) -> ProcessIdentity {
    ProcessIdentity { pid: Pid::new(pid).expect("not zero"), start_time: u64::from(pid) * 100 }
}

impl<'a> FakeHost<'a> {
    pub fn new(effects: &'a Effects, me: u32) -> Self {
        Self {
            effects,
            me: process(me),
            dead: Rc::default(),
            unknown: BTreeSet::new(),
            time: Cell::new(1_000_000),
            netns: RefCell::new(NetnsFact::Own),
            userns: Cell::new(true),
            looks: Cell::new(0),
            meanwhile: Cell::new(None),
            late_after: None,
            on_me: Cell::new(None),
            asked: Cell::new(0),
        }
    }

    /// Runs `what` at the `n`th check of the clock, which a start makes between its steps.
    pub fn meanwhile(&self, n: usize, what: &'a dyn Fn()) {
        self.looks.set(0);
        self.meanwhile.set(Some((n, what)));
    }

    /// Runs `what` at the `n`th time that this process's identity is read, which is before it is written into a record.
    pub fn before_me(&self, n: usize, what: impl FnOnce() + 'static) {
        self.on_me.set(Some((n, Box::new(what))));
    }

    /// How often this process's identity was read.
    pub fn asked(&self) -> usize {
        self.asked.get()
    }

    /// How often the clock was checked.
    pub fn looks(&self) -> usize {
        self.looks.get()
    }

    /// Ends a process.
    pub fn end(&self, pid: u32) {
        self.dead.borrow_mut().insert(pid);
    }
}

impl Host for FakeHost<'_> {
    type Init = ProcessIdentity;

    fn me(&self) -> ProcessIdentity {
        self.asked.set(self.asked.get() + 1);
        match self.on_me.take() {
            Some((n, happens)) if n == self.asked.get() => happens(),
            other => self.on_me.set(other),
        }
        self.me
    }

    fn now(&self) -> u64 {
        self.time.get()
    }

    fn boottime(&self) -> u64 {
        self.looks.set(self.looks.get() + 1);
        if let Some((n, happens)) = self.meanwhile.get()
            && n == self.looks.get()
        {
            happens();
        }
        if self.late_after.is_some_and(|looks| self.looks.get() > looks) { u64::MAX } else { 10 }
    }

    fn is_alive(&self, process: &ProcessIdentity) -> Result<bool, HostError> {
        if self.unknown.contains(&process.pid.get()) {
            return Err(ProcessError::ForeignProc(process.pid).into());
        }
        Ok(!self.dead.borrow().contains(&process.pid.get()))
    }

    fn open_init(&self, container: &Container) -> Result<ProcessIdentity, HostError> {
        container.pid.map(|pid| process(pid.get())).ok_or(HostError::NoPid)
    }

    fn hold(&self, pid: Pid) -> Result<ProcessIdentity, HostError> {
        if self.dead.borrow().contains(&pid.get()) { Err(ProcessError::Gone(pid).into()) } else { Ok(process(pid.get())) }
    }

    fn kill(&self, init: &ProcessIdentity, id: &ContainerId, cgroups_path: &str) -> Result<(), HostError> {
        if !cgroups_path.ends_with(id.as_str()) {
            return Err(HostError::NotProved { pid: init.pid.get(), id: id.to_string(), why: "it is elsewhere" });
        }
        self.end(init.pid.get());
        Ok(())
    }

    fn identity(&self, init: &ProcessIdentity) -> ProcessIdentity {
        *init
    }

    fn runtime_user(&self) -> u32 {
        0
    }

    fn has_user_namespace(&self, _: &ProcessIdentity) -> bool {
        self.userns.get()
    }

    fn facts(&self, init: &mut ProcessIdentity, _: &Container, _: NeededFacts) -> Result<Facts, HostError> {
        let own = |inode| NamespaceFact { inode, shared_with_host: false };
        Ok(Facts {
            net: own(11),
            mnt: own(12),
            pid: own(13),
            user: NamespaceFact { inode: 14, shared_with_host: !self.userns.get() },
            cgroup_ns: own(15),
            netns: self.netns.borrow().clone(),
            netns_cookie: 99,
            interfaces: vec![Interface { name: "lo".to_owned(), index: 1 }, Interface { name: "eth0".to_owned(), index: 2 }],
            cgroup: Some(CgroupFact::Own { path: "/web".into(), id: 77 }),
            userns: if self.userns.get() { UsernsFact::Own } else { UsernsFact::Host },
            wide_cgroup_mount: None,
            init: init.pid.get(),
            cpus: 2,
        })
    }

    fn places<'b>(&self, _: &'b ProcessIdentity) -> Places<'b> {
        // A fake kernel attaches nothing, so any directory is a cgroup.
        static CGROUP: OnceLock<File> = OnceLock::new();
        Places { cgroup: Some(CGROUP.get_or_init(|| File::open("/").expect("open /")).as_fd()), ..Places::default() }
    }

    fn mount_bpffs(&self, _: &ProcessIdentity, _: &Container, _: &Path, _: &PlannedBpffs) -> Result<(), HostError> {
        self.effects.effect("bpffs", || ()).map_err(|_| HostError::NoPid)
    }
}
