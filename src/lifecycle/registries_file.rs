//! `/etc/bpfman-hook/registries.toml`, read with the same checks as the policy.

use std::path::{Path, PathBuf};

use crate::model::registries::{RegistriesError, RegistryConfig};
use crate::paths::Paths;
use crate::sys::fsutil::{TrustError, TrustedRoot};

/// Maximum size of the file in bytes.
const MAX: usize = 256 * 1024;

/// Why the registry configuration cannot be loaded. Every request is refused until that is corrected.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesFileError {
    /// Users other than root could have written the file, or it is not a regular file.
    #[error("load the registries file")]
    Trust(#[source] TrustError),
    /// The file is not UTF-8.
    #[error("registries file {} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// The file does not parse.
    #[error("{}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: RegistriesError,
    },
}

/// Loads the file. A missing file means the default: https for every registry except on loopback addresses.
pub fn load(paths: &Paths) -> Result<RegistryConfig, RegistriesFileError> {
    let path = paths.registries();
    let trusted = TrustedRoot::at(paths.root()).map_err(RegistriesFileError::Trust)?;
    let bytes = match trusted.read_file(&path, MAX) {
        Ok(bytes) => bytes,
        Err(TrustError::Missing(_)) => return Ok(RegistryConfig::default()),
        Err(error) => return Err(RegistriesFileError::Trust(error)),
    };
    let config = parsed(&path, bytes)?;
    if !config.holds_a_secret() {
        return Ok(config);
    }
    // The file is read again as a secret, so that what is used is what no other user could read.
    let bytes = trusted.read_secret(&path, MAX).map_err(RegistriesFileError::Trust)?;
    parsed(&path, bytes)
}

fn parsed(path: &Path, bytes: Vec<u8>) -> Result<RegistryConfig, RegistriesFileError> {
    let text = String::from_utf8(bytes).map_err(|_| RegistriesFileError::NotText(path.to_owned()))?;
    RegistryConfig::parse(&text).map_err(|source| RegistriesFileError::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_with_a_password_must_not_be_readable_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let path = paths.registries();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(dir.path())) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (url, mode, loads) in [
            ("http://proxy:1", 0o644, true),
            ("http://user@proxy:1", 0o644, true),
            ("http://user:hidden@proxy:1", 0o644, false),
            ("http://user:hidden@proxy:1", 0o600, true),
        ] {
            fs::write(&path, format!("[proxy]\nurl = \"{url}\"\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match load(&paths) {
                Ok(config) => assert!(loads && config.proxy.unwrap().url == url, "{url} {mode:o}"),
                Err(err) => {
                    let said = crate::sys::error::chain(&err);
                    assert!(
                        !loads && said.contains("has mode 0644 and contains secrets") && !said.contains("hidden"),
                        "{said}"
                    );
                }
            }
        }
    }
}
