//! A private registry: Debian's docker-registry with TLS and authentication; who may push, and whose starts may pull.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::harness;
use crate::support::bundle::Bundle;
use crate::support::docker_registry::DockerRegistry;
use crate::support::process::ended;
use crate::support::runtime::Runtime;
use crate::world::{World, object_path};

crate::cases![an_image_of_a_private_registry];

/// docker-registry with authentication, and a certificate of a CA that is not in the system's trust store.
fn an_image_of_a_private_registry(world: &mut World) {
    let registry = DockerRegistry::start_private(&world.lab.path("registry"));
    let name = format!("{}/acme/demo:v1", registry.host());
    let etc = |name: &str, bytes: &[u8], mode: u32| {
        let path = world.lab.root().join("etc").join(name);
        let parent = path.parent().expect("it is below etc");
        fs::create_dir_all(parent).unwrap_or_else(|e| harness!("create {}: {e}", parent.display()));
        fs::write(&path, bytes).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap_or_else(|e| harness!("chmod: {e}"));
    };
    let ca = fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls/ca.pem"));
    let ca = ca.unwrap_or_else(|e| harness!("read the authority: {e}"));
    etc(&format!("containers/certs.d/{}/ca.crt", registry.host()), &ca, 0o644);
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"{}/acme/*\"\nunsigned = true\n[[container]]\nprograms = [\"xdp\"]\n",
        registry.host()
    ));

    // A user pushes with credentials on the command line; without them, the push fails.
    let object = format!("linux/amd64={}", object_path("demo").display());
    let made = world.images.reference("private");
    world.lab.ours(&["image", "build", "--quiet", &made, &object]);
    let no_home = world.lab.path("no-home");
    let push = |login: &[&str]| {
        let mut command = world.lab.command(&[&["image", "push", &made, &name], login].concat());
        ended(command.env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR").env("HOME", &no_home))
    };
    let nobody = push(&[]);
    assert!(!nobody.status.success() && nobody.stderr.contains("requires credentials"), "{}", nobody.stderr);
    let auth_file = world.lab.write(
        "auth.json",
        format!("{{\"auths\": {{\"{}\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}", registry.host()).as_bytes(),
    );
    let auth_file = auth_file.display().to_string();
    for login in [["--registry-auth", "dXNlcjpzZWNyZXQ="], ["--creds", "user:secret"], ["--authfile", &auth_file]] {
        let pushed = push(&login);
        assert!(pushed.status.success(), "{login:?}: {}", pushed.stderr);
        let built = format!("{}/acme/built:v1", registry.host());
        let built =
            ended(&mut world.lab.command(&[&["image", "build", "--quiet", "--push", &built, &object], &login[..]].concat()));
        assert!(built.status.success(), "{login:?}: {}", built.stderr);
        let pulled = ended(&mut world.lab.command(&[&["pull", "--quiet", &name], &login[..]].concat()));
        assert!(pulled.status.success(), "{login:?}: {}", pulled.stderr);
        world.lab.ours(&["image", "rm", &name]);
    }

    // A start uses the administrator's auth file, once other users cannot read it.
    let asking = |id: &str| Bundle::new(&world.lab, id).ask("image", &name).ask("programs", "xdp:count_packets iface=lo");
    // Not `refused`: the registry keeps running, and would be reported as left behind.
    let refused = |id: &str, word: &str| {
        let ended = Runtime::Runc.run(&world.lab, &asking(id).script("echo started").write());
        assert!(!ended.stdout.contains("started"), "{id} started");
        world.said(&ended, 1, &[word]);
    };
    refused("stranger", "requires credentials");
    let auth = format!("{{\"auths\": {{\"{}/acme\": {{\"auth\": \"dXNlcjpzZWNyZXQ=\"}}}}}}", registry.host());
    etc("bpfman-hook/auth.json", auth.as_bytes(), 0o644);
    refused("careless", "auth.json has mode 0644");
    etc("bpfman-hook/auth.json", auth.as_bytes(), 0o600);
    let running = world.start(&asking("member").script("echo ready; read go").write());
    world.lab.expect_links(1, "the program of the private image is attached");
    running.finish();
    let log = world.lab.log();
    assert!(!log.contains("dXNlcjp") && !log.contains("user:secret"), "the login is in our log: {log}");
}
