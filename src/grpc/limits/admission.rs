//! Refuses a request by its headers: if the policy does not allow the client to make it, its body is not read.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Extensions, Status};

use crate::grpc::caller::Caller;
use crate::model::policy::Verb;
use crate::paths::Paths;

/// A service whose requests must be allowed by the policy first.
#[derive(Debug, Clone)]
pub struct AdmittedService<S> {
    inner: S,
    paths: Paths,
}

impl<S> AdmittedService<S> {
    /// Wraps a service; the policy is read below `paths`.
    pub fn new(inner: S, paths: &Paths) -> Self {
        Self { inner, paths: paths.clone() }
    }
}

/// The admitted caller of a request.
///
/// # Errors
/// INTERNAL if the request did not pass [`AdmittedService`].
pub fn caller(extensions: &Extensions) -> Result<Arc<Caller>, Status> {
    extensions.get::<Arc<Caller>>().cloned().ok_or_else(|| Status::internal("the request did not pass the policy check"))
}

impl<S: NamedService> NamedService for AdmittedService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for AdmittedService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The service itself answers an unknown method, without reading the body.
        if let Some(verb) = verb(request.uri().path()) {
            match Caller::admit(&self.paths, request.extensions(), verb) {
                Ok(caller) => _ = request.extensions_mut().insert(Arc::new(caller)),
                Err(status) => return Either::Left(ready(Ok(status.into_http()))),
            }
        }
        Either::Right(self.inner.call(request))
    }
}

/// The verb that a client needs for a method.
fn verb(path: &str) -> Option<Verb> {
    match path.rsplit('/').next()? {
        "List" | "Get" => Some(Verb::Read),
        "PullBytecode" => Some(Verb::Pull),
        "Load" | "Unload" => Some(Verb::Load),
        "Attach" | "Detach" => Some(Verb::Attach),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::grpc::wire::DESCRIPTORS;

    #[test]
    fn every_method_requires_a_verb() {
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service).filter(|service| service.name() == "Bpfman");
        let methods: Vec<_> = services.flat_map(|service| &service.method).map(|method| method.name().to_owned()).collect();
        assert_eq!(methods.len(), 7);
        for method in methods {
            assert!(verb(&format!("/bpfman.v1.Bpfman/{method}")).is_some(), "{method}");
        }
        assert_eq!(verb("/bpfman.v1.Bpfman/"), None);
    }
}
