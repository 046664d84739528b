//! Programs that are loaded and attached without a container: one record for each load, owned by the host. As for
//! containers, the record names every pin before the pin is made. The state of a link or program says that it is being
//! attached, detached or unloaded, and the record's actor is the process that does it. Only one process works on a
//! record at a time: another process that finds such a record waits, or removes the unfinished objects if the actor is
//! dead.

mod attach;
mod load;
mod query;
mod room;

pub use crate::lifecycle::manual::query::{kernel_program, map_users};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::image::{ImageError, LinuxImages};
use crate::kernel::{Kernel, KernelError};
use crate::lifecycle::host::{Host, HostError};
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle, ReleaseErrors, registries_file};
use crate::model::ids::OwnerNo;
use crate::model::manual::{CallerRights, Failure, FailureCode, ImageSource, LoadMetadata, ManualReply, ManualTask};
use crate::model::plan::PlanError;
use crate::model::policy::{ImageRule, rule_remedy};
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::model::registries::RegistryConfig;
use crate::paths::Paths;
use crate::store::{ReadTxn, StoreError};
use crate::sys::error::chain;

/// The object that a request names, by its kernel id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Program(u32),
    Link(u32),
}

/// How long to wait for another process that works on the same record.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Errors of manual operations, in addition to those of the container lifecycle.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// An error of the lifecycle.
    #[error(transparent)]
    Cause(Box<Cause>),
    /// The policy or the registry configuration cannot be loaded.
    #[error("{0}")]
    Config(String),
    /// No program loaded through bpfman-hook has this id.
    #[error("bpfman-hook has no program with the id {0}")]
    NoProgram(u32),
    /// The kernel has no program with this id.
    #[error("no program has the id {0}")]
    NoKernelProgram(u32),
    /// No link made through bpfman-hook has this id.
    #[error("bpfman-hook has no link with the id {0}")]
    NoLink(u32),
    /// The object belongs to a container or a pod.
    #[error("{what} {id} belongs to {owner}: it is removed together with it, and cannot be changed manually")]
    NotByHand {
        /// `program` or `link`.
        what: &'static str,
        /// Its id.
        id: u32,
        /// The object's owner.
        owner: String,
    },
    /// Another client loaded the object.
    #[error("{what} {id} was loaded by {by}, and {caller} may change only its own")]
    NotYours {
        /// `program` or `link`.
        what: &'static str,
        /// Its id.
        id: u32,
        /// The client that loaded it.
        by: String,
        /// The client that sent the request.
        caller: String,
    },
    /// The caller would exceed its limit of programs.
    #[error(
        "load for {caller}: it would have {programs} programs, and the limit is {limit}; unload some, or raise programs in its rule or under [limits]"
    )]
    TooManyPrograms {
        /// The client that sent the request.
        caller: String,
        /// Including the existing ones.
        programs: usize,
        /// The limit.
        limit: u32,
    },
    /// The caller would exceed its limit of links.
    #[error(
        "attach for {caller}: its programs would have {links} links, and the limit is {limit}; detach some, or raise links in its rule or under [limits]"
    )]
    TooManyLinks {
        /// The client that sent the request.
        caller: String,
        /// Including the existing ones.
        links: usize,
        /// The limit.
        limit: u32,
    },
    /// The caller would exceed its limit of map memory.
    #[error(
        "load for {caller}: its maps would take {memory} bytes, and the limit is {limit}; unload some, or raise map-memory in its rule or under [limits]"
    )]
    TooMuchMemory {
        /// The client that sent the request.
        caller: String,
        /// In bytes, including the existing maps.
        memory: u64,
        /// The limit.
        limit: u64,
    },
    /// The record of one load would exceed its limit.
    #[error(
        "keep a record of this load: it takes {size} bytes, and the limit is {limit}; use less metadata, smaller globals or fewer links, or raise store-per-load under [limits]"
    )]
    LargeRecord {
        /// Size of the record in bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The records of all loads of a client would exceed their limit.
    #[error(
        "keep a record for {caller}: all its loads would take {size} bytes, and the limit is {limit}; unload some, or raise store in its rule or store-per-client under [limits]"
    )]
    FullOfCaller {
        /// The client that sent the request.
        caller: String,
        /// In bytes, including the new records.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The records of all loads of all clients would exceed their limit.
    #[error(
        "keep a record for {caller}: the loads of all clients would take {size} bytes, and the limit is {limit}; unload some, or raise store-clients under [limits]"
    )]
    FullOfClients {
        /// The client that sent the request.
        caller: String,
        /// In bytes, including the new records.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A return probe with an offset.
    #[error("attach to the return of {function}: a return probe has no offset; omit it")]
    ReturnOffset {
        /// The function.
        function: String,
    },
    /// No image rule matches the image.
    #[error("use {0}: no [[image]] rule of the policy applies to it; {remedy}", remedy = rule_remedy(.0))]
    NoRule(String),
    /// A file operation failed.
    #[error("{doing} {}", .path.display())]
    File {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A file that users other than root could have written.
    #[error(transparent)]
    Trust(#[from] crate::sys::fsutil::TrustError),
    /// The interface does not exist.
    #[error("attach to {iface}: there is no such interface; the interfaces are {known}")]
    NoInterface {
        /// The requested name.
        iface: String,
        /// The existing interfaces.
        known: String,
    },
    /// Some objects of the owner are still in the kernel.
    #[error("remove programs of {owner}: some of them are left; gc will retry")]
    Left {
        /// The owner.
        owner: String,
        /// The steps that failed.
        #[source]
        source: ReleaseErrors,
    },
    /// An attach point without something that its kind needs.
    #[error("attach {function}: a {kind} program needs {remedy}")]
    Incomplete {
        /// The function.
        function: String,
        /// The kind.
        kind: &'static str,
        /// What to add.
        remedy: String,
    },
    /// The program was loaded as another type.
    #[error("attach program {id} as {asked}: it was loaded as {is}")]
    OtherKind {
        /// The program's id.
        id: u32,
        /// The requested type.
        asked: &'static str,
        /// The type that it was loaded as.
        is: &'static str,
    },
}

impl ManualError {
    /// Whether another XDP program occupies the interface.
    fn is_taken(&self) -> bool {
        matches!(self, Self::Cause(cause) if matches!(**cause, Cause::Kernel(KernelError::XdpTaken { .. })))
    }

    fn code(&self) -> FailureCode {
        match self {
            Self::NoProgram(_) | Self::NoKernelProgram(_) | Self::NoLink(_) | Self::NoInterface { .. } => FailureCode::NotFound,
            Self::NotByHand { .. } | Self::Config(_) | Self::Left { .. } => FailureCode::FailedPrecondition,
            Self::NotYours { .. } | Self::NoRule(_) | Self::Trust(_) => FailureCode::PermissionDenied,
            Self::TooManyPrograms { .. }
            | Self::TooManyLinks { .. }
            | Self::TooMuchMemory { .. }
            | Self::LargeRecord { .. }
            | Self::FullOfCaller { .. }
            | Self::FullOfClients { .. } => FailureCode::ResourceExhausted,
            Self::OtherKind { .. } | Self::ReturnOffset { .. } | Self::Incomplete { .. } => FailureCode::InvalidArgument,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => FailureCode::NotFound,
            Self::File { .. } => FailureCode::InvalidArgument,
            Self::Cause(cause) => cause_code(cause),
        }
    }
}

fn cause_code(cause: &Cause) -> FailureCode {
    match cause {
        Cause::Refused(_) => FailureCode::PermissionDenied,
        Cause::Plan(PlanError::HostScopeManual { .. }) => FailureCode::PermissionDenied,
        Cause::Plan(PlanError::NotShared { .. }) => FailureCode::FailedPrecondition,
        Cause::Plan(_) => FailureCode::InvalidArgument,
        Cause::Image(ImageError::Timeout { .. }) => FailureCode::DeadlineExceeded,
        Cause::Image(_) | Cause::Kernel(_) | Cause::Host(HostError::Kernel(_)) => FailureCode::FailedPrecondition,
        Cause::Busy { .. } => FailureCode::Unavailable,
        Cause::Deadline => FailureCode::DeadlineExceeded,
        _ => FailureCode::Internal,
    }
}

/// Policy, registry configuration and image store: what is needed to fetch and verify images.
#[derive(Debug)]
pub struct Sources {
    policy: LoadedPolicy,
    registries: RegistryConfig,
    images: LinuxImages,
    until: Instant,
}

impl Sources {
    /// Loads the files of the installation.
    ///
    /// # Errors
    /// If one of them is invalid.
    pub fn open(paths: &Paths, until: Instant) -> Result<Self, ManualError> {
        let wrong = |error: &(dyn std::error::Error + 'static)| ManualError::Config(chain(error));
        let policy = policy_files::load(paths).map_err(|e| wrong(&e))?;
        let registries = registries_file::load(paths).map_err(|e| wrong(&e))?;
        let images = LinuxImages::new(&paths.cache, std::path::Path::new("/")).configured_below(paths.root());
        Ok(Self { policy, registries, images, until })
    }

    fn rules(&self, bounds: &CallerRights, wanted: &ImageSource) -> Result<Vec<&ImageRule>, ManualError> {
        let usable = |rule: &&ImageRule| bounds.images.as_ref().is_none_or(|names| names.contains(&rule.name));
        let speaks = |rule: &&ImageRule| rule.repository.matches(&wanted.reference);
        let rules: Vec<_> = self.policy.policy.images.iter().filter(usable).filter(speaks).collect();
        if rules.is_empty() { Err(ManualError::NoRule(wanted.reference.to_string())) } else { Ok(rules) }
    }
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Performs a manual task.
    pub fn manual(&self, paths: &Paths, bounds: &CallerRights, task: &ManualTask, fetch_until: Instant) -> ManualReply {
        let done = match task {
            ManualTask::Load(load) => self.load_manual(paths, bounds, load, fetch_until).map(ManualReply::Programs),
            ManualTask::Unload { program } => self.unload_manual(bounds, *program).map(|()| ManualReply::Done),
            ManualTask::Attach(attach) => self.attach_manual(bounds, attach).map(|link| ManualReply::Attached { link }),
            ManualTask::Detach { link } => self.detach_manual(bounds, *link).map(|()| ManualReply::Done),
            ManualTask::List(filter) => self.list_manual(filter).map(ManualReply::Programs),
            ManualTask::Get { program } => self.get_manual(*program).map(|program| ManualReply::Program(Box::new(program))),
            ManualTask::Pull(image) => self.pull_manual(paths, bounds, image, fetch_until).map(|()| ManualReply::Done),
        };
        done.unwrap_or_else(|error| ManualReply::Failed(Failure { code: error.code(), message: chain(&error) }))
    }

    /// The record that has the named object, once no process works on it. What a dead process left unfinished is
    /// removed first.
    ///
    /// # Errors
    /// If the record belongs to a container, or to another client than the caller.
    fn settle(&self, bounds: &CallerRights, named: Named) -> Result<Option<OwnerRecord>, ManualError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(record) = self.find(named)? else {
                self.remove_unfinished_of_dead()?;
                return Ok(None);
            };
            of_host(bounds, named, &record)?;
            if record.phase == Phase::Ready && !record.has_unfinished() {
                return Ok(Some(record));
            }
            self.check_deadline()?;
            let worker = record.actor.process;
            if worker != self.host.me() && self.host.is_alive(&worker).map_err(Cause::from)? {
                if Instant::now() >= until {
                    return Err(Cause::Busy { pid: worker.pid, what: programs_of(&record) }.into());
                }
                std::thread::sleep(POLL);
                continue;
            }
            if record.phase == Phase::Ready {
                self.remove_unfinished(&record)?;
                continue;
            }
            match self.release(&record)? {
                Released::Partly(source) => return Err(ManualError::Left { owner: record.owner.to_string(), source }),
                Released::Unrecorded(error) => return Err(Cause::Store(error).into()),
                _ => {}
            }
        }
    }

    /// Changes a record on which no process works, and makes this process its actor. None if another process took the
    /// record first, or if `change` found that the object is gone: the caller then looks again.
    fn take(&self, no: OwnerNo, change: impl FnOnce(&mut OwnerRecord) -> bool) -> Result<Option<OwnerRecord>, ManualError> {
        self.take_unless(no, |_, _| Ok(None), change)
    }

    /// Like [`take`](Self::take), unless `refuse` refuses the change. It sees the store and the changed record in the
    /// transaction that writes the record, so that two processes cannot both use the last room below a limit.
    fn take_unless(
        &self,
        no: OwnerNo,
        refuse: impl FnOnce(&ReadTxn<'_>, &OwnerRecord) -> Result<Option<ManualError>, StoreError>,
        change: impl FnOnce(&mut OwnerRecord) -> bool,
    ) -> Result<Option<OwnerRecord>, ManualError> {
        let me = self.actor();
        let taken = self.store.write::<_, StoreError>(|txn| match txn.get(no)? {
            Some(mut kept) if kept.phase == Phase::Ready && !kept.has_unfinished() => {
                if !change(&mut kept) {
                    return Ok(Ok(None));
                }
                kept.actor = me;
                kept.changed = self.host.now();
                if let Some(refusal) = refuse(&txn.view(), &kept)? {
                    return Ok(Err(refusal));
                }
                txn.put(&kept)?;
                Ok(Ok(Some(kept)))
            }
            _ => Ok(Ok(None)),
        });
        taken.map_err(Cause::from)?
    }

    /// Removes what dead processes were loading, attaching or removing; true if there was something. An object that is
    /// being removed is not found by its id, so "there is no such link" is only true once it is removed.
    fn remove_unfinished_of_dead(&self) -> Result<bool, ManualError> {
        let abandoned = |record: &OwnerRecord| match (&record.owner, record.phase) {
            (Owner::Host(_), Phase::Pending | Phase::Releasing) => true,
            (Owner::Host(_), Phase::Ready) => record.has_unfinished(),
            _ => false,
        };
        let records = self
            .store
            .read::<_, StoreError>(|txn| Ok(txn.owners()?.filter_map(Result::ok).filter(abandoned).collect::<Vec<_>>()));
        let mut finished = false;
        for record in records.map_err(Cause::from)? {
            if record.actor.process == self.host.me() || self.host.is_alive(&record.actor.process).map_err(Cause::from)? {
                continue;
            }
            finished |= match record.phase {
                Phase::Ready => self.remove_unfinished(&record)?,
                _ => matches!(self.release(&record)?, Released::Gone),
            };
        }
        Ok(finished)
    }

    fn find(&self, named: Named) -> Result<Option<OwnerRecord>, ManualError> {
        let found = self.store.read::<_, StoreError>(|txn| match named {
            Named::Program(id) => txn.by_program(id),
            Named::Link(id) => txn.by_link(id),
        });
        Ok(found.map_err(Cause::from)?.into_iter().find(|record| record.phase != Phase::Failed))
    }

    /// Removes links that a dead process was attaching or detaching, and programs that it was unloading; false if
    /// another process came first. The record is taken before a pin is touched: otherwise, of two processes that look
    /// at the same moment, the slower could remove the link that the faster one makes under the same name.
    pub(super) fn remove_unfinished(&self, record: &OwnerRecord) -> Result<bool, Cause> {
        let me = self.actor();
        let mine = self.store.write::<_, StoreError>(|txn| match txn.get(record.no)? {
            Some(mut kept) if kept.actor == record.actor && kept.has_unfinished() => {
                kept.actor = me;
                txn.put(&kept)?;
                Ok(Some(kept))
            }
            _ => Ok(None),
        })?;
        let Some(record) = mine else { return Ok(false) };
        self.unpin_unfinished(&record)?;
        self.change(record.no, forget_unfinished)?;
        Ok(true)
    }

    /// Removes the unfinished objects of a record from the kernel, links first.
    fn unpin_unfinished(&self, record: &OwnerRecord) -> Result<(), KernelError> {
        let directory = self.fs.join(record.no.directory());
        for link in record.links.iter().filter(|link| link.state.is_unfinished()) {
            self.kernel.detach(&directory, link)?;
        }
        for program in record.programs.iter().filter(|program| program.state.is_unfinished()) {
            self.kernel.unpin(&directory, &program.pin)?;
        }
        Ok(())
    }

    /// Changes a record that this process has taken.
    fn change(&self, no: OwnerNo, change: impl FnOnce(&mut OwnerRecord)) -> Result<(), Cause> {
        let me = self.actor();
        let there = self.store.write::<_, StoreError>(|txn| match txn.get(no)? {
            Some(mut kept) if kept.phase == Phase::Ready && kept.actor == me => {
                change(&mut kept);
                kept.changed = self.host.now();
                txn.put(&kept)?;
                Ok(true)
            }
            _ => Ok(false),
        });
        if there? { Ok(()) } else { Err(Cause::RecordGone { no }) }
    }
}

/// Removes the unfinished objects from a record, once they are gone from the kernel.
fn forget_unfinished(record: &mut OwnerRecord) {
    record.links.retain(|link| !link.state.is_unfinished());
    record.programs.retain(|program| !program.state.is_unfinished());
}

/// What another process is working on, in messages.
fn programs_of(record: &OwnerRecord) -> String {
    format!("programs of {}", record.owner)
}

/// The load metadata of a record that belongs to the host.
///
/// # Errors
/// If the record belongs to a container, or if the caller may change only its own loads and this is another client's.
fn of_host<'r>(bounds: &CallerRights, named: Named, record: &'r OwnerRecord) -> Result<&'r LoadMetadata, ManualError> {
    let (what, id) = match named {
        Named::Program(id) => ("program", id),
        Named::Link(id) => ("link", id),
    };
    let Owner::Host(host) = &record.owner else {
        return Err(ManualError::NotByHand { what, id, owner: record.owner.to_string() });
    };
    let by = &host.loaded.caller;
    if bounds.own_only && *by != bounds.caller {
        return Err(ManualError::NotYours { what, id, by: by.clone(), caller: bounds.caller.clone() });
    }
    Ok(&host.loaded)
}

impl From<Cause> for ManualError {
    fn from(cause: Cause) -> Self {
        Self::Cause(Box::new(cause))
    }
}

impl From<KernelError> for ManualError {
    fn from(error: KernelError) -> Self {
        Cause::from(error).into()
    }
}
