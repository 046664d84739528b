//! The end of a tar archive.

/// True if the content at `position` is the last in an archive of `length` bytes without padding and end blocks, as
/// umoci writes it: looking for another entry would be an error.
pub(crate) fn ends_archive(position: u64, size: u64, length: usize) -> bool {
    position.checked_add(size).and_then(|end| end.checked_next_multiple_of(512)).is_none_or(|next| next >= length as u64)
}
