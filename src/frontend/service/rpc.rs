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

impl Rpc {
    /// With the installation's directories.
    pub fn new(paths: &Paths) -> Self {
        Self { paths: paths.clone(), gate: Gate::new() }
    }
}

#[tonic::async_trait]
impl Bpfman for Rpc {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn unload(&self, request: Request<UnloadRequest>) -> Result<Response<UnloadResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let _caller = Caller::admit(&self.paths, request.extensions(), Verb::Read)?;
        Ok(Response::new(ListResponse::default()))
    }
    async fn pull_bytecode(&self, request: Request<PullBytecodeRequest>) -> Result<Response<PullBytecodeResponse>, Status> {
        let _caller = Caller::admit(&self.paths, request.extensions(), Verb::Pull)?;
        Err(Status::invalid_argument(""))
    }
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
