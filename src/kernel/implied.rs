//! Which maps and programs a program needs beyond what its instructions name: a map can be given elements by the object,
//! programs of a program array and maps of a map of maps, which need others in turn.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::kernel::elf::{ElfRelocation, Symbol, SymbolKind};
use crate::kernel::insn::{self, Insn};
use crate::kernel::link::LinkError;
use crate::kernel::map::MapDefinition;
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::section;
use crate::model::ids::PinName;
use crate::model::plan::PlannedProgram;

/// What an element that the object gives a map is.
#[derive(Debug, Clone, Copy)]
pub enum ElementValue<'o> {
    /// A program of a program array, or a function of a structure.
    Program(&'o Function),
    /// A map of a map of maps, as an index into [`BpfObject::maps`].
    Map(usize),
}

/// What an element is. `inside` is the place of the reference in the section of the declaration.
///
/// # Errors
/// If it is neither a program nor a map of the object.
pub fn element<'o>(
    object: &'o BpfObject<'_>,
    map: &MapDefinition<'_>,
    symbol: usize,
    inside: u64,
) -> Result<ElementValue<'o>, LinkError> {
    // Elf::relocations checked the index.
    let symbol = &object.elf.symbols[symbol];
    let wrong = || LinkError::Element { map: map.name.to_owned(), target: symbol.name.to_owned() };
    let section = symbol.section.ok_or_else(wrong)?;
    let at = address(object, map, symbol, inside).ok_or_else(wrong)?;
    if object.elf.sections[section].executable() {
        let start = usize::try_from(at).ok().filter(|at| at % insn::SIZE == 0).map(|at| at / insn::SIZE);
        let function = start.and_then(|start| object.functions.get(&(section, start)));
        return function.filter(|function| function.program).map(ElementValue::Program).ok_or_else(wrong);
    }
    let known = object.maps.iter().position(|map| map.section == section && map.offset == at && map.data.is_none());
    known.map(ElementValue::Map).ok_or_else(wrong)
}

/// The offset in its section that a reference means: a symbol's, or for a section's symbol what the place holds.
fn address(object: &BpfObject<'_>, map: &MapDefinition<'_>, symbol: &Symbol<'_>, inside: u64) -> Option<u64> {
    if symbol.kind != SymbolKind::Section {
        return Some(symbol.value);
    }
    let at = usize::try_from(inside).ok()?;
    Some(u64::from_ne_bytes(*object.elf.sections.get(map.section)?.data.get(at..)?.first_chunk()?))
}

/// How many programs an object may put into maps, beyond those that a request names: more than any real chain of tail
/// calls has.
const MAX_IMPLIED: usize = 256;

/// The instructions and references of an object's sections, each read once.
struct ObjectCode<'o, 'a> {
    object: &'o BpfObject<'a>,
    sections: HashMap<usize, (Vec<Insn>, BTreeMap<usize, ElfRelocation>)>,
    /// Declared maps by section and offset.
    declared: HashMap<(usize, u64), usize>,
    /// Data sections.
    data: HashMap<usize, usize>,
}

impl<'o, 'a> ObjectCode<'o, 'a> {
    fn new(object: &'o BpfObject<'a>) -> Self {
        let maps = || object.maps.iter().enumerate();
        let declared = maps().filter(|(_, map)| map.data.is_none()).map(|(n, map)| ((map.section, map.offset), n)).collect();
        let data = maps().filter(|(_, map)| map.data.is_some()).map(|(n, map)| (map.section, n)).collect();
        Self { object, sections: HashMap::new(), declared, data }
    }

    /// The maps that a function uses, by the relocations of its instructions and of the functions that it calls.
    fn maps_of(&mut self, entry: &'o Function) -> Result<BTreeSet<usize>, LinkError> {
        let object = self.object;
        let mut maps = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut todo = vec![entry];
        while let Some(function) = todo.pop() {
            if !seen.insert((function.section, function.start)) {
                continue;
            }
            let (code, relocations) = match self.sections.entry(function.section) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(place) => {
                    place.insert((object.instructions(function.section), object.relocations(function.section)?))
                }
            };
            let mut call = |section: usize, start: i64| {
                let start = usize::try_from(start).ok();
                todo.extend(start.and_then(|start| object.functions.get(&(section, start))));
            };
            for (at, insn) in code.iter().enumerate().skip(function.start).take(function.len) {
                let Some(relocation) = relocations.get(&at) else {
                    if insn.is_call() {
                        call(function.section, at as i64 + i64::from(insn.imm) + 1);
                    }
                    continue;
                };
                let symbol = object.symbol(*relocation);
                let Some(section) = symbol.section else { continue };
                if object.elf.sections[section].executable() {
                    let base = i64::try_from(symbol.value / insn::SIZE as u64).unwrap_or(i64::MAX / 2);
                    let wide = insn.is_wide();
                    let within = if wide { i64::from(insn.imm) / insn::SIZE as i64 } else { i64::from(insn.imm) + 1 };
                    call(section, base.saturating_add(within));
                    continue;
                }
                maps.extend(self.data.get(&section).or_else(|| self.declared.get(&(section, symbol.value))));
            }
        }
        Ok(maps)
    }
}

/// What else is loaded for the planned programs: the programs that the object puts into their maps. Each is loaded like
/// the one that needs it, since all programs of an array have one type.
///
/// # Errors
/// If an element is neither a program nor a map of the object, or there are more than 256 programs.
pub fn programs(object: &BpfObject<'_>, planned: &[PlannedProgram]) -> Result<Vec<PlannedProgram>, LinkError> {
    if object.maps.iter().all(|map| map.elements.is_empty()) {
        return Ok(Vec::new());
    }
    let mut code = ObjectCode::new(object);
    let mut known: BTreeSet<String> = planned.iter().map(|program| program.function.clone()).collect();
    let mut implied: Vec<PlannedProgram> = Vec::new();
    let mut todo: Vec<PlannedProgram> = planned.to_vec();
    while let Some(program) = todo.pop() {
        let Some(function) = object.programs().find(|function| function.name == program.function) else { continue };
        let own = code.maps_of(function)?;
        for value in elements_of(object, own)? {
            let ElementValue::Program(function) = value else { continue };
            if !known.insert(function.name.clone()) {
                continue;
            }
            if implied.len() == MAX_IMPLIED {
                return Err(LinkError::TooManyElements);
            }
            let new = like(&program, object, function);
            todo.push(new.clone());
            implied.push(new);
        }
    }
    Ok(implied)
}

fn like(other: &PlannedProgram, object: &BpfObject<'_>, function: &Function) -> PlannedProgram {
    let section = object.elf.sections[function.section].name;
    let own = section::declared(section).map(|declared| declared.kind()).filter(|kind| !kind.loads_as(other.kind));
    PlannedProgram {
        function: function.name.clone(),
        kind: own.unwrap_or(other.kind),
        expected_attach_type: match own {
            Some(_) => section::attach_type(section).unwrap_or_default(),
            None => other.expected_attach_type,
        },
        target: other.target.clone(),
        // It is never pinned: the array holds it.
        pin: PinName::program(0),
    }
}

/// Every element of these maps, and of the maps among the elements.
fn elements_of<'o>(object: &'o BpfObject<'_>, maps: BTreeSet<usize>) -> Result<Vec<ElementValue<'o>>, LinkError> {
    let mut found = Vec::new();
    let mut seen = maps.clone();
    let mut todo: Vec<usize> = maps.into_iter().collect();
    while let Some(index) = todo.pop() {
        let map = &object.maps[index];
        for given in &map.elements {
            let value = element(object, map, given.symbol, given.place)?;
            if let ElementValue::Map(inner) = value
                && seen.insert(inner)
            {
                todo.push(inner);
            }
            found.push(value);
        }
    }
    Ok(found)
}

/// These maps, and the maps that the object puts into them.
///
/// # Errors
/// As [`programs`].
pub fn with_inner_maps(object: &BpfObject<'_>, maps: BTreeSet<usize>) -> Result<BTreeSet<usize>, LinkError> {
    let inner = elements_of(object, maps.clone())?.into_iter().filter_map(|value| match value {
        ElementValue::Map(map) => Some(map),
        ElementValue::Program(_) => None,
    });
    Ok(inner.chain(maps.iter().copied()).collect())
}
