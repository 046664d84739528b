//! The fields of the responses.

use std::collections::HashMap;

use bpfman_hook::grpc::wire::attach_info::Info;
use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{
    AttachInfo, AttachRequest, BytecodeImage, BytecodeLocation, GetRequest, GetResponse, ListRequest, LoadInfo, LoadRequest,
    PullBytecodeRequest, TracepointAttachInfo, UnloadRequest,
};
use tonic::Code;

use crate::world::{Client, World, run};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/counter.bpf.o");
const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/trace.bpf.o");

fn words(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn load_of(path: &str, function: &str, program_type: i32) -> LoadRequest {
    LoadRequest {
        bytecode: Some(BytecodeLocation { location: Some(Location::File(path.to_owned())) }),
        metadata: words(&[("team", "a")]),
        info: vec![LoadInfo { name: function.to_owned(), program_type, info: None }],
        uuid: Some("of no meaning".to_owned()),
        ..LoadRequest::default()
    }
}

async fn load(client: &mut Client, request: LoadRequest) -> u32 {
    client.load(request).await.unwrap().into_inner().programs[0].kernel_info.as_ref().unwrap().id
}

async fn get(client: &mut Client, id: u32) -> GetResponse {
    client.get(GetRequest { id }).await.unwrap().into_inner()
}

#[test]
fn every_field_is_set() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    run(async {
        let mut client = world.client().await;
        let step = [("step".to_owned(), vec![5, 0, 0, 0])];
        let first = load(&mut client, LoadRequest { global_data: step.clone().into(), ..load_of(OBJECT, "count", 0) }).await;
        let second = load(&mut client, LoadRequest { map_owner_id: Some(first), ..load_of(OBJECT, "count", 0) }).await;

        let answer = get(&mut client, first).await;
        let (info, kernel) = (answer.info.unwrap(), answer.kernel_info.unwrap());
        assert_eq!(info.name, "count");
        assert_eq!(info.bytecode.unwrap().location, Some(Location::File(OBJECT.to_owned())));
        assert_eq!((info.global_data, info.metadata), (step.into(), words(&[("team", "a")])));
        assert_eq!((info.map_owner_id, info.map_used_by), (None, vec![first.to_string(), second.to_string()]));
        assert!(std::path::Path::new(&info.map_pin_path).join("counter").exists(), "{}", info.map_pin_path);
        assert_eq!((kernel.id, kernel.name.as_str(), kernel.program_type), (first, "count", 6));
        assert!(kernel.loaded_at.starts_with("20") && kernel.loaded_at.ends_with('Z'), "{}", kernel.loaded_at);
        assert!(kernel.gpl_compatible && kernel.tag.len() == 16 && kernel.map_ids.len() >= 2 && kernel.btf_id > 0);
        assert!(kernel.bytes_xlated > 0 && kernel.bytes_memlock > 0 && kernel.verified_insns > 0);
        assert_eq!(kernel.jited, kernel.bytes_jited > 0);
        let shared = get(&mut client, second).await.info.unwrap();
        assert_eq!((shared.map_owner_id, shared.map_used_by), (Some(first), vec![first.to_string(), second.to_string()]));

        // The map owner is unloaded first, as in bpfman.
        client.unload(UnloadRequest { id: first }).await.unwrap();
        let shared = get(&mut client, second).await.info.unwrap();
        assert_eq!((shared.map_owner_id, shared.map_used_by), (Some(first), vec![second.to_string()]));
        let gone = client.load(LoadRequest { map_owner_id: Some(first), ..load_of(OBJECT, "count", 0) }).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
        let other =
            client.load(LoadRequest { map_owner_id: Some(second), ..load_of(TRACE, "trace_exec", 2) }).await.unwrap_err();
        assert_eq!(other.code(), Code::FailedPrecondition, "{other:?}");
        client.unload(UnloadRequest { id: second }).await.unwrap();
    });
    service.stop();
    world.lab.residue();
}

#[test]
fn links_keep_their_metadata_and_lists_their_filters() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    run(async {
        let mut client = world.client().await;
        let xdp = load(&mut client, load_of(OBJECT, "count", 0)).await;
        let trace = load(&mut client, load_of(TRACE, "trace_exec", 2)).await;
        let tracepoint =
            TracepointAttachInfo { tracepoint: "sched/sched_process_exec".to_owned(), metadata: words(&[("site", "here")]) };
        let attach = AttachInfo { info: Some(Info::TracepointAttachInfo(tracepoint)) };
        let link = client.attach(AttachRequest { id: trace, attach: Some(attach) }).await.unwrap().into_inner().link_id;
        assert_eq!(get(&mut client, trace).await.info.unwrap().links, [link]);
        let shown = world.lab.json(&["get", "link", &link.to_string()]);
        assert_eq!(shown["metadata"]["site"], "here", "{shown}");

        for (program_type, expected) in
            [(None, vec![xdp, trace]), (Some(6), vec![xdp]), (Some(5), vec![trace]), (Some(29), vec![])]
        {
            let request =
                ListRequest { program_type, bpfman_programs_only: Some(true), match_metadata: words(&[("team", "a")]) };
            let listed = client.list(request).await.unwrap().into_inner().results;
            let ids: Vec<_> = listed.iter().map(|one| one.kernel_info.as_ref().unwrap().id).collect();
            assert_eq!(ids, expected, "{program_type:?}");
        }
        for id in [xdp, trace] {
            client.unload(UnloadRequest { id }).await.unwrap();
        }
    });
    service.stop();
    world.lab.residue();
}

#[test]
fn credentials_are_sent_only_to_the_registry() {
    let world = World::new();
    // A registry that requires credentials and records what it received.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = registry.local_addr().unwrap().port();
    world.lab.policy(&format!("[[image]]\nrepository = \"127.0.0.1:{port}/**\"\nunsigned = true\n"));
    let seen = std::thread::spawn(move || {
        use std::io::{Read, Write};
        loop {
            let (mut stream, _) = registry.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..read]);
                if read == 0 {
                    break;
                }
            }
            let request = String::from_utf8(request).unwrap();
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
            if request.to_lowercase().contains("authorization:") {
                return request;
            }
        }
    });
    let service = world.start(&["--timeout", "0"]);
    run(async {
        let mut client = world.client().await;
        let image = BytecodeImage {
            url: format!("127.0.0.1:{port}/acme/image:v1"),
            image_pull_policy: 0,
            username: Some("user".to_owned()),
            password: Some("hushhush".to_owned()),
        };
        let status = client.pull_bytecode(PullBytecodeRequest { image: Some(image) }).await.unwrap_err();
        assert!(status.message().contains("refuses our credentials"), "{status:?}");
        assert!(!status.message().contains("hushhush"));
    });
    let request = seen.join().unwrap();
    // user:hushhush
    assert!(request.contains("dXNlcjpodXNoaHVzaA=="), "{request}");
    service.stop();
    world.lab.residue();
}
