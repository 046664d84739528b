//! Compiles the service's interface description: with protox, so that no protoc has to be installed.
#![allow(clippy::unwrap_used, reason = "a build that cannot go on ends here")]

use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    bpfman(&out.join("bpfman.bin"));
}

/// bpfman's gRPC interface: server and client (the tests'), and the descriptors that reflection shows.
fn bpfman(descriptors: &std::path::Path) {
    let proto = "src/frontend/service/bpfman.proto";
    println!("cargo::rerun-if-changed={proto}");
    let set = protox::compile([proto], ["src/frontend/service"]).unwrap();
    std::fs::write(descriptors, prost::Message::encode_to_vec(&set)).unwrap();
    tonic_prost_build::configure().build_transport(false).compile_fds(set).unwrap();
}
