//! CO-RE: whether the kernel has a type of the object's shape (`bpf_core_type_matches`). The rules are libbpf's
//! (tools/lib/bpf/relo_core.c of the Linux source, `__bpf_core_types_match`).

use crate::kernel::btf::{Btf, BtfKind, Type};
use crate::kernel::core_spec::{SpecError, essential, same_kind};

/// The limit on nesting, as in libbpf.
const MAX_DEPTH: usize = 32;
/// Comparisons of members that one question may cost: structs of structs multiply, and the kernel's largest need some ten
/// thousand.
const MAX_STEPS: usize = 1 << 20;

/// True if a kernel type has every member, value and parameter of the object's local type, with types that match in turn.
pub fn types_match(local: &Btf<'_>, own: u32, target: &Btf<'_>, other: u32) -> Result<bool, SpecError> {
    TypeMatch { local, target, steps: 0 }.types(own, other, Behind::Nothing, 0)
}

/// Whether the types are those of a pointer's target: then a struct may be declared only, and only names are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Nothing,
    Pointer,
}

struct TypeMatch<'m> {
    local: &'m Btf<'m>,
    target: &'m Btf<'m>,
    steps: usize,
}

impl TypeMatch<'_> {
    fn types(&mut self, own: u32, other: u32, behind: Behind, depth: usize) -> Result<bool, SpecError> {
        self.steps += 1;
        if depth > MAX_DEPTH || self.steps > MAX_STEPS {
            return Err(SpecError::Access);
        }
        let (own, other) = (self.local.peel(own)?, self.target.peel(other)?);
        if !self.same_names(&own, &other) {
            return Ok(false);
        }
        let composite = |kind| matches!(kind, BtfKind::Struct | BtfKind::Union);
        match own.kind {
            BtfKind::Void => Ok(other.kind == BtfKind::Void),
            BtfKind::Fwd if behind == Behind::Pointer && composite(other.kind) => {
                // The flag of a declaration says that it is of a union.
                Ok(own.flag == (other.kind == BtfKind::Union))
            }
            BtfKind::Fwd => Ok(other.kind == BtfKind::Fwd && own.flag == other.flag),
            BtfKind::Enum | BtfKind::Enum64 => Ok(same_kind(own.kind, other.kind) && self.enums(&own, &other)),
            BtfKind::Struct | BtfKind::Union if behind == Behind::Pointer => {
                let union = own.kind == BtfKind::Union;
                Ok(own.kind == other.kind || other.kind == BtfKind::Fwd && other.flag == union)
            }
            BtfKind::Struct | BtfKind::Union => Ok(own.kind == other.kind && self.members(&own, &other, depth)?),
            BtfKind::Int => Ok(other.kind == BtfKind::Int && ints(&own, &other)),
            BtfKind::Ptr => {
                Ok(other.kind == BtfKind::Ptr
                    && self.types(own.size_or_type, other.size_or_type, Behind::Pointer, depth + 1)?)
            }
            BtfKind::Array => match (own.array(), other.array()) {
                (Some((a, length)), Some((b, theirs))) => Ok(length == theirs && self.types(a, b, behind, depth + 1)?),
                _ => Ok(false),
            },
            BtfKind::FuncProto => self.prototypes(&own, &other, depth),
            _ => Err(SpecError::Access),
        }
    }

    /// Types without a name match any.
    fn same_names(&self, own: &Type<'_>, other: &Type<'_>) -> bool {
        let own_name = essential(self.local.string_bytes(own.name_offset));
        let other_name = essential(self.target.string_bytes(other.name_offset));
        // Integers of one size have several names.
        own.kind == BtfKind::Int || own_name.is_empty() || other_name.is_empty() || own_name == other_name
    }

    fn enums(&self, own: &Type<'_>, other: &Type<'_>) -> bool {
        let theirs = |name: &[u8]| other.values().any(|(value, _)| essential(self.target.string_bytes(value)) == name);
        own.values().all(|(value, _)| theirs(essential(self.local.string_bytes(value))))
    }

    fn members(&mut self, own: &Type<'_>, other: &Type<'_>, depth: usize) -> Result<bool, SpecError> {
        for member in own.members() {
            let name = self.local.string_bytes(member.name_offset);
            let mut found = false;
            for theirs in other.members().filter(|theirs| self.target.string_bytes(theirs.name_offset) == name) {
                if self.types(member.ty, theirs.ty, Behind::Nothing, depth + 1)? {
                    found = true;
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn prototypes(&mut self, own: &Type<'_>, other: &Type<'_>, depth: usize) -> Result<bool, SpecError> {
        if other.kind != BtfKind::FuncProto || own.vlen != other.vlen {
            return Ok(false);
        }
        for ((_, a), (_, b)) in own.parameters().zip(other.parameters()) {
            if !self.types(a, b, Behind::Nothing, depth + 1)? {
                return Ok(false);
            }
        }
        self.types(own.size_or_type, other.size_or_type, Behind::Nothing, depth + 1)
    }
}

/// Integers match by size and sign; those with an offset are bitfields in an encoding that compilers no longer use.
fn ints(own: &Type<'_>, other: &Type<'_>) -> bool {
    match (own.int(), other.int()) {
        (Some((encoding, 0, _)), Some((theirs, 0, _))) => own.size_or_type == other.size_or_type && encoding & 1 == theirs & 1,
        _ => false,
    }
}
