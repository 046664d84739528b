//! Asks the kernel's verifier about the programs of an object, without attaching or pinning anything.

use serde::Serialize;

use crate::kernel::error::KernelError;
use crate::kernel::load;
use crate::kernel::object::BpfObject;
use crate::kernel::requirements::program_word;
use crate::kernel::section;
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::ids::PinName;
use crate::model::object::{ProgramFacts, SectionAttach};
use crate::model::plan::PlannedProgram;
use crate::sys::error::chain;

/// The kernel's answer about one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TriedProgram {
    /// The function.
    pub name: String,
    /// bpfman's name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its section.
    pub section: String,
    /// The smallest scope that it loads with; None if it does not load.
    pub scope: Option<Scope>,
    /// Instructions that the verifier processed, also those that it processed several times; 0 before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Why it does not load with container scope, if it could by its type.
    pub beyond_container: Option<String>,
    /// Why it does not load.
    pub refused: Option<String>,
    /// The verifier's log, if it has refused the program.
    pub verifier_log: Option<String>,
}

/// Loads each of the named programs by itself, or every program, as its section says; each is freed again at once.
///
/// # Errors
/// If the object cannot be read, or does not have a named program. What concerns one program is in its answer.
pub fn try_programs(bytes: &[u8], names: &[String]) -> Result<Vec<TriedProgram>, KernelError> {
    let object = BpfObject::parse(bytes)?;
    let facts = object.facts().programs;
    if let Some(missing) = names.iter().find(|name| !facts.iter().any(|program| program.function == **name)) {
        let there = facts.iter().map(|program| program.function.as_str()).collect::<Vec<_>>().join(", ");
        return Err(KernelError::NoProgram { function: missing.clone(), there });
    }
    let wanted = facts.iter().filter(|program| names.is_empty() || names.contains(&program.function));
    Ok(wanted.map(|program| tried(&object, program)).collect())
}

fn tried(object: &BpfObject<'_>, program: &ProgramFacts) -> TriedProgram {
    let mut answer = TriedProgram {
        name: program.function.clone(),
        kind: program_word(program),
        section: program.section.clone(),
        scope: None,
        verified_instructions: None,
        beyond_container: None,
        refused: None,
        verifier_log: None,
    };
    let Some(planned) = planned(program) else {
        answer.refused = Some(format!("its section {:?} does not say what it is", program.section));
        return answer;
    };
    if planned.kind.scope() == Scope::Container {
        match load::load_once(object, &planned, Scope::Container) {
            Ok(verified) => {
                (answer.scope, answer.verified_instructions) = (Some(Scope::Container), Some(verified));
                return answer;
            }
            Err(error) => answer.beyond_container = Some(chain(&error)),
        }
    }
    match load::load_once(object, &planned, Scope::Host) {
        Ok(verified) => (answer.scope, answer.verified_instructions) = (Some(Scope::Host), Some(verified)),
        Err(error) => {
            answer.beyond_container = None;
            answer.refused = Some(chain(&error));
            answer.verifier_log = error.whole_log().map(str::to_owned);
        }
    }
    answer
}

/// The load that the section means; None if its name is not known.
fn planned(program: &ProgramFacts) -> Option<PlannedProgram> {
    let declared = program.declared.as_ref()?;
    let kind = declared.kind();
    let expected_attach_type = match kind {
        // Kernels without tcx know no attach type of classifiers.
        ProgramKind::Tcx => 0,
        _ => section::attach_type(&program.section)?,
    };
    let target = match declared {
        SectionAttach::Function(_, target) | SectionAttach::Other(_, target) => target.clone(),
        _ => None,
    };
    let pin = PinName::program(0);
    Some(PlannedProgram { function: program.function.clone(), kind, expected_attach_type, target, pin })
}
