//! Keyrings of the kernel (keyrings(7)): keys that it verifies signatures with.

use std::ffi::CStr;
use std::io;

use crate::sys::SysError;

/// `KEY_SPEC_SESSION_KEYRING`, `KEY_SPEC_USER_KEYRING`
const SESSION: i32 = -3;
const USER: i32 = -4;
/// Commands of keyctl(2).
const SETPERM: libc::c_int = 5;
const DESCRIBE: libc::c_int = 6;
const LINK: libc::c_int = 8;
const RESTRICT: libc::c_int = 29;
/// View, read and search, for a process that possesses the keyring and for its user: no process may add, remove or clear keys.
const READ_ONLY: u32 = 0x0b0b_0000;

/// Makes a keyring of certificates (X.509, DER) below the calling user's keyring, where it stays until the next boot, and
/// returns its serial number. No key can be added to it. One of the same name that was there is replaced.
///
/// # Errors
/// EBADMSG if a certificate is malformed, ENOPKG or ENOENT if the kernel has no algorithm for its key, EKEYREJECTED if it is on the
/// kernel's list of revoked ones, ENODEV without CONFIG_ASYMMETRIC_KEY_TYPE.
pub fn make(name: &CStr, certificates: &[Vec<u8>]) -> Result<i32, SysError> {
    let failed = |doing: &'static str| SysError::io(doing, name.to_string_lossy());
    // Only who possesses a keyring may add to it, and possession comes from the session keyring.
    control(LINK, [number(USER), number(SESSION), 0]).map_err(failed("use the user's keyring for the keyring"))?;
    let serial = add(c"keyring", name, &[], USER).map_err(failed("make the keyring"))?;
    for (n, certificate) in certificates.iter().enumerate() {
        let doing = format!("add certificate {} to the keyring", n + 1);
        add(c"asymmetric", c"", certificate, serial).map_err(|error| SysError::io("make the keyring", doing)(error))?;
    }
    control(RESTRICT, [number(serial), 0, 0]).map_err(failed("restrict the keyring"))?;
    control(SETPERM, [number(serial), libc::c_ulong::from(READ_ONLY), 0]).map_err(failed("restrict the keyring"))?;
    Ok(serial)
}

/// True if there is a key or keyring with this serial number, and the caller may see it.
pub fn exists(serial: i32) -> bool {
    control(DESCRIBE, [number(serial), 0, 0]).is_ok()
}

fn add(kind: &CStr, description: &CStr, payload: &[u8], keyring: i32) -> io::Result<i32> {
    let data = if payload.is_empty() { std::ptr::null() } else { payload.as_ptr() };
    // SAFETY: both strings end with NUL, and `data` is null or readable for its length; the kernel copies them.
    let serial = unsafe {
        libc::syscall(libc::SYS_add_key, kind.as_ptr(), description.as_ptr(), data, payload.len(), libc::c_long::from(keyring))
    };
    if serial < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(serial).map_err(io::Error::other) }
}

/// Commands whose arguments are numbers, or null for a pointer.
fn control(command: libc::c_int, arguments: [libc::c_ulong; 3]) -> io::Result<()> {
    let [a, b, c] = arguments;
    // SAFETY: of these commands, only RESTRICT and DESCRIBE take pointers, which are null.
    match unsafe { libc::syscall(libc::SYS_keyctl, command, a, b, c, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn number(serial: i32) -> libc::c_ulong {
    i64::from(serial).cast_unsigned()
}
