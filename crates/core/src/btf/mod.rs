//! BTF, the type information of BPF objects and of the kernel: a reader of our own.
//!
//! [`Btf::parse`] checks everything once: sections, records, string offsets, references, that no type
//! contains itself and that members lie within their struct. What is asked afterwards needs no checks by the
//! asker, and no question can make it panic or run forever.
//!
//! Type ids are plain `u32`, as everywhere in bpf(2); id 0 is `void`.

mod check;
mod error;
mod ext;
mod fields_error;
mod find_fields;
mod kind;
mod map_check;
mod record;
#[cfg(test)]
mod robustness;
mod show;
mod special;
mod struct_meta;
mod targets;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;

use alloc::string::String;
use alloc::vec::Vec;

pub use error::{BtfError, Defect};
pub use ext::{BtfExt, BtfExtError, CoreRelo, ExtSection, FuncInfo, LineInfo};
pub use fields_error::{FieldDefect, FieldsError};
pub use kind::Kind;
pub use map_check::CheckBtfError;
use record::Record;
pub use show::{TextView, show};
pub use special::{
    Contains, FieldKind, FieldMask, KptrTag, MAX_FIELDS, SpecialField, SpecialFields,
};
pub use types::{
    Array, Composite, Datasec, Def, Enum, Enumerator, FuncProto, Int, IntEncoding, Linkage, Member,
    Param, SecVar, Type,
};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HDR_LEN: usize = 24;

/// How many types may contain each other, directly or through modifiers, typedefs and arrays.
pub const MAX_DEPTH: u8 = 64;

/// Bytes of a pointer in a BPF program.
const POINTER_SIZE: u32 = 8;

/// The types of an object or of the kernel.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bpfarray_core::btf::{Btf, Def, Kind};
/// let btf = Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux")?)?;
/// let id = btf.find_by_name("task_struct", Kind::Struct).ok_or("no such struct")?;
/// if let Def::Struct(task) = btf.get(id)?.def {
///     for member in task.members() {
///         println!("{} at bit {}", member.name, member.bit_offset);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Kernel
/// `struct btf`
#[derive(Clone)]
pub struct Btf {
    /// The type section.
    words: Vec<u32>,
    /// Where in `words` each type begins; id 1 is at index 0.
    starts: Vec<u32>,
    strings: String,
}

/// The words of the type section, and the strings.
fn sections(data: &[u8]) -> Result<(Vec<u32>, &str), BtfError> {
    let header = Header::parse(data)?;
    let types = header.section(data, "type", header.type_off, header.type_len)?;
    let strings = header.section(data, "string", header.str_off, header.str_len)?;
    let (types, rest) = types.as_chunks();
    if !rest.is_empty() {
        let (offset, len) = (header.type_off, header.type_len);
        return Err(BtfError::BadSection { section: "type", offset, len });
    }
    let strings = core::str::from_utf8(strings).map_err(|_| BtfError::BadStrings)?;
    if !strings.starts_with('\0') || !strings.ends_with('\0') {
        return Err(BtfError::BadStrings);
    }
    Ok((types.iter().map(|word| u32::from_le_bytes(*word)).collect(), strings))
}

impl core::fmt::Debug for Btf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.len())
            .field("string_bytes", &self.strings.len())
            .finish()
    }
}

impl Btf {
    /// The types in the bytes of a `.BTF` section or of a BTF file.
    ///
    /// # Errors
    /// In this order: the header ([`BtfError::ShortHeader`], [`BtfError::BadMagic`], [`BtfError::BadVersion`],
    /// [`BtfError::BadHeaderLen`]), the bounds of the sections ([`BtfError::BadSection`]), the strings
    /// ([`BtfError::BadStrings`]), each type on its own, then what types say of each other
    /// ([`BtfError::BadType`]).
    ///
    /// # Kernel
    /// `btf_parse`
    #[doc(alias = "btf_parse")]
    pub fn parse(data: &[u8]) -> Result<Self, BtfError> {
        let (words, strings) = sections(data)?;
        let mut btf = Self { words, starts: Vec::new(), strings: strings.into() };
        let mut at = 0;
        while at < btf.words.len() {
            let id = btf.len();
            let record = Record::read(&btf.words[at..]).map_err(|defect| defect.of(id))?;
            btf.starts.push(at as u32);
            at += record.words();
        }
        btf.check()?;
        Ok(btf)
    }

    /// The id of the first type with this name and kind in bytes as for [`Btf::parse`], for who wants nothing else to know: a kernel's
    /// types are many, and what they say of each other is not looked at.
    ///
    /// # Errors
    /// Those of [`Btf::parse`] for the header, the sections, the strings, and the length of types before it.
    pub fn find_in(data: &[u8], name: &str, kind: Kind) -> Result<Option<u32>, BtfError> {
        let (words, strings) = sections(data)?;
        let is_its_name = |offset: u32| {
            let rest = strings.as_bytes().get(offset as usize..).unwrap_or_default();
            rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]))
        };
        let mut rest = &words[..];
        for id in 1.. {
            if rest.is_empty() {
                break;
            }
            let record = Record::read(rest).map_err(|defect| defect.of(id))?;
            if record.kind() == kind && is_its_name(record.name) {
                return Ok(Some(id));
            }
            rest = rest.get(record.words()..).unwrap_or_default();
        }
        Ok(None)
    }

    /// The bytes [`Btf::parse`] makes the same types of.
    pub fn to_bytes(&self) -> Vec<u8> {
        let type_len = self.words.len() as u32 * 4;
        let mut bytes = Vec::with_capacity(HDR_LEN + type_len as usize + self.strings.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[VERSION, 0]);
        for field in [HDR_LEN as u32, 0, type_len, type_len, self.strings.len() as u32] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend_from_slice(self.strings.as_bytes());
        bytes
    }

    /// How many types there are, `void` included: one more than the highest id.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u32 {
        self.starts.len() as u32 + 1
    }

    /// The type with this id.
    ///
    /// # Errors
    /// [`BtfError::NoSuchType`]; none for ids that were found in this BTF.
    ///
    /// # Kernel
    /// `btf_type_by_id`
    #[doc(alias = "btf_type_by_id")]
    pub fn get(&self, id: u32) -> Result<Type<'_>, BtfError> {
        if id == 0 {
            return Ok(Type { id, name: "", def: Def::Void });
        }
        let record = self.record(id)?;
        let def = record.decode(self).map_err(|defect| defect.of(id))?;
        Ok(Type { id, name: self.str_at(record.name), def })
    }

    /// All types but `void`, by id.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        (1..self.len()).filter_map(|id| self.get(id).ok())
    }

    /// The id of the first type with this name and kind.
    ///
    /// # Kernel
    /// `btf_find_by_name_kind`
    #[doc(alias = "btf_find_by_name_kind")]
    pub fn find_by_name(&self, name: &str, kind: Kind) -> Option<u32> {
        self.types().find(|ty| ty.name == name && ty.kind() == kind).map(|ty| ty.id)
    }

    /// The string at an offset, as records of `.BTF.ext` have them; `None` outside the string section.
    #[doc(alias = "btf_name_by_offset")]
    pub fn string(&self, offset: u32) -> Option<&str> {
        self.strings.get(offset as usize..)?.split_once('\0').map(|(string, _)| string)
    }

    /// What the type is below typedefs, `const`, `volatile`, `restrict` and type tags.
    ///
    /// # Errors
    /// [`BtfError::NoSuchType`]; none for ids that were found in this BTF.
    ///
    /// # Kernel
    /// `btf_type_skip_modifiers`, which leaves typedefs
    #[doc(alias = "btf_type_skip_modifiers")]
    pub fn resolve(&self, id: u32) -> Result<Type<'_>, BtfError> {
        let mut at = id;
        for _ in 0..=MAX_DEPTH {
            let ty = self.get(at)?;
            match ty.def {
                Def::Typedef(of) | Def::Volatile(of) | Def::Const(of) => at = of,
                Def::Restrict(of) | Def::TypeTag(of) => at = of,
                _ => return Ok(ty),
            }
        }
        Err(Defect::TooDeep.of(id))
    }

    /// The size in bytes of a value of the type, of a variable's type, or of a section.
    ///
    /// # Errors
    /// [`BtfError::NoSuchType`], [`BtfError::Unsized`] for what has no size, [`BtfError::BadType`] for an array
    /// of more than `u32::MAX` bytes.
    ///
    /// # Kernel
    /// `btf_type_id_size`
    #[doc(alias = "btf_type_id_size")]
    pub fn size_of(&self, id: u32) -> Result<u32, BtfError> {
        let (mut at, mut count) = (id, 1_u32);
        let too_big = || Defect::TooBig.of(id);
        for _ in 0..=MAX_DEPTH {
            let size = match self.resolve(at)?.def {
                Def::Array(array) => {
                    count = count.checked_mul(array.len).ok_or_else(too_big)?;
                    at = array.element;
                    continue;
                }
                Def::Var { ty, .. } => {
                    at = ty;
                    continue;
                }
                Def::Int(int) => int.size,
                Def::Ptr(_) => POINTER_SIZE,
                Def::Struct(def) | Def::Union(def) => def.size,
                Def::Enum(def) => def.size,
                Def::Float { size } => size,
                Def::Datasec(def) => def.size,
                _ => return Err(BtfError::Unsized { id }),
            };
            return count.checked_mul(size).ok_or_else(too_big);
        }
        Err(Defect::TooDeep.of(id))
    }

    /// Fills in what a compiler leaves to the loader: the size of section `id` and the offsets of its
    /// variables, which it then sorts by offset, as the kernel demands.
    ///
    /// `offset_of` is asked for each variable by name; where it knows nothing, the offset stays.
    ///
    /// # Errors
    /// [`BtfError::NoSuchType`], [`BtfError::WrongKind`] if `id` is no section, [`BtfError::VarOutside`] if a
    /// variable does not lie within `size` bytes. The section is unchanged then.
    pub fn fix_datasec(
        &mut self,
        id: u32,
        size: u32,
        mut offset_of: impl FnMut(&str) -> Option<u32>,
    ) -> Result<(), BtfError> {
        let Def::Datasec(datasec) = self.get(id)?.def else {
            return Err(BtfError::WrongKind { id, expected: Kind::Datasec });
        };
        let mut vars = Vec::with_capacity(datasec.vars().len());
        for (index, var) in datasec.vars().enumerate() {
            let offset = offset_of(self.get(var.var)?.name).unwrap_or(var.offset);
            if offset.checked_add(var.size).is_none_or(|end| end > size) {
                return Err(BtfError::VarOutside { id, index });
            }
            vars.push([var.var, offset, var.size]);
        }
        vars.sort_by_key(|&[_, offset, _]| offset);
        let start = self.start(id)?;
        let words = self.words[start..].iter_mut().skip(2);
        for (word, value) in words.zip(core::iter::once(size).chain(vars.into_iter().flatten())) {
            *word = value;
        }
        Ok(())
    }

    fn start(&self, id: u32) -> Result<usize, BtfError> {
        let index = (id as usize).checked_sub(1);
        let start = index.and_then(|index| self.starts.get(index));
        start.map(|start| *start as usize).ok_or(BtfError::NoSuchType { id })
    }

    fn record(&self, id: u32) -> Result<Record<'_>, BtfError> {
        let start = self.start(id)?;
        Record::read(&self.words[start..]).map_err(|defect| defect.of(id))
    }

    /// The string at an offset that was checked when the types were parsed.
    fn str_at(&self, offset: u32) -> &str {
        self.string(offset).unwrap_or_default()
    }
}

/// # Kernel
/// `struct btf_header`
struct Header {
    hdr_len: u32,
    type_off: u32,
    type_len: u32,
    str_off: u32,
    str_len: u32,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, BtfError> {
        let short = BtfError::ShortHeader { len: data.len() };
        let (start, _) = data.split_first_chunk::<HDR_LEN>().ok_or(short)?;
        let magic = u16::from_le_bytes([start[0], start[1]]);
        if magic != MAGIC {
            return Err(BtfError::BadMagic { magic });
        }
        let (version, flags) = (start[2], start[3]);
        if version != VERSION || flags != 0 {
            return Err(BtfError::BadVersion { version, flags });
        }
        let mut fields = start[4..].as_chunks().0.iter().map(|field| u32::from_le_bytes(*field));
        let mut field = || fields.next().unwrap_or_default();
        let header = Self {
            hdr_len: field(),
            type_off: field(),
            type_len: field(),
            str_off: field(),
            str_len: field(),
        };
        // A longer header of a later version is fine as long as its new fields say nothing.
        match data.get(HDR_LEN..header.hdr_len as usize) {
            Some(unknown) if unknown.iter().all(|byte| *byte == 0) => Ok(header),
            _ => Err(BtfError::BadHeaderLen { hdr_len: header.hdr_len }),
        }
    }

    fn section<'a>(
        &self,
        data: &'a [u8],
        section: &'static str,
        offset: u32,
        len: u32,
    ) -> Result<&'a [u8], BtfError> {
        let behind_header = data.get(self.hdr_len as usize..).unwrap_or_default();
        let end = (offset as usize).checked_add(len as usize);
        let bytes = end.and_then(|end| behind_header.get(offset as usize..end));
        bytes.ok_or(BtfError::BadSection { section, offset, len })
    }
}
