//! Our crates against recorded answers of the kernel. Needs no kernel, no root.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use oracle::corpus::Corpus;
use oracle::record::{CREATIONS, LOOKUPS, OPS, PROGRAMS, RANDOM_PROGRAMS};
use oracle::replay::{self, Error, Summary};
use oracle::vectors::Vectors;

struct Replay {
    test: &'static str,
    file: &'static str,
    run: fn(&Vectors) -> Result<Summary, Error>,
    /// Fewer answers in the file mean that it is not the file it should be.
    at_least: usize,
}

const REPLAYS: [Replay; 5] = [
    Replay {
        test: "creations_are_accepted_and_refused_as_recorded",
        file: CREATIONS,
        run: replay::ops,
        at_least: 3_000,
    },
    Replay { test: "operations_answer_as_recorded", file: OPS, run: replay::ops, at_least: 10_000 },
    Replay {
        test: "inlined_lookups_are_the_recorded_instructions",
        file: LOOKUPS,
        run: replay::lookups,
        at_least: 1_200,
    },
    Replay {
        test: "compiled_programs_give_the_recorded_results",
        file: PROGRAMS,
        run: |vectors| replay::programs(vectors, &Corpus::read()?),
        at_least: 2_000,
    },
    Replay {
        test: "random_programs_give_the_recorded_results",
        file: RANDOM_PROGRAMS,
        run: replay::random_programs,
        at_least: 2_000,
    },
];

impl Replay {
    fn check(&self) -> Result<(), Failed> {
        let vectors = Vectors::read(self.file)?;
        let summary = (self.run)(&vectors).map_err(|e| format!("{}, {e}", self.file))?;
        if summary.skipped != 0 {
            eprintln!("{}: {summary}", self.file);
        }
        if summary.compared + summary.skipped < self.at_least {
            return Err(format!("{} is too short: {summary}", self.file).into());
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let trials = REPLAYS.map(|replay| Trial::test(replay.test, move || replay.check()));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}
