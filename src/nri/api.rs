//! NRI's messages, generated from `api.proto` at build time.

include!(concat!(env!("OUT_DIR"), "/nri/api.rs"));
