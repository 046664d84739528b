//! Values for the variables of objects: those that the request sets, and those that bpfman-hook fills in.

use crate::model::facts::{Facts, NamespaceFact};
use crate::model::object::GlobalFacts;
use crate::model::plan::{Inputs, PlanError};
use crate::model::text::list;

/// Variables to set, each with exactly as many bytes as it has.
type Values = Vec<(String, Vec<u8>)>;

/// The values for each object.
pub fn values(inputs: &Inputs<'_>) -> Result<Vec<Values>, PlanError> {
    let mut all = Vec::with_capacity(inputs.objects.len());
    for object in inputs.objects {
        let mut values = Vec::new();
        for global in &object.facts.globals {
            if let Some(fact) = fact(&global.name, inputs) {
                values.push((global.name.clone(), sized(global, fact)?));
            } else if let Some(asked) = inputs.request.globals.iter().find(|g| g.name == global.name) {
                values.push((global.name.clone(), global.encode(&asked.value)?));
            }
        }
        all.push(values);
    }
    let declared = |name: &String| inputs.objects.iter().flat_map(|o| &o.facts.globals).any(|g| g.name == *name);
    if let Some(name) = inputs.request.perhaps_globals.iter().find(|name| declared(name)) {
        return Err(PlanError::CutGlobal { name: name.clone() });
    }
    for asked in &inputs.request.globals {
        if !inputs.objects.iter().flat_map(|o| &o.facts.globals).any(|g| g.name == asked.name) {
            let declared = inputs.objects.iter().flat_map(|o| &o.facts.globals).map(|g| g.name.as_str());
            let known = list(declared.filter(|n| !is_fact(n)));
            return Err(PlanError::NoSuchGlobal { name: asked.name.clone(), known });
        }
    }
    Ok(all)
}

/// True for the name of a variable that bpfman-hook fills in with a fact about the container.
pub fn is_fact(name: &str) -> bool {
    name.starts_with(FACTS)
}

/// The prefix of such variables.
const FACTS: &str = "bpfman_";

/// The fact about the container for the variable of this name; None if the name is not one of ours.
///
/// For a namespace that the container shares with the host the fact is 0, which programs must interpret as "match
/// nothing".
fn fact(name: &str, inputs: &Inputs<'_>) -> Option<Vec<u8>> {
    let facts: &Facts = inputs.facts;
    let inode = |ns: &NamespaceFact| if ns.shared_with_host { 0 } else { ns.inode };
    let number = match name {
        "bpfman_cgroup_id" => facts.own_cgroup_id(),
        "bpfman_init_pid" => return Some(facts.init.to_ne_bytes().to_vec()),
        "bpfman_mntns" => inode(&facts.mnt),
        "bpfman_pidns" => inode(&facts.pid),
        "bpfman_netns" => inode(&facts.net),
        "bpfman_userns" => inode(&facts.user),
        "bpfman_container_id" => return Some(inputs.id.as_str().as_bytes().to_vec()),
        _ => return None,
    };
    Some(number.to_ne_bytes().to_vec())
}

/// The fact in the variable's size: numbers must have exactly that size, the container's id is truncated and ends with
/// a NUL.
fn sized(global: &GlobalFacts, mut bytes: Vec<u8>) -> Result<Vec<u8>, PlanError> {
    let size = global.size as usize;
    if global.name == "bpfman_container_id" {
        bytes.truncate(size.saturating_sub(1));
        bytes.resize(size, 0);
    }
    if bytes.len() == size {
        Ok(bytes)
    } else {
        let why = format!("it has {size} bytes in the object, but its value has {}", bytes.len());
        Err(PlanError::BadGlobal { name: global.name.clone(), why })
    }
}
