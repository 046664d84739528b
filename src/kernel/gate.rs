//! The gate: LSM programs of bpfman-hook that let only listed executables load BPF programs and BTF (src/bpf/gate.bpf.c).
//! They act on the whole host. docs/gate.md says what they refuse.
//!
//! Links and maps are pinned below a directory of our bpffs: `gate/VERSION/`, where VERSION identifies the programs. The
//! lists and the mode are in maps, so that they change without a gap. While the gate refuses, only listed executables
//! may open its maps.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::built_in::{BuiltIn, BuiltInRequest};
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, Support};
use crate::kernel::gate_exemption::{EXEMPT, exempt_at, versions};
use crate::kernel::link::LinkError;
use crate::model::gate::{ExecutableDigest, GateOutcome, GateRules, GatedContainer, UnlistedExecutable};
use crate::sys::fsutil::TrustError;
use crate::sys::mounts::MountError;
use crate::sys::{Errno, SysError, bpf, clock, fsutil};

/// The compiled programs.
const OBJECT: &[u8] = include_bytes!("../bpf/gate.bpf.o");
/// The program that protects the maps.
const MAP_PROGRAM: &str = "gate_map";
/// Program and pin of its link. A gate is in force if all are there.
const PROGRAMS: [&str; 3] = ["gate_call", MAP_PROGRAM, "gate_prctl"];
/// The program that asks for signatures. It has a pin only if the rules do.
const SIGNED_PROGRAM: &str = "gate_signed";
/// The end of VERSION if it is there.
const SIGNED: &str = "-signed";
/// Map and pin: what the gate does.
const SETTINGS: &str = "settings";
/// Map and pin: the lists. A newer gate takes them over, so that containers keep theirs.
const EXECUTABLES: &str = "executables";
/// Map and pin: the cgroups that have a list of their own. A newer gate takes them over.
const CGROUPS: &str = "cgroups";
/// Map and pin: how often something happened.
const COUNTS: &str = "counts";
/// Map and pin: executables that are not listed.
const UNLISTED: &str = "unlisted";
/// Every map. `verdicts` needs no pin, but no process may write it.
const MAPS: [&str; 6] = [SETTINGS, EXECUTABLES, CGROUPS, COUNTS, UNLISTED, "verdicts"];
/// The list of the host.
const HOST: u64 = 0;
/// Values of [`EXECUTABLES`]: an entry of the policy, and one of bpfman-hook itself, which stays until the next boot because
/// processes of the version before still run.
const LISTED: u32 = 1;
const OWN: u32 = 2;
/// How long a program is called after its pin has been removed, at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the gate cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The kernel cannot enforce it.
    #[error("put the gate in force")]
    Kernel(#[from] KernelError),
    /// The kernel does not tell LSM programs which file a process executes.
    #[error("put the gate in force: this kernel has no {0}, which came with Linux 6.12")]
    NoExecutable(String),
    /// The bpffs for its pins could not be mounted.
    #[error("put the gate in force")]
    Mount(#[from] MountError),
    /// The directory for that could not be created.
    #[error("put the gate in force")]
    Directory(#[from] TrustError),
    /// It is attached, and does not let bpfman-hook load programs.
    #[error("the gate is attached, but {0}; it was removed")]
    NotProved(String),
}

impl From<SysError> for GateError {
    fn from(error: SysError) -> Self {
        Self::Kernel(error.into())
    }
}

/// A gate in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateState {
    /// True if it refuses, false if it only counts.
    pub enforce: bool,
    /// Nanoseconds since boot until which it refuses.
    pub expires: Option<u64>,
    /// True if every process of the host is judged by its executable.
    pub host: bool,
    /// The serial number of the keyring by which programs have to be signed.
    pub keyring: Option<i32>,
    /// The host's list, without bpfman-hook's own.
    pub executables: BTreeSet<ExecutableDigest>,
    /// How many cgroups have a list of their own.
    pub cgroups: usize,
    /// How often something happened.
    pub counts: Vec<(GateOutcome, u64)>,
    /// Executables that are not listed and called, most calls first.
    pub unlisted: Vec<UnlistedExecutable>,
}

/// Where `struct settings` has the keyring, in words behind the time.
const KEYRING_WORD: usize = 12;
/// Where it says that cgroups may have lists.
const CGROUPS_WORD: usize = 3;

/// The bytes of `struct settings`.
struct SettingsValue([u8; 64]);

impl SettingsValue {
    fn new(rules: &GateRules, expires: u64, generation: u32, cgroups: bool, own: &[u32]) -> Self {
        let mut value = Self([0; 64]);
        value.0[..8].copy_from_slice(&expires.to_ne_bytes());
        let words = [generation, rules.enforce.into(), rules.executables.is_some().into(), cgroups.into()];
        for (n, word) in words.iter().chain(own).enumerate() {
            value.0[8 + 4 * n..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        value.0[8 + 4 * KEYRING_WORD..][..4].copy_from_slice(&rules.keyring.unwrap_or_default().to_ne_bytes());
        value
    }

    fn word(&self, n: usize) -> u32 {
        self.0[8 + 4 * n..].first_chunk().copied().map_or(0, u32::from_ne_bytes)
    }

    fn expires(&self) -> Option<u64> {
        self.0.first_chunk().copied().map(u64::from_ne_bytes).filter(|expires| *expires != 0)
    }
}

/// True if a gate of this version is in force: every link has its pin. `directory` is [`crate::paths::Paths::gate`].
pub fn is_in_force(directory: &Path) -> bool {
    in_force(directory).is_some()
}

/// The pins of the gate that is in force.
fn in_force(directory: &Path) -> Option<PathBuf> {
    [true, false].into_iter().find_map(|signed| {
        let pins = directory.join(named(signed));
        programs(signed).all(|program| bpf::open_pin(&pins.join(program)).is_ok()).then_some(pins)
    })
}

fn programs(signed: bool) -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().chain(signed.then_some(SIGNED_PROGRAM))
}

fn map_names(signed: bool) -> impl Iterator<Item = &'static str> {
    MAPS.into_iter().chain(signed.then_some(EXEMPT))
}

/// True if a gate of any version has pins.
pub fn is_pinned(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// What the gate in force does and has seen; None if none of this version is in force.
///
/// # Errors
/// If its maps cannot be read: EPERM if it does not list this executable.
pub fn state(directory: &Path) -> Result<Option<GateState>, KernelError> {
    let Some(pins) = in_force(directory) else {
        // If they cannot be seen, it is not known.
        versions(directory)?;
        return Ok(None);
    };
    let settings = read_settings(&pins)?;
    let executables = host_list(open(&pins, EXECUTABLES)?.as_fd(), &pins)?;
    let counts = open(&pins, COUNTS)?;
    let counts = GateOutcome::ALL.into_iter().map(|(outcome, _)| {
        let value =
            bpf::map_lookup(counts.as_fd(), &outcome.index().to_ne_bytes()).map_err(failed("read", &pins.join(COUNTS)))?;
        Ok((outcome, value.first_chunk().copied().map(u64::from_ne_bytes).unwrap_or_default()))
    });
    Ok(Some(GateState {
        enforce: settings.word(1) != 0,
        expires: settings.expires(),
        host: settings.word(2) != 0,
        keyring: Some(settings.word(KEYRING_WORD).cast_signed()).filter(|keyring| *keyring != 0),
        executables: executables.into_iter().filter(|(_, value)| *value == LISTED).map(|(digest, _)| digest).collect(),
        cgroups: keys(open(&pins, CGROUPS)?.as_fd(), &pins.join(CGROUPS))?.len(),
        counts: counts.collect::<Result<_, KernelError>>()?,
        unlisted: unlisted(&pins)?,
    }))
}

fn unlisted(pins: &Path) -> Result<Vec<UnlistedExecutable>, KernelError> {
    let map = open(pins, UNLISTED)?;
    let mut found = Vec::new();
    for key in keys(map.as_fd(), &pins.join(UNLISTED))? {
        match bpf::map_lookup(map.as_fd(), &key) {
            Ok(value) => found.extend(UnlistedExecutable::from_entry(&key, &value)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("read", &pins.join(UNLISTED))(errno)),
        }
    }
    found.sort_by(|a, b| b.calls.cmp(&a.calls).then_with(|| a.command.cmp(&b.command)));
    Ok(found)
}

/// Puts the gate in force with these rules, or gives the one in force these rules, and proves that it lets this process load
/// programs. `own` are digests of the executables of bpfman-hook. Gates of other versions are removed afterwards; their
/// containers keep their lists.
///
/// # Errors
/// [`GateError::Kernel`] if the kernel refuses LSM programs or has no active BPF LSM: the message says what is missing.
/// [`GateError::NoExecutable`] before Linux 6.12. [`GateError::NotProved`] if it would refuse this process; then it is
/// removed again.
pub fn load(directory: &Path, rules: &GateRules, own: &[ExecutableDigest]) -> Result<(), GateError> {
    // Before anything is loaded: another version's gate refuses this process.
    admit_self(directory, own)?;
    if let found @ Support::No(_) = features::probe(Feature::Lsm) {
        return Err(KernelError::feature("judge which executables load programs", Feature::Lsm, found).into());
    }
    let signed = rules.keyring.is_some();
    if signed && let found @ Support::No(_) = features::probe(Feature::ProgramSignatures) {
        return Err(KernelError::feature("let only signed programs in", Feature::ProgramSignatures, found).into());
    }
    let pins = directory.join(named(signed));
    if in_force(directory).is_none_or(|found| found != pins) {
        let others = versions(directory)?;
        let taken = [EXECUTABLES, CGROUPS].map(|name| (name, others.iter().find_map(|pins| open(pins, name).ok())));
        remove(&pins)?;
        attach(&pins, signed, taken)?;
    }
    give(&pins, rules, own)?;
    if let Err(error) = prove(&pins, rules) {
        remove(&pins)?;
        return Err(error);
    }
    for other in versions(directory)?.into_iter().filter(|path| *path != pins) {
        remove(&other)?;
    }
    Ok(())
}

/// Gives a container a list of executables of its own, which counts in place of the host's.
///
/// # Errors
/// [`KernelError::NoGate`] if no gate of this version judges containers; if its maps cannot be opened or are full.
pub fn bind(directory: &Path, container: &GatedContainer) -> Result<(), KernelError> {
    let pins = in_force(directory).ok_or(KernelError::NoGate)?;
    if read_settings(&pins)?.word(CGROUPS_WORD) == 0 {
        return Err(KernelError::NoGate);
    }
    let list = open(&pins, EXECUTABLES)?;
    for digest in &container.executables {
        let added = bpf::map_update(list.as_fd(), &digest.key(container.cgroup), &LISTED.to_ne_bytes());
        added.map_err(failed("add an executable to", &pins.join(EXECUTABLES)))?;
    }
    // Last: from here on the list counts.
    let added = bpf::map_update(open(&pins, CGROUPS)?.as_fd(), &container.cgroup.to_ne_bytes(), &LISTED.to_ne_bytes());
    added.map_err(failed("add a container to", &pins.join(CGROUPS)))
}

/// Undoes [`bind`]. If the container has no list, this is a success; the result says whether it had one.
///
/// # Errors
/// If the gate's maps cannot be opened or changed.
pub fn unbind(directory: &Path, container: &GatedContainer) -> Result<bool, KernelError> {
    let mut was_there = false;
    for pins in versions(directory)? {
        let Ok(cgroups) = open(&pins, CGROUPS) else { continue };
        let removed = bpf::map_delete(cgroups.as_fd(), &container.cgroup.to_ne_bytes());
        was_there |= removed.map_err(failed("remove a container from", &pins.join(CGROUPS)))?;
        let list = open(&pins, EXECUTABLES)?;
        for digest in &container.executables {
            let removed = bpf::map_delete(list.as_fd(), &digest.key(container.cgroup));
            removed.map_err(failed("remove an executable from", &pins.join(EXECUTABLES)))?;
        }
    }
    Ok(was_there)
}

/// Ends every gate below a directory, and returns whether there was one. This needs only the right to remove files.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(directory: &Path) -> Result<bool, KernelError> {
    let found = versions(directory)?;
    found.iter().try_for_each(|pins| remove(pins))?;
    fsutil::remove_dir_if_present(directory)?;
    Ok(!found.is_empty())
}

/// Adds this executable to the lists of the gates that are in force. One that does not know it lets it open no map: root
/// then removes the pin of the program that protects the maps.
fn admit_self(directory: &Path, own: &[ExecutableDigest]) -> Result<(), KernelError> {
    for pins in versions(directory)? {
        let deadline = Instant::now() + PATIENCE;
        let map = loop {
            match bpf::open_pin(&pins.join(EXECUTABLES)) {
                Ok(map) => break map,
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::PERM) if Instant::now() < deadline => {
                    fsutil::unlink_if_present(&pins.join(MAP_PROGRAM))?;
                    thread::sleep(Duration::from_millis(20));
                }
                Err(errno) => return Err(failed("open", &pins.join(EXECUTABLES))(errno)),
            }
        };
        add_own(map.as_fd(), own).map_err(failed("add this program to", &pins.join(EXECUTABLES)))?;
        // A verdict about this process counts no longer.
        let settings = open(&pins, SETTINGS)?;
        let mut value = read_settings(&pins)?;
        let next = next_generation(value.word(0));
        value.0[8..12].copy_from_slice(&next.to_ne_bytes());
        write_settings(settings.as_fd(), &value, &pins)?;
    }
    Ok(())
}

fn attach(pins: &Path, signed: bool, taken: [(&'static str, Option<OwnedFd>); 2]) -> Result<(), GateError> {
    let maps = taken.into_iter().filter_map(|(name, map)| Some((name, map?))).collect();
    let functions: Vec<&str> = programs(signed).collect();
    let loaded = BuiltIn::load(BuiltInRequest { object: OBJECT, programs: &functions, globals: Vec::new(), maps });
    let loaded = loaded.map_err(|error| match error {
        KernelError::Link { source: LinkError::NoKernelFunction(function), .. } => GateError::NoExecutable(function),
        other => GateError::Kernel(other),
    })?;
    let make = DirBuilder::new().recursive(true).mode(0o700).create(pins);
    make.map_err(SysError::io("create the pin directory", pins.display().to_string()))?;
    for name in map_names(signed) {
        bpf::pin(map(&loaded, name)?, &pins.join(name)).map_err(failed("pin", &pins.join(name)))?;
    }
    for program in functions {
        let link = loaded.link(program)?;
        bpf::pin(link.as_fd(), &pins.join(program)).map_err(failed("pin", &pins.join(program)))?;
    }
    Ok(())
}

/// Writes the rules. An executable that is on the list before and after is never refused in between.
fn give(pins: &Path, rules: &GateRules, own: &[ExecutableDigest]) -> Result<(), KernelError> {
    let [list, settings, cgroups] = [EXECUTABLES, SETTINGS, CGROUPS].map(|name| open(pins, name));
    let (list, settings, cgroups) = (list?, settings?, cgroups?);
    let ids = map_names(rules.keyring.is_some())
        .map(|name| bpf::map_id(open(pins, name)?.as_fd()).map_err(failed("read", &pins.join(name))));
    let ids = ids.collect::<Result<Vec<u32>, KernelError>>()?;
    let wanted = rules.executables.clone().unwrap_or_default();
    let change = |doing| failed(doing, &pins.join(EXECUTABLES));
    for digest in &wanted {
        bpf::map_update(list.as_fd(), &digest.key(HOST), &LISTED.to_ne_bytes()).map_err(change("add an executable to"))?;
    }
    add_own(list.as_fd(), own).map_err(change("add this program to"))?;
    let has_cgroups = rules.containers || !keys(cgroups.as_fd(), &pins.join(CGROUPS))?.is_empty();
    let generation = next_generation(read_settings(pins)?.word(0));
    let until = |seconds: u64| clock::boot_nanoseconds().saturating_add(seconds.saturating_mul(1_000_000_000));
    let expires = rules.seconds.map_or(0, until);
    write_settings(settings.as_fd(), &SettingsValue::new(rules, expires, generation, has_cgroups, &ids), pins)?;
    let mut removed = false;
    for (digest, value) in host_list(list.as_fd(), pins)? {
        if value == LISTED && !wanted.contains(&digest) {
            removed |= bpf::map_delete(list.as_fd(), &digest.key(HOST)).map_err(change("remove an executable from"))?;
        }
    }
    if removed {
        let value = SettingsValue::new(rules, expires, next_generation(generation), has_cgroups, &ids);
        write_settings(settings.as_fd(), &value, pins)?;
    }
    Ok(())
}

fn add_own(list: BorrowedFd<'_>, own: &[ExecutableDigest]) -> Result<(), Errno> {
    own.iter().try_for_each(|digest| bpf::map_update(list, &digest.key(HOST), &OWN.to_ne_bytes()))
}

/// Loads a program as this process: the gate must see the call and allow it, also if it only counts.
fn prove(pins: &Path, rules: &GateRules) -> Result<(), GateError> {
    let allowed = || -> Result<u64, KernelError> {
        let value = bpf::map_lookup(open(pins, COUNTS)?.as_fd(), &GateOutcome::Allowed.index().to_ne_bytes());
        let value = value.map_err(failed("read", &pins.join(COUNTS)))?;
        Ok(value.first_chunk().copied().map(u64::from_ne_bytes).unwrap_or_default())
    };
    let not_proved = |why: String| GateError::NotProved(why);
    let before = allowed().map_err(|error| not_proved(crate::sys::error::chain(&error)))?;
    if let Err(errno) = exempt_at(pins, features::load_smallest_program) {
        return Err(not_proved(format!("it refuses a program of bpfman-hook itself ({errno})")));
    }
    if rules.keyring.is_some() && rules.enforce && features::load_smallest_program().is_ok() {
        return Err(not_proved("it accepts a program without a signature".to_owned()));
    }
    if rules.executables.is_some() && allowed()? == before {
        let why = "the kernel does not compute the sha256 of executables (IMA with ima_hash=sha256), or does not call it";
        return Err(not_proved(why.to_owned()));
    }
    Ok(())
}

fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

fn read_settings(pins: &Path) -> Result<SettingsValue, KernelError> {
    let pin = pins.join(SETTINGS);
    let value = bpf::map_lookup(open(pins, SETTINGS)?.as_fd(), &0_u32.to_ne_bytes()).map_err(failed("read", &pin))?;
    value.try_into().map(SettingsValue).map_err(|_| failed("read", &pin)(Errno::INVAL))
}

fn write_settings(map: BorrowedFd<'_>, value: &SettingsValue, pins: &Path) -> Result<(), KernelError> {
    bpf::map_update(map, &0_u32.to_ne_bytes(), &value.0).map_err(failed("write", &pins.join(SETTINGS)))
}

fn host_list(map: BorrowedFd<'_>, pins: &Path) -> Result<Vec<(ExecutableDigest, u32)>, KernelError> {
    let mut found = Vec::new();
    for key in keys(map, &pins.join(EXECUTABLES))? {
        let Some((HOST, digest)) = ExecutableDigest::from_key(&key) else { continue };
        match bpf::map_lookup(map, &key) {
            Ok(value) => found.push((digest, value.first_chunk().copied().map_or(0, u32::from_ne_bytes))),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("read", &pins.join(EXECUTABLES))(errno)),
        }
    }
    Ok(found)
}

fn keys(map: BorrowedFd<'_>, pin: &Path) -> Result<Vec<Vec<u8>>, KernelError> {
    bpf::map_keys(map).map_err(failed("read", pin))
}

fn open(pins: &Path, name: &str) -> Result<OwnedFd, KernelError> {
    bpf::open_pin(&pins.join(name)).map_err(failed("open", &pins.join(name)))
}

fn map<'l>(loaded: &'l BuiltIn, name: &str) -> Result<BorrowedFd<'l>, KernelError> {
    loaded.map(name).ok_or_else(|| KernelError::NoMap { map: name.to_owned(), there: String::new() })
}

/// Removes the pins of one gate, links first.
fn remove(pins: &Path) -> Result<(), KernelError> {
    for pin in programs(true).chain(map_names(true)) {
        fsutil::unlink_if_present(&pins.join(pin))?;
    }
    fsutil::remove_dir_if_present(pins)?;
    Ok(())
}

fn named(signed: bool) -> String {
    format!("{}{}", version(), if signed { SIGNED } else { "" })
}

/// FNV-1a of the programs.
fn version() -> String {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", OBJECT.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

fn failed(doing: &'static str, pin: &Path) -> impl FnOnce(Errno) -> KernelError + use<> {
    let pin = pin.display().to_string();
    move |source| KernelError::Pin { doing, pin, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_layout_of_the_program() {
        let rules = GateRules {
            enforce: true,
            seconds: None,
            executables: Some(BTreeSet::new()),
            containers: false,
            keyring: Some(-5),
        };
        let value = SettingsValue::new(&rules, 5, 7, false, &[11, 12, 13, 14, 15, 16]);
        assert_eq!(value.expires(), Some(5));
        assert_eq!(
            (0..14).map(|n| value.word(n)).collect::<Vec<_>>(),
            [7, 1, 1, 0, 11, 12, 13, 14, 15, 16, 0, 0, (-5_i32).cast_unsigned(), 0]
        );
        let none = SettingsValue::new(&GateRules::default(), 0, 1, true, &[]);
        assert_eq!((none.expires(), none.word(1), none.word(2), none.word(3)), (None, 0, 0, 1));
    }
}
