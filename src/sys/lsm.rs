//! The label that a security module assigned to a process, and what AppArmor allows it.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use crate::model::confinement::Confinement;

/// Returns how a process is confined; pass `None` for the calling process. Returns None if it is not confined or if
/// its label cannot be read.
///
/// `attr/apparmor/current` exists since Linux 5.8 and fails with EINVAL if AppArmor is not active (fs/proc/base.c,
/// `proc_pid_attr_read`); `attr/current` then belongs to another module.
pub fn confinement(pid: Option<u32>) -> Option<Confinement> {
    let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/attr/{file}"));
    match read("apparmor/current") {
        Ok(label) => Confinement::apparmor(&label),
        Err(_) => Confinement::selinux(&read("current").ok()?),
    }
}

/// Whether an AppArmor profile allows creating files in the directory `path`. This asks the kernel with the query of
/// libapparmor's aa_query_label(2): `label`, the profile and the request, each terminated by a NUL, then the file
/// class (2) and a path (security/apparmor/apparmorfs.c, `query_label`). Returns None if the query is not possible:
/// without securityfs, or in a container.
pub fn may_create(profile: &str, path: &Path) -> Option<bool> {
    const CLASS_FILE: u8 = 2;
    /// include/perms.h: `AA_MAY_CREATE`.
    const CREATE: u32 = 0x10;
    let file = path.join("x");
    let query = [b"label\0", profile.as_bytes(), b"\0", &[CLASS_FILE], file.as_os_str().as_encoded_bytes()].concat();
    let mut access = OpenOptions::new().read(true).write(true).open("/sys/kernel/security/apparmor/.access").ok()?;
    access.write_all(&query).ok()?;
    let mut answer = String::new();
    access.read_to_string(&mut answer).ok()?;
    Some(mask(&answer, "allow")? & !mask(&answer, "deny")? & CREATE != 0)
}

/// One line of the answer, for example `allow 0x0000001f`.
fn mask(answer: &str, key: &str) -> Option<u32> {
    let value = answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    u32::from_str_radix(value.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_parsed() {
        let answer = "allow 0x0000004f\ndeny 0x00000010\naudit 0x00000000\nquiet 0x00000010\n";
        assert_eq!((mask(answer, "allow"), mask(answer, "deny"), mask(answer, "none")), (Some(0x4f), Some(0x10), None));
        assert_eq!(mask("allow 7\n", "allow"), None);
    }

    #[test]
    fn a_process_that_does_not_exist_is_not_confined() {
        assert_eq!(confinement(Some(u32::MAX)), None);
    }
}
