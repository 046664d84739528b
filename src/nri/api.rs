//! NRI's messages, made from `api.proto` when we are built.

include!(concat!(env!("OUT_DIR"), "/nri/api.rs"));
