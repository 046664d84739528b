//! Clocks, and the id of the current boot.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::sys::error::SysError;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Wall clock time in seconds since 1970. An administrator can set this clock, so it is only for display.
pub fn unix_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}

/// Time since boot, including suspend (CLOCK_BOOTTIME), comparable between processes of one boot. It differs in a time
/// namespace. Runtimes run hooks in their own time namespace, so all hook processes agree.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Converts a time since boot to wall clock time in seconds since 1970. It is computed in nanoseconds, so that
/// repeated calls return the same second.
pub fn unix_seconds_at(moment: Duration) -> u64 {
    let (now, wall) = (since_boot(), clock_gettime(ClockId::Realtime));
    let wall = Duration::new(u64::try_from(wall.tv_sec).unwrap_or(0), u32::try_from(wall.tv_nsec).unwrap_or(0));
    (wall + moment).saturating_sub(now).as_secs()
}

/// [`since_boot`] in nanoseconds, as BPF programs count it (bpf_ktime_get_boot_ns).
pub fn boot_nanoseconds() -> u64 {
    u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX)
}

/// [`since_boot`] in whole seconds, as used in records.
pub fn boot_seconds() -> u64 {
    since_boot().as_secs()
}

/// The random id of the current boot: a UUID in lower case, which is a valid file name (proc(5),
/// `/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> Result<String, SysError> {
    let text = fs::read_to_string(BOOT_ID).map_err(SysError::io("read", BOOT_ID))?;
    parse_boot_id(&text)
        .ok_or_else(|| SysError::io("read", BOOT_ID)(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not a UUID")))
}

fn parse_boot_id(text: &str) -> Option<String> {
    let id = text.strip_suffix('\n').unwrap_or(text);
    let dashes = [8, 13, 18, 23];
    let legal = |(at, byte): (usize, u8)| match dashes.contains(&at) {
        true => byte == b'-',
        false => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    (id.len() == 36 && id.bytes().enumerate().all(legal)).then(|| id.to_owned())
}

/// The wall clock time in RFC 3339 format, in UTC with nanoseconds: the strings sort in the order of the times.
pub fn utc_precise() -> String {
    let now = clock_gettime(ClockId::Realtime);
    let text = utc(u64::try_from(now.tv_sec).unwrap_or(0));
    format!("{}.{:09}Z", text.trim_end_matches('Z'), now.tv_nsec)
}

/// Formats a time in RFC 3339 format, in UTC: `2026-11-25T02:45:00Z`.
pub fn utc(unix_seconds: u64) -> String {
    let (days, rest) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converting_a_moment_always_returns_the_same_second() {
        // In the middle of a second of the wall clock, where the few nanoseconds between two calls do not matter.
        let wall = clock_gettime(ClockId::Realtime);
        let fraction = Duration::from_nanos(u64::try_from(wall.tv_nsec).unwrap());
        let moment = since_boot().saturating_sub(fraction) + Duration::from_millis(500);
        let first = unix_seconds_at(moment);
        assert!(first.abs_diff(unix_seconds()) <= 1);
        let until = std::time::Instant::now() + Duration::from_millis(1100);
        while std::time::Instant::now() < until {
            assert_eq!(unix_seconds_at(moment), first);
        }
    }

    #[test]
    fn a_boot_id_must_be_a_uuid() {
        let id = "918e815e-d76e-4f50-946b-1d55d20e4d8a";
        assert_eq!(parse_boot_id(&format!("{id}\n")).as_deref(), Some(id));
        for bad in ["", "\n", "..", "../8e815e-d76e-4f50-946b-1d55d20e4d8a", &id.to_uppercase(), &id.replace('-', "_")] {
            assert_eq!(parse_boot_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_boot_id_and_clock_are_readable() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        let before = since_boot();
        assert!(before > Duration::ZERO && since_boot() >= before);
        assert!(unix_seconds() > 1_700_000_000);
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_574_700, "2026-11-25T02:45:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(super::utc(seconds), text);
        }
    }
}
