//! A token for a container or process that runs already: found by the runtime's state, proved by its start time and its
//! namespaces, and then given what a start would have given it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::kernel::Kernel;
use crate::lifecycle::host::Host;
use crate::lifecycle::runtime_states::RunningContainer;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::container::{Container, ContainerError};
use crate::model::ids::{ContainerId, IdError, Pid};
use crate::model::policy::Engine;
use crate::model::record::Phase;
use crate::model::state::{ContainerStatus, OciState};
use crate::store::StoreError;
use crate::sys::SysError;
use crate::sys::pid::{self, Namespaces, Process, ProcessError};

/// Why a running container or process gets no token. The texts follow "create a token: ".
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// No runtime has a container with this id.
    #[error("no container has an id that begins with {0:?}; if its runtime was called with --root, name that with --state")]
    Unknown(String),
    /// The beginning of an id that several containers have.
    #[error("{1} containers have an id that begins with {0:?}")]
    Several(String, usize),
    /// The runtime's files cannot be read.
    #[error("read the runtime's state")]
    State(#[source] std::io::Error),
    /// Its init has ended, and another process may have its number.
    #[error("container {id} has ended: process {pid} is not its init")]
    Ended {
        /// The container.
        id: String,
        /// The number that the runtime recorded.
        pid: u32,
    },
    /// The runtime recorded no bundle.
    #[error("the runtime of container {0} recorded no bundle, whose config.json decides what the container may get")]
    NoBundle(String),
    /// Its config.json cannot be read.
    #[error("read {}", .0.display())]
    Config(PathBuf, #[source] std::io::Error),
    /// Its config.json is not one.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The id is not valid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The process is one of a container's other processes, or shares its user namespace.
    #[error("process {pid} is in the user namespace of container {id}; name the container with --container")]
    OfContainer {
        /// The process.
        pid: u32,
        /// The container.
        id: String,
    },
    /// A process of something else would be able to use the token.
    #[error(
        "process {other} is in the user namespace of container {id}, but not in its pid namespace: the token would be its, too"
    )]
    SharedUserNamespace {
        /// The container.
        id: String,
        /// The process.
        other: u32,
    },
    /// It already has a record.
    #[error("container {id} has a record already, which only its release changes; see `bpfman-hook inspect {id}`")]
    Recorded {
        /// The container.
        id: String,
    },
    /// A process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// The one container whose id begins with `prefix`.
///
/// # Errors
/// If no container or more than one has such an id.
pub fn by_id(all: Vec<RunningContainer>, prefix: &str) -> Result<RunningContainer, RunningError> {
    let mut found: Vec<_> = all.into_iter().filter(|container| container.id.starts_with(prefix)).collect();
    // A whole id is also the beginning of longer ones.
    if let Some(exact) = found.iter().position(|container| container.id == prefix) {
        return Ok(found.swap_remove(exact));
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(RunningError::Unknown(prefix.to_owned())),
        several => Err(RunningError::Several(prefix.to_owned(), several)),
    }
}

/// The init of a container, held, if it still is the process that the runtime started.
///
/// # Errors
/// If it has ended.
pub fn hold(container: &RunningContainer) -> Result<Process, RunningError> {
    let ended = || RunningError::Ended { id: container.id.clone(), pid: container.pid };
    let process = Pid::new(container.pid).map_err(|_| ended()).and_then(|pid| match pid::open_process(pid) {
        Err(ProcessError::Gone(_)) => Err(ended()),
        other => Ok(other?),
    })?;
    match container.start_time {
        Some(start) if start != process.identity().start_time => Err(ended()),
        _ => Ok(process),
    }
}

/// A running container as a start sees it, but with its own root directory, because its init is past pivot_root.
///
/// # Errors
/// If its init has ended, if its bundle cannot be read, or if a process outside of its pid namespace is in its user
/// namespace.
pub fn container(running: &RunningContainer) -> Result<Container, RunningError> {
    let container = described_container(running)?;
    let process = hold(running)?;
    let namespaces = process.namespaces()?;
    // Without a user namespace of its own, the plan refuses it with the reason.
    if namespaces.user != pid::own_namespaces()?.user
        && let Some(other) = foreign(&namespaces)?
    {
        return Err(RunningError::SharedUserNamespace { id: running.id.clone(), other });
    }
    Ok(container)
}

/// A running container by its init and its config.json.
///
/// # Errors
/// If its init has ended, or if its bundle cannot be read.
pub fn described_container(running: &RunningContainer) -> Result<Container, RunningError> {
    let process = hold(running)?;
    let bundle = running.bundle.clone().ok_or_else(|| RunningError::NoBundle(running.id.clone()))?;
    let path = bundle.join("config.json");
    let config = fs::read_to_string(&path).map_err(|error| RunningError::Config(path, error))?;
    described(running.id.parse()?, process.pid(), bundle, &config, None)
}

/// A process that is in no container, as if it were the init of one with this id. Its rights are what the user namespace
/// gives, which the administrator decides about.
///
/// # Errors
/// If it is in a user namespace of a running container.
pub fn process(number: u32, id: String, containers: &[RunningContainer]) -> Result<Container, RunningError> {
    let process = pid::open_process(Pid::new(number).map_err(RunningError::Id)?)?;
    let namespaces = process.namespaces()?;
    let own = pid::own_namespaces()?;
    for container in containers {
        // One that has ended since has no user namespace that could be shared.
        let Ok(init) = hold(container) else { continue };
        let theirs = init.namespaces()?;
        if theirs.user == namespaces.user && theirs.user != own.user {
            return Err(RunningError::OfContainer { pid: number, id: container.id.clone() });
        }
    }
    let config = r#"{"root":{"path":"/"},"process":{"capabilities":{"bounding":["CAP_BPF","CAP_NET_ADMIN","CAP_PERFMON"],
        "permitted":["CAP_BPF","CAP_NET_ADMIN","CAP_PERFMON"],"effective":["CAP_BPF","CAP_NET_ADMIN","CAP_PERFMON"]}}}"#;
    described(id.parse()?, process.pid(), PathBuf::from("/"), config, Some(Engine::Oci))
}

fn described(
    id: ContainerId,
    pid: Pid,
    bundle: PathBuf,
    config: &str,
    engine: Option<Engine>,
) -> Result<Container, RunningError> {
    let state = OciState { id, status: ContainerStatus::Running, pid: Some(pid), bundle, annotations: Default::default() };
    let container = Container::parse(&state, config, engine)?;
    Ok(Container { rootfs: Path::new("/").to_owned(), ..container })
}

/// A process in this user namespace that is not in this pid namespace, or in one below it.
fn foreign(init: &Namespaces) -> Result<Option<u32>, RunningError> {
    for number in pid::all_processes()? {
        // Processes that end meanwhile, and those of a procfs that hides them from root, are no concern.
        let Ok(process) = pid::open_process(number) else { continue };
        let Ok(namespaces) = process.namespaces() else { continue };
        if namespaces.user == init.user && !process.is_within_pid_namespace(init.pid).unwrap_or(true) {
            return Ok(Some(number.get()));
        }
    }
    Ok(None)
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Fails if a living container with this id has a record: its record is changed by nothing but its release.
    ///
    /// # Errors
    /// [`RunningError::Recorded`], or an error of the store.
    pub fn require_no_record(&self, id: &ContainerId) -> Result<Result<(), RunningError>, Cause> {
        let records = self.store.read::<_, StoreError>(|txn| txn.by_container(id))?;
        for record in records.iter().filter(|record| record.phase != Phase::Failed) {
            if record.owner.init().is_none_or(|init| self.host.is_alive(&init).unwrap_or(true)) {
                return Ok(Err(RunningError::Recorded { id: id.to_string() }));
            }
        }
        Ok(Ok(()))
    }

    /// Removes the records of why a process got nothing: the process was told, and its number may be used again.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn forget_failures(&self, id: &ContainerId) -> Result<(), Cause> {
        self.store.write::<_, StoreError>(|txn| {
            let failed = txn.by_container(id)?.into_iter().filter(|record| record.phase == Phase::Failed);
            failed.map(|record| record.no).try_for_each(|no| txn.delete(no).map(drop))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str) -> RunningContainer {
        RunningContainer { id: id.into(), pid: u32::MAX >> 2, start_time: None, bundle: None, asks: false }
    }

    #[test]
    fn an_id_may_be_shortened_if_it_stays_unique() {
        let all = || vec![named("web"), named("web2"), named("db-1"), named("db-2")];
        assert_eq!(by_id(all(), "web").unwrap().id, "web");
        assert_eq!(by_id(all(), "web2").unwrap().id, "web2");
        assert_eq!(by_id(all(), "db-1").unwrap().id, "db-1");
        assert!(matches!(by_id(all(), "db"), Err(RunningError::Several(_, 2))));
        assert!(matches!(by_id(all(), "x"), Err(RunningError::Unknown(_))));
    }

    #[test]
    fn a_reused_number_is_not_the_init() {
        let me = pid::own_identity().unwrap();
        let mut running = RunningContainer { pid: me.pid.get(), start_time: Some(me.start_time), ..named("web") };
        assert_eq!(hold(&running).unwrap().identity(), me);
        running.start_time = Some(me.start_time + 1);
        assert!(matches!(hold(&running), Err(RunningError::Ended { .. })));
        assert!(matches!(hold(&named("gone")), Err(RunningError::Ended { .. } | RunningError::Process(_))));
        running.start_time = None;
        assert!(matches!(container(&running), Err(RunningError::NoBundle(_))));
    }

    #[test]
    fn a_process_is_described_as_a_container_past_pivot_root() {
        let me = std::process::id();
        let described = process(me, "process-x".to_owned(), &[]).unwrap();
        assert_eq!((described.id.as_str(), described.rootfs.as_path()), ("process-x", Path::new("/")));
        assert_eq!(described.engine, Engine::Oci);
    }
}
