//! A notified call: bpf(2) or perf_event_open(2), copied once.

use crate::lifecycle::proxy_account::ProxyAccount;
use crate::model::metrics_table::ProxyCall;
use crate::model::proxy::NotifiedCommand;
use crate::proxy::account::call_of;
use crate::proxy::call::{self, CopiedCall};
use crate::proxy::failure::FailedCall;
use crate::proxy::granted::GrantedContainer;
use crate::proxy::outcome::Outcome;
use crate::proxy::perf_event::{self, CopiedPerfEvent};
use crate::sys::seccomp_notify::{NATIVE_ARCH, Notification, NotifiedThread, SYS_BPF, SYS_PERF_EVENT_OPEN};

/// Which system call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotifiedKind {
    Bpf,
    PerfEventOpen,
}

impl NotifiedKind {
    /// The kind of a call; None for one that is not in our profile, and for those of other architectures, such as 32-bit
    /// calls, which have other numbers and layouts.
    pub(super) fn of(notified: &Notification) -> Option<Self> {
        match (notified.arch, notified.number) {
            (NATIVE_ARCH, SYS_BPF) => Some(Self::Bpf),
            (NATIVE_ARCH, SYS_PERF_EVENT_OPEN) => Some(Self::PerfEventOpen),
            _ => None,
        }
    }

    /// As what the call is counted.
    pub(super) fn counted(self, args: &[u64; 6]) -> ProxyCall {
        match self {
            Self::Bpf => call_of(NotifiedCommand::of(args[0]).ok()),
            Self::PerfEventOpen => ProxyCall::PerfEventOpen,
        }
    }
}

/// The arguments of a call, and what they refer to.
#[derive(Debug)]
pub(super) enum CopiedArguments {
    Bpf(CopiedCall),
    PerfEventOpen(CopiedPerfEvent),
}

impl CopiedArguments {
    pub(super) fn of(kind: NotifiedKind, caller: &NotifiedThread<'_>, args: &[u64; 6]) -> Result<Self, FailedCall> {
        match kind {
            NotifiedKind::Bpf => CopiedCall::of(caller, NotifiedCommand::of(args[0])?, args).map(Self::Bpf),
            NotifiedKind::PerfEventOpen => CopiedPerfEvent::of(caller, args).map(Self::PerfEventOpen),
        }
    }

    /// As what the call is counted.
    pub(super) fn counted(&self) -> ProxyCall {
        match self {
            Self::Bpf(copied) => call_of(Some(copied.attr.command)),
            Self::PerfEventOpen(_) => ProxyCall::PerfEventOpen,
        }
    }

    /// True for a repetition: the same arguments, with the same contents.
    pub(super) fn is_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bpf(copied), Self::Bpf(other)) => copied.is_the_same(other),
            (Self::PerfEventOpen(copied), Self::PerfEventOpen(other)) => copied == other,
            _ => false,
        }
    }

    /// Bytes of the copies.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Bpf(copied) => copied.size(),
            Self::PerfEventOpen(copied) => copied.size(),
        }
    }

    /// Judges the call and makes it.
    pub(super) fn perform(
        &self,
        account: &mut ProxyAccount,
        granted: &mut GrantedContainer,
        caller: &mut NotifiedThread<'_>,
    ) -> Result<Outcome, FailedCall> {
        match self {
            Self::Bpf(copied) => call::perform(account, granted, caller, copied),
            Self::PerfEventOpen(copied) => perf_event::perform(granted, caller, copied),
        }
    }

    /// Writes why a call was refused into the log that the caller asked for, if the call has one.
    pub(super) fn write_refusal(&self, caller: &NotifiedThread<'_>, failure: &FailedCall) {
        if let Self::Bpf(copied) = self {
            copied.write_refusal(caller, failure);
        }
    }

    /// True if the new descriptor is closed when the caller executes another program.
    pub(super) fn close_on_exec(&self) -> bool {
        match self {
            Self::Bpf(_) => true,
            Self::PerfEventOpen(copied) => copied.call.close_on_exec(),
        }
    }
}
