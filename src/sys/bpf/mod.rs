//! The bpf(2) calls that bpfman-hook makes, each with the fields that it uses. Every returned descriptor is owned and
//! close-on-exec; an object exists as long as a descriptor, a pin, a link or another object refers to it.
//!
//! The numbers and layouts are those of uapi/linux/bpf.h, as defined in `aya_obj::generated`. Fields that the running
//! kernel does not know are zero, which it accepts (Linux `Documentation/userspace-api/ebpf/syscall.rst`).

pub mod after_fork;
mod info;
mod link;
mod load;
mod perf;
pub mod prepared;
pub mod probe;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::bpf_attr;
use aya_obj::generated::bpf_cmd::{
    self, BPF_BTF_GET_FD_BY_ID, BPF_BTF_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, BPF_LINK_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID,
    BPF_MAP_GET_NEXT_ID, BPF_OBJ_GET, BPF_OBJ_PIN, BPF_PROG_GET_FD_BY_ID, BPF_PROG_GET_NEXT_ID,
};
use rustix::io::Errno;

use crate::model::proxy::attr::ATTR_SIZE;

pub use info::{
    LinkInfo, MapInfo, ProgramInfo, attach_function, btf_bytes, btf_kind, id_if_map, is_link, link_info, locked_memory, map_id,
    map_info, module_btf, program_id, program_info, program_kind, token_info,
};
pub use link::{
    LinkTarget, cgroup_attach, cgroup_detach, kprobe_multi_link, link_create, netfilter_link, raw_tracepoint_open,
    trampoline_link, uprobe_multi_link,
};
pub use load::{
    BtfRecords, IndexedLoad, MapCreate, MapTypes, ProgramLoad, ProgramSignature, btf_load, map_create, map_delete, map_freeze,
    map_keys, map_lookup, map_update, program_load, program_load_indexed,
};
pub use perf::{
    ProbeTarget, clock_event, kprobe_event, own_tracepoint_event, pmu_type, proxied_event, software_event, tracepoint_event,
    uprobe_event,
};

/// The kinds of objects that have ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
    /// BTF.
    Btf,
}

/// Pins an object in a bpffs. The object exists as long as the pin does.
///
/// # Errors
/// EEXIST if the name is in use, EINVAL if the path is not in a bpffs, EPERM if the name contains a dot
/// (kernel/bpf/inode.c).
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    // SAFETY: `pathname` points to a NUL-terminated string that outlives the call.
    unsafe { call(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// ENOENT if the pin does not exist, EACCES if the path is not in a bpffs.
pub fn open_pin(path: &Path) -> Result<OwnedFd, Errno> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: `pathname` points to a NUL-terminated string that outlives the call.
    unsafe { new_fd(BPF_OBJ_GET, &mut attr) }
}

/// Opens the program with this id. Needs CAP_SYS_ADMIN; CAP_BPF is not sufficient (kernel/bpf/syscall.c,
/// `bpf_prog_get_fd_by_id`).
///
/// # Errors
/// ENOENT if it does not exist, EPERM without the capability.
pub fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the command only reads integers of `attr` and returns a new descriptor.
    unsafe { new_fd(BPF_PROG_GET_FD_BY_ID, &mut attr) }
}

/// Opens the BTF with this id. Needs CAP_SYS_ADMIN.
fn btf_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    // SAFETY: the command only reads integers of `attr` and returns a new descriptor.
    unsafe { new_fd(BPF_BTF_GET_FD_BY_ID, &mut attr) }
}

/// Opens the link with this id. ENOENT if it does not exist or is being freed. Needs CAP_SYS_ADMIN.
pub fn link_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: the command only reads integers of `attr` and returns a new descriptor.
    unsafe { new_fd(BPF_LINK_GET_FD_BY_ID, &mut attr) }
}

/// True unless no object of a kind has this id any more. Needs CAP_SYS_ADMIN.
pub fn exists(kind: ObjectKind, id: u32) -> bool {
    let cmd = match kind {
        ObjectKind::Program => BPF_PROG_GET_FD_BY_ID,
        ObjectKind::Map => BPF_MAP_GET_FD_BY_ID,
        ObjectKind::Link => BPF_LINK_GET_FD_BY_ID,
        ObjectKind::Btf => BPF_BTF_GET_FD_BY_ID,
    };
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the command only reads integers of `attr` and returns a new descriptor.
    !matches!(unsafe { new_fd(cmd, &mut attr) }, Err(Errno::NOENT))
}

/// Returns the ids of all objects of a kind in ascending order. Needs CAP_SYS_ADMIN.
pub fn ids(kind: ObjectKind) -> Result<Vec<u32>, Errno> {
    let mut found = Vec::new();
    while let Some(id) = next_id(kind, found.last().copied().unwrap_or_default())? {
        found.push(id);
    }
    Ok(found)
}

/// True if there is an object with this id. This takes one call, and no descriptor is made. Needs CAP_SYS_ADMIN.
pub fn has_id(kind: ObjectKind, id: u32) -> Result<bool, Errno> {
    Ok(id > 0 && next_id(kind, id - 1)? == Some(id))
}

/// The lowest id of an object above `start`.
fn next_id(kind: ObjectKind, start: u32) -> Result<Option<u32>, Errno> {
    let cmd = match kind {
        ObjectKind::Program => BPF_PROG_GET_NEXT_ID,
        ObjectKind::Map => BPF_MAP_GET_NEXT_ID,
        ObjectKind::Link => BPF_LINK_GET_NEXT_ID,
        ObjectKind::Btf => BPF_BTF_GET_NEXT_ID,
    };
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.start_id = start;
    // SAFETY: the command only reads and writes two integers of `attr`.
    match unsafe { call(cmd, &mut attr) } {
        // SAFETY: every bit pattern of this union member is an integer.
        Ok(_) => Ok(Some(unsafe { attr.__bindgen_anon_6.next_id })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An object name as the kernel accepts it for programs and maps: the first 15 characters, with invalid ones replaced
/// by underscores.
fn object_name(name: &str) -> [std::ffi::c_char; 16] {
    let mut field = [0; 16];
    for (place, byte) in field.iter_mut().take(15).zip(name.bytes()) {
        let legal = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        *place = if legal { byte.cast_signed() as std::ffi::c_char } else { b'_' as std::ffi::c_char };
    }
    field
}

fn name_of(field: [std::ffi::c_char; 16]) -> String {
    let bytes = field.map(|c| c.to_ne_bytes()[0]);
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `union bpf_attr` with every byte zero, including padding: the kernel rejects unknown fields that are not zero.
fn zeroed() -> bpf_attr {
    // SAFETY: the union consists of integers and arrays of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Converts the length of a buffer to a 32-bit field.
fn len(bytes: usize) -> Result<u32, Errno> {
    u32::try_from(bytes).map_err(|_| Errno::TOOBIG)
}

/// # Safety
/// Every pointer in the fields that `cmd` reads must be valid for what `cmd` does with it.
unsafe fn call(cmd: bpf_cmd, attr: &mut bpf_attr) -> Result<i64, Errno> {
    // SAFETY: guaranteed by the caller.
    unsafe { call_with(cmd, (&raw mut *attr).cast(), size_of::<bpf_attr>()) }
}

/// # Safety
/// As for `call`; `attr` must be readable and writable for `size` bytes.
unsafe fn call_with(cmd: bpf_cmd, attr: *mut u8, size: usize) -> Result<i64, Errno> {
    // The verifier fails with EAGAIN if a signal is pending (kernel/bpf/verifier.c); libbpf makes the same number of
    // attempts.
    const ATTEMPTS: u32 = 5;
    let mut attempt = 1;
    loop {
        // SAFETY: the kernel copies `attr`, whose size is given, and writes back within that size; the caller
        // guarantees the pointers in its fields.
        let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_long, attr, size) };
        if result >= 0 {
            return Ok(result);
        }
        let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO);
        if error != Errno::AGAIN || attempt == ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
    }
}

/// # Safety
/// As for `call`, and on success `cmd` must return a new descriptor.
unsafe fn new_fd(cmd: bpf_cmd, attr: &mut bpf_attr) -> Result<OwnedFd, Errno> {
    // SAFETY: guaranteed by the caller.
    let fd = unsafe { call(cmd, attr) }?;
    // SAFETY: `cmd` returned it.
    unsafe { owned(fd) }
}

/// # Safety
/// A call has just returned this new descriptor.
unsafe fn owned(fd: i64) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just created this descriptor for us (bpf(2) opens all of them with O_CLOEXEC), so nothing
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `union bpf_attr` with fields of Linux 6.18 that the bindings do not have.
struct LongAttr([u64; ATTR_SIZE / 8]);

impl LongAttr {
    fn new(attr: &bpf_attr) -> Self {
        const _: () = assert!(size_of::<bpf_attr>() <= ATTR_SIZE);
        let mut long = Self([0; ATTR_SIZE / 8]);
        // SAFETY: `long` is not smaller; the union consists of integers, of which every bit pattern is a value.
        unsafe { (&raw const *attr).cast::<u8>().copy_to(long.0.as_mut_ptr().cast(), size_of::<bpf_attr>()) };
        long
    }

    /// Sets a field at its offset in bytes, of which it is a multiple of its size.
    fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        let mut bytes = self.0[at / 8].to_ne_bytes();
        bytes[at % 8..][..N].copy_from_slice(&value);
        self.0[at / 8] = u64::from_ne_bytes(bytes);
    }

    /// # Safety
    /// As for `new_fd`.
    unsafe fn new_fd(mut self, cmd: bpf_cmd) -> Result<OwnedFd, Errno> {
        // SAFETY: the array has ATTR_SIZE bytes; the rest is guaranteed by the caller.
        let fd = unsafe { call_with(cmd, self.0.as_mut_ptr().cast(), ATTR_SIZE) }?;
        // SAFETY: `cmd` returned it.
        unsafe { owned(fd) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_truncated_and_sanitized() {
        assert_eq!(name_of(object_name("count_packets")), "count_packets");
        assert_eq!(name_of(object_name(".rodata.str1.1")), ".rodata.str1.1");
        assert_eq!(name_of(object_name("a-very long näme")), "a-very long n__".replace(['-', ' '], "_"));
        assert_eq!(name_of(object_name("")), "");
    }
}
