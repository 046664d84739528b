//! A connection that whoever started us left open and names by its number in the environment.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::error::SysError;

/// The stream of which `variable` holds the number; None where it is not set.
///
/// # Errors
/// Where it is no number of a socket.
pub fn stream(variable: &str) -> Result<Option<UnixStream>, SysError> {
    let Some(word) = std::env::var_os(variable) else { return Ok(None) };
    let failed = SysError::io("take the socket of", variable);
    let number = word.to_str().and_then(|word| word.parse::<i32>().ok()).filter(|number| *number > 2);
    let Some(number) = number else { return Err(failed(io::ErrorKind::InvalidInput)) };
    // SAFETY: the number only borrows; a copy that is ours alone is made of it, which fails where it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    match rustix::io::fcntl_dupfd_cloexec(borrowed, 3) {
        Ok(copy) => {
            // SAFETY: whoever started us left this descriptor to us, and nobody else in this process has it.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
            Ok(Some(UnixStream::from(copy)))
        }
        Err(errno) => Err(failed(io::Error::from(errno).kind())),
    }
}
