//! Queries of programs, links and maps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::kernel::inspect::{self, Inspected, ProgramInfo};
use crate::kernel::{Kernel, KernelError, pins};
use crate::lifecycle::host::Host;
use crate::lifecycle::manual::ManualError;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::ids::OwnerNo;
use crate::model::manual::{KernelProgram, OurProgram, ProgramFilter, ShownProgram};
use crate::model::record::{LinkRecord, Owner, OwnerRecord, Phase, ProgramRecord};
use crate::store::StoreError;
use crate::sys::{Errno, clock};

/// The programs of every owner that shares a set of maps, by the number of the owner that created the maps.
type MapSets = BTreeMap<OwnerNo, Vec<u32>>;

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    pub(super) fn list_manual(&self, filter: &ProgramFilter) -> Result<Vec<ShownProgram>, ManualError> {
        let mut programs = Vec::new();
        let mut ours = BTreeSet::new();
        let records = self.ready()?;
        let sets = map_sets(&records);
        for record in &records {
            let found = self.shown_programs(record, &sets)?;
            ours.extend(found.iter().map(|program| program.kernel.id));
            programs.extend(found);
        }
        if !filter.ours_only && filter.metadata.is_empty() {
            for (id, info) in inspect::all_programs()? {
                if !ours.contains(&id) {
                    programs.push(ShownProgram { kernel: kernel_program(&info), ours: None });
                }
            }
        }
        programs.retain(|program| {
            filter.program_type.is_none_or(|wanted| program.kernel.program_type == wanted)
                && filter
                    .metadata
                    .iter()
                    .all(|(key, value)| program.ours.as_ref().is_some_and(|ours| ours.metadata.get(key) == Some(value)))
        });
        programs.sort_by_key(|program| program.kernel.id);
        Ok(programs)
    }

    pub(super) fn get_manual(&self, id: u32) -> Result<ShownProgram, ManualError> {
        let records = self.ready()?;
        for record in records.iter().filter(|record| record.programs.iter().any(|p| p.id() == Some(id))) {
            let found = self.shown_programs(record, &map_sets(&records))?;
            if let Some(program) = found.into_iter().find(|program| program.kernel.id == id) {
                return Ok(program);
            }
        }
        match inspect::program_by_id(id) {
            Ok(info) => Ok(ShownProgram { kernel: kernel_program(&info), ours: None }),
            Err(Errno::NOENT) => Err(ManualError::NoKernelProgram(id)),
            Err(source) => Err(KernelError::Info { what: format!("program {id}"), source }.into()),
        }
    }

    fn ready(&self) -> Result<Vec<OwnerRecord>, ManualError> {
        let records = self.store.read::<_, StoreError>(|txn| {
            // gc handles records that do not decode.
            Ok(txn.owners()?.filter_map(Result::ok).filter(|record| record.phase == Phase::Ready).collect())
        });
        Ok(records.map_err(Cause::from)?)
    }

    /// The programs of a record that was just created.
    pub(super) fn programs_of(&self, record: &OwnerRecord) -> Result<Vec<ShownProgram>, ManualError> {
        // Other records are read only if maps are shared.
        let sets = if map_set(record) == record.no { map_sets([record]) } else { map_sets(&self.ready()?) };
        self.shown_programs(record, &sets)
    }

    /// A record's programs, without those whose pin was removed since the record was read.
    fn shown_programs(&self, record: &OwnerRecord, sets: &MapSets) -> Result<Vec<ShownProgram>, ManualError> {
        let directory = self.fs.join(record.no.directory());
        let mut programs = Vec::new();
        for program in &record.programs {
            if let Some(info) = self.kernel.program(&directory, &program.pin)? {
                programs.push(ShownProgram { kernel: kernel_program(&info), ours: Some(self.ours(record, program, sets)) });
            }
        }
        Ok(programs)
    }

    fn ours(&self, record: &OwnerRecord, program: &ProgramRecord, sets: &MapSets) -> OurProgram {
        let directory = self.fs.join(record.no.directory());
        let links = record.links.iter().filter(|link| link.program == program.pin).filter_map(LinkRecord::id).collect();
        let map_used_by = sets.get(&map_set(record)).cloned().unwrap_or_default();
        match &record.owner {
            Owner::Host(host) => OurProgram {
                function: program.function.clone(),
                reference: host.loaded.reference.clone(),
                pull: host.loaded.pull,
                links,
                globals: host.loaded.globals.clone(),
                map_pin_path: directory.join(pins::NAMES),
                map_owner: host.loaded.shares.map(|shares| shares.program),
                map_used_by,
                metadata: host.loaded.metadata.clone(),
            },
            Owner::Container(_) | Owner::Netns(_) => OurProgram {
                function: program.function.clone(),
                reference: record.images.get(program.image).and_then(|image| image.reference.parse().ok()),
                pull: None,
                links,
                globals: BTreeMap::new(),
                map_pin_path: directory,
                map_owner: None,
                map_used_by,
                metadata: BTreeMap::new(),
            },
        }
    }
}

/// The owner that created this owner's maps.
fn map_set(record: &OwnerRecord) -> OwnerNo {
    match &record.owner {
        Owner::Host(host) => host.loaded.shares.map_or(record.no, |shares| shares.set),
        Owner::Container(_) | Owner::Netns(_) => record.no,
    }
}

/// The kernel ids of the programs that share maps with those of `record`, including its own.
pub fn map_users<'r>(records: impl IntoIterator<Item = &'r OwnerRecord>, record: &OwnerRecord) -> Vec<u32> {
    map_sets(records).remove(&map_set(record)).unwrap_or_default()
}

fn map_sets<'r>(records: impl IntoIterator<Item = &'r OwnerRecord>) -> MapSets {
    let mut sets = MapSets::new();
    for record in records {
        sets.entry(map_set(record)).or_default().extend(record.programs.iter().filter_map(ProgramRecord::id));
    }
    sets
}

/// The kernel's information about a program, in the form of the reply.
pub fn kernel_program(program: &Inspected<ProgramInfo>) -> KernelProgram {
    let info = &program.info;
    KernelProgram {
        id: info.id,
        name: info.name.clone(),
        program_type: info.program_type,
        loaded_at: loaded_at(info.loaded),
        tag: info.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
        gpl_compatible: info.gpl_compatible,
        map_ids: info.maps.clone(),
        btf_id: info.btf,
        bytes_xlated: info.xlated_size,
        bytes_jited: info.jited_size,
        bytes_memlock: program.memory.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(u32::MAX),
        verified_insns: info.verified_instructions,
    }
}

/// Converts nanoseconds since boot to the time of day.
fn loaded_at(since_boot: u64) -> String {
    clock::utc(clock::unix_seconds_at(Duration::from_nanos(since_boot)))
}
