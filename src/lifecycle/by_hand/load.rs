//! Loading, unloading, and bringing images into the cache.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::image::{Images as _, MAX_OBJECT, Want, hash};
use crate::kernel::Kernel;
use crate::lifecycle::acquire::fill;
use crate::lifecycle::by_hand::{HandError, Sources, drop_nameless, functions};
use crate::lifecycle::error::chain;
use crate::lifecycle::host::Host;
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::by_hand::{APPLICATION, Bounds, ImageSource, Load, Loaded, Program, Source};
use crate::model::bytecode::{Bytecode, Verdict};
use crate::model::ids::PinName;
use crate::model::plan::{OwnerPlan, PlannedMap, PlannedObject, PlannedProgram};
use crate::model::record::{ImageRecord, Owner, OwnerRecord, Phase};
use crate::model::reference::Reference;
use crate::paths::Paths;
use crate::store::StoreError;
use crate::sys::fsutil::{read_capped, read_trusted_file};

/// BPF_XDP, BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_LSM_MAC
const XDP: u32 = 37;
const FENTRY: u32 = 24;
const FEXIT: u32 = 25;
const LSM: u32 = 27;

/// An object and how far its programs may reach.
struct Object {
    bytecode: Bytecode,
    scope: Scope,
    /// Who says so, for messages.
    who: String,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    pub(super) fn load_by_hand(
        &self,
        paths: &Paths,
        bounds: &Bounds,
        load: &Load,
        fetch_until: Instant,
    ) -> Result<Vec<Program>, HandError> {
        let object = match &load.source {
            Source::File(path) => from_file(bounds, path)?,
            Source::Image(image) => from_image(&Sources::open(paths, fetch_until)?, bounds, image)?,
        };
        let plan = self.plan_by_hand(&object, load)?;
        let application = load.metadata.get(APPLICATION).cloned();
        let loaded = Loaded {
            caller: bounds.caller.clone(),
            reference: Some(object.bytecode.reference.clone()),
            globals: load.globals.clone(),
            metadata: load.metadata.clone(),
        };
        let mut record = self.blank_of(Owner::Host { application, loaded: Box::new(loaded) });
        fill(&mut record, &plan);
        self.check_deadline()?;
        self.store
            .write::<_, StoreError>(|txn| {
                record.no = self.free_number(txn)?;
                txn.put(&record)
            })
            .map_err(Cause::from)?;
        if let Err(cause) = self.build_by_hand(&mut record, &plan) {
            if let Err(second) = self.fail(&record, &chain(&cause)) {
                tracing::error!(owner = record.no.0, error = %chain(&second), "undo a failed load");
            }
            return Err(cause.into());
        }
        // Nobody would know of programs that are loaded and not told.
        self.programs_of(&record).inspect_err(|_| {
            if let Err(second) = self.release(&record) {
                tracing::error!(owner = record.no.0, error = %chain(&second), "undo a load that could not be told");
            }
        })
    }

    pub(super) fn unload_by_hand(&self, bounds: &Bounds, program: u32) -> Result<(), HandError> {
        let has = |record: &OwnerRecord| record.programs.iter().any(|p| p.id == Some(program));
        // Whoever asks while it is on its way out has what was asked for, be it that another one ends it or that we do, after a kill.
        let leaving = self.find(has)?.is_some_and(|record| record.phase == Phase::Releasing);
        let Some(record) = self.settle(bounds, "program", program, has)? else {
            return if leaving { Ok(()) } else { Err(HandError::NoProgram(program)) };
        };
        let again = || {
            self.check_deadline()?;
            self.unload_by_hand(bounds, program)
        };
        if record.programs.len() == 1 {
            return match self.release(&record)? {
                Released::Gone | Released::Absent => Ok(()),
                Released::Busy(pid) | Released::Alive(pid) => Err(Cause::Busy { pid, what: super::owner_name(&record) }.into()),
                Released::Partly(source) => Err(HandError::Left { owner: super::owner_name(&record), source }),
                // It was attached or detached meanwhile.
                Released::Changed => again(),
                Released::Held(_) => Err(Cause::RecordGone { no: record.no }.into()),
            };
        }
        // One of several that were loaded together: its links and its pin go, the others and the maps stay.
        let mut old = record;
        let taken = self.take(old.no, |kept| {
            old = kept.clone();
            let others = kept.programs.iter().filter(|p| p.id != Some(program)).count();
            let Some(going) = kept.programs.iter_mut().find(|p| p.id == Some(program)).filter(|_| others > 0) else {
                return false;
            };
            going.id = None;
            kept.links.iter_mut().filter(|link| link.program == going.pin).for_each(|link| link.id = None);
            true
        })?;
        let Some(taken) = taken else { return again() };
        match self.unpin_nameless(&taken) {
            Ok(()) => Ok(self.change(taken.no, drop_nameless)?),
            Err(error) => {
                // What is still there has to be found by its id when it is tried again.
                self.change(taken.no, |kept| (kept.programs, kept.links) = (old.programs, old.links))?;
                Err(error.into())
            }
        }
    }

    pub(super) fn pull_by_hand(
        &self,
        paths: &Paths,
        bounds: &Bounds,
        image: &ImageSource,
        fetch_until: Instant,
    ) -> Result<(), HandError> {
        from_image(&Sources::open(paths, fetch_until)?, bounds, image).map(drop)
    }

    fn plan_by_hand(&self, object: &Object, load: &Load) -> Result<OwnerPlan, HandError> {
        let bytecode = &object.bytecode;
        let facts = self.kernel.describe(&bytecode.object)?;
        let mut programs = Vec::new();
        for wanted in &load.programs {
            let function = wanted.function.clone();
            let found = facts.programs.iter().find(|program| program.function == function);
            let found = found.ok_or_else(|| HandError::NoFunction { function: function.clone(), known: functions(&facts) })?;
            let declared = found.declared.as_ref().map(|declared| declared.kind());
            if let Some(declared) = declared.filter(|declared| !declared.loads_as(wanted.kind)) {
                return Err(HandError::Misfit(format!(
                    "load {function} as {}: its section {} says {}",
                    wanted.kind.word(),
                    found.section,
                    declared.word()
                )));
            }
            // Whether a probe is one of returns is its section's to say: the interface has no such kind.
            let kind = match declared {
                Some(declared @ (ProgramKind::Kretprobe | ProgramKind::Uretprobe)) => declared,
                _ => wanted.kind,
            };
            if kind.scope() == Scope::Host && object.scope != Scope::Host {
                return Err(HandError::HostScope { function, kind: kind.word(), who: object.who.clone() });
            }
            let expected_attach_type = match kind {
                ProgramKind::Xdp => XDP,
                ProgramKind::Fentry => FENTRY,
                ProgramKind::Fexit => FEXIT,
                ProgramKind::Lsm => LSM,
                _ => 0,
            };
            programs.push(PlannedProgram {
                function,
                kind,
                expected_attach_type,
                target: wanted.target.clone(),
                pin: PinName::program(programs.len() + 1),
            });
        }
        for (name, value) in &load.globals {
            let global = facts.globals.iter().find(|global| global.name == *name).ok_or_else(|| {
                let known = facts.globals.iter().map(|global| global.name.as_str()).collect::<Vec<_>>().join(", ");
                HandError::Misfit(format!("set the global {name}: the object has no such variable; it has {known}"))
            })?;
            if usize::try_from(global.size) != Ok(value.len()) {
                let problem = format!("it has {} bytes, and {} were given", global.size, value.len());
                return Err(HandError::Misfit(format!("set the global {name}: {problem}")));
            }
        }
        let maps = facts.maps.iter().zip(1..);
        let maps = maps.map(|(map, n)| PlannedMap { name: map.name.clone(), pin: PinName::map(n), freeze: false }).collect();
        let planned = PlannedObject {
            image: ImageRecord {
                reference: bytecode.reference.to_string(),
                digest: bytecode.digest,
                object: bytecode.object_digest,
                rule: bytecode.rule.clone(),
                verdict: bytecode.verdict.clone(),
            },
            bytes: bytecode.object.clone(),
            scope: object.scope,
            programs,
            maps,
            globals: load.globals.clone().into_iter().collect(),
            core: facts.core,
        };
        Ok(OwnerPlan { objects: vec![planned], links: Vec::new() })
    }

    fn build_by_hand(&self, record: &mut OwnerRecord, plan: &OwnerPlan) -> Result<(), Cause> {
        self.load_objects(record, plan)?;
        self.complete(record)
    }
}

fn from_file(bounds: &Bounds, path: &Path) -> Result<Object, HandError> {
    let object = if bounds.any_file {
        let failed = |source| HandError::File { doing: "read", path: path.to_owned(), source };
        // Opening a fifo would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        read_capped(file, MAX_OBJECT).map_err(|error| failed(std::io::Error::other(error)))?
    } else {
        read_trusted_file(path, MAX_OBJECT)?
    };
    let digest = hash(&object);
    let bytecode = Bytecode {
        reference: Reference::File { path: path.to_owned() },
        digest,
        object_digest: digest,
        object,
        rule: String::new(),
        verdict: Verdict::Unsigned,
    };
    let scope = if bounds.host_scope { Scope::Host } else { Scope::Container };
    Ok(Object { bytecode, scope, who: format!("the rule of {}", bounds.caller) })
}

fn from_image(sources: &Sources, bounds: &Bounds, image: &ImageSource) -> Result<Object, HandError> {
    let rules = sources.rules(bounds, image)?;
    let bytecode = sources
        .images
        .fetch(&Want {
            reference: &image.reference,
            pull: image.pull,
            rules: &rules,
            keys: &sources.policy.keys,
            registries: &sources.registries,
            policy: sources.policy.id,
            deadline: sources.until,
        })
        .map_err(Cause::from)?;
    let reaches = rules.iter().any(|rule| rule.name == bytecode.rule && rule.scope == Scope::Host);
    let scope = if bounds.host_scope && reaches { Scope::Host } else { Scope::Container };
    let who =
        if bounds.host_scope { format!("the image rule {}", bytecode.rule) } else { format!("the rule of {}", bounds.caller) };
    Ok(Object { bytecode, scope, who })
}
