//! Why a lifecycle call did not do what it was asked.

use std::path::PathBuf;

use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::lifecycle::host::HostError;
use crate::model::container::MissingRights;
use crate::model::ids::{ContainerId, OwnerNo, Pid};
use crate::model::metrics_table::Reason;
use crate::model::plan::PlanError;
use crate::model::policy::Refusal;
use crate::store::StoreError;
use crate::sys::error::chain;

/// The reasons, by the layer that found them.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Policy does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The container lacks a capability or a seccomp rule that the request needs.
    #[error(transparent)]
    Missing(#[from] MissingRights),
    /// The request does not fit its objects or its container.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The image could not be had, or not be trusted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A process, namespace, cgroup or mount is not as it has to be.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The store did not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a dead container of the same id left could not be removed.
    #[error("remove what a dead container of this id left")]
    Leftovers(#[source] ReleaseErrors),
    /// Another container has this id.
    #[error("container id {id} belongs to a living container in bundle {}; choose another id", bundle.display())]
    IdTaken {
        /// The id.
        id: ContainerId,
        /// The other container's bundle.
        bundle: PathBuf,
    },
    /// createRuntime ran before for this init, with another request.
    #[error(
        "container {id} already has its programs, from a different request; the annotations of a running container cannot change"
    )]
    OtherRequest {
        /// The id.
        id: ContainerId,
    },
    /// Another process of ours works on this owner.
    #[error("process {pid} is at work on {what}; try again when it is done")]
    Busy {
        /// The process.
        pid: Pid,
        /// The owner.
        what: String,
    },
    /// The pod's network namespace has other programs at this place.
    #[error(
        "attach xdp to {iface}: containers {holders} of the pod have another XDP request there, and one interface takes only one XDP program"
    )]
    NetnsTaken {
        /// The interface.
        iface: String,
        /// Who made it: the owner's holders.
        holders: String,
    },
    /// A map that the pod's programs share is shown to another container of the pod in another way.
    #[error(
        "show map {map} as {asked}: the pod's programs share it, and container {holder} of the pod is shown it as {held}; ask for it in \
         the same way in both, as maps={map}:{held}"
    )]
    SharedMapAccess {
        /// The map.
        map: String,
        /// `ro` or `rw`.
        asked: &'static str,
        /// The other container.
        holder: String,
        /// `ro` or `rw`.
        held: &'static str,
    },
    /// The pod's programs were loaded from another object, which lacks a map.
    #[error(
        "share map {map} of {image} with the pod's network programs: they were loaded from another version of the image, which has no \
         such map; start the pod anew"
    )]
    NoPodMap {
        /// The map.
        map: String,
        /// The image.
        image: String,
    },
    /// The record vanished while its owner was being built, or a program of it attached.
    #[error("record {no} was removed by another process meanwhile; what was done for it was undone")]
    RecordGone {
        /// The record.
        no: OwnerNo,
    },
    /// The pod's network namespace has programs of a dead start, and they cannot be removed.
    #[error(
        "attach the pod's network programs: owner {no}, which a dead process left there, cannot be removed; see `bpfman-hook gc`"
    )]
    NetnsLeft {
        /// The owner.
        no: OwnerNo,
    },
    /// The container ended while it was being started. Poststop has found us at work and left the rest to us.
    #[error("the container's init, process {pid}, ended while its programs were being loaded; they were removed again")]
    InitEnded {
        /// The init.
        pid: Pid,
    },
    /// The time is over.
    #[error("gave up, because the time for a hook is over; what was done was undone")]
    Deadline,
}

impl Cause {
    /// True where nothing of the request can be left in the container. Where the store fails in the last step, the bpffs is
    /// mounted already, and only the container's end takes it away: such a container must not start.
    pub fn leaves_nothing(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::RecordGone { .. })
    }

    /// The class of the reason, as metrics count it.
    pub fn class(&self) -> Reason {
        match self {
            Self::Refused(_) => Reason::Policy,
            Self::Missing(_) => Reason::Rights,
            Self::Plan(_) | Self::OtherRequest { .. } | Self::SharedMapAccess { .. } | Self::NoPodMap { .. } => Reason::Request,
            Self::Image(error) if error.is_about_signatures() => Reason::Signature,
            Self::Image(_) => Reason::Image,
            Self::Kernel(error) if error.verifier_log().is_some() => Reason::Verifier,
            Self::Kernel(_) | Self::Leftovers(_) | Self::NetnsLeft { .. } => Reason::Kernel,
            Self::Host(_) => Reason::Host,
            Self::Store(_) | Self::RecordGone { .. } => Reason::Store,
            Self::IdTaken { .. } | Self::Busy { .. } | Self::NetnsTaken { .. } => Reason::Busy,
            Self::InitEnded { .. } | Self::Deadline => Reason::Time,
        }
    }

    /// The end of the verifier's log, in lines, where the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Kernel(error) => error.verifier_log(),
            _ => None,
        }
    }
}

/// Everything that a release could not undo. The record keeps it, and gc tries again.
#[derive(Debug, Default)]
pub struct ReleaseErrors(pub Vec<KernelError>);

impl ReleaseErrors {
    /// Keeps the error of one step and goes on.
    pub fn collect<T>(&mut self, step: Result<T, KernelError>) -> Option<T> {
        match step {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    /// One sentence for each error, its causes included.
    pub fn sentences(&self) -> Vec<String> {
        self.0.iter().map(|e| chain(e)).collect()
    }
}

impl std::fmt::Display for ReleaseErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentences().join("; "))
    }
}

impl std::error::Error for ReleaseErrors {}

/// Bytes of a reason that a record keeps: some thousand reasons are kept, in memory.
const REASON_MAX: usize = 4096;

/// A reason as records keep it.
pub fn reason(sentence: &str) -> String {
    let mut end = sentence.len().min(REASON_MAX);
    while !sentence.is_char_boundary(end) {
        end -= 1;
    }
    if end == sentence.len() { sentence.to_owned() } else { format!("{} […]", &sentence[..end]) }
}
