//! Map declarations of objects: in `.maps` by a BTF struct, in `maps` by `struct bpf_map_def`, and as data sections.

use std::collections::HashMap;

use crate::kernel::btf::{Btf, BtfError, BtfKind, SectionVariable, Type};
use crate::kernel::elf::{Elf, ElfRelocation, MAX_OBJECT, SHT_NOBITS, SHT_PROGBITS, SymbolKind};
use crate::kernel::object_error::ObjectError;
use crate::sys::bpf::MapInfo;

/// `enum bpf_map_type`
pub const ARRAY: u32 = 2;
pub const PROG_ARRAY: u32 = 3;
const PERF_EVENT_ARRAY: u32 = 4;
const DEVMAP: u32 = 14;
const DEVMAP_HASH: u32 = 25;
const RINGBUF: u32 = 27;
const USER_RINGBUF: u32 = 31;
/// `BPF_F_RDONLY_PROG`: programs only read the map.
pub const RDONLY_PROG: u32 = 1 << 7;
/// The section of the kernel's configuration, and the map that it becomes.
pub const CONFIGURATION: &str = ".kconfig";
/// `BPF_F_MMAPABLE`: user space can map the value (Linux 5.5).
pub const MMAPABLE: u32 = 1 << 10;

/// The attributes of BPF_MAP_CREATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapShape {
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// Number of entries, or bytes of a ring buffer; 0 in a perf event array means one for each CPU.
    pub max_entries: u32,
    /// `map_flags`
    pub flags: u32,
    /// `map_extra`
    pub extra: u64,
    /// The NUMA node, if `flags` have BPF_F_NUMA_NODE.
    pub numa_node: u32,
    /// Type of the key in the object's BTF; 0 for none.
    pub key_type: u32,
    /// Type of the value in the object's BTF; 0 for none.
    pub value_type: u32,
}

impl MapShape {
    /// True for maps whose size the kernel requires to be a power of two of whole pages.
    fn is_ring(self) -> bool {
        matches!(self.map_type, RINGBUF | USER_RINGBUF)
    }

    /// True for maps that get one entry for each CPU because no number is given.
    pub fn wants_cpus(self) -> bool {
        self.map_type == PERF_EVENT_ARRAY && self.max_entries == 0
    }

    /// The shape with the size that the kernel requires: ring buffers rounded up, perf event arrays with one entry for
    /// each CPU.
    pub fn completed(mut self, page: u32, cpus: u32) -> Self {
        if self.is_ring() && self.max_entries > 0 {
            let pages = self.max_entries.div_ceil(page).checked_next_power_of_two();
            self.max_entries = pages.and_then(|n| n.checked_mul(page)).unwrap_or(self.max_entries);
        }
        if self.wants_cpus() {
            self.max_entries = cpus;
        }
        self
    }

    /// The differences between an existing map and this shape, once completed; empty if the map can replace the
    /// declared one. The kernel does not report the inner maps of a map of maps; the verifier checks them.
    pub fn differences(self, map: &MapInfo) -> Vec<String> {
        // Programs only read device maps, and the kernel sets this flag itself (kernel/bpf/devmap.c, dev_map_init_map).
        let theirs = if matches!(map.map_type, DEVMAP | DEVMAP_HASH) { map.flags & !RDONLY_PROG } else { map.flags };
        [
            ("type", u64::from(self.map_type), u64::from(map.map_type)),
            ("key size", u64::from(self.key_size), u64::from(map.key_size)),
            ("value size", u64::from(self.value_size), u64::from(map.value_size)),
            ("max entries", u64::from(self.max_entries), u64::from(map.max_entries)),
            ("flags", u64::from(self.flags), u64::from(theirs)),
            ("map extra", self.extra, map.extra),
        ]
        .into_iter()
        .filter(|(_, ours, theirs)| ours != theirs)
        .map(|(what, ours, theirs)| format!("{what} {ours}, but the existing map has {theirs}"))
        .collect()
    }
}

/// A map of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapDefinition<'a> {
    /// Its name; for data sections the section's.
    pub name: &'a str,
    /// Its attributes.
    pub shape: MapShape,
    /// The shape of the inner maps, for a map of maps.
    pub inner: Option<MapShape>,
    /// The section of its declaration, which relocations refer to.
    pub section: usize,
    /// The offset of the declaration in that section; 0 for data sections.
    pub offset: u64,
    /// For data sections the bytes in the file; shorter than the value for `.bss`.
    pub data: Option<&'a [u8]>,
    /// The elements that the object gives the map: programs of a program array, maps of a map of maps.
    pub elements: Vec<MapElement>,
    /// Why a map with this declaration cannot be created.
    pub wrong: Option<&'static str>,
}

/// An element that an object gives a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapElement {
    /// Its key.
    pub index: u32,
    /// The program or map, as an index into [`Elf::symbols`].
    pub symbol: usize,
    /// Where in the section of the declaration the reference is.
    pub place: u64,
}

/// True for sections that become maps with one value.
pub fn is_data_section(name: &str) -> bool {
    [".rodata", ".data", ".bss"]
        .iter()
        .any(|base| name.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// True for data sections that programs only read.
pub fn is_read_only(name: &str) -> bool {
    name == ".rodata" || name.starts_with(".rodata.") || name == CONFIGURATION
}

/// The maps of `.maps` and `maps`, in the order of the sections.
pub fn declared<'a>(elf: &Elf<'a>, btf: Option<&Btf<'a>>) -> Result<Vec<MapDefinition<'a>>, ObjectError> {
    let mut found = Vec::new();
    if let Some((index, _)) = elf.section(".maps") {
        let Some(btf) = btf else {
            return Err(ObjectError::Map { name: ".maps".to_owned(), why: "needs BTF, which the object does not have" });
        };
        from_btf(elf, index, btf, &mut found)?;
    }
    for (index, section) in elf.sections.iter().enumerate() {
        if section.kind == SHT_PROGBITS && (section.name == "maps" || section.name.starts_with("maps/")) {
            from_structs(elf, index, &mut found)?;
        }
    }
    Ok(found)
}

/// The data sections as maps.
pub fn data_sections<'a>(elf: &Elf<'a>, btf: Option<&Btf<'a>>) -> Result<Vec<MapDefinition<'a>>, ObjectError> {
    let types: HashMap<&[u8], u32> = btf
        .iter()
        .flat_map(|btf| btf.types().map(move |ty| (btf, ty)))
        .filter(|(_, ty)| ty.kind == BtfKind::DataSec)
        .map(|(btf, ty)| (btf.string_bytes(ty.name_offset), ty.id))
        .collect();
    let mut found = Vec::new();
    for (index, section) in elf.sections.iter().enumerate() {
        let own = matches!(section.kind, SHT_PROGBITS | SHT_NOBITS) && is_data_section(section.name);
        if !own || section.size == 0 {
            continue;
        }
        let value_size = match u32::try_from(section.size) {
            Ok(size) if size as usize <= MAX_OBJECT => size,
            _ => return Err(ObjectError::Map { name: section.name.to_owned(), why: "is larger than 16 MiB" }),
        };
        let value_type = types.get(section.name.as_bytes()).copied().unwrap_or_default();
        found.push(MapDefinition {
            name: section.name,
            shape: MapShape {
                map_type: ARRAY,
                key_size: 4,
                value_size,
                max_entries: 1,
                flags: if is_read_only(section.name) { RDONLY_PROG } else { mappable(btf, value_type) },
                value_type,
                ..MapShape::default()
            },
            inner: None,
            section: index,
            offset: 0,
            data: Some(section.data),
            elements: Vec::new(),
            wrong: None,
        });
    }
    Ok(found)
}

/// BPF_F_MMAPABLE for a section with a variable that is not static, as libbpf decides (`map_is_mmapable`): user space reads
/// such variables in place. The value then takes whole pages, so that sections that only programs read do without.
fn mappable(btf: Option<&Btf<'_>>, section: u32) -> u32 {
    const STATIC: u32 = 0;
    let visible = |entry: SectionVariable| {
        let linkage = btf.and_then(|btf| btf.ty(entry.ty).ok()?.linkage());
        linkage.is_some_and(|linkage| linkage != STATIC)
    };
    let section = btf.and_then(|btf| btf.ty(section).ok());
    if section.is_some_and(|section| section.variables().any(visible)) { MMAPABLE } else { 0 }
}

fn from_btf<'a>(elf: &Elf<'a>, index: usize, btf: &Btf<'a>, found: &mut Vec<MapDefinition<'a>>) -> Result<(), ObjectError> {
    let symbols: HashMap<&str, u64> = elf.symbols_of(index).map(|s| (s.name, s.value)).collect();
    // A relocation in `.maps` is an initial element.
    let filled = elf.relocations(index);
    let Some(section) = btf.data_section(".maps") else { return Ok(()) };
    for entry in section.variables() {
        let var = btf.ty(entry.ty)?;
        let name = btf.name(&var)?;
        let wrong = |why| ObjectError::Map { name: name.to_owned(), why };
        let offset = *symbols.get(name).ok_or_else(|| wrong("has no symbol"))?;
        let declared = btf.peel(var.size_or_type)?;
        // Only a program that uses the map is affected by what is wrong with it.
        let (declaration, wrong) = match attributes(btf, &declared, NestingDepth::Outer) {
            _ if var.kind != BtfKind::Var || declared.kind != BtfKind::Struct => {
                (MapDeclaration::default(), Some("is not declared by a struct"))
            }
            Ok(declaration) => (declaration, None),
            Err(Declaration::Wrong(why)) => (MapDeclaration::default(), Some(why)),
            Err(Declaration::Btf(error)) => return Err(error.into()),
        };
        let MapDeclaration { shape, inner, values } = declaration;
        let end = offset.saturating_add(u64::from(entry.size));
        let first = offset.saturating_add(u64::from(values / 8));
        let within = filled[filled.partition_point(|r| r.offset < first)..].iter().take_while(|r| r.offset < end);
        let element = |r: &ElfRelocation| {
            let index =
                u32::try_from((r.offset - first) / POINTER).ok().filter(|_| (r.offset - first).is_multiple_of(POINTER))?;
            Some(MapElement { index, symbol: r.symbol, place: r.offset })
        };
        let (elements, wrong) = match within.map(element).collect::<Option<Vec<_>>>() {
            Some(elements) => (elements, wrong),
            None => (Vec::new(), wrong.or(Some("has an initial element between two others"))),
        };
        found.push(MapDefinition { name, shape, inner, section: index, offset, data: None, elements, wrong });
    }
    Ok(())
}

/// Size of a pointer in the declaration of a map.
const POINTER: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum NestingDepth {
    Outer,
    Inner,
}

/// What the struct of a map says.
#[derive(Default)]
struct MapDeclaration {
    shape: MapShape,
    inner: Option<MapShape>,
    /// Where the initial elements begin, in bits.
    values: u32,
}

enum Declaration {
    Btf(BtfError),
    Wrong(&'static str),
}

impl From<BtfError> for Declaration {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}

/// The members of a map's struct: `__uint(name, N)` is a pointer to an array of N, `__type(name, T)` a pointer to T,
/// `__ulong(name, N)` an enum with one value, `__array(values, T)` an array of pointers to T (libbpf's bpf_helpers.h).
fn attributes(btf: &Btf<'_>, declared: &Type<'_>, depth: NestingDepth) -> Result<MapDeclaration, Declaration> {
    let MapDeclaration { mut shape, mut inner, mut values } = MapDeclaration::default();
    for member in declared.members() {
        match btf.string_bytes(member.name_offset) {
            b"type" => shape.map_type = number(btf, member.ty)?,
            b"max_entries" => shape.max_entries = number(btf, member.ty)?,
            b"map_flags" => shape.flags = number(btf, member.ty)?,
            b"key_size" => shape.key_size = number(btf, member.ty)?,
            b"value_size" => shape.value_size = number(btf, member.ty)?,
            b"numa_node" => shape.numa_node = number(btf, member.ty)?,
            b"map_extra" => shape.extra = wide_number(btf, member.ty)?,
            b"key" => (shape.key_type, shape.key_size) = pointee(btf, member.ty)?,
            b"value" => (shape.value_type, shape.value_size) = pointee(btf, member.ty)?,
            // Pinning is decided by us, never by the object: it must not choose a path on the host.
            b"pinning" => {}
            b"values" if depth == NestingDepth::Outer => {
                inner = value_shape(btf, member.ty)?;
                shape.value_size = 4;
                values = member.bit_offset;
            }
            b"values" => return Err(Declaration::Wrong("is a map of maps of maps")),
            _ => return Err(Declaration::Wrong("is declared with an unknown attribute")),
        }
    }
    if shape.map_type == 0 {
        return Err(Declaration::Wrong("is declared without a type"));
    }
    if depth == NestingDepth::Outer && shape.map_type == PROG_ARRAY && shape.key_size == 0 {
        shape.key_size = 4;
    }
    Ok(MapDeclaration { shape, inner, values })
}

fn number(btf: &Btf<'_>, ty: u32) -> Result<u32, Declaration> {
    let pointer = btf.peel(ty)?;
    if pointer.kind == BtfKind::Ptr
        && let Some((_, len)) = btf.peel(pointer.size_or_type)?.array()
    {
        return Ok(len);
    }
    Err(Declaration::Wrong("is declared with an attribute that is not a number"))
}

fn wide_number(btf: &Btf<'_>, ty: u32) -> Result<u64, Declaration> {
    match btf.peel(ty)?.values().next() {
        Some((_, value)) => Ok(value),
        None => number(btf, ty).map(u64::from),
    }
}

fn pointee(btf: &Btf<'_>, ty: u32) -> Result<(u32, u32), Declaration> {
    let pointer = btf.peel(ty)?;
    if pointer.kind != BtfKind::Ptr {
        return Err(Declaration::Wrong("is declared with a key or value that is not a type"));
    }
    let size = btf.size(pointer.size_or_type)?;
    let size = u32::try_from(size).map_err(|_| Declaration::Wrong("is declared with a key or value of more than 4 GiB"))?;
    Ok((pointer.size_or_type, size))
}

/// The shape of the inner maps of a map of maps; None for the programs of a program array.
fn value_shape(btf: &Btf<'_>, ty: u32) -> Result<Option<MapShape>, Declaration> {
    const WRONG: Declaration = Declaration::Wrong("is declared with values that are neither maps nor programs");
    let (element, _) = btf.peel(ty)?.array().ok_or(WRONG)?;
    let pointer = btf.peel(element)?;
    if pointer.kind != BtfKind::Ptr {
        return Err(WRONG);
    }
    let declared = btf.peel(pointer.size_or_type)?;
    match declared.kind {
        BtfKind::Struct => Ok(Some(attributes(btf, &declared, NestingDepth::Inner)?.shape)),
        BtfKind::FuncProto | BtfKind::Void => Ok(None),
        _ => Err(WRONG),
    }
}

/// `struct bpf_map_def`: type, key size, value size, entries, flags, and fields of old loaders.
fn from_structs<'a>(elf: &Elf<'a>, index: usize, found: &mut Vec<MapDefinition<'a>>) -> Result<(), ObjectError> {
    let data = elf.sections[index].data;
    let first = found.len();
    for symbol in elf.symbols_of(index) {
        if symbol.name.is_empty() || !matches!(symbol.kind, SymbolKind::Object | SymbolKind::Other) {
            continue;
        }
        let words = usize::try_from(symbol.value).ok().and_then(|at| data.get(at..)).and_then(|rest| rest.first_chunk::<20>());
        let Some(words) = words else {
            return Err(ObjectError::Map { name: symbol.name.to_owned(), why: "has a truncated definition" });
        };
        let word = |n: usize| words[4 * n..].first_chunk().copied().map(u32::from_ne_bytes).unwrap_or_default();
        found.push(MapDefinition {
            name: symbol.name,
            shape: MapShape {
                map_type: word(0),
                key_size: word(1),
                value_size: word(2),
                max_entries: word(3),
                flags: word(4),
                ..MapShape::default()
            },
            inner: None,
            section: index,
            offset: symbol.value,
            data: None,
            elements: Vec::new(),
            wrong: None,
        });
    }
    found[first..].sort_by_key(|map| map.offset);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_shared_only_with_the_same_shape() {
        let shape = MapShape { map_type: ARRAY, key_size: 4, value_size: 8, max_entries: 2, ..MapShape::default() };
        let there = MapInfo {
            id: 1,
            map_type: ARRAY,
            name: "packets".to_owned(),
            key_size: 4,
            value_size: 8,
            max_entries: 2,
            flags: 0,
            extra: 0,
        };
        assert_eq!(shape.differences(&there), [""; 0]);
        let other = MapShape { value_size: 16, flags: 1, ..shape };
        assert_eq!(
            other.differences(&there),
            ["value size 16, but the existing map has 8", "flags 1, but the existing map has 0"]
        );
        let devices = MapShape { map_type: DEVMAP, ..shape };
        assert!(devices.differences(&MapInfo { map_type: DEVMAP, flags: RDONLY_PROG, ..there.clone() }).is_empty());
        let ring = MapShape { map_type: RINGBUF, max_entries: 100, ..MapShape::default() }.completed(4096, 2);
        let there = MapInfo { map_type: RINGBUF, key_size: 0, value_size: 0, max_entries: 4096, ..there };
        assert!(ring.differences(&there).is_empty());
    }
}
