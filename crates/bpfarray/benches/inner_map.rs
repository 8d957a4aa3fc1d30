//! Replacing inner maps under readers: what it costs them, and how long it takes. And what finding an
//! inner map by an address costs, among few and among many.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// Finds the inner map and counts in it, in a lane of its own.
fn visit(outer: &Map) -> bool {
    let lane = Lane::enter();
    let Some(addr) = outer.prog_lookup_elem(&lane, 0) else { return false };
    outer.inner_map_at(&lane, addr).and_then(|map| map.prog_lookup_elem(&lane, 3)).is_some()
}

/// Visits a second of two readers, while a writer replaces the map every so often; and the times
/// that took.
fn readers_and_writer(
    duration: Duration,
    every: Option<Duration>,
) -> Result<(f64, Vec<Duration>), Error> {
    let outer = outer(1)?;
    let maps = [inner()?, inner()?].map(|map| Object::Map(map.to_ref()));
    outer.update_object(0, &maps[0], 0)?;
    let (done, visits) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    let mut times = Vec::new();
    thread::scope(|scope| -> Result<(), Error> {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    count += u64::from(visit(&outer));
                }
                visits.fetch_add(count, Ordering::Relaxed);
            });
        }
        let result = maps.iter().cycle().take_while(|_| start.elapsed() < duration).try_for_each(
            |map| -> Result<(), Error> {
                thread::sleep(every.unwrap_or(duration).min(duration));
                if every.is_some() {
                    let begin = Instant::now();
                    outer.update_object(0, map, 0)?;
                    times.push(begin.elapsed());
                }
                Ok(())
            },
        );
        done.store(true, Ordering::Relaxed);
        result
    })?;
    Ok((visits.into_inner() as f64 / start.elapsed().as_secs_f64(), times))
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
    let (rounds, duration) = if quick { (1, 20) } else { (6, 500) };
    let duration = Duration::from_millis(duration);
    for every in [Duration::from_millis(10), Duration::from_millis(1)] {
        let (mut alone, mut together, mut times) = (0.0, 0.0, Vec::new());
        // In turn, so that both see the same machine.
        for _ in 0..rounds {
            alone += readers_and_writer(duration, None)?.0;
            let (visits, updates) = readers_and_writer(duration, Some(every))?;
            together += visits;
            times.extend(updates);
        }
        times.sort();
        let [median, most] =
            [times.len() / 2, times.len().saturating_sub(1)].map(|at| times.get(at).copied());
        println!(
            "two readers and an update every {every:?}: {:5.1} % of the {:.1} M visits a second \
             without, {} updates, median {:.1?}, longest {:.1?}",
            100.0 * together / alone,
            alone / f64::from(rounds) / 1e6,
            times.len(),
            median.unwrap_or_default(),
            most.unwrap_or_default()
        );
    }
    for slots in if quick { [1, 16, 128] } else { [1, 100, 10_000] } {
        lookups(slots)?;
    }
    Ok(())
}
