//! Typed views of BTF's type records.

use super::{Btf, Defect, Kind};

/// A type: its id, its name and what it is.
#[derive(Copy, Clone, Debug)]
#[doc(alias = "btf_type")]
pub struct Type<'a> {
    /// Its id.
    pub id: u32,
    /// Its name; empty for types without one.
    pub name: &'a str,
    /// What it is.
    pub def: Def<'a>,
}

/// What a type is. Fields named after types hold type ids.
#[derive(Copy, Clone, Debug)]
pub enum Def<'a> {
    /// No type.
    Void,
    /// Integer, character or boolean.
    Int(Int),
    /// Pointer to the type.
    Ptr(u32),
    /// Array.
    Array(Array),
    /// Struct.
    Struct(Composite<'a>),
    /// Union.
    Union(Composite<'a>),
    /// Enumeration, with values of 32 or of 64 bits.
    Enum(Enum<'a>),
    /// Declaration of a struct, or a union, without its members.
    Fwd {
        /// Whether it is a union.
        is_union: bool,
    },
    /// Another name for the type.
    Typedef(u32),
    /// `volatile` type.
    Volatile(u32),
    /// `const` type.
    Const(u32),
    /// `restrict` type.
    Restrict(u32),
    /// Function.
    Func {
        /// Its [`FuncProto`].
        proto: u32,
        /// Where it can be called from.
        linkage: Linkage,
    },
    /// Parameters and return type.
    FuncProto(FuncProto<'a>),
    /// Global variable.
    Var {
        /// Its type.
        ty: u32,
        /// Where it can be seen from.
        linkage: Linkage,
    },
    /// Section of variables.
    Datasec(Datasec<'a>),
    /// Floating point number.
    Float {
        /// Bytes.
        size: u32,
    },
    /// `btf_decl_tag` attribute, whose text is the type's name.
    DeclTag {
        /// What it is attached to.
        ty: u32,
        /// The member or parameter it is attached to, or `None` for the whole.
        component: Option<u32>,
    },
    /// `btf_type_tag` attribute on the type; its text is the type's name.
    TypeTag(u32),
}

impl Type<'_> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.def {
            Def::Void => Kind::Void,
            Def::Int(_) => Kind::Int,
            Def::Ptr(_) => Kind::Ptr,
            Def::Array(_) => Kind::Array,
            Def::Struct(_) => Kind::Struct,
            Def::Union(_) => Kind::Union,
            Def::Enum(def) if def.is_64() => Kind::Enum64,
            Def::Enum(_) => Kind::Enum,
            Def::Fwd { .. } => Kind::Fwd,
            Def::Typedef(_) => Kind::Typedef,
            Def::Volatile(_) => Kind::Volatile,
            Def::Const(_) => Kind::Const,
            Def::Restrict(_) => Kind::Restrict,
            Def::Func { .. } => Kind::Func,
            Def::FuncProto(_) => Kind::FuncProto,
            Def::Var { .. } => Kind::Var,
            Def::Datasec(_) => Kind::Datasec,
            Def::Float { .. } => Kind::Float,
            Def::DeclTag { .. } => Kind::DeclTag,
            Def::TypeTag(_) => Kind::TypeTag,
        }
    }
}

/// An integer, character or boolean.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Int {
    /// Bytes: 1, 2, 4, 8 or 16.
    pub size: u32,
    /// Bits that count, from `offset` on. Fewer than `size` has only in bit fields of old compilers.
    pub bits: u8,
    /// First bit that counts.
    pub offset: u8,
    /// How to read and print it.
    pub encoding: IntEncoding,
}

/// How the bits of an integer are meant.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum IntEncoding {
    /// Number without a sign.
    Unsigned,
    /// Number in two's complement.
    Signed,
    /// Character.
    Char,
    /// Boolean.
    Bool,
}

impl Int {
    pub(super) fn decode(size: u32, raw: u32) -> Result<Self, Defect> {
        let bad = Defect::BadInt { size, encoding: raw };
        let [bits, _, offset, encoding] = raw.to_le_bytes();
        let encoding = match encoding {
            0 => IntEncoding::Unsigned,
            1 => IntEncoding::Signed,
            2 => IntEncoding::Char,
            4 => IntEncoding::Bool,
            _ => return Err(bad),
        };
        let end = u32::from(bits) + u32::from(offset);
        if !matches!(size, 1 | 2 | 4 | 8 | 16) || end > size * 8 {
            return Err(bad);
        }
        Ok(Self { size, bits, offset, encoding })
    }
}

/// An array.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Array {
    /// Type of the elements.
    pub element: u32,
    /// Type of the index, of no consequence.
    pub index: u32,
    /// Elements; 0 for a flexible array member.
    pub len: u32,
}

/// A struct or union.
#[derive(Copy, Clone, Debug)]
pub struct Composite<'a> {
    /// Bytes.
    pub size: u32,
    pub(super) btf: &'a Btf,
    pub(super) has_bitfields: bool,
    pub(super) members: &'a [[u32; 3]],
}

/// A member of a struct or union.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Member<'a> {
    /// Its name; empty for an anonymous struct or union.
    pub name: &'a str,
    /// Its type.
    pub ty: u32,
    /// Bits from the start of the struct.
    pub bit_offset: u32,
    /// Bits of a bit field; `None` for an ordinary member.
    pub bitfield_size: Option<u8>,
}

impl<'a> Composite<'a> {
    /// The members, in order.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = Member<'a>> + ExactSizeIterator + 'a {
        let this = *self;
        this.members.iter().map(move |raw| this.decode(raw))
    }

    /// The member with this index.
    pub fn member(&self, index: usize) -> Option<Member<'a>> {
        self.members.get(index).map(|raw| self.decode(raw))
    }

    fn decode(&self, &[name, ty, offset]: &[u32; 3]) -> Member<'a> {
        let name = self.btf.str_at(name);
        if !self.has_bitfields {
            return Member { name, ty, bit_offset: offset, bitfield_size: None };
        }
        let [.., bits] = offset.to_le_bytes();
        Member {
            name,
            ty,
            bit_offset: offset & 0xff_ffff,
            bitfield_size: (bits != 0).then_some(bits),
        }
    }
}

/// An enumeration.
#[derive(Copy, Clone, Debug)]
pub struct Enum<'a> {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u32,
    /// Whether values have a sign.
    pub is_signed: bool,
    pub(super) btf: &'a Btf,
    pub(super) values: EnumValues<'a>,
}

#[derive(Copy, Clone, Debug)]
pub(super) enum EnumValues<'a> {
    Narrow(&'a [[u32; 2]]),
    Wide(&'a [[u32; 3]]),
}

/// A named value of an enumeration.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Enumerator<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value, negative only in a signed enumeration.
    pub value: i128,
}

impl<'a> Enum<'a> {
    /// Whether the values are stored with 64 bits (`BTF_KIND_ENUM64`).
    pub const fn is_64(&self) -> bool {
        matches!(self.values, EnumValues::Wide(_))
    }

    /// How many values it has.
    pub const fn len(&self) -> usize {
        match self.values {
            EnumValues::Narrow(values) => values.len(),
            EnumValues::Wide(values) => values.len(),
        }
    }

    /// Whether it has no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, in order.
    pub fn values(&self) -> impl Iterator<Item = Enumerator<'a>> + 'a {
        let this = *self;
        (0..this.len()).filter_map(move |index| this.value(index))
    }

    /// The value with this index.
    pub fn value(&self, index: usize) -> Option<Enumerator<'a>> {
        let (name, value) = match (self.values, self.is_signed) {
            (EnumValues::Narrow(values), true) => {
                values.get(index).map(|&[name, value]| (name, i128::from(value as i32)))
            }
            (EnumValues::Narrow(values), false) => {
                values.get(index).map(|&[name, value]| (name, i128::from(value)))
            }
            (EnumValues::Wide(values), is_signed) => values.get(index).map(|&[name, lo, hi]| {
                let value = u64::from(hi) << 32 | u64::from(lo);
                (name, if is_signed { i128::from(value as i64) } else { i128::from(value) })
            }),
        }?;
        Some(Enumerator { name: self.btf.str_at(name), value })
    }
}

/// Parameters and return type of a function.
#[derive(Copy, Clone, Debug)]
pub struct FuncProto<'a> {
    /// Return type.
    pub ret: u32,
    pub(super) btf: &'a Btf,
    pub(super) params: &'a [[u32; 2]],
}

/// A parameter of a function. The last one of a variadic function has no name and type 0.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Param<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub ty: u32,
}

impl<'a> FuncProto<'a> {
    /// The parameters, in order.
    pub fn params(&self) -> impl ExactSizeIterator<Item = Param<'a>> + 'a {
        let btf = self.btf;
        self.params.iter().map(move |&[name, ty]| Param { name: btf.str_at(name), ty })
    }
}

/// A section of variables.
#[derive(Copy, Clone, Debug)]
pub struct Datasec<'a> {
    /// Bytes; compilers leave 0, see [`Btf::fix_datasec`].
    pub size: u32,
    pub(super) vars: &'a [[u32; 3]],
}

/// A variable in a section.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SecVar {
    /// The [`Def::Var`].
    pub var: u32,
    /// Bytes from the start of the section.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

impl<'a> Datasec<'a> {
    /// The variables, in order.
    pub fn vars(&self) -> impl ExactSizeIterator<Item = SecVar> + 'a {
        self.vars.iter().map(|&[var, offset, size]| SecVar { var, offset, size })
    }
}

/// Where a function or variable can be seen from.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Linkage {
    /// Its own file.
    Static,
    /// Every file.
    Global,
    /// Defined elsewhere.
    Extern,
}

impl Linkage {
    pub(super) const fn decode(raw: u32) -> Result<Self, Defect> {
        match raw {
            0 => Ok(Self::Static),
            1 => Ok(Self::Global),
            2 => Ok(Self::Extern),
            _ => Err(Defect::BadLinkage(raw)),
        }
    }
}
