//! Plans a load without a container: from the load request and its object. Attach points are not planned here.

use std::path::PathBuf;

use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::bytecode::Bytecode;
use crate::model::delegation::section_load;
use crate::model::ids::PinName;
use crate::model::manual::{LoadTask, ProgramToLoad};
use crate::model::object::{MapFacts, ObjectFacts, ProgramFacts, SectionAttach};
use crate::model::plan::attach::{attach_type, check_kind, no_place};
use crate::model::plan::make::{entries_of, object};
use crate::model::plan::{OwnerPlan, PlanError, PlannedMap, PlannedProgram};
use crate::model::program_signing::KernelSigning;
use crate::model::text::{is_symbol, list};

/// Everything that such a plan is based on.
#[derive(Debug)]
pub struct ManualInputs<'a> {
    /// The object and its source.
    pub bytecode: &'a Bytecode,
    /// Its declarations.
    pub facts: &'a ObjectFacts,
    /// The scope of its programs.
    pub scope: Scope,
    /// How the signatures of its programs are used.
    pub signing: KernelSigning,
    /// The rule or caller that decides the scope, for messages.
    pub who: &'a str,
    /// The load request.
    pub load: &'a LoadTask,
    /// The maps that are used instead of the object's own.
    pub shared: Option<&'a SharedMaps>,
}

/// Maps of programs that are already loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMaps {
    /// The program that the request names, for messages.
    pub program: u32,
    /// Where they are pinned.
    pub directory: PathBuf,
    /// Their names in their object, and their pins.
    pub maps: Vec<(String, PinName)>,
}

/// Makes the plan, or returns one sentence about why there is none.
pub fn manual(inputs: &ManualInputs<'_>) -> Result<OwnerPlan, PlanError> {
    let mut planned = object(inputs.bytecode, inputs.facts, inputs.scope, inputs.signing);
    for wanted in &inputs.load.programs {
        planned.programs.push(program(inputs, wanted, PinName::program(planned.programs.len() + 1))?);
    }
    for (name, value) in &inputs.load.globals {
        let global = inputs.facts.globals.iter().find(|global| global.name == *name).ok_or_else(|| {
            let known = list(inputs.facts.globals.iter().map(|global| global.name.as_str()));
            PlanError::NoSuchGlobal { name: name.clone(), known }
        })?;
        planned.globals.push((name.clone(), global.encode(value)?));
    }
    if let Some(size) = inputs.load.map_sizes.iter().find(|size| !inputs.facts.maps.iter().any(|map| map.name == size.name)) {
        let known = list(inputs.facts.maps.iter().filter(|map| !map.data_section).map(|map| map.name.as_str()));
        return Err(PlanError::NoSuchMap { name: size.name.clone(), known });
    }
    for (map, n) in inputs.facts.maps.iter().zip(1..) {
        planned.maps.push(PlannedMap {
            name: map.name.clone(),
            pin: PinName::map(n),
            freeze: false,
            reuse: reuse(inputs, map)?,
            from_pod: false,
            named: !map.data_section && is_file_name(&map.name),
            entries: entries_of(&inputs.load.map_sizes, map),
            shown: false,
        });
    }
    Ok(OwnerPlan { objects: vec![planned], links: Vec::new() })
}

fn program(inputs: &ManualInputs<'_>, wanted: &ProgramToLoad, pin: PinName) -> Result<PlannedProgram, PlanError> {
    let function = wanted.function.clone();
    let programs = &inputs.facts.programs;
    let found = programs.iter().find(|program| program.function == function).ok_or_else(|| PlanError::NoSuchProgram {
        function: function.clone(),
        reference: inputs.bytecode.reference.to_string(),
        known: list(programs.iter().map(|program| program.function.as_str())),
    })?;
    check_kind(wanted.kind, found)?;
    // The section decides whether a probe is a return probe: bpfman's interface has no such kind.
    let kind = match found.declared.as_ref().map(SectionAttach::kind) {
        Some(declared @ (ProgramKind::Kretprobe | ProgramKind::Uretprobe)) => declared,
        _ => wanted.kind,
    };
    if kind.scope() == Scope::Host && inputs.scope != Scope::Host {
        return Err(PlanError::HostScopeManual { function, kind, who: inputs.who.to_owned() });
    }
    let target = if kind.fixed_at_load() { Some(target(wanted, kind, found)?) } else { None };
    Ok(PlannedProgram { function, kind, expected_attach_type: load_type(kind, found)?, target, pin })
}

/// The `expected_attach_type` for a load by hand: the section's, or that of the kind.
fn load_type(kind: ProgramKind, found: &ProgramFacts) -> Result<u32, PlanError> {
    let declared = found.declared.as_ref().is_some_and(|declared| declared.kind().loads_as(kind));
    match (kind, section_load(&found.section)) {
        // One load serves both directions, and kernels without tcx.
        (ProgramKind::Tc | ProgramKind::Tcx, _) => Ok(0),
        (_, Some(load)) if declared => Ok(load.attach_type),
        (kind, _) if kind.on_cgroup() && kind != ProgramKind::LsmCgroup && attach_type(kind) == 0 => {
            Err(no_place(found, "a section that names its attach type, such as cgroup/connect4"))
        }
        (kind, _) => Ok(attach_type(kind)),
    }
}

/// What a program is loaded for, if loading fixes that.
fn target(wanted: &ProgramToLoad, kind: ProgramKind, found: &ProgramFacts) -> Result<String, PlanError> {
    match (&wanted.target, &found.declared) {
        (Some(target), _) => Ok(target.clone()),
        (None, Some(SectionAttach::Function(_, Some(target)) | SectionAttach::Other(_, Some(target)))) => Ok(target.clone()),
        _ => Err(no_place(found, &format!("{kind}:{}:TARGET", wanted.function))),
    }
}

/// The pin of the map that is used instead of this one. Data sections belong to each load, because they hold its
/// globals.
fn reuse(inputs: &ManualInputs<'_>, map: &MapFacts) -> Result<Option<PathBuf>, PlanError> {
    let Some(shared) = inputs.shared.filter(|_| !map.data_section) else { return Ok(None) };
    match shared.maps.iter().find(|(name, _)| *name == map.name) {
        Some((_, pin)) => Ok(Some(pin.path(&shared.directory))),
        None => Err(PlanError::NotShared {
            program: shared.program,
            map: map.name.clone(),
            known: list(shared.maps.iter().map(|(name, _)| name.as_str())),
        }),
    }
}

/// True for names that bpffs accepts: it reserves those with a dot.
fn is_file_name(name: &str) -> bool {
    is_symbol(name) && !name.contains('.')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::annotations::GlobalValue;
    use crate::model::bytecode::ImageVerdict;
    use crate::model::ids::Digest;
    use crate::model::manual::ObjectSource;
    use crate::model::object::{GlobalFacts, GlobalType};
    use crate::model::reference::Reference;

    fn map(name: &str) -> MapFacts {
        MapFacts {
            name: name.to_owned(),
            map_type: 2,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            flags: 0,
            data_section: name.starts_with('.'),
        }
    }

    fn facts() -> ObjectFacts {
        let program = |function: &str, section: &str, declared| ProgramFacts {
            function: function.to_owned(),
            section: section.to_owned(),
            declared,
        };
        let function = |kind, target: Option<&str>| Some(SectionAttach::Function(kind, target.map(str::to_owned)));
        ObjectFacts {
            programs: vec![
                program("count", "xdp", Some(SectionAttach::Xdp)),
                program("ret", "kretprobe/do_exit", function(ProgramKind::Kretprobe, Some("do_exit"))),
                program("enter", "fentry/do_exit", function(ProgramKind::Fentry, Some("do_exit"))),
                program("bare", "fentry", function(ProgramKind::Fentry, None)),
                program("skb", "cgroup_skb/egress", Some(SectionAttach::Cgroup(ProgramKind::CgroupSkb, None))),
                program("odd", "odd", None),
            ],
            maps: vec![map("packets"), map("dotted.map"), map(".rodata")],
            globals: vec![GlobalFacts {
                name: "rate".to_owned(),
                size: 4,
                ty: GlobalType::Int { size: 4, signed: false },
                read_only: true,
            }],
            core: false,
            signed: false,
            executables: Default::default(),
        }
    }

    fn plan(
        programs: &[(ProgramKind, &str, Option<&str>)],
        globals: &[(&str, GlobalValue)],
        scope: Scope,
        shared: Option<&SharedMaps>,
    ) -> Result<OwnerPlan, String> {
        let reference = Reference::File { path: "/x.o".into() };
        let load = LoadTask {
            source: ObjectSource::File("/x.o".into()),
            programs: programs
                .iter()
                .map(|(kind, function, target)| ProgramToLoad {
                    function: (*function).to_owned(),
                    kind: *kind,
                    target: target.map(str::to_owned),
                })
                .collect(),
            globals: globals.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            map_sizes: Vec::new(),
            metadata: BTreeMap::new(),
            map_owner: None,
            attach: Vec::new(),
        };
        let digest = Digest::from_bytes([1; 32]);
        let bytecode = Bytecode {
            reference,
            digest,
            object_digest: digest,
            object: Vec::new(),
            rule: String::new(),
            verdict: ImageVerdict::Unsigned,
        };
        let inputs = ManualInputs {
            bytecode: &bytecode,
            facts: &facts(),
            signing: KernelSigning::default(),
            scope,
            who: "the rule of uid 7",
            load: &load,
            shared,
        };
        manual(&inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn kinds_targets_and_attach_types() {
        use ProgramKind as K;
        for (kind, function, target, planned, attach, hangs_on) in [
            (K::Xdp, "count", None, K::Xdp, 37, None),
            (K::Kprobe, "ret", None, K::Kretprobe, 0, None),
            (K::Fentry, "enter", None, K::Fentry, 24, Some("do_exit")),
            (K::Fentry, "enter", Some("do_open"), K::Fentry, 24, Some("do_open")),
            (K::Lsm, "odd", Some("file_open"), K::Lsm, 27, Some("file_open")),
            (K::Tcx, "odd", None, K::Tcx, 0, None),
            (K::CgroupSkb, "skb", None, K::CgroupSkb, 1, None),
        ] {
            let plan = plan(&[(kind, function, target)], &[], Scope::Host, None).unwrap();
            let program = &plan.objects[0].programs[0];
            assert_eq!(
                (program.kind, program.expected_attach_type, program.target.as_deref()),
                (planned, attach, hangs_on),
                "{kind} {function}"
            );
        }
        for (kind, function, scope, said) in [
            (K::Xdp, "nope", Scope::Host, "it has count, ret, enter, bare, skb, odd"),
            (K::Tcx, "count", Scope::Host, "is xdp by its section"),
            (K::Fentry, "bare", Scope::Host, "write fentry:bare:TARGET"),
            (K::Kprobe, "odd", Scope::Container, "the rule of uid 7 does not allow host scope"),
        ] {
            let error = plan(&[(kind, function, None)], &[], scope, None).unwrap_err();
            assert!(error.contains(said), "{error} has no {said}");
        }
    }

    #[test]
    fn globals_are_bytes_or_typed() {
        let set = |name: &str, value| plan(&[(ProgramKind::Xdp, "count", None)], &[(name, value)], Scope::Container, None);
        for value in [GlobalValue::Bytes(vec![10, 0, 0, 0]), GlobalValue::Word("10".to_owned())] {
            assert_eq!(set("rate", value).unwrap().objects[0].globals, [("rate".to_owned(), vec![10, 0, 0, 0])]);
        }
        let error = set("rate", GlobalValue::Bytes(vec![1])).unwrap_err();
        assert!(error.contains("takes 4 bytes"), "{error}");
        let error = set("nope", GlobalValue::Bytes(vec![1])).unwrap_err();
        assert!(error.contains("there are rate"), "{error}");
    }

    #[test]
    fn shared_maps_replace_all_but_data_sections() {
        let pins = |names: &[&str]| SharedMaps {
            program: 7,
            directory: "/fs/owner_3".into(),
            maps: names.iter().zip(1..).map(|(name, n)| ((*name).to_owned(), PinName::map(n))).collect(),
        };
        let with = |shared: &SharedMaps| plan(&[(ProgramKind::Xdp, "count", None)], &[], Scope::Container, Some(shared));
        let plan = with(&pins(&["other", "packets", "dotted.map", ".rodata"])).unwrap();
        let maps: Vec<_> = plan.objects[0].maps.iter().map(|map| (map.reuse.clone(), map.named)).collect();
        let at = |file: &str| Some(PathBuf::from("/fs/owner_3").join(file));
        assert_eq!(maps, [(at("map_2"), true), (at("map_3"), false), (None, false)]);
        let error = with(&pins(&["packets"])).unwrap_err();
        assert_eq!(error, "share the maps of program 7: it has no map \"dotted.map\"; it has packets");
    }
}
