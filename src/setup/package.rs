//! The files of a distribution's package of bpfman-hook. `install` and `uninstall` leave them to the package manager.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::setup::hooks_dir::below;

/// The list of a package's files, a path a line. packaging/build.sh writes it into each package.
const LIST: &str = "/usr/share/bpfman-hook/package-files";

/// Where an administrator's units are. They replace those of a package with the same name.
pub const UNITS_OF_HOST: &str = "/etc/systemd/system";

/// The files of the installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFiles(BTreeSet<PathBuf>);

impl PackageFiles {
    /// The package that is installed on the host whose root directory is `root`; None without one.
    pub fn below(root: &Path) -> Option<Self> {
        let list = fs::read_to_string(below(root, Path::new(LIST))).ok()?;
        Some(Self(list.lines().map(PathBuf::from).collect()))
    }

    /// Whether the package contains a file.
    pub fn contains(&self, path: &Path) -> bool {
        self.0.contains(path)
    }
}
