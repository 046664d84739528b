//! Pages of mapped files.

use std::ops::Range;

/// Lets go of the memory that shows this part of a mapped file, with the pages at its ends: it counts as the process's no more, and is there
/// again as soon as it is read.
///
/// # Safety
/// All pages of the range belong to one shared mapping of a file, which nobody writes through.
pub unsafe fn let_go(range: Range<*const u8>) {
    let size = rustix::param::page_size();
    let (start, end) = (range.start.addr() / size * size, range.end.addr().next_multiple_of(size));
    let from = range.start.with_addr(start).cast_mut().cast();
    // It only saves memory: that it fails is no reason to stop.
    // SAFETY: the kernel fills pages of a shared mapping anew from the file, so that nothing changes for who reads them.
    let _ = unsafe { rustix::mm::madvise(from, end - start, rustix::mm::Advice::LinuxDontNeed) };
}
