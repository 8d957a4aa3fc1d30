//! Measuring several sides in one run, so that all see the same machine.

use std::time::{Duration, Instant};

/// How often and how long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    count: u32,
    time: Duration,
}

impl Rounds {
    /// What a benchmark was asked for: rough figures with `--quick`.
    pub fn from_args() -> Self {
        if std::env::args().any(|arg| arg == "--quick") {
            Self { count: 2, time: Duration::from_millis(5) }
        } else {
            Self { count: 15, time: Duration::from_millis(40) }
        }
    }

    /// How many rounds.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How long each lasts, about.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Nanoseconds per call of each of `sides`: the best round of each, rounds taken in turns.
    pub fn compare<const N: usize>(&self, mut sides: [&mut dyn FnMut(u64); N]) -> [f64; N] {
        let iterations = sides.each_mut().map(|side| self.calibrate(*side));
        let mut best = [f64::INFINITY; N];
        for _ in 0..self.count {
            for i in 0..N {
                let start = Instant::now();
                sides[i](iterations[i]);
                let each = start.elapsed().as_nanos() as f64 / iterations[i] as f64;
                best[i] = best[i].min(each);
            }
        }
        best
    }

    /// How many iterations fill one round.
    fn calibrate(&self, side: &mut dyn FnMut(u64)) -> u64 {
        let mut n = 1;
        loop {
            let start = Instant::now();
            side(n);
            let took = start.elapsed();
            if took >= self.time / 4 {
                return (n as f64 * self.time.as_secs_f64() / took.as_secs_f64()).max(1.0) as u64;
            }
            n *= 4;
        }
    }
}

/// Prints one row: what took how long, and how often that goes into something else, or the other way round.
pub fn line(what: &str, ns: f64, than: &str, ratio: f64, target: &str) {
    let time = match ns {
        ..1e4 => format!("{ns:.2} ns"),
        ..1e7 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
    };
    println!("{what:<44} {time:>12}   {ratio:>9.2}x {than:<36} {target}");
}
