//! The seven calls: who asks, what is asked, one child, its answer.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::frontend::service::ask::{self, Abandoned};
use crate::frontend::service::caller::Caller;
use crate::frontend::service::convert;
use crate::frontend::service::gate::{Gate, Lane};
use crate::frontend::service::idle::Busy;
use crate::frontend::service::wire::bpfman_server::Bpfman;
use crate::frontend::service::wire::{
    AttachRequest, AttachResponse, DetachRequest, DetachResponse, GetRequest, GetResponse, ListRequest, ListResponse, LoadRequest,
    LoadResponse, PullBytecodeRequest, PullBytecodeResponse, UnloadRequest, UnloadResponse,
};
use crate::model::policy::Verb;
use crate::paths::Paths;

/// Answers bpfman's calls.
#[derive(Debug)]
pub struct Rpc {
    paths: Paths,
    gate: Gate,
}

