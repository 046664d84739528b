//! Pages of mapped files.

use std::ops::Range;

/// Drops the resident pages that back this part of a mapped file, including the partial pages at its ends. They no
/// longer count as memory of the process and are loaded again when they are read.
///
/// # Safety
/// All pages of the range must belong to one shared mapping of a file that is not written through the mapping.
pub unsafe fn let_go(range: Range<*const u8>) {
    let size = rustix::param::page_size();
    let (start, end) = (range.start.addr() / size * size, range.end.addr().next_multiple_of(size));
    let from = range.start.with_addr(start).cast_mut().cast();
    // This only saves memory, so errors are ignored.
    // SAFETY: the kernel reloads pages of a shared mapping from the file, so readers do not see a difference.
    let _ = unsafe { rustix::mm::madvise(from, end - start, rustix::mm::Advice::LinuxDontNeed) };
}
