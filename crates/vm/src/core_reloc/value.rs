//! The answer to a relocation's question.

use bpfarray_core::btf::{Btf, Def, IntEncoding, Type};

use super::CoreRelocDefect;
use super::spec::{RelocKind, Spec};

/// What an instruction holds now and should hold.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// What the object's own types say.
    pub(super) old: u64,
    /// What the target's types say; `None` if they cannot.
    pub(super) new: Option<u64>,
    /// Whether the instruction must hold `old` before it is changed.
    pub(super) validate: bool,
    /// How an instruction that accesses the field must change to access a field of another size.
    pub(super) resize: Resize,
}

/// How to access a field of another size than the one compiled for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Resize {
    /// It has the same size.
    Keep,
    /// From so many bytes to so many; the value is the same after zero extension.
    Change(u32, u32),
    /// A value of another size and sign would be misread.
    Refuse,
}

impl Answer {
    /// What `target` answers, `None` being that nothing in the target corresponds to `local`.
    pub(super) fn new(
        kind: RelocKind,
        local: &Spec<'_>,
        target: Option<&Spec<'_>>,
    ) -> Result<Self, CoreRelocDefect> {
        let old = Value::new(kind, Some(local))?;
        let new = Value::new(kind, target)?;
        let resize = match (old.field, new.field, target) {
            (Some((a, _)), Some((b, _)), _) if a == b => Resize::Keep,
            (Some((a, a_type)), Some((b, b_type)), Some(target)) => {
                let (a_type, b_type) = (local.btf.get(a_type)?, target.btf.get(b_type)?);
                if zero_extends(a_type, b_type) { Resize::Change(a, b) } else { Resize::Refuse }
            }
            _ => Resize::Keep,
        };
        Ok(Self { old: old.value.unwrap_or(0), new: new.value, validate: old.validate, resize })
    }
}

/// Whether a narrower or wider load of one type gives the same value as of the other.
fn zero_extends(a: Type<'_>, b: Type<'_>) -> bool {
    match (a.def, b.def) {
        (Def::Ptr(_), Def::Ptr(_)) => true,
        (Def::Int(a), Def::Int(b)) => {
            a.encoding != IntEncoding::Signed && b.encoding != IntEncoding::Signed
        }
        _ => false,
    }
}

/// One side's answer.
struct Value {
    value: Option<u64>,
    /// Whether compilers agree on the value, so that it can be checked.
    validate: bool,
    /// Size and type of a field an instruction may access.
    field: Option<(u32, u32)>,
}

impl Value {
    const fn sure(value: u64) -> Self {
        Self { value: Some(value), validate: true, field: None }
    }

    fn new(kind: RelocKind, spec: Option<&Spec<'_>>) -> Result<Self, CoreRelocDefect> {
        let Some(spec) = spec else {
            // No such thing: that is an answer to some questions, and none to the others.
            let value = match kind {
                RelocKind::FieldExists | RelocKind::EnumvalExists => Some(0),
                _ if kind.is_type_based() => Some(0),
                _ => None,
            };
            return Ok(Self { value, validate: true, field: None });
        };
        match kind {
            RelocKind::FieldExists
            | RelocKind::TypeExists
            | RelocKind::TypeMatches
            | RelocKind::EnumvalExists => Ok(Self::sure(1)),
            RelocKind::TypeSize => Ok(Self::sure(u64::from(spec.btf.size_of(spec.root)?))),
            // Ids change when objects are linked.
            RelocKind::TypeIdLocal | RelocKind::TypeIdTarget => {
                Ok(Self { validate: false, ..Self::sure(u64::from(spec.root)) })
            }
            RelocKind::EnumvalValue => enumerator(spec),
            RelocKind::FieldByteOffset
            | RelocKind::FieldByteSize
            | RelocKind::FieldSigned
            | RelocKind::FieldLshiftU64
            | RelocKind::FieldRshiftU64 => field(kind, spec),
        }
    }
}

fn enumerator(spec: &Spec<'_>) -> Result<Value, CoreRelocDefect> {
    let bad = CoreRelocDefect::BadPath(spec.root);
    let access = spec.path.first().ok_or(bad)?;
    let Def::Enum(def) = spec.btf.get(access.ty)?.def else { return Err(bad) };
    let value = def.value(access.index as usize).ok_or(bad)?.value;
    Ok(Value::sure(value as u64))
}

/// The type an access of the field moves: of an array, its elements.
fn accessed_type(btf: &Btf, ty: u32) -> Result<Type<'_>, CoreRelocDefect> {
    let mut ty = btf.resolve(ty)?;
    while let Def::Array(array) = ty.def {
        ty = btf.resolve(array.element)?;
    }
    Ok(ty)
}

/// # Kernel
/// `bpf_core_calc_field_relo` in libbpf
fn field(kind: RelocKind, spec: &Spec<'_>) -> Result<Value, CoreRelocDefect> {
    let access = spec.path.last().ok_or(CoreRelocDefect::BadPath(spec.root))?;
    let byte_offset = spec.bit_offset / 8;
    if access.name.is_none() {
        let size = spec.btf.size_of(access.ty)?;
        return match kind {
            RelocKind::FieldByteOffset => {
                Ok(Value { field: Some((size, access.ty)), ..Value::sure(byte_offset) })
            }
            RelocKind::FieldByteSize => Ok(Value::sure(u64::from(size))),
            _ => Err(CoreRelocDefect::Inapplicable),
        };
    }
    let member = match spec.btf.get(access.ty)?.def {
        Def::Struct(def) | Def::Union(def) => def.member(access.index as usize),
        _ => None,
    };
    let member = member.ok_or(CoreRelocDefect::BadPath(spec.root))?;
    let ty = spec.btf.resolve(member.ty)?;
    let full_size = u64::from(spec.btf.size_of(member.ty)?);
    let (offset, size, bits) = match member.bitfield_size {
        Some(bits) => {
            let (offset, size) = bitfield_word(spec.bit_offset, u64::from(bits), full_size)?;
            (offset, size, u64::from(bits))
        }
        None => (byte_offset, full_size, full_size * 8),
    };
    // From which word a bit field is loaded is a compiler's own choice.
    let loads_word = Value { validate: member.bitfield_size.is_none(), ..Value::sure(0) };
    let too_wide = CoreRelocDefect::Inapplicable;
    Ok(match kind {
        RelocKind::FieldByteOffset => {
            let field = match member.bitfield_size {
                Some(_) => None,
                None => {
                    let accessed = accessed_type(spec.btf, member.ty)?;
                    Some((spec.btf.size_of(accessed.id)?, accessed.id))
                }
            };
            Value { value: Some(offset), field, ..loads_word }
        }
        RelocKind::FieldByteSize => Value { value: Some(size), ..loads_word },
        RelocKind::FieldSigned => Value::sure(u64::from(match ty.def {
            Def::Int(int) => int.encoding == IntEncoding::Signed,
            Def::Enum(def) => def.is_signed,
            _ => false,
        })),
        RelocKind::FieldLshiftU64 => {
            let above = 64_u64.checked_sub(spec.bit_offset + bits - offset * 8);
            Value { value: Some(above.ok_or(too_wide)?), ..loads_word }
        }
        _ => Value::sure(64_u64.checked_sub(bits).ok_or(too_wide)?),
    })
}

/// Offset and size in bytes of the smallest aligned word, from the declared type's size up, that holds
/// all bits of a bit field.
fn bitfield_word(bit_offset: u64, bits: u64, declared: u64) -> Result<(u64, u64), CoreRelocDefect> {
    let mut size = declared.max(1);
    loop {
        let offset = bit_offset / 8 / size * size;
        if bit_offset + bits - offset * 8 <= size * 8 {
            return Ok((offset, size));
        }
        if size >= 8 {
            return Err(CoreRelocDefect::Inapplicable);
        }
        size *= 2;
    }
}
