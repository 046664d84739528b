//! A connection inherited from the parent process, which passes its descriptor number in the environment.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::sys::error::SysError;

/// Returns the stream whose descriptor number is in the environment variable `variable`; None if it is not set.
///
/// # Errors
/// If it is not the number of an open descriptor.
pub fn stream(variable: &str) -> Result<Option<UnixStream>, SysError> {
    let Some(word) = std::env::var_os(variable) else { return Ok(None) };
    let failed = SysError::io("take the socket of", variable);
    let number = word.to_str().and_then(|word| word.parse::<i32>().ok()).filter(|number| *number > 2);
    let Some(number) = number else { return Err(failed(io::ErrorKind::InvalidInput)) };
    // SAFETY: the number is only borrowed to duplicate it, which fails if it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    match rustix::io::fcntl_dupfd_cloexec(borrowed, 3) {
        Ok(copy) => {
            // SAFETY: the parent process left this descriptor to us, and nothing else in this process owns it.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
            Ok(Some(UnixStream::from(copy)))
        }
        Err(errno) => Err(failed(io::Error::from(errno).kind())),
    }
}
