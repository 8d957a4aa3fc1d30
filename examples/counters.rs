//! Counters that many threads raise at a high rate, and one thread reads.
//!
//! `cargo run --release -p bpfarray --example counters`

use std::time::Instant;

use bpfarray::{Array, PercpuArray};

const THREADS: u64 = 4;
const EVENTS: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One value for all threads: every addition is an atomic instruction.
    let shared = Array::<u64>::new(4)?;
    // One value for each CPU: additions meet nobody else, and reading adds them up.
    let local = PercpuArray::<u64>::new(4)?;

    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                (0..EVENTS).try_for_each(|i| shared.fetch_add((i % 4) as u32, 1).map(drop))
            });
        }
    });
    let atomic = start.elapsed();

    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..EVENTS).try_for_each(|i| local.add((i % 4) as u32, 1)));
        }
    });
    let percpu = start.elapsed();

    let events = (THREADS * EVENTS) as f64;
    println!("one counter for all:      {:6.1} ns an event", atomic.as_nanos() as f64 / events);
    println!("one counter for each CPU: {:6.1} ns an event", percpu.as_nanos() as f64 / events);
    for index in 0..4 {
        println!("counter {index}: {:?} {:?}", shared.get(index), local.sum(index));
        assert_eq!(shared.get(index), Some(THREADS * EVENTS / 4));
        assert_eq!(local.sum(index), shared.get(index));
    }
    Ok(())
}
