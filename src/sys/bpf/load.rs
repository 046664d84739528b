//! Loads maps, BTF and programs into the kernel.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use aya_obj::generated::bpf_cmd::{
    BPF_BTF_LOAD, BPF_MAP_CREATE, BPF_MAP_DELETE_ELEM, BPF_MAP_FREEZE, BPF_MAP_GET_NEXT_KEY, BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD,
};
use aya_obj::generated::{BPF_F_TOKEN_FD, bpf_attr};
use rustix::io::Errno;

use super::{LongAttr, call, len, new_fd, object_name, raw, zeroed};
use crate::model::proxy::attr::{map as create, prog};

/// `BPF_F_VTYPE_BTF_OBJ_FD`
const VALUE_OF_MODULE: u32 = 1 << 15;

/// The BTF types of a map's keys and values.
#[derive(Debug, Clone, Copy)]
pub struct MapTypes<'a> {
    /// The BTF.
    pub btf: BorrowedFd<'a>,
    /// Type id of the key; 0 for none.
    pub key: u32,
    /// Type id of the value.
    pub value: u32,
}

/// The parameters of BPF_MAP_CREATE.
#[derive(Debug, Clone, Copy)]
pub struct MapCreate<'a> {
    /// The name, truncated to 15 characters.
    pub name: &'a str,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// Number of entries, or the size of a ring buffer in bytes.
    pub max_entries: u32,
    /// `map_flags`
    pub flags: u32,
    /// `map_extra`
    pub extra: u64,
    /// The NUMA node, if `flags` have BPF_F_NUMA_NODE.
    pub numa_node: u32,
    /// Type id of a structure of functions in the kernel's BTF, or in that of a module; 0 for other maps.
    pub kernel_value: u32,
    /// The module's BTF.
    pub module: Option<BorrowedFd<'a>>,
    /// A template for the inner maps of a map of maps.
    pub inner: Option<BorrowedFd<'a>>,
    /// Types of key and value.
    pub types: Option<MapTypes<'a>>,
    /// The token that replaces the capability.
    pub token: Option<BorrowedFd<'a>>,
    /// The sha256 of the instructions of the only program that may use it (Linux 6.18).
    pub exclusive: Option<&'a [u8; 32]>,
}

/// Creates a map. It is freed with its last descriptor unless it is pinned or used by a program.
///
/// # Errors
/// EPERM without CAP_BPF, ENOMEM, E2BIG for sizes that are too large, EINVAL for parameters that the type does not
/// accept.
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
    fields.numa_node = map.numa_node;
    fields.btf_vmlinux_value_type_id = map.kernel_value;
    if let Some(module) = map.module {
        fields.map_flags |= VALUE_OF_MODULE;
        fields.value_type_btf_obj_fd = raw(module).cast_signed();
    }
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
    let Some(hash) = map.exclusive else {
        // SAFETY: no field is a pointer.
        return unsafe { new_fd(BPF_MAP_CREATE, &mut attr) };
    };
    let mut attr = LongAttr::new(&attr);
    attr.put(create::PROGRAM_HASH, (hash.as_ptr() as u64).to_ne_bytes());
    attr.put(create::PROGRAM_HASH_SIZE, len(hash.len())?.to_ne_bytes());
    // SAFETY: the only pointer is readable for the size beside it.
    unsafe { attr.new_fd(BPF_MAP_CREATE) }
}

/// Sets a value of a map, whether the key exists or not. `key` and `value` must have the map's sizes.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    check_sizes(map, key.len(), value.len())?;
    // SAFETY: the kernel reads as many bytes as the map's key and value have, which check_sizes has compared with the
    // slices.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Reads a value of a map that is not per-CPU.
///
/// # Errors
/// ENOENT if the map does not have the key; EOPNOTSUPP for per-CPU maps, which have one value per possible CPU.
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
    // SAFETY: the kernel reads a key and writes a value of the map's sizes, which are those of the buffers.
    unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(value)
}

/// The keys of a map, each once unless a program removes some meanwhile.
pub fn map_keys(map: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let info = super::map_info(map)?;
    let mut keys: Vec<Vec<u8>> = Vec::new();
    // A map that programs change while it is read may start again.
    while keys.len() <= info.max_entries as usize {
        let mut next = vec![0; info.key_size as usize];
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = raw(map);
        attr.__bindgen_anon_2.key = keys.last().map_or(0, |key| key.as_ptr() as u64);
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        // SAFETY: the kernel reads a key, unless it is null, and writes one; both buffers have the size of the map's keys.
        match unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => keys.push(next),
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(keys)
}

/// Removes a key from a map; the result says whether the map had it.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> Result<bool, Errno> {
    let info = super::map_info(map)?;
    if info.key_size as usize != key.len() {
        return Err(Errno::INVAL);
    }
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    // SAFETY: the kernel reads as many bytes as the map's key has, which was compared with the slice.
    match unsafe { call(BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn check_sizes(map: BorrowedFd<'_>, key: usize, value: usize) -> Result<(), Errno> {
    let info = super::map_info(map)?;
    if info.per_cpu() || info.key_size as usize != key || info.value_size as usize != value {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Permanently disables writes to a map from user space. Programs can still write.
///
/// # Errors
/// EBUSY if the map is mapped for writing, ENOTSUPP (524) or EINVAL for types that cannot be frozen.
pub fn map_freeze(map: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = raw(map);
    // SAFETY: the only field that is read is a descriptor.
    unsafe { call(BPF_MAP_FREEZE, &mut attr) }.map(drop)
}

/// Loads BTF. It exists as long as a descriptor or an object that uses it.
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

/// Records about a program's instructions: consecutive `struct bpf_func_info` or `struct bpf_line_info`.
#[derive(Debug, Clone, Copy)]
pub struct BtfRecords<'a> {
    /// The records as bytes.
    pub bytes: &'a [u8],
    /// Size of a record in bytes.
    pub size: usize,
}

/// The parameters of BPF_PROG_LOAD.
#[derive(Debug, Clone, Copy)]
pub struct ProgramLoad<'a> {
    /// The name, truncated to 15 characters.
    pub name: &'a str,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`
    pub expected_attach_type: u32,
    /// Type id of the kernel function to attach to, in the kernel's BTF; 0 for none.
    pub attach_btf_id: u32,
    /// Where `attach_btf_id` is: the BTF of a module, or a program; None for the kernel's own BTF.
    pub attach_to: Option<BorrowedFd<'a>>,
    /// Descriptors of the BTF of modules, which calls of kernel functions refer to by index; the first is not used.
    pub modules: &'a [RawFd],
    /// The `BPF_F_*` flags of programs.
    pub flags: u32,
    /// Instructions of eight bytes each.
    pub instructions: &'a [[u8; 8]],
    /// The license, which decides which helpers may be called.
    pub license: &'a str,
    /// The BTF that the records refer to, and the records.
    pub debug: Option<(BorrowedFd<'a>, BtfRecords<'a>, BtfRecords<'a>)>,
    /// The token that replaces the capability.
    pub token: Option<BorrowedFd<'a>>,
}

/// Loads a program, which the verifier checks. It is freed with its last descriptor unless it is pinned or used by a
/// link.
///
/// With a log buffer, the verifier explains its decision in it and is slower. The text ends at the first NUL.
///
/// # Errors
/// The verifier's errno, EPERM without the capabilities that the type needs, or ENOSPC if the log does not fit.
pub fn program_load(program: &ProgramLoad<'_>, log: Option<&mut [u8]>) -> Result<OwnedFd, Errno> {
    let license = CString::new(program.license).map_err(|_| Errno::INVAL)?;
    let mut attr = program_attr(program, &license, log)?;
    // SAFETY: `insns`, `func_info` and `line_info` are readable for count times record size, `license` is NUL-terminated,
    // `log_buf` is writable for `log_size` bytes; all outlive the call.
    unsafe { new_fd(BPF_PROG_LOAD, &mut attr) }
}

/// A signature over the instructions of a program.
#[derive(Debug, Clone, Copy)]
pub struct ProgramSignature<'a> {
    /// PKCS#7 in DER.
    pub bytes: &'a [u8],
    /// The serial number of the keyring with the signer's certificate.
    pub keyring: i32,
}

/// What [`program_load`] does not pass.
#[derive(Debug, Clone, Copy)]
pub struct IndexedLoad<'a> {
    /// The maps that the instructions index.
    pub maps: &'a [BorrowedFd<'a>],
    /// `struct bpf_core_relo`: relocations that the kernel resolves. They need BTF and records of functions.
    pub core: BtfRecords<'a>,
    /// The signature that the kernel checks.
    pub signature: Option<ProgramSignature<'a>>,
}

/// Loads a program whose instructions are independent of this process and of the kernel.
///
/// # Errors
/// As [`program_load`]. With a signature: EOPNOTSUPP if the kernel is built without checking it, EINVAL or E2BIG if it knows
/// no signatures (before Linux 6.18); ENOKEY if the keyring has no certificate of the signer, EKEYREJECTED if other
/// instructions were signed, EBADMSG if it is malformed.
pub fn program_load_indexed(
    program: &ProgramLoad<'_>,
    indexed: &IndexedLoad<'_>,
    log: Option<&mut [u8]>,
) -> Result<OwnedFd, Errno> {
    let license = CString::new(program.license).map_err(|_| Errno::INVAL)?;
    let maps: Vec<u32> = indexed.maps.iter().map(|map| raw(*map)).collect();
    let mut attr = LongAttr::new(&program_attr(program, &license, log)?);
    if !maps.is_empty() {
        attr.put(prog::FD_ARRAY, (maps.as_ptr() as u64).to_ne_bytes());
    }
    if !indexed.core.bytes.is_empty() {
        attr.put(prog::CORE_RELOS, (indexed.core.bytes.as_ptr() as u64).to_ne_bytes());
        attr.put(prog::CORE_RELO_CNT, count(indexed.core)?.to_ne_bytes());
        attr.put(prog::CORE_RELO_REC_SIZE, len(indexed.core.size)?.to_ne_bytes());
    }
    if let Some(signature) = indexed.signature {
        attr.put(prog::SIGNATURE, (signature.bytes.as_ptr() as u64).to_ne_bytes());
        attr.put(prog::SIGNATURE_SIZE, len(signature.bytes.len())?.to_ne_bytes());
        attr.put(prog::KEYRING_ID, signature.keyring.to_ne_bytes());
    }
    // SAFETY: as in `program_load`. `core_relos` and `signature` are readable for their sizes, and `fd_array` for every index
    // of the instructions, which the callers in this crate have made together with `maps`; the kernel copies each
    // descriptor on its own and fails if it cannot (kernel/bpf/verifier.c, `resolve_pseudo_ldimm64`).
    unsafe { attr.new_fd(BPF_PROG_LOAD) }
}

/// The attributes of a load. Pointers in it live as long as the arguments.
fn program_attr(program: &ProgramLoad<'_>, license: &CStr, log: Option<&mut [u8]>) -> Result<bpf_attr, Errno> {
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = program.program_type;
    fields.expected_attach_type = program.expected_attach_type;
    fields.attach_btf_id = program.attach_btf_id;
    if let Some(fd) = program.attach_to {
        fields.__bindgen_anon_1.attach_btf_obj_fd = raw(fd);
    }
    if !program.modules.is_empty() {
        fields.fd_array = program.modules.as_ptr() as u64;
    }
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
    Ok(attr)
}

fn count(records: BtfRecords<'_>) -> Result<u32, Errno> {
    len(records.bytes.len().checked_div(records.size).unwrap_or_default())
}
