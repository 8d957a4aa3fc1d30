//! Maps take up memory only for what was written, and give it back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bpfarray::attr::{CreateError, MapAttr, MapType};
use bpfarray::{Map, Memory};

const PAGE: u64 = 4096;

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() }
}

/// Pages of the memory that are in RAM, or swapped out of it.
fn resident_pages(memory: &Memory) -> io::Result<usize> {
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    let pages = memory.len().div_ceil(PAGE as usize);
    let mut entries = vec![0; pages * 8];
    let pagemap = File::open("/proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entries, memory.addr() / PAGE * 8)?;
    let (entries, _) = entries.as_chunks();
    let in_use = |entry: &&[u8; 8]| u64::from_ne_bytes(**entry) & PRESENT_OR_SWAPPED != 0;
    Ok(entries.iter().filter(in_use).count())
}

#[test]
fn untouched_values_use_no_memory() {
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        let map = Map::create(&attr(map_type, 4096, 4096)).unwrap();
        let values = map.regions().pop().unwrap().memory;
        assert_eq!(values.len(), 4096 * 4096);
        assert_eq!(resident_pages(&values).unwrap(), 0, "{map_type} after creation");
        values.store(2000 * 4096, 8, 1).unwrap();
        // With transparent huge pages, one write may bring 2 MiB.
        let pages = resident_pages(&values).unwrap();
        assert!((1..=512).contains(&pages), "{map_type} after one write: {pages} pages");
    }
}

#[test]
fn a_dropped_percpu_array_leaves_its_windows_to_the_next() {
    // More than half of what a window holds.
    let attr = attr(MapType::PERCPU_ARRAY, 32768, 5 << 18);
    for _ in 0..3 {
        let map = Map::create(&attr).unwrap();
        let values = &map.regions()[1].memory;
        assert_eq!(values.load(0, 8), Ok(0));
        values.store(0, 8, u64::MAX).unwrap();
        assert!(matches!(Map::create(&attr).unwrap_err(), CreateError::NoMemory(_)));
    }
}
