//! One call: copied once, judged on the copy, made with the copy.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::image;
use crate::kernel::{
    CodeReference, ExecutionBound, FunctionTypes, SubmittedRefusal, replace_references, review_functions, review_submitted,
    without_descriptors,
};
use crate::lifecycle::proxy_account::ProxyAccount;
use crate::model::delegation::Category;
use crate::model::ids::Digest;
use crate::model::proxy::attr::{
    CALLER_SIZE_MAX, Extent, FUNCTION_NAME_MAX, WantedCopy, btf, by_id, kprobe_multi, link, prog, raw_tracepoint, uprobe_multi,
};
use crate::model::proxy::grant::{self, AttachTarget};
use crate::model::proxy::usage::{HeldObject, UsedKind};
use crate::model::proxy::{CopiedAttr, NotifiedCommand, ProxyRefusal};
use crate::proxy::failure::{FailedCall, RefusedCall, foreign};
use crate::proxy::granted::GrantedContainer;
use crate::proxy::outcome::Outcome;
use crate::proxy::perf_event;
use crate::sys::bpf;
use crate::sys::bpf::prepared::{CallResult, PreparedCall};
use crate::sys::caps::Capability;
use crate::sys::machine::page_size;
use crate::sys::seccomp_notify::NotifiedThread;
use crate::sys::{Errno, caps, cgroup, netns};

/// The kernel gives BTF by its id only to a thread with this one (kernel/bpf/syscall.c, `bpf_btf_get_fd_by_id`).
const OF_ALL_TYPES: &[Capability] = &[Capability::CAP_SYS_ADMIN];

/// Descriptors that the instructions of one program may name.
const DESCRIPTORS_MAX: usize = 512;

/// Everything that a call refers to, in our memory.
#[derive(Debug)]
pub(super) struct CopiedCall {
    pub(super) attr: CopiedAttr,
    pub(super) inputs: Vec<(WantedCopy, Vec<u8>)>,
    pub(super) outputs: Vec<WantedCopy>,
    /// Where the caller's `union bpf_attr` is.
    pub(super) address: u64,
}

impl CopiedCall {
    /// Copies the arguments of a call, and what they point to.
    pub(super) fn of(caller: &NotifiedThread<'_>, command: NotifiedCommand, args: &[u64; 6]) -> Result<Self, FailedCall> {
        // The kernel's parameter is an unsigned int.
        let (address, size) = (args[1], args[2] & 0xffff_ffff);
        if size > CALLER_SIZE_MAX {
            return Err(Errno::TOOBIG.into());
        }
        let length = usize::try_from(size).map_err(|_| Errno::TOOBIG)?;
        let attr = CopiedAttr::new(command, &caller.read(address, length)?)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for wanted in attr.copies()? {
            let length = usize::try_from(wanted.length).map_err(|_| Errno::TOOBIG)?;
            match wanted.pointer.extent {
                Extent::Log { .. } => outputs.push(wanted),
                Extent::Text { .. } | Extent::File => inputs.push((wanted, caller.read_text(wanted.address, length)?)),
                Extent::Names { .. } => inputs.push((wanted, read_names(caller, wanted.address, length)?)),
                _ => inputs.push((wanted, caller.read(wanted.address, length)?)),
            }
        }
        Ok(Self { attr, inputs, outputs, address })
    }

    /// True for a repetition: the same arguments, with the same contents.
    pub(super) fn is_the_same(&self, other: &Self) -> bool {
        self.address == other.address && self.attr == other.attr && self.inputs == other.inputs
    }

    /// Bytes of the copies.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.inputs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// What a pointer refers to; None for a null pointer, and for output.
    pub(super) fn input(&self, at: usize) -> Option<&[u8]> {
        self.inputs.iter().find(|(wanted, _)| wanted.pointer.at == at).map(|(_, bytes)| bytes.as_slice())
    }

    /// The instructions of a program; empty for other commands.
    pub(super) fn instructions(&self) -> &[u8] {
        let is_program = self.attr.command == NotifiedCommand::ProgLoad;
        self.input(prog::INSNS).filter(|_| is_program).unwrap_or_default()
    }

    pub(super) fn prepare(&self) -> PreparedCall {
        let mut prepared = PreparedCall::new(&self.attr);
        for (wanted, bytes) in &self.inputs {
            prepared.point(wanted.pointer, bytes.clone());
        }
        for wanted in &self.outputs {
            if let Extent::Log { size_at } = wanted.pointer.extent {
                let length = u32::try_from(wanted.length).unwrap_or(u32::MAX);
                prepared.set_u32(size_at, length);
                prepared.point(wanted.pointer, vec![0; length as usize]);
            }
        }
        prepared
    }

    /// Writes the verifier's log and its size to where the caller wants them.
    pub(super) fn write_logs(&self, caller: &NotifiedThread<'_>, prepared: &PreparedCall) {
        for wanted in &self.outputs {
            let Some(log) = prepared.buffer(wanted.pointer.at) else { continue };
            let end = log.iter().position(|byte| *byte == 0).map_or(log.len(), |end| end + 1);
            // A caller whose buffer is not mapped gets the answer without the log.
            let _ = caller.write(wanted.address, &log[..end]);
        }
        let true_size = match self.attr.command {
            NotifiedCommand::ProgLoad => prog::LOG_TRUE_SIZE,
            NotifiedCommand::BtfLoad => btf::LOG_TRUE_SIZE,
            _ => return,
        };
        if self.attr.covers(true_size) {
            let value = prepared.u32(true_size).to_ne_bytes();
            let _ = caller.write(self.address.saturating_add(true_size as u64), &value);
        }
    }

    /// Writes why a call was refused into the log that the caller asked for.
    pub(super) fn write_refusal(&self, caller: &NotifiedThread<'_>, failure: &FailedCall) {
        let Some(RefusedCall { sentence, .. }) = &failure.refused else { return };
        for wanted in &self.outputs {
            let size = usize::try_from(wanted.length).unwrap_or(usize::MAX);
            let mut text = format!("bpfman-hook: {sentence}\n").into_bytes();
            text.truncate(size.saturating_sub(1));
            text.push(0);
            if size > 0 {
                let _ = caller.write(wanted.address, &text);
            }
        }
    }
}

/// Limit in bytes of the names of all functions that one link probes.
const NAMES_MAX: usize = 4 << 20;

/// Copies names, each with its NUL, from an array of pointers to them with a length in bytes.
fn read_names(caller: &NotifiedThread<'_>, address: u64, length: usize) -> Result<Vec<u8>, FailedCall> {
    let pointers = caller.read(address, length)?;
    let mut names = Vec::new();
    for pointer in pointers.as_chunks::<8>().0 {
        names.extend(caller.read_text(u64::from_ne_bytes(*pointer), FUNCTION_NAME_MAX)?);
        if names.len() > NAMES_MAX {
            return Err(Errno::TOOBIG.into());
        }
    }
    Ok(names)
}

/// Judges a call and makes it.
pub(super) fn perform(
    account: &mut ProxyAccount,
    granted: &mut GrantedContainer,
    caller: &mut NotifiedThread<'_>,
    copied: &CopiedCall,
) -> Result<Outcome, FailedCall> {
    let attr = &copied.attr;
    let container = &granted.container;
    container.grant.check(attr)?;
    container.grant.check_inner_maps(attr, &container.shown)?;
    let mut prepared = copied.prepare();
    let mut held = Vec::new();
    let mut bound = None;
    let mut program_type = attr.u32(prog::TYPE);
    let (mut digest, mut place) = (None, None);
    let mut capabilities = granted.capabilities;
    for (at, _) in grant::descriptors(attr) {
        held.push((at, caller.descriptor(attr.fd(at))?));
    }
    let (kind, bytes) = match attr.command {
        NotifiedCommand::MapCreate => (Some(UsedKind::Map), grant::map_memory(attr, granted.cpus, page_size().into())),
        NotifiedCommand::BtfLoad => (Some(UsedKind::Btf), grant::btf_memory(attr, page_size().into())),
        NotifiedCommand::ProgLoad => {
            translate(caller, attr, &mut prepared, |map| granted.check_map(account, map))?;
            let judged = judge_program(granted, attr, &prepared, &held)?;
            (digest, bound) = (Some(judged.digest), judged.bound);
            (Some(UsedKind::Program), grant::program_memory(attr))
        }
        NotifiedCommand::BtfGetFdById => {
            granted.check_types(account, attr.u32(by_id::ID))?;
            capabilities = OF_ALL_TYPES;
            (None, 0)
        }
        command => {
            let attached = attach(account, granted, caller, copied, &mut prepared, &held)?;
            (program_type, place) = (attached.program_type, attached.place);
            let is_link = matches!(command, NotifiedCommand::LinkCreate | NotifiedCommand::RawTracepointOpen);
            (is_link.then_some(UsedKind::Link), 0)
        }
    };
    for (at, fd) in held {
        prepared.set_descriptor(at, fd);
    }
    let mut call = || -> Result<CallResult, FailedCall> {
        Ok(caps::with_only_effective(capabilities, || prepared.perform()).map_err(|_| Errno::PERM)??)
    };
    let called = match kind {
        None => call(),
        Some(kind) => granted.make(account, kind, bytes, || {
            let called = call()?;
            let CallResult::Descriptor(fd) = &called else { return Ok((None, called)) };
            if let Some(bound) = bound {
                check_bound(&bound, attr, fd)?;
            }
            let kernel_type = if kind == UsedKind::Btf { 0 } else { program_type };
            let place = place.take();
            let object =
                id_of(kind, fd).map(|id| HeldObject { kind, id, kernel_type, name: attr.name(), bytes, digest, place });
            Ok((object, called))
        }),
    };
    // The container can make this wait for ever: nothing is locked by now.
    copied.write_logs(caller, &prepared);
    match called? {
        CallResult::Done => Ok(Outcome::Done),
        CallResult::Descriptor(fd) => Ok(Outcome::Descriptor(fd)),
    }
}

/// Checks how much a program can execute that was loaded, before its caller has it.
fn check_bound(bound: &ExecutionBound, attr: &CopiedAttr, program: &OwnedFd) -> Result<(), FailedCall> {
    let explored = bpf::program_info(program.as_fd())?.verified_instructions;
    bound.check(explored.into()).map_err(|objection| {
        let refusal = SubmittedRefusal { program: program_name(attr), objection, at: None };
        ProxyRefusal::Instructions { sentence: refusal.to_string() }.into()
    })
}

fn program_name(attr: &CopiedAttr) -> String {
    let name = attr.name();
    if name.is_empty() { "without a name".to_owned() } else { name }
}

/// The kernel's id of a new object.
fn id_of(kind: UsedKind, fd: &OwnedFd) -> Option<u32> {
    let fd = fd.as_fd();
    match kind {
        UsedKind::Program => bpf::program_id(fd).ok(),
        UsedKind::Map => bpf::map_id(fd).ok(),
        UsedKind::Btf => bpf::btf_kind(fd).ok().flatten().map(|(id, _)| id),
        UsedKind::Link => bpf::link_info(fd).ok().map(|info| info.id),
    }
}

/// Replaces the caller's descriptors in the instructions by copies of ours, each of which `check` has seen.
pub(super) fn translate(
    caller: &mut NotifiedThread<'_>,
    attr: &CopiedAttr,
    prepared: &mut PreparedCall,
    mut check: impl FnMut(BorrowedFd<'_>) -> Result<(), FailedCall>,
) -> Result<(), FailedCall> {
    let Some(bytes) = prepared.buffer(prog::INSNS) else { return Ok(()) };
    let mut code: Vec<[u8; 8]> = bytes.as_chunks::<8>().0.to_vec();
    let mut replaced: HashMap<CodeReference, i32> = HashMap::new();
    replace_references(&mut code, |reference| {
        if let Some(number) = replaced.get(&reference) {
            return Ok(*number);
        }
        if replaced.len() >= DESCRIPTORS_MAX {
            return Err(FailedCall::from(ProxyRefusal::NotPassedOn {
                what: format!("a program that names more than {DESCRIPTORS_MAX} maps"),
            }));
        }
        let theirs = match reference {
            CodeReference::Descriptor(number) => number,
            CodeReference::ArrayIndex(index) => {
                let index = u64::try_from(index).map_err(|_| Errno::INVAL)?;
                let address = attr.u64(prog::FD_ARRAY);
                // The kernel answers the same to an index without an array (`resolve_pseudo_ldimm64`).
                if address == 0 {
                    return Err(Errno::PROTO.into());
                }
                let bytes = caller.read(address.saturating_add(index * 4), 4)?;
                bytes.first_chunk().copied().map(i32::from_ne_bytes).ok_or(Errno::FAULT)?
            }
        };
        let ours = caller.descriptor(theirs)?;
        check(ours.as_fd())?;
        let number = prepared.keep(ours);
        replaced.insert(reference, number);
        Ok(number)
    })?;
    if let Some(buffer) = prepared.buffer_mut(prog::INSNS) {
        for (to, from) in buffer.as_chunks_mut::<8>().0.iter_mut().zip(code) {
            *to = from;
        }
    }
    Ok(())
}

/// A program that may be loaded.
struct JudgedProgram {
    /// The digest of its instructions.
    digest: Digest,
    /// What is to be checked once it is loaded.
    bound: Option<ExecutionBound>,
}

/// Reviews the instructions, and the tags of the functions.
fn judge_program(
    granted: &mut GrantedContainer,
    attr: &CopiedAttr,
    prepared: &PreparedCall,
    held: &[(usize, OwnedFd)],
) -> Result<JudgedProgram, FailedCall> {
    let name = program_name(attr);
    let code = prepared.buffer(prog::INSNS).unwrap_or_default().as_chunks::<8>().0;
    let refused = |sentence: String| FailedCall::from(ProxyRefusal::Instructions { sentence });
    let reviewed = match review_submitted(&granted.container.grant, &granted.kfuncs, &name, attr.u32(prog::TYPE), code) {
        Ok(reviewed) => reviewed,
        Err(refusal) => return Err(refused(refusal.with_name(|id| granted.kernel_name(id)).to_string())),
    };
    let digest = image::hash(&without_descriptors(code));
    if let Err(refusal) = granted.container.grant.check_instructions(&name, digest)
        && !granted.is_of_verified_image(attr.u32(prog::TYPE), code)
    {
        return Err(refusal.into());
    }
    let functions = prepared.buffer(prog::FUNC_INFO).unwrap_or_default();
    let record = attr.u32(prog::FUNC_INFO_REC_SIZE) as usize;
    let typed = held.iter().find(|(at, _)| *at == prog::BTF_FD).filter(|_| !functions.is_empty());
    let Some((_, fd)) = typed.filter(|_| !granted.container.grant.host_scope) else {
        let bound = reviewed.bound(&[], record, &FunctionTypes::default());
        return Ok(JudgedProgram { digest, bound });
    };
    let wrong = || ProxyRefusal::WrongDescriptor { fd: attr.fd(prog::BTF_FD), expected: "BTF" };
    let (id, size) = bpf::btf_kind(fd.as_fd())?.ok_or_else(wrong)?;
    let types = match granted.types.take() {
        Some((known, types)) if known == id => types,
        _ => {
            let bytes = bpf::btf_bytes(fd.as_fd(), size)?;
            FunctionTypes::read(&bytes).map_err(|error| refused(error.to_string()))?
        }
    };
    let (_, types) = granted.types.insert((id, types));
    review_functions(&name, functions, record, types).map_err(|refusal| refused(refusal.to_string()))?;
    Ok(JudgedProgram { digest, bound: reviewed.bound(functions, record, types) })
}

/// A program that may be attached to a place.
struct AttachedProgram {
    program_type: u32,
    /// The place, for a listing.
    place: Option<String>,
}

/// Checks the place that a program is attached to, and puts it into the call.
fn attach(
    account: &mut ProxyAccount,
    granted: &mut GrantedContainer,
    caller: &mut NotifiedThread<'_>,
    copied: &CopiedCall,
    prepared: &mut PreparedCall,
    held: &[(usize, OwnedFd)],
) -> Result<AttachedProgram, FailedCall> {
    let attr = &copied.attr;
    let (at, program) = held.first().ok_or(Errno::BADF)?;
    let wrong = || ProxyRefusal::WrongDescriptor { fd: attr.fd(*at), expected: "a program" };
    let (program_type, id) = bpf::program_kind(program.as_fd())?.ok_or_else(wrong)?;
    if !granted.usage.has(UsedKind::Program, id) {
        // An exec has a process of its own, which may have loaded it just now.
        granted.learn(account)?;
        if !granted.usage.has(UsedKind::Program, id) {
            return Err(foreign("the program", "it was not loaded through the proxy"));
        }
    }
    let target = granted.container.grant.attach(attr, program_type)?;
    let target_at = grant::target_at(attr.command);
    let place = match target {
        AttachTarget::Interface => {
            granted.enter_network(caller)?;
            netns::interface_name(attr.u32(target_at))
        }
        AttachTarget::CurrentNetns => {
            granted.enter_network(caller)?;
            None
        }
        AttachTarget::Netns => {
            let fd = caller.descriptor(attr.fd(target_at))?;
            let inode = netns::inode_of_descriptor(fd.as_fd());
            granted.own_network(caller)?;
            if inode.is_none() || inode != granted.network.as_ref().map(|(_, own)| *own) {
                return Err(foreign("the network namespace", "it is not the one that the container was started with"));
            }
            prepared.set_descriptor(target_at, fd);
            None
        }
        AttachTarget::Cgroup => {
            let fd = caller.descriptor(attr.fd(target_at))?;
            let Some(own) = granted.container.cgroup else {
                return Err(foreign("the cgroup", "the container has no cgroup of its own in the v2 hierarchy"));
            };
            if !cgroup::is_within(fd.as_fd(), own)? {
                return Err(foreign("the cgroup", "it is neither that of the container nor below it"));
            }
            let is_own = cgroup::id(&fd).is_ok_and(|id| id == own);
            prepared.set_descriptor(target_at, fd);
            Some(if is_own { "the container's cgroup" } else { "a cgroup below the container's" }.to_owned())
        }
        AttachTarget::Map => {
            let fd = caller.descriptor(attr.fd(target_at))?;
            granted.check_map(account, fd.as_fd())?;
            let id = bpf::map_id(fd.as_fd()).ok();
            prepared.set_descriptor(target_at, fd);
            id.map(|id| format!("map {id}"))
        }
        AttachTarget::PerfEvent => {
            prepared.set_descriptor(target_at, caller.descriptor(attr.fd(target_at))?);
            Some("a perf event".to_owned())
        }
        // Judged by the grant alone.
        AttachTarget::Functions => Some(format!("{} functions of the kernel", attr.u32(kprobe_multi::COUNT))),
        AttachTarget::File => {
            let pointer = attr.pointers().iter().find(|pointer| pointer.extent == Extent::File).ok_or(Errno::INVAL)?;
            // The kernel answers the same to a null pointer.
            let path = prepared.buffer(pointer.at).ok_or(Errno::INVAL)?;
            let path = CStr::from_bytes_with_nul(path).map_err(|_| Errno::INVAL)?;
            let file = perf_event::traced_file(caller, path)?;
            let shown = path.to_string_lossy().into_owned();
            prepared.point_to_file(*pointer, file);
            match attr.u32(uprobe_multi::PID) {
                0 => {}
                number => prepared.set_u32(uprobe_multi::PID, perf_event::watched_task(caller, number)?),
            }
            Some(shown)
        }
        AttachTarget::Loaded => {
            if attr.command == NotifiedCommand::LinkCreate && attr.fd(link::TARGET) != 0 {
                return Err(ProxyRefusal::NotPassedOn { what: "a link to another program".to_owned() }.into());
            }
            let name = copied.input(raw_tracepoint::NAME).filter(|_| attr.command == NotifiedCommand::RawTracepointOpen);
            name.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        }
    };
    let kind = (attr.command == NotifiedCommand::LinkCreate).then(|| Category::Attachs.name(attr.u32(link::ATTACH_TYPE)));
    let parts = [kind.flatten().map(str::to_owned), place];
    let place = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    Ok(AttachedProgram { program_type, place: Some(place).filter(|place| !place.is_empty()) })
}
