//! A bpf(2) call with the arguments of another process: its bytes copied, every pointer replaced by one to a buffer of
//! ours, every descriptor by a copy of ours.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::model::proxy::attr::{ATTR_SIZE, AttrPointer, Extent, ITERATOR, link, prog};
use crate::model::proxy::{CopiedAttr, NotifiedCommand};

/// The last attach type of BPF_LINK_CREATE whose arguments are known, trace_uprobe_session.
const LAST_ATTACH_TYPE: u32 = 57;

/// The arguments of one call.
#[derive(Debug)]
pub struct PreparedCall {
    command: NotifiedCommand,
    /// 64-bit words, so that the fields are aligned.
    attr: [u64; ATTR_SIZE / 8],
    buffers: Vec<(AttrPointer, Vec<u8>)>,
    /// For each buffer of names, where each of them begins.
    names: Vec<Vec<u64>>,
    descriptors: Vec<OwnedFd>,
}

/// What a call returned.
#[derive(Debug)]
pub enum CallResult {
    /// A new descriptor.
    Descriptor(OwnedFd),
    /// Nothing else than success.
    Done,
}

impl PreparedCall {
    /// Takes the arguments without their pointers.
    pub fn new(attr: &CopiedAttr) -> Self {
        let mut words = [0; ATTR_SIZE / 8];
        for (word, bytes) in words.iter_mut().zip(attr.bytes().as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let mut call =
            Self { command: attr.command, attr: words, buffers: Vec::new(), names: Vec::new(), descriptors: Vec::new() };
        for pointer in attr.pointers() {
            call.attr[pointer.at / 8] = 0;
        }
        if attr.command == NotifiedCommand::ProgLoad {
            // The descriptors in this array are replaced in the instructions that refer to them.
            call.attr[prog::FD_ARRAY / 8] = 0;
            call.set_u32(prog::FD_ARRAY_CNT, 0);
        }
        call
    }

    /// Sets a 32-bit field that is not part of a pointer.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        let Some(word) = self.attr.get_mut(at / 8) else { return };
        let mut bytes = word.to_ne_bytes();
        bytes[at % 8 / 4 * 4..][..4].copy_from_slice(&value.to_ne_bytes());
        *word = u64::from_ne_bytes(bytes);
    }

    /// A 32-bit field, as the kernel left it.
    pub fn u32(&self, at: usize) -> u32 {
        let bytes = self.attr.get(at / 8).copied().unwrap_or_default().to_ne_bytes();
        bytes[at % 8 / 4 * 4..].first_chunk().copied().map_or(0, u32::from_ne_bytes)
    }

    /// Points a pointer to a buffer, which the call keeps.
    pub fn point(&mut self, pointer: AttrPointer, buffer: Vec<u8>) {
        self.buffers.retain(|(other, _)| other.at != pointer.at);
        self.buffers.push((pointer, buffer));
    }

    /// The buffer of a pointer.
    pub fn buffer(&self, at: usize) -> Option<&[u8]> {
        self.buffers.iter().find(|(pointer, _)| pointer.at == at).map(|(_, buffer)| buffer.as_slice())
    }

    /// Changes the buffer of a pointer in place.
    pub fn buffer_mut(&mut self, at: usize) -> Option<&mut [u8]> {
        self.buffers.iter_mut().find(|(pointer, _)| pointer.at == at).map(|(_, buffer)| buffer.as_mut_slice())
    }

    /// Keeps a descriptor for the time of the call and returns its number.
    pub fn keep(&mut self, descriptor: OwnedFd) -> i32 {
        let number = descriptor.as_raw_fd();
        self.descriptors.push(descriptor);
        number
    }

    /// Puts a descriptor into a field.
    pub fn set_descriptor(&mut self, at: usize, descriptor: OwnedFd) {
        let number = self.keep(descriptor);
        self.set_u32(at, number.cast_unsigned());
    }

    /// Points the pointer to a path to an open file, which the call keeps: another path would be looked up among the files
    /// of this process.
    pub fn point_to_file(&mut self, pointer: AttrPointer, file: OwnedFd) {
        let path = path_of(&file);
        self.descriptors.push(file);
        self.point(pointer, path);
    }

    /// Makes the call, with the capabilities that the thread has.
    ///
    /// # Errors
    /// The kernel's errno; EINVAL if the arguments have pointers that were not replaced.
    pub fn perform(&mut self) -> Result<CallResult, Errno> {
        if !self.is_sound() {
            return Err(Errno::INVAL);
        }
        self.names.clear();
        for (pointer, buffer) in &mut self.buffers {
            self.attr[pointer.at / 8] = match pointer.extent {
                Extent::Names { .. } => {
                    let begin = buffer.as_ptr() as u64;
                    let names = buffer.split_inclusive(|byte| *byte == 0).scan(begin, |next, name| {
                        let this = *next;
                        *next += name.len() as u64;
                        Some(this)
                    });
                    let names: Vec<u64> = names.collect();
                    // Its memory stays where it is when it is moved.
                    let address = names.as_ptr() as u64;
                    self.names.push(names);
                    address
                }
                _ => buffer.as_mut_ptr() as u64,
            };
        }
        // The verifier fails with EAGAIN if a signal is pending (kernel/bpf/verifier.c); libbpf makes the same number of
        // attempts.
        const ATTEMPTS: u32 = 5;
        let mut attempt = 1;
        let result = loop {
            let command = libc::c_long::from(self.command.number());
            // SAFETY: `attr` is ATTR_SIZE bytes long. `is_sound` has checked that each of the command's pointers is null
            // or refers to a buffer of at least the size that the fields beside it say, and `point` keeps the buffers as
            // long as this value.
            let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.attr.as_mut_ptr(), ATTR_SIZE) };
            if result >= 0 {
                break result;
            }
            let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO);
            if error != Errno::AGAIN || attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        };
        if matches!(self.command, NotifiedCommand::ProgAttach | NotifiedCommand::ProgDetach) {
            return Ok(CallResult::Done);
        }
        let fd = i32::try_from(result).map_err(|_| Errno::BADF)?;
        // SAFETY: the kernel has just created this descriptor for us (bpf(2) opens all of them with O_CLOEXEC), so nothing
        // else owns it.
        Ok(CallResult::Descriptor(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether each pointer that the command reads is null or refers to a large enough buffer.
    fn is_sound(&self) -> bool {
        let attach_type = self.u32(link::ATTACH_TYPE);
        let known = self.command.pointers(attach_type);
        let listed = |pointer: &AttrPointer| known.contains(pointer);
        let large_enough = |(pointer, buffer): &(AttrPointer, Vec<u8>)| {
            let field = |at| u64::from(self.u32(at));
            let length = buffer.len() as u64;
            listed(pointer)
                && match pointer.extent {
                    Extent::Bytes { size_at } | Extent::Log { size_at } => length >= field(size_at),
                    Extent::Instructions { count_at } => length >= field(count_at).saturating_mul(8),
                    Extent::Records { size_at, count_at } => length >= field(size_at).saturating_mul(field(count_at)),
                    Extent::Text { .. } => buffer.contains(&0),
                    Extent::Words { count_at } => length >= field(count_at).saturating_mul(8),
                    Extent::Names { count_at } => {
                        buffer.last() == Some(&0) && buffer.iter().filter(|byte| **byte == 0).count() as u64 >= field(count_at)
                    }
                    Extent::File => self.descriptors.iter().any(|file| path_of(file) == *buffer),
                }
        };
        let replaced = known.iter().all(|pointer| {
            let has_buffer = self.buffers.iter().any(|(other, _)| other == pointer);
            has_buffer || self.attr[pointer.at / 8] == 0
        });
        // An iterator has a pointer there, which is not passed on; of newer types nothing is known.
        let link = || attach_type <= LAST_ATTACH_TYPE && (attach_type != ITERATOR || self.attr[link::ITER_INFO / 8] == 0);
        let others = match self.command {
            NotifiedCommand::ProgLoad => self.attr[prog::FD_ARRAY / 8] == 0 && self.attr[prog::SIGNATURE / 8] == 0,
            NotifiedCommand::LinkCreate => link(),
            _ => true,
        };
        replaced && others && self.buffers.iter().all(large_enough)
    }
}

/// The path by which this process can have a file that it has opened, with a NUL.
fn path_of(file: &OwnedFd) -> Vec<u8> {
    format!("/proc/self/fd/{}\0", file.as_raw_fd()).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use aya_obj::generated::{
        bpf_attr__bindgen_ty_1, bpf_attr__bindgen_ty_4, bpf_attr__bindgen_ty_6, bpf_attr__bindgen_ty_11,
        bpf_attr__bindgen_ty_12, bpf_attr__bindgen_ty_14,
    };

    use super::*;
    use crate::model::proxy::attr::{attach, btf, kprobe_multi, map, raw_tracepoint};

    fn call(command: NotifiedCommand) -> PreparedCall {
        PreparedCall::new(&CopiedAttr::new(command, &[]).unwrap())
    }

    #[test]
    fn a_buffer_that_is_too_small_is_refused() {
        let mut load = call(NotifiedCommand::BtfLoad);
        let [data, log] = [0, 1].map(|n| NotifiedCommand::BtfLoad.pointers(0)[n]);
        load.set_u32(btf::SIZE, 8);
        load.point(data, vec![0; 7]);
        assert!(!load.is_sound());
        load.point(data, vec![0; 8]);
        load.point(log, Vec::new());
        assert!(load.is_sound());
        load.set_u32(btf::LOG_SIZE, 1);
        assert!(!load.is_sound());
        assert_eq!((load.u32(btf::SIZE), load.u32(btf::LOG_SIZE)), (8, 1));
        // A pointer of another command.
        load.point(NotifiedCommand::MapCreate.pointers(0)[0], vec![0; 64]);
        assert!(!load.is_sound());
    }

    #[test]
    fn callers_pointers_are_never_kept() {
        let all = [0xff; ATTR_SIZE];
        for command in NotifiedCommand::ALL {
            let call = PreparedCall::new(&CopiedAttr::new(command, &all[..command.size()]).unwrap());
            assert!(command.pointers(u32::MAX).iter().all(|pointer| call.attr[pointer.at / 8] == 0), "{command:?}");
            let has_others = matches!(command, NotifiedCommand::ProgLoad | NotifiedCommand::LinkCreate);
            assert_eq!(call.is_sound(), !has_others, "{command:?}");
        }
        let mut iterator = call(NotifiedCommand::LinkCreate);
        assert!(iterator.is_sound());
        iterator.set_u32(link::ATTACH_TYPE, ITERATOR);
        assert!(iterator.is_sound());
        iterator.set_u32(link::ITER_INFO, 1);
        assert!(!iterator.is_sound());
    }

    #[test]
    fn names_and_files_are_ours() {
        let mut bytes = [0; 64];
        bytes[link::ATTACH_TYPE] = 42;
        bytes[kprobe_multi::COUNT] = 2;
        bytes[kprobe_multi::SYMBOLS..kprobe_multi::ADDRESSES].fill(0xff);
        let mut call = PreparedCall::new(&CopiedAttr::new(NotifiedCommand::LinkCreate, &bytes).unwrap());
        let [symbols, addresses, _] = *NotifiedCommand::LinkCreate.pointers(42) else { panic!("three pointers") };
        assert_eq!(call.attr[symbols.at / 8], 0);
        for (names, sound) in [(&b"a\0"[..], false), (b"a\0b", false), (b"a\0b\0", true)] {
            call.point(symbols, names.to_vec());
            assert_eq!(call.is_sound(), sound, "{names:?}");
        }
        call.point(addresses, vec![0; 15]);
        assert!(!call.is_sound());

        let mut bytes = [0; 64];
        bytes[link::ATTACH_TYPE] = 48;
        let mut call = PreparedCall::new(&CopiedAttr::new(NotifiedCommand::LinkCreate, &bytes).unwrap());
        let path = NotifiedCommand::LinkCreate.pointers(48)[0];
        call.point(path, b"/bin/sh\0".to_vec());
        assert!(!call.is_sound());
        call.point_to_file(path, std::fs::File::open("/dev/null").unwrap().into());
        assert!(call.is_sound());
    }

    #[test]
    fn offsets_are_those_of_the_header() {
        type Map = bpf_attr__bindgen_ty_1;
        type Prog = bpf_attr__bindgen_ty_4;
        type Attach = bpf_attr__bindgen_ty_6;
        type RawTracepoint = bpf_attr__bindgen_ty_11;
        type BtfLoad = bpf_attr__bindgen_ty_12;
        type Link = bpf_attr__bindgen_ty_14;
        for (ours, header) in [
            (map::TYPE, offset_of!(Map, map_type)),
            (map::MAX_ENTRIES, offset_of!(Map, max_entries)),
            (map::FLAGS, offset_of!(Map, map_flags)),
            (map::INNER_MAP_FD, offset_of!(Map, inner_map_fd)),
            (map::NAME, offset_of!(Map, map_name)),
            (map::IFINDEX, offset_of!(Map, map_ifindex)),
            (map::BTF_FD, offset_of!(Map, btf_fd)),
            (map::BTF_KEY_TYPE, offset_of!(Map, btf_key_type_id)),
            (map::BTF_VALUE_TYPE, offset_of!(Map, btf_value_type_id)),
            (map::VMLINUX_VALUE_TYPE, offset_of!(Map, btf_vmlinux_value_type_id)),
            (map::VALUE_BTF_FD, offset_of!(Map, value_type_btf_obj_fd)),
            (map::TOKEN_FD, offset_of!(Map, map_token_fd)),
            (prog::INSN_CNT, offset_of!(Prog, insn_cnt)),
            (prog::INSNS, offset_of!(Prog, insns)),
            (prog::LICENSE, offset_of!(Prog, license)),
            (prog::LOG_LEVEL, offset_of!(Prog, log_level)),
            (prog::LOG_SIZE, offset_of!(Prog, log_size)),
            (prog::LOG_BUF, offset_of!(Prog, log_buf)),
            (prog::FLAGS, offset_of!(Prog, prog_flags)),
            (prog::NAME, offset_of!(Prog, prog_name)),
            (prog::IFINDEX, offset_of!(Prog, prog_ifindex)),
            (prog::EXPECTED_ATTACH_TYPE, offset_of!(Prog, expected_attach_type)),
            (prog::BTF_FD, offset_of!(Prog, prog_btf_fd)),
            (prog::FUNC_INFO_REC_SIZE, offset_of!(Prog, func_info_rec_size)),
            (prog::FUNC_INFO, offset_of!(Prog, func_info)),
            (prog::FUNC_INFO_CNT, offset_of!(Prog, func_info_cnt)),
            (prog::LINE_INFO_REC_SIZE, offset_of!(Prog, line_info_rec_size)),
            (prog::LINE_INFO, offset_of!(Prog, line_info)),
            (prog::LINE_INFO_CNT, offset_of!(Prog, line_info_cnt)),
            (prog::ATTACH_BTF_ID, offset_of!(Prog, attach_btf_id)),
            (prog::ATTACH_FD, offset_of!(Prog, __bindgen_anon_1)),
            (prog::CORE_RELO_CNT, offset_of!(Prog, core_relo_cnt)),
            (prog::FD_ARRAY, offset_of!(Prog, fd_array)),
            (prog::CORE_RELOS, offset_of!(Prog, core_relos)),
            (prog::CORE_RELO_REC_SIZE, offset_of!(Prog, core_relo_rec_size)),
            (prog::LOG_TRUE_SIZE, offset_of!(Prog, log_true_size)),
            (prog::TOKEN_FD, offset_of!(Prog, prog_token_fd)),
            (attach::PROG_FD, offset_of!(Attach, attach_bpf_fd)),
            (attach::ATTACH_TYPE, offset_of!(Attach, attach_type)),
            (attach::FLAGS, offset_of!(Attach, attach_flags)),
            (attach::REPLACE_FD, offset_of!(Attach, replace_bpf_fd)),
            (raw_tracepoint::PROG_FD, offset_of!(RawTracepoint, prog_fd)),
            (btf::LOG_BUF, offset_of!(BtfLoad, btf_log_buf)),
            (btf::SIZE, offset_of!(BtfLoad, btf_size)),
            (btf::LOG_SIZE, offset_of!(BtfLoad, btf_log_size)),
            (btf::LOG_LEVEL, offset_of!(BtfLoad, btf_log_level)),
            (btf::LOG_TRUE_SIZE, offset_of!(BtfLoad, btf_log_true_size)),
            (btf::FLAGS, offset_of!(BtfLoad, btf_flags)),
            (btf::TOKEN_FD, offset_of!(BtfLoad, btf_token_fd)),
            (link::ATTACH_TYPE, offset_of!(Link, attach_type)),
            (link::FLAGS, offset_of!(Link, flags)),
        ] {
            assert_eq!(ours, header);
        }
    }
}
