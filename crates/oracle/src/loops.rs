//! What the programs of the benchmark of engines do for each of 1,000 elements, and the same in Rust.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// Elements in one run of a program.
pub const ELEMENTS: u64 = 1000;

/// What one run of a program does, in Rust. The values are atomics, as others may access them at any time.
#[derive(Debug)]
pub struct Rust {
    values: Vec<AtomicU64>,
    seed: u64,
}

impl Rust {
    #[inline(always)]
    fn over(&self, each: impl Fn(&AtomicU64, u64)) {
        let seed = black_box(self.seed);
        for i in 0..ELEMENTS {
            let key = i ^ seed;
            if let Some(value) = black_box(&self.values[..]).get(key as usize) {
                each(value, i);
            }
        }
    }
}

impl Default for Rust {
    fn default() -> Self {
        Self { values: (0..ELEMENTS).map(AtomicU64::new).collect(), seed: 0 }
    }
}

/// A program that does something to each of some elements.
#[derive(Copy, Clone, Debug)]
pub struct Loop {
    /// Name of the program, in the benchmark's object.
    pub program: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The same in Rust.
    pub in_rust: fn(&Rust),
    /// How many times as long as that it may take at most.
    pub at_most: f64,
}

#[inline(always)]
fn add(value: &AtomicU64, n: u64) {
    value.store(value.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// All of them.
pub const LOOPS: [Loop; 6] = [
    Loop {
        program: "lookup_and_read",
        what: "look up and read",
        in_rust: |rust| {
            let seed = black_box(rust.seed);
            let mut sum = 0_u64;
            for i in 0..ELEMENTS {
                if let Some(value) = rust.values.get((i ^ seed) as usize) {
                    sum = sum.wrapping_add(value.load(Ordering::Relaxed));
                }
            }
            black_box(sum);
        },
        at_most: 1.5,
    },
    Loop {
        program: "read_modify_write",
        what: "read, modify, write",
        in_rust: |rust| rust.over(add),
        at_most: 1.5,
    },
    Loop {
        program: "atomic_add",
        what: "add atomically",
        in_rust: |rust| {
            rust.over(|value, n| {
                value.fetch_add(n, Ordering::SeqCst);
            });
        },
        at_most: 1.5,
    },
    Loop {
        program: "percpu_add",
        what: "add to the CPU's value",
        in_rust: |rust| rust.over(add),
        at_most: 1.5,
    },
    Loop {
        program: "update_elem",
        what: "update with the helper",
        in_rust: |rust| rust.over(|value, n| value.store(n, Ordering::Relaxed)),
        at_most: f64::INFINITY,
    },
    Loop {
        program: "constant_key",
        what: "count with a constant key",
        in_rust: |rust| {
            for _ in 0..ELEMENTS {
                add(black_box(&rust.values[0]), 1);
            }
        },
        at_most: 1.5,
    },
];
