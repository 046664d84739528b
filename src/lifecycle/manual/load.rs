//! Loading, unloading, and pulling images into the cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::image::{Images as _, InUse, MAX_OBJECT, Want, hash};
use crate::kernel::Kernel;
use crate::lifecycle::acquire::fill;
use crate::lifecycle::host::Host;
use crate::lifecycle::manual::room::over_room;
use crate::lifecycle::manual::{ManualError, Named, Sources, forget_unfinished};
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::admission::check_global;
use crate::model::attach_point::Scope;
use crate::model::bytecode::{Bytecode, ImageVerdict};
use crate::model::credentials::UserEnvironment;
use crate::model::manual::{
    APPLICATION, Attach, AttachNew, CallerRights, ImageSource, LoadMetadata, LoadTask, MapShares, ObjectSource, ShownProgram,
};
use crate::model::object::ObjectFacts;
use crate::model::plan::{self, ManualInputs, OwnerPlan, SharedMaps};
use crate::model::policy::{ContainerLimits, ImageRule};
use crate::model::record::{HostOwner, LinkState, Owner, OwnerRecord, Phase, ProgramRecord, ProgramState};
use crate::model::reference::Reference;
use crate::paths::Paths;
use crate::store::StoreError;
use crate::sys::cpus;
use crate::sys::error::chain;
use crate::sys::fsutil::{read_capped, read_trusted_file};

/// An object and the scope of its programs.
struct ScopedObject {
    bytecode: Bytecode,
    scope: Scope,
    /// The rule that sets the scope, for messages.
    who: String,
    /// The image rule that allowed the object; None for a file.
    rule: Option<ImageRule>,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    pub(super) fn load_manual(
        &self,
        paths: &Paths,
        bounds: &CallerRights,
        load: &LoadTask,
        fetch_until: Instant,
    ) -> Result<Vec<ShownProgram>, ManualError> {
        let object = match &load.source {
            ObjectSource::File(path) => from_file(bounds, path)?,
            ObjectSource::Image(image) => self.of_image(&Sources::open(paths, fetch_until)?, bounds, image)?,
        };
        if let Some(rule) = object.rule.as_ref().filter(|_| bounds.own_only) {
            let reference = &object.bytecode.reference;
            load.globals.keys().try_for_each(|name| check_global(reference, rule, name)).map_err(Cause::from)?;
        }
        let facts = self.kernel.describe(&object.bytecode.object)?;
        let (shared, shares) = match load.map_owner {
            Some(program) => self.shared_maps(bounds, program).map(|(shared, shares)| (Some(shared), Some(shares)))?,
            None => (None, None),
        };
        let plan = plan::manual(&ManualInputs {
            bytecode: &object.bytecode,
            facts: &facts,
            scope: object.scope,
            signing: self.signing(&facts, object.rule.as_ref().map(|rule| rule.kernel_signed).unwrap_or_default()),
            who: &object.who,
            load,
            shared: shared.as_ref(),
        })
        .map_err(Cause::from)?;
        let application = load.metadata.get(APPLICATION).cloned();
        let loaded = LoadMetadata {
            caller: bounds.caller.clone(),
            reference: Some(object.bytecode.reference.clone()),
            pull: match &load.source {
                ObjectSource::Image(image) => Some(image.pull),
                ObjectSource::File(_) => None,
            },
            globals: plan.objects.iter().flat_map(|object| object.globals.iter().cloned()).collect(),
            metadata: load.metadata.clone(),
            shares,
            map_memory: own_maps(&facts, load, &plan, cpus::possible()),
            by_client: bounds.store.is_some(),
        };
        let mut record = self.blank(Owner::Host(HostOwner { application, loaded }));
        fill(&mut record, &plan);
        self.check_deadline()?;
        let over = self
            .store
            .write::<_, StoreError>(|txn| {
                // In one transaction with the record, so that two loads cannot both use the last room below a limit.
                if let Some(limits) = &bounds.limits
                    && let Some(over) = over_limits(txn.view().owners()?.filter_map(Result::ok), &record, bounds, limits)
                {
                    return Ok(Some(over));
                }
                record.no = self.free_number(txn)?;
                if let Some(over) = over_room(&txn.view(), &record, bounds)? {
                    return Ok(Some(over));
                }
                txn.put(&record)?;
                Ok(None)
            })
            .map_err(Cause::from)?;
        if let Some(over) = over {
            return Err(over);
        }
        if let Err(cause) = self.build_manual(&mut record, &plan) {
            if let Err(second) = self.fail(&record, &chain(&cause)) {
                tracing::error!(owner = record.no.0, error = %chain(&second), "cannot undo a failed load");
            }
            return Err(cause.into());
        }
        if let Err(error) = self.attach_new(bounds, load, &record) {
            for id in record.programs.iter().filter_map(ProgramRecord::id) {
                if let Err(second) = self.unload_manual(bounds, id) {
                    tracing::error!(program = id, error = %chain(&second), "cannot undo a load whose programs could not be attached");
                }
            }
            return Err(error);
        }
        // The client would not know about programs that were loaded but not reported.
        self.programs_of(&record).inspect_err(|_| {
            if let Err(second) = self.release(&record) {
                tracing::error!(owner = record.no.0, error = %chain(&second), "cannot undo a load that could not be reported");
            }
        })
    }

    /// Attaches the programs for which the load request has places.
    fn attach_new(&self, bounds: &CallerRights, load: &LoadTask, record: &OwnerRecord) -> Result<(), ManualError> {
        for AttachNew { program, place } in &load.attach {
            let id = record.programs.get(*program).and_then(ProgramRecord::id).ok_or(Cause::RecordGone { no: record.no })?;
            self.attach_manual(bounds, &Attach { program: id, place: place.clone(), metadata: BTreeMap::new() })?;
        }
        Ok(())
    }

    pub(super) fn unload_manual(&self, bounds: &CallerRights, program: u32) -> Result<(), ManualError> {
        // Unloading a program that is already being released succeeds, whether another process finishes the release or
        // this one does after a kill.
        let leaving = self.find(Named::Program(program))?.is_some_and(|record| record.phase == Phase::Releasing);
        let Some(record) = self.settle(bounds, Named::Program(program))? else {
            return if leaving { Ok(()) } else { Err(ManualError::NoProgram(program)) };
        };
        let again = || {
            self.check_deadline()?;
            self.unload_manual(bounds, program)
        };
        if record.programs.len() == 1 {
            return match self.release(&record)? {
                Released::Gone | Released::Absent => Ok(()),
                Released::Busy(pid) | Released::Alive(pid) => {
                    Err(Cause::Busy { pid, what: super::programs_of(&record) }.into())
                }
                Released::Unrecorded(error) => Err(Cause::Store(error).into()),
                Released::Partly(source) => Err(ManualError::Left { owner: record.owner.to_string(), source }),
                // A program was attached or detached in the meantime.
                Released::Changed => again(),
                Released::Held(_) => Err(Cause::RecordGone { no: record.no }.into()),
            };
        }
        // One of several programs that were loaded together: its links and its pin are removed; the other programs and
        // the maps stay.
        let Some(taken) = self.take(record.no, |kept| begin_unload(kept, program))? else { return again() };
        match self.unpin_unfinished(&taken) {
            Ok(()) => Ok(self.change(taken.no, forget_unfinished)?),
            Err(error) => {
                // A retry must find by id what is still there.
                self.change(taken.no, cancel_unload)?;
                Err(error.into())
            }
        }
    }

    pub(super) fn pull_manual(
        &self,
        paths: &Paths,
        bounds: &CallerRights,
        image: &ImageSource,
        fetch_until: Instant,
    ) -> Result<(), ManualError> {
        self.of_image(&Sources::open(paths, fetch_until)?, bounds, image).map(drop)
    }

    /// The maps that a load uses instead of its own, and the owner that created them. Each owner pins the maps that it
    /// uses, so that they live as long as one of the owners does, in whatever order the owners are removed.
    fn shared_maps(&self, bounds: &CallerRights, program: u32) -> Result<(SharedMaps, MapShares), ManualError> {
        let found = self.find(Named::Program(program))?.filter(|record| record.phase == Phase::Ready);
        let record = found.ok_or(ManualError::NoProgram(program))?;
        let loaded = super::of_host(bounds, Named::Program(program), &record)?;
        let shared = SharedMaps {
            program,
            directory: self.fs.join(record.no.directory()),
            maps: record.maps.iter().map(|map| (map.name.clone(), map.pin.clone())).collect(),
        };
        Ok((shared, MapShares { program, set: loaded.shares.map_or(record.no, |shares| shares.set) }))
    }

    fn of_image(&self, sources: &Sources, bounds: &CallerRights, image: &ImageSource) -> Result<ScopedObject, ManualError> {
        let rules = sources.rules(bounds, image)?;
        let with_login =
            image.login.as_ref().map(|login| sources.registries.clone().by(UserEnvironment::with_login(login.clone())));
        let bytecode = sources
            .images
            .fetch(&Want {
                reference: &image.reference,
                pull: image.pull,
                rules: &rules,
                keys: &sources.policy.keys,
                registries: with_login.as_ref().unwrap_or(&sources.registries),
                policy: sources.policy.id,
                deadline: sources.until,
                tenant: if bounds.store.is_some() { &bounds.caller } else { "" },
                in_use: InUse(&|| self.images_in_use()),
            })
            .map_err(Cause::from)?;
        let rule = rules.iter().find(|rule| rule.name == bytecode.rule).map(|rule| (*rule).clone());
        let reaches = rule.as_ref().is_some_and(|rule| rule.scope == Scope::Host);
        let scope = if bounds.host_scope && reaches { Scope::Host } else { Scope::Container };
        let who = if bounds.host_scope {
            format!("the image rule {}", bytecode.rule)
        } else {
            format!("the rule of {}", bounds.caller)
        };
        Ok(ScopedObject { bytecode, scope, who, rule })
    }

    fn build_manual(&self, record: &mut OwnerRecord, plan: &OwnerPlan) -> Result<(), Cause> {
        self.load_objects(record, plan)?;
        self.complete(record, None)
    }
}

/// Marks one of several programs as being unloaded, and its links as being detached; false if there is no such program,
/// or no other one.
fn begin_unload(record: &mut OwnerRecord, id: u32) -> bool {
    let several = record.programs.len() > 1;
    let Some(program) = record.programs.iter_mut().find(|program| program.id() == Some(id)).filter(|_| several) else {
        return false;
    };
    program.state = ProgramState::Unloading(id);
    for link in record.links.iter_mut().filter(|link| link.program == program.pin) {
        if let LinkState::Attached(id) = link.state {
            link.state = LinkState::Detaching(id);
        }
    }
    true
}

/// The reverse of [`begin_unload`].
fn cancel_unload(record: &mut OwnerRecord) {
    for program in &mut record.programs {
        if let ProgramState::Unloading(id) = program.state {
            program.state = ProgramState::Loaded(id);
        }
    }
    for link in &mut record.links {
        if let LinkState::Detaching(id) = link.state {
            link.state = LinkState::Attached(id);
        }
    }
}

/// Bytes of the maps that a load creates, without shared maps.
fn own_maps(facts: &ObjectFacts, load: &LoadTask, plan: &OwnerPlan, cpus: u64) -> u64 {
    let planned = plan.objects.iter().flat_map(|object| &object.maps);
    let own = planned.zip(&facts.maps).filter(|(map, _)| map.reuse.is_none());
    own.fold(0, |sum, (_, map)| plan::sized(&load.map_sizes, map).memory(cpus).saturating_add(sum))
}

/// The limit that a new load of a caller would exceed, together with the caller's existing loads.
fn over_limits(
    records: impl Iterator<Item = OwnerRecord>,
    new: &OwnerRecord,
    bounds: &CallerRights,
    limits: &ContainerLimits,
) -> Option<ManualError> {
    let (mut programs, mut memory) = (0_usize, 0_u64);
    for record in records.chain([new.clone()]) {
        match &record.owner {
            Owner::Host(host) if host.loaded.caller == bounds.caller && record.phase != Phase::Failed => {
                programs += record.programs.len();
                memory = memory.saturating_add(host.loaded.map_memory);
            }
            _ => {}
        }
    }
    if u32::try_from(programs).map_or(true, |programs| programs > limits.programs) {
        return Some(ManualError::TooManyPrograms { caller: bounds.caller.clone(), programs, limit: limits.programs });
    }
    let over = memory > limits.map_memory;
    over.then(|| ManualError::TooMuchMemory { caller: bounds.caller.clone(), memory, limit: limits.map_memory })
}

fn from_file(bounds: &CallerRights, path: &Path) -> Result<ScopedObject, ManualError> {
    let object = if bounds.any_file {
        let failed = |source| ManualError::File { doing: "read", path: path.to_owned(), source };
        // Opening a FIFO would block until a writer opens it.
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
        verdict: ImageVerdict::Unsigned,
    };
    let scope = if bounds.host_scope { Scope::Host } else { Scope::Container };
    Ok(ScopedObject { bytecode, scope, who: format!("the rule of {}", bounds.caller), rule: None })
}
