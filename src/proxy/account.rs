//! What is reported of the calls of a container: counters, events, and a line in the log for each different refusal.
//!
//! A hostile workload can make as many calls as it likes, with names that it chooses. [`Tally`] bounds what is written.

use crate::lifecycle::proxy::ProxiedContainer;
use crate::model::delegation::Category;
use crate::model::event::{self, Event};
use crate::model::ids::ContainerId;
use crate::model::metrics_table::{self, EventKind, ProxyCall, ProxyOutcome};
use crate::model::proxy::usage::{HeldObject, UsedKind};
use crate::model::proxy::{NotifiedCommand, Tallied, Tally};
use crate::output::report::Report;
use crate::paths::Paths;
use crate::proxy::failure::{FailedCall, RefusedCall};
use crate::sys::export;

/// Stands for refusals that are too many different ones.
const OTHERS: &str = "further reasons that are not listed, because there are too many different ones";

/// The reports of one process.
pub(super) struct Account {
    id: ContainerId,
    report: Report,
    refusals: Tally,
    loads: Tally,
}

impl Account {
    pub(super) fn new(paths: &Paths, id: &ContainerId) -> Self {
        Self { id: id.clone(), report: Report::new(paths), refusals: Tally::default(), loads: Tally::default() }
    }

    /// A call was made.
    pub(super) fn done(&self, call: ProxyCall) {
        export::count(metrics_table::proxy_call(call, ProxyOutcome::Done), 1);
    }

    /// A call was refused, by us or by the kernel.
    pub(super) fn failed(&mut self, call: ProxyCall, container: Option<&ProxiedContainer>, failure: &FailedCall) {
        let outcome = if failure.refused.is_some() { ProxyOutcome::Refused } else { ProxyOutcome::Failed };
        export::count(metrics_table::proxy_call(call, outcome), 1);
        let Some(RefusedCall { reason, sentence }) = &failure.refused else { return };
        export::count(metrics_table::proxy_refusal(*reason), 1);
        if let Some(tallied) = self.refusals.add(sentence) {
            if tallied.count == 1 {
                let name = if call == ProxyCall::PerfEventOpen { "perf_event_open" } else { "bpf" };
                self.note(&format!("{name}(2) refused: {}", tallied.text.as_deref().unwrap_or(OTHERS)));
            }
            self.tell_refusal(container, &tallied);
        }
    }

    /// Programs and links were made.
    pub(super) fn made(&mut self, container: &ProxiedContainer, objects: Vec<HeldObject>) {
        for object in objects {
            let what = match object.kind {
                UsedKind::Program => EventKind::Loaded,
                UsedKind::Link => EventKind::Attached,
                UsedKind::Map | UsedKind::Btf => continue,
            };
            let kind = Category::Progs.name(object.kernel_type).unwrap_or_default();
            let digest = object.digest.map(|digest| digest.to_string());
            let text = format!("{} {kind} {} {}", object.kind.word(), object.name, digest.as_deref().unwrap_or_default());
            let Some(Tallied { count, .. }) = self.loads.add(&text) else { continue };
            let event = event::by_workload(what, &self.id, Some((container.owner, &container.workload)), count);
            let id = Some(object.id);
            let (program_id, link_id) = if object.kind == UsedKind::Program { (id, None) } else { (None, id) };
            let program = Some(object.name).filter(|name| !name.is_empty());
            let target = Some(kind.to_owned());
            tell(what, Event { program, program_id, link_id, target, digest, ..event });
        }
    }

    /// The listener has ended: reports the numbers that have grown since they were reported.
    pub(super) fn end(&self, container: Option<&ProxiedContainer>) {
        self.refusals.rest().for_each(|tallied| self.tell_refusal(container, &tallied));
    }

    /// Writes to the log.
    pub(super) fn note(&self, sentence: &str) {
        self.report.note(Some(self.id.as_str()), &format!("proxy: {sentence}"));
    }

    fn tell_refusal(&self, container: Option<&ProxiedContainer>, tallied: &Tallied) {
        let owner = container.map(|container| (container.owner, &container.workload));
        let event = event::by_workload(EventKind::Denied, &self.id, owner, tallied.count);
        let reason = Some(event::short_reason(tallied.text.as_deref().unwrap_or(OTHERS)));
        tell(EventKind::Denied, Event { reason, ..event });
    }
}

fn tell(what: EventKind, event: Event) {
    if let Some(export) = export::here() {
        export.tell(what, event);
    }
}

/// As what a call of bpf(2) is counted; None is a command that is not notified.
pub(super) fn call_of(command: Option<NotifiedCommand>) -> ProxyCall {
    match command {
        Some(NotifiedCommand::MapCreate) => ProxyCall::MapCreate,
        Some(NotifiedCommand::ProgLoad) => ProxyCall::ProgLoad,
        Some(NotifiedCommand::ProgAttach) => ProxyCall::ProgAttach,
        Some(NotifiedCommand::ProgDetach) => ProxyCall::ProgDetach,
        Some(NotifiedCommand::RawTracepointOpen) => ProxyCall::RawTracepointOpen,
        Some(NotifiedCommand::BtfLoad) => ProxyCall::BtfLoad,
        Some(NotifiedCommand::BtfGetFdById) => ProxyCall::BtfGetFdById,
        Some(NotifiedCommand::LinkCreate) => ProxyCall::LinkCreate,
        Some(NotifiedCommand::TokenCreate) => ProxyCall::TokenCreate,
        None => ProxyCall::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_by_their_names() {
        for command in NotifiedCommand::ALL {
            let name = Category::Cmds.name(command.number()).map(str::to_owned);
            let known = name.filter(|name| *name == call_of(Some(command)).word());
            // The commands that attach are not among the names of a delegation.
            assert!(known.is_some() || Category::Cmds.name(command.number()).is_none(), "{command:?}");
        }
    }
}
