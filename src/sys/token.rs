//! BPF tokens: minting one from a delegated bpffs, and reading what it allows.
//!
//! A token is a file descriptor, not a file: it cannot be pinned. It works only in the user namespace that owns its
//! bpffs, for a process that has CAP_BPF there (kernel/bpf/token.c).

pub mod attempt;
pub mod matrix;
mod pinning;
pub mod probe;
pub mod trial;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::model::delegation::Delegation;
use crate::sys::SysError;

/// Why a token could not be minted, by the errno of BPF_TOKEN_CREATE.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// ENOENT: the bpffs has no `delegate_*` options, or only mistyped ones, which the kernel ignores.
    #[error("mint a token: the bpffs delegates nothing; mount it with delegate_cmds and similar options")]
    NothingDelegated,
    /// EOPNOTSUPP: the bpffs or the caller belongs to the initial user namespace.
    #[error("mint a token: tokens exist only in user namespaces other than the initial one; give the container one")]
    InitialUserNamespace,
    /// EPERM: any of three causes, which the kernel does not distinguish.
    #[error(
        "mint a token: refused; the caller needs CAP_BPF in the user namespace that owns the bpffs, \
         and a seccomp profile or security module must not forbid bpf(2)"
    )]
    Refused,
    /// EINVAL: the descriptor refers to another directory, or the kernel does not have tokens.
    #[error("mint a token: the directory is not the root of a bpffs, or the kernel is older than Linux 6.9")]
    NotRootOfBpffs,
    /// EBADF: an O_PATH descriptor.
    #[error("mint a token: the bpffs was opened with O_PATH; open it for reading")]
    PathOnly,
    /// ENOSYS: bpf(2) is not available.
    #[error("mint a token: the kernel does not have bpf(2), or a seccomp profile hides it")]
    NoBpf,
    /// Any other errno.
    #[error("mint a token")]
    Other(#[source] io::Error),
}

impl TokenError {
    /// Maps an errno of BPF_TOKEN_CREATE.
    pub(crate) fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NothingDelegated,
            Errno::OPNOTSUPP => Self::InitialUserNamespace,
            Errno::PERM | Errno::ACCESS => Self::Refused,
            Errno::INVAL => Self::NotRootOfBpffs,
            Errno::BADF => Self::PathOnly,
            Errno::NOSYS => Self::NoBpf,
            other => Self::Other(other.into()),
        }
    }

    /// The errno of this error.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::NothingDelegated => Errno::NOENT,
            Self::InitialUserNamespace => Errno::OPNOTSUPP,
            Self::Refused => Errno::PERM,
            Self::NotRootOfBpffs => Errno::INVAL,
            Self::PathOnly => Errno::BADF,
            Self::NoBpf => Errno::NOSYS,
            Self::Other(error) => Errno::from_io_error(error).unwrap_or(Errno::IO),
        }
    }
}

/// A token. Its permissions end when it is closed; objects created with it remain. While it is open, its bpffs and
/// everything pinned there also remain, even after the container is gone.
#[derive(Debug)]
pub struct BpfToken(OwnedFd);

impl AsFd for BpfToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl BpfToken {
    /// Mints a token. `root` is the root directory of a bpffs, opened for reading.
    ///
    /// The caller must be in the user namespace that owns the bpffs and have CAP_BPF in it; CAP_SYS_ADMIN is not
    /// sufficient.
    pub fn mint(root: BorrowedFd<'_>) -> Result<Self, TokenError> {
        create_raw(root).map(Self).map_err(TokenError::from_errno)
    }

    /// What the token allows, as shown in `/proc/self/fdinfo`: `any` means every bit.
    pub fn allowed(&self) -> Result<Delegation, SysError> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = fs::read_to_string(&path).map_err(SysError::io("read", path))?;
        parse_allowed(&text).ok_or_else(|| SysError::Message { what: "what a token allows", problem: format!("{text:?}") })
    }
}

/// Parses `allowed_cmds:\t0x21` and the three similar lines (kernel/bpf/token.c, bpf_token_show_fdinfo).
fn parse_allowed(text: &str) -> Option<Delegation> {
    let mask = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
        match value {
            "any" => Some(u64::MAX),
            number => u64::from_str_radix(number.strip_prefix("0x")?, 16).ok(),
        }
    };
    Some(Delegation {
        cmds: mask("allowed_cmds")?,
        maps: mask("allowed_maps")?,
        progs: mask("allowed_progs")?,
        attachs: mask("allowed_attachs")?,
    })
}

/// BPF_TOKEN_CREATE without memory allocation, so that it can be used between fork and exit.
pub(crate) fn create_raw(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const BPF_TOKEN_CREATE: libc::c_long = 36;
    #[repr(C)]
    struct TokenCreate {
        flags: u32,
        bpffs_fd: u32,
    }
    let attr = TokenCreate { flags: 0, bpffs_fd: root.as_raw_fd().cast_unsigned() };
    // SAFETY: the kernel reads the given number of bytes of `attr`, which contains no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_TOKEN_CREATE, &raw const attr, size_of::<TokenCreate>()) };
    if fd < 0 {
        return Err(last_errno());
    }
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just created this descriptor for us, close-on-exec, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The errno of the last failed call.
pub(crate) fn last_errno() -> Errno {
    // SAFETY: errno's address is valid for the life of the thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_parsed() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2065\nallowed_cmds:\tany\nallowed_maps:\t0x4\n\
                    allowed_progs:\t0x40\nallowed_attachs:\t0x2000000001\n";
        let expected = Delegation { cmds: u64::MAX, maps: 4, progs: 0x40, attachs: 0x20_0000_0001 };
        assert_eq!(parse_allowed(text), Some(expected));
        assert_eq!(parse_allowed("pos:\t0\n"), None);
        assert_eq!(parse_allowed(&text.replace("0x40", "40")), None);
    }

    #[test]
    fn a_directory_that_is_not_a_bpffs_is_an_error() {
        // On some kernels, the initial user namespace or a missing CAP_BPF is reported before the descriptor is
        // checked.
        let error = BpfToken::mint(fs::File::open("/proc").unwrap().as_fd()).unwrap_err();
        assert!(matches!(error, TokenError::NotRootOfBpffs | TokenError::Refused | TokenError::NoBpf), "{error:?}");
    }

    #[test]
    fn each_errno_has_a_message() {
        let mut seen = std::collections::HashSet::new();
        for errno in [Errno::NOENT, Errno::OPNOTSUPP, Errno::PERM, Errno::INVAL, Errno::BADF, Errno::NOSYS, Errno::NFILE] {
            assert!(seen.insert(TokenError::from_errno(errno).to_string()), "{errno:?}");
        }
    }
}
