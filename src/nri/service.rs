//! NRI's ttrpc services, generated from `api.proto` at build time.

use crate::nri::api;

include!(concat!(env!("OUT_DIR"), "/nri/api_ttrpc.rs"));
