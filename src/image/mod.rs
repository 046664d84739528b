//! Bytecode images: get them, check them, keep them. The only user of the OCI client and the sigstore crates.
