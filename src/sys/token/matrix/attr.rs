//! `union bpf_attr` as bytes: for calls whose fields newer kernels have and the bindings do not.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Size in bytes: of Linux 6.18's fields and some more, which must be zero.
const SIZE: usize = 160;

#[repr(C, align(8))]
struct RawAttrBytes([u8; SIZE]);

/// The attributes of one call. Offsets are those of uapi/linux/bpf.h. Everything that is not set is zero.
///
/// Buffers are borrowed until the call, so that the kernel never writes to memory that is in use elsewhere. Their
/// lengths are separate fields: each caller sets the length of its buffer, unless the kernel knows it.
pub(super) struct RawAttr<'a> {
    bytes: RawAttrBytes,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> RawAttr<'a> {
    pub(super) fn new() -> Self {
        Self { bytes: RawAttrBytes([0; SIZE]), buffers: PhantomData }
    }

    fn put(mut self, at: usize, value: &[u8]) -> Self {
        if let Some(place) = self.bytes.0.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
        self
    }

    pub(super) fn u32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_ne_bytes())
    }

    pub(super) fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    /// A buffer that the kernel reads.
    pub(super) fn reads<T>(self, at: usize, buffer: &'a [T]) -> Self {
        self.u64(at, buffer.as_ptr() as u64)
    }

    /// A buffer that the kernel writes.
    pub(super) fn writes(self, at: usize, buffer: &'a mut [u8]) -> Self {
        self.u64(at, buffer.as_mut_ptr() as u64)
    }

    /// Makes the call.
    pub(super) fn call(mut self, cmd: u32) -> Result<i64, Errno> {
        // The verifier fails with EAGAIN if a signal is pending.
        for _ in 0..4 {
            match self.once(cmd) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        self.once(cmd)
    }

    fn once(&mut self, cmd: u32) -> Result<i64, Errno> {
        let attr = &raw mut self.bytes;
        // SAFETY: the kernel reads and writes `SIZE` bytes at `attr`. The buffers in it live until the call, and the
        // callers in this module give the kernel lengths that they have.
        let done = unsafe { libc::syscall(libc::SYS_bpf, libc::c_long::from(cmd), attr, SIZE) };
        if done >= 0 { Ok(done) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) }
    }

    /// Makes a call that returns a new descriptor.
    pub(super) fn open(self, cmd: u32) -> Result<OwnedFd, Errno> {
        let fd = i32::try_from(self.call(cmd)?).map_err(|_| Errno::BADF)?;
        // SAFETY: the kernel has just created this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
