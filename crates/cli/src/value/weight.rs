//! How much there is to print for a type.

use std::collections::HashMap;

use bpfarray_core::btf::{Btf, Def};

/// Bytes of text that a value may take for each of its own; unions print theirs more than once.
const TEXT_PER_BYTE: u64 = 1024;

/// Bytes of JSON that a number takes beside its digits: quotes, an escape, a comma.
const NUMBER_OVERHEAD: u64 = 8;

/// About how many bytes the JSON of a value of this type takes; `None` if that is out of proportion.
///
/// A few hundred bytes of BTF can nest unions, or structs without bytes, so that printing one value takes
/// longer than anybody can wait.
pub(crate) fn text_len(btf: &Btf, ty: u32) -> Option<u64> {
    let size = btf.size_of(ty).ok()?;
    let len = measure(btf, ty, &mut HashMap::new());
    (len <= TEXT_PER_BYTE.saturating_mul(u64::from(size) + 1)).then_some(len)
}

/// Adds up names and digits. `known` makes this linear in the number of types; the recursion ends because
/// no BTF is accepted whose types nest too deeply.
fn measure(btf: &Btf, ty: u32, known: &mut HashMap<u32, u64>) -> u64 {
    if let Some(len) = known.get(&ty) {
        return *len;
    }
    let mut named = |members: &mut dyn Iterator<Item = (&str, u32)>| {
        members.fold(2_u64, |sum, (name, ty)| {
            let member = measure(btf, ty, known).saturating_add(name.len() as u64 + 4);
            sum.saturating_add(member)
        })
    };
    let digits = |size: u32| u64::from(size) * 3 + NUMBER_OVERHEAD;
    let len = match btf.resolve(ty).map(|ty| (ty.name, ty.def)) {
        Ok((_, Def::Struct(def) | Def::Union(def))) => {
            named(&mut def.members().map(|member| (member.name, member.ty)))
        }
        Ok((section, Def::Datasec(def))) => {
            section.len() as u64 + named(&mut def.vars().map(|var| ("", var.var)))
        }
        Ok((name, Def::Var { ty, .. })) => named(&mut std::iter::once((name, ty))),
        Ok((_, Def::Array(array))) if btf.size_of(array.element).is_ok_and(|size| size > 0) => {
            let element = named(&mut std::iter::once(("", array.element)));
            element.saturating_mul(array.len.into())
        }
        Ok((_, Def::Enum(def))) => {
            let names = def.values().map(|value| value.name.len() as u64 + NUMBER_OVERHEAD);
            names.max().unwrap_or(0).max(digits(def.size))
        }
        _ => digits(btf.size_of(ty).unwrap_or(0)),
    };
    known.insert(ty, len);
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    const UNION: u32 = 5 << 24;

    /// Types from the words of their records.
    fn btf(types: &[u32]) -> Btf {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let len = types.len() as u32 * 4;
        let words = [24, 0, len, len, 1].into_iter().chain(types.iter().copied());
        bytes.extend(words.flat_map(u32::to_le_bytes));
        bytes.push(0);
        Btf::parse(&bytes).unwrap()
    }

    #[test]
    fn unions_nested_to_print_one_byte_a_billion_times_are_not_printed() {
        let mut types = vec![0, INT, 1, 8];
        for level in 0..30 {
            let member = [0, level + 1, 0];
            types.extend([0, UNION | 2, 1].into_iter().chain(member).chain(member));
        }
        let btf = btf(&types);
        assert!(text_len(&btf, 1).is_some());
        assert!(text_len(&btf, 6).is_some());
        assert_eq!(text_len(&btf, 31), None);
    }

    #[test]
    fn elements_without_bytes_are_not_printed_at_all() {
        let btf = btf(&[0, INT, 4, 32, 0, STRUCT, 0, 0, ARRAY, 0, 2, 1, u32::MAX]);
        assert!(text_len(&btf, 3).is_some());
        assert_eq!(Value::new(&btf, 3, &[]).to_string(), "[]");
    }
}
