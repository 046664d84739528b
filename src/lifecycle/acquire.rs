//! One start of a container: gather the facts, plan, apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use crate::image::{Images, InUse, Want};
use crate::kernel::Kernel;
use crate::lifecycle::host::{Host, NeededFacts};
use crate::lifecycle::policy_files::LoadedPolicy;
use crate::lifecycle::release::Released;
use crate::lifecycle::token_reach::token_reach;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::admission::{Admission, admit, on_failure};
use crate::model::annotations::{OnFailure, ProgramsRequest, Request};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::config::Capability;
use crate::model::container::Container;
use crate::model::facts::{CgroupFact, Facts};
use crate::model::gate::{ContainerGate, GatedContainer};
use crate::model::ids::{Digest, OwnerNo, ProcessIdentity};
use crate::model::metrics_table;
use crate::model::object::ObjectFacts;
use crate::model::plan::{self, Inputs, ObjectInput, OwnerPlan, Plan, PlanError};
use crate::model::police::{Police, PoliceRecord};
use crate::model::policy::{ContainerFacts, ContainerRule, ImageRule, Refusal};
use crate::model::proxy::ProxyRecord;
use crate::model::proxy::profile;
use crate::model::proxy::profile::ProxySockets;
use crate::model::record::{
    BpffsRecord, CgroupRecord, ContainerOwner, Keeper, LinkRecord, LinkState, MapRecord, MapState, Owner, OwnerRecord, Phase,
    ProgramRecord, ProgramState, ShownMap,
};
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;
use crate::model::seccomp::Allowed;
use crate::paths::GATE;
use crate::store::StoreError;
use crate::sys::error::chain;
use crate::sys::export;

/// The result of an acquire.
#[derive(Debug)]
pub enum Acquired {
    /// Everything in the request was set up.
    Done(OwnerNo),
    /// It was already set up: createRuntime ran a second time for the same init and request.
    Already(OwnerNo),
    /// The container requests nothing, and its rule does not police it.
    Nothing,
    /// It failed, nothing is left, and the request and the policy let the container start without it.
    Without(Cause),
}

/// One container's start.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The container.
    pub container: &'a Container,
    /// The container's request.
    pub request: &'a Request,
    /// The administrator's policy.
    pub policy: &'a LoadedPolicy,
    /// How to reach registries.
    pub registries: &'a RegistryConfig,
    /// When fetching of images has to end.
    pub fetch_until: Instant,
    /// File with the result of this kernel's token probes: [`crate::paths::Paths::token_reach`].
    pub token_reach: &'a Path,
    /// Where the proxy of bpf(2) takes seccomp listeners.
    pub proxy_sockets: &'a ProxySockets,
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Performs all of a request, or none of it.
    ///
    /// # Errors
    /// The first failure. It is recorded, and the changes made are undone; what cannot be undone stays in the record
    /// for gc.
    pub fn acquire(&self, images: &impl Images, start: Start<'_>) -> Result<Acquired, Cause> {
        let container = start.container;
        let mut init = self.host.open_init(container).map_err(|e| self.refuse(container, e.into()))?;
        let userns = self.host.has_user_namespace(&init);
        let who = ContainerFacts { userns, ..container.facts(self.host.runtime_user()) };
        let policy = &start.policy.policy;
        let is_policed = policy.container_rule(&who).is_some_and(ContainerRule::supervises);
        if start.request.is_empty() && !is_policed {
            return Ok(Acquired::Nothing);
        }
        match self.acquire_as(images, start, &who, &mut init) {
            Err(cause)
                if cause.leaves_nothing()
                    && !cause.is_about_policing()
                    && on_failure(policy, &who, start.request) == OnFailure::Continue =>
            {
                if is_policed {
                    // Without its programs it is policed all the same.
                    let nothing = Request::nothing();
                    self.acquire_as(images, Start { request: &nothing, ..start }, &who, &mut init)?;
                }
                Ok(Acquired::Without(cause))
            }
            result => result,
        }
    }

    fn acquire_as(
        &self,
        images: &impl Images,
        start: Start<'_>,
        who: &ContainerFacts,
        init: &mut H::Init,
    ) -> Result<Acquired, Cause> {
        let container = start.container;
        admit(&start.policy.policy, who, start.request)
            .and_then(|admission| {
                admission.check_token_reach(|| token_reach(self.kernel, start.token_reach, &self.guard()))?;
                Ok(admission)
            })
            .map_err(|refusal| self.refuse(container, refusal.into()))
            .and_then(|admission| self.acquire_admitted(images, start, &admission, init))
    }

    fn acquire_admitted(
        &self,
        images: &impl Images,
        start: Start<'_>,
        admission: &Admission<'_>,
        init: &mut H::Init,
    ) -> Result<Acquired, Cause> {
        let container = start.container;
        let request = request_digest(start.request);
        let prepared = self.clear_the_way(container, self.host.identity(init), request).and_then(|already| match already {
            Some(no) => Ok(Err(no)),
            None => self.plan(images, start, admission, init).map(Ok),
        });
        let (facts, plan, gated) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(already)) => return Ok(Acquired::Already(already)),
            Err(cause) => return Err(self.refuse(container, cause)),
        };

        let mut record = self.blank(Owner::Container(ContainerOwner {
            init: Some(self.host.identity(init)),
            request: Some(request),
            cgroup: match &facts.cgroup {
                Some(CgroupFact::Own { path, id }) => Some(CgroupRecord { path: path.clone(), id: *id }),
                _ => None,
            },
            bpffs: plan
                .bpffs
                .as_ref()
                .map(|bpffs| Box::new(BpffsRecord { path: bpffs.path.clone(), delegation: bpffs.delegation })),
            granted_by: Some(Box::new(admission.rule.place.clone())),
            guarded: plan.bpffs.as_ref().and_then(|bpffs| bpffs.guarded),
            gated: gated.clone().map(Box::new),
            proxy: admission
                .proxy
                .clone()
                .map(|grant| Box::new(ProxyRecord { grant, network: facts.netns_cookie, objects: Vec::new() })),
            police: admission.rule.police.as_ref().map(|police| PoliceRecord { mode: police.mode, refused: Vec::new() }),
            ..self.container_owner(container)
        }));
        fill(&mut record, &plan.container);
        show_maps(&mut record, &plan);
        let netns = match self.claim(&mut record, &plan, &facts, container) {
            Ok(netns) => netns,
            Err(cause) => return Err(self.refuse(container, cause)),
        };
        let started = Instant::now();
        let built = self.build(init, container, &mut record, netns, &plan, (admission.rule.police.as_ref(), gated.as_ref()));
        took(metrics_table::Phase::Build, started, built.is_ok());
        if let Err(cause) = built {
            record.verifier_log = cause.verifier_log().map(str::to_owned);
            if let Err(second) = self.fail(&record, &chain(&cause)) {
                tracing::error!(container = %container.id, error = %chain(&second), "cannot undo a failed start");
            }
            return Err(cause);
        }
        Ok(Acquired::Done(record.no))
    }

    /// Gathers facts and images and makes the plan. Changes nothing except the image cache.
    fn plan(
        &self,
        images: &impl Images,
        start: Start<'_>,
        admission: &Admission<'_>,
        init: &mut H::Init,
    ) -> Result<(Facts, Plan, Option<GatedContainer>), Cause> {
        let (container, request) = (start.container, start.request);
        let programs = !matches!(request.programs, ProgramsRequest::None);
        let proxied = admission.proxy.as_ref().map(|grant| grant.delegation).unwrap_or_default();
        let network = programs || proxied.reaches_netns() || admission.delegation.is_some_and(|d| d.reaches_netns());
        let cgroup_mounts = admission.delegation.is_some_and(|d| d.reaches_cgroups());
        let user_probe = |kind| matches!(kind, ProgramKind::Uprobe | ProgramKind::Uretprobe);
        let root = admission.host_scope
            && match &request.programs {
                ProgramsRequest::None => false,
                ProgramsRequest::All { .. } => true,
                ProgramsRequest::Listed(entries) => entries.iter().any(|entry| user_probe(entry.attach.kind())),
            };
        let userns = admission.delegation.is_some();
        let guarded = userns && self.kernel.is_guarded(&self.guard());
        let is_policed = admission.rule.police.is_some();
        let gate = admission.rule.gate.as_ref();
        let cgroup = programs || cgroup_mounts || proxied.reaches_cgroups() || is_policed || gate.is_some() || guarded;
        let interfaces = programs || proxied.reaches_netns();
        let need = NeededFacts { network, interfaces, userns, cgroup, cgroup_mounts, root };
        let facts = self.host.facts(init, container, need)?;
        if let (true, Some(why)) = (is_policed, plan::no_own_cgroup(&facts)) {
            return Err(PlanError::PoliceCgroup { why }.into());
        }
        if let (Some(_), Some(why)) = (gate, plan::no_own_cgroup(&facts)) {
            return Err(PlanError::GateCgroup { why }.into());
        }
        let mut objects = Vec::new();
        let in_use = || self.images_in_use();
        for (reference, rules) in &admission.images {
            let started = Instant::now();
            let bytecode = images.fetch(&Want {
                reference,
                pull: admission.pull,
                rules,
                keys: &start.policy.keys,
                registries: start.registries,
                policy: start.policy.id,
                deadline: start.fetch_until,
                tenant: container.workload.namespace.as_deref().unwrap_or_default(),
                in_use: InUse(&in_use),
            });
            took(metrics_table::Phase::Image, started, bytecode.is_ok());
            let bytecode = bytecode?;
            let declared = self.kernel.describe(&bytecode.object)?;
            let rule =
                admission.image_rule(reference, &bytecode.rule).expect("fetch returns one of the rules that it was given");
            check_object(admission, request, reference, rule, &declared)?;
            let signing = self.signing(&declared, rule.kernel_signed);
            objects.push(ObjectInput { bytecode, facts: declared, host_scope: rule.scope == Scope::Host, signing });
        }
        self.check_deadline()?;
        let plan = plan::make(&Inputs {
            id: &container.id,
            request,
            facts: &facts,
            objects: &objects,
            delegation: admission.delegation,
            guarded,
            host_scope: admission.host_scope,
            limits: admission.limits,
            user: container.user,
            late_network: container.late_network(),
            foreign_cgroups: container.foreign_cgroups(),
        })?;
        // A token passes the loader's capabilities on to the verifier: with one of these, programs may read kernel
        // memory. The guard refuses both by a token, to every process.
        if !guarded {
            let can_have = Capability::ALL.into_iter().filter(|c| container.config.can_have(*c) != Allowed::No);
            admission.check_capabilities(can_have.map(Capability::name))?;
        }
        container.check_rights(request, admission.delegation.as_ref(), admission.grant)?;
        if let Some(grant) = &admission.proxy {
            profile::check(container.config.seccomp(), container.engine, start.proxy_sockets, grant.perf_events())?;
            if let (true, false, Some(why)) = (proxied.reaches_netns(), admission.host_scope, plan::foreign_network(&facts)) {
                return Err(PlanError::ProxyNetwork { why }.into());
            }
        }
        let gated = gate.zip(facts.cgroup.as_ref()).map(|(gate, cgroup)| gated(gate, cgroup, &objects));
        Ok((facts, plan, gated.flatten()))
    }

    /// The images of every owner whose record can be read; they are only spared from eviction. Called when the cache is
    /// full.
    pub(super) fn images_in_use(&self) -> BTreeSet<Digest> {
        let records = self.store.records().filter_map(Result::ok);
        records.flat_map(|record| record.images).map(|image| image.digest).collect()
    }

    /// Makes room for a new record. Returns the owner if the work is already done, releases the leftovers of a dead
    /// container with the same id, and fails if a living container has the id.
    fn clear_the_way(&self, container: &Container, init: ProcessIdentity, request: Digest) -> Result<Option<OwnerNo>, Cause> {
        let id = &container.id;
        for record in self.store.read::<_, StoreError>(|txn| txn.by_container(id))? {
            match (record.phase, &record.owner) {
                (Phase::Failed, _) => {
                    self.store.write::<_, StoreError>(|txn| txn.delete(record.no))?;
                }
                (Phase::Ready, Owner::Container(owner)) => {
                    if owner.init == Some(init) {
                        let same = owner.request == Some(request);
                        return if same { Ok(Some(record.no)) } else { Err(Cause::OtherRequest { id: id.clone() }) };
                    }
                    if let Some(init) = owner.init
                        && self.host.is_alive(&init)?
                    {
                        return Err(Cause::IdTaken { id: id.clone(), bundle: owner.bundle.clone() });
                    }
                    self.release_leftover(&record)?;
                }
                _ => self.release_leftover(&record)?,
            }
        }
        Ok(None)
    }

    fn release_leftover(&self, record: &OwnerRecord) -> Result<(), Cause> {
        let busy = |pid| Cause::Busy { pid, what: record.owner.to_string() };
        match self.release(record)? {
            Released::Changed => Err(busy(record.actor.process.pid)),
            Released::Busy(pid) | Released::Alive(pid) => Err(busy(pid)),
            Released::Partly(errors) => Err(Cause::Leftovers(errors)),
            Released::Unrecorded(error) => Err(error.into()),
            Released::Gone | Released::Absent | Released::Held(_) => Ok(()),
        }
    }

    /// Applies the plan, and runs transaction 2.
    fn build(
        &self,
        init: &H::Init,
        container: &Container,
        record: &mut OwnerRecord,
        netns: Option<OwnerRecord>,
        plan: &Plan,
        (police, gated): (Option<&Police>, Option<&GatedContainer>),
    ) -> Result<(), Cause> {
        if let (Some(mut netns), Some(wanted)) = (netns, &plan.netns) {
            self.apply(init, &mut netns, wanted)?;
            self.complete(&mut netns, None)?;
        }
        let own = self.with_pod_maps(record, &plan.container)?;
        self.apply(init, record, &own)?;
        if let Some(bpffs) = &plan.bpffs {
            self.check_deadline()?;
            if let Some(guarded) = &bpffs.guarded {
                self.kernel.guard_token(&self.guard(), guarded)?;
            }
            // Last, because it cannot be undone from outside the container: the kernel removes it with the container.
            self.host.mount_bpffs(init, container, &self.fs.join(record.no.directory()), bpffs)?;
        }
        if let Some(gated) = gated {
            self.kernel.list_executables(&self.fs.join(GATE), gated).map_err(Cause::Gate)?;
        }
        if let Some(police) = police {
            // After the last step that can let the container start without its programs: a container that is not policed
            // does not start.
            self.police(init, record, police, own.objects.is_empty())?;
        }
        self.complete(record, plan.keeper)?;
        // A poststop that ran before this point found this process at work and left the cleanup to it; from here on it
        // finds a Ready record.
        let init = self.host.identity(init);
        if self.host.is_alive(&init)? { Ok(()) } else { Err(Cause::InitEnded { pid: init.pid }) }
    }

    fn apply(&self, init: &H::Init, record: &mut OwnerRecord, plan: &OwnerPlan) -> Result<(), Cause> {
        self.load_objects(record, plan)?;
        let directory = self.fs.join(record.no.directory());
        for (planned, link) in plan.links.iter().zip(&mut record.links) {
            self.check_deadline()?;
            let attached = self.attach(&directory, planned, self.host.places(init))?;
            link.state = LinkState::Attached(attached.id);
            link.runs_in(attached.mode);
        }
        Ok(())
    }

    /// Loads and pins the planned objects, and notes their kernel ids in the record.
    pub(super) fn load_objects(&self, record: &mut OwnerRecord, plan: &OwnerPlan) -> Result<(), Cause> {
        if plan.objects.is_empty() {
            return Ok(());
        }
        let directory = self.fs.join(record.no.directory());
        self.kernel.make_directory(&directory)?;
        for object in &plan.objects {
            self.check_deadline()?;
            let ids = self.kernel.load(&directory, object)?;
            for (planned, id) in object.programs.iter().zip(ids.programs) {
                if let Some(program) = record.programs.iter_mut().find(|p| p.pin == planned.pin) {
                    program.state = ProgramState::Loaded(id);
                }
            }
            for (planned, id) in object.maps.iter().zip(ids.maps) {
                match (record.maps.iter().position(|m| m.pin == planned.pin), id) {
                    (Some(at), Some(id)) => record.maps[at].state = MapState::Created(id),
                    // Nothing uses it.
                    (Some(at), None) => drop(record.maps.remove(at)),
                    (None, _) => {}
                }
            }
        }
        Ok(())
    }

    /// Transaction 2: sets the objects' states and Ready, if this process still owns the record. From here on `keeper` keeps
    /// what the record holds of its pod; a start that fails earlier leaves nothing.
    pub(super) fn complete(&self, record: &mut OwnerRecord, keeper: Option<Keeper>) -> Result<(), Cause> {
        record.phase = Phase::Ready;
        record.changed = self.host.now();
        let mine = self.store.write::<_, StoreError>(|txn| match txn.get(record.no)? {
            Some(kept) if kept.phase == Phase::Pending && kept.actor == record.actor => {
                txn.put(record)?;
                for held in record.owner.holds().iter().filter(|_| keeper.is_some()) {
                    let Some(mut pod) = txn.get(*held)? else { continue };
                    if let Owner::Netns(netns) = &mut pod.owner
                        && netns.keeper != keeper
                    {
                        netns.keeper = keeper;
                        txn.put(&pod)?;
                    }
                }
                Ok(true)
            }
            _ => Ok(false),
        })?;
        if mine {
            return Ok(());
        }
        self.undo_unnamed(record);
        Err(Cause::RecordGone { no: record.no })
    }

    /// Records a refusal for `list` and `inspect`, and returns it.
    fn refuse(&self, container: &Container, cause: Cause) -> Cause {
        self.record_refusal(container, &chain(&cause));
        cause
    }

    /// A container as an owner that has nothing yet.
    pub(super) fn container_owner(&self, container: &Container) -> ContainerOwner {
        let (id, bundle) = (container.id.clone(), container.bundle.clone());
        ContainerOwner::new(id, bundle, self.host.runtime_user(), container.engine, container.workload.clone())
    }

    /// A Pending record of this owner without objects, with this process as the actor.
    pub(super) fn blank(&self, owner: Owner) -> OwnerRecord {
        let now = self.host.now();
        OwnerRecord::new(OwnerNo(0), owner, Phase::Pending, self.actor(), now)
    }
}

/// Records the duration of a part of a start.
fn took(phase: metrics_table::Phase, started: Instant, ok: bool) {
    let worked = if ok { metrics_table::Worked::Ok } else { metrics_table::Worked::Failed };
    export::observe(metrics_table::phase(phase, worked), started.elapsed());
}

/// Checks that need the object and the image rule that allowed it: program kinds, globals and maps.
fn check_object(
    admission: &Admission<'_>,
    request: &Request,
    reference: &Reference,
    rule: &ImageRule,
    object: &ObjectFacts,
) -> Result<(), Refusal> {
    if matches!(request.programs, ProgramsRequest::All { .. }) {
        for program in &object.programs {
            if let Some(declared) = &program.declared {
                admission.check_program(reference, rule, &program.function, declared.kind())?;
            }
        }
    }
    for global in request.globals.iter().filter(|g| object.globals.iter().any(|o| o.name == g.name)) {
        admission.check_global(reference, rule, &global.name)?;
    }
    for map in request.maps.iter().filter(|m| object.maps.iter().any(|o| o.name == m.name)) {
        admission.check_map(reference, rule, &map.name, map.access)?;
    }
    Ok(())
}

/// Adds every pin that the plan will make to the record.
pub(super) fn fill(record: &mut OwnerRecord, plan: &OwnerPlan) {
    for (image, object) in plan.objects.iter().enumerate() {
        record.images.push(object.image.clone());
        for map in &object.maps {
            record.maps.push(MapRecord {
                pin: map.pin.clone(),
                name: map.name.clone(),
                image,
                state: MapState::Creating,
                shown: None,
                frozen: map.freeze,
            });
        }
        for program in &object.programs {
            record.programs.push(ProgramRecord {
                pin: program.pin.clone(),
                function: program.function.clone(),
                kind: program.kind,
                scope: object.scope,
                target: program.target.clone(),
                image,
                state: ProgramState::Loading,
            });
        }
    }
    for link in &plan.links {
        record.links.push(LinkRecord {
            pin: link.pin.clone(),
            program: link.program.clone(),
            at: link.at.clone(),
            order: link.order.clone(),
            netns: link.netns.clone(),
            metadata: BTreeMap::new(),
            state: LinkState::Attaching,
        });
    }
}

fn show_maps(record: &mut OwnerRecord, plan: &Plan) {
    for (pin, file_name, access) in plan.bpffs.iter().flat_map(|bpffs| &bpffs.maps) {
        if let Some(map) = record.maps.iter_mut().find(|m| m.pin == *pin) {
            map.shown = Some(ShownMap { file_name: file_name.clone(), access: *access });
        }
    }
}

fn request_digest(request: &Request) -> Digest {
    Digest::from_bytes(Sha256::digest(request.canonical()).into())
}

/// The list of a container: what its rule lists, and what its images name if the rule says so.
fn gated(gate: &ContainerGate, cgroup: &CgroupFact, objects: &[ObjectInput]) -> Option<GatedContainer> {
    let CgroupFact::Own { id, .. } = cgroup else { return None };
    let mut executables = gate.executables.clone();
    if gate.images {
        executables.extend(objects.iter().flat_map(|object| &object.facts.executables));
    }
    Some(GatedContainer { cgroup: *id, executables })
}
