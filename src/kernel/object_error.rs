//! Why an object cannot be used.

use crate::kernel::btf::BtfError;
use crate::kernel::elf::ElfError;

/// Why an object cannot be used. The texts follow "read the BPF object: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The ELF file is not valid.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Its BTF is not valid.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A map declaration that is not supported.
    #[error("map {name} {why}")]
    Map {
        /// The map.
        name: String,
        /// What is wrong; follows the name.
        why: &'static str,
    },
    /// A licence that is not a NUL-terminated string.
    #[error("its license section is not a string")]
    License,
    /// A section with signatures that is not what `image sign` writes.
    #[error("its section .bpf.sig is malformed")]
    Signatures,
}
