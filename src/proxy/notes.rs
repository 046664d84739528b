//! What a call asked for, as an entry of a recording, and what the proxy would say to it.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::fd::AsFd as _;

use crate::kernel::{GrantedKfuncs, KERNEL_BTF, SubmittedCalls, function_names, review_submitted, submitted_calls};
use crate::model::delegation::Delegation;
use crate::model::policy::ContainerLimits;
use crate::model::proxy::attr::{attach, btf, link, map, prog, raw_tracepoint};
use crate::model::proxy::{CopiedAttr, NotifiedCommand, ProxyGrant, ProxyRefusal};
use crate::model::recording::{
    CallEnd, ProxyLimits, RecordedAttachment, RecordedMap, RecordedProgram, RecordedTypes, Recording, SubmittedProgram,
    marks_library,
};
use crate::sys::bpf;
use crate::sys::seccomp_notify::NotifiedThread;

/// Types (BTF) with fewer bytes are a library's probe. The smallest of an object has its functions' names.
const PROBED_TYPES: u32 = 256;

/// Threads that are remembered.
const THREADS_MAX: usize = 4096;

/// What must be known of earlier calls to tell what a call is for.
pub(super) struct Notes {
    /// A grant of everything at host scope, and at container scope.
    pub(super) everything: ProxyGrant,
    /// See above.
    confined: ProxyGrant,
    /// The threads, by number and start, whose libraries probe the kernel.
    libraries: HashSet<(u32, u64)>,
    /// The kernel's types, once they were needed.
    types: Option<Vec<u8>>,
}

impl Notes {
    pub(super) fn new() -> Self {
        let delegation = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };
        let limits = ContainerLimits { programs: u32::MAX, links: u32::MAX, map_memory: u64::MAX };
        let everything = ProxyGrant {
            delegation,
            helpers: None,
            kfuncs: None,
            instructions: None,
            images: BTreeSet::new(),
            host_scope: true,
            limits,
        };
        Self {
            confined: ProxyGrant { host_scope: false, kfuncs: Some(BTreeSet::new()), ..everything.clone() },
            everything,
            libraries: HashSet::new(),
            types: None,
        }
    }

    /// Adds what a call asked for, how it ended, and what the proxy would say to it. `code` are the instructions of a
    /// program; `not_passed_on` is why the proxy would pass the call on at no scope.
    pub(super) fn note(
        &mut self,
        into: &mut Recording,
        caller: &mut NotifiedThread<'_>,
        (attr, code): (&CopiedAttr, &[u8]),
        end: CallEnd,
        not_passed_on: Option<String>,
    ) {
        let sentence = |refusal: ProxyRefusal| refusal.to_string();
        let mut limits = ProxyLimits { host_scope: None, not_passed_on };
        if limits.not_passed_on.is_none() {
            limits.host_scope = self.confined.check(attr).err().map(sentence);
        }
        let name = attr.name();
        let thread = caller.started_unless_gone().map(|started| (caller.tid(), started));
        match attr.command {
            NotifiedCommand::MapCreate => {
                if marks_library(&name) {
                    self.of_library(thread);
                }
                into.map(RecordedMap { name, map_type: attr.u32(map::TYPE), end, limits });
            }
            NotifiedCommand::BtfLoad => {
                let of_library = thread.is_some_and(|thread| self.libraries.contains(&thread));
                let probe = of_library && attr.u32(btf::SIZE) < PROBED_TYPES;
                into.types(RecordedTypes { probe, end });
            }
            NotifiedCommand::ProgLoad => {
                let program = self.program(thread, attr, code, end, limits);
                into.program(program);
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
                into.attachment(RecordedAttachment { program, program_type, attach_type, end, limits });
            }
            NotifiedCommand::BtfGetFdById | NotifiedCommand::TokenCreate => {}
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
            self.of_library(thread);
        }
        let probe = submitted.probe(thread.is_some_and(|thread| self.libraries.contains(&thread)));
        let attach_type = submitted.attach_type;
        RecordedProgram { name, program_type, attach_type, helpers: calls.helpers, kfuncs, probe, end, limits }
    }

    fn of_library(&mut self, thread: Option<(u32, u64)>) {
        // A container can start any number of them.
        if self.libraries.len() >= THREADS_MAX {
            self.libraries.clear();
        }
        self.libraries.extend(thread);
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

/// Where a command that attaches has the descriptor of the program.
pub(super) fn program_at(command: NotifiedCommand) -> usize {
    match command {
        NotifiedCommand::RawTracepointOpen => raw_tracepoint::PROG_FD,
        NotifiedCommand::LinkCreate => link::PROG_FD,
        _ => attach::PROG_FD,
    }
}
