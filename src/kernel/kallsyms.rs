//! The kernel's symbols, by /proc/kallsyms.

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

/// The address of a symbol; None if the kernel and its modules do not have it.
pub fn address(name: &str) -> Result<Option<u64>, SymbolError> {
    let unreadable = |why: std::io::Error| SymbolError::Unreadable { name: name.to_owned(), why: why.to_string() };
    let file = File::open("/proc/kallsyms").map_err(unreadable)?;
    address_in(BufReader::new(file), name).map_err(unreadable)?
}

fn address_in(file: impl BufRead, name: &str) -> std::io::Result<Result<Option<u64>, SymbolError>> {
    let mut found = None;
    for line in file.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(symbol)) = (words.next(), words.next(), words.next()) else { continue };
        if symbol != name {
            continue;
        }
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        if address == 0 && words.next().is_none() {
            return Ok(Err(SymbolError::Hidden(name.to_owned())));
        }
        if found.is_some_and(|other| other != address) {
            return Ok(Err(SymbolError::Ambiguous(name.to_owned())));
        }
        found = Some(address);
    }
    Ok(Ok(found))
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
        let ask = |name: &str| address_in(text.as_bytes(), name).unwrap();
        assert_eq!(ask("init_task"), Ok(Some(0xffff_ffff_8200_0000)));
        assert_eq!(ask("in_module"), Ok(Some(0xffff_ffff_c000_0000)));
        assert_eq!(ask("none"), Ok(None));
        assert_eq!(ask("twice"), Err(SymbolError::Ambiguous("twice".into())));
        assert_eq!(ask("hidden"), Err(SymbolError::Hidden("hidden".into())));
    }
}
