//! What is loaded and attached by hand: one record for each load, owned by the host. The record names every pin before it is made,
//! as for containers; a link that is being made or removed, and a program that is being unloaded alone, is one without an id, and the
//! actor of the record is the one at work on it. One at a time: whoever finds such a record waits, or finishes it if the actor is dead.

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
use crate::model::policy::ImageRule;
use crate::model::record::{Owner, OwnerRecord, Phase};
use crate::model::registries::RegistryConfig;
use crate::paths::Paths;
use crate::store::{ReadTxn, StoreError};
use crate::sys::error::chain;

/// What a request names, by the kernel's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Program(u32),
    Link(u32),
}

/// How long to wait for another process that works on the same record.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Why something by hand was not done, where the lifecycle of containers has no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// The lifecycle's.
    #[error(transparent)]
    Cause(Box<Cause>),
    /// Policy, registries.
    #[error("{0}")]
    Config(String),
    /// No program of ours has this id.
    #[error("no program of ours has the id {0}")]
    NoProgram(u32),
    /// No program at all has this id.
    #[error("no program has the id {0}")]
    NoKernelProgram(u32),
    /// No link of ours has this id.
    #[error("no link of ours has the id {0}")]
    NoLink(u32),
    /// It is a container's.
    #[error("{what} {id} belongs to {owner}: it goes when that goes, and nothing is done with it by hand")]
    NotByHand {
        /// `program` or `link`.
        what: &'static str,
        /// Its id.
        id: u32,
        /// Whose it is.
        owner: String,
    },
    /// Another client loaded it.
    #[error("{what} {id} was loaded by {by}, and {caller} may change only its own")]
    NotYours {
        /// `program` or `link`.
        what: &'static str,
        /// Its id.
        id: u32,
        /// Who loaded it.
        by: String,
        /// Who asks.
        caller: String,
    },
    /// More programs than the caller may have.
    #[error(
        "load for {caller}: it would have {programs} programs, and may have {limit}; unload some, or raise programs in its rule or under [limits]"
    )]
    TooManyPrograms {
        /// Who asks.
        caller: String,
        /// With those that it has.
        programs: usize,
        /// The limit.
        limit: u32,
    },
    /// More links than the caller may have.
    #[error(
        "attach for {caller}: its programs would have {links} links, and may have {limit}; detach some, or raise links in its rule or under [limits]"
    )]
    TooManyLinks {
        /// Who asks.
        caller: String,
        /// With those that there are.
        links: usize,
        /// The limit.
        limit: u32,
    },
    /// More map memory than the caller may have.
    #[error(
        "load for {caller}: its maps would take {memory} bytes, and may take {limit}; unload some, or raise map-memory in its rule or under [limits]"
    )]
    TooMuchMemory {
        /// Who asks.
        caller: String,
        /// With what it has.
        memory: u64,
        /// The limit.
        limit: u64,
    },
    /// More to keep of one load than may be.
    #[error(
        "keep a record of this load: it takes {size} bytes, and may take {limit}; give it less metadata, smaller globals or fewer links, or raise store-per-load under [limits]"
    )]
    LargeRecord {
        /// Bytes of the record.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// More to keep of all loads of a client than may be.
    #[error(
        "keep a record for {caller}: all its loads would take {size} bytes, and may take {limit}; unload some, or raise store in its rule or store-per-client under [limits]"
    )]
    FullOfCaller {
        /// Who asks.
        caller: String,
        /// Bytes with the new ones.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// More to keep of all loads of all clients than may be.
    #[error(
        "keep a record for {caller}: the loads of all clients would take {size} bytes, and may take {limit}; unload some, or raise store-clients under [limits]"
    )]
    FullOfClients {
        /// Who asks.
        caller: String,
        /// Bytes with the new ones.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A return in the middle of a function.
    #[error("attach to the return of {function}: a return has no offset; leave it out")]
    ReturnOffset {
        /// The function.
        function: String,
    },
    /// No image rule speaks of the image.
    #[error("use {0}: no [[image]] rule of the policy speaks of it")]
    NoRule(String),
    /// A file.
    #[error("{doing} {}", .path.display())]
    File {
        /// What we were doing.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that others could have written.
    #[error(transparent)]
    Trust(#[from] crate::sys::fsutil::TrustError),
    /// There is no such interface.
    #[error("attach to {iface}: there is no such interface; there are {known}")]
    NoInterface {
        /// What was asked for.
        iface: String,
        /// What there is.
        known: String,
    },
    /// Some of it is still in the kernel.
    #[error("remove {owner}: some of it is left, which gc tries again")]
    Left {
        /// Whose record it is.
        owner: String,
        /// What failed.
        #[source]
        source: ReleaseErrors,
    },
    /// The program is of another kind.
    #[error("attach program {id} as {asked}: it was loaded as {is}")]
    OtherKind {
        /// Its id.
        id: u32,
        /// What was asked.
        asked: &'static str,
        /// What it is.
        is: &'static str,
    },
}

impl ManualError {
    /// Whether another XDP program is in the way.
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
            Self::OtherKind { .. } | Self::ReturnOffset { .. } => FailureCode::InvalidArgument,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => FailureCode::NotFound,
            Self::File { .. } => FailureCode::InvalidArgument,
            Self::Cause(cause) => cause_code(cause),
        }
    }
}

fn cause_code(cause: &Cause) -> FailureCode {
    match cause {
        Cause::Refused(_) => FailureCode::PermissionDenied,
        Cause::Plan(PlanError::HostScopeByHand { .. }) => FailureCode::PermissionDenied,
        Cause::Plan(PlanError::NotShared { .. }) => FailureCode::FailedPrecondition,
        Cause::Plan(_) => FailureCode::InvalidArgument,
        Cause::Image(ImageError::Timeout { .. }) => FailureCode::DeadlineExceeded,
        Cause::Image(_) | Cause::Kernel(_) | Cause::Host(HostError::Kernel(_)) => FailureCode::FailedPrecondition,
        Cause::Busy { .. } => FailureCode::Unavailable,
        Cause::Deadline => FailureCode::DeadlineExceeded,
        _ => FailureCode::Internal,
    }
}

/// With these, images can be had and judged.
#[derive(Debug)]
pub struct Sources {
    policy: LoadedPolicy,
    registries: RegistryConfig,
    images: LinuxImages,
    until: Instant,
}

impl Sources {
    /// As the installation's files say.
    ///
    /// # Errors
    /// Where one of them is wrong.
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
    /// Does what is asked by hand.
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

    /// The record that has what is named, once nobody works on it, with what a dead process left of a link put right.
    ///
    /// # Errors
    /// Where the record is not of the host, or not the caller's.
    fn settle(&self, bounds: &CallerRights, named: Named) -> Result<Option<OwnerRecord>, ManualError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(record) = self.find(named)? else {
                self.finish_dead()?;
                return Ok(None);
            };
            of_host(bounds, named, &record)?;
            if record.phase == Phase::Ready && !unfinished(&record) {
                return Ok(Some(record));
            }
            self.check_deadline()?;
            let worker = record.actor.process;
            if worker != self.host.me() && self.host.is_alive(&worker).map_err(Cause::from)? {
                if Instant::now() >= until {
                    return Err(Cause::Busy { pid: worker.pid, what: owner_name(&record) }.into());
                }
                std::thread::sleep(POLL);
                continue;
            }
            if record.phase == Phase::Ready {
                self.drop_unfinished(&record)?;
                continue;
            }
            match self.release(&record)? {
                Released::Partly(source) => return Err(ManualError::Left { owner: owner_name(&record), source }),
                Released::Unrecorded(error) => return Err(Cause::Store(error).into()),
                _ => {}
            }
        }
    }

    /// Changes a record on which nobody works, and makes this process the one that does. None where somebody else was quicker, or
    /// `change` found that what it wants is gone: then the caller looks again.
    fn take(&self, no: OwnerNo, change: impl FnOnce(&mut OwnerRecord) -> bool) -> Result<Option<OwnerRecord>, ManualError> {
        self.take_unless(no, |_, _| Ok(None), change)
    }

    /// The same, unless `refuse` says no to it. It looks at the store and at the changed record in the transaction that keeps it, so that no two
    /// processes find the same room below a limit.
    fn take_unless(
        &self,
        no: OwnerNo,
        refuse: impl FnOnce(&ReadTxn<'_>, &OwnerRecord) -> Result<Option<ManualError>, StoreError>,
        change: impl FnOnce(&mut OwnerRecord) -> bool,
    ) -> Result<Option<OwnerRecord>, ManualError> {
        let me = self.actor();
        let taken = self.store.write::<_, StoreError>(|txn| match txn.get(no)? {
            Some(mut kept) if kept.phase == Phase::Ready && !unfinished(&kept) => {
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

    /// Removes whatever dead processes were making or removing; true where there was something. A link that one was removing has lost
    /// its id: to say that there is no such link is only true once it is gone.
    fn finish_dead(&self) -> Result<bool, ManualError> {
        let abandoned = |record: &OwnerRecord| {
            let begun = matches!(record.phase, Phase::Pending | Phase::Releasing);
            matches!(record.owner, Owner::Host { .. }) && (begun || record.phase == Phase::Ready && unfinished(record))
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
                Phase::Ready => self.drop_unfinished(&record)?,
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

    /// Removes links that a process which is gone was making or removing, and programs that it was unloading; false where somebody
    /// else came first. The record is taken before a pin is touched: one who looked at the same moment could otherwise remove the
    /// link that the quicker one makes under the same name.
    pub(super) fn drop_unfinished(&self, record: &OwnerRecord) -> Result<bool, Cause> {
        let me = self.actor();
        let mine = self.store.write::<_, StoreError>(|txn| match txn.get(record.no)? {
            Some(mut kept) if kept.phase == Phase::Ready && kept.actor == record.actor && unfinished(&kept) => {
                kept.actor = me;
                txn.put(&kept)?;
                Ok(Some(kept))
            }
            _ => Ok(None),
        })?;
        let Some(record) = mine else { return Ok(false) };
        self.unpin_nameless(&record)?;
        self.change(record.no, drop_nameless)?;
        Ok(true)
    }

    /// Removes from the kernel what is unfinished in a record, links first.
    fn unpin_nameless(&self, record: &OwnerRecord) -> Result<(), KernelError> {
        let directory = self.fs.join(record.no.directory());
        for link in record.links.iter().filter(|link| link.id.is_none()) {
            self.kernel.detach(&directory, link)?;
        }
        for program in record.programs.iter().filter(|program| program.id.is_none()) {
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

/// Whether something in a Ready record is being made or removed.
pub(super) fn unfinished(record: &OwnerRecord) -> bool {
    record.links.iter().any(|link| link.id.is_none()) || record.programs.iter().any(|program| program.id.is_none())
}

/// Takes out of a record what is unfinished, once it is gone from the kernel.
fn drop_nameless(record: &mut OwnerRecord) {
    record.links.retain(|link| link.id.is_some());
    record.programs.retain(|program| program.id.is_some());
}

/// An owner in messages.
fn owner_name(record: &OwnerRecord) -> String {
    match &record.owner {
        Owner::Container { id, .. } => format!("container {id}"),
        Owner::Netns { .. } => "the network of a pod".to_owned(),
        Owner::Host { application: Some(application), .. } => format!("application {application}"),
        Owner::Host { .. } => format!("record {} of the host", record.no),
    }
}

/// A record as what a person loaded.
///
/// # Errors
/// Where it is a container's, or another caller's than the one who may change only its own.
fn of_host<'r>(bounds: &CallerRights, named: Named, record: &'r OwnerRecord) -> Result<&'r LoadMetadata, ManualError> {
    let (what, id) = match named {
        Named::Program(id) => ("program", id),
        Named::Link(id) => ("link", id),
    };
    let Owner::Host { loaded, .. } = &record.owner else {
        return Err(ManualError::NotByHand { what, id, owner: owner_name(record) });
    };
    if bounds.own_only && loaded.caller != bounds.caller {
        return Err(ManualError::NotYours { what, id, by: loaded.caller.clone(), caller: bounds.caller.clone() });
    }
    Ok(loaded)
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
