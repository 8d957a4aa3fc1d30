//! What a relocation asks, and the place in a type it asks about.

use bpfarray_core::btf::{Array, Btf, Def};

use super::CoreRelocDefect;

/// The longest path; libbpf has the same limit.
const MAX_PATH: usize = 64;

/// The questions.
///
/// # Kernel
/// `enum bpf_core_relo_kind`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum RelocKind {
    FieldByteOffset,
    FieldByteSize,
    FieldExists,
    FieldSigned,
    FieldLshiftU64,
    FieldRshiftU64,
    TypeIdLocal,
    TypeIdTarget,
    TypeExists,
    TypeSize,
    EnumvalExists,
    EnumvalValue,
    TypeMatches,
}

impl RelocKind {
    pub(super) const fn from_raw(raw: u32) -> Result<Self, CoreRelocDefect> {
        Ok(match raw {
            0 => Self::FieldByteOffset,
            1 => Self::FieldByteSize,
            2 => Self::FieldExists,
            3 => Self::FieldSigned,
            4 => Self::FieldLshiftU64,
            5 => Self::FieldRshiftU64,
            6 => Self::TypeIdLocal,
            7 => Self::TypeIdTarget,
            8 => Self::TypeExists,
            9 => Self::TypeSize,
            10 => Self::EnumvalExists,
            11 => Self::EnumvalValue,
            12 => Self::TypeMatches,
            _ => return Err(CoreRelocDefect::UnknownKind(raw)),
        })
    }

    pub(super) const fn is_type_based(self) -> bool {
        use RelocKind::{TypeExists, TypeIdLocal, TypeIdTarget, TypeMatches, TypeSize};
        matches!(self, TypeIdLocal | TypeIdTarget | TypeExists | TypeSize | TypeMatches)
    }

    pub(super) const fn is_field_based(self) -> bool {
        !self.is_type_based() && !self.is_enumval_based()
    }

    pub(super) const fn is_enumval_based(self) -> bool {
        matches!(self, Self::EnumvalExists | Self::EnumvalValue)
    }
}

/// One step into a type: a named member, an enumerator or an array element.
#[derive(Copy, Clone, Debug)]
pub(super) struct Access<'a> {
    /// The struct, union or enumeration, or the type of the array's elements; never a typedef or modifier.
    pub(super) ty: u32,
    /// Index of the member, enumerator or element.
    pub(super) index: u32,
    /// Name of the member or enumerator; `None` for an element.
    pub(super) name: Option<&'a str>,
}

/// A place in a type. Steps through anonymous members are in `bit_offset`, but not in `path`: they may be
/// elsewhere, or not be, in another version of the type.
#[derive(Clone, Debug)]
pub(super) struct Spec<'a> {
    pub(super) btf: &'a Btf,
    pub(super) root: u32,
    pub(super) path: Vec<Access<'a>>,
    pub(super) bit_offset: u64,
}

impl<'a> Spec<'a> {
    /// The start of type `root`.
    pub(super) const fn new(btf: &'a Btf, root: u32) -> Self {
        Self { btf, root, path: Vec::new(), bit_offset: 0 }
    }

    /// The place a compiler's path of indices such as `0:1:2` leads to.
    pub(super) fn parse(
        btf: &'a Btf,
        root: u32,
        path: &str,
        kind: RelocKind,
    ) -> Result<Self, CoreRelocDefect> {
        let bad = CoreRelocDefect::BadPath(root);
        let indices = path.split(':').take(MAX_PATH + 1).map(str::parse);
        let indices: Result<Vec<u32>, _> = indices.collect();
        let indices = indices.map_err(|_| bad)?;
        let Some((&first, rest)) = indices.split_first() else { return Err(bad) };
        if indices.len() > MAX_PATH {
            return Err(bad);
        }
        let mut spec = Self::new(btf, root);
        if kind.is_type_based() {
            return if indices == [0] { Ok(spec) } else { Err(bad) };
        }
        let mut at = btf.resolve(root)?;
        if kind.is_enumval_based() {
            let Def::Enum(def) = at.def else { return Err(bad) };
            let name = def.value(first as usize).map(|value| value.name).ok_or(bad)?;
            spec.path.push(Access { ty: at.id, index: first, name: Some(name) });
            return if rest.is_empty() { Ok(spec) } else { Err(bad) };
        }
        spec.push_element(at.id, first)?;
        for &index in rest {
            match at.def {
                Def::Struct(def) | Def::Union(def) => {
                    let member = def.member(index as usize).ok_or(bad)?;
                    spec.bit_offset += u64::from(member.bit_offset);
                    if !member.name.is_empty() {
                        spec.path.push(Access { ty: at.id, index, name: Some(member.name) });
                    }
                    at = btf.resolve(member.ty)?;
                }
                Def::Array(array) => {
                    if !spec.allows_index(array, index) {
                        return Err(bad);
                    }
                    at = btf.resolve(array.element)?;
                    spec.push_element(at.id, index)?;
                }
                _ => return Err(bad),
            }
        }
        Ok(spec)
    }

    /// Steps to element `index` of an array of `element`s that begins here.
    pub(super) fn push_element(&mut self, element: u32, index: u32) -> Result<(), CoreRelocDefect> {
        let bytes = u64::from(self.btf.size_of(element)?) * u64::from(index);
        let bit_offset = bytes.checked_mul(8).and_then(|bits| bits.checked_add(self.bit_offset));
        // Within 32 bits, as members' offsets are, sums over a path cannot overflow.
        let bit_offset = bit_offset.filter(|bits| *bits <= u64::from(u32::MAX));
        self.bit_offset = bit_offset.ok_or(CoreRelocDefect::BadPath(self.root))?;
        self.path.push(Access { ty: element, index, name: None });
        Ok(())
    }

    /// Whether `array`, the type of the last step, may have an element `index`. A flexible array, the
    /// last member of its struct, has no bounds.
    pub(super) fn allows_index(&self, array: Array, index: u32) -> bool {
        if index < array.len {
            return true;
        }
        let Some(Access { ty, index: member, name: Some(_) }) = self.path.last() else {
            return false;
        };
        match self.btf.get(*ty).map(|ty| ty.def) {
            Ok(Def::Struct(def) | Def::Union(def)) => {
                array.len == 0 && *member as usize + 1 == def.members().len()
            }
            _ => false,
        }
    }
}
