//! Logging of the hook: to the systemd journal, or to a log file on hosts without one. Runtimes show a hook's standard
//! error only in some cases. Nothing here blocks or fails the caller: a line that cannot be written must not keep a
//! container from starting.

use std::io::Write;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, renameat};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

/// journald's socket for the native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const SOCKET: &str = "/run/systemd/journal/socket";

/// The log file is rotated to `log.1` when it is larger than this.
const MAX_LOG: u64 = 1 << 20;

/// Maximum length of a field value in bytes; longer values are cut at a character boundary. A datagram holds about 200
/// KiB with the default `net.core.wmem_default`.
const MAX_VALUE: usize = 16 << 10;

/// The levels of syslog(3) that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of syslog(3)")]
pub enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// A journal entry.
#[derive(Debug, Clone, Copy)]
pub struct JournalEntry<'a> {
    /// The severity.
    pub priority: Priority,
    /// The text, which may have several lines.
    pub message: &'a str,
    /// The container that the entry concerns (`CONTAINER_ID=`).
    pub container: Option<&'a str>,
    /// Additional fields. Names consist of A-Z, 0-9 and `_` and begin with a letter; others are omitted, as journald
    /// would do.
    pub fields: &'a [(&'a str, &'a str)],
}

/// Sends an entry to journald. Returns false if journald is not running or its socket is full; use [`append_log`]
/// then.
pub fn send(entry: &JournalEntry<'_>) -> bool {
    send_to(Path::new(SOCKET), entry)
}

fn send_to(path: &Path, entry: &JournalEntry<'_>) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None) else { return false };
    let datagram = encode(entry);
    sendto(&socket, &datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &address).is_ok_and(|sent| sent == datagram.len())
}

fn encode(entry: &JournalEntry<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let priority = (entry.priority as u8).to_string();
    field(&mut out, "MESSAGE", entry.message);
    field(&mut out, "PRIORITY", &priority);
    field(&mut out, "SYSLOG_IDENTIFIER", "bpfman-hook");
    if let Some(container) = entry.container {
        field(&mut out, "CONTAINER_ID", container);
    }
    for (name, value) in entry.fields {
        field(&mut out, name, value);
    }
    out
}

/// Encodes `NAME=value` and a newline or, if the value contains newlines, the name, a newline, the length as a
/// little-endian u64, the value and a newline.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    let legal = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    if name.len() > 64 || !name.starts_with(|c: char| c.is_ascii_uppercase()) || !name.bytes().all(legal) {
        return;
    }
    let value = &value[..value.floor_char_boundary(MAX_VALUE)];
    out.extend(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend((value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend(value.as_bytes());
    out.push(b'\n');
}

/// Appends one line to the log file (mode 0640) and rotates the file to `log.1` when it exceeds 1 MiB. Newlines in
/// `line` become blanks and other control characters `?`, so that each call writes one line. Does not follow symbolic
/// links. All errors are ignored.
pub fn append_log(path: &Path, line: &str) {
    let _ = try_append(path, line);
}

fn try_append(path: &Path, line: &str) -> Option<()> {
    // O_NONBLOCK: if the path is a fifo, opening it for writing fails instead of waiting for a reader.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    let open = || openat(CWD, path, flags, Mode::from_raw_mode(0o640)).ok();
    let mut file = open()?;
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    if u64::try_from(stat.st_size).is_ok_and(|size| size > MAX_LOG) {
        // If two processes do this at the same time, the second one moves a new file over the old one. Lines are lost,
        // but not torn.
        let mut rotated = path.as_os_str().to_owned();
        rotated.push(".1");
        renameat(CWD, path, CWD, rotated.as_os_str()).ok()?;
        file = open()?;
    }
    let clean: String = line
        .chars()
        .map(|c| {
            if c == '\n' {
                ' '
            } else if c.is_control() {
                '?'
            } else {
                c
            }
        })
        .collect();
    // A single write(2) with O_APPEND, so that lines of several processes are not interleaved.
    std::fs::File::from(file).write_all(format!("{clean}\n").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn an_entry_is_encoded_in_the_native_protocol() {
        let entry = JournalEntry {
            priority: Priority::Error,
            message: "attach tcx \"count\" to eth0: busy",
            container: Some("web"),
            fields: &[
                ("BPFMAN_LOG", "1: r0 = 0\n2: exit"),
                ("lower", "x"),
                ("9LIVES", "x"),
                ("_TRUSTED", "x"),
                ("A=B", "x"),
                ("", "x"),
            ],
        };
        let mut expected = b"MESSAGE=attach tcx \"count\" to eth0: busy\nPRIORITY=3\nSYSLOG_IDENTIFIER=bpfman-hook\nCONTAINER_ID=web\nBPFMAN_LOG\n".to_vec();
        expected.extend([17, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(b"1: r0 = 0\n2: exit\n");
        assert_eq!(String::from_utf8_lossy(&encode(&entry)), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn sending_never_blocks_on_a_full_or_missing_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let entry = JournalEntry { priority: Priority::Info, message: &"é".repeat(20_000), container: None, fields: &[] };
        assert!(!send_to(&path, &entry));
        let journald = UnixDatagram::bind(&path).unwrap();
        assert!(send_to(&path, &entry));
        let mut buffer = vec![0; 100_000];
        let length = journald.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(text.starts_with("MESSAGE=éé") && text.ends_with("é\nPRIORITY=6\nSYSLOG_IDENTIFIER=bpfman-hook\n"));
        assert!(length < MAX_VALUE + 100);
        let sent = (0..10_000).take_while(|_| send_to(&path, &entry)).count();
        assert!(sent < 10_000, "false if journald does not read");
        drop(journald);
        assert!(!send_to(&path, &entry), "the socket is closed");
    }

    #[test]
    fn the_log_has_whole_lines_and_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        append_log(&path, "one\ntwo\x1b[31m");
        append_log(&path, "three");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one two?[31m\nthree\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o137, 0, "0640 less the umask");
        fs::write(&path, vec![b'x'; usize::try_from(MAX_LOG).unwrap() + 1]).unwrap();
        append_log(&path, "fresh");
        assert_eq!(fs::read_to_string(&path).unwrap(), "fresh\n");
        assert_eq!(fs::metadata(&old).unwrap().len(), MAX_LOG + 1);
    }

    #[test]
    fn links_fifos_and_missing_directories_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) = (dir.path().join("target"), dir.path().join("link"), dir.path().join("fifo"));
        fs::write(&target, "kept").unwrap();
        symlink(&target, &link).unwrap();
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for path in [&link, &fifo, &dir.path().join("none/log"), dir.path()] {
            append_log(path, "line");
        }
        assert_eq!(fs::read(&target).unwrap(), b"kept");
    }
}
