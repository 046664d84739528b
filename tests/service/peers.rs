//! Which clients are allowed: other uids, groups, user namespaces, and TLS clients.

use std::path::Path;
use std::process::Command;

use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{
    BytecodeLocation, GetRequest, ListRequest, LoadInfo, LoadRequest, PullBytecodeRequest, UnloadRequest,
};
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::support::helper_process;
use crate::support::process::{ended, eventually};
use crate::world::{Client, PATIENCE, World, run};

/// The variable that turns this test binary into a client: the socket's path.
pub const CLIENT: &str = "BPFMAN_HOOK_TEST_CLIENT";

/// A helper process, not a test: `as_another` runs it with other ids, and it prints the service's responses.
#[test]
fn client_process() {
    let Some(socket) = helper_process::task(CLIENT) else { return };
    run(async {
        let mut client = crate::world::client(Path::new(&socket)).await;
        let list = client.list(ListRequest { bpfman_programs_only: Some(true), ..ListRequest::default() }).await;
        let pull = client.pull_bytecode(PullBytecodeRequest::default()).await;
        for (call, status) in [("list", list.err()), ("pull", pull.err())] {
            match status {
                None => println!("{call}: OK"),
                Some(status) => println!("{call}: {:?}: {}", status.code(), status.message()),
            }
        }
    });
}

/// The responses to a client that runs under `wrapper`.
fn asks(world: &World, wrapper: &[&str]) -> String {
    as_another(world, wrapper, "peers::client_process")
}

/// The output of one of these tests in a process of its own, under `wrapper`.
pub fn as_another(world: &World, wrapper: &[&str], test: &str) -> String {
    let own = std::env::current_exe().unwrap();
    // Other users cannot reach the build directory.
    let copy = world.lab.path("client");
    std::fs::copy(own, &copy).unwrap();
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(&copy).args(["--exact", test, "--nocapture"]).env(CLIENT, &world.socket);
    ended(&mut command).stdout
}

pub fn open_to_all(world: &World) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&world.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
}

#[test]
fn without_a_rule_only_root_of_this_host_is_allowed() {
    let world = World::new();
    let _service = world.start(&[]);
    assert!(asks(&world, &["env"]).contains("list: OK"));
    let drop = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];
    // The socket's mode refuses other users before the policy does.
    assert!(!asks(&world, &drop).contains("list:"));
    open_to_all(&world);
    let answer = asks(&world, &drop);
    let sentence =
        "list: PermissionDenied: uid 12345 may not read: only root may, and no [[client]] rule of the policy matches";
    assert!(answer.contains(sentence), "{answer}");
    // Membership in root's group is not enough.
    let answer = asks(&world, &["setpriv", "--reuid=12345", "--regid=0", "--clear-groups"]);
    assert!(answer.contains("list: PermissionDenied"), "{answer}");
    // On the socket, uid 0 of a user namespace that maps 0 to 0 is uid 0 as well.
    let answer = asks(&world, &["unshare", "--user", "--map-root-user"]);
    let sentence = "list: PermissionDenied: uid 0 of another user namespace is not root of this host";
    assert!(answer.contains(sentence), "{answer}");
}

#[test]
fn a_rule_applies_by_user_and_by_supplementary_group() {
    let world = World::new();
    let _service = world.start(&["--timeout", "0"]);
    open_to_all(&world);
    let client = |uid: &str, groups: &str| {
        asks(&world, &["setpriv", &format!("--reuid={uid}"), "--regid=12345", &format!("--groups={groups}")])
    };
    // The policy is read again for each request.
    world.lab.policy("[[client]]\nuser = 12345\nallow = [\"read\"]\n[[client]]\ngroup = 54321\nallow = [\"pull\"]\n");
    let answer = client("12345", "54321");
    assert!(answer.contains("list: OK"), "{answer}");
    assert!(answer.contains("pull: PermissionDenied: uid 12345 may not pull: the client rule at"), "{answer}");
    let answer = client("12346", "7,54321");
    assert!(answer.contains("list: PermissionDenied: uid 12346 may not read: the client rule at"), "{answer}");
    assert!(answer.contains("pull: InvalidArgument"), "{answer}");
    world.lab.policy("[[client]]\nuser = 12345\nallow = [\"everything\"]\n");
    let answer = client("12345", "54321");
    assert!(answer.contains("list: FailedPrecondition: policy "), "{answer}");
}

/// Certificates made by openssl: a CA, a server certificate for 127.0.0.1, and clients of two CAs.
fn certificates(world: &World) {
    let script = r#"
        set -eu
        cd "$1"
        ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.pem -days 2 -subj "/CN=$1" 2>/dev/null; }
        leaf() { # name, authority, subject, extension, days
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.csr -subj "$3" 2>/dev/null
            printf '%s\n' "$4" >$1.ext
            openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days ${5:-2} -extfile $1.ext -out $1.pem 2>/dev/null
        }
        ca authority
        ca stranger
        leaf server authority /CN=server subjectAltName=IP:127.0.0.1
        leaf agent authority /O=acme/CN=agent extendedKeyUsage=clientAuth
        leaf other authority /O=acme/CN=other extendedKeyUsage=clientAuth
        leaf server2 authority /O=acme/CN=agent extendedKeyUsage=serverAuth
        leaf pretender authority /CN=agent,O=acme extendedKeyUsage=clientAuth
        leaf expires authority /O=acme/CN=agent extendedKeyUsage=clientAuth 0
        leaf forged stranger /O=acme/CN=agent extendedKeyUsage=clientAuth
    "#;
    let directory = world.lab.path("tls");
    std::fs::create_dir(&directory).unwrap();
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(&directory).status().unwrap();
    assert!(status.success());
}

#[test]
fn tcp_needs_a_certificate_of_the_configured_ca_and_a_rule() {
    let world = World::new();
    certificates(&world);
    let file = |name: &str| world.lab.path(&format!("tls/{name}"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");

    let bare = ended(&mut world.lab.command(&["system", "service", &address]));
    assert_eq!(bare.status.code(), Some(1));
    assert!(
        bare.stderr.contains("listen on TCP without TLS: any client that reaches the port could load programs"),
        "{}",
        bare.stderr
    );

    world.lab.policy("[[client]]\nsubject = \"CN=agent,O=acme\"\nallow = [\"read\"]\n");
    let paths = ["server.pem", "server.key", "authority.pem"].map(|name| file(name).display().to_string());
    let args = [&address, "--timeout", "0", "--tls-cert", &paths[0], "--tls-key", &paths[1], "--tls-client-ca", &paths[2]];
    let _service = world.spawn(&args, &mut world.lab.command(&[]));
    eventually("the port", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());

    let ask = |identity: Option<&str>| {
        let read = |name: String| std::fs::read(file(&name)).unwrap();
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("authority.pem".into()))).domain_name("127.0.0.1");
        if let Some(name) = identity {
            tls = tls.identity(Identity::from_pem(read(format!("{name}.pem")), read(format!("{name}.key"))));
        }
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap();
        run(async {
            let mut client = Client::new(endpoint.connect().await.map_err(|error| format!("{error:?}"))?);
            client
                .list(ListRequest { bpfman_programs_only: Some(true), ..Default::default() })
                .await
                .map_err(|status| status.message().to_owned())
        })
    };
    ask(Some("agent")).unwrap();
    // More silent connections than the limit do not lock out a client with a certificate.
    let silent: Vec<_> = (0..300).filter_map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    assert!(silent.len() > 200, "{}", silent.len());
    ask(Some("agent")).unwrap();
    drop(silent);
    let other = ask(Some("other")).unwrap_err();
    let sentence = "the client \"CN=other,O=acme\" may not read: only root may, and no [[client]] rule of the policy matches";
    assert_eq!(other, sentence);
    let pretender = ask(Some("pretender")).unwrap_err();
    assert!(pretender.contains("may not read"), "a name with a comma does not match another name: {pretender}");
    for refused in [None, Some("forged"), Some("server2")] {
        let error = ask(refused).unwrap_err();
        assert!(!error.contains("may not"), "{refused:?} was refused before it could ask: {error}");
    }
    eventually("the certificate to expire", PATIENCE, || ask(Some("expires")).err());
    let plain = run(async {
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await;
        match channel {
            Ok(channel) => Client::new(channel).get(GetRequest { id: 1 }).await.map(drop).map_err(|status| status.code()),
            Err(_) => Err(Code::Unavailable),
        }
    });
    assert!(plain.is_err());
}

/// The variable with a file that `loading_process` loads through the service.
const FILE: &str = "BPFMAN_HOOK_TEST_FILE";

/// A helper process, not a test: requests a load as its own user, and prints the response.
#[test]
fn loading_process() {
    let (Some(socket), Some(file)) = (helper_process::task(CLIENT), std::env::var(FILE).ok()) else { return };
    run(async {
        let request = LoadRequest {
            bytecode: Some(BytecodeLocation { location: Some(Location::File(file)) }),
            info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
            ..LoadRequest::default()
        };
        match crate::world::client(Path::new(&socket)).await.load(request).await {
            Ok(_) => println!("load: OK"),
            Err(status) => println!("load: {:?}: {}", status.code(), status.message()),
        }
    });
}

/// The service reads files as root: a client must not learn through it what it cannot read itself.
#[test]
fn files_are_readable_through_the_service_only_as_the_policy_allows() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    open_to_all(&world);
    let (allowed, outside) = (world.lab.path("images/allowed"), world.lab.path("images/outside"));
    for directory in [&allowed, &outside] {
        std::fs::create_dir(directory).unwrap();
    }
    let object = format!("{}/tests/bpf/counter.bpf.o", env!("CARGO_MANIFEST_DIR"));
    let at = |name: &str| allowed.join(name);
    let put = |name: &str| {
        std::fs::copy(&object, at(name)).unwrap();
        at(name)
    };
    put("good.o");
    std::fs::copy(&object, outside.join("secret.o")).unwrap();
    symlink(outside.join("secret.o"), at("link.o")).unwrap();
    symlink(&outside, at("directory")).unwrap();
    chown(put("others.o"), Some(12345), None).unwrap();
    std::fs::set_permissions(put("writable.o"), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo.o")).status().unwrap().success());
    std::fs::File::create(at("huge.o")).unwrap().set_len(2 << 30).unwrap();
    world.lab.policy(&format!("[[client]]\nuser = 12345\nallow = [\"read\", \"load\"]\npaths = [\"{}\"]\n", allowed.display()));
    let ask = |file: &str| {
        let variable = format!("{FILE}={file}");
        let client = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env", &variable];
        let said = as_another(&world, &client, "peers::loading_process");
        said.lines().find_map(|line| line.split_once("load: ")).map(|(_, said)| said.to_owned()).unwrap_or(said)
    };
    let shown = |name: &str| at(name).display().to_string();
    assert_eq!(ask(&shown("good.o")), "OK");
    for (file, code) in [
        (outside.join("secret.o").display().to_string(), "PermissionDenied"),
        ("/etc/shadow".to_owned(), "PermissionDenied"),
        (format!("{}/../outside/secret.o", allowed.display()), "InvalidArgument"),
        (format!("{}-not/x.o", allowed.display()), "PermissionDenied"),
        (shown("link.o"), "PermissionDenied"),
        (shown("directory/secret.o"), "PermissionDenied"),
        (shown("others.o"), "PermissionDenied"),
        (shown("writable.o"), "PermissionDenied"),
        (shown("fifo.o"), "PermissionDenied"),
        (shown("huge.o"), "PermissionDenied"),
        ("/dev/zero".to_owned(), "PermissionDenied"),
    ] {
        let said = ask(&file);
        assert!(said.starts_with(code), "{file}: {said}");
    }
    // A client cannot touch another client's program; root can unload it.
    let Some(id) = world.lab.json(&["list", "programs"])[0]["id"].as_u64() else { panic!("no program") };
    world.lab.policy("[[client]]\nuser = 12346\nallow = [\"load\"]\n");
    let other = ["setpriv", "--reuid=12346", "--regid=12346", "--clear-groups", "env", &format!("{UNLOAD}={id}")];
    let said = as_another(&world, &other, "peers::unloading_process");
    assert!(said.contains("unload: PermissionDenied") && said.contains("may change only its own"), "{said}");
    world.lab.ours(&["unload", &id.to_string()]);
    service.stop();
    world.lab.residue();
}

/// The variable with a program that `unloading_process` unloads through the service.
const UNLOAD: &str = "BPFMAN_HOOK_TEST_UNLOAD";

/// A helper process, not a test: requests an unload.
#[test]
fn unloading_process() {
    let (Some(socket), Ok(id)) = (helper_process::task(CLIENT), std::env::var(UNLOAD)) else { return };
    run(async {
        let mut client = crate::world::client(Path::new(&socket)).await;
        let answer = client.unload(UnloadRequest { id: id.parse().unwrap() }).await;
        println!(
            "unload: {}",
            answer.map_or_else(|status| format!("{:?}: {}", status.code(), status.message()), |_| "OK".to_owned())
        );
    });
}
