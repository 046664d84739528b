//! A CRI client: the calls and fields of runtime.v1 that the kubelet uses to run a pod.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::harness;

/// Timeout of a call.
const DEADLINE: Duration = Duration::from_secs(60);

/// Maximum size of a response: containerd's own limit.
const LARGEST: usize = 16 << 20;

/// One connection, used by a single thread.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to containerd's socket.
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| harness!("make an async runtime: {e}"));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|e| e.to_string())?;
        let channel = runtime.block_on(endpoint.connect()).map_err(|e| e.to_string())?;
        Ok(Self { runtime, channel })
    }

    /// Makes one call of the runtime service; the error is the text that the kubelet writes into the pod's events.
    pub fn call<Q, R>(&self, method: &str, request: Q) -> Result<R, String>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).map_err(|e| e.to_string())?;
        let mut request = Request::new(request);
        request.set_timeout(DEADLINE);
        self.runtime.block_on(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
            client.ready().await.map_err(|e| e.to_string())?;
            let answer = client.unary(request, path, ProstCodec::<Q, R>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
        })
    }
}

/// `NamespaceMode`.
pub const POD: i32 = 0;
pub const CONTAINER: i32 = 1;
pub const NODE: i32 = 2;

/// `SecurityProfile.ProfileType.Localhost`.
pub const LOCALHOST: i32 = 2;

/// `CONTAINER_EXITED`.
pub const EXITED: i32 = 2;

/// Declares messages: field, prost type, number.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$kind:meta])+ $field:ident: $type:ty,)* })+) => {
        $($(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub struct $name { $($(#[$kind])+ pub $field: $type,)* })+
    };
}

messages! {
    PodSandboxMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
    }
    IdMapping {
        #[prost(uint32, tag = "1")] host_id: u32,
        #[prost(uint32, tag = "2")] container_id: u32,
        #[prost(uint32, tag = "3")] length: u32,
    }
    UserNamespace {
        #[prost(int32, tag = "1")] mode: i32,
        #[prost(message, repeated, tag = "2")] uids: Vec<IdMapping>,
        #[prost(message, repeated, tag = "3")] gids: Vec<IdMapping>,
    }
    NamespaceOption {
        #[prost(int32, tag = "1")] network: i32,
        #[prost(int32, tag = "2")] pid: i32,
        #[prost(message, optional, tag = "5")] userns_options: Option<UserNamespace>,
    }
    LinuxSandboxSecurityContext {
        #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>,
    }
    LinuxPodSandboxConfig {
        #[prost(string, tag = "1")] cgroup_parent: String,
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxSandboxSecurityContext>,
    }
    PodSandboxConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<PodSandboxMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(string, tag = "3")] log_directory: String,
        #[prost(map = "string, string", tag = "6")] labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = "7")] annotations: HashMap<String, String>,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxPodSandboxConfig>,
    }
    RunPodSandboxRequest {
        #[prost(message, optional, tag = "1")] config: Option<PodSandboxConfig>,
        #[prost(string, tag = "2")] runtime_handler: String,
    }
    /// The request of every call that names only one pod or container, and the response of calls that return its id.
    Id {
        #[prost(string, tag = "1")] id: String,
    }
    PodIp {
        #[prost(string, tag = "1")] ip: String,
    }
    PodSandboxStatus {
        #[prost(message, optional, tag = "5")] network: Option<PodIp>,
    }
    PodSandboxStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<PodSandboxStatus>,
    }
    PodSandboxes {
        #[prost(message, repeated, tag = "1")] items: Vec<Id>,
    }
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    ImageSpec {
        #[prost(string, tag = "1")] image: String,
    }
    Capability {
        #[prost(string, repeated, tag = "1")] add_capabilities: Vec<String>,
        #[prost(string, repeated, tag = "2")] drop_capabilities: Vec<String>,
    }
    Int64Value {
        #[prost(int64, tag = "1")] value: i64,
    }
    SecurityProfile {
        #[prost(int32, tag = "1")] profile_type: i32,
        #[prost(string, tag = "2")] localhost_ref: String,
    }
    LinuxContainerSecurityContext {
        #[prost(message, optional, tag = "1")] capabilities: Option<Capability>,
        #[prost(message, optional, tag = "3")] namespace_options: Option<NamespaceOption>,
        #[prost(message, optional, tag = "5")] run_as_user: Option<Int64Value>,
        #[prost(message, optional, tag = "15")] seccomp: Option<SecurityProfile>,
    }
    LinuxContainerConfig {
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxContainerSecurityContext>,
    }
    Mount {
        #[prost(string, tag = "1")] container_path: String,
        #[prost(string, tag = "2")] host_path: String,
        #[prost(bool, tag = "3")] readonly: bool,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(message, repeated, tag = "7")] mounts: Vec<Mount>,
        #[prost(map = "string, string", tag = "9")] labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = "10")] annotations: HashMap<String, String>,
        #[prost(string, tag = "11")] log_path: String,
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainerConfig>,
    }
    CreateContainerRequest {
        #[prost(string, tag = "1")] pod_sandbox_id: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] sandbox_config: Option<PodSandboxConfig>,
    }
    StopContainerRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(int64, tag = "2")] timeout: i64,
    }
    StatusRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(bool, tag = "2")] verbose: bool,
    }
    ContainerStatus {
        #[prost(int32, tag = "3")] state: i32,
        #[prost(int32, tag = "7")] exit_code: i32,
    }
    ContainerStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<ContainerStatus>,
        #[prost(map = "string, string", tag = "2")] info: HashMap<String, String>,
    }
    ExecSyncRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(string, repeated, tag = "2")] cmd: Vec<String>,
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecSyncResponse {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    VersionResponse {
        #[prost(string, tag = "3")] runtime_version: String,
    }
    Nothing {}
}
