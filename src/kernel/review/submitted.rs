//! The review of programs that a container submits itself, through the proxy of bpf(2): bare instructions, without an
//! object around them.

use std::collections::{BTreeMap, HashMap};

use super::bound::{self, ExecutionBound};
use super::calls::ProgramCalls;
use super::{AllowedReferences, Broken, Objection, instructions, is_global, kernel_function, target};
use crate::kernel::btf::{Btf, BtfError, BtfKind};
use crate::kernel::insn::{self, Insn, PSEUDO_FUNC, PSEUDO_KFUNC};
use crate::kernel::review::tags;
use crate::model::proxy::ProxyGrant;
use crate::model::reach;

/// A submitted program that its container was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "program {program} {}{}: {}; {}{}", objection.what(), Place(*at), objection.why(), remedy(objection), objection.instead()
)]
pub struct SubmittedRefusal {
    /// Its name.
    pub program: String,
    /// What it does.
    pub objection: Objection,
    /// The instruction, counted from its start.
    pub at: Option<usize>,
}

impl SubmittedRefusal {
    /// Looks up the name of the kernel's function or variable that the program refers to, if that is the reason. `name`
    /// gives the name of a type of the kernel's BTF.
    pub fn with_name(mut self, name: impl FnOnce(u32) -> Option<String>) -> Self {
        if let Some(symbol) = self.objection.symbol().filter(|symbol| !symbol.in_module) {
            symbol.name = name(symbol.id);
        }
        self
    }
}

/// The name of a function or variable in the BTF of the kernel.
///
/// # Errors
/// If it cannot be read. A type that it does not have, or that is neither, has no name.
pub fn kernel_symbol(kernel: &[u8], id: u32) -> Result<Option<String>, BtfError> {
    let types = Btf::parse(kernel)?;
    let Ok(ty) = types.ty(id) else { return Ok(None) };
    let named = matches!(ty.kind, BtfKind::Func | BtfKind::Var);
    if named { types.name(&ty).map(|name| Some(name.to_owned())) } else { Ok(None) }
}

struct Place(Option<usize>);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |at| write!(f, " (instruction {at})"))
    }
}

fn remedy(objection: &Objection) -> &'static str {
    match objection {
        Objection::NotListed(_) | Objection::KfuncNotListed(_) => "add it to proxy of the container's policy rule",
        _ => "it needs host-scope = true in the container's policy rule",
    }
}

/// The kernel functions of a grant, by their ids in the running kernel's BTF.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantedKfuncs {
    ids: BTreeMap<u32, String>,
}

impl GrantedKfuncs {
    /// Looks up the granted functions in the BTF of the kernel. A name that the kernel does not have grants nothing.
    ///
    /// # Errors
    /// If the BTF cannot be read.
    pub fn find(grant: &ProxyGrant, kernel: &[u8]) -> Result<Self, BtfError> {
        let mut ids = BTreeMap::new();
        let Some(names) = grant.kfuncs.as_ref().filter(|names| !names.is_empty()) else { return Ok(Self { ids }) };
        let types = Btf::parse(kernel)?;
        for function in types.types().filter(|ty| ty.kind == BtfKind::Func) {
            let name = types.name(&function)?;
            if names.contains(name) {
                ids.insert(function.id, name.to_owned());
            }
        }
        Ok(Self { ids })
    }
}

/// Which calls a submitted program may make.
pub(super) struct AllowedCalls<'a> {
    grant: &'a ProxyGrant,
    kfuncs: &'a GrantedKfuncs,
}

impl AllowedCalls<'_> {
    /// Checks a helper against the list of the grant.
    pub(super) fn helper(&self, number: u32) -> Result<(), Objection> {
        match &self.grant.helpers {
            Some(helpers) if !helpers.contains(&number) => Err(Objection::NotListed(number)),
            _ => Ok(()),
        }
    }

    /// Checks a call of a kernel function. Functions of modules, which the offset selects, are never allowed.
    pub(super) fn kfunc(&self, call: Insn) -> Result<(), Objection> {
        let unlisted = match (&self.grant.kfuncs, self.grant.host_scope) {
            (None, true) => return Ok(()),
            (None, false) => return Err(Objection::Kfunc(kernel_function(call))),
            (Some(_), _) => Objection::KfuncNotListed(kernel_function(call)),
        };
        let name = self.kfuncs.ids.get(&call.imm.cast_unsigned()).filter(|_| call.off == 0).ok_or(unlisted)?;
        // What the policy lists was reviewed by the administrator, unless it is known to reach beyond.
        match reach::kfunc(name) {
            Some(reach) if reach.is_beyond() && !self.grant.host_scope => Err(Objection::Kfunc(kernel_function(call))),
            _ => Ok(()),
        }
    }
}

/// A program whose instructions were reviewed, at container scope with its calls.
#[derive(Debug)]
pub struct ReviewedProgram {
    code: Vec<Insn>,
    calls: Option<ProgramCalls>,
}

impl ReviewedProgram {
    /// How much it can execute, if that is more than the verifier explores: it is to be checked after the kernel has
    /// loaded it. `functions` are its `struct bpf_func_info` records of `record` bytes each, and `types` the functions of
    /// their BTF.
    pub fn bound(&self, functions: &[u8], record: usize, types: &FunctionTypes) -> Option<ExecutionBound> {
        let globals = bound::globals(functions, record, |ty| types.globals.binary_search(&ty).is_ok());
        ExecutionBound::of(&self.code, self.calls.as_ref()?, &globals)
    }
}

/// Reviews the instructions of a program of a type (`enum bpf_prog_type`).
pub fn review_submitted(
    grant: &ProxyGrant,
    kfuncs: &GrantedKfuncs,
    name: &str,
    program_type: u32,
    code: &[[u8; insn::SIZE]],
) -> Result<ReviewedProgram, SubmittedRefusal> {
    let code: Vec<Insn> = code.iter().copied().map(Insn::from).collect();
    let allowed = AllowedCalls { grant, kfuncs };
    let reviewed = match grant.host_scope {
        true => calls(&code, &allowed).map(|()| None),
        false => instructions(program_type, &code, &starts(&code), AllowedReferences::Submitted(&allowed)).map(Some),
    };
    match reviewed {
        Ok(calls) => Ok(ReviewedProgram { code, calls }),
        Err((objection, at)) => Err(SubmittedRefusal { program: name.to_owned(), objection, at }),
    }
}

/// At host scope only the lists of the grant apply.
fn calls(code: &[Insn], allowed: &AllowedCalls<'_>) -> Result<(), Broken> {
    for (at, insn) in linear(code) {
        let checked = match (insn.code, insn.src()) {
            (insn::CALL, 0) => allowed.helper(insn.imm.cast_unsigned()),
            (insn::CALL, PSEUDO_KFUNC) => allowed.kfunc(insn),
            _ => Ok(()),
        };
        checked.map_err(|objection| (objection, Some(at)))?;
    }
    Ok(())
}

/// The first instructions of the functions, ascending, as the verifier finds them (`check_subprogs`): the targets of
/// calls, and of addresses of functions.
fn starts(code: &[Insn]) -> Vec<usize> {
    let mut starts = vec![0];
    for (at, insn) in linear(code) {
        let is_function = insn.is_call() || insn.is_wide() && insn.src() == PSEUDO_FUNC;
        if is_function {
            starts.push(target(at, insn.imm));
        }
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// The instructions without the second halves of 64-bit constants.
fn linear(code: &[Insn]) -> impl Iterator<Item = (usize, Insn)> + '_ {
    let mut skip = false;
    code.iter().copied().enumerate().filter(move |(_, insn)| {
        let is_second = std::mem::take(&mut skip);
        skip = !is_second && insn.is_wide();
        !is_second
    })
}

/// Functions with tags that were not reviewed, in one BTF.
pub const TAGS_MAX: usize = 1024;

/// Some BTF whose tags cannot be reviewed.
#[derive(Debug, thiserror::Error)]
pub enum TagsError {
    /// It cannot be parsed, although the kernel accepted it.
    #[error("the BTF of the program cannot be read: {0}")]
    Unreadable(#[from] BtfError),
    /// It has more of them than are kept.
    #[error("the BTF of the program has more than {TAGS_MAX} tags of function arguments that were not reviewed")]
    TooMany,
}

/// The functions in some BTF, as far as the review needs them.
#[derive(Debug, Default)]
pub struct FunctionTypes {
    /// Tags of arguments that were not reviewed: one for each tagged function, by its type.
    tags: HashMap<u32, String>,
    /// The types of global functions, ascending.
    globals: Vec<u32>,
}

impl FunctionTypes {
    /// Reads them.
    ///
    /// # Errors
    /// If the BTF cannot be parsed, or has more than [`TAGS_MAX`] tags that were not reviewed.
    pub fn read(btf: &[u8]) -> Result<Self, TagsError> {
        let btf = Btf::parse(btf)?;
        let mut tags = HashMap::new();
        for (at, (function, tag)) in tags::unreviewed(&btf).enumerate() {
            if at >= TAGS_MAX {
                return Err(TagsError::TooMany);
            }
            tags.entry(function).or_insert(tag);
        }
        let globals = btf.types().filter(is_global).map(|function| function.id).collect();
        Ok(Self { tags, globals })
    }
}

/// Checks the tags of a program's functions, `struct bpf_func_info` of `record` bytes each, with the functions of its
/// BTF.
pub fn review_functions(name: &str, functions: &[u8], record: usize, types: &FunctionTypes) -> Result<(), SubmittedRefusal> {
    // The first field is the instruction, the second the type.
    for function in functions.chunks_exact(record.max(8)) {
        let ty = function.get(4..).and_then(<[u8]>::first_chunk).copied().map(u32::from_ne_bytes);
        if let Some(tag) = ty.and_then(|ty| types.tags.get(&ty)) {
            return Err(SubmittedRefusal { program: name.to_owned(), objection: Objection::Tag(tag.clone()), at: None });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Delegation;
    use crate::model::policy::ContainerLimits;

    const XDP: u32 = 6;

    fn grant(helpers: Option<&[u32]>, kfuncs: Option<&[&str]>, host_scope: bool) -> ProxyGrant {
        ProxyGrant {
            delegation: Delegation::default(),
            helpers: helpers.map(|numbers| numbers.iter().copied().collect()),
            kfuncs: kfuncs.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            instructions: None,
            images: Default::default(),
            host_scope,
            limits: ContainerLimits::default(),
        }
    }

    fn insn(code: u8, registers: u8, off: i16, imm: i32) -> [u8; 8] {
        let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
        [code, registers, o0, o1, i0, i1, i2, i3]
    }

    fn helper(number: i32) -> [u8; 8] {
        insn(0x85, 0, 0, number)
    }

    fn kfunc(id: i32, module: i16) -> [u8; 8] {
        insn(0x85, 0x20, module, id)
    }

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    fn judge(grant: &ProxyGrant, code: &[[u8; 8]]) -> Result<(), String> {
        let kfuncs = GrantedKfuncs { ids: [(7, "bpf_good".to_owned()), (8, "bpf_rdonly_cast".to_owned())].into() };
        review_submitted(grant, &kfuncs, "p", XDP, code).map(drop).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn container_scope_has_the_lists_of_images() {
        let container = grant(None, None, false);
        for (code, refusal) in [
            (vec![helper(1), EXIT], None),
            (
                vec![helper(113), EXIT],
                Some(
                    "program p calls bpf_probe_read_kernel (instruction 0): that reaches kernel memory; it needs host-scope = true",
                ),
            ),
            (vec![helper(84), EXIT], Some("a network namespace other than its own")),
            (vec![insn(0xb7, 4, 0, -1), helper(84), EXIT], None),
            // A jump to the call: the constant is not known there.
            (vec![insn(0x15, 0, 1, 0), insn(0xb7, 4, 0, -1), helper(84), EXIT], Some("other than its own")),
            // So is the entry of a function.
            (vec![insn(0xb7, 4, 0, -1), insn(0x85, 0x10, 0, 0), helper(84), EXIT], Some("other than its own")),
            (
                vec![kfunc(7, 0), EXIT],
                Some("calls the kernel function 7 (instruction 0): this kernel function is not allowed at container scope"),
            ),
            (
                vec![insn(0x18, 0x30, 0, 1), [0; 8], EXIT],
                Some("uses the kernel variable 1 (instruction 0): that can reach kernel memory"),
            ),
            (vec![insn(0x18, 0x70, 0, 1), [0; 8], EXIT], Some("a constant of unknown kind 7")),
            (vec![insn(0xe5, 0, 0, 0), EXIT], Some("uses may_goto")),
            (vec![helper(181), EXIT], Some("bpf_loop with a count")),
            (vec![helper(i32::MAX), EXIT], Some("that was not reviewed")),
        ] {
            match (judge(&container, &code), refusal) {
                (Ok(()), None) => {}
                (Err(shown), Some(part)) => assert!(shown.contains(part), "{shown}"),
                (found, expected) => assert_eq!(found.err().as_deref(), expected, "{code:?}"),
            }
        }
    }

    #[test]
    fn the_lists_of_a_grant_only_narrow_helpers() {
        let narrow = grant(Some(&[1, 113]), None, false);
        assert_eq!(judge(&narrow, &[helper(1), EXIT]), Ok(()));
        assert!(judge(&narrow, &[helper(113), EXIT]).unwrap_err().contains("reaches kernel memory"));
        let sentence = "program p calls bpf_map_update_elem (instruction 1): that is not among the helpers of the rule; \
                        add it to proxy of the container's policy rule";
        assert_eq!(judge(&narrow, &[helper(1), helper(2), EXIT]), Err(sentence.to_owned()));
        let host = grant(Some(&[113]), None, true);
        assert_eq!(judge(&host, &[helper(113), kfunc(3, 5), EXIT]), Ok(()));
        assert!(judge(&host, &[helper(1), EXIT]).unwrap_err().contains("not among the helpers"));
    }

    #[test]
    fn listed_kfuncs_are_allowed_unless_they_reach_beyond() {
        let listed = grant(None, Some(&["bpf_good", "bpf_rdonly_cast"]), false);
        assert_eq!(judge(&listed, &[kfunc(7, 0), EXIT]), Ok(()));
        for (call, part) in
            [(kfunc(9, 0), "kernel function 9"), (kfunc(7, 1), "kernel function 7"), (kfunc(8, 0), "kernel function 8")]
        {
            assert!(judge(&listed, &[call, EXIT]).unwrap_err().contains(part));
        }
        let host = grant(None, Some(&["bpf_rdonly_cast"]), true);
        assert_eq!(judge(&host, &[kfunc(8, 0), EXIT]), Ok(()));
        assert!(judge(&host, &[kfunc(9, 0), EXIT]).is_err());
    }

    #[test]
    fn functions_begin_where_the_verifier_finds_them() {
        let code = [insn(0x85, 0x10, 0, 2), EXIT, insn(0x18, 0x40, 0, 2), insn(0x85, 0x10, 0, 9), EXIT];
        let code: Vec<Insn> = code.into_iter().map(Insn::from).collect();
        // The second half of a constant is no call.
        assert_eq!(starts(&code), [0, 3, 5]);
    }

    #[test]
    fn tagged_functions_are_found_by_their_type() {
        let tags = FunctionTypes { tags: [(5, "arg:untrusted".to_owned())].into(), globals: Vec::new() };
        let record = |ty: u32| [0u32, ty].map(u32::to_ne_bytes).concat();
        assert_eq!(review_functions("p", &record(4), 8, &tags), Ok(()));
        let refused = review_functions("p", &[record(4), record(5)].concat(), 8, &tags).unwrap_err().to_string();
        assert!(refused.contains("tagged \"arg:untrusted\": that reaches kernel memory"), "{refused}");
    }

    /// BTF with a function, and `tags` tags of its argument.
    fn tagged(tags: usize) -> Vec<u8> {
        const FUNC_PROTO: u32 = 13 << 24;
        const FUNC: u32 = 12 << 24;
        const DECL_TAG: u32 = 17 << 24;
        let mut types = vec![0, FUNC_PROTO, 0, 1, FUNC, 1];
        for _ in 0..tags {
            types.extend([3, DECL_TAG, 2, 0]);
        }
        let strings = b"\0f\0arg:untrusted\0";
        let length = types.len() * 4;
        let header = [24, 0, length, length, strings.len()].map(|value| u32::try_from(value).unwrap());
        let words = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
        0xeb9f_u16.to_ne_bytes().into_iter().chain([1, 0]).chain(words).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn tags_are_read_up_to_a_number() {
        for (tags, is_read) in [(0, true), (1, true), (TAGS_MAX, true), (TAGS_MAX + 1, false)] {
            let found = FunctionTypes::read(&tagged(tags));
            match found {
                Ok(found) if is_read => {
                    assert_eq!(found.tags.get(&2).map(String::as_str), (tags > 0).then_some("arg:untrusted"))
                }
                Err(TagsError::TooMany) if !is_read => {}
                found => panic!("{tags}: {found:?}"),
            }
        }
        assert!(matches!(FunctionTypes::read(b"no BTF"), Err(TagsError::Unreadable(_))));
    }
}
