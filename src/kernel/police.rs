//! The LSM programs that police one container (police.bpf.c), and their counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::kernel::btf::Btf;
use crate::kernel::btf::BtfKind;
use crate::kernel::built_in::{BuiltIn, BuiltInRequest};
use crate::kernel::core_relo::CoreTarget;
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, KERNEL_BTF, Support};
use crate::kernel::pins;
use crate::model::ids::PinName;
use crate::model::police::{CompiledSets, CountedCall, CountedSet, KFUNC_VALUE_SIZE, Police, counted_calls, counted_kfunc};
use crate::sys::bpf;
use crate::sys::{Errno, SysError};

/// The object: compiled from police.bpf.c by tests/bpf/build.sh.
const OBJECT: &[u8] = include_bytes!("../bpf/police.bpf.o");
/// The program on the hook `bpf`.
const CALL: &str = "police_call";
/// The program on the hook `bpf_prog_load`, which the kernel has since 6.9.
const LOAD: &str = "police_load";
/// The variable with the sets.
const SETS: &str = "police";
/// The map with the counters.
const COUNTS: &str = ".bss";
/// The map with the kernel functions.
const KFUNCS: &str = "kfuncs";

/// Loaded programs that police one container. Without an attachment they end when this is dropped.
#[derive(Debug)]
pub struct PoliceProgram {
    built_in: BuiltIn,
    /// The functions that were loaded.
    functions: &'static [&'static str],
}

impl PoliceProgram {
    /// Loads the programs with the sets of a rule. From here on neither the sets nor the counters can be written from
    /// user space.
    ///
    /// # Errors
    /// [`KernelError::Feature`] if this kernel does not load LSM programs or would not call them;
    /// [`KernelError::NoLoadHook`] if the rule lists functions and the kernel does not show a program's instructions.
    pub fn load(police: &Police) -> Result<Self, KernelError> {
        match features::probe(Feature::Lsm) {
            Support::Yes => {}
            // Also if it cannot be determined: a program that is never called would allow everything.
            other => return Err(KernelError::feature("judge each call", Feature::Lsm, other)),
        }
        let load = |functions: &'static [&'static str]| {
            let globals = vec![(SETS.to_owned(), CompiledSets::new(police).bytes())];
            let built_in = BuiltIn::load(BuiltInRequest { object: OBJECT, programs: functions, globals, maps: Vec::new() })?;
            Ok(Self { built_in, functions })
        };
        let loaded = match load(&[CALL, LOAD]) {
            Err(KernelError::NoKernelFunction { .. }) if police.lists_functions() => return Err(KernelError::NoLoadHook),
            Err(KernelError::NoKernelFunction { .. }) => load(&[CALL])?,
            loaded => loaded?,
        };
        if let Some(kfuncs) = loaded.built_in.map(KFUNCS) {
            list_kfuncs(kfuncs, police.calls.kfuncs.as_ref())?;
        }
        for (name, map) in loaded.maps() {
            bpf::map_freeze(map).map_err(|source| KernelError::Map { doing: "freeze", map: name.to_owned(), source })?;
        }
        Ok(loaded)
    }

    /// True if helpers and kernel functions are counted.
    pub fn has_functions(&self) -> bool {
        self.functions.contains(&LOAD)
    }

    fn maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        [COUNTS, KFUNCS].into_iter().filter_map(|name| Some((name, self.built_in.map(name)?)))
    }

    /// Pins the counters under an owner's directory.
    fn pin(&self, directory: &Path) -> Result<(), KernelError> {
        for (n, (_, map)) in self.maps().enumerate() {
            let pin = PinName::police(n);
            bpf::pin(map, &pin.path(directory)).map_err(KernelError::pin("pin a map at", directory, &pin))?;
        }
        Ok(())
    }

    /// Attaches the programs to a cgroup, where they stay until it is removed.
    fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
        for (n, function) in self.functions.iter().enumerate() {
            if let Err(error) = self.built_in.attach(function, cgroup) {
                // The error is that of the attachment; a cgroup that is gone has no programs.
                self.functions[..n].iter().for_each(|attached| _ = self.built_in.detach(attached, cgroup));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Attaches the programs to a cgroup as long as the links are open.
    pub fn link(&self, cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, KernelError> {
        self.functions.iter().map(|function| self.built_in.link_to(function, cgroup)).collect()
    }

    /// What was counted so far.
    pub fn calls(&self) -> Result<Vec<CountedCall>, KernelError> {
        calls(self.built_in.map(COUNTS), self.built_in.map(KFUNCS))
    }
}

/// Loads the programs, pins their counters under `directory`, and attaches them to `cgroup`.
pub(super) fn attach(directory: &Path, police: &Police, cgroup: BorrowedFd<'_>) -> Result<(), KernelError> {
    let program = PoliceProgram::load(police)?;
    program.pin(directory)?;
    program.attach(cgroup)
}

/// What the counters pinned under `directory` say; None without pins.
pub(super) fn pinned_calls(directory: &Path) -> Result<Option<Vec<CountedCall>>, KernelError> {
    let Some(counts) = pins::open(directory, &PinName::police(0))? else { return Ok(None) };
    let kfuncs = pins::open(directory, &PinName::police(1))?;
    calls(Some(counts.as_fd()), kfuncs.as_ref().map(AsFd::as_fd)).map(Some)
}

/// Writes the listed functions that this kernel has. One that it does not have cannot be called.
fn list_kfuncs(map: BorrowedFd<'_>, listed: Option<&BTreeSet<String>>) -> Result<(), KernelError> {
    let Some(listed) = listed.filter(|listed| !listed.is_empty()) else { return Ok(()) };
    let types = kernel_types()?;
    let target = CoreTarget::parse(&types).map_err(KernelError::KernelTypes)?;
    let mut value = [0; KFUNC_VALUE_SIZE];
    value[KFUNC_VALUE_SIZE - 8..].copy_from_slice(&1u64.to_ne_bytes());
    for id in listed.iter().filter_map(|name| target.btf().named(BtfKind::Func, name)).map(|ty| ty.id) {
        let failed = |source| KernelError::Map { doing: "fill", map: KFUNCS.to_owned(), source };
        bpf::map_update(map, &u64::from(id).to_ne_bytes(), &value).map_err(failed)?;
    }
    Ok(())
}

fn kernel_types() -> Result<Vec<u8>, KernelError> {
    Ok(fs::read(KERNEL_BTF).map_err(SysError::io("read", KERNEL_BTF))?)
}

fn calls(counts: Option<BorrowedFd<'_>>, kfuncs: Option<BorrowedFd<'_>>) -> Result<Vec<CountedCall>, KernelError> {
    let failed = |map: &str| {
        let map = map.to_owned();
        |source| KernelError::Map { doing: "read", map, source }
    };
    let mut calls = match counts {
        Some(map) => counted_calls(&bpf::map_lookup(map, &0u32.to_ne_bytes()).map_err(failed(COUNTS))?)?,
        None => Vec::new(),
    };
    let Some(map) = kfuncs else { return Ok(calls) };
    let keys = bpf::map_keys(map).map_err(failed(KFUNCS))?;
    let mut values = BTreeMap::new();
    for key in keys {
        match bpf::map_lookup(map, &key) {
            Ok(value) => _ = values.insert(u64::from_ne_bytes(key.try_into().unwrap_or_default()), value),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(failed(KFUNCS)(source)),
        }
    }
    let types = if values.is_empty() { Vec::new() } else { kernel_types()? };
    let btf = (!types.is_empty()).then(|| Btf::parse(&types)).transpose().map_err(KernelError::KernelTypes)?;
    for (key, value) in values {
        // Those of modules have ids of their own, which cannot be assigned to a module later.
        let id = u32::try_from(key).ok();
        let name = id.and_then(|id| btf.as_ref()?.ty(id).and_then(|ty| btf.as_ref().map_or(Ok(""), |btf| btf.name(&ty))).ok());
        let name = || name.filter(|name| !name.is_empty()).unwrap_or(CountedCall::OTHERS).to_owned();
        if let Some(call) = counted_kfunc(name, &value) {
            add(&mut calls, call);
        }
    }
    Ok(calls)
}

/// Adds a counter to one of the same name, or as a new one.
fn add(calls: &mut Vec<CountedCall>, call: CountedCall) {
    match calls.iter_mut().find(|known| known.set == CountedSet::Kfuncs && known.name == call.name) {
        Some(known) => {
            known.seen += call.seen;
            known.refused += call.refused;
        }
        None => calls.push(call),
    }
}
