//! The number of CPUs for which the kernel allocates per-CPU maps.

use std::fs;

/// The number of possible CPUs: one more than the highest number in `possible`
/// (Documentation/admin-guide/cputopology.rst). If it cannot be read, the number of CPUs that are online.
pub fn possible() -> u64 {
    let listed = fs::read_to_string("/sys/devices/system/cpu/possible").ok();
    let highest = listed.as_deref().and_then(highest);
    highest.map_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64), |highest| highest + 1)
}

/// The last number of a list such as `0-3,8`.
fn highest(list: &str) -> Option<u64> {
    list.trim().rsplit(['-', ',']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn cpu_lists_are_parsed() {
        for (list, highest) in [("0\n", Some(0)), ("0-1\n", Some(1)), ("0-3,8", Some(8)), ("0,2-15", Some(15)), ("", None)] {
            assert_eq!(super::highest(list), highest, "{list:?}");
        }
        assert!(super::possible() >= 1);
    }
}
