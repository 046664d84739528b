//! Makes each notified call as it is, and notes what it asked for.
//!
//! A call is made like one of a container with a grant, from a copy, but with the rights of this process; so the noted
//! result is the kernel's, and the caller needs no capability. A call that the proxy would not pass on is passed to the
//! kernel as the caller made it. Nothing is judged: what the proxy would say is noted.

use std::os::fd::{AsFd as _, OwnedFd};

use crate::kernel::submitted_calls;
use crate::model::proxy::grant::{self, AttachTarget};
use crate::model::proxy::{CopiedAttr, NotifiedCommand, ProxyErrno, ProxyRefusal};
use crate::model::recording::{CallEnd, Recording};
use crate::proxy::call::{self, CopiedCall};
use crate::proxy::failure::FailedCall;
use crate::proxy::notes::{Notes, program_at};
use crate::proxy::outcome::Outcome;
use crate::sys::bpf;
use crate::sys::bpf::prepared::{CallResult, PreparedCall};
use crate::sys::seccomp_notify::{
    Answered, NATIVE_ARCH, Notification, NotifiedThread, SYS_BPF, SYS_PERF_EVENT_OPEN, SeccompListener,
};
use crate::sys::{Errno, netns};

/// The flag of commands that newer libraries try first (uapi/linux/bpf.h, BPF_COMMON_ATTRS).
const COMMAND_MASK: u64 = 0xffff;

/// What has been noted of one command.
pub(super) struct Recorder {
    /// Calls in our own pid namespace, and in others.
    own: Recording,
    /// See above.
    contained: Recording,
    own_pid_namespace: u64,
    notes: Notes,
    /// The network namespace that this process is in, held open, and its inode.
    network: Option<(OwnedFd, u64)>,
}

impl Recorder {
    /// `own_pid_namespace`: calls in other ones are those of containers.
    pub(super) fn new(own_pid_namespace: u64) -> Self {
        Self {
            own: Recording::default(),
            contained: Recording::default(),
            own_pid_namespace,
            notes: Notes::new(),
            network: None,
        }
    }

    /// What was recorded, and the number of calls that are left out: if there were calls in containers, those outside of
    /// them, which are an engine's.
    pub(super) fn finish(self) -> (Recording, u64) {
        if self.contained == Recording::default() {
            return (self.own, 0);
        }
        let left_out = self.own.calls.values().fold(self.own.perf_events, |sum, calls| sum.saturating_add(*calls));
        (self.contained, left_out)
    }

    /// Makes a call, notes it, and answers.
    pub(super) fn serve(&mut self, listener: &SeccompListener, notified: &Notification) {
        let Ok(Some(mut caller)) = NotifiedThread::of(listener, notified) else {
            // It no longer waits, or its memory is out of reach: the kernel decides.
            listener.pass_on(notified.id);
            return;
        };
        let contained = caller.pid_namespace().is_some_and(|inode| inode != self.own_pid_namespace);
        if notified.arch == NATIVE_ARCH && notified.number == SYS_PERF_EVENT_OPEN {
            self.noted(contained).perf_events += 1;
        }
        if notified.arch != NATIVE_ARCH || notified.number != SYS_BPF {
            listener.pass_on(notified.id);
            return;
        }
        let command = match NotifiedCommand::of(notified.args[0]) {
            Ok(command) => command,
            Err(ProxyRefusal::CommonAttrs) => {
                // The library tries again without the flag, as with the proxy.
                listener.refuse(notified.id, ProxyErrno::INVALID.0);
                return;
            }
            Err(_) => {
                let number = u32::try_from(notified.args[0] & COMMAND_MASK).unwrap_or_default();
                self.noted(contained).count(number);
                listener.pass_on(notified.id);
                return;
            }
        };
        self.noted(contained).count(command.number());
        let copied = CopiedCall::of(&caller, command, &notified.args);
        let made = match &copied {
            Ok(copied) => self.make(&mut caller, copied),
            Err(failure) => Err(failure.refused.as_ref().map(|refused| refused.sentence.clone())),
        };
        let attr = match &copied {
            Ok(copied) => Some(copied.attr.clone()),
            Err(_) => known_part(&caller, command, notified),
        };
        if let Some(attr) = attr {
            let code = copied.as_ref().map(CopiedCall::instructions).unwrap_or_default();
            let end = match &made {
                Ok(outcome) => outcome.end(),
                Err(_) => CallEnd::Unknown,
            };
            let into = if contained { &mut self.contained } else { &mut self.own };
            self.notes.note(into, &mut caller, (&attr, code), end, made.as_ref().err().cloned().flatten());
        }
        match made {
            Ok(outcome) => answer(listener, notified.id, &outcome),
            Err(_) => drop(listener.pass_on(notified.id)),
        }
    }

    fn noted(&mut self, contained: bool) -> &mut Recording {
        if contained { &mut self.contained } else { &mut self.own }
    }

    /// Makes a call as the proxy would.
    ///
    /// # Errors
    /// Why it cannot be made by this process: the caller has to make it itself. A sentence, if the proxy would refuse it.
    fn make(&mut self, caller: &mut NotifiedThread<'_>, copied: &CopiedCall) -> Made {
        let of_kernel = |failure: FailedCall| match failure.refused {
            Some(refused) => Err(Some(refused.sentence)),
            None => Ok(Outcome::Errno(failure.errno)),
        };
        match self.call(caller, copied) {
            Ok(outcome) => Ok(outcome),
            Err(failure) => of_kernel(failure),
        }
    }

    fn call(&mut self, caller: &mut NotifiedThread<'_>, copied: &CopiedCall) -> Result<Outcome, FailedCall> {
        let attr = &copied.attr;
        self.notes.everything.check(attr)?;
        let mut prepared = copied.prepare();
        for (at, _) in grant::descriptors(attr) {
            let fd = caller.descriptor(attr.fd(at))?;
            if attaches(attr.command) && at == program_at(attr.command) {
                let wrong = || ProxyRefusal::WrongDescriptor { fd: attr.fd(at), expected: "a program" };
                let (program_type, _) = bpf::program_kind(fd.as_fd())?.ok_or_else(wrong)?;
                self.place(caller, attr, program_type, &mut prepared)?;
            }
            prepared.set_descriptor(at, fd);
        }
        if attr.command == NotifiedCommand::ProgLoad {
            if !submitted_calls(copied.instructions().as_chunks::<8>().0).module_kfuncs.is_empty() {
                let what = "a program that calls functions of modules".to_owned();
                return Err(ProxyRefusal::NotPassedOn { what }.into());
            }
            call::translate(caller, attr, &mut prepared, |_| Ok(()))?;
        }
        self.enter_network(caller)?;
        let called = prepared.perform();
        copied.write_logs(caller, &prepared);
        Ok(match called? {
            CallResult::Done => Outcome::Done,
            CallResult::Descriptor(fd) => Outcome::Descriptor(fd),
        })
    }

    /// Puts the place that a program is attached to into the call.
    fn place(
        &self,
        caller: &mut NotifiedThread<'_>,
        attr: &CopiedAttr,
        program_type: u32,
        prepared: &mut PreparedCall,
    ) -> Result<(), FailedCall> {
        let at = grant::target_at(attr.command);
        match self.notes.everything.attach(attr, program_type)? {
            // An index in the caller's network namespace, or that namespace.
            AttachTarget::Interface | AttachTarget::CurrentNetns => {}
            AttachTarget::Netns | AttachTarget::Cgroup | AttachTarget::Map | AttachTarget::PerfEvent => {
                prepared.set_descriptor(at, caller.descriptor(attr.fd(at))?);
            }
            AttachTarget::Loaded if attr.command != NotifiedCommand::LinkCreate || attr.fd(at) == 0 => {}
            // The caller makes it itself.
            _ => return Err(ProxyRefusal::NotPassedOn { what: "a link to this kind of place".to_owned() }.into()),
        }
        Ok(())
    }

    /// Moves this process into the caller's network namespace, which is held open, so that its inode is not reused.
    fn enter_network(&mut self, caller: &NotifiedThread<'_>) -> Result<(), FailedCall> {
        let (namespace, inode) = caller.network_namespace()?;
        if self.network.as_ref().is_none_or(|(_, own)| *own != inode) {
            netns::enter(namespace.as_fd()).map_err(|_| Errno::PERM)?;
            self.network = Some((namespace, inode));
        }
        Ok(())
    }
}

/// The outcome of a call that was made; otherwise why the proxy would not make it, if it was for that reason.
type Made = Result<Outcome, Option<String>>;

fn attaches(command: NotifiedCommand) -> bool {
    use NotifiedCommand::{LinkCreate, ProgAttach, ProgDetach, RawTracepointOpen};
    matches!(command, LinkCreate | ProgAttach | ProgDetach | RawTracepointOpen)
}

/// The fields of a call that this version knows, of one that has others too.
fn known_part(caller: &NotifiedThread<'_>, command: NotifiedCommand, notified: &Notification) -> Option<CopiedAttr> {
    let given = usize::try_from(notified.args[2] & 0xffff_ffff).ok()?;
    let bytes = caller.read(notified.args[1], given.min(command.size())).ok()?;
    CopiedAttr::new(command, &bytes).ok()
}

fn answer(listener: &SeccompListener, id: u64, outcome: &Outcome) {
    let answered = match outcome {
        Outcome::Descriptor(fd) => listener.hand_over(id, fd.as_fd(), true),
        Outcome::Done => listener.answer(id, 0),
        Outcome::Errno(errno) => listener.refuse(id, *errno),
    };
    // Without an answer the thread would wait for ever.
    if let Answered::NotInstalled(errno) = answered {
        listener.refuse(id, errno.raw_os_error());
    }
}
