//! Whatever BTF parses, and whatever ids are asked for: rules and text views give answers.

extern crate std;

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::testing::unhex;
use super::{Btf, MAX_FIELDS, SpecialFields, TextView, show};
use crate::attr::{Creator, MapAttr, MapType};

const MAPS: &str = include_str!("../../../../testdata/check_btf/maps.vec");
const VALUES: &str = include_str!("../../../../testdata/show/values.vec");
const TYPES: &[u8] = include_bytes!("../../../../testdata/btf/types.btf");

/// BTF that the kernel was asked about, and that of a real object.
fn corpus() -> Vec<Vec<u8>> {
    let values =
        VALUES.lines().filter_map(|line| line.split(' ').find_map(|f| f.strip_prefix("btf=")));
    let maps = MAPS.lines().filter_map(|line| line.strip_prefix("btf "));
    maps.chain(values).map(unhex).chain([TYPES.to_vec()]).collect()
}

fn exercise(btf: &Btf, id: u32, key: u32, value: &[u8]) {
    let _ = btf.check_special_structs();
    if let Ok(fields) = SpecialFields::of(btf, id) {
        let size = btf.size_of(id).unwrap_or_default() as usize;
        assert!(fields.as_slice().len() <= MAX_FIELDS);
        assert!(fields.as_slice().is_sorted_by(|a, b| a.range().end <= b.range().start));
        assert!(fields.as_slice().last().is_none_or(|last| last.range().end <= size));
        let special: usize = fields.as_slice().iter().map(|field| field.range().len()).sum();
        assert_eq!(special + fields.ordinary(size).map(|range| range.len()).sum::<usize>(), size);
        fields.init(&mut value.to_vec());
    }
    for map_type in (0..16).map(MapType) {
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size: btf.size_of(id).unwrap_or(4),
            max_entries: 1,
            btf_key_type_id: key,
            btf_value_type_id: id,
            ..MapAttr::default()
        };
        let _ = attr.check_btf(&Creator::default(), btf);
        if let Some(view) = TextView::new(btf, map_type, key, id) {
            view.element(key, value, &mut String::new()).unwrap();
        }
    }
    show(btf, id, value, &mut String::new()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_types_are_answered(
        bytes in prop::sample::select(corpus()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0..40_u8, any::<u8>()]), 0..6),
        id in prop_oneof![0..64_u32, any::<u32>()],
        key in prop_oneof![0..4_u32, any::<u32>()],
        value in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = bytes;
        for (at, byte) in edits {
            // Behind the header, or hardly any would parse.
            let at = 24 + at.index(bytes.len() - 24);
            bytes[at] = byte;
        }
        if let Ok(btf) = Btf::parse(&bytes) {
            exercise(&btf, id, key, &value);
        }
    }
}

#[test]
fn every_type_of_the_corpus_is_answered() {
    for bytes in corpus() {
        let btf = Btf::parse(&bytes).unwrap();
        (0..=btf.len()).for_each(|id| exercise(&btf, id, 1, &[0x41; 40]));
    }
}
