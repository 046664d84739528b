//! Information from conmon, which runs the runtime for podman and CRI-O and is therefore an ancestor of the hook.

use std::fs;

use crate::sys::pid::own_parent;

/// How many ancestors are searched: the hook's parent is the runtime, whose parent is conmon.
const GENERATIONS: usize = 6;

/// The name that podman gave the container with this id: the argument of `-n` on the command line of the ancestor
/// conmon whose `-c` argument is the id. None if no ancestor is conmon. All ancestors are processes of the engine,
/// never of a workload.
pub fn container_name(id: &str) -> Option<String> {
    let mut pid = own_parent()?;
    for _ in 0..GENERATIONS {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if let Some(name) = name_of(&arguments, id) {
            return Some(name);
        }
        pid = parent_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?;
    }
    None
}

fn parent_of(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok().filter(|parent| *parent > 0)
}

fn name_of(command_line: &[u8], id: &str) -> Option<String> {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    if !arguments.first()?.ends_with(b"conmon") {
        return None;
    }
    let after = |flag: &[u8]| arguments.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
    let name = after(b"-n").filter(|_| after(b"-c") == Some(id.as_bytes()))?;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_argument_of_n() {
        // podman 4.3.1.
        let line =
            |id: &str| format!("/usr/bin/conmon\0--api-version\01\0-c\0{id}\0-u\0{id}\0-r\0/usr/bin/runc\0-n\0pod1-one\0");
        assert_eq!(name_of(line("ab").as_bytes(), "ab").as_deref(), Some("pod1-one"));
        assert_eq!(name_of(line("ab").as_bytes(), "cd"), None);
        assert_eq!(name_of(line("ab").replace("conmon", "sh").as_bytes(), "ab"), None);
        assert_eq!(name_of(b"", "ab"), None);
        assert_eq!(name_of(b"conmon\0-c\0ab\0-n", "ab"), None);
        assert_eq!(parent_of("Name:\tx\nPPid:\t7\n"), Some(7));
        assert_eq!(parent_of("PPid:\t0\n"), None);
        assert_eq!(container_name("no-such-container"), None);
    }
}
