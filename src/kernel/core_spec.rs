//! CO-RE: the path from a type to a member in the object's types, and the same path in the kernel's types. The rules
//! are libbpf's (tools/lib/bpf/relo_core.c of the Linux source).

use crate::kernel::btf::{Btf, BtfError, BtfKind, Type};

/// The limit on steps of a path, as in libbpf (BPF_CORE_SPEC_MAX_LEN).
const MAX_STEPS: usize = 64;
/// The limit on nesting when types are compared.
const MAX_DEPTH: usize = 32;

/// One step: the type that it starts in and, for a member, its number and name.
#[derive(Debug, Clone, Copy)]
pub struct MemberStep<'a> {
    /// The type, without qualifiers: the struct of a member, the element of an array.
    pub ty: u32,
    /// The member's or element's number.
    pub index: u32,
    /// The member's name; None for elements and for the root.
    pub name: Option<&'a [u8]>,
}

/// A path from a type to a member.
#[derive(Debug, Clone)]
pub struct MemberPath<'a> {
    /// The type at the start, as in the record.
    pub root: u32,
    /// The steps; anonymous structs on the path only add to the offset.
    pub steps: Vec<MemberStep<'a>>,
    /// Bits from the start of the root to the member.
    pub bits: u64,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecError {
    /// The BTF is not valid.
    Btf(BtfError),
    /// The path does not exist.
    Access,
}

impl From<BtfError> for SpecError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}

/// A name without the suffix after three underscores: `task_struct___old` is a flavour of `task_struct`.
pub fn essential(name: &[u8]) -> &[u8] {
    // The underscores must have other characters on both sides.
    let cut = (1..name.len().saturating_sub(3))
        .rev()
        .find(|n| name[n - 1] != b'_' && &name[*n..n + 3] == b"___" && name[n + 3] != b'_');
    &name[..cut.unwrap_or(name.len())]
}

/// True for kinds that are interchangeable.
pub fn same_kind(a: BtfKind, b: BtfKind) -> bool {
    let is_enum = |kind| matches!(kind, BtfKind::Enum | BtfKind::Enum64);
    a == b || is_enum(a) && is_enum(b)
}

/// The access string `0:1:2` as numbers.
pub fn access(text: &str) -> Option<Vec<u32>> {
    let parts: Vec<u32> = text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    (parts.len() <= MAX_STEPS).then_some(parts)
}

/// The enum value that a record refers to: its number among the values, and its name.
pub fn enum_step<'a>(btf: &Btf<'a>, root: u32, parts: &[u32]) -> Result<MemberStep<'a>, SpecError> {
    let ty = btf.peel(root)?;
    match parts {
        [index] => {
            let (name, _) = ty.values().nth(*index as usize).ok_or(SpecError::Access)?;
            Ok(MemberStep { ty: ty.id, index: *index, name: Some(btf.string_bytes(name)) })
        }
        _ => Err(SpecError::Access),
    }
}

/// The path of a record in the object's own types.
pub fn field_spec<'a>(btf: &Btf<'a>, root: u32, parts: &[u32]) -> Result<MemberPath<'a>, SpecError> {
    let (first, rest) = parts.split_first().ok_or(SpecError::Access)?;
    let mut ty = btf.peel(root)?;
    let mut spec = MemberPath { root, steps: vec![MemberStep { ty: ty.id, index: *first, name: None }], bits: 0 };
    spec.bits = elements(btf, ty.id, *first)?;
    for index in rest {
        match ty.kind {
            BtfKind::Struct | BtfKind::Union => {
                let member = ty.member(*index as usize).ok_or(SpecError::Access)?;
                spec.bits += u64::from(member.bit_offset);
                let name = btf.string_bytes(member.name_offset);
                if !name.is_empty() {
                    spec.steps.push(MemberStep { ty: ty.id, index: *index, name: Some(name) });
                }
                ty = btf.peel(member.ty)?;
            }
            BtfKind::Array => {
                let (element, len) = ty.array().ok_or(SpecError::Access)?;
                if *index >= len && !flexible(btf, &spec, len)? {
                    return Err(SpecError::Access);
                }
                ty = btf.peel(element)?;
                spec.steps.push(MemberStep { ty: ty.id, index: *index, name: None });
                spec.bits = spec.bits.checked_add(elements(btf, ty.id, *index)?).ok_or(SpecError::Access)?;
            }
            _ => return Err(SpecError::Access),
        }
    }
    Ok(spec)
}

/// Offset of an array element in bits. Sizes are below 2^32 unless arrays nest, and the check keeps sums of 64 steps
/// within 64 bits.
fn elements(btf: &Btf<'_>, ty: u32, index: u32) -> Result<u64, SpecError> {
    let bits = btf.size(ty)?.checked_mul(8 * u64::from(index)).ok_or(SpecError::Access)?;
    if bits > 1 << 56 { Err(SpecError::Access) } else { Ok(bits) }
}

/// True if the array that was just reached is a struct's last member and has size 0: `int tail[]`.
fn flexible(btf: &Btf<'_>, spec: &MemberPath<'_>, len: u32) -> Result<bool, SpecError> {
    let Some(last) = spec.steps.last().filter(|step| len == 0 && step.name.is_some()) else { return Ok(false) };
    let parent = btf.ty(last.ty)?;
    Ok(parent.kind == BtfKind::Struct && last.index.checked_add(1) == Some(parent.vlen))
}

/// The same path in the kernel's types, starting with `candidate`; None if it does not exist there.
pub fn match_fields<'t>(
    local: &Btf<'_>,
    spec: &MemberPath<'_>,
    target: &Btf<'t>,
    candidate: u32,
) -> Result<Option<MemberPath<'t>>, SpecError> {
    let mut found = MemberPath { root: candidate, steps: Vec::new(), bits: 0 };
    let mut ty = target.peel(candidate)?;
    for (n, step) in spec.steps.iter().enumerate() {
        if step.name.is_some() {
            let Some(next) = match_member(local, step, target, &ty, &mut found, 0)? else { return Ok(None) };
            ty = target.peel(next)?;
            continue;
        }
        if n > 0 {
            let Some((element, len)) = ty.array() else { return Ok(None) };
            if step.index >= len && !flexible(target, &found, len)? {
                return Ok(None);
            }
            ty = target.peel(element)?;
        }
        found.steps.push(MemberStep { ty: ty.id, index: step.index, name: None });
        let Ok(bits) = elements(target, ty.id, step.index) else { return Ok(None) };
        found.bits = found.bits.checked_add(bits).ok_or(SpecError::Access)?;
    }
    Ok(Some(found))
}

/// Finds a member with the step's name, also within anonymous members, and returns its type.
fn match_member<'t>(
    local: &Btf<'_>,
    step: &MemberStep<'_>,
    target: &Btf<'t>,
    ty: &Type<'t>,
    found: &mut MemberPath<'t>,
    depth: usize,
) -> Result<Option<u32>, SpecError> {
    if depth > MAX_DEPTH || !matches!(ty.kind, BtfKind::Struct | BtfKind::Union) {
        return Ok(None);
    }
    let own = local.ty(step.ty)?.member(step.index as usize).ok_or(SpecError::Access)?;
    for (index, member) in (0..).zip(ty.members()) {
        let name = target.string_bytes(member.name_offset);
        if name.is_empty() {
            found.bits += u64::from(member.bit_offset);
            let inner = target.peel(member.ty)?;
            if let Some(next) = match_member(local, step, target, &inner, found, depth + 1)? {
                return Ok(Some(next));
            }
            found.bits -= u64::from(member.bit_offset);
        } else if Some(name) == step.name {
            if !fields_fit(local, own.ty, target, member.ty)? {
                return Ok(None);
            }
            found.bits += u64::from(member.bit_offset);
            found.steps.push(MemberStep { ty: ty.id, index, name: Some(name) });
            return Ok(Some(member.ty));
        }
    }
    Ok(None)
}

/// True if a member of one type can be read as one of the other type.
fn fields_fit(local: &Btf<'_>, own: u32, target: &Btf<'_>, other: u32) -> Result<bool, SpecError> {
    let (mut own, mut other) = (local.peel(own)?, target.peel(other)?);
    for _ in 0..MAX_DEPTH {
        let composite = |kind| matches!(kind, BtfKind::Struct | BtfKind::Union);
        if composite(own.kind) && composite(other.kind) {
            return Ok(true);
        }
        if !same_kind(own.kind, other.kind) {
            return Ok(false);
        }
        match own.kind {
            BtfKind::Ptr | BtfKind::Float => return Ok(true),
            BtfKind::Fwd | BtfKind::Enum | BtfKind::Enum64 => {
                let names = (essential(local.string_bytes(own.name_offset)), essential(target.string_bytes(other.name_offset)));
                return Ok(names.0.is_empty() || names.1.is_empty() || names.0 == names.1);
            }
            BtfKind::Int => return Ok(plain(&own) && plain(&other)),
            BtfKind::Array => {
                let (Some((a, _)), Some((b, _))) = (own.array(), other.array()) else { return Ok(false) };
                (own, other) = (local.peel(a)?, target.peel(b)?);
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// Integers with an offset are bitfields in an encoding that compilers no longer use.
fn plain(int: &Type<'_>) -> bool {
    int.int().is_some_and(|(_, offset, _)| offset == 0)
}

/// True if a kernel type matches the object's local type.
pub fn types_fit(local: &Btf<'_>, own: u32, target: &Btf<'_>, other: u32, depth: usize) -> Result<bool, SpecError> {
    let (mut own, mut other) = (local.peel(own)?, target.peel(other)?);
    for depth in depth..MAX_DEPTH {
        if !same_kind(own.kind, other.kind) {
            return Ok(false);
        }
        match own.kind {
            BtfKind::Void | BtfKind::Struct | BtfKind::Union | BtfKind::Enum | BtfKind::Enum64 | BtfKind::Fwd => {
                return Ok(true);
            }
            BtfKind::Int => return Ok(plain(&own) && plain(&other)),
            BtfKind::Ptr => (own, other) = (local.peel(own.size_or_type)?, target.peel(other.size_or_type)?),
            BtfKind::Array => {
                let (Some((a, _)), Some((b, _))) = (own.array(), other.array()) else { return Ok(false) };
                (own, other) = (local.peel(a)?, target.peel(b)?);
            }
            BtfKind::FuncProto => {
                if own.vlen != other.vlen {
                    return Ok(false);
                }
                for ((_, a), (_, b)) in own.parameters().zip(other.parameters()) {
                    if !types_fit(local, a, target, b, depth + 1)? {
                        return Ok(false);
                    }
                }
                (own, other) = (local.peel(own.size_or_type)?, target.peel(other.size_or_type)?);
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_end_at_three_underscores() {
        let table: [(&[u8], &[u8]); 7] = [
            (b"task_struct", b"task_struct"),
            (b"task_struct___old", b"task_struct"),
            (b"a___b___c", b"a___b"),
            (b"___x", b"___x"),
            (b"x___", b"x___"),
            (b"x____y", b"x____y"),
            (b"", b""),
        ];
        for (name, expected) in table {
            assert_eq!(essential(name), expected);
        }
    }

    #[test]
    fn access_strings_are_numbers_between_colons() {
        assert_eq!(access("0:1:2"), Some(vec![0, 1, 2]));
        for bad in ["", ":", "0:", "x", "-1", "0:4294967296", &["0"; 65].join(":")] {
            assert_eq!(access(bad), None, "{bad}");
        }
    }
}
