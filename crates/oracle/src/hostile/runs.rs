//! How runs under the monitor ended.

use std::fmt;
use std::ops::AddAssign;

/// How many programs ended in which way.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Programs that were refused when they were loaded.
    pub refused: u64,
    /// Programs that ran.
    pub programs: u64,
    /// Of these, those that no machine code was made for.
    pub interpreted: u64,
    /// Runs in one engine that ended with a number.
    pub finished: u64,
    /// Runs that ended with a fault.
    pub faults: u64,
    /// Programs whose result depends on where a map is.
    pub by_address: u64,
}

impl Runs {
    const NAMES: [&str; 6] =
        ["refused", "programs", "interpreted", "finished", "faults", "by address"];

    fn numbers(&mut self) -> [&mut u64; 6] {
        let Self { refused, programs, interpreted, finished, faults, by_address } = self;
        [refused, programs, interpreted, finished, faults, by_address]
    }

    /// The numbers of a line as [`Runs`] are printed.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut runs = Self::default();
        for ((name, number), field) in Self::NAMES.iter().zip(runs.numbers()).zip(line.split(", "))
        {
            *number = field.strip_suffix(name)?.trim_end().parse().ok()?;
        }
        Some(runs)
    }
}

impl AddAssign for Runs {
    fn add_assign(&mut self, mut other: Self) {
        for (mine, others) in self.numbers().into_iter().zip(other.numbers()) {
            *mine += *others;
        }
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = *self;
        let fields = numbers.numbers().into_iter().zip(Self::NAMES);
        let fields: Vec<String> = fields.map(|(number, name)| format!("{number} {name}")).collect();
        f.write_str(&fields.join(", "))
    }
}
