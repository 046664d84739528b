//! The caller of a request, and whether the policy allows it: refusals happen here, before a child is started.

use std::path::Path;
use std::sync::Arc;

use tonic::transport::server::TlsConnectInfo;
use tonic::{Extensions, Status};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::grpc::connection::Peer;
use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::model::manual::CallerRights;
use crate::model::policy::{ClientRefusal, ClientRule, ServiceClient, Verb};
use crate::model::reference::Reference;
use crate::model::text::quoted;
use crate::paths::Paths;
use crate::sys::accounts::Accounts;
use crate::sys::error::chain;

/// A client under one verb, with the current policy.
#[derive(Debug)]
pub struct Caller {
    client: ServiceClient,
    policy: Arc<LoadedPolicy>,
    /// None for root of this host.
    rule: Option<ClientRule>,
}

impl Caller {
    /// Identifies the caller, and checks whether it may use the verb at all.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the reason; FAILED_PRECONDITION if the policy is invalid, since then nothing is allowed.
    pub fn admit(paths: &Paths, extensions: &Extensions, verb: Verb) -> Result<Self, Status> {
        let client = client(extensions)?;
        let policy = policy_files::load(paths).map_err(|error| Status::failed_precondition(chain(&error)))?;
        let rule = policy.policy.client_rule(&client, verb).map_err(denied)?.cloned();
        Ok(Self { client, policy: Arc::new(policy), rule })
    }

    /// Whether a file may be loaded: root may load any file, other clients only what their rule's `paths` allow, since
    /// the service opens files that the client itself might not be able to open.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub fn may_load_file(&self, path: &str) -> Result<(), Status> {
        match &self.rule {
            Some(rule) if !rule.allows_path(Path::new(path)) => Err(denied(ClientRefusal::Path {
                client: self.client.to_string(),
                path: quoted(path).to_string(),
                place: rule.shown(),
            })),
            _ => Ok(()),
        }
    }

    /// Whether an image may be used. Signatures are verified when the image is fetched, for root as well. A reference
    /// to a path on this host is treated as a file.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub fn may_use_image(&self, reference: &Reference) -> Result<(), Status> {
        let Some(rule) = &self.rule else { return Ok(()) };
        let path = match reference {
            Reference::Registry(_) => None,
            Reference::Layout { path, .. } | Reference::Archive { path, .. } | Reference::File { path } => Some(path),
        };
        if let Some(path) = path {
            self.may_load_file(&path.to_string_lossy())?;
        }
        // The client's rule must name every image rule that applies: any of them may be the one that accepts the image.
        let usable = |name: &String| rule.images.as_ref().is_none_or(|names| names.contains(name));
        let mut speaking = self.policy.policy.images.iter().filter(|image| image.repository.matches(reference)).peekable();
        if speaking.peek().is_some() && speaking.all(|image| usable(&image.name)) {
            return Ok(());
        }
        Err(denied(ClientRefusal::Image {
            client: self.client.to_string(),
            image: quoted(&reference.to_string()).to_string(),
            place: rule.shown(),
        }))
    }

    /// Whether something with host scope may be done; `what` completes the sentence "may not …".
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub fn may_reach_host(&self, what: &str) -> Result<(), Status> {
        match &self.rule {
            Some(rule) if !rule.host_scope => Err(denied(ClientRefusal::HostScope {
                client: self.client.to_string(),
                what: what.to_owned(),
                place: rule.shown(),
            })),
            _ => Ok(()),
        }
    }

    /// Whether the client is root of this host.
    pub fn is_root(&self) -> bool {
        self.rule.is_none()
    }

    /// Text that identifies the client uniquely.
    pub fn identity(&self) -> String {
        self.client.identity()
    }

    /// The rights that are passed to the child that does the work.
    pub fn bounds(&self) -> CallerRights {
        CallerRights {
            caller: self.identity(),
            host_scope: self.rule.as_ref().is_none_or(|rule| rule.host_scope),
            any_file: self.rule.is_none(),
            own_only: self.rule.is_some(),
            limits: self.rule.as_ref().map(|rule| rule.limits(&self.policy.policy.limits)),
            store: self.rule.as_ref().map(|rule| rule.store_limits(&self.policy.policy.store)),
            images: self.rule.as_ref().and_then(|rule| rule.images.as_ref()).map(|names| names.iter().cloned().collect()),
        }
    }
}

fn denied(refusal: ClientRefusal) -> Status {
    Status::permission_denied(refusal.to_string())
}

/// Identifies the client from its connection.
fn client(extensions: &Extensions) -> Result<ServiceClient, Status> {
    if let Some(tls) = extensions.get::<TlsConnectInfo<Peer>>() {
        let certificates = tls.peer_certs();
        let first = certificates.as_ref().and_then(|chain| chain.first());
        let subject =
            first.and_then(|der| Certificate::from_der(der).ok()).map(|cert| cert.tbs_certificate.subject.to_string());
        return match subject {
            Some(subject) if !subject.is_empty() => Ok(ServiceClient::Tls { subject }),
            _ => Err(Status::unauthenticated("the client's certificate has no subject, so no policy rule can name it")),
        };
    }
    match extensions.get::<Peer>() {
        Some(Peer::Unix(peer)) => {
            let accounts = Accounts::read();
            let mut groups = vec![peer.gid];
            groups.extend(&peer.groups);
            Ok(ServiceClient::Unix {
                uid: peer.uid,
                user: accounts.user(peer.uid),
                groups: groups.into_iter().map(|gid| (gid, accounts.group(gid))).collect(),
                same_user_namespace: peer.same_user_namespace,
            })
        }
        Some(Peer::Tcp) | None => Err(Status::unauthenticated("the connection has no peer identity")),
    }
}
