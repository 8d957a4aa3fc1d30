//! How much there is to print for a type.

use std::collections::HashMap;

use bpfarray_core::btf::{Btf, Def};

/// Parts that a value may be printed as, for each of its bytes; unions print bytes more than once.
const PARTS_PER_BYTE: u64 = 64;

/// Whether values of the type have a printed form of a reasonable size.
///
/// A few hundred bytes of BTF can nest unions, or structs without bytes, so that printing one value takes
/// longer than anybody can wait.
pub(crate) fn is_printable(btf: &Btf, ty: u32) -> bool {
    let Ok(size) = btf.size_of(ty) else { return false };
    parts(btf, ty, &mut HashMap::new()) <= PARTS_PER_BYTE * (u64::from(size) + 1)
}

/// How many parts the text of a value has. `known` makes this linear in the number of types; the
/// recursion ends because no BTF is accepted whose types nest too deeply.
fn parts(btf: &Btf, ty: u32, known: &mut HashMap<u32, u64>) -> u64 {
    if let Some(parts) = known.get(&ty) {
        return *parts;
    }
    let mut sum = |types: &mut dyn Iterator<Item = u32>| {
        types.fold(1_u64, |sum, ty| sum.saturating_add(parts(btf, ty, known)))
    };
    let parts = match btf.resolve(ty).map(|ty| ty.def) {
        Ok(Def::Struct(def) | Def::Union(def)) => sum(&mut def.members().map(|member| member.ty)),
        Ok(Def::Datasec(def)) => sum(&mut def.vars().map(|var| var.var)),
        Ok(Def::Var { ty, .. }) => sum(&mut std::iter::once(ty)),
        Ok(Def::Array(array)) if btf.size_of(array.element).is_ok_and(|size| size > 0) => {
            sum(&mut std::iter::once(array.element)).saturating_mul(array.len.into())
        }
        _ => 1,
    };
    known.insert(ty, parts);
    parts
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
        assert!(is_printable(&btf, 1));
        assert!(is_printable(&btf, 6));
        assert!(!is_printable(&btf, 31));
    }

    #[test]
    fn elements_without_bytes_are_not_printed_at_all() {
        let btf = btf(&[0, INT, 4, 32, 0, STRUCT, 0, 0, ARRAY, 0, 2, 1, u32::MAX]);
        assert!(is_printable(&btf, 3));
        assert_eq!(Value::new(&btf, 3, &[]).to_string(), "[]");
    }
}
