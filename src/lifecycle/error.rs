//! Errors of lifecycle calls.

use std::path::PathBuf;

use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::lifecycle::host::HostError;
use crate::model::container::MissingRights;
use crate::model::ids::{ContainerId, OwnerNo, Pid};
use crate::model::metrics_table::Reason;
use crate::model::plan::PlanError;
use crate::model::policy::Refusal;
use crate::model::proxy::profile::ProxyProfileError;
use crate::store::StoreError;
use crate::sys::error::chain;

/// The causes, by the layer that found them.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The policy does not allow the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The container lacks a capability or a seccomp rule that the request needs.
    #[error(transparent)]
    Missing(#[from] MissingRights),
    /// The request does not fit its objects or its container.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The container's seccomp profile does not notify the proxy.
    #[error(transparent)]
    ProxyProfile(#[from] ProxyProfileError),
    /// The image could not be fetched or verified.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The container's bpf(2) calls cannot be policed.
    #[error("police the container's bpf(2) calls")]
    Police(#[source] KernelError),
    /// The container cannot get its list of executables.
    #[error("give the container its list of executables")]
    Gate(#[source] KernelError),
    /// The kernel refused an operation.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A process, namespace, cgroup or mount is not in the required state.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The record store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The leftovers of a dead container with the same id could not be removed.
    #[error("remove the leftovers of a dead container with this id")]
    Leftovers(#[source] ReleaseErrors),
    /// Another container has this id.
    #[error("container id {id} belongs to a living container in bundle {}; choose another id", bundle.display())]
    IdTaken {
        /// The id.
        id: ContainerId,
        /// The other container's bundle.
        bundle: PathBuf,
    },
    /// createRuntime already ran for this init, with a different request.
    #[error(
        "container {id} already has programs from a different request; the annotations of a running container cannot change"
    )]
    OtherRequest {
        /// The id.
        id: ContainerId,
    },
    /// Another bpfman-hook process works on this owner.
    #[error("process {pid} is working on {what}; try again when it has finished")]
    Busy {
        /// The process.
        pid: Pid,
        /// The owner.
        what: String,
    },
    /// The pod's network namespace has other programs at this attach point.
    #[error(
        "attach xdp to {iface}: containers {holders} of the pod have another XDP request there, and one interface takes only one XDP program"
    )]
    NetnsTaken {
        /// The interface.
        iface: String,
        /// The owner's holders.
        holders: String,
    },
    /// Another container of the pod has the same map, shared with the pod's programs, with different access.
    #[error(
        "show map {map} as {asked}: the pod's programs share it, and container {holder} of the pod has it as {held}; request it in \
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
    /// The pod's programs were loaded from another version of the object, which lacks a map.
    #[error(
        "share map {map} of {image} with the pod's network programs: they were loaded from another version of the image, which has no \
         such map; recreate the pod"
    )]
    NoPodMap {
        /// The map.
        map: String,
        /// The image.
        image: String,
    },
    /// The record was deleted while its owner was being built, or while one of its programs was being attached.
    #[error("record {no} was removed by another process in the meantime; the changes made for it were undone")]
    RecordGone {
        /// The record.
        no: OwnerNo,
    },
    /// The pod's network namespace has programs of a start that died, and they cannot be removed.
    #[error(
        "attach the pod's network programs: owner {no}, which a dead process left there, cannot be removed; run `bpfman-hook gc`"
    )]
    NetnsLeft {
        /// The owner.
        no: OwnerNo,
    },
    /// The container ended while it was being started. Its poststop found this process working on the owner and left
    /// the cleanup to it.
    #[error("the container's init, process {pid}, exited while its programs were being loaded; they were removed again")]
    InitEnded {
        /// The init.
        pid: Pid,
    },
    /// The deadline has passed.
    #[error("gave up, because the time for a hook is over; the changes made were undone")]
    Deadline,
}

impl Cause {
    /// True if nothing of the request can be left in the container. If the store fails in the last step, the bpffs is
    /// already mounted, and only the container's end removes it: such a container must not start.
    pub fn leaves_nothing(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::RecordGone { .. })
    }

    /// True if the container's rule polices it, and that failed: it must not start, whatever the request says.
    pub fn is_about_policing(&self) -> bool {
        matches!(
            self,
            Self::Police(_) | Self::Gate(_) | Self::Plan(PlanError::PoliceCgroup { .. } | PlanError::GateCgroup { .. })
        )
    }

    /// The class of the cause, as metrics count it.
    pub fn class(&self) -> Reason {
        match self {
            Self::Refused(_) => Reason::Policy,
            Self::Missing(_) | Self::ProxyProfile(_) => Reason::Rights,
            Self::Plan(_) | Self::OtherRequest { .. } | Self::SharedMapAccess { .. } | Self::NoPodMap { .. } => Reason::Request,
            Self::Image(error) if error.is_about_signatures() => Reason::Signature,
            Self::Image(_) => Reason::Image,
            Self::Kernel(error) if error.verifier_log().is_some() => Reason::Verifier,
            Self::Kernel(_) | Self::Police(_) | Self::Gate(_) | Self::Leftovers(_) | Self::NetnsLeft { .. } => Reason::Kernel,
            Self::Host(_) => Reason::Host,
            Self::Store(_) | Self::RecordGone { .. } => Reason::Store,
            Self::IdTaken { .. } | Self::Busy { .. } | Self::NetnsTaken { .. } => Reason::Busy,
            Self::InitEnded { .. } | Self::Deadline => Reason::Time,
        }
    }

    /// The end of the verifier's log, in lines, if the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Kernel(error) | Self::Police(error) => error.verifier_log(),
            _ => None,
        }
    }
}

/// Everything that a release could not undo. The record keeps it, and gc retries.
#[derive(Debug, Default)]
pub struct ReleaseErrors(pub Vec<KernelError>);

impl ReleaseErrors {
    /// Keeps the error of one step, so that the release can continue.
    pub fn collect<T>(&mut self, step: Result<T, KernelError>) -> Option<T> {
        match step {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    /// One sentence for each error, including its causes.
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

/// Maximum length in bytes of a reason in a record: about a thousand reasons are kept, in memory.
const REASON_MAX: usize = 4096;

/// A reason, truncated to the length that records keep.
pub fn reason(sentence: &str) -> String {
    let mut end = sentence.len().min(REASON_MAX);
    while !sentence.is_char_boundary(end) {
        end -= 1;
    }
    if end == sentence.len() { sentence.to_owned() } else { format!("{} […]", &sentence[..end]) }
}
