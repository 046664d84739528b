//! What the kernel says about objects: BPF_OBJ_GET_INFO_BY_FD.

use std::os::fd::BorrowedFd;

use aya_obj::generated::bpf_cmd::BPF_OBJ_GET_INFO_BY_FD;
use aya_obj::generated::{bpf_link_info, bpf_map_info, bpf_prog_info};
use rustix::io::Errno;

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
    /// The kernel's digest over the instructions.
    pub tag: [u8; 8],
    /// When it was loaded: nanoseconds since boot.
    pub loaded: u64,
    /// Instructions that the verifier went through; 0 before Linux 5.16.
    pub verified_instructions: u32,
    /// Bytes of the instructions as the verifier left them.
    pub xlated_size: u32,
    /// True where its licence lets it call every helper.
    pub gpl_compatible: bool,
    /// Id of its BTF; 0 where it has none.
    pub btf: u32,
    /// Bytes of machine code.
    pub jited_size: u32,
    /// Nanoseconds that it ran; 0 unless kernel.bpf_stats_enabled is set.
    pub run_time: u64,
    /// How often it ran; 0 unless kernel.bpf_stats_enabled is set.
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
}

impl MapInfo {
    /// True for maps with one value for each CPU: the kernel copies them all at once.
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
    /// For xdp and tcx the interface; 0 once it is gone.
    pub interface: Option<u32>,
    /// For cgroup links the cgroup's id; 0 once it is gone.
    pub cgroup: Option<u64>,
}

/// What the kernel says about a program.
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

/// The type of a program, and the id of the kernel function that it hangs on, in the BTF of the kernel or of a module; 0 where it hangs
/// on none.
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
    // SAFETY: `map_ids` is writable for `nr_map_ids` integers, of which the kernel writes no more; the other counts are zero.
    unsafe { query(program, &mut info) }?;
    ids.truncate(info.nr_map_ids as usize);
    Ok(ids)
}

/// What the kernel says about a map.
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

/// What the kernel says about a link.
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

/// True where a descriptor is a link's. The kernel answers questions about links to the descriptors of programs too, with other
/// things.
pub fn is_link(object: BorrowedFd<'_>) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(object)));
    text.is_ok_and(|text| text.lines().any(|line| line.starts_with("link_type:")))
}

/// Bytes of kernel memory that an object takes, as its descriptor's `memlock` in `/proc/self/fdinfo` says; None where the kernel
/// does not say. It is an estimate of the kernel's own (map_memory_usage), charged to the memory cgroup of the maker.
pub fn locked_memory(object: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(object))).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

/// # Safety
/// `T` has to be the info struct of the object's kind, made of integers, and every pointer in it valid for its count.
unsafe fn query<T>(object: BorrowedFd<'_>, info: &mut T) -> Result<(), Errno> {
    let mut attr = zeroed();
    attr.info.bpf_fd = raw(object);
    attr.info.info_len = len(size_of::<T>())?;
    attr.info.info = (&raw mut *info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`; what the struct points to is the caller's promise.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}
