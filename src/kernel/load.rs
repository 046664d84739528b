//! Loads objects into the kernel: the maps of each object, then the planned programs, each verified with exactly the
//! capabilities of its scope.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::kernel::core_relo::CoreTarget;
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, KERNEL_BTF, Support};
use crate::kernel::fixup;
use crate::kernel::link::{Linked, link, link_built_in};
use crate::kernel::map::{self, MapDefinition, MapShape};
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::program_signature::ProgramSignatures;
use crate::kernel::review::{ExecutionBound, ReviewRefusal, review};
use crate::kernel::signed_load::{SignedOutcome, SignedProgram, exclusive_maps};
use crate::kernel::verifier::VerifierLog;
use crate::kernel::{LoadedIds, kernel_function, pins, section};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::plan::{PlannedMap, PlannedObject, PlannedProgram};
use crate::model::program_signing::KernelSigning;
use crate::model::reach;
use crate::sys::bpf::{self, BtfRecords, MapCreate, MapTypes, ProgramLoad};
use crate::sys::caps::{self, Capability};
use crate::sys::{Errno, SysError, machine};

/// Sizes of the buffer for the verifier's log, tried until the log fits: the last one is the limit of old kernels, 16
/// MiB.
const LOG_SIZES: [usize; 3] = [64 << 10, 1 << 20, (16 << 20) - 1];
/// `BPF_F_SLEEPABLE`
const SLEEPABLE: u32 = 1 << 4;
/// `BPF_F_XDP_HAS_FRAGS`
const XDP_HAS_FRAGS: u32 = 1 << 5;

/// Loads the planned programs and maps of an object and pins them under `directory`.
pub(crate) fn load(directory: &Path, planned: &PlannedObject) -> Result<LoadedIds, KernelError> {
    let object = BpfObject::parse(&planned.bytes)?;
    let request = LoadRequest {
        scope: planned.scope,
        programs: &planned.programs,
        maps: &planned.maps,
        globals: &planned.globals,
        signing: planned.signing,
        built_in: false,
    };
    let work = prepare(&object, request)?;
    let shared = work.shared()?;
    let loaded = caps::with_caps(capabilities(planned.scope), || work.load(shared))??;
    pin(directory, planned, &work.pinned, &loaded)
}

/// Loads programs of an object of bpfman-hook itself, with the capabilities of host scope. They may call kernel functions,
/// and nothing is pinned. `maps` replace maps of the object by name.
pub(crate) fn load_built_in(
    bytes: &[u8],
    programs: &[PlannedProgram],
    globals: &[(String, Vec<u8>)],
    maps: Vec<(&str, OwnedFd)>,
) -> Result<BuiltInParts, KernelError> {
    let object = BpfObject::parse(bytes)?;
    let request =
        LoadRequest { scope: Scope::Host, programs, maps: &[], globals, signing: KernelSigning::default(), built_in: true };
    let work = prepare(&object, request)?;
    let index = |name: &str| object.maps.iter().position(|map| map.name == name);
    let given = maps.into_iter().filter_map(|(name, map)| Some((index(name)?, map))).collect();
    let loaded = caps::with_caps(capabilities(Scope::Host), || work.load(given))??;
    let named = |(index, map): (usize, OwnedFd)| (object.maps[index].name.to_owned(), map);
    Ok(BuiltInParts { programs: loaded.programs, maps: loaded.maps.into_iter().map(named).collect() })
}

/// The descriptors of an object of bpfman-hook itself. Programs and maps are freed with them unless something else refers
/// to them.
pub(crate) struct BuiltInParts {
    /// In the order of the request.
    pub(crate) programs: Vec<OwnedFd>,
    /// The maps that the programs use, by their names in the object.
    pub(crate) maps: BTreeMap<String, OwnedFd>,
}

/// What to load of an object.
#[derive(Clone, Copy)]
struct LoadRequest<'w> {
    scope: Scope,
    programs: &'w [PlannedProgram],
    maps: &'w [PlannedMap],
    globals: &'w [(String, Vec<u8>)],
    signing: KernelSigning,
    /// True for an object of bpfman-hook itself.
    built_in: bool,
}

/// Capabilities of the loading thread. Without CAP_PERFMON the verifier refuses to read kernel memory and to leak
/// pointers; CAP_SYS_ADMIN would imply both and is never granted (kernel/bpf/token.c, bpf_ns_capable).
fn capabilities(scope: Scope) -> &'static [Capability] {
    match scope {
        Scope::Container => &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN],
        Scope::Host => &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON],
    }
}

/// The `enum bpf_prog_type` of a kind; None for kinds that this version does not load.
pub(crate) fn program_type(kind: ProgramKind) -> Option<u32> {
    kind.supported().then(|| kind.kernel_type())
}

/// A program that is ready to load except for the fds of its maps.
struct PreparedProgram<'p> {
    planned: &'p PlannedProgram,
    program_type: u32,
    flags: u32,
    attach_btf_id: u32,
    linked: Linked,
    /// The form in which it is signed, if it is loaded in it.
    signed: Option<SignedProgram>,
    /// How much it can execute, which only the verifier's count tells.
    bound: Option<ExecutionBound>,
}

/// An object that is ready to load.
struct PreparedObject<'w> {
    object: &'w BpfObject<'w>,
    scope: Scope,
    programs: Vec<PreparedProgram<'w>>,
    /// Indices of the maps to create.
    maps: BTreeSet<usize>,
    /// Indices of the planned maps, in the order of the plan.
    pinned: Vec<usize>,
    /// Pins of shared maps that replace the object's own.
    reused: BTreeMap<usize, &'w Path>,
    /// The hash of the only program of each map that is for one program.
    exclusive: BTreeMap<usize, [u8; 32]>,
    /// Indices of the maps that user space must not write.
    frozen: BTreeSet<usize>,
    /// Initial values of data sections.
    images: BTreeMap<usize, Vec<u8>>,
    /// The object's types; None if it has no BTF.
    btf: Option<Vec<u8>>,
    page: u32,
    cpus: u32,
}

/// What was created in the kernel.
struct LoadedObject {
    maps: BTreeMap<usize, OwnedFd>,
    programs: Vec<OwnedFd>,
}

/// Finds every error that can be found without loading anything.
fn prepare<'w>(object: &'w BpfObject<'w>, request: LoadRequest<'w>) -> Result<PreparedObject<'w>, KernelError> {
    let LoadRequest { scope, maps: planned_maps, globals, built_in, .. } = request;
    let chosen: Vec<Chosen<'_>> = request.programs.iter().map(|p| choose(object, p)).collect::<Result<_, _>>()?;
    let on_function = chosen.iter().find(|chosen| chosen.planned.kind.fixed_at_load());
    if let Some(chosen) = on_function {
        kernel_function::check(chosen.planned)?;
    }
    let kernel = match on_function {
        Some(chosen) => kernel_types(&format!("find the function that {} attaches to", chosen.planned.function))?,
        None if built_in => kernel_types("find the kernel's functions and types")?,
        None if object.ext.has_core() => kernel_types("resolve the object's CO-RE relocations")?,
        None => Vec::new(),
    };
    let target = match kernel.as_slice() {
        [] => None,
        bytes => Some(CoreTarget::parse(bytes).map_err(KernelError::KernelTypes)?),
    };
    let signatures = ProgramSignatures::of(&object.elf).map_err(KernelError::Object)?;
    let mut programs = Vec::new();
    for Chosen { planned, function, program_type, flags } in chosen {
        let linked = match &target {
            Some(target) if built_in => link_built_in(object, function, target),
            target => link(object, function, target.as_ref()),
        };
        let linked = linked.map_err(|source| KernelError::Link { program: function.name.clone(), source })?;
        // Types that container scope never loads have no list; the kernel requires CAP_PERFMON for each of them.
        let is_reviewed = scope == Scope::Container && reach::reviewed(program_type);
        let bound = if is_reviewed { review(object, &planned.function, program_type, &linked)? } else { None };
        let attach_btf_id = if planned.kind.fixed_at_load() { kernel_function::find(planned, target.as_ref())? } else { 0 };
        let signed = SignedProgram::new(object, function, &linked, &signatures, request.signing)?;
        programs.push(PreparedProgram { planned, program_type, flags, attach_btf_id, linked, signed, bound });
    }
    let with_names = programs.iter().map(|p| (p.planned.function.as_str(), &p.linked, p.signed.as_ref()));
    let exclusive = exclusive_maps(object, &signatures, with_names)?;
    let mut maps: BTreeSet<usize> = programs.iter().flat_map(|p| p.linked.used_maps()).collect();
    let by_name: HashMap<&str, usize> = object.maps.iter().enumerate().map(|(n, map)| (map.name, n)).collect();
    let pinned: Vec<usize> = planned_maps.iter().map(|map| map_index(object, &by_name, &map.name)).collect::<Result<_, _>>()?;
    maps.extend(&pinned);
    let frozen = planned_maps.iter().zip(&pinned).filter(|(map, _)| map.freeze).map(|(_, index)| *index).collect();
    let reused = planned_maps.iter().zip(&pinned).filter_map(|(map, index)| Some((*index, map.reuse.as_deref()?))).collect();
    let images = images(object, &maps, globals)?;
    let btf = match &object.btf {
        Some((btf, bytes)) => Some(fixup::for_kernel(&object.elf, btf, bytes).map_err(|e| KernelError::Object(e.into()))?),
        None => None,
    };
    let cpus = if maps.iter().any(|map| object.maps[*map].shape.wants_cpus()) { machine::possible_cpus()? } else { 0 };
    let page = machine::page_size();
    Ok(PreparedObject { object, scope, programs, maps, pinned, reused, exclusive, frozen, images, btf, page, cpus })
}

/// The function of a planned program, and how to load it.
struct Chosen<'w> {
    planned: &'w PlannedProgram,
    function: &'w Function,
    program_type: u32,
    flags: u32,
}

fn choose<'w>(object: &'w BpfObject<'_>, planned: &'w PlannedProgram) -> Result<Chosen<'w>, KernelError> {
    let function = object.programs().find(|f| f.name == planned.function).ok_or_else(|| KernelError::NoProgram {
        function: planned.function.clone(),
        there: list(object.programs().map(|f| f.name.as_str())),
    })?;
    let section = object.elf.sections[function.section].name;
    if let Some(declared) = section::declared(section).map(|attach| attach.kind())
        && !declared.loads_as(planned.kind)
    {
        return Err(KernelError::OtherKind {
            function: planned.function.clone(),
            declared,
            section: section.to_owned(),
            asked: planned.kind,
        });
    }
    let program_type = program_type(planned.kind)
        .ok_or_else(|| KernelError::Unsupported { function: planned.function.clone(), kind: planned.kind })?;
    let flags = match planned.kind {
        ProgramKind::Xdp if section::has_frags(section) => XDP_HAS_FRAGS,
        _ if section::is_sleepable(section) => SLEEPABLE,
        _ => 0,
    };
    Ok(Chosen { planned, function, program_type, flags })
}

fn kernel_types(doing: &str) -> Result<Vec<u8>, KernelError> {
    match fs::read(KERNEL_BTF) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let why = Support::No(format!("no {KERNEL_BTF}"));
            Err(KernelError::feature(doing, Feature::Btf, why))
        }
        Err(error) => Err(SysError::io("read", KERNEL_BTF)(error).into()),
    }
}

fn map_index(object: &BpfObject<'_>, by_name: &HashMap<&str, usize>, name: &str) -> Result<usize, KernelError> {
    by_name
        .get(name)
        .copied()
        .ok_or_else(|| KernelError::NoMap { map: name.to_owned(), there: list(object.maps.iter().map(|map| map.name)) })
}

/// The initial values of data sections: the file's, overwritten with what the request sets. Sections that are all zero
/// are left out.
fn images(
    object: &BpfObject<'_>,
    maps: &BTreeSet<usize>,
    globals: &[(String, Vec<u8>)],
) -> Result<BTreeMap<usize, Vec<u8>>, KernelError> {
    let mut by_section = BTreeMap::new();
    let mut images = BTreeMap::new();
    for map in maps {
        let definition = &object.maps[*map];
        let Some(data) = definition.data else { continue };
        by_section.insert(definition.section, *map);
        if !data.is_empty() {
            images.insert(*map, data.to_vec());
        }
    }
    for (name, bytes) in globals {
        let variable = object.variables.iter().find(|v| v.facts.name == *name).ok_or_else(|| KernelError::NoGlobal {
            name: name.clone(),
            there: list(object.variables.iter().map(|v| v.facts.name.as_str())),
        })?;
        if bytes.len() != variable.facts.size as usize {
            return Err(KernelError::GlobalSize { name: name.clone(), size: variable.facts.size, given: bytes.len() });
        }
        // A section that no planned program uses is not created, and its variables have no effect.
        let Some(map) = by_section.get(&variable.section) else { continue };
        let size = object.maps[*map].shape.value_size as usize;
        let image = images.entry(*map).or_insert_with(|| vec![0; size]);
        let place = image.get_mut(variable.offset..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.expect("Object::parse checked that variables lie in their sections").copy_from_slice(bytes);
    }
    Ok(images)
}

impl PreparedObject<'_> {
    /// Opens the shared maps that replace the object's own; each must match the object's declaration.
    fn shared(&self) -> Result<BTreeMap<usize, OwnedFd>, KernelError> {
        let open = |(index, pin): (&usize, &&Path)| {
            let definition = &self.object.maps[*index];
            let failed = |source| KernelError::SharedMap { map: definition.name.to_owned(), pin: (*pin).to_owned(), source };
            let map = bpf::open_pin(pin).map_err(failed)?;
            let info = bpf::map_info(map.as_fd()).map_err(failed)?;
            let differences = definition.shape.completed(self.page, self.cpus).differences(&info);
            if differences.is_empty() {
                if self.frozen.contains(index) {
                    freeze_again(definition.name, map.as_fd())?;
                }
                return Ok((*index, map));
            }
            Err(KernelError::OtherMap { map: definition.name.to_owned(), differences: differences.join(", ") })
        };
        self.reused.iter().map(open).collect()
    }

    /// Runs on the thread with reduced capabilities.
    fn load(&self, shared: BTreeMap<usize, OwnedFd>) -> Result<LoadedObject, KernelError> {
        // BTF is a convenience: names in listings, source lines in errors. The kernel refuses the BTF of some
        // compilers, and a program that cannot work without it gets its own error from the verifier.
        let btf = self.btf.as_deref().and_then(|bytes| bpf::btf_load(bytes, None).ok());
        let btf = btf.as_ref().map(AsFd::as_fd);
        let mut maps = shared;
        for index in &self.maps {
            if !maps.contains_key(index) {
                maps.insert(*index, self.make_map(*index, btf)?);
            }
        }
        let programs = self.programs.iter().map(|p| self.load_program(p, &maps, btf)).collect::<Result<_, _>>()?;
        Ok(LoadedObject { maps, programs })
    }

    fn make_map(&self, index: usize, btf: Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError> {
        let definition = &self.object.maps[index];
        let inner = definition.inner.map(|shape| self.create(definition, shape, (None, None), btf)).transpose()?;
        let with = (inner.as_ref().map(AsFd::as_fd), self.exclusive.get(&index));
        let map = self.create(definition, definition.shape, with, btf)?;
        let failed = |doing| {
            let map = definition.name.to_owned();
            move |source| KernelError::Map { doing, map, source }
        };
        if let Some(image) = self.images.get(&index) {
            bpf::map_update(map.as_fd(), &0u32.to_ne_bytes(), image).map_err(failed("fill"))?;
        }
        if self.frozen.contains(&index) || definition.data.is_some() && map::is_read_only(definition.name) {
            bpf::map_freeze(map.as_fd()).map_err(failed("freeze"))?;
        }
        Ok(map)
    }

    fn create(
        &self,
        definition: &MapDefinition<'_>,
        shape: MapShape,
        (inner, exclusive): (Option<BorrowedFd<'_>>, Option<&[u8; 32]>),
        btf: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, KernelError> {
        let shape = shape.completed(self.page, self.cpus);
        let types =
            btf.filter(|_| shape.value_type != 0).map(|btf| MapTypes { btf, key: shape.key_type, value: shape.value_type });
        let map = MapCreate {
            name: definition.name,
            map_type: shape.map_type,
            key_size: shape.key_size,
            value_size: shape.value_size,
            max_entries: shape.max_entries,
            flags: shape.flags,
            extra: shape.extra,
            inner,
            types,
            token: None,
            exclusive,
        };
        let made = match bpf::map_create(&map) {
            // Many map types do not accept BTF types (kernel/bpf/syscall.c, map_check_btf).
            Err(_) if types.is_some() => bpf::map_create(&MapCreate { types: None, ..map }),
            made => made,
        };
        made.map_err(|source| KernelError::MapCreate {
            map: definition.name.to_owned(),
            why: match source {
                Errno::PERM => "no permission (CAP_BPF; CAP_NET_ADMIN for device and socket maps)",
                Errno::NOMEM => "not enough memory",
                Errno::TOOBIG => "it is too large for the kernel",
                Errno::INVAL => "the kernel does not support the type, or not with these sizes and flags",
                _ => "the kernel refused",
            },
            source,
        })
    }

    fn load_program(
        &self,
        program: &PreparedProgram<'_>,
        maps: &BTreeMap<usize, OwnedFd>,
        btf: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, KernelError> {
        let mut instructions = program.linked.instructions.clone();
        for (at, map) in &program.linked.maps {
            instructions[*at].imm = maps[map].as_raw_fd();
        }
        let instructions: Vec<[u8; 8]> = instructions.into_iter().map(Into::into).collect();
        let functions = BtfRecords { bytes: &program.linked.functions, size: Linked::FUNCTION_RECORD };
        let lines = BtfRecords { bytes: &program.linked.lines, size: Linked::LINE_RECORD };
        let load = ProgramLoad {
            name: &program.planned.function,
            program_type: program.program_type,
            expected_attach_type: program.planned.expected_attach_type,
            attach_btf_id: program.attach_btf_id,
            flags: program.flags,
            instructions: &instructions,
            license: self.object.license,
            debug: btf.filter(|_| !functions.bytes.is_empty()).map(|btf| (btf, functions, lines)),
            token: None,
        };
        // The log costs time, and most programs are accepted: it is requested only after a refusal.
        let signed = program.signed.as_ref();
        let outcome = signed.map_or(Ok(SignedOutcome::Unchecked), |signed| signed.load(&load, maps))?;
        let loaded = match (outcome, signed) {
            (SignedOutcome::Loaded(fd), _) => Ok(fd),
            (SignedOutcome::Refused(errno), Some(signed)) => Err((errno, explained(|log| signed.explain(&load, maps, log)))),
            _ => bpf::program_load(&load, None).map_err(|errno| (errno, explained(|log| bpf::program_load(&load, Some(log))))),
        };
        let loaded = loaded.or_else(|(errno, explained)| match explained {
            Explained::Log(log) => Err(self.rejected(program, errno, log)),
            Explained::Silence => Err(self.refused(program, errno)),
            Explained::Loaded(fd) => Ok(fd),
        })?;
        if let Some(bound) = &program.bound {
            let name = &program.planned.function;
            let info = |source| KernelError::Info { what: format!("program {name}"), source };
            let explored = bpf::program_info(loaded.as_fd()).map_err(info)?.verified_instructions;
            bound.check(explored.into()).map_err(|objection| ReviewRefusal::of(name, objection))?;
        }
        Ok(loaded)
    }

    fn rejected(&self, program: &PreparedProgram<'_>, errno: Errno, log: VerifierLog) -> KernelError {
        let name = program.planned.function.clone();
        if log.is_poisoned() && !program.linked.missing.is_empty() {
            let missing = program.linked.missing.iter().map(String::as_str).collect::<BTreeSet<_>>();
            return KernelError::MissingTypes { program: name, missing: list(missing.into_iter()), log };
        }
        if self.scope == Scope::Container && log.needs_perfmon() {
            return KernelError::NeedsHostScope { program: name, log };
        }
        KernelError::Rejected { program: name, errno, log }
    }

    fn refused(&self, program: &PreparedProgram<'_>, source: Errno) -> KernelError {
        let kind = program.planned.kind;
        if source == Errno::PERM && self.scope == Scope::Host && kind.fixed_at_load() {
            let feature = kernel_function::feature(kind);
            let found = features::probe(feature);
            if matches!(found, Support::No(_)) {
                return KernelError::feature(format!("load program {}", program.planned.function), feature, found);
            }
        }
        let why = match source {
            Errno::PERM if self.scope == Scope::Container && kind.scope() == Scope::Host => "its kind needs host scope",
            Errno::PERM => "the kernel refuses it without a verifier log (lockdown, or a capability is missing)",
            Errno::INVAL => "the kernel does not support the program type or attach type",
            Errno::NOMEM => "not enough memory",
            Errno::TOOBIG => "it has more instructions than the kernel accepts",
            _ => "the kernel refuses it without a verifier log",
        };
        KernelError::Refused { program: program.planned.function.clone(), why, source }
    }
}

/// Removes user space's right to write a map that another load created and may have frozen: then the kernel returns
/// EPERM (kernel/bpf/syscall.c, `map_freeze` and `map_get_sys_perms`). It returns EBUSY while user space has the map
/// mapped for writing, which requires a map that is shown for writing.
fn freeze_again(name: &str, map: BorrowedFd<'_>) -> Result<(), KernelError> {
    match bpf::map_freeze(map) {
        Ok(()) | Err(Errno::PERM | Errno::BUSY) => Ok(()),
        Err(source) => Err(KernelError::Map { doing: "freeze", map: name.to_owned(), source }),
    }
}

/// The result of the second attempt, with a log.
enum Explained {
    Log(VerifierLog),
    Silence,
    /// It succeeded this time: the first attempt was interrupted or ran out of memory.
    Loaded(OwnedFd),
}

fn explained(load: impl Fn(&mut [u8]) -> Result<OwnedFd, Errno>) -> Explained {
    for size in LOG_SIZES {
        let mut buffer = vec![0; size];
        match load(&mut buffer) {
            Ok(fd) => return Explained::Loaded(fd),
            // Old kernels keep the beginning of a log that does not fit, but its end holds the explanation.
            Err(Errno::NOSPC) if size < LOG_SIZES[LOG_SIZES.len() - 1] => {}
            Err(_) => return VerifierLog::read(&buffer).map_or(Explained::Silence, Explained::Log),
        }
    }
    Explained::Silence
}

/// Pins in the order of the plan, maps first: a program's maps must be found even if pinning the program fails.
fn pin(directory: &Path, planned: &PlannedObject, pinned: &[usize], loaded: &LoadedObject) -> Result<LoadedIds, KernelError> {
    let mut ids = LoadedIds::default();
    for (map, index) in planned.maps.iter().zip(pinned) {
        let fd = loaded.maps[index].as_fd();
        bpf::pin(fd, &map.pin.path(directory)).map_err(KernelError::pin("pin a map at", directory, &map.pin))?;
        let what = |source| KernelError::Info { what: format!("map {}", map.name), source };
        ids.maps.push(bpf::map_info(fd).map_err(what)?.id);
        if map.named {
            pins::pin_by_name(directory, &map.name, fd)?;
        }
    }
    for (program, fd) in planned.programs.iter().zip(&loaded.programs) {
        bpf::pin(fd.as_fd(), &program.pin.path(directory)).map_err(KernelError::pin(
            "pin a program at",
            directory,
            &program.pin,
        ))?;
        let what = |source| KernelError::Info { what: format!("program {}", program.function), source };
        ids.programs.push(bpf::program_id(fd.as_fd()).map_err(what)?);
    }
    Ok(ids)
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
