//! The kernel's symbols, by /proc/kallsyms.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Why a symbol has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SymbolError {
    /// Two symbols with one name.
    #[error("this kernel has {0} at several addresses")]
    Ambiguous(String),
    /// All addresses read as 0.
    #[error("the address of {0} is hidden from this process (kernel.kptr_restrict, or CAP_SYSLOG is missing)")]
    Hidden(String),
    /// The file cannot be read.
    #[error("read /proc/kallsyms for the address of {name}: {why}")]
    Unreadable {
        /// The symbol.
        name: String,
        /// The error.
        why: String,
    },
}

/// Names and addresses, read once: an object can refer to any number of symbols.
#[derive(Debug)]
pub struct Symbols(HashMap<String, SymbolAddress>);

/// What the lines of one name say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SymbolAddress {
    At(u64),
    Several,
    Hidden,
}

impl Symbols {
    /// Reads /proc/kallsyms: some 200 000 lines, 20 MiB.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read() -> std::io::Result<Self> {
        Self::parse(BufReader::new(File::open("/proc/kallsyms")?))
    }

    fn parse(file: impl BufRead) -> std::io::Result<Self> {
        let mut symbols = HashMap::new();
        for line in file.lines() {
            let line = line?;
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            let new = if address == 0 && words.next().is_none() { SymbolAddress::Hidden } else { SymbolAddress::At(address) };
            let known = symbols.entry(name.to_owned()).or_insert(new);
            if *known != new {
                *known = SymbolAddress::Several;
            }
        }
        Ok(Self(symbols))
    }

    /// The address of a symbol; None if the kernel and its modules do not have it.
    ///
    /// # Errors
    /// If there are several addresses, or if this process may not see them.
    pub fn address(&self, name: &str) -> Result<Option<u64>, SymbolError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(SymbolAddress::At(address)) => Ok(Some(*address)),
            Some(SymbolAddress::Several) => Err(SymbolError::Ambiguous(name.to_owned())),
            Some(SymbolAddress::Hidden) => Err(SymbolError::Hidden(name.to_owned())),
        }
    }
}

/// What the entries of system calls are called, by architecture.
pub const SYSCALL_PREFIX: &str = if cfg!(target_arch = "x86_64") {
    "__x64_sys_"
} else if cfg!(target_arch = "aarch64") {
    "__arm64_sys_"
} else if cfg!(target_arch = "s390x") {
    "__s390x_sys_"
} else if cfg!(target_arch = "riscv64") {
    "__riscv_sys_"
} else {
    "__se_sys_"
};

/// True if the entries of system calls take their arguments in `struct pt_regs` (CONFIG_ARCH_HAS_SYSCALL_WRAPPER).
pub fn has_syscall_wrapper() -> bool {
    exists(&format!("{SYSCALL_PREFIX}bpf"))
}

/// True if the kernel or a module has a symbol.
pub fn exists(name: &str) -> bool {
    let Ok(file) = File::open("/proc/kallsyms") else { return false };
    BufReader::new(file).lines().map_while(Result::ok).any(|line| line.split_ascii_whitespace().nth(2) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_be_unique_and_visible() {
        let text = "ffffffff81000000 T _text\nffffffff82000000 D init_task\nffffffff81000010 t twice\nffffffff81000020 t twice\n\
                    ffffffffc0000000 t in_module\t[nf_tables]\n0000000000000000 T hidden\n0000000000000000 A fixed_percpu_data\n";
        let symbols = Symbols::parse(text.as_bytes()).unwrap();
        let ask = |name: &str| symbols.address(name);
        assert_eq!(ask("init_task"), Ok(Some(0xffff_ffff_8200_0000)));
        assert_eq!(ask("in_module"), Ok(Some(0xffff_ffff_c000_0000)));
        assert_eq!(ask("none"), Ok(None));
        assert_eq!(ask("twice"), Err(SymbolError::Ambiguous("twice".into())));
        assert_eq!(ask("hidden"), Err(SymbolError::Hidden("hidden".into())));
    }
}
