//! The kinds of types.

use core::fmt;

/// The kinds of types, with the numbers they have in BTF.
///
/// # Kernel
/// `BTF_KIND_*`
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[doc(alias = "BTF_KIND")]
pub enum Kind {
    /// No type; only id 0 has it.
    Void = 0,
    /// Integer, character or boolean.
    Int = 1,
    /// Pointer.
    Ptr = 2,
    /// Array.
    Array = 3,
    /// Struct.
    Struct = 4,
    /// Union.
    Union = 5,
    /// Enumeration with values of 32 bits.
    Enum = 6,
    /// Declaration of a struct or union without its members.
    Fwd = 7,
    /// Another name for a type.
    Typedef = 8,
    /// `volatile`
    Volatile = 9,
    /// `const`
    Const = 10,
    /// `restrict`
    Restrict = 11,
    /// Function.
    Func = 12,
    /// Parameters and return type of a function.
    FuncProto = 13,
    /// Global variable.
    Var = 14,
    /// Section of variables.
    Datasec = 15,
    /// Floating point number.
    Float = 16,
    /// `btf_decl_tag` attribute.
    DeclTag = 17,
    /// `btf_type_tag` attribute.
    TypeTag = 18,
    /// Enumeration with values of 64 bits.
    Enum64 = 19,
}

impl Kind {
    const ALL: [Self; 20] = [
        Self::Void,
        Self::Int,
        Self::Ptr,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Fwd,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Func,
        Self::FuncProto,
        Self::Var,
        Self::Datasec,
        Self::Float,
        Self::DeclTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    /// The kind with this number.
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Void => "VOID",
            Self::Int => "INT",
            Self::Ptr => "PTR",
            Self::Array => "ARRAY",
            Self::Struct => "STRUCT",
            Self::Union => "UNION",
            Self::Enum => "ENUM",
            Self::Fwd => "FWD",
            Self::Typedef => "TYPEDEF",
            Self::Volatile => "VOLATILE",
            Self::Const => "CONST",
            Self::Restrict => "RESTRICT",
            Self::Func => "FUNC",
            Self::FuncProto => "FUNC_PROTO",
            Self::Var => "VAR",
            Self::Datasec => "DATASEC",
            Self::Float => "FLOAT",
            Self::DeclTag => "DECL_TAG",
            Self::TypeTag => "TYPE_TAG",
            Self::Enum64 => "ENUM64",
        })
    }
}
