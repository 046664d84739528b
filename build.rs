//! Compiles the services' interface descriptions, without an installed protoc.
#![allow(clippy::unwrap_used, reason = "a build that cannot go on ends here")]

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    nri(&out);
    bpfman(&out.join("bpfman.bin"));
    // The directory of a profile is part of the path.
    if out.iter().any(|part| part == "dist") {
        order_functions();
    }
}

/// Has the linker (rust-lld, the default of this target) put the functions of a start next to each other: they are spread over
/// 12 MB otherwise, and each piece of the file that is touched costs a page fault and 64 KiB of memory. Names that the file has
/// and the program lacks, as after a change of the compiler, have no effect: `make order` makes the file anew.
fn order_functions() {
    if std::env::var("TARGET").as_deref() != Ok("x86_64-unknown-linux-gnu") {
        return;
    }
    let order = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("benches/start.order");
    println!("cargo::rerun-if-changed={}", order.display());
    println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering,--symbol-ordering-file={}", order.display());
}

/// NRI: messages, our server's trait, and the client of the runtime's service.
fn nri(out: &Path) {
    let (proto, directory) = ("src/nri/api.proto", "src/nri");
    println!("cargo::rerun-if-changed={proto}");
    let out = out.join("nri");
    std::fs::create_dir_all(&out).unwrap();
    let customize = ttrpc_codegen::Customize { async_all: true, ..Default::default() };
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .input(proto)
        .include(directory)
        .rust_protobuf()
        .customize(customize)
        .run()
        .unwrap();
    // `include!` takes no inner attributes and no module documentation.
    for name in ["api.rs", "api_ttrpc.rs"] {
        let path = out.join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!"));
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
}

/// bpfman's gRPC interface: server and client (the tests'), and the descriptors that reflection shows.
fn bpfman(descriptors: &Path) {
    let proto = "src/grpc/bpfman.proto";
    println!("cargo::rerun-if-changed={proto}");
    let set = protox::compile([proto], ["src/grpc"]).unwrap();
    std::fs::write(descriptors, prost::Message::encode_to_vec(&set)).unwrap();
    tonic_prost_build::configure().build_transport(false).compile_fds(set).unwrap();
}
