//! The types of the running kernel's modules, which each continue those of the kernel. They are read when a name is not
//! found in the kernel itself.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use crate::kernel::btf::Btf;
use crate::kernel::features::KERNEL_BTF;

/// A type, function or variable of the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelType {
    /// Its id in the BTF of the kernel or of the module.
    pub id: u32,
    /// The module; None for the kernel itself.
    pub module: Option<String>,
}

/// The BTF of each loaded module, by name.
#[derive(Debug)]
pub struct Modules {
    running: bool,
    files: OnceCell<Vec<(String, Vec<u8>)>>,
}

impl Modules {
    /// No modules: for types that are not those of the running kernel.
    pub fn none() -> Self {
        Self { running: false, files: OnceCell::new() }
    }

    /// Those of the running kernel.
    pub fn running() -> Self {
        Self { running: true, files: OnceCell::new() }
    }

    /// True for those of the running kernel.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The first answer for a module. A module that is unloaded meanwhile is left out, as is one whose BTF is malformed.
    pub fn find<T>(&self, kernel: &Btf<'_>, mut ask: impl FnMut(&str, &Btf<'_>) -> Option<T>) -> Option<T> {
        if !self.running {
            return None;
        }
        let files = self.files.get_or_init(read);
        files.iter().find_map(|(name, bytes)| ask(name, &Btf::parse_module(bytes, kernel).ok()?))
    }
}

fn read() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(KERNEL_BTF).parent().unwrap_or(Path::new("/"));
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path() != Path::new(KERNEL_BTF))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read(entry.path()).ok()?)))
        .collect();
    found.sort();
    found
}
