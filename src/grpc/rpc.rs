//! The seven RPCs: identify the caller, convert the request, run one child, convert its reply.

use std::sync::Arc;

use tonic::{Extensions, Request, Response, Status};

use crate::commands::request_child;
use crate::grpc::caller::Caller;
use crate::grpc::child;
use crate::grpc::child::Abandoned;
use crate::grpc::convert;
use crate::grpc::idle::Busy;
use crate::grpc::limits::admission;
use crate::grpc::limits::concurrency::{ConcurrencyLimit, Lane};
use crate::grpc::wire::bpfman_server::Bpfman;
use crate::grpc::wire::{
    AttachRequest, AttachResponse, DetachRequest, DetachResponse, GetRequest, GetResponse, ListRequest, ListResponse,
    LoadRequest, LoadResponse, PullBytecodeRequest, PullBytecodeResponse, UnloadRequest, UnloadResponse,
};
use crate::model::attach_point::Scope;
use crate::model::manual::{ManualReply, ManualRequest, ManualTask, ObjectSource, ShownProgram};
use crate::paths::Paths;
use crate::sys::child::Role;
use crate::sys::error::chain;

/// Implements bpfman's service.
#[derive(Debug)]
pub struct Rpc {
    paths: Paths,
    gate: ConcurrencyLimit,
}

impl Rpc {
    /// With the installation's directories.
    pub fn new(paths: &Paths) -> Self {
        Self { paths: paths.clone(), gate: ConcurrencyLimit::new() }
    }

    /// Waits for a slot, runs the task in a child, and unwraps its reply.
    async fn run(&self, extensions: &Extensions, caller: &Caller, task: ManualTask) -> Result<ManualReply, Status> {
        let lane = if request_child::uses_network(&task) { Lane::Network } else { Lane::Local };
        let abandoned = match task {
            ManualTask::List(_) | ManualTask::Get { .. } | ManualTask::Pull(_) => Abandoned::Kill,
            ManualTask::Load(_) | ManualTask::Unload { .. } | ManualTask::Attach(_) | ManualTask::Detach { .. } => {
                Abandoned::Finish
            }
        };
        let time = request_child::time(&task);
        let request = ManualRequest { root: self.paths.root().to_owned(), bounds: caller.bounds(), task };
        let text = serde_json::to_vec(&request).map_err(|error| Status::internal(error.to_string()))?;
        let place = self.gate.enter(&caller.identity(), caller.is_root(), lane).await;
        let busy = extensions.get::<Arc<Busy>>().cloned();
        let answer = child::ask(Role::Request, &text, time, abandoned, (place, busy)).await;
        let answer = answer.map_err(|error| Status::unavailable(chain(&error)))?;
        match serde_json::from_slice(&answer).map_err(|error| Status::internal(error.to_string()))? {
            ManualReply::Failed(failure) => Err(convert::status(failure)),
            reply => Ok(reply),
        }
    }
}

/// A reply of an unexpected type.
fn unexpected() -> Status {
    Status::internal("the request process sent a reply of an unexpected type")
}

fn programs(reply: ManualReply) -> Result<Vec<ShownProgram>, Status> {
    if let ManualReply::Programs(programs) = reply { Ok(programs) } else { Err(unexpected()) }
}

fn done(reply: ManualReply) -> Result<(), Status> {
    if reply == ManualReply::Done { Ok(()) } else { Err(unexpected()) }
}

#[tonic::async_trait]
impl Bpfman for Rpc {
    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let load = convert::load(message)?;
        match &load.source {
            ObjectSource::File(path) => caller.may_load_file(&path.to_string_lossy())?,
            ObjectSource::Image(image) => caller.may_use_image(&image.reference)?,
        }
        for program in load.programs.iter().filter(|program| program.kind.scope() == Scope::Host) {
            caller.may_reach_host(&format!("load {} as {}", program.function, program.kind.word()))?;
        }
        let programs = programs(self.run(&extensions, &caller, ManualTask::Load(load)).await?)?;
        Ok(Response::new(LoadResponse { programs: programs.into_iter().map(convert::loaded).collect() }))
    }

    async fn unload(&self, request: Request<UnloadRequest>) -> Result<Response<UnloadResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let program = convert::id("program", message.id)?;
        done(self.run(&extensions, &caller, ManualTask::Unload { program }).await?)?;
        Ok(Response::new(UnloadResponse {}))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let attach = convert::attach(message)?;
        caller.may_reach_host(&format!("attach program {}", attach.program))?;
        match self.run(&extensions, &caller, ManualTask::Attach(attach)).await? {
            ManualReply::Attached { link } => Ok(Response::new(AttachResponse { link_id: link })),
            _ => Err(unexpected()),
        }
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let link = convert::id("link", message.link_id)?;
        done(self.run(&extensions, &caller, ManualTask::Detach { link }).await?)?;
        Ok(Response::new(DetachResponse {}))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let filter = convert::filter(message)?;
        let programs = programs(self.run(&extensions, &caller, ManualTask::List(filter)).await?)?;
        Ok(Response::new(ListResponse { results: programs.into_iter().map(convert::listed).collect() }))
    }

    async fn pull_bytecode(&self, request: Request<PullBytecodeRequest>) -> Result<Response<PullBytecodeResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let image = message.image.ok_or_else(|| Status::invalid_argument("image is missing"))?;
        let image = convert::image(image)?;
        caller.may_use_image(&image.reference)?;
        done(self.run(&extensions, &caller, ManualTask::Pull(image)).await?)?;
        Ok(Response::new(PullBytecodeResponse {}))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = admission::caller(&extensions)?;
        let program = convert::id("program", message.id)?;
        match self.run(&extensions, &caller, ManualTask::Get { program }).await? {
            ManualReply::Program(program) => {
                let (info, kernel_info) = convert::parts(*program);
                Ok(Response::new(GetResponse { info, kernel_info: Some(kernel_info) }))
            }
            _ => Err(unexpected()),
        }
    }
}
