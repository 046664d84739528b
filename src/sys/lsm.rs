//! The label that a security module has put on a process, and what AppArmor says that it allows.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use crate::model::confinement::Confinement;

/// How a process is confined; `None` for the calling one. None where it is not, or where its label cannot be read.
///
/// `attr/apparmor/current` is there since Linux 5.8 and fails with EINVAL where AppArmor is not active (fs/proc/base.c,
/// `proc_pid_attr_read`); `attr/current` then belongs to another module.
pub fn confinement(pid: Option<u32>) -> Option<Confinement> {
    let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/attr/{file}"));
    match read("apparmor/current") {
        Ok(label) => Confinement::apparmor(&label),
        Err(_) => Confinement::selinux(&read("current").ok()?),
    }
}

/// Whether an AppArmor profile allows to make files in the directory `path`, as the kernel answers the query that libapparmor's
/// aa_query_label(2) sends: `label`, the profile and what is asked for, each ended by a NUL, the class of files (2) and a path
/// (security/apparmor/apparmorfs.c, `query_label`). None where it cannot be asked: without securityfs, or in a container.
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

/// One line of the answer, as `allow 0x0000001f`.
fn mask(answer: &str, key: &str) -> Option<u32> {
    let value = answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    u32::from_str_radix(value.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_kernel_is_read() {
        let answer = "allow 0x0000004f\ndeny 0x00000010\naudit 0x00000000\nquiet 0x00000010\n";
        assert_eq!((mask(answer, "allow"), mask(answer, "deny"), mask(answer, "none")), (Some(0x4f), Some(0x10), None));
        assert_eq!(mask("allow 7\n", "allow"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_not_confined() {
        assert_eq!(confinement(Some(u32::MAX)), None);
    }
}
