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
    /// A function whose start or length is not a multiple of the instruction size, or that leaves its section.
    #[error("function {0} does not consist of whole instructions within its section")]
    Function(String),
    /// A map declaration that is not supported.
    #[error("map {name} {why}")]
    Map {
        /// The map.
        name: String,
        /// What is wrong; follows the name.
        why: &'static str,
    },
    /// A variable with different sizes in its symbol and its type.
    #[error("variable {name} has {symbol} bytes according to its symbol, but {ty} according to its type")]
    VariableSize {
        /// The variable.
        name: String,
        /// The size in the symbol table.
        symbol: u64,
        /// The size in BTF.
        ty: u64,
    },
    /// A variable that lies outside its section.
    #[error("variable {0} lies outside its section")]
    VariablePlace(String),
    /// A licence that is not a NUL-terminated string.
    #[error("its license section is not a string")]
    License,
    /// A section with signatures that is not what `image sign` writes.
    #[error("its section .bpf.sig is malformed")]
    Signatures,
}
