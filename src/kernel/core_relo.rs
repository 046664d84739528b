//! CO-RE: adapts an object's instructions to the types of the running kernel. Kernel types are looked up by name, not
//! parsed into separate structures.
//!
//! Kinds and record: `enum bpf_core_relo_kind` and `struct bpf_core_relo` of uapi/linux/bpf.h; what each means:
//! Linux `Documentation/bpf/llvm_reloc.rst`, "CO-RE Relocations".

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crate::kernel::btf::{Btf, BtfError, BtfKind, Type};
use crate::kernel::btf_ext::CoreRecord;
use crate::kernel::core_answer::{CoreAnswer, CoreQuestion, answer};
use crate::kernel::core_match::types_match;
use crate::kernel::core_spec::{
    self, MemberPath, SpecError, enum_step, essential, field_spec, match_fields, same_kind, types_fit,
};
use crate::kernel::insn::{self, Insn};
use crate::kernel::kallsyms::{SymbolError, Symbols};
use crate::kernel::modules::{KernelType, Modules};
use crate::kernel::object::{BpfObject, Function};

/// The verifier reports a poisoned instruction as `invalid func unknown#195896080`; the number is libbpf's.
pub const POISON: i32 = 0xbad_2310;

/// Why a CO-RE relocation cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// The object's or the kernel's BTF is not valid.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A malformed record.
    #[error("CO-RE relocation of {what} at instruction {at} of {function} is malformed")]
    Record {
        /// The function.
        function: String,
        /// The instruction.
        at: usize,
        /// Type and access.
        what: String,
    },
    /// A kind of relocation that is not supported.
    #[error("CO-RE relocation kind {kind} at instruction {at} of {function} is not supported")]
    Kind {
        /// The function.
        function: String,
        /// The instruction.
        at: usize,
        /// `enum bpf_core_relo_kind`
        kind: u32,
    },
    /// The kernel has several types with the name, with different values for the relocation.
    #[error("the kernel has several types {0} that differ in what the program reads")]
    Ambiguous(String),
    /// An instruction that cannot hold the value, or that reads a field of another size.
    #[error("instruction {at} of {function} cannot be adapted to {what} of this kernel")]
    Instruction {
        /// The function.
        function: String,
        /// The instruction.
        at: usize,
        /// Type and access.
        what: String,
    },
}

/// The kernel's types, functions and variables.
#[derive(Debug)]
pub struct CoreTarget<'t> {
    btf: Btf<'t>,
    candidates: RefCell<TypeCandidates>,
    /// How often a type was looked for by its whole name, and the first one by a hash of kind and name.
    lookups: Cell<u32>,
    by_name: OnceCell<HashMap<u64, u32>>,
    symbols: OnceCell<Symbols>,
    /// The modules of the running kernel; none if the types are those of a file.
    modules: Modules,
}

/// Type ids by essential name and kind.
type TypeCandidates = HashMap<(Vec<u8>, u8), Rc<[u32]>>;

impl<'t> CoreTarget<'t> {
    /// The target types, from the bytes of `/sys/kernel/btf/vmlinux` or of a file in that format.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, BtfError> {
        Ok(Self {
            btf: Btf::parse(bytes)?,
            candidates: RefCell::default(),
            lookups: Cell::new(0),
            by_name: OnceCell::new(),
            symbols: OnceCell::new(),
            modules: Modules::none(),
        })
    }

    /// The types of the running kernel, and those of its modules where the kernel itself has no type of a name.
    pub fn running(bytes: &'t [u8]) -> Result<Self, BtfError> {
        Ok(Self { modules: Modules::running(), ..Self::parse(bytes)? })
    }

    /// The kernel's own types.
    pub fn btf(&self) -> &Btf<'t> {
        &self.btf
    }

    /// The first type with a name and kind: of the kernel, or of a module.
    pub fn find(&self, kind: BtfKind, name: &str) -> Option<KernelType> {
        let own = self.named(kind, name).map(|id| KernelType { id, module: None });
        own.or_else(|| {
            self.modules.find(&self.btf, |module, btf| {
                btf.named(kind, name).map(|ty| KernelType { id: ty.id, module: Some(module.to_owned()) })
            })
        })
    }

    /// The id of the kernel's own first type with a name and kind. A search costs a millisecond or two; making the index
    /// costs some of them, and pays off for objects that refer to many functions.
    fn named(&self, kind: BtfKind, name: &str) -> Option<u32> {
        const SEARCHES: u32 = 4;
        self.lookups.set(self.lookups.get().saturating_add(1));
        if self.lookups.get() <= SEARCHES {
            return self.btf.named(kind, name).map(|ty| ty.id);
        }
        let key = |kind: BtfKind, name: &[u8]| {
            let mut hasher = DefaultHasher::new();
            (kind as u8, name).hash(&mut hasher);
            hasher.finish()
        };
        let by_name = self.by_name.get_or_init(|| {
            let mut by_name = HashMap::new();
            for ty in self.btf.types() {
                by_name.entry(key(ty.kind, self.btf.string_bytes(ty.name_offset))).or_insert(ty.id);
            }
            by_name
        });
        let ty = self.btf.ty(*by_name.get(&key(kind, name.as_bytes()))?).ok()?;
        let same = ty.kind == kind && self.btf.string_bytes(ty.name_offset) == name.as_bytes();
        // Two names with one hash are possible, but not likely.
        if same { Some(ty.id) } else { self.btf.named(kind, name).map(|ty| ty.id) }
    }

    /// True if a variable of the kernel has the type that the object declares for it.
    pub fn variable_fits(&self, local: &Btf<'_>, declared: u32, variable: &KernelType) -> Result<bool, CoreError> {
        let fits = |btf: &Btf<'_>| {
            let ty = btf.ty(variable.id).map_err(SpecError::Btf)?;
            types_fit(local, declared, btf, ty.size_or_type, 0)
        };
        let fits = match &variable.module {
            None => Some(fits(&self.btf)),
            Some(name) => self.modules.find(&self.btf, |module, btf| (module == name).then(|| fits(btf))),
        };
        match fits {
            Some(Ok(fits)) => Ok(fits),
            Some(Err(SpecError::Btf(error))) => Err(error.into()),
            Some(Err(SpecError::Access)) | None => Ok(false),
        }
    }

    /// The address of a symbol of the running kernel; None if it has none, or if the types are those of a file.
    pub fn address(&self, name: &str) -> Result<Option<u64>, SymbolError> {
        if !self.modules.is_running() {
            return Ok(None);
        }
        let symbols = match self.symbols.get() {
            Some(symbols) => symbols,
            None => {
                let read = Symbols::read()
                    .map_err(|error| SymbolError::Unreadable { name: name.to_owned(), why: error.to_string() })?;
                self.symbols.get_or_init(|| read)
            }
        };
        symbols.address(name)
    }

    /// Adapts one function's instructions, and returns the names that this kernel does not have.
    pub fn relocate(&self, object: &BpfObject<'_>, function: &Function, code: &mut [Insn]) -> Result<Vec<String>, CoreError> {
        let Some((btf, _)) = &object.btf else { return Ok(Vec::new()) };
        let Some(records) = object.ext.section(object.elf.sections[function.section].name) else { return Ok(Vec::new()) };
        let mut missing = Vec::new();
        let first = records.core.partition_point(|r| (r.offset as usize) < function.start * insn::SIZE);
        for record in &records.core[first..] {
            let at = record.offset as usize / insn::SIZE;
            let Some(n) = at.checked_sub(function.start).filter(|n| *n < function.len) else { break };
            let relocation = CoreRelocation { target: self, local: btf, record, function, at: n };
            if let Some(what) = relocation.apply(code)? {
                missing.push(what);
            }
        }
        Ok(missing)
    }

    /// The kernel types that a local type with this name and kind may correspond to.
    fn candidates(&self, name: &[u8], kind: BtfKind) -> Rc<[u32]> {
        let name = essential(name);
        let key = (name.to_vec(), kind as u8);
        if let Some(found) = self.candidates.borrow().get(&key) {
            return Rc::clone(found);
        }
        let found: Rc<[u32]> = candidates_in(&self.btf, name, kind).into();
        self.candidates.borrow_mut().insert(key, Rc::clone(&found));
        found
    }
}

/// The types with a name and a kind.
fn candidates_in(btf: &Btf<'_>, name: &[u8], kind: BtfKind) -> Vec<u32> {
    let named = |ty: &Type<'_>| same_kind(ty.kind, kind) && essential(btf.string_bytes(ty.name_offset)) == name;
    btf.types().filter(named).map(|ty| ty.id).collect()
}

struct CoreRelocation<'r, 't> {
    target: &'r CoreTarget<'t>,
    local: &'r Btf<'r>,
    record: &'r CoreRecord,
    function: &'r Function,
    at: usize,
}

impl CoreRelocation<'_, '_> {
    /// Patches the instruction; returns the name that the kernel does not have.
    fn apply(&self, code: &mut [Insn]) -> Result<Option<String>, CoreError> {
        let kind = self.record.kind;
        let ask = CoreQuestion::from_raw(kind).ok_or_else(|| CoreError::Kind {
            function: self.function.name.clone(),
            at: self.at,
            kind,
        })?;
        let text = self.local.string(self.record.access)?;
        let parts = core_spec::access(text).ok_or_else(|| self.malformed())?;
        let spec = self.spec(|| match ask {
            ask if ask.of_field() => field_spec(self.local, self.record.ty, &parts),
            ask if ask.of_value() => enum_step(self.local, self.record.ty, &parts).map(|step| MemberPath {
                root: self.record.ty,
                steps: vec![step],
                bits: 0,
            }),
            _ if parts == [0] => Ok(MemberPath { root: self.record.ty, steps: Vec::new(), bits: 0 }),
            _ => Err(SpecError::Access),
        })?;
        let own = self.spec(|| answer(ask, self.local, Some(&spec)))?;
        let found = match ask {
            CoreQuestion::LocalId => Some(CoreAnswer { value: u64::from(self.record.ty), field: None }),
            _ => self.ask_kernel(ask, &spec)?,
        };
        match found {
            Some(found) => self.patch(code, own, found).map(|()| None),
            None => {
                self.poison(code);
                Ok(Some(self.what()))
            }
        }
    }

    /// The value for the kernel's types; None if they have none.
    fn ask_kernel(&self, ask: CoreQuestion, spec: &MemberPath<'_>) -> Result<Option<CoreAnswer>, CoreError> {
        let (local, target) = (self.local, &self.target.btf);
        let root = local.ty(self.record.ty)?;
        let name = local.string_bytes(root.name_offset);
        if name.is_empty() {
            return Err(self.malformed());
        }
        let candidates = self.target.candidates(name, root.kind);
        if candidates.is_empty() {
            let of_module = |_: &str, btf: &Btf<'_>| {
                let candidates = candidates_in(btf, essential(name), root.kind);
                (!candidates.is_empty()).then(|| self.ask_types(ask, spec, btf, &candidates))
            };
            if let Some(found) = self.target.modules.find(target, of_module) {
                return found;
            }
        }
        self.ask_types(ask, spec, target, &candidates)
    }

    /// The value for those of the candidates that match; all must give the same one.
    fn ask_types(
        &self,
        ask: CoreQuestion,
        spec: &MemberPath<'_>,
        target: &Btf<'_>,
        candidates: &[u32],
    ) -> Result<Option<CoreAnswer>, CoreError> {
        let local = self.local;
        let mut agreed: Option<(u64, Option<CoreAnswer>)> = None;
        for candidate in candidates {
            let matched =
                self.spec(|| match ask {
                    ask if ask.of_field() => match_fields(local, spec, target, *candidate),
                    ask if ask.of_value() => match_value(spec, target, *candidate),
                    CoreQuestion::TypeMatches => Ok(types_match(local, self.record.ty, target, *candidate)?
                        .then(|| MemberPath { root: *candidate, steps: Vec::new(), bits: 0 })),
                    _ => Ok(types_fit(local, self.record.ty, target, *candidate, 0)?.then(|| MemberPath {
                        root: *candidate,
                        steps: Vec::new(),
                        bits: 0,
                    })),
                })?;
            let Some(matched) = matched else { continue };
            let found = self.spec(|| answer(ask, target, Some(&matched)))?;
            // A kernel may have a type twice, for example in a module: harmless if both give the same value.
            let same =
                agreed.is_none_or(|(bits, before)| bits == matched.bits && before.map(|a| a.value) == found.map(|a| a.value));
            if !same {
                let name = local.ty(self.record.ty).map(|root| local.string_bytes(root.name_offset)).unwrap_or_default();
                return Err(CoreError::Ambiguous(String::from_utf8_lossy(name).into_owned()));
            }
            agreed.get_or_insert((matched.bits, found));
        }
        match agreed {
            Some((_, found)) => Ok(found),
            None => self.spec(|| answer(ask, target, None)),
        }
    }

    fn patch(&self, code: &mut [Insn], own: Option<CoreAnswer>, found: CoreAnswer) -> Result<(), CoreError> {
        const LD: u8 = 0;
        const LDX: u8 = 1;
        const ST: u8 = 2;
        const STX: u8 = 3;
        const ALU: u8 = 4;
        const ALU64: u8 = 7;
        const REGISTER: u8 = 8;
        let refuse = || CoreError::Instruction { function: self.function.name.clone(), at: self.at, what: self.what() };
        let insn = code.get(self.at).copied().ok_or_else(refuse)?;
        let low = (found.value & 0xffff_ffff) as u32;
        match insn.class() {
            ALU | ALU64 if insn.code & REGISTER == 0 => code[self.at].imm = low.cast_signed(),
            LDX | ST | STX => {
                code[self.at].off = i16::try_from(found.value).map_err(|_| refuse())?;
                let sizes = (own.and_then(|a| a.field), found.field);
                if let (Some((before, own_ty)), Some((now, ty))) = sizes
                    && before != now
                {
                    if !self.may_resize(own_ty, ty)? {
                        return Err(refuse());
                    }
                    code[self.at].code = resized(insn.code, now).ok_or_else(refuse)?;
                }
            }
            LD if insn.is_wide() && self.at + 1 < self.function.len => {
                code[self.at].imm = low.cast_signed();
                code[self.at + 1].imm = ((found.value >> 32) as u32).cast_signed();
            }
            _ => return Err(refuse()),
        }
        Ok(())
    }

    /// The width of a load may change if nothing is sign-extended: pointers and unsigned integers.
    fn may_resize(&self, own: u32, other: u32) -> Result<bool, CoreError> {
        let (own, other) = (self.local.peel(own)?, self.target.btf.peel(other)?);
        let unsigned = |int: Option<(u8, u8, u8)>| int.is_some_and(|(encoding, ..)| encoding & 1 == 0);
        Ok(own.kind == BtfKind::Ptr && other.kind == BtfKind::Ptr || unsigned(own.int()) && unsigned(other.int()))
    }

    fn poison(&self, code: &mut [Insn]) {
        let wide = code.get(self.at).is_some_and(|insn| insn.is_wide());
        let len = if wide { 2 } else { 1 };
        for insn in code.iter_mut().take(self.function.len).skip(self.at).take(len) {
            *insn = Insn::poison(POISON);
        }
    }

    fn spec<T>(&self, f: impl FnOnce() -> Result<T, SpecError>) -> Result<T, CoreError> {
        f().map_err(|error| match error {
            SpecError::Btf(error) => CoreError::Btf(error),
            SpecError::Access => self.malformed(),
        })
    }

    fn malformed(&self) -> CoreError {
        CoreError::Record { function: self.function.name.clone(), at: self.at, what: self.what() }
    }

    /// The type and the members of the path, as in C: `task_struct.cred`.
    fn what(&self) -> String {
        let root = self.local.ty(self.record.ty).map(|ty| self.local.string_bytes(ty.name_offset)).unwrap_or_default();
        let mut text = String::from_utf8_lossy(root).into_owned();
        let parts = self.local.string(self.record.access).ok().and_then(core_spec::access).unwrap_or_default();
        let steps = match enum_step(self.local, self.record.ty, &parts) {
            Ok(step) => vec![step],
            Err(_) => field_spec(self.local, self.record.ty, &parts).map(|spec| spec.steps).unwrap_or_default(),
        };
        for name in steps.iter().filter_map(|step| step.name) {
            text.push('.');
            text.push_str(&String::from_utf8_lossy(name));
        }
        text
    }
}

fn match_value<'t>(spec: &MemberPath<'_>, target: &Btf<'t>, candidate: u32) -> Result<Option<MemberPath<'t>>, SpecError> {
    let wanted = spec.steps.first().and_then(|step| step.name).ok_or(SpecError::Access)?;
    let ty = target.peel(candidate)?;
    let found = (0..).zip(ty.values()).find(|(_, (name, _))| essential(target.string_bytes(*name)) == essential(wanted));
    Ok(found.map(|(index, (name, _))| MemberPath {
        root: candidate,
        steps: vec![core_spec::MemberStep { ty: ty.id, index, name: Some(target.string_bytes(name)) }],
        bits: 0,
    }))
}

/// The operation with another width of its load or store.
fn resized(code: u8, bytes: u64) -> Option<u8> {
    const WORD: u8 = 0x00;
    const HALF: u8 = 0x08;
    const BYTE: u8 = 0x10;
    const DOUBLE: u8 = 0x18;
    let width = match bytes {
        1 => BYTE,
        2 => HALF,
        4 => WORD,
        8 => DOUBLE,
        _ => return None,
    };
    Some(code & !0x18 | width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_a_search_and_by_the_index() {
        let object = BpfObject::parse(include_bytes!("../../tests/bpf/kernel_calls.bpf.o")).unwrap();
        let types = object.elf.section(".BTF").unwrap().1.data.to_vec();
        let target = CoreTarget::parse(&types).unwrap();
        let names: Vec<_> = target.btf().types().map(|ty| (ty.kind, target.btf().string(ty.name_offset).unwrap())).collect();
        assert!(names.len() > 8);
        for (kind, name) in names {
            let searched = target.btf().named(kind, name).map(|ty| ty.id);
            assert_eq!(target.find(kind, name).map(|found| found.id), searched, "{name}");
            assert_eq!(target.find(kind, "no such type"), None);
        }
        assert!(target.by_name.get().is_some());
    }
}
