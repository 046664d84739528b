//! Where a tar archive ends.

/// True where the contents at `position` are the last of an archive of `length` bytes that lacks its padding and its end
/// blocks, as umoci writes them: looking for a next entry would be an error.
pub(crate) fn ends_archive(position: u64, size: u64, length: usize) -> bool {
    position.checked_add(size).and_then(|end| end.checked_next_multiple_of(512)).is_none_or(|next| next >= length as u64)
}
