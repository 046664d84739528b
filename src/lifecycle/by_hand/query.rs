//! Looking.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::inspect::{self, Inspected, ProgramInfo};
use crate::kernel::{Kernel, KernelError};
use crate::lifecycle::by_hand::HandError;
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::by_hand::{Filter, KernelProgram, OurProgram, Program};
use crate::model::record::{Owner, OwnerRecord, Phase, ProgramRecord};
use crate::store::StoreError;
use crate::sys::{Errno, clock};

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    pub(super) fn list_by_hand(&self, filter: &Filter) -> Result<Vec<Program>, HandError> {
        let mut programs = Vec::new();
        let mut ours = BTreeSet::new();
        for record in self.ready()? {
            let found = self.programs_of(&record)?;
            ours.extend(found.iter().map(|program| program.kernel.id));
            programs.extend(found);
        }
        if !filter.ours_only && filter.metadata.is_empty() {
            for (id, info) in inspect::all_programs()? {
                if !ours.contains(&id) {
                    programs.push(Program { kernel: shown(&info), ours: None });
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

    pub(super) fn get_by_hand(&self, id: u32) -> Result<Program, HandError> {
        for record in self.ready()?.into_iter().filter(|record| record.programs.iter().any(|p| p.id == Some(id))) {
            if let Some(program) = self.programs_of(&record)?.into_iter().find(|program| program.kernel.id == id) {
                return Ok(program);
            }
        }
        match inspect::program_by_id(id) {
            Ok(info) => Ok(Program { kernel: shown(&info), ours: None }),
            Err(Errno::NOENT) => Err(HandError::NoKernelProgram(id)),
            Err(source) => Err(KernelError::Info { what: format!("program {id}"), source }.into()),
        }
    }

    fn ready(&self) -> Result<Vec<OwnerRecord>, HandError> {
        let records = self.store.read::<_, StoreError>(|txn| {
            // One that does not decode is gc's business.
            Ok(txn.owners()?.filter_map(Result::ok).filter(|record| record.phase == Phase::Ready).collect())
        });
        Ok(records.map_err(Cause::from)?)
    }

    /// A record's programs; those whose pin has gone since it was read are left out.
    pub(super) fn programs_of(&self, record: &OwnerRecord) -> Result<Vec<Program>, HandError> {
        let directory = self.fs.join(record.no.directory());
        let mut programs = Vec::new();
        for program in &record.programs {
            if let Some(info) = self.kernel.program(&directory, &program.pin)? {
                programs.push(Program { kernel: shown(&info), ours: Some(self.ours(record, program)) });
            }
        }
        Ok(programs)
    }

    fn ours(&self, record: &OwnerRecord, program: &ProgramRecord) -> OurProgram {
        let links = record.links.iter().filter(|link| link.program == program.pin).filter_map(|link| link.id).collect();
        let (reference, globals, metadata) = match &record.owner {
            Owner::Host { loaded, .. } => (loaded.reference.clone(), loaded.globals.clone(), loaded.metadata.clone()),
            _ => {
                let written = record.images.get(program.image).and_then(|image| image.reference.parse().ok());
                (written, BTreeMap::new(), BTreeMap::new())
            }
        };
        let map_pin_path = self.fs.join(record.no.directory());
        OurProgram { function: program.function.clone(), reference, links, globals, map_pin_path, metadata }
    }
}

fn shown(program: &Inspected<ProgramInfo>) -> KernelProgram {
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

/// From nanoseconds since boot to the time of day.
fn loaded_at(since_boot: u64) -> String {
    let ago = clock::boot_seconds().saturating_sub(since_boot / 1_000_000_000);
    clock::utc(clock::unix_seconds().saturating_sub(ago))
}
