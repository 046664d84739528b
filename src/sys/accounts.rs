//! Names of users and groups from /etc/passwd and /etc/group. Other sources (LDAP, systemd-homed) are not queried: the
//! policy refers to their accounts by number.

use std::path::Path;

use crate::sys::fsutil::read_text;

/// Larger account files are not read.
const MAX: usize = 16 << 20;

/// A snapshot of the accounts of this host.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both files. A file that cannot be read is treated as empty.
    pub fn read() -> Self {
        let read = |path: &str| read_text(Path::new(path), MAX).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The name of a uid.
    pub fn user(&self, uid: u32) -> Option<String> {
        name(&self.passwd, uid)
    }

    /// The name of a gid.
    pub fn group(&self, gid: u32) -> Option<String> {
        name(&self.group, gid)
    }
}

/// The gid of a group.
pub fn gid_of(group: &str) -> Option<u32> {
    let accounts = Accounts::read();
    entries(&accounts.group).find(|(name, _)| *name == group).map(|(_, gid)| gid)
}

fn name(text: &str, id: u32) -> Option<String> {
    entries(text).find(|(_, of)| *of == id).map(|(name, _)| name.to_owned())
}

/// Name and number of each line; both files have them in the same columns.
fn entries(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_with_a_number_wins() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n+nis\n:x:7:7::/:\nal:x:7:7::/:/bin/sh\nbo:x:7:7::/:\n".into(),
            group: "root:x:0:\nops:x:50:al,bo\nbad:x:many:\n".into(),
        };
        assert_eq!(accounts.user(0).as_deref(), Some("root"));
        assert_eq!(accounts.user(7).as_deref(), Some("al"));
        assert_eq!(accounts.user(8), None);
        assert_eq!(accounts.group(50).as_deref(), Some("ops"));
        assert_eq!(accounts.group(51), None);
        assert_eq!(entries(&accounts.group).count(), 2);
    }
}
