//! Bytes seen through a BTF type, one level at a time and without copies.
//!
//! Displays as one line of text; serializes in the form of bpftool's `formatted`.

mod columns;
mod json;
mod text;
mod weight;

use bpfarray_core::btf::{Array, Btf, Composite, Datasec, Def, Enum, Int, IntEncoding, Type};

pub(crate) use columns::{Column, columns};
pub(crate) use weight::text_len;

/// Bytes of a value, and the type that says what they mean.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Value<'a> {
    btf: &'a Btf,
    ty: u32,
    /// From the value's first byte on; may be longer than the value, or too short.
    bytes: &'a [u8],
    bits: Option<Bits>,
}

/// The place of a bit field, counted from the first byte's lowest bit.
#[derive(Copy, Clone, Debug)]
struct Bits {
    offset: u32,
    len: u32,
}

/// What a value is, on its outermost level.
pub(crate) enum Shape<'a> {
    Unsigned(u64),
    Signed(i64),
    /// A bit field, which bpftool prints in base 16.
    BitField {
        bits: u128,
        number: i128,
    },
    /// An integer of 128 bits, likewise.
    Wide(u128),
    Bool(bool),
    Char(char),
    Single(f32),
    Double(f64),
    Pointer(u64),
    Enumerator(&'a str),
    Text(&'a str),
    Fields(Fields<'a>),
    Items(Items<'a>),
    Vars(Vars<'a>),
    /// A type that has no values, or fewer bytes than the type needs.
    Unknown,
}

impl<'a> Value<'a> {
    pub(crate) fn new(btf: &'a Btf, ty: u32, bytes: &'a [u8]) -> Self {
        Self { btf, ty, bytes, bits: None }
    }

    pub(crate) fn shape(&self) -> Shape<'a> {
        self.known_shape().unwrap_or(Shape::Unknown)
    }

    fn known_shape(&self) -> Option<Shape<'a>> {
        let ty = self.btf.resolve(self.ty).ok()?;
        if let Some(bits) = self.bits {
            let is_signed = match ty.def {
                Def::Int(int) => int.encoding == IntEncoding::Signed,
                Def::Enum(def) => def.is_signed,
                _ => false,
            };
            return self.bit_field(bits, is_signed);
        }
        match ty.def {
            Def::Int(int) => self.int(int),
            Def::Ptr(_) => self.unsigned(8).map(Shape::Pointer),
            Def::Float { size: 4 } => {
                self.unsigned(4).map(|bits| Shape::Single(f32::from_bits(bits as u32)))
            }
            Def::Float { size: 8 } => {
                self.unsigned(8).map(|bits| Shape::Double(f64::from_bits(bits)))
            }
            Def::Enum(def) => self.enumerator(def),
            Def::Struct(def) | Def::Union(def) => Some(Shape::Fields(Fields { of: *self, def })),
            Def::Array(array) => self.array(array),
            Def::Datasec(def) => Some(Shape::Vars(Vars { of: *self, section: ty.name, def })),
            _ => None,
        }
    }

    pub(crate) fn btf(&self) -> &'a Btf {
        self.btf
    }

    pub(crate) fn ty(&self) -> u32 {
        self.ty
    }

    fn int(&self, int: Int) -> Option<Shape<'a>> {
        let bits = Bits { offset: int.offset.into(), len: int.bits.into() };
        if bits.offset != 0 || !bits.len.is_multiple_of(8) {
            return self.bit_field(bits, int.encoding == IntEncoding::Signed);
        }
        if int.size == 16 {
            return self.bits(bits).map(Shape::Wide);
        }
        let unsigned = self.unsigned(int.size)?;
        Some(match int.encoding {
            IntEncoding::Unsigned => Shape::Unsigned(unsigned),
            IntEncoding::Signed => Shape::Signed(sign_extend(unsigned, int.size)),
            IntEncoding::Char => Shape::Char(char::from(unsigned as u8)),
            IntEncoding::Bool => Shape::Bool(unsigned != 0),
        })
    }

    fn bit_field(&self, place: Bits, is_signed: bool) -> Option<Shape<'a>> {
        let bits = self.bits(place)?;
        let unused = 128_u32.saturating_sub(place.len);
        let number = match bits.checked_shl(unused) {
            Some(shifted) if is_signed => shifted.cast_signed() >> unused,
            _ => bits.cast_signed(),
        };
        Some(Shape::BitField { bits, number })
    }

    fn enumerator(&self, def: Enum<'a>) -> Option<Shape<'a>> {
        let unsigned = self.unsigned(def.size)?;
        let signed = sign_extend(unsigned, def.size);
        let value = if def.is_signed { i128::from(signed) } else { i128::from(unsigned) };
        Some(match def.values().find(|named| named.value == value) {
            Some(named) => Shape::Enumerator(named.name),
            None if def.is_signed => Shape::Signed(signed),
            None => Shape::Unsigned(unsigned),
        })
    }

    fn array(&self, array: Array) -> Option<Shape<'a>> {
        let stride = self.btf.size_of(array.element).ok()?;
        // Elements without bytes would be printed as often as a number in the object says.
        let len = if stride == 0 { 0 } else { array.len };
        let text = self.bytes.get(..len as usize).filter(|_| self.is_char(array.element));
        Some(match text.and_then(terminated) {
            Some(text) => Shape::Text(text),
            None => Shape::Items(Items { of: *self, element: array.element, stride, len }),
        })
    }

    /// Clang gives `char` no encoding of its own, only its name.
    fn is_char(&self, ty: u32) -> bool {
        self.btf.resolve(ty).is_ok_and(|ty| match ty.def {
            Def::Int(int) => {
                int.size == 1 && (int.encoding == IntEncoding::Char || ty.name == "char")
            }
            _ => false,
        })
    }

    fn unsigned(&self, size: u32) -> Option<u64> {
        let mut number = [0; 8];
        let size = size as usize;
        number.get_mut(..size)?.copy_from_slice(self.bytes.get(..size)?);
        Some(u64::from_le_bytes(number))
    }

    fn bits(&self, bits: Bits) -> Option<u128> {
        let shift = bits.offset % 8;
        let first = (bits.offset / 8) as usize;
        let bytes = self.bytes.get(first..first + (shift + bits.len).div_ceil(8) as usize)?;
        let mut number = 0_u128;
        for (at, byte) in (0_u32..).zip(bytes) {
            let byte = u128::from(*byte);
            number |= match (at * 8).checked_sub(shift) {
                Some(up) => byte.checked_shl(up).unwrap_or(0),
                None => byte >> shift,
            };
        }
        Some(number & u128::MAX.checked_shr(128_u32.checked_sub(bits.len)?).unwrap_or(0))
    }

    fn at(&self, offset: u32, ty: u32) -> Self {
        let bytes = self.bytes.get(offset as usize..).unwrap_or_default();
        Self { btf: self.btf, ty, bytes, bits: None }
    }

    fn member(&self, ty: u32, bit_offset: u32, bitfield_size: Option<u8>) -> Self {
        let member = self.at(bit_offset / 8, ty);
        let bits = bitfield_size.map(|len| Bits { offset: bit_offset % 8, len: len.into() });
        Self { bits, ..member }
    }
}

fn sign_extend(unsigned: u64, size: u32) -> i64 {
    let unused = 64_u32.saturating_sub(size.saturating_mul(8));
    ((unsigned << unused) as i64) >> unused
}

/// The string in an array of `char`: printable ASCII up to a NUL. Anything else is an array of numbers.
fn terminated(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = &bytes[..end];
    let printable = text.iter().all(|byte| matches!(byte, b' '..=b'~'));
    std::str::from_utf8(text).ok().filter(|_| printable)
}

/// A struct or union.
#[derive(Copy, Clone)]
pub(crate) struct Fields<'a> {
    of: Value<'a>,
    def: Composite<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.def.members().map(|member| {
            (member.name, self.of.member(member.ty, member.bit_offset, member.bitfield_size))
        })
    }
}

/// An array.
#[derive(Copy, Clone)]
pub(crate) struct Items<'a> {
    of: Value<'a>,
    element: u32,
    stride: u32,
    len: u32,
}

impl<'a> Items<'a> {
    /// The bytes, if they are characters.
    pub(crate) fn chars(&self) -> Option<&'a [u8]> {
        self.of.bytes.get(..self.len as usize).filter(|_| self.of.is_char(self.element))
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> {
        (0..self.len).map(|index| self.of.at(index.saturating_mul(self.stride), self.element))
    }
}

/// A section of variables.
#[derive(Copy, Clone)]
pub(crate) struct Vars<'a> {
    of: Value<'a>,
    pub(crate) section: &'a str,
    def: Datasec<'a>,
}

impl<'a> Vars<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.def.vars().map(|var| {
            let (name, ty) = match self.of.btf.get(var.var) {
                Ok(Type { name, def: Def::Var { ty, .. }, .. }) => (name, ty),
                _ => ("", 0),
            };
            (name, self.of.at(var.offset, ty))
        })
    }
}
