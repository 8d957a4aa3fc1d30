//! The members of a struct, and of structs within it, as columns of a table.

use bpfarray_core::btf::{Btf, Def, Int, IntEncoding, Member, Type};

use super::Value;

/// A member with a dotted name, such as `rx.packets`.
#[derive(Debug)]
pub(crate) struct Column {
    /// Empty if the value is no struct.
    pub(crate) name: String,
    ty: u32,
    bit_offset: u32,
    bitfield_size: Option<u8>,
    /// Whether values of different CPUs can be added: numbers, not flags, names or addresses.
    pub(crate) is_number: bool,
}

impl Column {
    /// A single column for values of the type.
    pub(crate) fn whole(btf: &Btf, ty: u32) -> Self {
        Self::new(btf, String::new(), ty, 0, None)
    }

    fn new(btf: &Btf, name: String, ty: u32, bit_offset: u32, bitfield_size: Option<u8>) -> Self {
        // Typedefs are left behind here, once, and not again for each value.
        let (ty, is_number) = match btf.resolve(ty) {
            Ok(Type { id, def: Def::Int(Int { encoding, .. }), .. }) => {
                (id, matches!(encoding, IntEncoding::Unsigned | IntEncoding::Signed))
            }
            Ok(Type { id, .. }) => (id, false),
            Err(_) => (ty, false),
        };
        Self {
            name,
            ty,
            bit_offset,
            bitfield_size,
            is_number: is_number && bitfield_size.is_none(),
        }
    }

    /// This member of a value.
    pub(crate) fn of<'a>(&self, value: &Value<'a>) -> Value<'a> {
        value.member(self.ty, self.bit_offset, self.bitfield_size)
    }

    /// Adds the columns this one consists of if it is a struct, or else itself.
    fn spread(self, btf: &Btf, columns: &mut Vec<Self>) {
        let def = match btf.get(self.ty).map(|ty| ty.def) {
            Ok(Def::Struct(def)) if def.members().len() > 0 => def,
            _ => return columns.push(self),
        };
        for Member { name, ty, bit_offset, bitfield_size } in def.members() {
            let name = match (self.name.as_str(), name) {
                (outer, "") => outer.to_owned(),
                ("", inner) => inner.to_owned(),
                (outer, inner) => format!("{outer}.{inner}"),
            };
            let bit_offset = self.bit_offset.saturating_add(bit_offset);
            Self::new(btf, name, ty, bit_offset, bitfield_size).spread(btf, columns);
        }
    }
}

/// The columns for values of the type: one for each member of a struct, or a single one.
pub(crate) fn columns(btf: &Btf, ty: u32) -> Vec<Column> {
    let mut columns = Vec::new();
    Column::whole(btf, ty).spread(btf, &mut columns);
    columns
}
