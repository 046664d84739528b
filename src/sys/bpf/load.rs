//! Maps, BTF and programs into the kernel.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::BPF_F_TOKEN_FD;
use aya_obj::generated::bpf_cmd::{
    BPF_BTF_LOAD, BPF_MAP_CREATE, BPF_MAP_FREEZE, BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD,
};
use rustix::io::Errno;

use super::{call, len, new_fd, object_name, raw, zeroed};

/// Types of a map's keys and values in an object's BTF.
#[derive(Debug, Clone, Copy)]
pub struct MapTypes<'a> {
    /// The BTF.
    pub btf: BorrowedFd<'a>,
    /// Type of the key; 0 for none.
    pub key: u32,
    /// Type of the value.
    pub value: u32,
}

/// What BPF_MAP_CREATE is told.
#[derive(Debug, Clone, Copy)]
pub struct MapCreate<'a> {
    /// For people; cut to 15 characters.
    pub name: &'a str,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries, or bytes of a ring buffer.
    pub max_entries: u32,
    /// `map_flags`
    pub flags: u32,
    /// `map_extra`
    pub extra: u64,
    /// A map like those that a map of maps will hold.
    pub inner: Option<BorrowedFd<'a>>,
    /// Types of key and value.
    pub types: Option<MapTypes<'a>>,
    /// The token that stands for the capability.
    pub token: Option<BorrowedFd<'a>>,
}

/// Makes a map. It dies with its last fd unless it is pinned or a program uses it.
///
/// # Errors
/// EPERM without CAP_BPF, ENOMEM, E2BIG for sizes that are too large, EINVAL for shapes that the type does not take.
pub fn map_create(map: &MapCreate<'_>) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_1 };
    fields.map_type = map.map_type;
    fields.key_size = map.key_size;
    fields.value_size = map.value_size;
    fields.max_entries = map.max_entries;
    fields.map_flags = map.flags;
    fields.map_extra = map.extra;
    fields.map_name = object_name(map.name);
    if let Some(inner) = map.inner {
        fields.inner_map_fd = raw(inner);
    }
    if let Some(types) = map.types {
        fields.btf_fd = raw(types.btf);
        fields.btf_key_type_id = types.key;
        fields.btf_value_type_id = types.value;
    }
    if let Some(token) = map.token {
        fields.map_flags |= BPF_F_TOKEN_FD;
        fields.map_token_fd = raw(token).cast_signed();
    }
    // SAFETY: no field is a pointer.
    unsafe { new_fd(BPF_MAP_CREATE, &mut attr) }
}

/// Sets one value of a map, whatever was there. `key` and `value` have the map's sizes.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    check_sizes(map, key.len(), value.len())?;
    // SAFETY: the kernel reads as many bytes as the map's key and value have, which check_sizes compared with the slices.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Reads one value of a map that is not per CPU.
///
/// # Errors
/// ENOENT where the map has no such key; EOPNOTSUPP for per-CPU maps, whose values are as many as the machine has CPUs.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8]) -> Result<Vec<u8>, Errno> {
    let info = super::map_info(map)?;
    if info.per_cpu() {
        return Err(Errno::OPNOTSUPP);
    }
    let mut value = vec![0; info.value_size as usize];
    check_sizes(map, key.len(), value.len())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: the kernel reads a key and writes a value of the map's own sizes, which both buffers have.
    unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(value)
}

fn check_sizes(map: BorrowedFd<'_>, key: usize, value: usize) -> Result<(), Errno> {
    let info = super::map_info(map)?;
    if info.per_cpu() || info.key_size as usize != key || info.value_size as usize != value {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Ends writing to a map from user space, for every fd and for good. Programs go on writing.
///
/// # Errors
/// EBUSY where the map is mapped for writing, ENOTSUPP (524) or EINVAL for types that cannot be frozen.
pub fn map_freeze(map: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    // SAFETY: the one field that is read is an fd.
    unsafe { call(BPF_MAP_FREEZE, &mut attr) }.map(drop)
}

/// Gives the kernel types. They live as long as an fd or an object that uses them.
pub fn btf_load(btf: &[u8], token: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_7 };
    fields.btf = btf.as_ptr() as u64;
    fields.btf_size = len(btf.len())?;
    if let Some(token) = token {
        fields.btf_flags |= BPF_F_TOKEN_FD;
        fields.btf_token_fd = raw(token).cast_signed();
    }
    // SAFETY: `btf` is readable for `btf_size` bytes; there is no log buffer.
    unsafe { new_fd(BPF_BTF_LOAD, &mut attr) }
}

/// Records about a program's instructions: `struct bpf_func_info` or `struct bpf_line_info`, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct BtfRecords<'a> {
    /// Their bytes.
    pub bytes: &'a [u8],
    /// Bytes of one record.
    pub size: usize,
}

/// What BPF_PROG_LOAD is told.
#[derive(Debug, Clone, Copy)]
pub struct ProgramLoad<'a> {
    /// For people; cut to 15 characters.
    pub name: &'a str,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`
    pub expected_attach_type: u32,
    /// Type id of the kernel function that it hangs on, in the kernel's BTF; 0 for none.
    pub attach_btf_id: u32,
    /// `BPF_F_*` of programs.
    pub flags: u32,
    /// Instructions of eight bytes each.
    pub instructions: &'a [[u8; 8]],
    /// What the module's licence would be; decides which helpers may be called.
    pub license: &'a str,
    /// The types that the records name, and the records.
    pub debug: Option<(BorrowedFd<'a>, BtfRecords<'a>, BtfRecords<'a>)>,
    /// The token that stands for the capability.
    pub token: Option<BorrowedFd<'a>>,
}

/// Asks the verifier to accept a program. It dies with its last fd unless it is pinned or a link uses it.
///
/// With a log buffer the verifier explains itself in it, and is slower. The text ends at the first NUL.
///
/// # Errors
/// What the verifier found, or EPERM without the capabilities of the type, or ENOSPC where the log did not fit.
pub fn program_load(program: &ProgramLoad<'_>, log: Option<&mut [u8]>) -> Result<OwnedFd, Errno> {
    let license = CString::new(program.license).map_err(|_| Errno::INVAL)?;
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = program.program_type;
    fields.expected_attach_type = program.expected_attach_type;
    fields.attach_btf_id = program.attach_btf_id;
    fields.prog_flags = program.flags;
    fields.prog_name = object_name(program.name);
    fields.insns = program.instructions.as_ptr() as u64;
    fields.insn_cnt = len(program.instructions.len())?;
    fields.license = license.as_ptr() as u64;
    if let Some((btf, functions, lines)) = program.debug {
        fields.prog_btf_fd = raw(btf);
        if !functions.bytes.is_empty() {
            fields.func_info = functions.bytes.as_ptr() as u64;
            fields.func_info_rec_size = len(functions.size)?;
            fields.func_info_cnt = count(functions)?;
        }
        if !lines.bytes.is_empty() {
            fields.line_info = lines.bytes.as_ptr() as u64;
            fields.line_info_rec_size = len(lines.size)?;
            fields.line_info_cnt = count(lines)?;
        }
    }
    if let Some(log) = log {
        fields.log_level = 1;
        fields.log_buf = log.as_mut_ptr() as u64;
        fields.log_size = len(log.len())?;
    }
    if let Some(token) = program.token {
        fields.prog_flags |= BPF_F_TOKEN_FD;
        fields.prog_token_fd = raw(token).cast_signed();
    }
    // SAFETY: `insns`, `func_info` and `line_info` are readable for count times record size, `license` is NUL-terminated,
    // `log_buf` is writable for `log_size` bytes; all outlive the call.
    unsafe { new_fd(BPF_PROG_LOAD, &mut attr) }
}

fn count(records: BtfRecords<'_>) -> Result<u32, Errno> {
    len(records.bytes.len().checked_div(records.size).unwrap_or_default())
}
