//! One type record: a common part of three words, and a tail whose length the kind decides.

use super::types::EnumValues;
use super::{Array, Btf, Composite, Datasec, Def, Defect, Enum, FuncProto, Int, Kind, Linkage};

const COMMON: usize = 3;

/// A record of the type section, not interpreted further than its kind demands.
#[derive(Copy, Clone)]
pub(super) struct Record<'a> {
    pub(super) name: u32,
    kind: Kind,
    vlen: u16,
    kind_flag: bool,
    /// A size or a type id.
    size_or_type: u32,
    tail: &'a [u32],
}

impl<'a> Record<'a> {
    /// The record `words` begin with.
    pub(super) fn read(words: &'a [u32]) -> Result<Self, Defect> {
        let (&[name, info, size_or_type], tail) =
            words.split_first_chunk::<COMMON>().ok_or(Defect::Truncated)?;
        let [_, _, _, raw_kind] = (info & 0x1f00_0000).to_le_bytes();
        let kind = match Kind::from_raw(raw_kind) {
            None | Some(Kind::Void) => return Err(Defect::UnknownKind(raw_kind)),
            Some(kind) => kind,
        };
        let vlen = info as u16;
        let len = usize::from(vlen);
        let tail_len = match kind {
            Kind::Int | Kind::Var | Kind::DeclTag => 1,
            Kind::Array => 3,
            Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => 3 * len,
            Kind::Enum | Kind::FuncProto => 2 * len,
            _ => 0,
        };
        let tail = tail.get(..tail_len).ok_or(Defect::Truncated)?;
        Ok(Self { name, kind, vlen, kind_flag: info >> 31 != 0, size_or_type, tail })
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Words it takes.
    pub(super) const fn words(&self) -> usize {
        COMMON + self.tail.len()
    }

    /// What the record says, after the checks that need no other type.
    pub(super) fn decode(&self, btf: &'a Btf) -> Result<Def<'a>, Defect> {
        let &Self { kind, vlen, kind_flag, size_or_type: value, tail, .. } = self;
        // A function's length field is its linkage.
        let has_vlen = matches!(
            kind,
            Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::FuncProto
                | Kind::Datasec
                | Kind::Func
        );
        if vlen != 0 && !has_vlen {
            return Err(Defect::UnexpectedLen(kind, vlen));
        }
        let has_flag = matches!(
            kind,
            Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Fwd
                | Kind::DeclTag
                | Kind::TypeTag
        );
        if kind_flag && !has_flag {
            return Err(Defect::UnexpectedFlag(kind));
        }
        let composite = || Composite {
            size: value,
            btf,
            has_bitfields: kind_flag,
            members: tail.as_chunks().0,
        };
        let enumeration = |values| match value {
            1 | 2 | 4 | 8 => Ok(Def::Enum(Enum { size: value, is_signed: kind_flag, btf, values })),
            _ => Err(Defect::BadSize(kind, value)),
        };
        Ok(match (kind, tail) {
            (Kind::Int, &[encoding]) => Def::Int(Int::decode(value, encoding)?),
            (Kind::Ptr, _) => Def::Ptr(value),
            (Kind::Array, &[element, index, len]) => Def::Array(Array { element, index, len }),
            (Kind::Struct, _) => Def::Struct(composite()),
            (Kind::Union, _) => Def::Union(composite()),
            (Kind::Enum, _) => enumeration(EnumValues::Narrow(tail.as_chunks().0))?,
            (Kind::Enum64, _) => enumeration(EnumValues::Wide(tail.as_chunks().0))?,
            (Kind::Fwd, _) => Def::Fwd { is_union: kind_flag },
            (Kind::Typedef, _) => Def::Typedef(value),
            (Kind::Volatile, _) => Def::Volatile(value),
            (Kind::Const, _) => Def::Const(value),
            (Kind::Restrict, _) => Def::Restrict(value),
            (Kind::Func, _) => {
                Def::Func { proto: value, linkage: Linkage::decode(u32::from(vlen))? }
            }
            (Kind::FuncProto, _) => {
                Def::FuncProto(FuncProto { ret: value, btf, params: tail.as_chunks().0 })
            }
            (Kind::Var, &[linkage]) => Def::Var { ty: value, linkage: Linkage::decode(linkage)? },
            (Kind::Datasec, _) => Def::Datasec(Datasec { size: value, vars: tail.as_chunks().0 }),
            (Kind::Float, _) => match value {
                2 | 4 | 8 | 12 | 16 => Def::Float { size: value },
                _ => return Err(Defect::BadSize(kind, value)),
            },
            (Kind::DeclTag, &[component]) => {
                Def::DeclTag { ty: value, component: (component != u32::MAX).then_some(component) }
            }
            (Kind::TypeTag, _) => Def::TypeTag(value),
            _ => return Err(Defect::Truncated),
        })
    }

    /// Offsets of all strings in the record.
    pub(super) fn strings(&self) -> impl Iterator<Item = u32> + 'a {
        let (tail, stride) = match self.kind {
            Kind::Struct | Kind::Union | Kind::Enum64 => (self.tail, 3),
            Kind::Enum | Kind::FuncProto => (self.tail, 2),
            _ => (&[][..], 1),
        };
        core::iter::once(self.name).chain(tail.iter().copied().step_by(stride))
    }

    /// Ids of all types the record refers to.
    pub(super) fn references(&self) -> impl Iterator<Item = u32> + 'a {
        // Of an array, the third word is its length.
        let elements = self.tail.get(..2).unwrap_or_default();
        let (common, tail, skip, stride) = match self.kind {
            Kind::Array => (None, elements, 0, 1),
            Kind::Struct | Kind::Union => (None, self.tail, 1, 3),
            Kind::Datasec => (None, self.tail, 0, 3),
            Kind::FuncProto => (Some(self.size_or_type), self.tail, 1, 2),
            Kind::Int | Kind::Float | Kind::Fwd | Kind::Enum | Kind::Enum64 | Kind::Void => {
                (None, &[][..], 0, 1)
            }
            _ => (Some(self.size_or_type), &[][..], 0, 1),
        };
        common.into_iter().chain(tail.iter().copied().skip(skip).step_by(stride))
    }
}
