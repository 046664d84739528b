//! NRI's ttrpc services, made from `api.proto` when we are built.

use crate::nri::api;

include!(concat!(env!("OUT_DIR"), "/nri/api_ttrpc.rs"));
