//! Our crates against recorded answers of the kernel. Needs no kernel, no root.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use oracle::Form;
use oracle::corpus::Corpus;
use oracle::programs::on_cpu_0;
use oracle::record::{CASES, CREATIONS, FIELDS, LOOKUPS, OPS, PROGRAMS, RANDOM_PROGRAMS, XLATED};
use oracle::replay::{self, Error, Summary};
use oracle::vectors::Vectors;

struct Replay {
    test: &'static str,
    file: &'static str,
    run: fn(&Vectors) -> Result<Summary, Error>,
    /// Fewer answers compared mean that the file is not the one it should be. On a machine with one CPU, or
    /// without control groups, there are still more.
    at_least: usize,
    /// Whether nothing can be compared by a process that may not run on CPU 0.
    on_cpu_0: bool,
}

const REPLAYS: [Replay; 12] = [
    Replay {
        test: "creations_are_accepted_and_refused_as_recorded",
        file: CREATIONS,
        run: replay::ops,
        at_least: 3_000,
        on_cpu_0: false,
    },
    Replay {
        test: "operations_answer_as_recorded",
        file: OPS,
        run: replay::ops,
        at_least: 10_000,
        on_cpu_0: false,
    },
    Replay {
        test: "operations_on_special_fields_answer_as_recorded",
        file: FIELDS,
        run: replay::ops,
        at_least: 3_000,
        on_cpu_0: false,
    },
    Replay {
        test: "cases_give_the_recorded_digests",
        file: CASES,
        run: replay::cases,
        at_least: 4_000,
        on_cpu_0: false,
    },
    Replay {
        test: "lookups_and_tail_calls_become_the_recorded_instructions",
        file: LOOKUPS,
        run: replay::lookups,
        at_least: 1_500,
        on_cpu_0: false,
    },
    Replay {
        test: "compiled_programs_give_the_recorded_results_in_the_interpreter",
        file: PROGRAMS,
        run: |vectors| replay::programs(vectors, &Corpus::read()?, Form::Interp),
        at_least: 2_000,
        on_cpu_0: true,
    },
    Replay {
        test: "compiled_programs_give_the_recorded_results_in_their_first_machine_code",
        file: PROGRAMS,
        run: |vectors| replay::programs(vectors, &Corpus::read()?, Form::Quick),
        at_least: 2_000,
        on_cpu_0: true,
    },
    Replay {
        test: "compiled_programs_give_the_recorded_results_in_their_best_machine_code",
        file: PROGRAMS,
        run: |vectors| replay::programs(vectors, &Corpus::read()?, Form::Best),
        at_least: 2_000,
        on_cpu_0: true,
    },
    Replay {
        test: "compiled_programs_become_the_recorded_instructions",
        file: XLATED,
        run: |vectors| replay::xlated(vectors, &Corpus::read()?),
        at_least: 240,
        on_cpu_0: false,
    },
    Replay {
        test: "random_programs_give_the_recorded_results_in_the_interpreter",
        file: RANDOM_PROGRAMS,
        run: |vectors| replay::random_programs(vectors, Form::Interp),
        at_least: 1_000,
        on_cpu_0: true,
    },
    Replay {
        test: "random_programs_give_the_recorded_results_in_their_first_machine_code",
        file: RANDOM_PROGRAMS,
        run: |vectors| replay::random_programs(vectors, Form::Quick),
        at_least: 1_000,
        on_cpu_0: true,
    },
    Replay {
        test: "random_programs_give_the_recorded_results_in_their_best_machine_code",
        file: RANDOM_PROGRAMS,
        run: |vectors| replay::random_programs(vectors, Form::Best),
        at_least: 1_000,
        on_cpu_0: true,
    },
];

impl Replay {
    fn check(&self) -> Result<(), Failed> {
        let vectors = Vectors::read(self.file)?;
        let summary = (self.run)(&vectors).map_err(|e| format!("{}, {e}", self.file))?;
        if summary.skipped != 0 {
            eprintln!("{}: {summary}", self.file);
        }
        if summary.compared < self.at_least {
            return Err(format!("{}: too few answers: {summary}", self.file).into());
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Values per CPU are those of CPU 0 only while nobody else in the process, such as a timer of a program
    // that another test has loaded, is in its lane.
    args.test_threads = Some(1);
    let cpu_0 = on_cpu_0(|| ());
    let trials = REPLAYS.map(|replay| match cpu_0 {
        Err(why) if replay.on_cpu_0 => {
            // Listing must stay parsable, and a runner that lists first runs each test later.
            if !args.list {
                eprintln!("SKIPPED ({why}): {}", replay.test);
            }
            // Run all the same, as with `--ignored`, it fails.
            Trial::test(replay.test, move || Err(why.into())).with_ignored_flag(true)
        }
        _ => Trial::test(replay.test, move || replay.check()),
    });
    libtest_mimic::run(&args, trials.into()).exit_code()
}
