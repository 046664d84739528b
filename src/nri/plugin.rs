//! The plugin's handlers. They never block: all plugin calls of a runtime share one lock and two seconds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, Result};

use crate::model::container::asks;
use crate::model::missed::Missed;
use crate::model::policy::Engine;
use crate::nri::adjust;
use crate::nri::api::{
    ConfigureRequest, ConfigureResponse, ContainerEvent, ContainerState, CreateContainerRequest, CreateContainerResponse,
    Empty, Event, PodEvent, PodSandbox, StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
};
use crate::nri::policy::CachedPolicy;
use crate::nri::service::Plugin;
use crate::nri::status::PluginStatus;
use crate::nri::token_pods;
use crate::nri::token_pods::{FoundPod, TokenPods};
use crate::nri::work::ProgramRuns;
use crate::output::report::fit;
use crate::setup::hook_files::Invocation;

/// The subscribed events, as bits; a runtime closes the connection at a bit that it does not know.
const EVENTS: i32 = bit(Event::RUN_POD_SANDBOX)
    | bit(Event::STOP_POD_SANDBOX)
    | bit(Event::REMOVE_POD_SANDBOX)
    | bit(Event::CREATE_CONTAINER)
    | bit(Event::REMOVE_CONTAINER);

const fn bit(event: Event) -> i32 {
    1 << (event as i32 - 1)
}

/// Maximum length in bytes of a message in a pod's events.
const SENTENCE_MAX: usize = 1000;

/// Maximum number of missed containers that are recorded for one Synchronize.
const MISSED_MAX: usize = 1000;

/// The plugin, for one connection.
#[derive(Debug)]
pub struct HookPlugin {
    /// The binary and arguments of the hooks.
    pub invocation: Invocation,
    /// The policy.
    pub policy: CachedPolicy,
    /// Starts work outside of the handlers.
    pub work: ProgramRuns,
    /// The plugin's connection status.
    pub status: PluginStatus,
    /// What the runtime has reported on this connection.
    pub told: Mutex<RuntimeReport>,
}

/// What the runtime has reported.
#[derive(Debug)]
pub struct RuntimeReport {
    /// The engine, derived from the runtime's name.
    engine: Engine,
    /// The runtime's name and version.
    runtime: String,
    /// Pods with our annotations, while a Synchronize is in progress.
    pods: BTreeMap<String, PodSandbox>,
    /// Its containers that run without our hook.
    missed: Vec<Missed>,
    /// Its pods whose containers share a user namespace and that request a token, by pod id.
    found: BTreeMap<String, FoundPod>,
    /// What is known about such pods.
    token_pods: TokenPods,
    /// Pods with missed containers: when one of them is started again, its predecessor has ended.
    pods_with_missed: BTreeSet<String>,
}

impl Default for RuntimeReport {
    fn default() -> Self {
        Self {
            engine: Engine::Containerd,
            runtime: String::new(),
            pods: BTreeMap::new(),
            missed: Vec::new(),
            found: BTreeMap::new(),
            token_pods: TokenPods::default(),
            pods_with_missed: BTreeSet::new(),
        }
    }
}

impl RuntimeReport {
    /// Merges the findings about pods with tokens. A container that is already missed also gets this reason.
    fn share_tokens(&mut self) {
        for (pod, found) in std::mem::take(&mut self.found) {
            for sharing in self.token_pods.know(&pod, found) {
                let room = self.missed.len() < MISSED_MAX;
                match self.missed.iter_mut().find(|missed| missed.id == sharing.id) {
                    Some(missed) => missed.token_of = sharing.token_of,
                    None if room => {
                        self.pods_with_missed.insert(pod.clone());
                        self.missed.push(sharing);
                    }
                    None => {
                        tracing::warn!("container {} runs unchecked and is not recorded: too many such containers", sharing.id)
                    }
                }
            }
        }
    }
}

impl HookPlugin {
    fn told(&self) -> std::sync::MutexGuard<'_, RuntimeReport> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, request: &CreateContainerRequest) -> std::result::Result<CreateContainerResponse, String> {
        let policy = self.policy.now();
        let policy = policy.as_ref().as_ref().map_err(String::as_str);
        let (engine, again, check) = {
            let mut told = self.told();
            let (engine, hooked) = (told.engine, adjust::has_our_hook(&request.container, &self.invocation));
            let check = told.token_pods.check(&request.pod, &request.container, engine, policy.ok(), hooked);
            (engine, told.pods_with_missed.remove(&request.pod.id), check)
        };
        if again {
            self.work.collect();
        }
        let adjust = adjust::adjust(request, engine, policy, check, &self.invocation).map_err(|refusal| {
            match refusal.of(request, engine) {
                Some(refused) => self.work.refused(refused),
                None => tracing::warn!("a container without an id was refused: {}", refusal.sentence),
            }
            refusal.sentence
        })?;
        Ok(CreateContainerResponse { adjust: adjust.into(), ..Default::default() })
    }

    /// A pod's sandbox is being created: meanwhile the images that its annotations name are fetched.
    fn pod_starts(&self, pod: &PodSandbox) {
        if !asks(pod.annotations.keys()) {
            return;
        }
        if let Ok(policy) = self.policy.now().as_ref() {
            self.work.fetch(adjust::wanted(pod, self.told().engine, policy));
        }
    }

    /// A pod or a container has ended. Objects of the pod itself outlive its containers. For a pod that existed before
    /// the plugin connected, containerd 2.1 only reports the removal of its containers, which happens after the sandbox
    /// has been stopped.
    fn something_ended(&self, pod: &HashMap<String, String>, container: &HashMap<String, String>) {
        if asks(pod.keys()) || asks(container.keys()) {
            self.work.collect();
        }
    }

    /// Handles one part of a Synchronize; only what concerns us stays in memory.
    fn compare(&self, request: SynchronizeRequest) -> SynchronizeResponse {
        let mut told = self.told();
        for pod in request.pods {
            if asks(pod.annotations.keys()) {
                told.pods.insert(pod.id.clone(), pod);
            }
        }
        let nothing = PodSandbox::default();
        for container in &request.containers {
            let runs = matches!(
                container.state.enum_value(),
                Ok(ContainerState::CONTAINER_RUNNING | ContainerState::CONTAINER_PAUSED)
            );
            let told = &mut *told;
            let pod = told.pods.get(&container.pod_sandbox_id).unwrap_or(&nothing);
            if token_pods::is_one(pod, container) {
                let found = told.found.entry(pod.id.clone()).or_default();
                found.note(pod, container, told.engine, &self.invocation);
            }
            let Some(missed) = adjust::missed(pod, container, told.engine, &self.invocation).filter(|_| runs) else { continue };
            match missed {
                Ok(missed) if told.missed.len() < MISSED_MAX => {
                    told.missed.push(missed);
                    told.pods_with_missed.insert(container.pod_sandbox_id.clone());
                }
                Ok(missed) => {
                    tracing::warn!(
                        "container {} runs without what it requested and is not recorded: too many such containers",
                        missed.id
                    )
                }
                Err(error) => {
                    tracing::warn!("a container runs without what it requested and cannot be recorded: {error}")
                }
            }
        }
        if !request.more {
            told.pods = BTreeMap::new();
            told.share_tokens();
            self.work.missed(std::mem::take(&mut told.missed));
            self.status.connected(told.runtime.clone());
        }
        SynchronizeResponse { more: request.more, ..Default::default() }
    }
}

#[async_trait]
impl Plugin for HookPlugin {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> Result<ConfigureResponse> {
        let runtime = format!("{} {}", request.runtime_name, request.runtime_version);
        tracing::info!("connected to {runtime}");
        let engine = if request.runtime_name.starts_with("cri") { Engine::CriO } else { Engine::Containerd };
        if engine == Engine::CriO {
            // CRI-O 1.37: no pod starts while it stops a container and a plugin connects.
            tracing::warn!(
                "CRI-O starts no pod while a plugin connects and a container is being stopped; use its hook files, `bpfman-hook \
                 install --crio`, and `nri --no-connect`"
            );
        }
        let mut told = self.told();
        (told.engine, told.runtime) = (engine, runtime);
        Ok(ConfigureResponse { events: EVENTS, ..Default::default() })
    }

    async fn synchronize(&self, _: &TtrpcContext, request: SynchronizeRequest) -> Result<SynchronizeResponse> {
        Ok(self.compare(request))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Result<CreateContainerResponse> {
        self.create(&request).map_err(|sentence| {
            let sentence = fit(&format!("bpfman-hook: {sentence}"), SENTENCE_MAX);
            Error::RpcStatus(ttrpc::get_status(Code::FAILED_PRECONDITION, sentence))
        })
    }

    async fn run_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> Result<Empty> {
        self.pod_starts(&request.pod);
        Ok(Empty::default())
    }

    async fn stop_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> Result<Empty> {
        self.something_ended(&request.pod.annotations, &HashMap::new());
        Ok(Empty::default())
    }

    async fn remove_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> Result<Empty> {
        self.told().token_pods.forget_pod(&request.pod.id);
        self.something_ended(&request.pod.annotations, &HashMap::new());
        Ok(Empty::default())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: ContainerEvent) -> Result<Empty> {
        self.told().token_pods.forget_container(&request.pod.id, &request.container.id);
        self.something_ended(&request.pod.annotations, &request.container.annotations);
        Ok(Empty::default())
    }

    /// Every event of a runtime with NRI before 0.12.
    async fn state_change(&self, _: &TtrpcContext, request: StateChangeEvent) -> Result<Empty> {
        match request.event.enum_value() {
            Ok(Event::RUN_POD_SANDBOX) => self.pod_starts(&request.pod),
            Ok(event @ (Event::STOP_POD_SANDBOX | Event::REMOVE_POD_SANDBOX | Event::REMOVE_CONTAINER)) => {
                match event {
                    Event::REMOVE_POD_SANDBOX => self.told().token_pods.forget_pod(&request.pod.id),
                    Event::REMOVE_CONTAINER => self.told().token_pods.forget_container(&request.pod.id, &request.container.id),
                    _ => {}
                }
                self.something_ended(&request.pod.annotations, &request.container.annotations);
            }
            _ => {}
        }
        Ok(Empty::default())
    }

    // The plugin does not subscribe to the following events. It answers them anyway: the generated code would answer
    // NOT_FOUND.

    async fn update_pod_sandbox(&self, _: &TtrpcContext, _: PodEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn post_update_pod_sandbox(&self, _: &TtrpcContext, _: PodEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn post_create_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn start_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn post_start_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn update_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn post_update_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn stop_container(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn validate_container_adjustment(&self, _: &TtrpcContext, _: ContainerEvent) -> Result<Empty> {
        Ok(Empty::default())
    }
}
