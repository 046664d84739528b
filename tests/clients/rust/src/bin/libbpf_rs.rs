//! A program of libbpf-rs: it loads tests/bpf/client.bpf.c, attaches, makes traffic, and prints what the programs have seen.
//!
//!     OBJECT xdp|cgroup [DIRECTORY]

use std::cell::Cell;
use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, RingBufferBuilder};

type Failure = Box<dyn std::error::Error>;

const LOOPBACK: i32 = 1;
const ARRIVED: u32 = 0;
const SENT: u32 = 2;
const REFUSED: u32 = 3;

fn send_packets() -> Result<(), Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..5 {
        socket.send_to(b"packet", "127.0.0.1:9")?;
    }
    Ok(())
}

fn counted(loaded: &Object, which: u32) -> Result<u64, Failure> {
    let counters = loaded.maps().find(|map| map.name() == "counters").ok_or("no map counters")?;
    let value = counters.lookup(&which.to_ne_bytes(), MapFlags::ANY)?.ok_or("no value")?;
    Ok(u64::from_ne_bytes(value.as_slice().try_into()?))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let kind = arguments[2].as_str();
    let wanted: &[&str] = match kind {
        "xdp" => &["count_arrived"],
        "cgroup" => &["count_sent", "refuse_connect"],
        _ => return Err(format!("unknown kind {kind}").into()),
    };
    let mut open = ObjectBuilder::default().open_file(&arguments[1])?;
    // One kind of program: the container was granted no other.
    for mut program in open.progs_mut() {
        let is_wanted = wanted.iter().any(|name| program.name() == *name);
        program.set_autoload(is_wanted);
    }
    let loaded = open.load()?;
    match kind {
        "xdp" => {
            let program = loaded.progs_mut().find(|program| program.name() == "count_arrived").ok_or("no program")?;
            let _link = program.attach_xdp(LOOPBACK)?;
            send_packets()?;
            let lengths = loaded.maps().find(|map| map.name() == "lengths").ok_or("no map lengths")?;
            let records = Cell::new(0);
            let mut builder = RingBufferBuilder::new();
            builder.add(&lengths, |_| {
                records.set(records.get() + 1);
                0
            })?;
            builder.build()?.consume()?;
            println!("arrived {}, records {}", counted(&loaded, ARRIVED)?, records.get());
        }
        _ => {
            let cgroup = File::open(&arguments[3])?;
            let mut links = Vec::new();
            for program in loaded.progs_mut().filter(|program| wanted.iter().any(|name| program.name() == *name)) {
                links.push(program.attach_cgroup(cgroup.as_raw_fd())?);
            }
            send_packets()?;
            let error = TcpStream::connect("127.0.0.1:7").err().and_then(|error| error.raw_os_error()).unwrap_or(0);
            println!("sent {}, refused {}, connect {error}", counted(&loaded, SENT)?, counted(&loaded, REFUSED)?);
        }
    }
    Ok(())
}
