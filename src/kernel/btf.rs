//! A checked reader of BTF, for untrusted objects and for the running kernel's types. It keeps the bytes and an index
//! of where each type starts, so that the six megabytes of a kernel's BTF cost half a megabyte more and no allocation
//! per type.
//!
//! Layout: Linux `Documentation/bpf/btf.rst` and uapi/linux/btf.h.

use crate::kernel::elf::MAX_NAME;

/// How many modifiers, typedefs and arrays may lie between a type and its underlying type. C compilers nest a handful;
/// more is a cycle.
const MAX_DEPTH: usize = 32;

const HEADER: usize = 24;
const MAGIC: u16 = 0xeb9f;

/// What is wrong with BTF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// A wrong magic or version, or lengths that do not fit.
    #[error("its BTF has an invalid header")]
    Header,
    /// A truncated type record, or an unknown kind.
    #[error("its BTF type {0} is malformed")]
    Type(u32),
    /// A reference to a type that does not exist.
    #[error("its BTF refers to type {0}, which does not exist")]
    NoType(u32),
    /// A string offset outside the string section, or a string that is not UTF-8 or too long.
    #[error("its BTF refers to string {0}, which does not exist, is not UTF-8 text, or is longer than 4096 bytes")]
    String(u32),
    /// A type of an unexpected kind, or one without a size.
    #[error("its BTF type {0} has an unexpected kind")]
    Kind(u32),
    /// A cycle of typedefs or arrays.
    #[error("its BTF type {0} is part of a cycle")]
    Circle(u32),
}

/// `BTF_KIND_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum BtfKind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    DataSec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl BtfKind {
    fn from_raw(raw: u32) -> Option<Self> {
        use BtfKind as K;
        const ALL: [BtfKind; 20] = [
            K::Void,
            K::Int,
            K::Ptr,
            K::Array,
            K::Struct,
            K::Union,
            K::Enum,
            K::Fwd,
            K::Typedef,
            K::Volatile,
            K::Const,
            K::Restrict,
            K::Func,
            K::FuncProto,
            K::Var,
            K::DataSec,
            K::Float,
            K::DeclTag,
            K::TypeTag,
            K::Enum64,
        ];
        ALL.get(raw as usize).copied()
    }

    /// Bytes that follow the 12 bytes of `struct btf_type`.
    fn tail(self, vlen: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::DataSec | Self::Enum64 => 12 * vlen,
            Self::Enum | Self::FuncProto => 8 * vlen,
            _ => 0,
        }
    }
}

/// One type: the common part, and where the rest starts.
#[derive(Debug, Clone, Copy)]
pub struct Type<'a> {
    /// Its id.
    pub id: u32,
    /// Its kind.
    pub kind: BtfKind,
    /// `kind_flag`: bitfields in a struct, signedness of an enum.
    pub flag: bool,
    /// The union `size` / `type`.
    pub size_or_type: u32,
    /// Offset of its name in the string section.
    pub name_offset: u32,
    /// `vlen`: members, values or parameters; a FUNC's linkage.
    pub vlen: u32,
    tail: &'a [u8],
}

/// A member of a struct or union.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its name's offset; 0 for an anonymous one.
    pub name_offset: u32,
    /// Its type.
    pub ty: u32,
    /// Bits from the start of the struct.
    pub bit_offset: u32,
    /// Width of a bitfield in bits, otherwise 0.
    pub bits: u32,
}

/// A variable of a data section.
#[derive(Debug, Clone, Copy)]
pub struct SectionVariable {
    /// The VAR.
    pub ty: u32,
    /// Byte offset in the section as the compiler wrote it: 0 for global variables until a linker fixes it.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

impl<'a> Type<'a> {
    fn words(&self, width: usize) -> impl Iterator<Item = [u32; 3]> + use<'a> {
        self.tail.chunks_exact(4 * width).map(move |chunk| {
            let word = |n: usize| if n < width { u32_at(chunk, 4 * n).unwrap_or_default() } else { 0 };
            [word(0), word(1), word(2)]
        })
    }

    /// The members of a struct or union; empty for other kinds.
    pub fn members(&self) -> impl Iterator<Item = Member> + use<'a> {
        let flag = self.flag;
        let own = matches!(self.kind, BtfKind::Struct | BtfKind::Union);
        self.words(3).take_while(move |_| own).map(move |[name_offset, ty, offset]| {
            let (bit_offset, bits) = if flag { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            Member { name_offset, ty, bit_offset, bits }
        })
    }

    /// The n-th member of a struct or union.
    pub fn member(&self, n: usize) -> Option<Member> {
        self.members().nth(n)
    }

    /// The values of an enum: name offset and value, sign-extended if the enum is signed; empty for other kinds.
    pub fn values(&self) -> impl Iterator<Item = (u32, u64)> + use<'a> {
        let (kind, signed) = (self.kind, self.flag);
        let own = matches!(kind, BtfKind::Enum | BtfKind::Enum64);
        let width = if kind == BtfKind::Enum64 { 3 } else { 2 };
        self.words(width).take_while(move |_| own).map(move |[name, low, high]| match kind {
            BtfKind::Enum64 => (name, u64::from(high) << 32 | u64::from(low)),
            _ if signed => (name, i64::from(low.cast_signed()).cast_unsigned()),
            _ => (name, u64::from(low)),
        })
    }

    /// The variables of a data section; empty for other kinds.
    pub fn variables(&self) -> impl Iterator<Item = SectionVariable> + use<'a> {
        let own = self.kind == BtfKind::DataSec;
        self.words(3).take_while(move |_| own).map(|[ty, offset, size]| SectionVariable { ty, offset, size })
    }

    /// The parameters of a function prototype: name offset and type; empty for other kinds.
    pub fn parameters(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let own = self.kind == BtfKind::FuncProto;
        self.words(2).take_while(move |_| own).map(|[name, ty, _]| (name, ty))
    }

    /// Element type and number of elements of an array.
    pub fn array(&self) -> Option<(u32, u32)> {
        (self.kind == BtfKind::Array).then(|| self.words(3).next().map(|[element, _, len]| (element, len))).flatten()
    }

    /// Encoding (1 signed, 2 char, 4 bool), bit offset and bits of an integer.
    pub fn int(&self) -> Option<(u8, u8, u8)> {
        let word = (self.kind == BtfKind::Int).then(|| u32_at(self.tail, 0)).flatten()?;
        let [bits, offset] = [word & 0xff, word >> 16 & 0xff].map(|b| u8::try_from(b).unwrap_or_default());
        Some((u8::try_from(word >> 24 & 0xf).unwrap_or_default(), offset, bits))
    }

    /// Linkage of a variable: 0 static, 1 global, 2 extern.
    pub fn linkage(&self) -> Option<u32> {
        (self.kind == BtfKind::Var).then(|| u32_at(self.tail, 0)).flatten()
    }

    /// The type that this one only qualifies or renames.
    fn alias(&self) -> Option<u32> {
        matches!(self.kind, BtfKind::Typedef | BtfKind::Volatile | BtfKind::Const | BtfKind::Restrict | BtfKind::TypeTag)
            .then_some(self.size_or_type)
    }
}

/// BTF, borrowed from its bytes.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; the type of index 0 has the id `first`.
    index: Vec<u32>,
    /// The id of the first type: 1, since id 0 is void, or for a module what follows the kernel's ids.
    first: u32,
    /// Offset of `types` in the parsed bytes.
    base: usize,
    /// The BTF that a module's continues.
    kernel: Option<&'a Btf<'a>>,
}

impl<'a> Btf<'a> {
    /// Reads BTF and checks that every record is complete.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        Self::read(bytes, None)
    }

    /// Reads the BTF of a module, whose ids and strings continue those of the kernel.
    pub fn parse_module(bytes: &'a [u8], kernel: &'a Btf<'a>) -> Result<Self, BtfError> {
        Self::read(bytes, Some(kernel))
    }

    fn read(bytes: &'a [u8], kernel: Option<&'a Btf<'a>>) -> Result<Self, BtfError> {
        let word = |at| u32_at(bytes, at).ok_or(BtfError::Header);
        let magic = bytes.first_chunk().copied().map(u16::from_ne_bytes);
        if magic != Some(MAGIC) || bytes.get(2) != Some(&1) {
            return Err(BtfError::Header);
        }
        let header = word(4)? as usize;
        if header < HEADER || header > bytes.len() {
            return Err(BtfError::Header);
        }
        let part = |offset: u32, len: u32| {
            let start = header.checked_add(offset as usize)?;
            bytes.get(start..start.checked_add(len as usize)?).map(|part| (start, part))
        };
        let (base, types) = part(word(8)?, word(12)?).ok_or(BtfError::Header)?;
        let (_, strings) = part(word(16)?, word(20)?).ok_or(BtfError::Header)?;
        // A module's strings begin with a name.
        if kernel.is_none() && strings.first() != Some(&0) || strings.last().is_some_and(|last| *last != 0) {
            return Err(BtfError::Header);
        }
        if kernel.is_none() && strings.is_empty() {
            return Err(BtfError::Header);
        }
        let first = kernel.map_or(Some(1), |kernel| kernel.next_id()).ok_or(BtfError::Header)?;
        let mut index = Vec::new();
        let mut at = 0;
        while at < types.len() {
            let id = u32::try_from(index.len()).ok().and_then(|n| n.checked_add(first)).ok_or(BtfError::Header)?;
            index.push(u32::try_from(at).map_err(|_| BtfError::Header)?);
            let ty = read(types, at, id).ok_or(BtfError::Type(id))?;
            at += 12 + ty.tail.len();
        }
        Ok(Self { types, strings, index, first, base, kernel })
    }

    /// The id after the last one.
    fn next_id(&self) -> Option<u32> {
        u32::try_from(self.index.len()).ok()?.checked_add(self.first)
    }

    /// Every type except void, ordered by id; of a module, its own.
    pub fn types(&self) -> impl Iterator<Item = Type<'a>> + '_ {
        (self.first..).zip(&self.index).filter_map(|(id, at)| read(self.types, *at as usize, id))
    }

    /// The type with an id.
    pub fn ty(&self, id: u32) -> Result<Type<'a>, BtfError> {
        if id == 0 {
            return Ok(Type { id: 0, kind: BtfKind::Void, flag: false, size_or_type: 0, name_offset: 0, vlen: 0, tail: &[] });
        }
        if let Some(kernel) = self.kernel.filter(|_| id < self.first) {
            return kernel.ty(id);
        }
        let at = id.checked_sub(self.first).and_then(|n| self.index.get(n as usize)).ok_or(BtfError::NoType(id))?;
        read(self.types, *at as usize, id).ok_or(BtfError::Type(id))
    }

    /// Where the record of a type starts in the parsed bytes.
    pub fn position(&self, id: u32) -> Result<usize, BtfError> {
        let at = id.checked_sub(self.first).and_then(|n| self.index.get(n as usize)).ok_or(BtfError::NoType(id))?;
        Ok(self.base + *at as usize)
    }

    /// The string at an offset.
    pub fn string(&self, offset: u32) -> Result<&'a str, BtfError> {
        let rest = self.bytes_at(offset).filter(|rest| !rest.is_empty()).ok_or(BtfError::String(offset))?;
        let end = rest.iter().position(|b| *b == 0).ok_or(BtfError::String(offset))?;
        std::str::from_utf8(&rest[..end]).map_err(|_| BtfError::String(offset))
    }

    /// The bytes of a string up to its NUL or to the limit of a name, whatever their encoding; empty if the offset is
    /// invalid.
    pub fn string_bytes(&self, offset: u32) -> &'a [u8] {
        let rest = self.bytes_at(offset).unwrap_or_default();
        &rest[..rest.iter().position(|b| *b == 0).unwrap_or(rest.len())]
    }

    /// What may belong to a string at an offset.
    fn bytes_at(&self, offset: u32) -> Option<&'a [u8]> {
        let before = self.kernel.map_or(0, |kernel| kernel.strings.len());
        if let Some(kernel) = self.kernel.filter(|_| (offset as usize) < before) {
            return kernel.bytes_at(offset);
        }
        self.strings.get(offset as usize - before..).map(|rest| &rest[..rest.len().min(MAX_NAME)])
    }

    /// True if an offset lies within the string section.
    pub fn has_string(&self, offset: u32) -> bool {
        (offset as usize) < self.strings.len()
    }

    /// The name of a type.
    pub fn name(&self, ty: &Type<'_>) -> Result<&'a str, BtfError> {
        self.string(ty.name_offset)
    }

    /// The data section with a name.
    pub fn data_section(&self, name: &str) -> Option<Type<'a>> {
        self.types().find(|ty| ty.kind == BtfKind::DataSec && self.string_bytes(ty.name_offset) == name.as_bytes())
    }

    /// The first type of a kind with a name.
    pub fn named(&self, kind: BtfKind, name: &str) -> Option<Type<'a>> {
        self.types().find(|ty| ty.kind == kind && self.string_bytes(ty.name_offset) == name.as_bytes())
    }

    /// A type without `const`, `volatile`, typedefs and tags.
    pub fn peel(&self, id: u32) -> Result<Type<'a>, BtfError> {
        let mut ty = self.ty(id)?;
        for _ in 0..MAX_DEPTH {
            match ty.alias() {
                Some(next) => ty = self.ty(next)?,
                None => return Ok(ty),
            }
        }
        Err(BtfError::Circle(id))
    }

    /// The size of a type's values in bytes.
    pub fn size(&self, id: u32) -> Result<u64, BtfError> {
        let mut elements = 1u64;
        let mut ty = self.peel(id)?;
        for _ in 0..MAX_DEPTH {
            let one = match ty.kind {
                BtfKind::Int
                | BtfKind::Struct
                | BtfKind::Union
                | BtfKind::Enum
                | BtfKind::Enum64
                | BtfKind::Float
                | BtfKind::DataSec => u64::from(ty.size_or_type),
                // Programs and the kernels that load them are 64-bit.
                BtfKind::Ptr => 8,
                BtfKind::Array => {
                    let (element, len) = ty.array().ok_or(BtfError::Type(ty.id))?;
                    elements = elements.checked_mul(u64::from(len)).ok_or(BtfError::Type(ty.id))?;
                    ty = self.peel(element)?;
                    continue;
                }
                BtfKind::Var => {
                    ty = self.peel(ty.size_or_type)?;
                    continue;
                }
                _ => return Err(BtfError::Kind(ty.id)),
            };
            return one.checked_mul(elements).ok_or(BtfError::Type(id));
        }
        Err(BtfError::Circle(id))
    }
}

fn read(types: &[u8], at: usize, id: u32) -> Option<Type<'_>> {
    let info = u32_at(types, at + 4)?;
    let vlen = info & 0xffff;
    let kind = BtfKind::from_raw(info >> 24 & 0x1f).filter(|kind| *kind != BtfKind::Void)?;
    let start = at + 12;
    let tail = types.get(start..start + kind.tail(vlen as usize))?;
    Some(Type {
        id,
        kind,
        flag: info >> 31 == 1,
        size_or_type: u32_at(types, at + 8)?,
        name_offset: u32_at(types, at)?,
        vlen,
        tail,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}
