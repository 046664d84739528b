//! CO-RE: the kinds of relocations, and their values for a type. The rules are libbpf's (tools/lib/bpf/relo_core.c of
//! the Linux source).

use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::core_spec::{MemberPath, SpecError};

/// The value that a relocation asks for: `enum bpf_core_relo_kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreQuestion {
    FieldOffset,
    FieldSize,
    FieldExists,
    FieldSigned,
    FieldLeftShift,
    FieldRightShift,
    LocalId,
    TargetId,
    TypeExists,
    TypeSize,
    ValueExists,
    Value,
    TypeMatches,
}

impl CoreQuestion {
    /// The kind with a number.
    pub fn from_raw(raw: u32) -> Option<Self> {
        use CoreQuestion as A;
        const ALL: [CoreQuestion; 13] = [
            A::FieldOffset,
            A::FieldSize,
            A::FieldExists,
            A::FieldSigned,
            A::FieldLeftShift,
            A::FieldRightShift,
            A::LocalId,
            A::TargetId,
            A::TypeExists,
            A::TypeSize,
            A::ValueExists,
            A::Value,
            A::TypeMatches,
        ];
        ALL.get(raw as usize).copied()
    }

    /// True for kinds that are about a member.
    pub fn of_field(self) -> bool {
        (self as u32) < (Self::LocalId as u32)
    }

    /// True for kinds that are about a value of an enum.
    pub fn of_value(self) -> bool {
        matches!(self, Self::ValueExists | Self::Value)
    }
}

/// The value of a relocation: a number and, for offsets, the field that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreAnswer {
    /// The number.
    pub value: u64,
    /// Size in bytes and type id of the field, for offsets of whole fields.
    pub field: Option<(u64, u32)>,
}

/// The value for a path through some types; None if the kind requires that the path exists and it does not.
pub fn answer(ask: CoreQuestion, btf: &Btf<'_>, spec: Option<&MemberPath<'_>>) -> Result<Option<CoreAnswer>, SpecError> {
    let number = |value| Ok(Some(CoreAnswer { value, field: None }));
    match (ask, spec) {
        (
            CoreQuestion::FieldExists | CoreQuestion::TypeExists | CoreQuestion::TypeMatches | CoreQuestion::ValueExists,
            spec,
        ) => number(u64::from(spec.is_some())),
        // Nothing has the id 0, and no type that exists the size 0, by which programs tell.
        (CoreQuestion::TargetId | CoreQuestion::TypeSize, None) => number(0),
        (_, None) => Ok(None),
        (CoreQuestion::LocalId | CoreQuestion::TargetId, Some(spec)) => number(u64::from(spec.root)),
        (CoreQuestion::TypeSize, Some(spec)) => number(btf.size(spec.root)?),
        (CoreQuestion::Value, Some(spec)) => {
            let step = spec.steps.first().ok_or(SpecError::Access)?;
            let value = btf.ty(step.ty)?.values().nth(step.index as usize).ok_or(SpecError::Access)?;
            number(value.1)
        }
        (ask, Some(spec)) => field_answer(ask, btf, spec).map(Some),
    }
}

fn field_answer(ask: CoreQuestion, btf: &Btf<'_>, spec: &MemberPath<'_>) -> Result<CoreAnswer, SpecError> {
    let number = |value| Ok(CoreAnswer { value, field: None });
    let last = spec.steps.last().ok_or(SpecError::Access)?;
    if last.name.is_none() {
        let size = btf.size(last.ty)?;
        return match ask {
            CoreQuestion::FieldOffset => Ok(CoreAnswer { value: spec.bits / 8, field: Some((size, last.ty)) }),
            CoreQuestion::FieldSize => number(size),
            _ => Err(SpecError::Access),
        };
    }
    let member = btf.ty(last.ty)?.member(last.index as usize).ok_or(SpecError::Access)?;
    let ty = btf.peel(member.ty)?;
    let (mut bytes, mut offset) = (btf.size(member.ty)?, spec.bits / 8);
    let mut bits = bytes.checked_mul(8).ok_or(SpecError::Access)?;
    if member.bits > 0 {
        // The smallest aligned load that covers the bitfield.
        bits = u64::from(member.bits);
        if bytes == 0 || bytes > 8 {
            return Err(SpecError::Access);
        }
        offset = spec.bits / 8 / bytes * bytes;
        while spec.bits + bits - offset * 8 > bytes * 8 {
            if bytes >= 8 {
                return Err(SpecError::Access);
            }
            bytes *= 2;
            offset = spec.bits / 8 / bytes * bytes;
        }
    }
    match ask {
        CoreQuestion::FieldOffset => Ok(CoreAnswer { value: offset, field: (member.bits == 0).then_some((bytes, member.ty)) }),
        CoreQuestion::FieldSize => number(bytes),
        CoreQuestion::FieldSigned => {
            let signed = match ty.kind {
                BtfKind::Enum | BtfKind::Enum64 => ty.flag,
                _ => ty.int().is_some_and(|(encoding, ..)| encoding & 1 != 0),
            };
            number(u64::from(signed))
        }
        CoreQuestion::FieldLeftShift => {
            let within = spec.bits - offset * 8;
            let shift = if cfg!(target_endian = "little") {
                64u64.checked_sub(within + bits)
            } else {
                8u64.checked_sub(bytes).map(|spare| spare * 8 + within)
            };
            number(shift.ok_or(SpecError::Access)?)
        }
        CoreQuestion::FieldRightShift => number(64u64.checked_sub(bits).ok_or(SpecError::Access)?),
        _ => Err(SpecError::Access),
    }
}
