//! Information about BPF objects: BPF_OBJ_GET_INFO_BY_FD.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_cmd::BPF_OBJ_GET_INFO_BY_FD;
use aya_obj::generated::{bpf_btf_info, bpf_link_info, bpf_map_info, bpf_prog_info};
use rustix::io::Errno;

use crate::model::delegation::{Category, Delegation};

use super::{call, len, name_of, raw, zeroed};

/// A loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The kernel's id.
    pub id: u32,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// At most 15 characters.
    pub name: String,
    /// The kernel's digest of the instructions.
    pub tag: [u8; 8],
    /// When it was loaded, in nanoseconds since boot.
    pub loaded: u64,
    /// Number of instructions that the verifier processed; 0 before Linux 5.16.
    pub verified_instructions: u32,
    /// Size in bytes of the instructions after verification.
    pub xlated_size: u32,
    /// True if its license allows it to call every helper.
    pub gpl_compatible: bool,
    /// Id of its BTF; 0 if it has none.
    pub btf: u32,
    /// Size of the machine code in bytes.
    pub jited_size: u32,
    /// Total run time in nanoseconds; 0 unless kernel.bpf_stats_enabled is set.
    pub run_time: u64,
    /// Number of runs; 0 unless kernel.bpf_stats_enabled is set.
    pub runs: u64,
    /// Ids of the maps that it uses.
    pub maps: Vec<u32>,
}

/// A map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapInfo {
    /// The kernel's id.
    pub id: u32,
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// At most 15 characters.
    pub name: String,
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
}

impl MapInfo {
    /// True for maps with one value per CPU: the kernel copies all of them at once.
    pub fn per_cpu(&self) -> bool {
        const PERCPU_HASH: u32 = 5;
        const PERCPU_ARRAY: u32 = 6;
        const LRU_PERCPU_HASH: u32 = 10;
        const PERCPU_CGROUP_STORAGE: u32 = 21;
        matches!(self.map_type, PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH | PERCPU_CGROUP_STORAGE)
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's id.
    pub id: u32,
    /// `enum bpf_link_type`
    pub link_type: u32,
    /// Id of the program.
    pub program: u32,
    /// The interface of an xdp or tcx link; 0 once the interface is gone.
    pub interface: Option<u32>,
    /// The cgroup id of a cgroup link; 0 once the cgroup is gone.
    pub cgroup: Option<u64>,
}

/// Returns the kernel's information about a program.
pub fn program_info(program: BorrowedFd<'_>) -> Result<ProgramInfo, Errno> {
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their counts are zero.
    unsafe { query(program, &mut info) }?;
    let maps = map_ids(program, info.nr_map_ids)?;
    Ok(ProgramInfo {
        id: info.id,
        program_type: info.type_,
        name: name_of(info.name),
        tag: info.tag,
        loaded: info.load_time,
        verified_instructions: info.verified_insns,
        xlated_size: info.xlated_prog_len,
        gpl_compatible: info.gpl_compatible() == 1,
        btf: info.btf_id,
        jited_size: info.jited_prog_len,
        run_time: info.run_time_ns,
        runs: info.run_cnt,
        maps,
    })
}

/// Returns the type of a program and the BTF type id of the kernel function that it is attached to, in the BTF of the
/// kernel or of a module; 0 if it is not attached to one.
pub fn attach_function(program: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their counts are zero.
    unsafe { query(program, &mut info) }?;
    Ok((info.type_, info.attach_btf_id))
}

/// The kernel's id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their counts are zero.
    unsafe { query(program, &mut info) }?;
    Ok(info.id)
}

fn map_ids(program: BorrowedFd<'_>, count: u32) -> Result<Vec<u32>, Errno> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut ids = vec![0_u32; count as usize];
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = count;
    info.map_ids = ids.as_mut_ptr() as u64;
    // SAFETY: `map_ids` is writable for `nr_map_ids` integers, and the kernel does not write more; the other counts are
    // zero.
    unsafe { query(program, &mut info) }?;
    ids.truncate(info.nr_map_ids as usize);
    Ok(ids)
}

/// Returns the kernel's information about a map.
pub fn map_info(map: BorrowedFd<'_>) -> Result<MapInfo, Errno> {
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct has no pointers.
    unsafe { query(map, &mut info) }?;
    Ok(MapInfo {
        id: info.id,
        map_type: info.type_,
        name: name_of(info.name),
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
        extra: info.map_extra,
    })
}

/// Returns the kernel's information about a link.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo, Errno> {
    const CGROUP: u32 = 3;
    const XDP: u32 = 6;
    const TCX: u32 = 11;
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their counts are zero.
    unsafe { query(link, &mut info) }?;
    Ok(LinkInfo {
        id: info.id,
        link_type: info.type_,
        program: info.prog_id,
        interface: match info.type_ {
            // SAFETY: the kernel filled this member for links of this type; it is an integer.
            XDP => Some(unsafe { info.__bindgen_anon_1.xdp.ifindex }),
            // SAFETY: as above.
            TCX => Some(unsafe { info.__bindgen_anon_1.tcx.ifindex }),
            _ => None,
        },
        // SAFETY: as above.
        cgroup: if info.type_ == CGROUP { Some(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id }) } else { None },
    })
}

/// The type (`enum bpf_prog_type`) and the id of a program; None if the descriptor is something else, about which the
/// kernel would answer in another form.
pub fn program_kind(object: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Errno> {
    if !is_anonymous(object, "anon_inode:bpf-prog") {
        return Ok(None);
    }
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their counts are zero.
    unsafe { query(object, &mut info) }?;
    Ok(Some((info.type_, info.id)))
}

/// The id of a map; None if the descriptor is something else, about which the kernel would answer in another form.
pub fn id_if_map(object: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    if !is_anonymous(object, "anon_inode:bpf-map") {
        return Ok(None);
    }
    map_id(object).map(Some)
}

/// The id of some BTF and its size in bytes; None if the descriptor is something else.
pub fn btf_kind(object: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Errno> {
    if !is_anonymous(object, "anon_inode:btf") {
        return Ok(None);
    }
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_btf_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct's pointers and their sizes are zero.
    unsafe { query(object, &mut info) }?;
    Ok(Some((info.id, info.btf_size)))
}

/// The BTF of a module of the kernel; None if no module has this name or its BTF is not there. Needs CAP_SYS_ADMIN.
pub fn module_btf(module: &str) -> Result<Option<OwnedFd>, Errno> {
    for id in super::ids(super::ObjectKind::Btf)? {
        let btf = match super::btf_by_id(id) {
            Ok(btf) => btf,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let mut name = [0_u8; 64];
        // SAFETY: the struct consists of integers, for which zero is a value.
        let mut info: bpf_btf_info = unsafe { std::mem::zeroed() };
        info.name = name.as_mut_ptr() as u64;
        info.name_len = len(name.len())?;
        // SAFETY: `name` is writable for `name_len` bytes; the other pointer and its size are zero.
        unsafe { query(btf.as_fd(), &mut info) }?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        if info.kernel_btf != 0 && &name[..end] == module.as_bytes() {
            return Ok(Some(btf));
        }
    }
    Ok(None)
}

/// The bytes of some BTF, of the size that [`btf_kind`] returned.
pub fn btf_bytes(object: BorrowedFd<'_>, size: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; size as usize];
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_btf_info = unsafe { std::mem::zeroed() };
    info.btf = bytes.as_mut_ptr() as u64;
    info.btf_size = size;
    // SAFETY: `btf` is writable for `btf_size` bytes, and the kernel does not write more; the other size is zero.
    unsafe { query(object, &mut info) }?;
    Ok(bytes)
}

/// The id of a map that this process has created.
pub fn map_id(map: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: the struct consists of integers, for which zero is a value.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: the struct has no pointers.
    unsafe { query(map, &mut info) }?;
    Ok(info.id)
}

/// Whether a descriptor's file is the anonymous one with this name. No path looks like that, since paths are absolute.
fn is_anonymous(object: BorrowedFd<'_>, name: &str) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", raw(object))).is_ok_and(|link| link.as_os_str() == name)
}

/// True if the descriptor is that of a link. The kernel also answers link queries on program descriptors, with other
/// information.
pub fn is_link(object: BorrowedFd<'_>) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(object)));
    text.is_ok_and(|text| text.lines().any(|line| line.starts_with("link_type:")))
}

/// Kernel memory used by an object in bytes, from `memlock` in its `/proc/self/fdinfo`; None if the kernel does not
/// report it. It is the kernel's own estimate (map_memory_usage), charged to the memory cgroup of the creator.
pub fn locked_memory(object: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(object))).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

/// What a token allows: `struct bpf_token_info`. EINVAL before Linux 6.17.
pub fn token_info(token: BorrowedFd<'_>) -> Result<Delegation, Errno> {
    // Commands, map types, program types and attach types.
    let mut allowed = [0u64; 4];
    // SAFETY: the struct consists of four u64.
    unsafe { query(token, &mut allowed) }?;
    let mut delegation = Delegation::default();
    for (category, mask) in Category::ALL.into_iter().zip(allowed) {
        *delegation.mask_mut(category) = mask;
    }
    Ok(delegation)
}

/// # Safety
/// `T` must be the info struct of the object's kind and consist of integers, and every pointer in it must be valid for
/// its count.
unsafe fn query<T>(object: BorrowedFd<'_>, info: &mut T) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.info.bpf_fd = raw(object);
    attr.info.info_len = len(size_of::<T>())?;
    attr.info.info = (&raw mut *info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`; the caller guarantees the pointers in the struct.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}
