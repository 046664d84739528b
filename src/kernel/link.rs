//! Links one program of an object: its function and every function that it calls, as one sequence of instructions, with
//! the instructions that need the fd of a map listed. Pure: no system calls.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::kernel::btf::BtfKind;
use crate::kernel::core_relo::{CoreError, CoreTarget, POISON};
use crate::kernel::core_spec::essential;
use crate::kernel::elf::{ElfRelocation, Symbol};
use crate::kernel::externs::Extern;
use crate::kernel::insn::{self, Insn, PSEUDO_FUNC, PSEUDO_KFUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_VARIABLE};
use crate::kernel::kallsyms::SymbolError;
use crate::kernel::map::CONFIGURATION;
use crate::kernel::modules::KernelType;
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::object_error::ObjectError;

/// The kernel's limit: BPF_COMPLEXITY_LIMIT_INSNS of include/linux/bpf.h.
const MAX_INSTRUCTIONS: usize = 1_000_000;

/// Why a program cannot be linked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The object is not valid.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A symbol that only the kernel or another object could define.
    #[error("it uses {0}, which the object only declares, and its BTF does not say whether as __ksym or as __kconfig")]
    Extern(String),
    /// A kernel function that the running kernel does not have.
    #[error("it calls {0}, which this kernel does not have; declare it __weak and ask bpf_ksym_exists() first")]
    NoKernelFunction(String),
    /// A kernel variable or symbol that the running kernel does not have.
    #[error("it uses {0}, which this kernel does not have; declare it __weak to read 0 as its address then")]
    NoKernelVariable(String),
    /// A kernel variable of another type than the object declares.
    #[error("it declares {0} with another type than this kernel has")]
    VariableType(String),
    /// The address of a symbol cannot be had.
    #[error(transparent)]
    Symbol(#[from] SymbolError),
    /// A reference to a symbol that is neither a map, nor data, nor a function.
    #[error("instruction {at} of {function} refers to {target:?}, which is neither a map nor data nor a function")]
    Reference {
        /// The function.
        function: String,
        /// The index of the instruction.
        at: usize,
        /// The symbol.
        target: String,
    },
    /// A call to an address where no function starts.
    #[error("instruction {at} of {function} calls into section {section:?}, where no function starts at instruction {start}")]
    NoFunction {
        /// The caller.
        function: String,
        /// The index of the instruction.
        at: usize,
        /// The section of the call's target.
        section: String,
        /// The target, in instructions.
        start: i64,
    },
    /// A constant or call that denotes a file descriptor or a kernel id without a symbol. Compilers leave these to the
    /// loader; an object that contains one would use what the loading process has open.
    #[error("instruction {at} of {function} contains the number of a file descriptor or kernel id")]
    Descriptor {
        /// The function.
        function: String,
        /// The index of the instruction.
        at: usize,
    },
    /// An initial element of a map that is neither a program nor a map of the object.
    #[error("map {map} has the initial element {target:?}, which is neither a program nor a map of the object")]
    Element {
        /// The map.
        map: String,
        /// The symbol.
        target: String,
    },
    /// More programs in maps than are loaded.
    #[error("its maps have more than 256 programs as initial elements")]
    TooManyElements,
    /// More instructions than the kernel accepts.
    #[error("it has more than a million instructions")]
    TooLong,
    /// A CO-RE relocation that cannot be resolved.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// A program, complete except for the fds of its maps.
#[derive(Debug, Default)]
pub struct Linked {
    /// The instructions.
    pub instructions: Vec<Insn>,
    /// Instructions that need the fd of a map: index of the instruction, index of the map in [`BpfObject::maps`].
    pub maps: Vec<(usize, usize)>,
    /// Where each function starts, ascending.
    pub starts: Vec<usize>,
    /// `struct bpf_func_info` of each function; empty unless every function has one.
    pub functions: Vec<u8>,
    /// `struct bpf_line_info`; empty unless every function starts with one.
    pub lines: Vec<u8>,
    /// `struct bpf_core_relo` of each CO-RE relocation; empty if the program was linked with the kernel's types.
    pub core: Vec<u8>,
    /// Kernel types that the program uses and this kernel does not have. The instructions that need them are poisoned;
    /// the verifier refuses them if they are reachable.
    pub missing: Vec<String>,
    /// What instructions refer to in the kernel, by instruction.
    pub references: BTreeMap<usize, KernelReference>,
    /// The modules that functions and variables are in. Offset n+1 of a call means the n-th.
    pub modules: Vec<String>,
    /// Constants that need the descriptor of a module's BTF: index of the instruction, index in `modules`.
    pub of_modules: Vec<(usize, usize)>,
}

/// A function, variable or address of the kernel that an instruction has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReference {
    /// Its name.
    pub name: String,
    /// True for a function.
    pub function: bool,
    /// True if it is in a module.
    pub in_module: bool,
}

impl Linked {
    /// Size of `struct bpf_func_info` in bytes.
    pub const FUNCTION_RECORD: usize = 8;
    /// Size of `struct bpf_line_info` in bytes.
    pub const LINE_RECORD: usize = 16;
    /// Size of `struct bpf_core_relo` in bytes.
    pub const CORE_RECORD: usize = 16;

    /// The maps that the program uses, as indices into [`BpfObject::maps`].
    pub fn used_maps(&self) -> BTreeSet<usize> {
        self.maps.iter().map(|(_, map)| *map).collect()
    }
}

/// Links the program that starts with `entry`. `target` are the running kernel's types, for CO-RE and for the functions
/// and variables of the kernel that the object declares (`extern … __ksym`); without it CO-RE relocations are left
/// unresolved, so that an object can be checked independently of the kernel, and such declarations are refused.
///
/// If the kernel does not have a weak function, its address is 0 and a call of it is poisoned, as libbpf does
/// (tools/lib/bpf/libbpf.c, `poison_kfunc_call`). The address of one that it has is 1: kernels before 6.4 accept no real
/// one, and programs only compare it with 0.
pub fn link(object: &BpfObject<'_>, entry: &Function, target: Option<&CoreTarget<'_>>) -> Result<Linked, LinkError> {
    let mut linker = Linker {
        object,
        target,
        sections: HashMap::new(),
        maps_by_place: maps_by_place(object),
        placed: HashMap::new(),
        order: Vec::new(),
        calls: Vec::new(),
        linked: Linked::default(),
    };
    linker.place(entry)?;
    // Placing a function may add others to `order`, which grows during the iteration.
    let mut next = 0;
    while let Some((function, start)) = linker.order.get(next).copied() {
        linker.resolve(function, start)?;
        next += 1;
    }
    linker.finish()
}

struct LinkedCode {
    instructions: Vec<Insn>,
    relocations: BTreeMap<usize, ElfRelocation>,
}

struct Linker<'o, 'a> {
    object: &'o BpfObject<'a>,
    target: Option<&'o CoreTarget<'o>>,
    sections: HashMap<usize, LinkedCode>,
    maps_by_place: HashMap<(usize, u64), usize>,
    placed: HashMap<(usize, usize), usize>,
    order: Vec<(&'o Function, usize)>,
    calls: Vec<(usize, usize)>,
    linked: Linked,
}

/// Maps by section and offset; data sections match any offset.
fn maps_by_place(object: &BpfObject<'_>) -> HashMap<(usize, u64), usize> {
    object.maps.iter().enumerate().map(|(n, map)| ((map.section, map.offset), n)).collect()
}

impl<'o> Linker<'o, '_> {
    /// Appends a function's instructions once, and returns where it starts.
    fn place(&mut self, function: &'o Function) -> Result<usize, LinkError> {
        if let Some(start) = self.placed.get(&(function.section, function.start)) {
            return Ok(*start);
        }
        if !self.sections.contains_key(&function.section) {
            let code = LinkedCode {
                instructions: self.object.instructions(function.section),
                relocations: self.object.relocations(function.section)?,
            };
            self.sections.insert(function.section, code);
        }
        let code = &self.sections[&function.section];
        let start = self.linked.instructions.len();
        if start + function.len > MAX_INSTRUCTIONS {
            return Err(LinkError::TooLong);
        }
        // Object::parse checked that functions lie in their sections.
        self.linked.instructions.extend(&code.instructions[function.start..function.start + function.len]);
        if let Some(target) = self.target {
            self.linked.missing.extend(target.relocate(self.object, function, &mut self.linked.instructions[start..])?);
        }
        self.placed.insert((function.section, function.start), start);
        self.order.push((function, start));
        Ok(start)
    }

    /// Resolves the references of one placed function.
    fn resolve(&mut self, function: &'o Function, start: usize) -> Result<(), LinkError> {
        for n in 0..function.len {
            let relocation = self.sections[&function.section].relocations.get(&(function.start + n)).copied();
            let insn = self.linked.instructions[start + n];
            match relocation {
                Some(relocation) if insn.is_wide() => self.constant(function, start, n, relocation)?,
                Some(relocation) if insn.code == insn::CALL => {
                    let symbol = self.object.symbol(relocation);
                    let Some(section) = symbol.section else {
                        self.kernel_call(start + n, &symbol)?;
                        continue;
                    };
                    if !insn.is_call() {
                        return Err(self.reference(function, n, relocation));
                    }
                    // The compiler writes -1 for a function's own symbol, otherwise the position in the section.
                    let callee = places(symbol.value) + i64::from(insn.imm) + 1;
                    self.call(function, (start, n), section, callee)?;
                }
                Some(relocation) => return Err(self.reference(function, n, relocation)),
                None if insn.is_call() => {
                    let callee = function.start as i64 + n as i64 + i64::from(insn.imm) + 1;
                    self.call(function, (start, n), function.section, callee)?;
                }
                None if (insn.is_wide() || insn.code == insn::CALL) && insn.src() != 0 => {
                    return Err(LinkError::Descriptor { function: function.name.clone(), at: n });
                }
                None => {}
            }
        }
        Ok(())
    }

    fn constant(&mut self, function: &'o Function, start: usize, n: usize, relocation: ElfRelocation) -> Result<(), LinkError> {
        let symbol = self.object.symbol(relocation);
        let at = start + n;
        if n + 1 >= function.len {
            return Err(self.reference(function, n, relocation));
        }
        let Some(section) = symbol.section else { return self.declared(function, (start, n), &symbol) };
        if self.object.elf.sections[section].executable() {
            let bytes = i64::from(self.linked.instructions[at].imm);
            let callee = places(symbol.value) + bytes / insn::SIZE as i64;
            self.linked.instructions[at] = self.linked.instructions[at].with_src(PSEUDO_FUNC);
            return self.call(function, (start, n), section, callee);
        }
        let data = self.maps_by_place.get(&(section, 0)).filter(|map| self.object.maps[**map].data.is_some());
        if let Some(map) = data.copied() {
            let offset = u32::try_from(symbol.value).ok().map(u32::cast_signed);
            let offset = offset.and_then(|base| self.linked.instructions[at].imm.checked_add(base));
            let Some(offset) = offset else { return Err(self.reference(function, n, relocation)) };
            self.linked.instructions[at] = self.linked.instructions[at].with_src(PSEUDO_MAP_VALUE);
            self.linked.instructions[at + 1].imm = offset;
            self.linked.maps.push((at, map));
            return Ok(());
        }
        let Some(map) = self.maps_by_place.get(&(section, symbol.value)).copied() else {
            return Err(self.reference(function, n, relocation));
        };
        self.linked.instructions[at] = self.linked.instructions[at].with_src(PSEUDO_MAP_FD);
        self.linked.instructions[at + 1].imm = 0;
        self.linked.maps.push((at, map));
        Ok(())
    }

    /// A constant that stands for what the object only declares.
    fn declared(&mut self, function: &Function, (start, n): (usize, usize), symbol: &Symbol<'_>) -> Result<(), LinkError> {
        let at = start + n;
        let refused = || LinkError::Extern(symbol.name.to_owned());
        let (source, value) = match self.object.externs.get(symbol.name).ok_or_else(refused)? {
            Extern::Configuration(place) => {
                let map = self.object.maps.iter().position(|map| map.name == CONFIGURATION).ok_or_else(refused)?;
                let offset = u32::try_from(self.linked.instructions[at].imm).ok().and_then(|base| base.checked_add(place));
                let offset = offset.ok_or_else(|| LinkError::Reference {
                    function: function.name.clone(),
                    at: n,
                    target: symbol.name.to_owned(),
                })?;
                self.linked.maps.push((at, map));
                (PSEUDO_MAP_VALUE, u64::from(offset) << 32)
            }
            Extern::Function => (0, u64::from(self.kernel_type(BtfKind::Func, symbol)?.is_some())),
            Extern::Variable(declared) => match self.kernel_type(BtfKind::Var, symbol)? {
                Some(found) => {
                    let (Some(target), Some((btf, _))) = (self.target, &self.object.btf) else { return Err(refused()) };
                    if !target.variable_fits(btf, declared, &found)? {
                        return Err(LinkError::VariableType(symbol.name.to_owned()));
                    }
                    self.refer(at, symbol, false, found.module.is_some());
                    if let Some(module) = found.module {
                        let module = self.module(module);
                        self.linked.of_modules.push((at, module));
                    }
                    (PSEUDO_VARIABLE, u64::from(found.id))
                }
                None => (0, 0),
            },
            Extern::Address => match self.target.ok_or_else(refused)?.address(symbol.name)? {
                Some(address) => {
                    self.refer(at, symbol, false, false);
                    (0, address)
                }
                None if symbol.weak => (0, 0),
                None => return Err(LinkError::NoKernelVariable(symbol.name.to_owned())),
            },
        };
        let code = &mut self.linked.instructions;
        code[at] = code[at].with_src(source);
        if source != PSEUDO_MAP_VALUE {
            code[at].imm = (value as u32).cast_signed();
        }
        code[at + 1].imm = ((value >> 32) as u32).cast_signed();
        Ok(())
    }

    /// What the kernel has under a declared name; None if it is weak and the kernel does not have it.
    fn kernel_type(&self, kind: BtfKind, symbol: &Symbol<'_>) -> Result<Option<KernelType>, LinkError> {
        let target = self.target.ok_or_else(|| LinkError::Extern(symbol.name.to_owned()))?;
        // A name can have the suffix of a flavour, `___x`, so that an object can declare a function twice.
        let name = String::from_utf8_lossy(essential(symbol.name.as_bytes()));
        match target.find(kind, &name) {
            None if symbol.weak => Ok(None),
            None if kind == BtfKind::Func => Err(LinkError::NoKernelFunction(symbol.name.to_owned())),
            None => Err(LinkError::NoKernelVariable(symbol.name.to_owned())),
            found => Ok(found),
        }
    }

    fn kernel_call(&mut self, at: usize, symbol: &Symbol<'_>) -> Result<(), LinkError> {
        if self.object.externs.get(symbol.name) != Some(Extern::Function) {
            return Err(LinkError::Extern(symbol.name.to_owned()));
        }
        match self.kernel_type(BtfKind::Func, symbol)? {
            Some(found) => {
                self.refer(at, symbol, true, found.module.is_some());
                let mut call = self.linked.instructions[at].with_src(PSEUDO_KFUNC);
                call.imm = found.id.cast_signed();
                // 0 is the kernel itself; a module is an index in `fd_array`.
                call.off = match found.module {
                    None => 0,
                    Some(module) => i16::try_from(self.module(module) + 1).map_err(|_| LinkError::TooLong)?,
                };
                self.linked.instructions[at] = call;
            }
            None => {
                self.linked.missing.push(symbol.name.to_owned());
                self.linked.instructions[at] = Insn::poison(POISON);
            }
        }
        Ok(())
    }

    fn refer(&mut self, at: usize, symbol: &Symbol<'_>, function: bool, in_module: bool) {
        let name = symbol.name.to_owned();
        self.linked.references.insert(at, KernelReference { name, function, in_module });
    }

    /// The index of a module among those that the program refers to.
    fn module(&mut self, name: String) -> usize {
        let known = self.linked.modules.iter().position(|module| *module == name);
        known.unwrap_or_else(|| {
            self.linked.modules.push(name);
            self.linked.modules.len() - 1
        })
    }

    fn call(&mut self, caller: &'o Function, (start, n): (usize, usize), section: usize, callee: i64) -> Result<(), LinkError> {
        let object = self.object;
        let found = usize::try_from(callee).ok().and_then(|callee| object.functions.get(&(section, callee)));
        let Some(found) = found else {
            return Err(LinkError::NoFunction {
                function: caller.name.clone(),
                at: n,
                section: object.elf.sections[section].name.to_owned(),
                start: callee,
            });
        };
        let target = self.place(found)?;
        self.calls.push((start + n, target));
        Ok(())
    }

    fn reference(&self, function: &Function, at: usize, relocation: ElfRelocation) -> LinkError {
        let symbol = self.object.symbol(relocation);
        let section = symbol.section.map_or("", |section| self.object.elf.sections[section].name);
        let target = if symbol.name.is_empty() { section } else { symbol.name };
        LinkError::Reference { function: function.name.clone(), at, target: target.to_owned() }
    }

    fn finish(mut self) -> Result<Linked, LinkError> {
        for (at, target) in &self.calls {
            // MAX_INSTRUCTIONS keeps both far below i32::MAX.
            let distance = *target as i64 - *at as i64 - 1;
            self.linked.instructions[*at].imm = i32::try_from(distance).map_err(|_| LinkError::TooLong)?;
        }
        let (functions, lines) = (self.function_records(), self.line_records());
        // The kernel refuses line info without function info, and function info that does not cover every function.
        let lines = if functions.is_some() { lines.unwrap_or_default() } else { Vec::new() };
        self.linked.functions = functions.unwrap_or_default();
        self.linked.lines = lines;
        self.linked.starts = self.order.iter().map(|(_, start)| *start).collect();
        if self.target.is_none() {
            self.linked.core = self.core_records();
        }
        Ok(self.linked)
    }

    fn function_records(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.order.len() * Linked::FUNCTION_RECORD);
        for (function, start) in &self.order {
            let records = &self.records(function)?.functions;
            let offset = u32::try_from(function.start * insn::SIZE).ok()?;
            let at = records.binary_search_by_key(&offset, |r| r.offset).ok()?;
            put(&mut bytes, [u32::try_from(*start).ok()?, records[at].ty]);
        }
        Some(bytes)
    }

    fn line_records(&self) -> Option<Vec<u8>> {
        let (btf, _) = self.object.btf.as_ref()?;
        let mut bytes = Vec::new();
        for (function, start) in &self.order {
            let records = &self.records(function)?.lines;
            let first = records.partition_point(|r| (r.offset as usize) < function.start * insn::SIZE);
            let mut last = None;
            for record in &records[first..] {
                let at = record.offset as usize / insn::SIZE;
                if at >= function.start + function.len {
                    break;
                }
                if last.is_none() && at != function.start {
                    return None;
                }
                // One record for each instruction, with valid strings: the kernel requires both.
                if last == Some(at) || !btf.has_string(record.file) || !btf.has_string(record.line) {
                    continue;
                }
                last = Some(at);
                let at = u32::try_from(start + at - function.start).ok()?;
                put(&mut bytes, [at, record.file, record.line, record.line_column]);
            }
            last?;
        }
        Some(bytes)
    }

    fn core_records(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (function, start) in &self.order {
            let records = self.records(function).map_or(&[] as &[_], |records| &records.core);
            for record in records {
                let at = (record.offset as usize / insn::SIZE).checked_sub(function.start).filter(|n| *n < function.len);
                // MAX_INSTRUCTIONS keeps it far below u32::MAX.
                if let Some(offset) = at.and_then(|n| u32::try_from((start + n) * insn::SIZE).ok()) {
                    put(&mut bytes, [offset, record.ty, record.access, record.kind]);
                }
            }
        }
        bytes
    }

    fn records(&self, function: &Function) -> Option<&'o crate::kernel::btf_ext::SectionRecords> {
        self.object.ext.section(self.object.elf.sections[function.section].name)
    }
}

/// A byte offset in a section as an instruction index. Symbols of functions are aligned to instructions
/// (Object::parse); other offsets are rounded down and then match no function.
fn places(bytes: u64) -> i64 {
    i64::try_from(bytes / insn::SIZE as u64).unwrap_or(i64::MAX / 2)
}

fn put<const N: usize>(bytes: &mut Vec<u8>, words: [u32; N]) {
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
}
