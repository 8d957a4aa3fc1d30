//! Values as text, in the form in which the kernel shows them when a pinned map is read.
//!
//! Punctuation is the kernel's to the byte, oddities included: no closing brace after a section, no opening
//! bracket or brace for what is an element of an array, none for an array of pointers or for a `const`
//! struct, `<unsupported kind:16>` for floats. A byte that is a letter in Latin-1 becomes that
//! character, so the text is UTF-8 where the kernel's is not.
//!
//! *Values* differ on purpose where the kernel hides or misreads them:
//! - A pointer is shown as it is stored; the kernel shows a hash, but for zero and for error pointers.
//! - Elements of an array of pointers or of arrays each have their own value; the kernel repeats the first one.
//! - An enumeration is read with its own size; the kernel reads 4 bytes, or 8 of a `BTF_KIND_ENUM64`.
//! - A bit field that ends at bit 128 keeps its upper half; the kernel mixes the lower half into it.

use core::fmt::{self, Write};

use super::{Array, Btf, Composite, Datasec, Def, Enum, Int, IntEncoding};
use crate::attr::MapType;

/// Steps from a type towards its elements after which the kernel gives up looking for an opening bracket.
const SHOW_MAX_ITER: usize = 10;

/// Writes a value of a type as text.
///
/// Bytes past the end of `value` read as zeros. Unions of unions and arrays of empty structs can say more
/// than any reader wants: the text ends in `...` when it shows many times as many values as there are bytes.
///
/// ```
/// use bpfarray_core::btf::{Btf, Kind, show};
///
/// let btf = Btf::parse(include_bytes!("../../../../testdata/btf/types.btf"))?;
/// let mut text = String::new();
/// show(&btf, btf.find_by_name("color", Kind::Enum).ok_or("color")?, &7_u32.to_le_bytes(), &mut text)?;
/// assert_eq!(text, "BLUE");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of `out`.
///
/// # Kernel
/// `btf_type_seq_show`
#[doc(alias = "btf_type_seq_show")]
pub fn show(btf: &Btf, type_id: u32, value: &[u8], out: &mut impl Write) -> fmt::Result {
    let values_left = value.len().saturating_mul(16).saturating_add(4096);
    let mut shower =
        Shower { btf, out, depth: 0, is_element: false, is_bare_union: false, values_left };
    shower.value(type_id, None, value, 0)
}

/// What reading the file of a pinned map gives.
///
/// ```
/// use bpfarray_core::attr::MapType;
/// use bpfarray_core::btf::{Btf, Kind, TextView};
///
/// let btf = Btf::parse(include_bytes!("../../../../testdata/btf/types.btf"))?;
/// let int = btf.find_by_name("int", Kind::Int).ok_or("int")?;
/// let view = TextView::new(&btf, MapType::PERCPU_ARRAY, int, int).ok_or("no view")?;
/// let mut text = String::from(TextView::HEADER);
/// view.element(1, &[3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0], &mut text)?;
/// assert!(text.ends_with("\n1: {\n\tcpu0: 3\n\tcpu1: 4\n}\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Kernel
/// `map_seq_show`, `map_seq_show_elem` of `struct bpf_map_ops`
#[derive(Copy, Clone, Debug)]
#[doc(alias = "map_seq_show_elem")]
#[doc(alias = "array_map_seq_show_elem")]
#[doc(alias = "percpu_array_map_seq_show_elem")]
#[doc(alias = "prog_array_map_seq_show_elem")]
pub struct TextView<'a> {
    btf: &'a Btf,
    value_type: u32,
    form: Form,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Form {
    Keyless,
    Keyed,
    PerCpu,
}

impl<'a> TextView<'a> {
    /// What stands before the first element.
    pub const HEADER: &'static str = "# WARNING!! The output is for debug purpose only\n\
                                      # WARNING!! The output format will change\n";

    /// The view of a map with these types; `None` where there is none, and the kernel's file gives EIO:
    /// without a type of values, and for map types that cannot show theirs.
    pub fn new(btf: &'a Btf, map_type: MapType, key_type: u32, value_type: u32) -> Option<Self> {
        let form = match map_type {
            MapType::ARRAY if key_type == 0 => Form::Keyless,
            MapType::ARRAY | MapType::PROG_ARRAY => Form::Keyed,
            MapType::PERCPU_ARRAY => Form::PerCpu,
            _ => return None,
        };
        (value_type != 0).then_some(Self { btf, value_type, form })
    }

    /// Writes one element: its value as a lookup copies it out, so that of a PERCPU_ARRAY all CPUs' values,
    /// and of a PROG_ARRAY the program's id. Empty slots have no text, not even a line.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn element(&self, key: u32, value: &[u8], out: &mut impl Write) -> fmt::Result {
        match self.form {
            Form::Keyless => {}
            Form::Keyed => write!(out, "{key}: ")?,
            Form::PerCpu => {
                writeln!(out, "{key}: {{")?;
                let size = self.btf.size_of(self.value_type).unwrap_or_default() as usize;
                let stride = size.next_multiple_of(8).max(8);
                for (cpu, value) in value.chunks(stride).enumerate() {
                    write!(out, "\tcpu{cpu}: ")?;
                    show(self.btf, self.value_type, value, out)?;
                    out.write_char('\n')?;
                }
                return out.write_str("}\n");
            }
        }
        show(self.btf, self.value_type, value, out)?;
        out.write_char('\n')
    }
}

struct Shower<'a, W> {
    btf: &'a Btf,
    out: &'a mut W,
    /// Structs, unions and arrays around what is shown.
    depth: u32,
    /// Whether an element of an array is shown, or (the kernel resets this late) a member of one that comes
    /// before the end of the first array in it.
    is_element: bool,
    /// Whether nothing but floats was shown since a union began. The kernel means to end members of a
    /// union with `|`, but this is when it does.
    is_bare_union: bool,
    /// Values that may still be shown.
    values_left: usize,
}

impl<W: Write> Shower<'_, W> {
    /// Shows a value that begins at bit `bit` of `data`. `declared` is the type its member was declared with.
    fn value(&mut self, id: u32, declared: Option<u32>, data: &[u8], bit: u32) -> fmt::Result {
        if !self.count()? {
            return Ok(());
        }
        let Some(ty) = self.btf.value_type(id) else { return Ok(()) };
        let declared = declared.unwrap_or(ty.id);
        match ty.def {
            Def::Int(int) => self.int(int, data, bit),
            Def::Ptr(_) => self.scalar(format_args!("{:#018x}", bits(data, 0, 64))),
            Def::Enum(def) => self.enumeration(def, data),
            Def::Array(array) => self.array(array, declared, data),
            Def::Struct(def) | Def::Union(def) => {
                self.open(declared)?;
                self.is_bare_union = matches!(ty.def, Def::Union(_));
                self.members(def, data)?;
                self.close('}')
            }
            Def::Datasec(def) => self.section(ty.name, def, data),
            _ => write!(self.out, "<unsupported kind:{}>", ty.kind() as u8),
        }
    }

    /// Counts a value, and says whether it may be shown.
    fn count(&mut self) -> Result<bool, fmt::Error> {
        if self.values_left == 1 {
            self.out.write_str("...")?;
        }
        self.values_left = self.values_left.saturating_sub(1);
        Ok(self.values_left != 0)
    }

    fn scalar(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        self.out.write_fmt(text)?;
        self.delimiter(',')
    }

    fn delimiter(&mut self, delimiter: char) -> fmt::Result {
        self.is_bare_union = false;
        if self.depth == 0 { Ok(()) } else { self.out.write_char(delimiter) }
    }

    fn open(&mut self, declared: u32) -> fmt::Result {
        if !self.is_element {
            self.out.write_str(self.opening(declared))?;
        }
        self.is_bare_union = false;
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self, bracket: char) -> fmt::Result {
        self.depth -= 1;
        self.out.write_char(bracket)?;
        self.delimiter(if self.is_bare_union { '|' } else { ',' })
    }

    /// # Kernel
    /// `btf_show_name`
    fn opening(&self, declared: u32) -> &'static str {
        let mut opening = "";
        let mut at = declared;
        for _ in 0..SHOW_MAX_ITER {
            let Ok(ty) = self.btf.get(at) else { return "" };
            at = match ty.def {
                Def::Typedef(of) => of,
                Def::Array(array) => {
                    opening = "[";
                    array.element
                }
                Def::Ptr(_) => return "",
                Def::Struct(_) | Def::Union(_) if opening.is_empty() => return "{",
                _ => return opening,
            };
            while let Ok(
                Def::Volatile(of) | Def::Const(of) | Def::Restrict(of) | Def::TypeTag(of),
            ) = self.btf.get(at).map(|ty| ty.def)
            {
                at = of;
            }
        }
        ""
    }

    fn members(&mut self, def: Composite<'_>, data: &[u8]) -> fmt::Result {
        for member in def.members() {
            let data = data.get(member.bit_offset as usize / 8..).unwrap_or_default();
            let bit = member.bit_offset % 8;
            match member.bitfield_size {
                Some(_) if !self.count()? => {}
                Some(size) => {
                    self.scalar(format_args!("{:#x}", bits(data, bit, size.into())))?;
                }
                None => self.value(member.ty, Some(member.ty), data, bit)?,
            }
        }
        Ok(())
    }

    /// # Kernel
    /// `btf_int_show`
    fn int(&mut self, int: Int, data: &[u8], bit: u32) -> fmt::Result {
        let first = bit + u32::from(int.offset);
        let value = bits(data, first, int.bits.into());
        if first != 0 || !matches!(int.bits, 8 | 16 | 32 | 64) {
            return self.scalar(format_args!("{value:#x}"));
        }
        self.number(value, int.bits.into(), int.encoding == IntEncoding::Signed)
    }

    fn number(&mut self, value: u128, bits: u32, is_signed: bool) -> fmt::Result {
        if is_signed {
            self.scalar(format_args!("{}", sign_extended(value, bits)))
        } else {
            self.scalar(format_args!("{value}"))
        }
    }

    /// # Kernel
    /// `btf_enum_show`, `btf_enum64_show`
    fn enumeration(&mut self, def: Enum<'_>, data: &[u8]) -> fmt::Result {
        let size = def.size * 8;
        let value = bits(data, 0, size);
        let low_bits = |value: i128| bits(&value.to_le_bytes(), 0, size);
        match def.values().find(|enumerator| low_bits(enumerator.value) == value) {
            Some(enumerator) => self.scalar(format_args!("{}", enumerator.name)),
            None => self.number(value, size, def.is_signed),
        }
    }

    /// # Kernel
    /// `btf_array_show`
    fn array(&mut self, array: Array, declared: u32, data: &[u8]) -> fmt::Result {
        let element = self.btf.value_type(array.element).map(|ty| ty.def);
        // Compilers do not mark characters, so that all bytes are taken for some.
        let is_char = |int: Int| int.size == 1 || int.encoding == IntEncoding::Char;
        let is_text = matches!(element, Some(Def::Int(int))
            if is_char(int) && int.bits == 8 && int.offset == 0);
        let size = self.btf.size_of(array.element).unwrap_or_default() as usize;
        self.open(declared)?;
        for index in 0..array.len as usize {
            let at = index.saturating_mul(size);
            let data = data.get(at..).unwrap_or_default();
            let first = data.first().copied().unwrap_or_default();
            if self.values_left == 0 {
                break;
            }
            self.is_element = true;
            if is_text && is_print(first) {
                self.scalar(format_args!("'{}'", char::from(first)))?;
            } else if !is_text || first != 0 {
                self.value(array.element, None, data, 0)?;
            }
            self.is_element = false;
            if is_text && first == 0 {
                break;
            }
        }
        self.close(']')
    }

    /// # Kernel
    /// `btf_datasec_show`
    fn section(&mut self, name: &str, def: Datasec<'_>, data: &[u8]) -> fmt::Result {
        write!(self.out, "section (\"{name}\") = {{")?;
        for (index, var) in def.vars().enumerate() {
            if index != 0 {
                self.out.write_char(',')?;
            }
            let data = data.get(var.offset as usize..).unwrap_or_default();
            self.value(var.var, None, data, 0)?;
        }
        Ok(())
    }
}

/// What the kernel's character classes call printable: Latin-1 without its control characters.
const fn is_print(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e | 0xa0..=0xff)
}

/// At most 128 bits from bit `first` on; bits past the end of `data` are zeros.
fn bits(data: &[u8], first: u32, len: u32) -> u128 {
    let data = data.get(first as usize / 8..).unwrap_or_default();
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    let (low, high) = bytes.split_at(16);
    let word =
        |half: &[u8]| half.iter().rev().fold(0_u128, |word, byte| word << 8 | u128::from(*byte));
    let shift = first % 8;
    // In two steps, for a shift by 128 is none.
    let value = word(low) >> shift | word(high) << (127 - shift) << 1;
    if len < 128 { value & ((1 << len) - 1) } else { value }
}

/// A number of `bits` bits in two's complement.
const fn sign_extended(value: u128, bits: u32) -> i128 {
    let unused = u128::BITS - bits;
    (value << unused).cast_signed() >> unused
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;
    use std::vec;

    use super::*;
    use crate::btf::testing::{Builder, unhex};
    use crate::btf::{Kind, SpecialFields};

    const VALUES: &str = include_str!("../../../../testdata/show/values.vec");

    fn escaped(text: &str) -> String {
        let text = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t");
        let escape = |c| match c {
            '\u{a0}' | '\u{ad}' => format!("\\x{:02x}", u32::from(c)),
            _ => String::from(c),
        };
        text.chars().map(escape).collect()
    }

    #[test]
    fn maps_read_as_in_the_kernel() {
        let mut asked = 0;
        for line in VALUES.lines().filter(|line| !line.starts_with('#')) {
            let (map, expected) = line.split_once(" = ").unwrap();
            let field = |name: &str| {
                let mut fields = map.split(' ').filter_map(|field| field.split_once('='));
                fields.find(|field| field.0 == name).unwrap().1
            };
            let number = |name| field(name).parse::<u32>().unwrap();
            let btf = Btf::parse(&unhex(field("btf"))).unwrap();
            let view =
                TextView::new(&btf, MapType(number("map_type")), number("key"), number("value"));
            let (view, mut data) = (view.unwrap(), unhex(field("data")));
            // An update leaves them alone.
            SpecialFields::of(&btf, number("value")).unwrap_or_default().init(&mut data);
            let (mut text, last) = (String::new(), number("entries") - 1);
            for key in 0..last {
                view.element(key, &vec![0; data.len()], &mut text).unwrap();
            }
            view.element(last, &data, &mut text).unwrap();
            assert_eq!(escaped(&text), expected, "{map}");
            asked += 1;
        }
        assert!(asked > 500, "{asked}");
    }

    fn text(btf: &Btf, id: u32, value: &[u8]) -> String {
        let mut text = String::new();
        show(btf, id, value, &mut text).unwrap();
        text
    }

    #[test]
    fn pointers_are_shown_as_stored() {
        let mut b = Builder::new();
        let ptr = b.ptr(0);
        assert_eq!(text(&b.build(), ptr, &0x1234_u64.to_le_bytes()), "0x0000000000001234");
    }

    #[test]
    fn elements_that_are_arrays_or_pointers_each_have_their_own_value() {
        let mut b = Builder::new();
        let row = b.array(1, 2);
        let rows = b.array(row, 2);
        let ptr = b.ptr(0);
        let ptrs = b.array(ptr, 2);
        let btf = b.build();
        let bytes = [1_u32, 2, 3, 4].map(u32::to_le_bytes);
        // The kernel shows `[1,2,],1,2,],]`.
        assert_eq!(text(&btf, rows, bytes.as_flattened()), "[1,2,],3,4,],]");
        let expected = "0x0000000200000001,0x0000000400000003,]";
        assert_eq!(text(&btf, ptrs, bytes.as_flattened()), expected);
    }

    #[test]
    fn enumerations_are_read_with_their_own_size() {
        let mut b = Builder::new();
        let small = b.enumeration(1, &[("A", 0), ("B", 1), ("LAST", 0xff)]);
        let wide = b.enumeration(8, &[("A", 0), ("B", 1)]);
        let btf = b.build();
        // The kernel shows 257 and B.
        assert_eq!(text(&btf, small, &[1, 1, 0, 0]), "B");
        assert_eq!(text(&btf, small, &[0xff, 0]), "LAST");
        assert_eq!(text(&btf, wide, &0x1_0000_0001_u64.to_le_bytes()), "4294967297");
    }

    #[test]
    fn a_bit_field_that_ends_at_bit_128_keeps_its_upper_half() {
        let mut b = Builder::new();
        let odd = b.ty("n", Kind::Int, 0, 16, &[(1 << 16) | 127]);
        let bytes: [u8; 16] = core::array::from_fn(|i| 0xa1 + i as u8);
        // The kernel shows 0x5c57..., where bits of 0xa1... are in the first byte.
        assert_eq!(text(&b.build(), odd, &bytes), "0x5857d756d655d554d453d352d251d150");
    }

    #[test]
    fn bytes_that_are_missing_are_zeros() {
        let mut b = Builder::new();
        let wide = b.int("u64", 8, 0);
        let pair = b.structure("s", 16, &[(wide, 0), (wide, 8)]);
        assert_eq!(text(&b.build(), pair, &[1, 2, 3]), "{197121,0,}");
    }

    #[test]
    fn unions_that_double_at_each_level_end_in_dots() {
        let mut b = Builder::new();
        let mut at = b.composite(Kind::Union, "u", 4, &[(1, 0), (1, 0)]);
        for _ in 0..60 {
            at = b.composite(Kind::Union, "u", 4, &[(at, 0), (at, 0)]);
        }
        let shown = text(&b.build(), at, &[7, 0, 0, 0]);
        assert_eq!(shown.matches("...").count(), 1, "{shown}");
        assert!(shown.len() < 100_000, "{}", shown.len());
    }

    #[test]
    fn an_array_of_empty_structs_ends_in_dots() {
        let mut b = Builder::new();
        let empty = b.structure("s", 0, &[]);
        let array = b.array(empty, u32::MAX);
        assert!(text(&b.build(), array, &[0; 4]).ends_with("},},...]"));
    }

    #[test]
    fn maps_without_a_view_have_none() {
        let btf = Builder::new().build();
        assert!(TextView::new(&btf, MapType::ARRAY, 1, 0).is_none());
        for map_type in [MapType::PERF_EVENT_ARRAY, MapType::CGROUP_ARRAY, MapType::ARRAY_OF_MAPS] {
            assert!(TextView::new(&btf, map_type, 1, 1).is_none());
        }
    }

    #[test]
    fn a_prog_array_shows_ids() {
        let btf = Builder::new().build();
        let view = TextView::new(&btf, MapType::PROG_ARRAY, 1, 1).unwrap();
        let mut text = String::new();
        view.element(2, &7499_u32.to_le_bytes(), &mut text).unwrap();
        assert_eq!(text, "2: 7499\n");
    }
}
