//! `/etc/bpfman-hook/registries.toml`, read with the same distrust as the policy.

use std::path::PathBuf;

use crate::model::registries::{RegistriesError, RegistryConfig};
use crate::paths::Paths;
use crate::sys::fsutil::{TrustError, TrustedRoot};

/// Bytes of the file.
const MAX: usize = 256 * 1024;

/// Why there is no registry configuration. Every request is refused until it is put right.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesFileError {
    /// Others than root could have written it, or it is not a file.
    #[error("load the registries file")]
    Trust(#[source] TrustError),
    /// It is not text.
    #[error("registries file {} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// It does not parse.
    #[error("{}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: RegistriesError,
    },
}

/// Loads the file; none is the default: https everywhere but on loopback addresses.
pub fn load(paths: &Paths) -> Result<RegistryConfig, RegistriesFileError> {
    let path = paths.registries();
    let trusted = TrustedRoot::at(paths.root()).map_err(RegistriesFileError::Trust)?;
    let bytes = match trusted.read_file(&path, MAX) {
        Ok(bytes) => bytes,
        Err(TrustError::Missing(_)) => return Ok(RegistryConfig::default()),
        Err(error) => return Err(RegistriesFileError::Trust(error)),
    };
    let text = String::from_utf8(bytes).map_err(|_| RegistriesFileError::NotText(path.clone()))?;
    RegistryConfig::parse(&text).map_err(|source| RegistriesFileError::Parse { path, source })
}
