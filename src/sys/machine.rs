//! Properties of the machine on which map sizes depend.

use std::fs;

use crate::sys::SysError;

/// The page size in bytes.
pub fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// The kernel release, as printed by `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The kernel's version, as printed by `uname -v`.
pub fn kernel_version() -> String {
    rustix::system::uname().version().to_string_lossy().into_owned()
}

/// The number of possible CPUs, for which per-CPU maps have values: the highest number in
/// `/sys/devices/system/cpu/possible` (Linux `Documentation/admin-guide/cputopology.rst`) plus one.
pub fn possible_cpus() -> Result<u32, SysError> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(PATH).map_err(SysError::io("read", PATH))?;
    last_cpu(&text).and_then(|last| last.checked_add(1)).ok_or_else(|| {
        SysError::io("parse", PATH)(std::io::Error::new(std::io::ErrorKind::InvalidData, text.trim().to_owned()))
    })
}

/// The last number of a list like `0-3,8-11`.
fn last_cpu(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(last_cpu("0\n"), Some(0));
        assert_eq!(last_cpu("0-3"), Some(3));
        assert_eq!(last_cpu("0-3,8-11\n"), Some(11));
        assert_eq!(last_cpu("0,2"), Some(2));
        assert_eq!(last_cpu(""), None);
        assert!(possible_cpus().unwrap() > 0);
        assert!(page_size() >= 4096);
    }
}
