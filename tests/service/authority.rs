//! Clients that send the path of the socket as `:authority`. Debian's Python package has the C core of gRPC 1.51, which
//! does so only when it is told to; later ones do it by default.

use std::process::Command;

use crate::support::process::ended;
use crate::world::World;

/// For each authority, calls with many headers, so that the client's encoder refers to its table; prints the answers.
const CLIENT: &str = r#"
import grpc, sys

def method(channel, name):
    return channel.unary_unary("/bpfman.v1.Bpfman/" + name, request_serializer=bytes, response_deserializer=bytes)

for authority in ("%2Frun%2Fbpfman-hook%2Fbpfman.sock", "/run/bpfman-hook/bpfman.sock", "localhost"):
    with grpc.insecure_channel("unix://" + sys.argv[1], options=[("grpc.default_authority", authority)]) as channel:
        metadata = [("first-%d" % i, "value " * i) for i in range(20)]
        calls = [method(channel, "List").future(b"", timeout=30, metadata=metadata) for _ in range(50)]
        print("List", sum(call.code() == grpc.StatusCode.OK for call in calls))
        large = [("large", "x" * 6000)]
        print("large", len(method(channel, "List")(b"", timeout=30, metadata=large)))
        try:
            method(channel, "Get")(b"\x08\xff\xff\xff\xff\x07", timeout=30)
        except grpc.RpcError as error:
            print("Get", error.code().name)
"#;

#[test]
fn an_invalid_authority_of_grpcs_c_core_is_accepted() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    let mut python = Command::new("/usr/bin/python3");
    let said = ended(python.args(["-c", CLIENT]).arg(&world.socket));
    service.stop();
    let expected = "List 50\nlarge 0\nGet NOT_FOUND\n";
    assert_eq!(said.stdout, expected.repeat(3), "{}", said.stderr);
    world.lab.residue();
}
