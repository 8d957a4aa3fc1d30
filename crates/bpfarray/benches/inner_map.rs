//! What finding an inner map by an address costs, among few and among many.

use std::hint::black_box;
use std::time::Instant;

use bpfarray::attr::{CreateError, Creator, MapAttr, MapType};
use bpfarray::{Lane, Map, Object};

type Error = Box<dyn std::error::Error>;

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() }
}

fn inner() -> Result<Map, CreateError> {
    Map::create(&attr(MapType::ARRAY, 8, 16))
}

fn outer(slots: u32) -> Result<Map, CreateError> {
    let attr = attr(MapType::ARRAY_OF_MAPS, 4, slots);
    Map::create_with(&attr, &Creator::default(), Some(&*inner()?))
}

fn lookups(slots: u32) -> Result<(), Error> {
    const ROUNDS: u32 = 1_000_000;
    let outer = outer(slots)?;
    let maps = (0..slots).map(|_| inner()).collect::<Result<Vec<_>, _>>()?;
    let objects: Vec<_> = maps.iter().map(|map| Object::Map(map.to_ref())).collect();
    let keys: Vec<u32> = (0..slots).collect();
    let begin = Instant::now();
    outer.update_object_batch(&keys, &objects, 0)?;
    let filled = begin.elapsed();
    let lane = Lane::enter();
    let begin = Instant::now();
    for round in 0..ROUNDS {
        // Far apart, so that no two in a row are neighbours.
        let index = round.wrapping_mul(2_654_435_761) % slots;
        if let Some(addr) = outer.prog_lookup_elem(&lane, index) {
            black_box(outer.inner_map_at(&lane, addr + 4096));
        }
    }
    let each = begin.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS);
    println!(
        "{slots:>6} inner maps: {each:6.1} ns to find one by an address, {:8.2} us to insert each",
        filled.as_secs_f64() * 1e6 / f64::from(slots)
    );
    Ok(())
}

fn main() -> Result<(), Error> {
    // Whoever only builds benchmarks, as `cargo test` does, passes no `--bench`.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    for slots in if quick { [1, 16, 128] } else { [1, 100, 10_000] } {
        lookups(slots)?;
    }
    Ok(())
}
