//! The commands that show or clean the store: `list`, `get`, `inspect`, `gc`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::program::Selectors;
use crate::cli::{self, Format as Output, GetArgs, GetCommand, InspectArgs, ListCommand, Listing};
use crate::commands::get;
use crate::commands::get::OtherProgram;
use crate::commands::image::cache_commands;
use crate::commands::list;
use crate::commands::list::{ListLook, SeenOwner};
use crate::commands::select;
use crate::commands::tree::TreeDetail;
use crate::image::Cache;
use crate::kernel::inspect::{self, Inspected};
use crate::kernel::{Kernel as _, LinuxKernel};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::container_names::EngineNames;
use crate::lifecycle::health::{Health, OwnerProblem};
use crate::lifecycle::linux_host::LinuxHost;
use crate::lifecycle::manual::kernel_program;
use crate::lifecycle::proxy_account;
use crate::lifecycle::proxy_processes;
use crate::lifecycle::reconcile::{GcFinding, GcMode, GcResult};
use crate::model::ids::{OwnerNo, Pid};
use crate::model::proxy::usage::UsedKind;
use crate::model::record::OwnerRecord;
use crate::output::error::{AS_ROOT, CommandError};
use crate::output::format::{ListFormat, json};
use crate::output::style::Style;
use crate::output::table::Table;
use crate::output::view::{Stats, by_workload};
use crate::output::{Cut, print, print_as_made};
use crate::paths::Paths;
use crate::store::{ReadTxn, Store, StoreError};
use crate::sys::error::chain;
use crate::sys::{Errno, clock, mounts, pid};

/// Timeout for `gc`: it may have much to do, and no container start waits for it.
const GC_DEADLINE: Duration = Duration::from_secs(300);

/// How a listing is shown on this standard output.
fn look(listing: Listing, verbose: bool) -> ListLook {
    let detail = TreeDetail {
        whole: false,
        whole_ids: listing.no_trunc,
        verbose,
        style: Style::of_stdout(),
        now: clock::unix_seconds(),
    };
    ListLook { format: listing.into(), detail }
}

/// The listing of `-o` alone.
fn listing(output: Output) -> Listing {
    Listing { output, ..Listing::default() }
}

impl From<Listing> for ListFormat {
    fn from(listing: Listing) -> Self {
        match (listing.quiet, listing.output) {
            (true, _) => Self::Quiet,
            (false, Output::Table) => Self::Table,
            (false, Output::Json) => Self::Json,
        }
    }
}

impl From<cli::Formatted> for ListFormat {
    fn from(formatted: cli::Formatted) -> Self {
        Self::from(listing(formatted.output))
    }
}

/// `list WHAT`
pub fn list(paths: &Paths, what: ListCommand) -> Result<ExitCode, CommandError> {
    match what {
        ListCommand::Programs(args) => answer_of_records(paths, |store, records, out| {
            let mut names = EngineNames::default();
            let ours = RefCell::new(BTreeSet::new());
            let seen = records.map(|record| {
                let mut record = record?;
                if args.selection.all {
                    ours.borrow_mut().extend(record.programs.iter().filter_map(|program| program.id()));
                    ours.borrow_mut().extend(by_workload(&record, UsedKind::Program).map(|program| program.object.id));
                }
                let health = store.map(|lifecycle| lifecycle.health_of_objects(&record)).unwrap_or_default();
                select::programs(&mut record, &args.selection);
                Ok(seen_as(record, health, &mut names))
            });
            let others = || match args.selection.all {
                true => others(&ours.borrow(), &args.selection.common),
                false => Ok(Vec::new()),
            };
            list::programs(seen, others, look(args.listing, false), args.stats.then_some(ask_kernel), out)
        }),
        ListCommand::Links(args) => answer_of_records(paths, |store, records, out| {
            let mut names = EngineNames::default();
            let seen = records.map(|record| {
                let mut record = record?;
                let health = store.map(|lifecycle| lifecycle.health_of_objects(&record)).unwrap_or_default();
                select::links(&mut record, &args.selection);
                Ok(seen_as(record, health, &mut names))
            });
            list::links(seen, look(args.listing, false), out)
        }),
        ListCommand::Containers(args) => answer_of_records(paths, |store, records, out| {
            let names = RefCell::new(EngineNames::default());
            let see = |record| {
                let health = store.map(|lifecycle| lifecycle.health(&record)).unwrap_or_default();
                proxy_processes::report(&record);
                seen_as(record, health, &mut names.borrow_mut())
            };
            let held = |no| Some(see(store?.store.read(|txn| txn.get(no)).ok()??));
            list::containers(records.map(|record| Ok(see(record?))), held, look(args.listing, args.verbose), out)
        }),
        ListCommand::Images(listing) => cache_commands::list(paths, listing),
    }
}

/// A record with what its owner has lost and its engine's name.
fn seen_as(record: OwnerRecord, health: Health, names: &mut EngineNames) -> SeenOwner {
    let name = record.owner.container().and_then(|container| names.of(container));
    SeenOwner { record, health, name }
}

/// The kernel's statistics about a program; None if it disappeared meanwhile.
fn ask_kernel(id: u32) -> Result<Option<Stats>, Cut> {
    match inspect::program_by_id(id) {
        Ok(Inspected { info, memory }) => {
            let (run_time_ns, run_count) = (info.run_time, info.runs);
            let verified_instructions = info.verified_instructions;
            Ok(Some(Stats { run_time_ns, run_count, memory_bytes: memory, verified_instructions }))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(unasked(id, errno).into()),
    }
}

/// Why the kernel's data about a program is missing.
fn unasked(id: u32, errno: Errno) -> CommandError {
    CommandError::new(format!("query the kernel about program {id}: {errno}; {AS_ROOT}"))
}

/// The kernel's programs that are not `ours` and match the selectors.
fn others(ours: &BTreeSet<u32>, selectors: &Selectors) -> Result<Vec<OtherProgram>, Cut> {
    let found = inspect::all_programs().map_err(CommandError::with_remedy(AS_ROOT))?;
    let others =
        found.iter().filter(|(id, program)| !ours.contains(id) && select::other(*id, program.info.program_type, selectors));
    Ok(others.map(|(_, program)| OtherProgram::new(kernel_program(program))).collect())
}

/// The programs with these ids, in the form of `list programs`. They are looked up by id, so that a load takes no
/// longer with thousands of programs.
pub(super) fn programs(paths: &Paths, ids: &[u32], output: Output) -> Result<String, CommandError> {
    let of_ids = |txn: &ReadTxn<'_>| {
        let found = ids.iter().map(|id| txn.by_program(*id)).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().flatten().map(|record| (record.no, record)).collect())
    };
    let found: BTreeMap<OwnerNo, OwnerRecord> = read(paths, of_ids)?;
    let seen = found.into_values().map(|mut record| {
        record.programs.retain(|program| program.id().is_some_and(|id| ids.contains(&id)));
        Ok(SeenOwner { record, health: Health::default(), name: None })
    });
    let mut text = Vec::new();
    list::programs(seen, || Ok(Vec::new()), look(listing(output), false), None, &mut text)
        .expect("nothing is queried, and writing to a Vec cannot fail");
    Ok(String::from_utf8(text).expect("a listing is UTF-8"))
}

/// One link, in the form of `get link`.
pub(super) fn new_link(paths: &Paths, id: u32, output: Output) -> Result<String, CommandError> {
    let records: Vec<OwnerRecord> = read(paths, |txn| txn.by_link(id))?;
    let gone = || CommandError::new(format!("show link {id}: it has been removed meanwhile"));
    link_text(paths, &records, id, listing(output).into())?.ok_or_else(gone)
}

/// One link, with the kernel's data about its pin.
fn link_text(paths: &Paths, records: &[OwnerRecord], id: u32, format: ListFormat) -> Result<Option<String>, CommandError> {
    let kernel = match get::find_link(records, id) {
        Some((record, link)) => {
            inspect::link(&paths.bpffs().join(record.no.directory()), &link.pin).map_err(CommandError::with_remedy(AS_ROOT))?
        }
        None => None,
    };
    Ok(get::link(records, id, kernel.as_ref().map(|kernel| &kernel.info), format))
}

/// `get WHAT ID`
pub fn get(paths: &Paths, what: GetCommand) -> Result<ExitCode, CommandError> {
    match what {
        GetCommand::Program(GetArgs { id, format }) => with_records(paths, |records| {
            let kernel = match inspect::program_by_id(id) {
                Ok(program) => Some(kernel_program(&program)),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(unasked(id, errno)),
            };
            let unknown = || CommandError::new(format!("get program {id}: it does not exist; see `bpfman-hook list programs`"));
            get::program(records, id, kernel, &paths.bpffs(), format.into()).ok_or_else(unknown)
        }),
        GetCommand::Link(GetArgs { id, format }) => with_records(paths, |records| {
            let text = link_text(paths, records, id, format.into())?;
            text.ok_or_else(|| {
                CommandError::new(format!("get link {id}: bpfman-hook has no such link; see `bpfman-hook list links`"))
            })
        }),
    }
}

/// `inspect CONTAINER`
pub fn inspect(paths: &Paths, args: &InspectArgs) -> Result<ExitCode, CommandError> {
    answer(paths, |store, out| {
        let (seen, containers) = match store {
            Some(lifecycle) => wanted_owners(lifecycle, &args.container)?,
            None => Default::default(),
        };
        let look = look(listing(args.format.output), args.verbose);
        let text = list::inspect(&seen, |seen| containers.contains(&seen.record.no), look).ok_or_else(|| {
            let wanted = &args.container;
            CommandError::new(format!(
                "inspect {wanted:?}: no container with programs or a bpffs has this name, or an id that begins with it; \
                 see `bpfman-hook list containers`"
            ))
        })?;
        Ok(out.write_all(text.as_bytes())?)
    })
}

/// The containers that a user means and the network namespaces that they hold, in the order of their numbers; and the
/// numbers of the containers.
fn wanted_owners(lifecycle: &StoreView<'_>, wanted: &str) -> Result<(Vec<SeenOwner>, BTreeSet<OwnerNo>), CommandError> {
    let mut all = wanted_containers(lifecycle.store, wanted)?;
    let numbers = all.iter().map(|record| record.no).collect();
    let held: BTreeSet<_> = all.iter().flat_map(|record| record.owner.holds().iter().copied()).collect();
    for no in held {
        all.extend(lifecycle.store.read(|txn| txn.get(no)).transpose().and_then(told).transpose()?);
    }
    all.sort_by_key(|record| record.no);
    all.iter().for_each(proxy_processes::report);
    let mut names = EngineNames::default();
    let seen = |record| {
        let health = lifecycle.health(&record);
        seen_as(record, health, &mut names)
    };
    Ok((all.into_iter().map(seen).collect(), numbers))
}

/// The owners of a picture or a report: a container that a user means with the network namespaces that it holds, or
/// all; in the order of their numbers.
pub fn seen_owners(paths: &Paths, wanted: Option<&str>) -> Result<Vec<SeenOwner>, CommandError> {
    let Some(store) = open(paths)? else { return Ok(Vec::new()) };
    let (host, fs) = (LinuxHost::new(Instant::now() + GC_DEADLINE)?, paths.bpffs());
    let lifecycle = Lifecycle { kernel: &LinuxKernel, host: &host, store: &store, fs: &fs, deadline: 0 };
    if let Some(wanted) = wanted {
        return Ok(wanted_owners(&lifecycle, wanted)?.0);
    }
    let mut names = EngineNames::default();
    let seen = |record: OwnerRecord| {
        let health = lifecycle.health(&record);
        seen_as(record, health, &mut names)
    };
    store.records().filter_map(told).collect::<Result<Vec<_>, _>>().map(|records| records.into_iter().map(seen).collect())
}

/// The records of the containers that a user means: with this id, with an id that begins with the text, or with this
/// name.
pub(super) fn wanted_containers(store: &Store, wanted: &str) -> Result<Vec<OwnerRecord>, CommandError> {
    let mut found = Vec::new();
    for no in store.read(|txn| txn.containers_with(wanted))? {
        found.extend(store.read(|txn| txn.get(no)).transpose().and_then(told).transpose()?);
    }
    let is_exact = |record: &OwnerRecord| record.owner.container().is_some_and(|container| container.id.as_str() == wanted);
    if found.iter().any(is_exact) {
        found.retain(is_exact);
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let mut names = EngineNames::default();
    for record in store.records().filter_map(told) {
        let record = record?;
        let Some(container) = record.owner.container() else { continue };
        let name = names.of(container);
        let in_namespace = || Some(format!("{}/{}", container.workload.namespace.as_ref()?, name.as_ref()?));
        if name.as_deref() == Some(wanted) || in_namespace().as_deref() == Some(wanted) {
            found.push(record);
        }
    }
    Ok(found)
}

/// The record of the one running container that a user means, by its name, its id or the beginning of it.
pub(super) fn of_container(paths: &Paths, wanted: &str) -> Result<OwnerRecord, CommandError> {
    let records = match open(paths)? {
        Some(store) => wanted_containers(&store, wanted)?,
        None => Vec::new(),
    };
    let running = records.into_iter().filter(|record| record.owner.container().is_some_and(|c| c.init.is_some()));
    let mut found: Vec<_> = running.collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(CommandError::new(format!(
            "find the container {wanted:?}: bpfman-hook has no record of one with this name, or whose id begins with it; use --pid"
        ))),
        (Some(_), others) => {
            let problem = format!("{} containers have an id with this prefix", others + 1);
            Err(CommandError::new(format!("find the container {wanted:?}: {problem}")))
        }
    }
}

/// The record of the container whose init is this process, or has its mount namespace; None if there is none, or if the
/// caller may not read the store.
pub(super) fn of_process(paths: &Paths, number: u32) -> Option<OwnerRecord> {
    let mount_namespace = |number: u32| {
        let process = pid::open_process(Pid::new(number).ok()?).ok()?;
        Some(process.namespaces().ok()?.mount)
    };
    let own = mount_namespace(number);
    let store = open(paths).ok()??;
    store.records().filter_map(Result::ok).find(|record| {
        let init = record.owner.container().and_then(|container| container.init).map(|init| init.pid.get());
        init.is_some_and(|init| init == number || own.is_some() && mount_namespace(init) == own)
    })
}

/// `gc [--dry-run]`
pub fn gc(paths: &Paths, args: cli::GcArgs) -> Result<ExitCode, CommandError> {
    if !args.dry_run
        && let Err(error) = Cache::new(&paths.cache).remove_unfinished()
    {
        tracing::warn!(error = %chain(&error), "remove leftovers of killed pulls from the image cache");
    }
    if !args.dry_run
        && let Err(error) = proxy_account::remove_dead(paths)
    {
        tracing::warn!(error = %chain(&error), "remove the accounts of killed proxies");
    }
    let mut findings = collect(paths, if args.dry_run { GcMode::Tell } else { GcMode::Release })?;
    let failed = findings.iter().any(|finding| finding.result.has_failed());
    if args.quiet {
        findings.retain(|finding| finding.result.has_failed());
        if findings.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let printed = print(&match ListFormat::from(args.format) {
        ListFormat::Json => json(&findings),
        ListFormat::Table | ListFormat::Quiet if findings.is_empty() => "nothing to release\n".to_owned(),
        ListFormat::Table | ListFormat::Quiet => {
            let mut table = Table::new(&["OWNER", "WHAT", "WHY", "RESULT"]);
            for finding in findings {
                table.row([finding.no.to_string(), finding.what, finding.why, finding.result.to_string()]);
            }
            table.to_string()
        }
    })?;
    Ok(if failed { ExitCode::FAILURE } else { printed })
}

fn collect(paths: &Paths, mode: GcMode) -> Result<Vec<GcFinding>, CommandError> {
    let boot = clock::boot_id()?;
    let (kernel, fs) = (LinuxKernel, paths.bpffs());
    if let Err(error) = mounts::require_sight_of_bpffs(&fs) {
        // Before the first start there is no store, so nothing that this mount namespace needs to see.
        return if paths.stores().exists() { Err(error.into()) } else { Ok(Vec::new()) };
    }
    let store = match Store::open_existing(&paths.stores(), &boot).map_err(unreadable)? {
        Some(store) => store,
        None if kernel.directories(&fs)?.is_empty() => return Ok(Vec::new()),
        // The store was lost or removed, and what its records named is still pinned. In a new, empty store it has no
        // owner.
        None => Store::open(&paths.stores(), &boot)?,
    };
    let host = LinuxHost::new(Instant::now() + GC_DEADLINE)?;
    let deadline = clock::boot_seconds() + GC_DEADLINE.as_secs();
    let lifecycle = Lifecycle { kernel: &kernel, host: &host, store: &store, fs: &fs, deadline };
    // Lost objects of living owners are reported with a remedy, not released.
    let lost = Mutex::new(Vec::new());
    let is_settled = |record: &OwnerRecord| {
        let living = lifecycle.is_living(record);
        if living && mode == GcMode::Release {
            proxy_processes::report(record);
        }
        let is_policed = record.owner.container().is_some_and(|container| container.police.is_some());
        let record = std::slice::from_ref(record);
        let problems = if living { Health::of_kernel_objects(record).problems(record) } else { Vec::new() };
        if !problems.is_empty() {
            lost.lock().unwrap_or_else(PoisonError::into_inner).extend(problems);
        }
        // gc reads the counters of a policed container.
        living && !is_policed
    };
    let mut findings = lifecycle.collect(mode, is_settled)?;
    let mut lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    lost.sort_by_key(|problem: &OwnerProblem| problem.no);
    for OwnerProblem { no, what, why, remedy } in lost {
        // The owner may have been released together with its last holder.
        if store.read(|txn| txn.has(no))? {
            findings.push(GcFinding { no, what, why: why.to_owned(), result: GcResult::Left(remedy) });
        }
    }
    if mode == GcMode::Release {
        // A process may serve a container that has no record yet: it runs, and keeps its file.
        proxy_processes::forget_unrecorded(|id| {
            store.read::<_, StoreError>(|txn| txn.by_container(id)).map_or(true, |found| !found.is_empty())
        });
    }
    Ok(findings)
}

/// The store of this boot, for reading.
type StoreView<'a> = Lifecycle<'a, LinuxKernel, LinuxHost>;

/// Prints what `show` writes while the store is read; None if there is no store.
fn answer(
    paths: &Paths,
    show: impl FnOnce(Option<&StoreView<'_>>, &mut dyn Write) -> Result<(), Cut>,
) -> Result<ExitCode, CommandError> {
    let fs = paths.bpffs();
    let opened = match open(paths)? {
        Some(store) => Some((store, LinuxHost::new(Instant::now() + GC_DEADLINE)?)),
        None => None,
    };
    let look = opened.as_ref();
    let look = look.map(|(store, host)| Lifecycle { kernel: &LinuxKernel, host, store, fs: &fs, deadline: 0 });
    print_as_made(|out| show(look.as_ref(), out))
}

/// Prints what `show` writes while the records are read. Records that do not decode are reported on stderr.
fn answer_of_records(
    paths: &Paths,
    show: impl FnOnce(Option<&StoreView<'_>>, &mut dyn Iterator<Item = Result<OwnerRecord, Cut>>, &mut dyn Write) -> Result<(), Cut>,
) -> Result<ExitCode, CommandError> {
    answer(paths, |look, out| match look {
        Some(lifecycle) => lifecycle
            .store
            .with_records(|records| show(look, &mut records.filter_map(told).map(|record| record.map_err(Cut::Unknown)), out)),
        None => show(None, &mut std::iter::empty(), out),
    })
}

/// Filters a record that was read; one that does not decode is reported on stderr.
fn told(record: Result<OwnerRecord, StoreError>) -> Option<Result<OwnerRecord, CommandError>> {
    match record {
        Ok(record) => Some(Ok(record)),
        Err(error @ StoreError::Record { .. }) => {
            CommandError::from(error).print();
            None
        }
        Err(error) => Some(Err(error.into())),
    }
}

/// Prints the output of a closure over all records; without a store there are none.
fn with_records(
    paths: &Paths,
    show: impl FnOnce(&[OwnerRecord]) -> Result<String, CommandError>,
) -> Result<ExitCode, CommandError> {
    let records = match open(paths)? {
        Some(store) => store.records().filter_map(told).collect::<Result<Vec<_>, _>>()?,
        None => Vec::new(),
    };
    print(&show(&records)?)
}

fn open(paths: &Paths) -> Result<Option<Store>, CommandError> {
    Store::open_existing(&paths.stores(), &clock::boot_id()?).map_err(unreadable)
}

/// Why the store cannot be opened, with the hint that only root may.
fn unreadable(error: StoreError) -> CommandError {
    if pid::own_uid() == 0 { error.into() } else { CommandError::with_remedy(AS_ROOT)(error) }
}

/// Reads the store, if there is one.
fn read<T: Default>(paths: &Paths, of: impl FnOnce(&ReadTxn<'_>) -> Result<T, StoreError>) -> Result<T, CommandError> {
    Ok(match open(paths)? {
        Some(store) => store.read(of)?,
        None => T::default(),
    })
}
