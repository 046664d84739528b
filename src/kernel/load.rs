//! Loads objects into the kernel: the maps of each object, then the planned programs, each verified with exactly the
//! capabilities of its scope.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use crate::kernel::core_relo::CoreTarget;
use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, KERNEL_BTF, Support};
use crate::kernel::fixup;
use crate::kernel::implied::{self, ElementValue};
use crate::kernel::link::{Linked, link};
use crate::kernel::map::{self, CONFIGURATION, MMAPABLE, MapDefinition, MapShape};
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::object_error::ObjectError;
use crate::kernel::program_signature::ProgramSignatures;
use crate::kernel::review::{ExecutionBound, ReviewRefusal, review};
use crate::kernel::signed_load::{SignedOutcome, SignedProgram, exclusive_maps};
use crate::kernel::verifier::VerifierLog;
use crate::kernel::{LoadedIds, kconfig, kernel_function, pins, section};
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
        implied: &[],
        maps: &planned.maps,
        globals: &planned.globals,
        signing: planned.signing,
        built_in: false,
    };
    let implied = implied::programs(&object, &planned.programs).map_err(KernelError::Elements)?;
    let work = prepare(&object, LoadRequest { implied: &implied, ..request })?;
    let shared = work.shared()?;
    let loaded = caps::with_caps(capabilities(planned.scope), || work.load(shared))??;
    pin(directory, planned, &work.pinned, &loaded)
}

/// Loads one program and lets the kernel free it again; returns how many instructions the verifier processed.
pub(crate) fn load_once(object: &BpfObject<'_>, program: &PlannedProgram, scope: Scope) -> Result<u32, KernelError> {
    let programs = std::slice::from_ref(program);
    let implied = implied::programs(object, programs).map_err(KernelError::Elements)?;
    let request = LoadRequest {
        scope,
        programs,
        implied: &implied,
        maps: &[],
        globals: &[],
        signing: KernelSigning::default(),
        built_in: false,
    };
    let work = prepare(object, request)?;
    let loaded = caps::with_caps(capabilities(scope), || work.load(BTreeMap::new()))??;
    let what = |source| KernelError::Info { what: format!("program {}", program.function), source };
    Ok(bpf::program_info(loaded.programs[0].as_fd()).map_err(what)?.verified_instructions)
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
    let request = LoadRequest {
        scope: Scope::Host,
        programs,
        implied: &[],
        maps: &[],
        globals,
        signing: KernelSigning::default(),
        built_in: true,
    };
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
    /// What the object puts into maps that these programs use.
    implied: &'w [PlannedProgram],
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

/// A program that is ready to load except for the fds of its maps.
struct PreparedProgram<'p> {
    planned: &'p PlannedProgram,
    function: &'p Function,
    program_type: u32,
    expected_attach_type: u32,
    flags: u32,
    attach_btf_id: u32,
    /// The BTF of the module that it attaches to.
    attach_to: Option<OwnedFd>,
    linked: Linked,
    /// The form in which it is signed, if it is loaded in it.
    signed: Option<SignedProgram>,
    /// The BTF of the modules that it refers to.
    modules: Vec<OwnedFd>,
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
    /// Entries that the request gives maps, by index.
    entries: BTreeMap<usize, u32>,
    /// Indices of the maps without which the load fails.
    needed: BTreeSet<usize>,
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
    let requested = request.programs.iter().chain(request.implied);
    let chosen: Vec<Chosen<'_>> = requested.map(|p| choose(object, p)).collect::<Result<_, _>>()?;
    let on_function = chosen.iter().find(|chosen| needs_target(chosen.planned.kind));
    if let Some(chosen) = on_function {
        kernel_function::check(chosen.planned)?;
    }
    let kernel = match on_function {
        Some(chosen) => kernel_types(&format!("find the function that {} attaches to", chosen.planned.function))?,
        None if built_in || object.externs.need_types() => kernel_types("find the kernel's functions and types")?,
        None if object.ext.has_core() => kernel_types("resolve the object's CO-RE relocations")?,
        None => Vec::new(),
    };
    let target = match kernel.as_slice() {
        [] => None,
        bytes => Some(CoreTarget::running(bytes).map_err(KernelError::KernelTypes)?),
    };
    let signatures = ProgramSignatures::of(&object.elf).map_err(KernelError::Object)?;
    let signing = (&signatures, request.signing);
    let programs: Vec<_> =
        chosen.into_iter().map(|chosen| ready(object, scope, chosen, target.as_ref(), signing)).collect::<Result<_, _>>()?;
    let with_names = programs.iter().map(|p| (p.planned.function.as_str(), &p.linked, p.signed.as_ref()));
    let exclusive = exclusive_maps(object, &signatures, with_names)?;
    let used: BTreeSet<usize> = programs.iter().flat_map(|p| p.linked.used_maps()).collect();
    let by_name: HashMap<&str, usize> = object.maps.iter().enumerate().map(|(n, map)| (map.name, n)).collect();
    let pinned: Vec<usize> = planned_maps.iter().map(|map| map_index(object, &by_name, &map.name)).collect::<Result<_, _>>()?;
    let of_plan = |wanted: fn(&PlannedMap) -> bool| {
        planned_maps.iter().zip(&pinned).filter(move |(map, _)| wanted(map)).map(|(_, index)| *index)
    };
    let needed = used.into_iter().chain(of_plan(PlannedMap::is_asked)).collect();
    let needed = implied::with_inner_maps(object, needed).map_err(KernelError::Elements)?;
    if let Some(map) = needed.iter().map(|map| &object.maps[*map]).find(|map| map.wrong.is_some()) {
        return Err(ObjectError::Map { name: map.name.to_owned(), why: map.wrong.unwrap_or_default() }.into());
    }
    // Values of the configuration that no program reads need not be there.
    let wanted = |map: &&usize| needed.contains(map) || object.maps[**map].name != CONFIGURATION;
    let maps: BTreeSet<usize> = needed.iter().chain(&pinned).filter(wanted).copied().collect();
    let frozen = of_plan(|map| map.freeze).collect();
    let entries = planned_maps.iter().zip(&pinned).filter_map(|(map, index)| Some((*index, map.entries?))).collect();
    let reused = planned_maps.iter().zip(&pinned).filter_map(|(map, index)| Some((*index, map.reuse.as_deref()?))).collect();
    let images = images(object, &maps, globals)?;
    let btf = match &object.btf {
        Some((btf, bytes)) => {
            let fixed = fixup::for_kernel(&object.elf, &object.externs, btf, bytes);
            Some(fixed.map_err(|e| KernelError::Object(e.into()))?)
        }
        None => None,
    };
    let shapes = || maps.iter().flat_map(|map| [Some(object.maps[*map].shape), object.maps[*map].inner]).flatten();
    let cpus = if shapes().any(MapShape::wants_cpus) { machine::possible_cpus()? } else { 0 };
    let page = machine::page_size();
    Ok(PreparedObject {
        object,
        scope,
        programs,
        maps,
        pinned,
        entries,
        needed,
        reused,
        exclusive,
        frozen,
        images,
        btf,
        page,
        cpus,
    })
}

/// Links and reviews one program, and opens what it refers to.
fn ready<'w>(
    object: &'w BpfObject<'w>,
    scope: Scope,
    chosen: Chosen<'w>,
    target: Option<&CoreTarget<'_>>,
    (signatures, signing): (&ProgramSignatures, KernelSigning),
) -> Result<PreparedProgram<'w>, KernelError> {
    let Chosen { planned, function, program_type, flags } = chosen;
    let linked = link(object, function, target);
    let linked = linked.map_err(|source| KernelError::Link { program: function.name.clone(), source })?;
    // Types that container scope never loads have no list; the kernel requires CAP_PERFMON for each of them.
    let is_reviewed = scope == Scope::Container && reach::reviewed(program_type);
    let bound = if is_reviewed { review(object, &planned.function, program_type, &linked)? } else { None };
    let (attaches, expected_attach_type) = match planned.kind {
        ProgramKind::StructOps => kernel_function::member(object, planned, function, target).map(|(ty, at)| (Some(ty), at))?,
        kind if needs_target(kind) => (Some(kernel_function::find(planned, target)?), planned.expected_attach_type),
        _ => (None, planned.expected_attach_type),
    };
    let open = |module: &String| {
        let what = || format!("the types of the module {module}");
        let found = bpf::module_btf(module).map_err(|source| KernelError::Info { what: what(), source })?;
        found.ok_or_else(|| KernelError::Info { what: what(), source: Errno::NOENT })
    };
    let modules = linked.modules.iter().map(open).collect::<Result<_, _>>()?;
    let attach_to = attaches.as_ref().and_then(|found| found.module.as_ref()).map(open).transpose()?;
    let attach_btf_id = attaches.map_or(0, |found| found.id);
    let signed = SignedProgram::new(object, function, &linked, signatures, signing)?;
    Ok(PreparedProgram {
        planned,
        function,
        program_type,
        expected_attach_type,
        flags,
        attach_btf_id,
        attach_to,
        linked,
        signed,
        modules,
        bound,
    })
}

/// True if the kernel's types say what a program of this kind is loaded for.
fn needs_target(kind: ProgramKind) -> bool {
    kind == ProgramKind::StructOps || kind.fixed_at_load() && kind != ProgramKind::Ext
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
    let program_type = planned.kind.kernel_type();
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
        if definition.name == CONFIGURATION
            && let Some((btf, _)) = &object.btf
        {
            images.insert(*map, kconfig::image(&object.externs, btf)?);
        } else if !data.is_empty() {
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
            let mut shape = self.shape(*index).completed(self.page, self.cpus);
            if definition.data.is_some() {
                // Earlier versions made the same map without the flag.
                shape.flags = shape.flags & !MMAPABLE | info.flags & MMAPABLE;
            }
            let differences = shape.differences(&info);
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
        let own: BTreeSet<usize> = self.maps.iter().filter(|index| !maps.contains_key(index)).copied().collect();
        for index in &own {
            match self.make_map(*index, btf) {
                Ok(map) => drop(maps.insert(*index, map)),
                Err(error) if self.needed.contains(index) => return Err(error),
                // No loaded program uses it, and no request names it.
                Err(error) => tracing::debug!(map = self.object.maps[*index].name, %error, "a map is not created"),
            }
        }
        self.fill_maps(&own, &maps)?;
        let programs: Vec<OwnedFd> =
            self.programs.iter().map(|p| self.load_program(p, &maps, btf)).collect::<Result<_, _>>()?;
        self.fill_arrays(&own, &maps, &programs)?;
        Ok(LoadedObject { maps, programs })
    }

    /// Puts the object's maps into its maps of maps.
    fn fill_maps(&self, own: &BTreeSet<usize>, maps: &BTreeMap<usize, OwnedFd>) -> Result<(), KernelError> {
        self.fill(own, maps, |value| match value {
            ElementValue::Map(inner) => maps.get(&inner).map(AsFd::as_fd),
            ElementValue::Program(_) => None,
        })
    }

    /// Puts the object's programs into its program arrays.
    fn fill_arrays(
        &self,
        own: &BTreeSet<usize>,
        maps: &BTreeMap<usize, OwnedFd>,
        programs: &[OwnedFd],
    ) -> Result<(), KernelError> {
        self.fill(own, maps, |value| match value {
            ElementValue::Program(function) => {
                self.programs.iter().position(|program| program.function == function).map(|at| programs[at].as_fd())
            }
            ElementValue::Map(_) => None,
        })
    }

    /// Sets the elements of own maps of which `descriptor` has the descriptor. Shared maps have theirs from their own
    /// load.
    fn fill<'f>(
        &self,
        own: &BTreeSet<usize>,
        maps: &BTreeMap<usize, OwnedFd>,
        descriptor: impl Fn(ElementValue<'_>) -> Option<BorrowedFd<'f>>,
    ) -> Result<(), KernelError> {
        for (index, map) in maps.iter().filter(|(index, _)| own.contains(index)) {
            let definition = &self.object.maps[*index];
            for given in &definition.elements {
                let value =
                    implied::element(self.object, definition, given.symbol, given.place).map_err(KernelError::Elements)?;
                let Some(fd) = descriptor(value) else { continue };
                let updated = bpf::map_update(map.as_fd(), &given.index.to_ne_bytes(), &fd.as_raw_fd().to_ne_bytes());
                let name = definition.name.to_owned();
                updated.map_err(|source| KernelError::Map { doing: "fill", map: name, source })?;
            }
        }
        Ok(())
    }

    fn make_map(&self, index: usize, btf: Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError> {
        let definition = &self.object.maps[index];
        let inner = definition.inner.map(|shape| self.create(definition, shape, (None, None), btf)).transpose()?;
        let with = (inner.as_ref().map(AsFd::as_fd), self.exclusive.get(&index));
        let map = self.create(definition, self.shape(index), with, btf)?;
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

    /// The declared shape, with the size that the request gives it.
    fn shape(&self, index: usize) -> MapShape {
        let declared = self.object.maps[index].shape;
        MapShape { max_entries: self.entries.get(&index).copied().unwrap_or(declared.max_entries), ..declared }
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
            numa_node: shape.numa_node,
            kernel_value: 0,
            module: None,
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
                Errno::INVAL if shape.max_entries == 0 => "it is declared without max_entries, which a request must give",
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
        for (at, module) in &program.linked.of_modules {
            instructions[at + 1].imm = program.modules[*module].as_raw_fd();
        }
        // The first is not used: index 0 means the kernel itself.
        let modules: Vec<RawFd> = match program.modules.as_slice() {
            [] => Vec::new(),
            some => std::iter::once(-1).chain(some.iter().map(AsRawFd::as_raw_fd)).collect(),
        };
        let instructions: Vec<[u8; 8]> = instructions.into_iter().map(Into::into).collect();
        let functions = BtfRecords { bytes: &program.linked.functions, size: Linked::FUNCTION_RECORD };
        let lines = BtfRecords { bytes: &program.linked.lines, size: Linked::LINE_RECORD };
        let load = ProgramLoad {
            name: &program.planned.function,
            program_type: program.program_type,
            expected_attach_type: program.expected_attach_type,
            attach_btf_id: program.attach_btf_id,
            attach_to: program.attach_to.as_ref().map(AsFd::as_fd),
            modules: &modules,
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

    fn rejected(&self, program: &PreparedProgram<'_>, errno: Errno, log: Box<VerifierLog>) -> KernelError {
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
    Log(Box<VerifierLog>),
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
            Err(_) => return VerifierLog::read(&buffer).map_or(Explained::Silence, |log| Explained::Log(Box::new(log))),
        }
    }
    Explained::Silence
}

/// Pins in the order of the plan, maps first: a program's maps must be found even if pinning the program fails.
fn pin(directory: &Path, planned: &PlannedObject, pinned: &[usize], loaded: &LoadedObject) -> Result<LoadedIds, KernelError> {
    let mut ids = LoadedIds::default();
    for (map, index) in planned.maps.iter().zip(pinned) {
        let Some(fd) = loaded.maps.get(index).map(AsFd::as_fd) else {
            ids.maps.push(None);
            continue;
        };
        bpf::pin(fd, &map.pin.path(directory)).map_err(KernelError::pin("pin a map at", directory, &map.pin))?;
        let what = |source| KernelError::Info { what: format!("map {}", map.name), source };
        ids.maps.push(Some(bpf::map_info(fd).map_err(what)?.id));
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
