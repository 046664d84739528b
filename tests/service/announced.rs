//! Requests whose headers arrive but whose bodies do not: the announced bytes count.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::ListRequest;

use crate::peers::{CLIENT, as_another, open_to_all};
use crate::support::helper_process;
use crate::world::{PATIENCE, World, run};

const OTHER_USER: [&str; 4] = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];

/// An HTTP/2 frame: type, flags, stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A connection with this number of Load requests, each announcing this number of bytes and sending none.
fn connect(socket: &Path, streams: u32, bytes: Option<u32>) -> UnixStream {
    let literal = |name: &str, value: &str| {
        let length = |text: &str| vec![u8::try_from(text.len()).unwrap()];
        [vec![0], length(name), name.as_bytes().to_vec(), length(value), value.as_bytes().to_vec()].concat()
    };
    let headers = [
        vec![0x83, 0x86],
        literal(":path", "/bpfman.v1.Bpfman/Load"),
        literal(":authority", "localhost"),
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ];
    let mut connection = UnixStream::connect(socket).unwrap();
    let mut all = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    for stream in (0..streams).map(|n| 2 * n + 1) {
        all.extend(frame(1, 4, stream, &headers.concat()));
        if let Some(bytes) = bytes {
            all.extend(frame(0, 0, stream, &[&[0][..], &bytes.to_be_bytes()].concat()));
        }
    }
    connection.write_all(&all).unwrap();
    connection
}

/// A helper process, not a test: one request without a body; prints whether it was answered.
#[test]
fn without_a_body_process() {
    let Some(socket) = helper_process::task(CLIENT) else { return };
    let mut connection = connect(Path::new(&socket), 1, None);
    connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (began, mut received) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(8) {
        let mut some = [0; 4096];
        let count = connection.read(&mut some).unwrap_or(0);
        received.extend_from_slice(&some[..count]);
        let mut rest = &received[..];
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest[3] == 1 && rest[8] == 1 {
                println!("answered without a body");
                return;
            }
            rest = rest.get(9 + length..).unwrap_or_default();
        }
    }
}

/// A helper process, not a test: announces 2 GiB.
#[test]
fn announcing_process() {
    let Some(socket) = helper_process::task(CLIENT) else { return };
    let connections: Vec<_> = (0..64).map(|_| connect(Path::new(&socket), 32, Some(1 << 20))).collect();
    println!("announced");
    std::thread::sleep(Duration::from_secs(2));
    drop(connections);
}

#[test]
fn a_forbidden_client_is_refused_before_its_body_is_read() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    open_to_all(&world);
    let answer = as_another(&world, &OTHER_USER, "announced::without_a_body_process");
    assert!(answer.contains("answered without a body"), "{answer}");
    service.stop();
    world.lab.residue();
}

/// The peak address space of a process, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn announced_bytes_count_before_they_arrive() {
    let world = World::new();
    world.lab.policy("[[client]]\nuser = 12345\nallow = [\"load\"]\npaths = [\"/usr/lib/bpf\"]\n");
    let service = world.start(&["--timeout", "0"]);
    open_to_all(&world);
    run(async { world.client().await.list(ListRequest::default()).await.unwrap() });
    let before = peak(service.child.id());
    std::thread::scope(|scope| {
        let client = scope.spawn(|| as_another(&world, &OTHER_USER, "announced::announcing_process"));
        // Root is served meanwhile.
        let began = Instant::now();
        while !client.is_finished() && began.elapsed() < PATIENCE {
            run(async { world.client().await.list(ListRequest::default()).await.unwrap() });
        }
        let answer = client.join().unwrap();
        assert!(answer.contains("announced"), "{answer}");
    });
    let grown = peak(service.child.id()) - before;
    assert!(grown < 256 << 10, "the service has grown by {grown} KiB of address space");
    service.stop();
    world.lab.residue();
}
