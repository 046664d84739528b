//! The guard: three LSM programs of bpfman-hook that judge what is loaded with a BPF token, and by whom
//! (src/bpf/guard.bpf.c). They act on the whole host. docs/guard.md says what they refuse.
//!
//! Their links are pinned below a directory of our bpffs: `guard/VERSION/`, where VERSION identifies the programs and
//! their lists. A guard of another version has other pins, so that opening the pins of this version tells that it is in
//! force. A link of an LSM program can be neither detached nor replaced while it exists.

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::built_in::{BuiltIn, BuiltInRequest};
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, KERNEL_BTF, Support};
use crate::kernel::review;
use crate::kernel::token_reach::programs;
use crate::model::reach::{self, GuardBinding, GuardRefusal, GuardedContainer, MemoryRead};
use crate::sys::fsutil::TrustError;
use crate::sys::mounts::MountError;
use crate::sys::token::trial::{self, Trial, TrialAnswer};
use crate::sys::{Errno, SysError, bpf, fsutil};

/// The compiled programs.
const OBJECT: &[u8] = include_bytes!("../bpf/guard.bpf.o");
/// Program and pin of its link.
const PROGRAMS: [&str; 3] = ["guard_load", "guard_program", "guard_capable"];
/// The map of the counters, and its pin.
const REFUSED: &str = "refused";
/// The map of the containers whose tokens are bound to a cgroup, and its pin. A newer guard takes it over.
const CONTAINERS: &str = "containers";
/// The end of VERSION if programs without a bound are refused too.
const BOUNDED: &str = "-bounded";
/// Bytes of a tag in the map `tags`.
const TAG: usize = 16;
/// The time limit of the proof.
const PATIENCE: Duration = Duration::from_secs(12);

/// Why the guard cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel cannot enforce it, or has no tokens.
    #[error("put the guard in force")]
    Kernel(#[from] KernelError),
    /// The bpffs for its pins could not be mounted.
    #[error("put the guard in force")]
    Mount(#[from] MountError),
    /// The directory for that could not be created.
    #[error("put the guard in force")]
    Directory(#[from] TrustError),
    /// Its programs are attached and do not refuse what they must refuse, or refuse what they must not.
    #[error("the guard is attached, but {0}; it was removed")]
    NotProved(String),
}

impl From<SysError> for GuardError {
    fn from(error: SysError) -> Self {
        Self::Kernel(error.into())
    }
}

/// A guard in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardState {
    /// True if programs without a bound are refused too.
    pub bounded: bool,
    /// How often it has refused something, by reason.
    pub refused: Vec<(GuardRefusal, u64)>,
}

/// Whether the guard of this version is in force: every link has its pin. This takes at most four calls of bpf(2).
/// `directory` is [`crate::paths::Paths::guard`].
pub fn is_in_force(directory: &Path) -> bool {
    in_force(directory).is_some()
}

/// The directory of the guard that is in force, and whether it refuses programs without a bound.
fn in_force(directory: &Path) -> Option<(PathBuf, bool)> {
    let version = version();
    [false, true].into_iter().find_map(|bounded| {
        let pins = directory.join(named(&version, bounded));
        PROGRAMS.iter().all(|program| bpf::open_pin(&pins.join(program)).is_ok()).then_some((pins, bounded))
    })
}

/// What the guard in force has refused; None if none of this version is in force.
///
/// # Errors
/// If its counters cannot be read, or the caller may not see the pins.
pub fn state(directory: &Path) -> Result<Option<GuardState>, KernelError> {
    let Some((pins, bounded)) = in_force(directory) else { return versions(directory).map(|_| None) };
    let pin = pins.join(REFUSED);
    let counters = bpf::open_pin(&pin).map_err(failed("open", &pin))?;
    let refused =
        GuardRefusal::ALL.into_iter().map(|why| Ok((why, count(counters.as_fd(), why).map_err(failed("read", &pin))?)));
    Ok(Some(GuardState { bounded, refused: refused.collect::<Result<_, KernelError>>()? }))
}

/// True if a guard of any version has pins.
pub fn is_pinned(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Puts the guard of this version in force, proves that it refuses what it must, and then removes guards of other
/// versions. Between the two, both are in force. If it is in force already, it is only proved again.
///
/// # Errors
/// [`GuardError::Kernel`] if the kernel has no tokens, refuses LSM programs, or has no active BPF LSM: the message says what
/// is missing. [`GuardError::NotProved`] if a program that must be refused was taken; then the guard is removed again.
pub fn load(directory: &Path, bounded: bool) -> Result<(), GuardError> {
    let doing = "judge what is loaded with a token";
    for feature in [Feature::Token, Feature::Lsm] {
        if let found @ Support::No(_) = features::probe(feature) {
            return Err(KernelError::feature(doing, feature, found).into());
        }
    }
    let bytes = fs::read(KERNEL_BTF).map_err(SysError::io("read", KERNEL_BTF))?;
    let kernel = Btf::parse(&bytes).map_err(KernelError::KernelTypes)?;
    let own = named(&version(), bounded);
    let pins = directory.join(&own);
    if in_force(directory).is_none_or(|(found, _)| found != pins) {
        let containers = bound_containers(directory)?;
        remove(&pins)?;
        attach(&pins, &kernel, bounded, containers)?;
    }
    if let Err(error) = prove(&pins, &kernel) {
        remove(&pins)?;
        return Err(error);
    }
    for other in versions(directory)?.into_iter().filter(|path| *path != pins) {
        remove(&other)?;
    }
    Ok(())
}

/// Binds the token of a container to its cgroup, before the container has the token. Without a guard in force this does
/// nothing.
///
/// # Errors
/// If the guard's map cannot be opened or is full.
pub fn bind(directory: &Path, container: &GuardedContainer) -> Result<(), KernelError> {
    let Some((pins, _)) = in_force(directory) else { return Ok(()) };
    let pin = pins.join(CONTAINERS);
    let map = bpf::open_pin(&pin).map_err(failed("open", &pin))?;
    let value = [container.cgroup.to_ne_bytes(), u64::from(container.host_scope).to_ne_bytes()].concat();
    bpf::map_update(map.as_fd(), &container.userns.to_ne_bytes(), &value).map_err(failed("add a container to", &pin))
}

/// What the tokens of a user namespace are bound to; None without a guard in force.
///
/// # Errors
/// If the guard's map cannot be read.
pub fn binding(directory: &Path, userns: u32) -> Result<Option<GuardBinding>, KernelError> {
    let Some((pins, _)) = in_force(directory) else { return Ok(None) };
    let pin = pins.join(CONTAINERS);
    let map = bpf::open_pin(&pin).map_err(failed("open", &pin))?;
    match bpf::map_lookup(map.as_fd(), &userns.to_ne_bytes()) {
        Ok(value) if value.last_chunk() == Some(&0_u64.to_ne_bytes()) => Ok(Some(GuardBinding::Cgroup)),
        Ok(_) => Ok(Some(GuardBinding::CgroupWithHostScope)),
        Err(Errno::NOENT) => Ok(Some(GuardBinding::UserNamespace)),
        Err(errno) => Err(failed("read", &pin)(errno)),
    }
}

/// Undoes [`bind`], unless another container has got the same user namespace inode since. If the container is not in the
/// map, this is a success; the result says whether it was.
///
/// # Errors
/// If the guard's map cannot be opened or changed.
pub fn unbind(directory: &Path, container: &GuardedContainer) -> Result<bool, KernelError> {
    let mut was_there = false;
    for pin in versions(directory)?.into_iter().map(|pins| pins.join(CONTAINERS)) {
        let map = match bpf::open_pin(&pin) {
            Ok(map) => map,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed("open", &pin)(errno)),
        };
        let key = container.userns.to_ne_bytes();
        let of_it = match bpf::map_lookup(map.as_fd(), &key) {
            Ok(value) => value.first_chunk() == Some(&container.cgroup.to_ne_bytes()),
            Err(Errno::NOENT) => false,
            Err(errno) => return Err(failed("read", &pin)(errno)),
        };
        was_there |= of_it && bpf::map_delete(map.as_fd(), &key).map_err(failed("remove a container from", &pin))?;
    }
    Ok(was_there)
}

/// Ends every guard below a directory, and returns whether there was one. Tokens are then judged by the kernel alone.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(directory: &Path) -> Result<bool, KernelError> {
    let found = versions(directory)?;
    found.iter().try_for_each(|pins| remove(pins))?;
    fsutil::remove_dir_if_present(directory)?;
    Ok(!found.is_empty())
}

/// The containers that another guard has bound, or one that has lost a pin.
fn bound_containers(directory: &Path) -> Result<Option<OwnedFd>, KernelError> {
    Ok(versions(directory)?.into_iter().find_map(|pins| bpf::open_pin(&pins.join(CONTAINERS)).ok()))
}

fn attach(pins: &Path, kernel: &Btf<'_>, bounded: bool, containers: Option<OwnedFd>) -> Result<(), GuardError> {
    let globals = vec![("bounded".to_owned(), u32::from(bounded).to_ne_bytes().to_vec())];
    let maps = containers.into_iter().map(|map| (CONTAINERS, map)).collect();
    let loaded = BuiltIn::load(BuiltInRequest { object: OBJECT, programs: &PROGRAMS, globals, maps })?;
    fill(&loaded, kernel)?;
    let make = DirBuilder::new().recursive(true).mode(0o700).create(pins);
    make.map_err(SysError::io("create the pin directory", pins.display().to_string()))?;
    for name in [REFUSED, CONTAINERS] {
        let map = loaded.map(name).ok_or_else(|| no_map(name))?;
        bpf::pin(map, &pins.join(name)).map_err(pin_failed(&pins.join(name)))?;
    }
    for program in PROGRAMS {
        let link = loaded.link(program)?;
        bpf::pin(link.as_fd(), &pins.join(program)).map_err(pin_failed(&pins.join(program)))?;
    }
    Ok(())
}

/// Writes the reviewed lists into the maps, and forbids user space to change them.
fn fill(loaded: &BuiltIn, kernel: &Btf<'_>) -> Result<(), KernelError> {
    let write = |name: &'static str, entries: Vec<(Vec<u8>, Vec<u8>)>| {
        let map = loaded.map(name).ok_or_else(|| no_map(name))?;
        let failed = |doing: &'static str| move |source| KernelError::Map { doing, map: name.to_owned(), source };
        entries.iter().try_for_each(|(key, value)| bpf::map_update(map, key, value)).map_err(failed("fill"))?;
        bpf::map_freeze(map).map_err(failed("freeze"))
    };
    let helpers = (0..64_u32).filter_map(|program_type| {
        let allowed = reach::allowed_whatever_the_arguments(program_type)?;
        Some((program_type.to_ne_bytes().to_vec(), allowed.into_iter().flat_map(u64::to_ne_bytes).collect()))
    });
    write("helpers", helpers.collect())?;
    let is_reviewed = |name: &[u8]| reach::KFUNCS_FOR_ALL.iter().any(|reviewed| reviewed.as_bytes() == name);
    let functions = kernel.types().filter(|ty| ty.kind == BtfKind::Func && is_reviewed(kernel.string_bytes(ty.name_offset)));
    write("kfuncs", functions.map(|ty| (ty.id.to_ne_bytes().to_vec(), 1_u32.to_ne_bytes().to_vec())).collect())?;
    let padded = |tag: &[u8]| [tag, &vec![0; TAG - tag.len()]].concat();
    write("tags", review::REVIEWED_TAGS.iter().map(|tag| (padded(tag), 1_u32.to_ne_bytes().to_vec())).collect())
}

/// Tries with a token what the guard must refuse and what it must accept.
fn prove(pins: &Path, kernel: &Btf<'_>) -> Result<(), GuardError> {
    let id = |way: MemoryRead| {
        let name = way.to_string();
        let found =
            kernel.types().find(|ty| ty.kind == BtfKind::Func && kernel.string_bytes(ty.name_offset) == name.as_bytes());
        found.map(|ty| ty.id)
    };
    let socket_filter = |program: Trial| Trial { program_type: 1, ..program };
    let mut refused = vec![
        ("an argument with the tag arg:untrusted", socket_filter(programs::global_function(true))),
        ("BTF with the tag arg:untrusted", socket_filter(programs::tagged())),
    ];
    if let Some(cast) = id(MemoryRead::RdonlyCast) {
        refused.push(("a read of kernel memory with bpf_rdonly_cast", socket_filter(programs::rdonly_cast(cast, 0))));
    }
    if let Some(read) = id(MemoryRead::ProbeReadDynptr) {
        let program = socket_filter(programs::probe_read_dynptr(Some(read)));
        refused.push(("a read of kernel memory with bpf_probe_read_kernel_dynptr", program));
    }
    let accepted = [
        ("the smallest program", socket_filter(programs::smallest())),
        ("a global function", socket_filter(programs::global_function(false))),
    ];
    let trials: Vec<Trial> = refused.iter().chain(&accepted).map(|(_, program)| program.clone()).collect();
    let counters = bpf::open_pin(&pins.join(REFUSED)).map_err(pin_failed(&pins.join(REFUSED)))?;
    let counted = |why| count(counters.as_fd(), why).map_err(failed("read", &pins.join(REFUSED)));
    let expected = [GuardRefusal::Kfunc, GuardRefusal::ArgumentTag, GuardRefusal::Capability];
    let before = expected.map(counted);
    let answers = trial::offer_with_perfmon(&programs::btfs(), &trials, Instant::now() + PATIENCE)?;
    let (of_refused, of_accepted) = answers.split_at(refused.len());
    let wrong = |what: &str, answer: &TrialAnswer, verb: &str| {
        let errno = answer.errno.map_or(String::new(), |errno| format!(" ({errno})"));
        GuardError::NotProved(format!("{what} is {verb} with a token{errno}"))
    };
    for ((what, _), answer) in refused.iter().zip(of_refused) {
        if answer.loaded() {
            return Err(wrong(what, answer, "accepted"));
        }
    }
    for ((what, _), answer) in accepted.iter().zip(of_accepted) {
        if !answer.loaded() {
            return Err(wrong(what, answer, "refused"));
        }
    }
    for (why, before) in expected.into_iter().zip(before) {
        if counted(why)? == before? {
            return Err(GuardError::NotProved(format!("its program that refuses for {why} was not called")));
        }
    }
    Ok(())
}

fn count(counters: BorrowedFd<'_>, why: GuardRefusal) -> Result<u64, Errno> {
    let value = bpf::map_lookup(counters, &why.index().to_ne_bytes())?;
    Ok(value.first_chunk().copied().map(u64::from_ne_bytes).unwrap_or_default())
}

/// The guards that have a directory.
fn versions(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SysError::io("list", directory.display().to_string())(error).into()),
    };
    let found = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    Ok(found.map_err(SysError::io("list", directory.display().to_string()))?)
}

/// Removes the pins of one guard, which ends it unless another guard has the same programs.
fn remove(pins: &Path) -> Result<(), KernelError> {
    for pin in PROGRAMS.iter().chain([&REFUSED, &CONTAINERS]) {
        fsutil::unlink_if_present(&pins.join(pin))?;
    }
    fsutil::remove_dir_if_present(pins)?;
    Ok(())
}

fn named(version: &str, bounded: bool) -> String {
    format!("{version}{}", if bounded { BOUNDED } else { "" })
}

/// FNV-1a of the programs and of every list.
fn version() -> String {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let mut hash = OBJECT.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    for word in (0..64).filter_map(reach::allowed_whatever_the_arguments).flatten() {
        hash = word.to_ne_bytes().iter().fold(hash, fold);
    }
    for name in reach::KFUNCS_FOR_ALL.iter().map(|name| name.as_bytes()).chain(review::REVIEWED_TAGS) {
        hash = name.iter().chain(&[0]).fold(hash, fold);
    }
    format!("{hash:016x}")
}

fn no_map(map: &str) -> KernelError {
    KernelError::NoMap { map: map.to_owned(), there: String::new() }
}

fn pin_failed(pin: &Path) -> impl FnOnce(Errno) -> KernelError + use<> {
    failed("pin", pin)
}

fn failed(doing: &'static str, pin: &Path) -> impl FnOnce(Errno) -> KernelError + use<> {
    let pin = pin.display().to_string();
    move |source| KernelError::Pin { doing, pin, source }
}
