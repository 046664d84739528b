//! Limits on what a non-root client may load.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{BytecodeImage, BytecodeLocation, LoadInfo, LoadRequest};

use crate::support::helper_process;
use crate::support::process::ended;
use crate::world::{World, run};

/// The variables that turn this test binary into a client: the socket's path, the object's path, whose maps to share,
/// how many bytes of metadata to store, and a variable to set.
const CLIENT: &str = "BPFMAN_HOOK_TEST_LOADER";
const OBJECT: &str = "BPFMAN_HOOK_TEST_OBJECT";
const OWNER: &str = "BPFMAN_HOOK_TEST_OWNER";
const NOTE: &str = "BPFMAN_HOOK_TEST_NOTE";
const GLOBAL: &str = "BPFMAN_HOOK_TEST_GLOBAL";

const COUNTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/counter.bpf.o");

/// A helper process, not a test: `load` runs it with other ids, and it prints the service's response.
#[test]
fn client_process() {
    let (Some(socket), Ok(object)) = (helper_process::task(CLIENT), std::env::var(OBJECT)) else { return };
    run(async {
        let mut client = crate::world::client(Path::new(&socket)).await;
        let location = match object.starts_with("oci:") {
            true => Location::Image(BytecodeImage { url: object, image_pull_policy: 1, ..BytecodeImage::default() }),
            false => Location::File(object),
        };
        let request = LoadRequest {
            bytecode: Some(BytecodeLocation { location: Some(location) }),
            global_data: std::env::var(GLOBAL).ok().map(|name| (name, vec![2, 0, 0, 0])).into_iter().collect(),
            info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
            metadata: std::env::var(NOTE)
                .ok()
                .and_then(|bytes| bytes.parse().ok())
                .map(|bytes| ("note".to_owned(), "x".repeat(bytes)))
                .into_iter()
                .collect(),
            map_owner_id: std::env::var(OWNER).ok().and_then(|id| id.parse().ok()),
            ..LoadRequest::default()
        };
        match client.load(request).await {
            Ok(answer) => println!("loaded:{}", answer.into_inner().programs[0].kernel_info.as_ref().unwrap().id),
            Err(status) => println!("refused:{:?}: {}", status.code(), status.message()),
        }
    });
}

/// The service's response to a client of another uid: the program's id, or the error.
fn load(world: &World, object: &str, more: &[(&str, &str)]) -> String {
    let copy = world.lab.path("client");
    if !copy.exists() {
        // Other users cannot reach the build directory.
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    }
    std::fs::set_permissions(&world.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=12345", "--regid=12345", "--clear-groups"]).arg(&copy);
    command.args(["--exact", "limits::client_process", "--nocapture"]);
    command.env(CLIENT, &world.socket).env(OBJECT, object).envs(more.iter().copied());
    let said = ended(&mut command).stdout;
    let line = said.lines().find_map(|line| line.split_once("loaded:").or_else(|| line.split_once("refused:")));
    line.unwrap_or_else(|| panic!("{said}")).1.to_owned()
}

#[test]
fn the_loads_of_a_client_stay_within_its_limits() {
    let world = World::new();
    // For other clients, the service loads only from paths that root owns.
    let place = tempfile::tempdir_in("/run").unwrap();
    let object = place.path().join("counter.o").display().to_string();
    std::fs::copy(COUNTER, &object).unwrap();
    let rule = |more: &str| {
        let paths = place.path().display();
        world.lab.policy(&format!("[[client]]\nuser = 12345\nallow = [\"load\"]\npaths = [\"{paths}\"]\n{more}"));
    };
    rule("programs = 2\n");
    let service = world.start(&["--timeout", "0"]);
    let load = |more: &[(&str, &str)]| load(&world, &object, more);

    let (first, second) = (load(&[]), load(&[]));
    let third = load(&[]);
    assert!(third.contains("ResourceExhausted") && third.contains("would have 3 programs, and the limit is 2"), "{third}");
    // Root is not limited, and neither its programs nor its maps count for the client.
    let loaded = world.lab.json(&["load", "file", "--path", &object, "--programs", "xdp:count"]);
    let of_root = loaded[0]["id"].to_string();
    let foreign = load(&[(OWNER, &of_root)]);
    assert!(foreign.contains("PermissionDenied") && foreign.contains("may change only its own"), "{foreign}");

    // Unloading frees the client's share, including memory.
    world.lab.ours(&["unload", &first]);
    rule("store = 6000\n");
    let stored = load(&[(NOTE, "4000")]);
    assert!(stored.contains("ResourceExhausted") && stored.contains("all its loads would take"), "{stored}");
    rule("map-memory = 600\n");
    let too_much = load(&[]);
    assert!(too_much.contains("ResourceExhausted") && too_much.contains("and the limit is 600"), "{too_much}");
    world.lab.ours(&["unload", &second, &of_root]);
    let again = load(&[]);
    assert!(again.parse::<u32>().is_ok(), "{again}");
    world.lab.ours(&["unload", &again]);
    service.stop();
    world.lab.residue();
}

#[test]
fn a_client_sets_the_globals_that_the_image_rule_names() {
    let world = World::new();
    let place = tempfile::tempdir_in("/run").unwrap();
    let image = format!("oci:{}:v1", place.path().join("image").display());
    world.lab.ours(&["image", "build", "--quiet", &image, &format!("linux/amd64={COUNTER}")]);
    let paths = place.path().display();
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"oci:{paths}/image\"\nunsigned = true\nglobals = [\"step\"]\n\
         [[client]]\nuser = 12345\nallow = [\"load\"]\npaths = [\"{paths}\"]\n"
    ));
    let service = world.start(&["--timeout", "0"]);
    let refused = load(&world, &image, &[(GLOBAL, "mode")]);
    assert!(refused.contains("PermissionDenied") && refused.contains("mode"), "{refused}");
    let loaded = load(&world, &image, &[(GLOBAL, "step")]);
    assert!(loaded.parse::<u32>().is_ok(), "{loaded}");
    // Root may set any variable.
    let by_root = world.lab.json(&["load", "image", "-i", &image, "--programs", "xdp:count", "--global", "mode:=7"]);
    world.lab.ours(&["unload", &loaded, &by_root[0]["id"].to_string()]);
    service.stop();
    world.lab.residue();
}
