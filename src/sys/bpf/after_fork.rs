//! Creates maps, BTF and programs with a token without memory allocation, so that it can be used between fork and
//! exit.

use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::BPF_F_TOKEN_FD;
use aya_obj::generated::bpf_cmd::{BPF_BTF_LOAD, BPF_MAP_CREATE, BPF_PROG_LOAD};
use rustix::io::Errno;

use super::{len, new_fd, raw, zeroed};

/// A program to be verified.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`
    pub attach_type: u32,
    /// Its instructions.
    pub instructions: &'a [[u8; 8]],
    /// Its BTF, and one `struct bpf_func_info` per function.
    pub functions: Option<(BorrowedFd<'a>, &'a [[u32; 2]])>,
}

/// BPF_PROG_LOAD of a GPL program. The verifier's log is in `log`, up to the first NUL.
///
/// # Errors
/// The verifier's errno, or EPERM and others from before verification; then `log` is unchanged.
pub fn offer(program: &Offered<'_>, token: BorrowedFd<'_>, log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let license = c"GPL";
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = program.program_type;
    fields.expected_attach_type = program.attach_type;
    fields.insns = program.instructions.as_ptr() as u64;
    fields.insn_cnt = len(program.instructions.len())?;
    fields.license = license.as_ptr() as u64;
    fields.log_level = 1;
    fields.log_buf = log.as_mut_ptr() as u64;
    fields.log_size = len(log.len())?;
    if let Some((btf, functions)) = program.functions {
        fields.prog_btf_fd = raw(btf);
        fields.func_info = functions.as_ptr() as u64;
        fields.func_info_rec_size = len(size_of::<[u32; 2]>())?;
        fields.func_info_cnt = len(functions.len())?;
    }
    fields.prog_flags = BPF_F_TOKEN_FD;
    fields.prog_token_fd = raw(token).cast_signed();
    // SAFETY: `insns` and `func_info` are readable for their counts, `license` is NUL-terminated, `log_buf` is writable
    // for `log_size` bytes; all outlive the call.
    unsafe { new_fd(BPF_PROG_LOAD, &mut attr) }
}

/// Creates an array map with one value of 64 bytes.
pub fn array_map(token: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const ARRAY: u32 = 2;
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_1 };
    (fields.map_type, fields.key_size, fields.value_size, fields.max_entries) = (ARRAY, 4, 64, 1);
    fields.map_flags = BPF_F_TOKEN_FD;
    fields.map_token_fd = raw(token).cast_signed();
    // SAFETY: no field is a pointer.
    unsafe { new_fd(BPF_MAP_CREATE, &mut attr) }
}

/// BPF_BTF_LOAD.
pub fn load_btf(btf: &[u8], token: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut attr = zeroed();
    // SAFETY: `attr` is zero in every byte, which is a value of each member, and only this member is used.
    let fields = unsafe { &mut attr.__bindgen_anon_7 };
    fields.btf = btf.as_ptr() as u64;
    fields.btf_size = len(btf.len())?;
    fields.btf_flags = BPF_F_TOKEN_FD;
    fields.btf_token_fd = raw(token).cast_signed();
    // SAFETY: `btf` is readable for `btf_size` bytes; there is no log buffer.
    unsafe { new_fd(BPF_BTF_LOAD, &mut attr) }
}
