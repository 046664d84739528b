//! The commands for people that look at the store or clean it: `list`, `get`, `inspect`, `gc`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::program::{Selection, Selectors};
use crate::cli::{self, Format as Output, Get, GetArgs, InspectArgs, List, Listing};
use crate::commands::get;
use crate::commands::get::OtherProgram;
use crate::commands::list;
use crate::commands::list::Format;
use crate::commands::list_json;
use crate::commands::select;
use crate::image::Cache;
use crate::kernel::inspect::{self, Inspected};
use crate::kernel::{Kernel as _, LinuxKernel};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::by_hand::kernel_program;
use crate::lifecycle::health::{Health, Trouble};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::reconcile::{Depth, Finding, Mode, read_all};
use crate::model::ids::OwnerNo;
use crate::model::record::OwnerRecord;
use crate::output::table::Table;
use crate::output::view::Stats;
use crate::output::{fail, print};
use crate::paths::Paths;
use crate::store::{Damaged, ReadTxn, Store, StoreError};
use crate::sys::error::chain;
use crate::sys::{Errno, clock, mounts, pid};

/// How long `gc` may take: it may have much to do, and nobody's start waits for it.
const GC_DEADLINE: Duration = Duration::from_secs(300);

impl From<Listing> for Format {
    fn from(listing: Listing) -> Self {
        match (listing.quiet, listing.output) {
            (true, _) => Self::Quiet,
            (false, Output::Table) => Self::Table,
            (false, Output::Json) => Self::Json,
        }
    }
}

impl From<cli::Formatted> for Format {
    fn from(formatted: cli::Formatted) -> Self {
        Self::from(Listing { output: formatted.output, quiet: false })
    }
}

/// `list WHAT`
pub fn list(paths: &Paths, what: List) -> ExitCode {
    match what {
        List::Programs(args) => {
            let format = args.listing.into();
            if format == Format::Json && !args.stats && args.selection == Selection::default() {
                return bulk(paths, |txn| list_json::programs(txn, &list_json::KernelLookup::RUNNING));
            }
            with_records(paths, |records, health| {
                let others = others(records, &args.selection)?;
                let mut selected = records.to_vec();
                select::programs(&mut selected, &args.selection);
                let stats = args.stats.then(|| ask_kernel(&selected)).transpose()?;
                Ok(list::programs(&selected, &others, format, &stats, health))
            })
        }
        List::Links(args) => {
            let format = args.listing.into();
            if format == Format::Json && args.selection == Selectors::default() {
                return bulk(paths, |txn| list_json::links(txn, &list_json::KernelLookup::RUNNING));
            }
            with_records(paths, |records, health| {
                let mut selected = records.to_vec();
                select::links(&mut selected, &args.selection);
                Ok(list::links(&selected, format, health))
            })
        }
        List::Containers(listing) => {
            with_records(paths, |records, health| Ok(list::containers(records, listing.into(), health)))
        }
        List::Images(listing) => crate::commands::image::cache_commands::list(paths, listing),
    }
}

/// What the kernel says about the programs of these records; those that are gone meanwhile are left out.
fn ask_kernel(records: &[OwnerRecord]) -> Result<BTreeMap<u32, Stats>, String> {
    let mut stats = BTreeMap::new();
    for id in records.iter().flat_map(|record| &record.programs).filter_map(|program| program.id) {
        match inspect::program_by_id(id) {
            Ok(Inspected { info, memory }) => {
                let (run_time_ns, run_count) = (info.run_time, info.runs);
                let verified_instructions = info.verified_instructions;
                stats.insert(id, Stats { run_time_ns, run_count, memory_bytes: memory, verified_instructions });
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(format!("ask the kernel about program {id}: {errno}; run it as root")),
        }
    }
    Ok(stats)
}

/// Programs of the kernel that no record names, as far as they are chosen.
fn others(records: &[OwnerRecord], selection: &Selection) -> Result<Vec<OtherProgram>, String> {
    if !selection.all {
        return Ok(Vec::new());
    }
    let ours: BTreeSet<u32> = records.iter().flat_map(|r| &r.programs).filter_map(|program| program.id).collect();
    let found = inspect::all_programs().map_err(|e| format!("{}; run it as root", chain(&e)))?;
    let others = found
        .iter()
        .filter(|(id, program)| !ours.contains(id) && select::other(*id, program.info.program_type, &selection.common));
    Ok(others.map(|(_, program)| OtherProgram::new(kernel_program(program))).collect())
}

/// The programs with these ids, as `list programs` has them. They are found by their ids: a load takes no longer beside thousands.
pub(super) fn programs(paths: &Paths, ids: &[u32], output: Output) -> Result<String, String> {
    let of_ids = |txn: &ReadTxn<'_>| {
        let found = ids.iter().map(|id| txn.by_program(*id)).collect::<Result<Vec<_>, _>>()?;
        Ok((found.into_iter().flatten().map(|record| (record.no, record)).collect(), Damaged::new()))
    };
    read(paths, of_ids).map(|found: BTreeMap<OwnerNo, OwnerRecord>| {
        let mut found: Vec<_> = found.into_values().collect();
        for record in &mut found {
            record.programs.retain(|program| program.id.is_some_and(|id| ids.contains(&id)));
        }
        list::programs(&found, &[], Listing { output, quiet: false }.into(), &None, &Health::default())
    })
}

/// One link, as `get link` has it.
pub(super) fn new_link(paths: &Paths, id: u32, output: Output) -> Result<String, String> {
    read(paths, |txn: &ReadTxn<'_>| Ok((txn.by_link(id)?, Damaged::new()))).and_then(|records| {
        let gone = || format!("link {id} was removed again meanwhile");
        link_text(paths, &records, id, Listing { output, quiet: false }.into())?.ok_or_else(gone)
    })
}

/// One link with what the kernel says of its pin.
fn link_text(paths: &Paths, records: &[OwnerRecord], id: u32, format: Format) -> Result<Option<String>, String> {
    let kernel = match get::find_link(records, id) {
        Some((record, link)) => inspect::link(&paths.bpffs().join(record.no.directory()), &link.pin)
            .map_err(|e| format!("{}; run it as root", chain(&e)))?,
        None => None,
    };
    Ok(get::link(records, id, kernel.as_ref().map(|kernel| &kernel.info), format))
}

/// `get WHAT ID`
pub fn get(paths: &Paths, what: Get) -> ExitCode {
    match what {
        Get::Program(GetArgs { id, format }) => with_records(paths, |records, _| {
            let kernel = match inspect::program_by_id(id) {
                Ok(program) => Some(kernel_program(&program)),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(format!("ask the kernel about program {id}: {errno}; run it as root")),
            };
            get::program(records, id, kernel, &paths.bpffs(), format.into())
                .ok_or_else(|| format!("no program has the id {id}; see `bpfman-hook list programs`"))
        }),
        Get::Link(GetArgs { id, format }) => with_records(paths, |records, _| {
            link_text(paths, records, id, format.into())?
                .ok_or_else(|| format!("link {id} is not one of ours; see `bpfman-hook list links`"))
        }),
    }
}

/// `inspect CONTAINER`
pub fn inspect(paths: &Paths, args: &InspectArgs) -> ExitCode {
    with_records(paths, |records, health| {
        list::inspect(records, &args.container, args.format.into(), health).ok_or_else(|| {
            format!("no container of ours has an id that begins with {:?}; see `bpfman-hook list containers`", args.container)
        })
    })
}

/// `gc [--dry-run]`
pub fn gc(paths: &Paths, args: cli::GcArgs) -> ExitCode {
    if !args.dry_run
        && let Err(error) = Cache::new(&paths.cache).remove_unfinished()
    {
        tracing::warn!(error = %chain(&error), "remove what killed pulls left in the image cache");
    }
    match collect(paths, if args.dry_run { Mode::Tell } else { Mode::Release }) {
        Ok(findings) => {
            let failed = findings.iter().any(|finding| finding.failed);
            let printed = print(&match Format::from(args.format) {
                Format::Json => list::json(&findings),
                Format::Table | Format::Quiet if findings.is_empty() => "nothing to release\n".to_owned(),
                Format::Table | Format::Quiet => {
                    let mut table = Table::new(&["OWNER", "WHAT", "WHY", "RESULT"]);
                    for finding in findings {
                        table.row([finding.no.to_string(), finding.what, finding.why, finding.result]);
                    }
                    table.to_string()
                }
            });
            if failed { ExitCode::FAILURE } else { printed }
        }
        Err(sentence) => fail(&sentence),
    }
}

fn collect(paths: &Paths, mode: Mode) -> Result<Vec<Finding>, String> {
    let boot = clock::boot_id().map_err(|e| chain(&e))?;
    let (kernel, fs) = (LinuxKernel, paths.bpffs());
    if let Err(error) = mounts::require_sight_of_bpffs(&fs) {
        // Before the first start there is no store, and so nothing that this mount namespace would have to see.
        return if paths.stores().exists() { Err(chain(&error)) } else { Ok(Vec::new()) };
    }
    let store = match Store::open_existing(&paths.stores(), &boot).map_err(|e| unreadable(&e))? {
        Some(store) => store,
        None if kernel.directories(&fs).map_err(|e| chain(&e))?.is_empty() => return Ok(Vec::new()),
        // The store was lost or removed, and what its records named is still pinned. A new, empty one says that nobody has it.
        None => Store::open(&paths.stores(), &boot).map_err(|e| chain(&e))?,
    };
    let host = LinuxHost::new(Instant::now() + GC_DEADLINE).map_err(|e| chain(&e))?;
    let deadline = clock::boot_seconds() + GC_DEADLINE.as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline };
    let mut findings = lifecycle.reconcile(Depth::All, mode).map_err(|e| chain(&e))?;
    // What is lost of the living is theirs: it is told, with what to do.
    let (records, _) = read_all(&store).map_err(|e| chain(&e))?;
    let lost = lifecycle.health(&records).troubles(&records).into_iter();
    findings.extend(lost.map(|Trouble { no, what, why, remedy }| Finding {
        no,
        what,
        why: why.to_owned(),
        result: format!("left: {remedy}"),
        failed: false,
    }));
    Ok(findings)
}

/// Prints what a closure makes of all records and what is known of their health; no store is no records.
fn with_records(paths: &Paths, show: impl FnOnce(&[OwnerRecord], &Health) -> Result<String, String>) -> ExitCode {
    let shown = read(paths, |txn: &ReadTxn<'_>| txn.every()).and_then(|records: Vec<OwnerRecord>| {
        let health = health(paths, &records)?;
        show(&records, &health)
    });
    shown.map_or_else(|sentence| fail(&sentence), |text| print(&text))
}

/// Which of these owners are dead, and which of their objects are lost.
fn health(paths: &Paths, records: &[OwnerRecord]) -> Result<Health, String> {
    let boot = clock::boot_id().map_err(|e| chain(&e))?;
    let Some(store) = Store::open_existing(&paths.stores(), &boot).map_err(|e| unreadable(&e))? else {
        return Ok(Health::default());
    };
    let host = LinuxHost::new(Instant::now() + GC_DEADLINE).map_err(|e| chain(&e))?;
    let fs = paths.bpffs();
    Ok(Lifecycle { kernel: &LinuxKernel, host: &host, store: &store, fs: &fs, deadline: 0 }.health(records))
}

/// Why the store cannot be opened, and that it is root's.
fn unreadable(error: &StoreError) -> String {
    let remedy = if pid::own_uid() == 0 { "" } else { "; run it as root" };
    format!("{}{remedy}", chain(error))
}

/// Prints what is made of all records while they are read.
fn bulk(paths: &Paths, made: impl FnOnce(&ReadTxn<'_>) -> Result<(String, Damaged), StoreError>) -> ExitCode {
    match read(paths, made) {
        Ok(text) if text.is_empty() => print("[]\n"),
        Ok(text) => print(&text),
        Err(sentence) => fail(&sentence),
    }
}

/// Reads the store, if there is one, and says which records are damaged.
fn read<T: Default>(paths: &Paths, of: impl FnOnce(&ReadTxn<'_>) -> Result<(T, Damaged), StoreError>) -> Result<T, String> {
    let boot = clock::boot_id().map_err(|e| chain(&e))?;
    let Some(store) = Store::open_existing(&paths.stores(), &boot).map_err(|e| unreadable(&e))? else {
        return Ok(T::default());
    };
    let (found, damaged) = store.read(of).map_err(|e| chain(&e))?;
    for (_, error) in damaged {
        eprintln!("bpfman-hook: {}", chain(&error));
    }
    Ok(found)
}
