//! How much a client that is not root may load.

use std::path::Path;
use std::process::Command;

use bpfman_hook::frontend::service::wire::bytecode_location::Location;
use bpfman_hook::frontend::service::wire::{BytecodeLocation, LoadInfo, LoadRequest};

use crate::support::process::ended;
use crate::world::{World, run};

/// The variables that turn this test binary into a client: the socket's path, the object's, and whose maps to share.
const CLIENT: &str = "BPFMAN_HOOK_TEST_LOADER";
const OBJECT: &str = "BPFMAN_HOOK_TEST_OBJECT";
const OWNER: &str = "BPFMAN_HOOK_TEST_OWNER";

/// Not a test of its own: `load` runs it in a process with other ids, where it prints what the service answered.
#[test]
fn client_process() {
    let (Some(socket), Ok(object)) = (std::env::var_os(CLIENT), std::env::var(OBJECT)) else { return };
    run(async {
        let mut client = crate::world::client(Path::new(&socket)).await;
        let request = LoadRequest {
            bytecode: Some(BytecodeLocation { location: Some(Location::File(object)) }),
            info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
            map_owner_id: std::env::var(OWNER).ok().and_then(|id| id.parse().ok()),
            ..LoadRequest::default()
        };
        match client.load(request).await {
            Ok(answer) => println!("loaded:{}", answer.into_inner().programs[0].kernel_info.as_ref().unwrap().id),
            Err(status) => println!("refused:{:?}: {}", status.code(), status.message()),
        }
    });
}

#[test]
fn what_a_client_has_loaded_stays_within_its_limits() {
    let world = World::new();
    // The service loads for others only from places that are root's.
    let place = tempfile::tempdir_in("/run").unwrap();
    let object = place.path().join("counter.o");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/counter.bpf.o"), &object).unwrap();
    let rule = |more: &str| {
        let paths = place.path().display();
        world.lab.policy(&format!("[[client]]\nuser = 12345\nallow = [\"load\"]\npaths = [\"{paths}\"]\n{more}"));
    };
    rule("programs = 2\n");
    let service = world.start(&["--timeout", "0"]);
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&world.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let copy = world.lab.path("client");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let load = |owner: Option<&str>| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=12345", "--regid=12345", "--clear-groups"]).arg(&copy);
        command.args(["--exact", "limits::client_process", "--nocapture"]);
        command.env(CLIENT, &world.socket).env(OBJECT, &object).envs(owner.map(|id| (OWNER, id)));
        let said = ended(&mut command).stdout;
        let line = said.lines().find_map(|line| line.split_once("loaded:").or_else(|| line.split_once("refused:")));
        line.unwrap_or_else(|| panic!("{said}")).1.to_owned()
    };

    let (first, second) = (load(None), load(None));
    let third = load(None);
    assert!(third.contains("ResourceExhausted") && third.contains("would have 3 programs, and may have 2"), "{third}");
    // Root is not bound, and what it loads is not the client's; nor are its maps.
    let path = object.display().to_string();
    let loaded = world.lab.json(&["load", "file", "--path", &path, "--programs", "xdp:count"]);
    let of_root = loaded[0]["id"].to_string();
    let foreign = load(Some(&of_root));
    assert!(foreign.contains("PermissionDenied") && foreign.contains("may change only its own"), "{foreign}");

    // What is unloaded makes room, of memory as well.
    world.lab.ours(&["unload", &first]);
    let one = world.lab.json(&["get", "program", &second]);
    assert_eq!(one["map_used_by"].to_string(), format!("[{second}]"));
    rule("map-memory = 600\n");
    let too_much = load(None);
    assert!(too_much.contains("ResourceExhausted") && too_much.contains("and may take 600"), "{too_much}");
    world.lab.ours(&["unload", &second, &of_root]);
    let again = load(None);
    assert!(again.parse::<u32>().is_ok(), "{again}");
    world.lab.ours(&["unload", &again]);
    service.stop();
    world.lab.residue();
}
