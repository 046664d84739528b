//! A BPF object as its parts: programs, functions, maps, variables. Everything is checked on reading, so that loading
//! works with valid indices and ranges.
//!
//! The conventions are libbpf's: programs are the functions of executable sections other than `.text`; maps are
//! declared in `.maps` by BTF (or in `maps` by structs, as old compilers and aya write them); `.rodata`, `.data` and
//! `.bss` are maps with one value; and `license` is passed to the kernel.

use std::collections::{BTreeMap, HashMap};

use crate::kernel::btf::{Btf, BtfError, BtfKind, Type};
use crate::kernel::btf_ext::BtfExt;
use crate::kernel::elf::{Elf, ElfError, ElfRelocation, SHT_NOBITS, SHT_PROGBITS, Symbol, SymbolKind};
use crate::kernel::externs::Externs;
use crate::kernel::insn::{self, Insn};
use crate::kernel::map::{self, MapDefinition, is_data_section, is_read_only};
use crate::kernel::object_error::ObjectError;
use crate::kernel::program_signature::ProgramSignatures;
use crate::kernel::section;
use crate::model::object::{GlobalFacts, GlobalType, MapFacts, ObjectFacts, ProgramFacts};

/// A function of an executable section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its section.
    pub section: usize,
    /// First instruction in the section.
    pub start: usize,
    /// Number of instructions, at least one.
    pub len: usize,
    /// True for a function that can be attached: in a section other than `.text` and, if it is `static`, in one whose
    /// name says so. libbpf refuses `static` programs; aya, and with it bpfman, loads them.
    pub program: bool,
}

/// A variable in a data section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// What a request may know about the variable.
    pub facts: GlobalFacts,
    /// Its section.
    pub section: usize,
    /// Byte offset in the section.
    pub offset: usize,
}

/// A BPF object, borrowed from its bytes.
#[derive(Debug)]
pub struct BpfObject<'a> {
    /// The file.
    pub elf: Elf<'a>,
    /// Its types and their bytes; None if it has no BTF.
    pub btf: Option<(Btf<'a>, &'a [u8])>,
    /// Functions, lines and CO-RE relocations by section.
    pub ext: BtfExt<'a>,
    /// The licence for the kernel; empty if the object has none, which is not GPL compatible.
    pub license: &'a str,
    /// Functions by section and first instruction.
    pub functions: BTreeMap<(usize, usize), Function>,
    /// Maps, data sections last.
    pub maps: Vec<MapDefinition<'a>>,
    /// Variables of the data sections.
    pub variables: Vec<Variable>,
    /// What it only declares.
    pub externs: Externs<'a>,
}

impl<'a> BpfObject<'a> {
    /// Reads an object.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ObjectError> {
        let elf = Elf::parse(bytes)?;
        let content = |name: &str| elf.section(name).map(|(_, s)| s.data).filter(|data| !data.is_empty());
        let btf = content(".BTF").map(|data| Btf::parse(data).map(|btf| (btf, data))).transpose()?;
        let ext = match (&btf, content(".BTF.ext")) {
            (Some((btf, _)), Some(data)) => BtfExt::parse(data, btf)?,
            _ => BtfExt::default(),
        };
        let license = content("license").map_or(Ok(""), license)?;
        let functions = functions(&elf);
        let mut maps = map::declared(&elf, btf.as_ref().map(|(btf, _)| btf))?;
        maps.extend(map::data_sections(&elf, btf.as_ref().map(|(btf, _)| btf))?);
        let variables = variables(&elf, btf.as_ref().map(|(btf, _)| btf))?;
        let mut externs = Externs::default();
        if let Some((btf, _)) = &btf {
            externs = Externs::read(&elf, btf)?;
            maps.extend(externs.map(btf));
        }
        Ok(Self { elf, btf, ext, license, functions, maps, variables, externs })
    }

    /// The facts that planning needs.
    pub fn facts(&self) -> ObjectFacts {
        let programs = self.programs().map(|function| {
            let section = self.elf.sections[function.section].name;
            ProgramFacts { function: function.name.clone(), section: section.to_owned(), declared: section::declared(section) }
        });
        let maps = self.maps.iter().filter(|map| map.wrong.is_none()).map(|map| MapFacts {
            name: map.name.to_owned(),
            map_type: map.shape.map_type,
            key_size: map.shape.key_size,
            value_size: map.shape.value_size,
            max_entries: map.shape.max_entries,
            flags: map.shape.flags,
            data_section: map.data.is_some(),
        });
        // A malformed section is an error of the load.
        let signatures = ProgramSignatures::of(&self.elf).unwrap_or_default();
        ObjectFacts {
            programs: programs.collect(),
            maps: maps.collect(),
            globals: self.variables.iter().map(|v| v.facts.clone()).collect(),
            core: self.ext.has_core(),
            signed: !signatures.signatures.is_empty(),
            executables: signatures.executables,
        }
    }

    /// The programs in the order of the file.
    pub fn programs(&self) -> impl Iterator<Item = &Function> {
        self.functions.values().filter(|f| f.program)
    }

    /// The instructions of a section.
    pub fn instructions(&self, section: usize) -> Vec<Insn> {
        let data = self.elf.sections.get(section).map_or(&[] as &[u8], |s| s.data);
        data.chunks_exact(insn::SIZE).filter_map(|chunk| chunk.first_chunk().copied()).map(Insn::from).collect()
    }

    /// The relocations of a section by instruction; a relocation inside an instruction is an error.
    pub fn relocations(&self, section: usize) -> Result<BTreeMap<usize, ElfRelocation>, ObjectError> {
        let place = |r: ElfRelocation| match usize::try_from(r.offset) {
            Ok(offset) if offset % insn::SIZE == 0 => Ok((offset / insn::SIZE, r)),
            _ => Err(ObjectError::Elf(ElfError::Outside("a relocation"))),
        };
        self.elf.relocations(section).iter().copied().map(place).collect()
    }

    /// The symbol that a relocation refers to.
    pub fn symbol(&self, relocation: ElfRelocation) -> Symbol<'a> {
        // Elf::relocations checks the index.
        self.elf.symbols[relocation.symbol]
    }
}

fn license(data: &[u8]) -> Result<&str, ObjectError> {
    let end = data.iter().position(|b| *b == 0).ok_or(ObjectError::License)?;
    // The kernel reads 128 bytes of it (syscall.c, bpf_prog_load).
    std::str::from_utf8(&data[..end]).ok().filter(|text| text.len() < 128).ok_or(ObjectError::License)
}

fn functions(elf: &Elf<'_>) -> BTreeMap<(usize, usize), Function> {
    let mut found = BTreeMap::new();
    for symbol in elf.symbols.iter().filter(|s| s.kind == SymbolKind::Function) {
        let Some(section) = symbol.section else { continue };
        let code = &elf.sections[section];
        if !code.executable() {
            continue;
        }
        // A compiler's own code in `.text.unlikely` and the like is no program.
        let known = || section::declared(code.name).is_some();
        let program = !code.name.starts_with(".text") && (!symbol.local || known());
        let insns = |bytes: u64| usize::try_from(bytes).ok().filter(|b| b % insn::SIZE == 0).map(|b| b / insn::SIZE);
        let (start, len) = match (insns(symbol.value), insns(symbol.size)) {
            (Some(start), Some(len))
                if len > 0 && start.checked_add(len).is_some_and(|end| end <= code.data.len() / insn::SIZE) =>
            {
                (start, len)
            }
            // A call of it finds no function.
            _ => continue,
        };
        let function = Function { name: symbol.name.to_owned(), section, start, len, program };
        // An alias of a program is the program.
        let entry = found.entry((section, start)).or_insert_with(|| function.clone());
        if program && !entry.program {
            *entry = function;
        }
    }
    found
}

fn variables(elf: &Elf<'_>, btf: Option<&Btf<'_>>) -> Result<Vec<Variable>, ObjectError> {
    let types = btf.map(variable_types).transpose()?;
    let mut found = Vec::new();
    for symbol in elf.symbols.iter().filter(|s| s.kind == SymbolKind::Object && !s.name.is_empty()) {
        let Some(section) = symbol.section else { continue };
        let home = &elf.sections[section];
        if !is_data_section(home.name) || !matches!(home.kind, SHT_PROGBITS | SHT_NOBITS) {
            continue;
        }
        // A variable that lies outside its section, or whose type has another size, cannot be set.
        if symbol.value.checked_add(symbol.size).is_none_or(|end| end > home.size) {
            continue;
        }
        let ty = match (btf, &types) {
            (Some(btf), Some(types)) => match types.get(&(home.name.as_bytes(), symbol.name.as_bytes())) {
                Some(ty) if btf.size(*ty)? == symbol.size => global_type(btf, &btf.peel(*ty)?)?,
                // String literals and compiler temporaries have symbols, but no types.
                _ => continue,
            },
            _ => GlobalType::Opaque,
        };
        let (Ok(size), Ok(offset)) = (u32::try_from(symbol.size), usize::try_from(symbol.value)) else { continue };
        found.push(Variable {
            facts: GlobalFacts { name: symbol.name.to_owned(), size, ty, read_only: is_read_only(home.name) },
            section,
            offset,
        });
    }
    found.sort_by_key(|v| (v.section, v.offset));
    Ok(found)
}

/// Types by the names of the section and of the variable.
type VariableTypes<'a> = HashMap<(&'a [u8], &'a [u8]), u32>;

fn variable_types<'a>(btf: &Btf<'a>) -> Result<VariableTypes<'a>, BtfError> {
    let mut found = HashMap::new();
    for section in btf.types().filter(|ty| ty.kind == BtfKind::DataSec) {
        for entry in section.variables() {
            let var = btf.ty(entry.ty)?;
            if var.kind == BtfKind::Var {
                let names = (btf.string_bytes(section.name_offset), btf.string_bytes(var.name_offset));
                found.insert(names, var.size_or_type);
            }
        }
    }
    Ok(found)
}

fn global_type(btf: &Btf<'_>, ty: &Type<'_>) -> Result<GlobalType, BtfError> {
    if let Some((element, len)) = ty.array() {
        let element = btf.peel(element)?;
        return Ok(match scalar_type(&element) {
            GlobalType::Int { size: 1, .. } if is_char(btf, &element) => GlobalType::Chars { len },
            GlobalType::Opaque => GlobalType::Opaque,
            of => GlobalType::Array { of: Box::new(of), len },
        });
    }
    Ok(scalar_type(ty))
}

fn scalar_type(ty: &Type<'_>) -> GlobalType {
    const SIGNED: u8 = 1;
    const BOOL: u8 = 4;
    let size = ty.size_or_type;
    match (ty.kind, ty.int()) {
        (BtfKind::Int, Some((encoding, 0, bits))) if u32::from(bits) == size.saturating_mul(8) => match size {
            1 if encoding & BOOL != 0 => GlobalType::Bool,
            1 | 2 | 4 | 8 if encoding & BOOL == 0 => GlobalType::Int { size, signed: encoding & SIGNED != 0 },
            _ => GlobalType::Opaque,
        },
        (BtfKind::Enum | BtfKind::Enum64, _) if matches!(size, 1 | 2 | 4 | 8) => GlobalType::Int { size, signed: ty.flag },
        _ => GlobalType::Opaque,
    }
}

/// Clang writes `char` as a signed integer of that name and never sets the encoding's own bit (2).
fn is_char(btf: &Btf<'_>, ty: &Type<'_>) -> bool {
    ty.int().is_some_and(|(encoding, ..)| encoding & 2 != 0) || btf.string_bytes(ty.name_offset) == b"char"
}
