//! What `manual.py` cannot do in Python: a client of the gRPC service, and a store full of records.
//!
//! `manual client SOCKET OBJECT PROGRAM IFACE` loads, attaches and unloads one XDP program; `manual records ROOT
//! COUNT` writes records through the store's own API; `manual tally DIRECTORY COUNT` records COUNT runs of a hook and
//! prints nanoseconds for one.
#![allow(clippy::print_stdout, reason = "the figure is what it is run for")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::attach_info::Info;
use bpfman_hook::grpc::wire::bpfman_client::BpfmanClient;
use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{
    AttachInfo, AttachRequest, BytecodeLocation, LoadInfo, LoadRequest, UnloadRequest, XdpAttachInfo,
};
use bpfman_hook::model::ids::Pid;
use bpfman_hook::model::metrics_table;
use bpfman_hook::model::metrics_table::{EventKind, Outcome, Phase, Stage, Worked};
use bpfman_hook::model::record::{Owner, OwnerRecord, ProgramState};
use bpfman_hook::paths::Paths;
use bpfman_hook::store::{Store, StoreError};
use bpfman_hook::sys::clock;
use bpfman_hook::sys::export::Export;
use bpfman_hook::sys::pid::open_process;
use tonic::transport::Endpoint;

type Failed = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // `cargo bench` adds an argument of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["client", socket, object, program, iface] => client(socket, object, program, iface),
        ["records", root, count] => records(Path::new(root), count, None, &[]),
        ["records", root, count, program, inits @ ..] => records(Path::new(root), count, Some(program), inits),
        ["tally", directory, count] => tally(Path::new(directory), count),
        _ => Err("manual client SOCKET OBJECT PROGRAM IFACE, manual records ROOT COUNT [PROGRAM INIT…], \
            manual tally DIRECTORY COUNT"
            .into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn client(socket: &str, object: &str, program: &str, iface: &str) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = BpfmanClient::new(Endpoint::from_shared(format!("unix://{socket}"))?.connect().await?);
        let load = LoadRequest {
            bytecode: Some(BytecodeLocation { location: Some(Location::File(object.to_owned())) }),
            info: vec![LoadInfo { name: program.to_owned(), program_type: 0, info: None }],
            ..LoadRequest::default()
        };
        let loaded = client.load(load).await?.into_inner();
        let id = loaded.programs.first().and_then(|it| it.kernel_info.as_ref()).ok_or("an answer without a program")?.id;
        let xdp = XdpAttachInfo { iface: iface.to_owned(), priority: 50, ..XdpAttachInfo::default() };
        let attach = AttachRequest { id, attach: Some(AttachInfo { info: Some(Info::XdpAttachInfo(xdp)) }) };
        client.attach(attach).await?;
        client.unload(UnloadRequest { id }).await?;
        Ok(())
    })
}

/// Containers with one attached XDP program each, as they are stored: with a program that is loaded in the kernel,
/// without a link, and with these processes as their inits in turn, or with nothing that exists.
fn records(root: &Path, count: &str, program: Option<&str>, inits: &[&str]) -> Result<(), Failed> {
    let program = program.map(str::parse).transpose()?;
    let identity = |pid: &&str| Ok::<_, Failed>(open_process(Pid::new(pid.parse()?)?)?.identity());
    let inits = inits.iter().map(identity).collect::<Result<Vec<_>, _>>()?;
    let mut turns = inits.iter().cycle();
    let store = Store::open(&Paths::below(root).stores(), &clock::boot_id()?)?;
    let mut left: u64 = count.parse()?;
    while left > 0 {
        let batch = left.min(1000);
        store.write(|txn| {
            for _ in 0..batch {
                let no = txn.next_no()?;
                let mut made = record(no.0);
                if let (Owner::Container(container), Some(init)) = (&mut made.owner, turns.next()) {
                    container.init = Some(*init);
                }
                if let Some(id) = program {
                    made.programs.iter_mut().for_each(|made| made.state = ProgramState::Loaded(id));
                    made.links.clear();
                }
                txn.put(&made)?;
            }
            Ok::<_, StoreError>(())
        })?;
        left -= batch;
    }
    Ok(())
}

fn record(no: u64) -> OwnerRecord {
    let digest = |part: u64| format!("sha256:{:064x}", no * 10 + part);
    let id = u32::try_from(no).unwrap_or(u32::MAX / 4) + 1_000_000_000;
    serde_json::from_value(serde_json::json!({
        "no": no, "phase": "ready", "created": 1_795_574_700, "changed": 1_795_574_701,
        "owner": {"kind": "container", "id": format!("{no:064x}"), "bundle": format!("/run/containers/{no:064x}/bundle"), "runtime_user": 0,
            "engine": "podman", "workload": {"namespace": "shop", "pod": format!("front-{no}"), "container": "web"},
            "init": {"pid": 5000, "start_time": 7}, "request": digest(1),
            "cgroup": {"path": format!("/machine.slice/libpod-{no:064x}.scope"), "id": no},
            "bpffs": {"path": "/sys/fs/bpf", "delegation": null}, "holds": []},
        "actor": {"process": {"pid": 4000, "start_time": 1}, "deadline": 99},
        "programs": [{"pin": "prog_0", "function": "count_packets", "kind": "xdp", "scope": "container", "image": 0, "state": {"loaded": id}}],
        "maps": [{"pin": "map_0", "name": "packets", "image": 0, "state": {"created": id}, "shown": {"file_name": "packets", "access": "ro"}}],
        "links": [{"pin": "link_0", "program": "prog_0", "at": {"type": "xdp", "iface": {"name": "eth0", "index": 2}, "mode": null}, "state": {"attached": id}}],
        "images": [{"reference": "registry.example/acme/count:v1", "digest": digest(2), "object": digest(3), "rule": "acme",
            "verdict": {"verdict": "verified", "by": "/etc/bpfman-hook/keys/acme.pub", "layout": "simple-signing"}}],
        "failure": null, "leftovers": [],
    }))
    .expect("the form of a record")
}

/// Everything that a start with one image records; the file of counters is opened for each run, as a process does.
fn tally(directory: &Path, count: &str) -> Result<(), Failed> {
    let count: u32 = count.parse()?;
    let (owner_file, line) =
        (serde_json::to_vec(&bpfman_hook::model::public_owner::PublicOwner::of(&record(1)))?, format!("{}\n", "x".repeat(250)));
    let began = Instant::now();
    for _ in 0..count {
        let export = Export::open(directory).ok_or("the directory is not ours alone")?;
        export.observe(metrics_table::phase(Phase::Image, Worked::Ok), Duration::from_millis(1));
        export.observe(metrics_table::phase(Phase::Build, Worked::Ok), Duration::from_millis(5));
        export.observe(metrics_table::run(Stage::CreateRuntime, Outcome::Done), Duration::from_millis(7));
        export.count(metrics_table::event(EventKind::Acquired), 1);
        export.put_owner_file(1, &owner_file);
        export.append(&line);
    }
    println!("{}", began.elapsed().as_nanos() / u128::from(count));
    Ok(())
}
