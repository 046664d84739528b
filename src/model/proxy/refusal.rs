//! Why the proxy does not make a call, as a message and as the errno that the caller gets.

use crate::model::ids::Digest;
use crate::model::metrics_table::ProxyReason;

/// An errno of the system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProxyErrno(pub i32);

impl ProxyErrno {
    /// EPERM
    pub const PERMISSION: Self = Self(1);
    /// E2BIG
    pub const TOO_BIG: Self = Self(7);
    /// EACCES: what the verifier answers for instructions that it refuses.
    pub const ACCESS: Self = Self(13);
    /// EINVAL
    pub const INVALID: Self = Self(22);
    /// ENOSPC
    pub const NO_SPACE: Self = Self(28);
    /// EOPNOTSUPP
    pub const NOT_SUPPORTED: Self = Self(95);
}

/// A call that the proxy does not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyRefusal {
    /// The command has `BPF_COMMON_ATTRS`.
    #[error("the command has BPF_COMMON_ATTRS, which is not passed on; the caller has to try without")]
    CommonAttrs,
    /// A command that is not passed on.
    #[error("the command {number} is not passed on")]
    Command {
        /// The command.
        number: u32,
    },
    /// A field that this version does not know.
    #[error("the arguments have a field that this version does not know")]
    UnknownField {
        /// What the kernel would answer if it did not know the field.
        errno: ProxyErrno,
    },
    /// More data than one call may pass.
    #[error("{bytes} bytes of {what} are more than the {max} that one call may have")]
    TooLarge {
        /// The data.
        what: &'static str,
        /// Their size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A token, or its creation.
    #[error("BPF tokens are not passed on; with the proxy none is needed")]
    Token,
    /// A command, type or attach type that is not granted.
    #[error(
        "the container was not granted the {noun} {name}: request it (annotation delegate), and allow it in proxy of the policy"
    )]
    NotGranted {
        /// `bpf command`, `map type`, `program type`, `attach type`.
        noun: &'static str,
        /// Its name.
        name: String,
    },
    /// A feature that reaches beyond the container.
    #[error("{what} cannot be kept inside the container; it needs host-scope = true in the container's policy rule")]
    HostScope {
        /// The feature.
        what: String,
    },
    /// A map type that reaches beyond the container.
    #[error("map type {name}: {why}; it needs host-scope = true in the container's policy rule")]
    MapOfHost {
        /// Its name.
        name: String,
        /// What it does.
        why: &'static str,
    },
    /// A feature that the proxy does not pass on.
    #[error("{what} is not passed on")]
    NotPassedOn {
        /// The feature.
        what: String,
    },
    /// The type of a program does not fit the attach type.
    #[error("a program of type {program} cannot be attached as {attach} through the proxy")]
    AttachType {
        /// The program's type.
        program: String,
        /// The attach type.
        attach: String,
    },
    /// A place that does not belong to the container.
    #[error("{what} is not the container's own: {why}")]
    Foreign {
        /// The place.
        what: &'static str,
        /// How that was found.
        why: String,
    },
    /// A descriptor of another kind.
    #[error("descriptor {fd} is not {expected}")]
    WrongDescriptor {
        /// The caller's number.
        fd: i32,
        /// The kind that the call needs.
        expected: &'static str,
    },
    /// Instructions that container scope does not allow.
    #[error("{sentence}")]
    Instructions {
        /// Which, and why.
        sentence: String,
    },
    /// Instructions that the policy does not list.
    #[error(
        "program {program} has the instructions {digest}, which are neither listed under instructions of proxy in the container's policy rule nor of a verified image that it names; add them there"
    )]
    UnlistedInstructions {
        /// The program's name.
        program: String,
        /// Their digest.
        digest: Digest,
    },
    /// A limit of the policy.
    #[error("the container has {held} {what} through the proxy, and [limits] of the policy allows {limit}")]
    Limit {
        /// `programs`, `links`.
        what: &'static str,
        /// How many it has.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// A limit that every container has.
    #[error("the container has {held} {what} through the proxy, and none can have more than {limit}")]
    FixedLimit {
        /// `maps`, `BTF objects`.
        what: &'static str,
        /// How many it has.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// The limit on memory.
    #[error(
        "{asked} bytes more for {what} exceed map-memory under [limits] of the policy: {held} of {limit} bytes are in use by maps, programs and BTF"
    )]
    Memory {
        /// The object.
        what: &'static str,
        /// Its size.
        asked: u64,
        /// What the container has.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// The container has no grant.
    #[error("{why}")]
    NoGrant {
        /// Why.
        why: String,
    },
}

impl ProxyRefusal {
    /// The part that refused it, for the metrics.
    pub fn reason(&self) -> ProxyReason {
        match self {
            Self::Command { .. } | Self::NotGranted { .. } => ProxyReason::Grant,
            Self::HostScope { .. } | Self::MapOfHost { .. } => ProxyReason::Scope,
            Self::Instructions { .. } | Self::UnlistedInstructions { .. } => ProxyReason::Instructions,
            Self::Foreign { .. } => ProxyReason::Place,
            Self::Limit { .. } | Self::FixedLimit { .. } | Self::Memory { .. } => ProxyReason::Limit,
            Self::Token | Self::CommonAttrs | Self::UnknownField { .. } | Self::NotPassedOn { .. } => ProxyReason::Unsupported,
            Self::TooLarge { .. } | Self::WrongDescriptor { .. } | Self::AttachType { .. } => ProxyReason::Arguments,
            Self::NoGrant { .. } => ProxyReason::Record,
        }
    }

    /// What the caller gets.
    pub fn errno(&self) -> ProxyErrno {
        match self {
            Self::CommonAttrs => ProxyErrno::INVALID,
            Self::UnknownField { errno } => *errno,
            Self::TooLarge { .. } => ProxyErrno::TOO_BIG,
            Self::WrongDescriptor { .. } => ProxyErrno::INVALID,
            Self::Instructions { .. } | Self::UnlistedInstructions { .. } => ProxyErrno::ACCESS,
            Self::Limit { .. } | Self::FixedLimit { .. } | Self::Memory { .. } => ProxyErrno::NO_SPACE,
            Self::NotPassedOn { .. } => ProxyErrno::NOT_SUPPORTED,
            Self::Command { .. }
            | Self::Token
            | Self::NotGranted { .. }
            | Self::HostScope { .. }
            | Self::MapOfHost { .. }
            | Self::AttachType { .. }
            | Self::Foreign { .. }
            | Self::NoGrant { .. } => ProxyErrno::PERMISSION,
        }
    }
}
