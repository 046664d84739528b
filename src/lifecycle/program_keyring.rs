//! The node's keyring: the certificates by which the kernel checks signatures of programs. It is a keyring of the kernel,
//! known by its serial number, which is in a file of /run that only root writes: another process could make a keyring of
//! the same name.

use std::path::Path;

use crate::image::program_key::blocks;
use crate::paths::Paths;
use crate::sys::SysError;
use crate::sys::fsutil::{self, TrustError, TrustedRoot, ensure_directory};
use crate::sys::keyring;

/// Size limit of a file with certificates.
const FILE_MAX: usize = 64 << 10;

/// Why the keyring cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProgramKeyringError {
    /// A file that others could have written, or that cannot be read.
    #[error("make the node's keyring for programs")]
    Trust(#[from] TrustError),
    /// The kernel refused it.
    #[error("make the node's keyring for programs")]
    Kernel(#[from] SysError),
    /// A file without a certificate.
    #[error("make the node's keyring for programs: {0} has no certificate in PEM with BEGIN CERTIFICATE")]
    NoCertificate(String),
}

/// A keyring that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramKeyring {
    /// Its serial number.
    pub serial: i32,
    /// How many certificates it has.
    pub certificates: usize,
}

/// Makes the keyring of the certificates in [`Paths::program_keys`], and records its serial number. None if there are no
/// certificates. A keyring that was recorded before is no longer used.
///
/// # Errors
/// If a file is not trustworthy or has no certificate, or the kernel does not accept one.
pub fn make(paths: &Paths) -> Result<Option<ProgramKeyring>, ProgramKeyringError> {
    let certificates = certificates(paths)?;
    if certificates.is_empty() {
        return Ok(None);
    }
    let serial = keyring::make(c"bpfman-hook", &certificates)?;
    ensure_directory(&paths.run, 0o755)?;
    fsutil::write_atomically(&paths.program_keyring(), format!("{serial}\n").as_bytes(), 0o644)?;
    Ok(Some(ProgramKeyring { serial, certificates: certificates.len() }))
}

/// True if there is a file from which the keyring would be made.
pub fn has_certificates(paths: &Paths) -> bool {
    files(&paths.program_keys()).is_ok_and(|files| !files.is_empty())
}

fn certificates(paths: &Paths) -> Result<Vec<Vec<u8>>, ProgramKeyringError> {
    let trusted = TrustedRoot::at(paths.root())?;
    let directory = paths.program_keys();
    match trusted.open_directory(&directory) {
        Ok(_) => {}
        Err(TrustError::Missing(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut found = Vec::new();
    for path in files(&directory)? {
        let blocks = blocks(&trusted.read_file(&path, FILE_MAX)?, "CERTIFICATE");
        if blocks.is_empty() {
            return Err(ProgramKeyringError::NoCertificate(path.display().to_string()));
        }
        found.extend(blocks);
    }
    Ok(found)
}

/// The files whose names end in `.pem`, in the order of their names.
fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>, SysError> {
    let mut names = fsutil::names_in(directory)?;
    let is_one = |name: &std::path::PathBuf| {
        name.extension().is_some_and(|e| e == "pem") && !name.as_os_str().as_encoded_bytes().starts_with(b".")
    };
    names.retain(is_one);
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}
