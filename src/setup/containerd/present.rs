//! containerd's current configuration file.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cli::ContainerdTargets;
use crate::setup::containerd::config::ContainerdConfig;
use crate::setup::containerd::error::ContainerdError;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;

/// containerd's current configuration file; the text is empty if it does not exist.
pub struct Present {
    pub text: String,
    pub mode: u32,
    pub there: bool,
}

/// Reads the file at `target`.
pub fn present(target: &Path) -> Result<Present, InstallError> {
    let read = |source| InstallError::Io { doing: "read", path: target.to_owned(), source };
    let meta = match fs::symlink_metadata(target) {
        Ok(meta) => meta,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Ok(Present { text: String::new(), mode: 0o644, there: false });
        }
        Err(err) => return Err(read(err)),
    };
    if meta.is_symlink() {
        let link = fs::read_link(target).map_err(read)?;
        return Err(ContainerdError::Link { path: target.to_owned(), target: link }.into());
    }
    let text = fs::read_to_string(target).map_err(read)?;
    Ok(Present { text, mode: meta.permissions().mode() & 0o7777, there: true })
}

/// The configuration below `root`, for callers that only check it. None if the file does not exist.
///
/// # Errors
/// The file cannot be read, or [`ConfigError`].
pub fn configuration(place: &InstallRoot, asked: &ContainerdTargets) -> Result<Option<ContainerdConfig>, InstallError> {
    let target = place.staged(&asked.containerd_config);
    let present = present(&target)?;
    if !present.there {
        return Ok(None);
    }
    let config = ContainerdConfig::parse(&present.text).map_err(|source| ContainerdError::Config { path: target, source })?;
    Ok(Some(config))
}
