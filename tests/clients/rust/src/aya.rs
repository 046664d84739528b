// Included by a program for each version of aya, which is named `aya` there.
//
//     OBJECT xdp|cgroup|tcx [DIRECTORY]

use std::fs::File;
use std::net::{TcpStream, UdpSocket};

use aya::Ebpf;
use aya::maps::{Array, RingBuf};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, SchedClassifier, TcAttachType, Xdp};

type Failure = Box<dyn std::error::Error>;

const ARRIVED: u32 = 0;
const RECEIVED: u32 = 1;
const SENT: u32 = 2;
const REFUSED: u32 = 3;

fn send_packets() -> Result<(), Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..5 {
        socket.send_to(b"packet", "127.0.0.1:9")?;
    }
    Ok(())
}

fn counted(loaded: &Ebpf, which: u32) -> Result<u64, Failure> {
    let counters: Array<_, u64> = Array::try_from(loaded.map("counters").ok_or("no map counters")?)?;
    Ok(counters.get(&which, 0)?)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut loaded = Ebpf::load_file(&arguments[1])?;
    match arguments[2].as_str() {
        "xdp" => {
            let program: &mut Xdp = loaded.program_mut("count_arrived").ok_or("no program")?.try_into()?;
            program.load()?;
            attach_xdp(program)?;
            send_packets()?;
            let count = counted(&loaded, ARRIVED)?;
            let mut lengths = RingBuf::try_from(loaded.map_mut("lengths").ok_or("no map lengths")?)?;
            let mut records = 0;
            while lengths.next().is_some() {
                records += 1;
            }
            println!("arrived {count}, records {records}");
        }
        "tcx" => {
            let program: &mut SchedClassifier = loaded.program_mut("count_received").ok_or("no program")?.try_into()?;
            program.load()?;
            program.attach("lo", TcAttachType::Ingress)?;
            send_packets()?;
            println!("received {}", counted(&loaded, RECEIVED)?);
        }
        "cgroup" => {
            let cgroup = File::open(&arguments[3])?;
            let program: &mut CgroupSkb = loaded.program_mut("count_sent").ok_or("no program")?.try_into()?;
            program.load()?;
            program.attach(&cgroup, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)?;
            let program: &mut CgroupSockAddr = loaded.program_mut("refuse_connect").ok_or("no program")?.try_into()?;
            program.load()?;
            program.attach(&cgroup, CgroupAttachMode::Single)?;
            send_packets()?;
            let error = TcpStream::connect("127.0.0.1:7").err().and_then(|error| error.raw_os_error()).unwrap_or(0);
            println!("sent {}, refused {}, connect {error}", counted(&loaded, SENT)?, counted(&loaded, REFUSED)?);
        }
        kind => return Err(format!("unknown kind {kind}").into()),
    }
    Ok(())
}
