//! Maps defined as variables of type `struct bpf_map_def` in section `maps`, as before BTF.

use bpfarray_core::attr::{MapAttr, MapFlags, MapType};
use object::elf;

use super::LoadError;
use super::error::MapDefect;
use super::file::{File, Place, Section};
use super::maps::{MapOrigin, MapSpec, Maps};

/// Bytes of `type`, `key_size`, `value_size` and `max_entries`, which every definition has.
const MIN_SIZE: usize = 16;
/// With `map_flags`, the last field everybody agrees on.
const KNOWN_SIZE: usize = 20;

/// Adds the maps of a section; every variable in it is one.
pub(super) fn collect(
    file: &File<'_>,
    index: usize,
    section: &Section<'_>,
    maps: &mut Maps,
) -> Result<(), LoadError> {
    let is_map = |kind| kind == elf::STT_OBJECT || kind == elf::STT_NOTYPE;
    let mut symbols: Vec<_> = file
        .symbols
        .iter()
        .filter(|symbol| symbol.place == Place::Section(index) && is_map(symbol.kind))
        .collect();
    symbols.sort_by_key(|symbol| symbol.value);
    for symbol in symbols {
        let attr = definition(section.data, symbol.value, symbol.size)
            .map_err(|defect| defect.of(symbol.name))?;
        maps.push(
            MapSpec::new(symbol.name, section.name, MapOrigin::Legacy, attr),
            index,
            symbol.value,
        );
    }
    Ok(())
}

fn definition(section: &[u8], start: u64, size: u64) -> Result<MapAttr, MapDefect> {
    let bytes = usize::try_from(start)
        .ok()
        .zip(start.checked_add(size))
        .and_then(|(start, end)| section.get(start..usize::try_from(end).ok()?));
    let bytes = bytes.filter(|bytes| bytes.len() >= MIN_SIZE).ok_or(MapDefect::LegacySize(size))?;
    if bytes.iter().skip(KNOWN_SIZE).any(|byte| *byte != 0) {
        return Err(MapDefect::LegacyTail);
    }
    let mut fields = bytes.as_chunks().0.iter().map(|field| u32::from_le_bytes(*field));
    let mut field = || fields.next().unwrap_or(0);
    Ok(MapAttr {
        map_type: MapType(field()),
        key_size: field(),
        value_size: field(),
        max_entries: field(),
        map_flags: MapFlags::from_bits_retain(field()),
        ..MapAttr::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn short_definitions_have_no_flags() {
        let attr = definition(&bytes(&[2, 4, 8, 16, 1024]), 0, 16).unwrap();
        assert_eq!((attr.map_type, attr.max_entries), (MapType::ARRAY, 16));
        assert_eq!(attr.map_flags, MapFlags::empty());
    }

    #[test]
    fn longer_definitions_must_end_in_zeroes() {
        let long = bytes(&[2, 4, 8, 16, 1024, 0, 0, 0, 1]);
        assert_eq!(definition(&long, 0, 32).unwrap().map_flags, MapFlags::MMAPABLE);
        assert_eq!(definition(&long, 0, 36), Err(MapDefect::LegacyTail));
    }

    #[test]
    fn definitions_lie_within_their_section() {
        let section = bytes(&[2, 4, 8, 16, 0]);
        for (start, size) in [(0, 15), (4, 20), (0, u64::MAX), (u64::MAX, 2), (20, 16)] {
            assert_eq!(definition(&section, start, size), Err(MapDefect::LegacySize(size)));
        }
    }
}
