//! Batches of a million elements against copying the same bytes with memcpy, in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bpfarray::Map;
use bpfarray::attr::{MapAttr, MapType};

type Error = Box<dyn std::error::Error>;

/// The shortest of some runs of each, taken in turn so that both see the same machine.
fn race(mut ours: impl FnMut(), mut memcpy: impl FnMut()) -> (Duration, Duration) {
    const ROUNDS: u32 = 50;
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..ROUNDS)
        .map(|_| (time(&mut ours), time(&mut memcpy)))
        .fold((Duration::MAX, Duration::MAX), |best, now| (best.0.min(now.0), best.1.min(now.1)))
}

fn report(what: &str, elements: u32, (ours, memcpy): (Duration, Duration)) {
    let per_element = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(elements);
    println!(
        "{what:<34} {:6.2} ns an element, memcpy {:6.2} ns, {:5.2} times memcpy",
        per_element(ours),
        per_element(memcpy),
        ours.as_secs_f64() / memcpy.as_secs_f64()
    );
}

fn main() -> Result<(), Error> {
    // Whoever only builds benchmarks, as `cargo test` does, passes no `--bench`.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let elements = if quick { 1 << 10 } else { 1 << 20 };
    for (map_type, value_size) in [
        (MapType::ARRAY, 8),
        (MapType::ARRAY, 64),
        (MapType::ARRAY, 12),
        (MapType::PERCPU_ARRAY, 8),
    ] {
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size,
            max_entries: elements,
            ..MapAttr::default()
        };
        let map = Map::create(&attr)?;
        let mut keys: Vec<u32> = (0..elements).collect();
        let mut values = vec![1; map.user_size() as usize * keys.len()];
        let (from, mut to) = (values.clone(), values.clone());
        let (from_keys, mut to_keys) = (keys.clone(), keys.clone());
        map.update_batch(&keys, &values, 0)?;

        let lookup = race(
            || {
                let done = map.lookup_batch(None, black_box(&mut keys), black_box(&mut values), 0);
                assert_eq!(done.map(|done| done.count), Ok(elements));
            },
            || {
                black_box(&mut to).copy_from_slice(black_box(&from));
                black_box(&mut to_keys).copy_from_slice(black_box(&from_keys));
            },
        );
        report(&format!("{map_type} of {value_size} bytes, lookup_batch"), elements, lookup);
        let update = race(
            || {
                let done = map.update_batch(black_box(&keys), black_box(&values), 0);
                assert_eq!(done, Ok(elements));
            },
            || black_box(&mut to).copy_from_slice(black_box(&from)),
        );
        report(&format!("{map_type} of {value_size} bytes, update_batch"), elements, update);
    }
    Ok(())
}
