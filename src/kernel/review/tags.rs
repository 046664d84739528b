//! BTF tags of function arguments: the verifier trusts them, and some of them turn a number into a pointer.

use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::link::Linked;
use crate::kernel::review::{Broken, Objection};

/// The prefix of argument tags (kernel/bpf/btf.c, `btf_prepare_func_args`).
const ARGUMENT: &[u8] = b"arg:";
/// Tags that only restrict the pointers that a caller may pass.
pub(in crate::kernel) const REVIEWED: [&[u8]; 3] = [b"arg:ctx", b"arg:nonnull", b"arg:nullable"];

/// How many bytes of a tag a refusal shows.
const LONGEST: usize = 32;

/// Checks the tags of a program's functions; `functions` are its `struct bpf_func_info` records.
pub(super) fn check(btf: Option<&Btf<'_>>, functions: &[u8]) -> Result<(), Broken> {
    // Without records the kernel does not know the types of the functions.
    let Some(btf) = btf.filter(|_| !functions.is_empty()) else { return Ok(()) };
    let is_own = |ty: u32| {
        let mut types = functions.chunks_exact(Linked::FUNCTION_RECORD).filter_map(|record| record.last_chunk().copied());
        types.any(|own| u32::from_ne_bytes(own) == ty)
    };
    match unreviewed(btf).find(|(function, _)| is_own(*function)) {
        Some((_, tag)) => Err((Objection::Tag(tag), None)),
        None => Ok(()),
    }
}

/// The tags of arguments that were not reviewed: the type of the function, and the tag.
pub(super) fn unreviewed(btf: &Btf<'_>) -> impl Iterator<Item = (u32, String)> {
    btf.types().filter(|ty| ty.kind == BtfKind::DeclTag).filter_map(|tag| {
        let text = btf.string_bytes(tag.name_offset);
        let unreviewed = text.starts_with(ARGUMENT) && !REVIEWED.contains(&text);
        unreviewed.then(|| (tag.size_or_type, String::from_utf8_lossy(&text[..text.len().min(LONGEST)]).into_owned()))
    })
}
