//! Makes each notified call as it is, and notes what it asked for.
//!
//! A call is made like one of a container with a grant, from a copy, but with the rights of this process; so the noted
//! result is the kernel's, and the caller needs no capability. A call that the proxy would not pass on is passed to the
//! kernel as the caller made it. Nothing is judged: what the proxy would say is noted.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::kernel::{GrantedKfuncs, KERNEL_BTF, SubmittedCalls, function_names, review_submitted, submitted_calls};
use crate::model::delegation::Delegation;
use crate::model::policy::ContainerLimits;
use crate::model::proxy::attr::{attach, btf, link, map, prog, raw_tracepoint};
use crate::model::proxy::grant::{self, AttachTarget};
use crate::model::proxy::{CopiedAttr, NotifiedCommand, ProxyErrno, ProxyGrant, ProxyRefusal};
use crate::model::recording::{
    CallEnd, ProxyLimits, RecordedAttachment, RecordedMap, RecordedProgram, RecordedTypes, Recording, SubmittedProgram,
    marks_library,
};
use crate::proxy::call::{self, CopiedCall};
use crate::proxy::failure::FailedCall;
use crate::proxy::outcome::Outcome;
use crate::sys::bpf;
use crate::sys::bpf::prepared::{CallResult, PreparedCall};
use crate::sys::seccomp_notify::{
    Answered, NATIVE_ARCH, Notification, NotifiedThread, SYS_BPF, SYS_PERF_EVENT_OPEN, SeccompListener,
};
use crate::sys::{Errno, netns};

/// Types (BTF) with fewer bytes are a library's probe. The smallest of an object has its functions' names.
const PROBED_TYPES: u32 = 256;
/// The flag of commands that newer libraries try first (uapi/linux/bpf.h, BPF_COMMON_ATTRS).
const COMMAND_MASK: u64 = 0xffff;

/// What has been noted of one command.
pub(super) struct Recorder {
    /// Calls in our own pid namespace, and in others.
    own: Recording,
    /// See above.
    contained: Recording,
    own_pid_namespace: u64,
    /// A grant of everything at host scope, and at container scope.
    everything: ProxyGrant,
    /// See above.
    confined: ProxyGrant,
    /// The threads, by number and start, whose libraries probe the kernel.
    libraries: HashSet<(u32, u64)>,
    /// The network namespace that this process is in, held open, and its inode.
    network: Option<(OwnedFd, u64)>,
    /// The kernel's types, once they were needed.
    types: Option<Vec<u8>>,
}

impl Recorder {
    /// `own_pid_namespace`: calls in other ones are those of containers.
    pub(super) fn new(own_pid_namespace: u64) -> Self {
        let delegation = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };
        let limits = ContainerLimits { programs: u32::MAX, links: u32::MAX, map_memory: u64::MAX };
        let everything = ProxyGrant { delegation, helpers: None, kfuncs: None, instructions: None, host_scope: true, limits };
        Self {
            own: Recording::default(),
            contained: Recording::default(),
            own_pid_namespace,
            confined: ProxyGrant { host_scope: false, kfuncs: Some(BTreeSet::new()), ..everything.clone() },
            everything,
            libraries: HashSet::new(),
            network: None,
            types: None,
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
            let code = copied.as_ref().ok().and_then(|copied| copied.input(prog::INSNS)).unwrap_or_default();
            self.note(contained, &mut caller, &attr, code, &made);
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
        self.everything.check(attr)?;
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
            if !submitted_calls(code_of(copied)).module_kfuncs.is_empty() {
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
        match self.everything.attach(attr, program_type)? {
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

    /// Notes what a call asked for, and what the proxy would say to it.
    fn note(&mut self, contained: bool, caller: &mut NotifiedThread<'_>, attr: &CopiedAttr, code: &[u8], made: &Made) {
        let end = match made {
            Ok(Outcome::Descriptor(_) | Outcome::Done) => CallEnd::Done,
            Ok(Outcome::Errno(errno)) => CallEnd::Failed(*errno),
            Err(_) => CallEnd::Unknown,
        };
        let sentence = |refusal: ProxyRefusal| refusal.to_string();
        let mut limits = ProxyLimits { host_scope: None, not_passed_on: made.as_ref().err().cloned().flatten() };
        if limits.not_passed_on.is_none() {
            limits.host_scope = self.confined.check(attr).err().map(sentence);
        }
        let name = attr.name();
        let thread = caller.started_unless_gone().map(|started| (caller.tid(), started));
        match attr.command {
            NotifiedCommand::MapCreate => {
                if marks_library(&name) {
                    self.libraries.extend(thread);
                }
                self.noted(contained).map(RecordedMap { name, map_type: attr.u32(map::TYPE), end, limits });
            }
            NotifiedCommand::BtfLoad => {
                let of_library = thread.is_some_and(|thread| self.libraries.contains(&thread));
                let probe = of_library && attr.u32(btf::SIZE) < PROBED_TYPES;
                self.noted(contained).types(RecordedTypes { probe, end });
            }
            NotifiedCommand::ProgLoad => {
                let program = self.program(thread, attr, code, end, limits);
                self.noted(contained).program(program);
            }
            NotifiedCommand::LinkCreate
            | NotifiedCommand::RawTracepointOpen
            | NotifiedCommand::ProgAttach
            | NotifiedCommand::ProgDetach => {
                let info = caller.descriptor(attr.fd(program_at(attr.command))).and_then(|fd| bpf::program_info(fd.as_fd()));
                let Ok(info) = info else { return };
                if limits.not_passed_on.is_none() && limits.host_scope.is_none() {
                    limits.host_scope = self.confined.attach(attr, info.program_type).err().map(sentence);
                }
                let attach_type = match attr.command {
                    NotifiedCommand::LinkCreate => Some(attr.u32(link::ATTACH_TYPE)),
                    NotifiedCommand::RawTracepointOpen => None,
                    _ => Some(attr.u32(attach::ATTACH_TYPE)),
                };
                let (program, program_type) = (info.name, info.program_type);
                self.noted(contained).attachment(RecordedAttachment { program, program_type, attach_type, end, limits });
            }
            NotifiedCommand::TokenCreate => {}
        }
    }

    fn program(
        &mut self,
        thread: Option<(u32, u64)>,
        attr: &CopiedAttr,
        code: &[u8],
        end: CallEnd,
        mut limits: ProxyLimits,
    ) -> RecordedProgram {
        let code = code.as_chunks::<8>().0;
        let calls = submitted_calls(code);
        let (name, program_type) = (attr.name(), attr.u32(prog::TYPE));
        let kfuncs = self.kfuncs(&calls);
        if limits.not_passed_on.is_none() && limits.host_scope.is_none() {
            let shown = if name.is_empty() { "without a name" } else { &name };
            let granted = self.granted_kfuncs(&kfuncs);
            let reviewed = review_submitted(&self.confined, &granted, shown, program_type, code);
            limits.host_scope = reviewed.err().map(|refusal| refusal.to_string());
        }
        let submitted = SubmittedProgram {
            name: &name,
            program_type,
            attach_type: attr.u32(prog::EXPECTED_ATTACH_TYPE),
            instructions: code.len(),
            helpers: &calls.helpers,
            global_data: calls.global_data,
        };
        if submitted.marks_library() {
            self.libraries.extend(thread);
        }
        let probe = submitted.probe(thread.is_some_and(|thread| self.libraries.contains(&thread)));
        let attach_type = submitted.attach_type;
        RecordedProgram { name, program_type, attach_type, helpers: calls.helpers, kfuncs, probe, end, limits }
    }

    /// The names of the functions of the kernel that a program calls.
    fn kfuncs(&mut self, calls: &SubmittedCalls) -> BTreeSet<String> {
        if calls.kfuncs.is_empty() {
            return BTreeSet::new();
        }
        let types = self.types.get_or_insert_with(|| fs::read(KERNEL_BTF).unwrap_or_default());
        function_names(types, &calls.kfuncs).unwrap_or_default().into_values().collect()
    }

    /// The same functions as a grant lists them.
    fn granted_kfuncs(&mut self, names: &BTreeSet<String>) -> GrantedKfuncs {
        self.confined.kfuncs = Some(names.clone());
        let types = self.types.as_deref().unwrap_or_default();
        GrantedKfuncs::find(&self.confined, types).unwrap_or_default()
    }
}

/// The outcome of a call that was made; otherwise why the proxy would not make it, if it was for that reason.
type Made = Result<Outcome, Option<String>>;

fn code_of(copied: &CopiedCall) -> &[[u8; 8]] {
    copied.input(prog::INSNS).unwrap_or_default().as_chunks::<8>().0
}

fn attaches(command: NotifiedCommand) -> bool {
    use NotifiedCommand::{LinkCreate, ProgAttach, ProgDetach, RawTracepointOpen};
    matches!(command, LinkCreate | ProgAttach | ProgDetach | RawTracepointOpen)
}

/// Where a command that attaches has the descriptor of the program.
fn program_at(command: NotifiedCommand) -> usize {
    match command {
        NotifiedCommand::RawTracepointOpen => raw_tracepoint::PROG_FD,
        NotifiedCommand::LinkCreate => link::PROG_FD,
        _ => attach::PROG_FD,
    }
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
