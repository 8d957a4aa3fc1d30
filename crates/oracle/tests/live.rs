//! Our crates against the live kernel. Where there is none, every test counts as ignored.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use oracle::corpus::Corpus;
use oracle::hostile::{Cases, Strict, TheKernel, Verdict, reason, verify};
use oracle::ops::Case;
use oracle::programs::Kind;
use oracle::{Kernel, compare, random};

type Test = fn(Kernel) -> Result<(), Failed>;

fn random_programs(kernel: Kernel, kind: Kind, seed: u64, count: u64) -> Result<(), Failed> {
    let done = random::compare(kernel, kind, seed, count)?;
    assert_eq!(done.translated.programs as u64, count, "{done}");
    assert!(done.too_large < count / 1_000, "{done}");
    if kind.name == Kind::FLOWS.name {
        assert_eq!(done.missing(), None, "{done}");
    }
    Ok(())
}

const TESTS: &[(&str, Test)] = &[
    ("creations_are_accepted_and_refused_as_by_the_kernel", |kernel| {
        Ok(compare::creations(kernel, 1, 10_000)?)
    }),
    ("a_hundred_thousand_operations_answer_as_the_kernel", |kernel| {
        let done = compare::ops(kernel, 1, 100_000, Case::random)?;
        if done.skipped != 0 {
            eprintln!("{done}");
        }
        assert!(done.operations >= 80_000, "only {done}");
        Ok(())
    }),
    ("operations_on_special_fields_answer_as_the_kernel", |kernel| {
        let done = compare::ops(kernel, 1, 20_000, Case::with_fields)?;
        assert_eq!(done.skipped, 0);
        Ok(())
    }),
    ("raw_attribute_blocks_answer_as_the_kernels", |kernel| {
        oracle::door::compare(kernel, 1, 20_000)?;
        Ok(())
    }),
    ("lookups_and_tail_calls_become_the_instructions_of_the_kernel", |kernel| {
        Ok(compare::lookups(kernel, 1, 2_000)?)
    }),
    ("compiled_programs_give_the_results_of_the_kernel", |kernel| {
        let corpus = Corpus::read()?;
        let programs: HashSet<_> = corpus.runs.iter().map(|r| (&r.object, &r.program)).collect();
        assert!(programs.len() > 180, "only {} programs", programs.len());
        compare::programs(kernel, &corpus)?;
        Ok(())
    }),
    ("compiled_programs_become_the_instructions_of_the_kernel", |kernel| {
        let translated = compare::xlated(kernel, &Corpus::read()?)?;
        assert!(translated.programs > 360, "{translated}");
        Ok(())
    }),
    ("timers_without_users_answer_as_the_kernels", |kernel| {
        Ok(compare::timers_without_users(kernel, &Corpus::read()?)?)
    }),
    ("random_arithmetic_gives_the_results_of_the_kernel", |kernel| {
        random_programs(kernel, Kind::ISA, 1, 3_000)
    }),
    ("random_helper_calls_give_the_results_of_the_kernel", |kernel| {
        random_programs(kernel, Kind::HELPERS, 1, 3_000)
    }),
    ("random_loops_calls_and_packets_give_the_results_of_the_kernel", |kernel| {
        random_programs(kernel, Kind::FLOWS, 1, 2_000)
    }),
    ("programs_without_mistakes_pass_the_kernels_verifier_and_ours", |kernel| {
        let corpus = Corpus::read()?;
        let (mut theirs, mut ours) = (TheKernel::new(kernel, &corpus)?, Strict::new(&corpus));
        let mut refused = BTreeMap::new();
        for seed in 1..1_000 {
            let case = Cases::right(seed);
            for verdict in [theirs.judge(&case, &case.insns)?, ours.judge(&case, &case.insns)?] {
                if let Verdict::Refused { text, .. } = verdict {
                    let listing = format!("seed {seed}:\n{}", case.listing().join("\n"));
                    refused.entry(reason(&text).0.to_owned()).or_insert(listing);
                }
            }
        }
        match refused.is_empty() {
            true => Ok(()),
            false => Err(format!("{refused:#?}").replace("\\n", "\n").into()),
        }
    }),
    ("strict_mode_refuses_and_accepts_programs_with_mistakes_as_the_kernel", |kernel| {
        let verdicts = verify::compare(kernel, &Corpus::read()?, 1, 2_000)?;
        let ((memory, missed), (accepted, refused)) = (verdicts.memory(), verdicts.accepted());
        assert!(memory > 500 && accepted > 500, "{verdicts}");
        assert!(missed * 200 <= memory && refused * 100 <= accepted, "{verdicts}");
        assert!(verdicts.unknown().is_empty(), "{verdicts}");
        Ok(())
    }),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Values per CPU are those of CPU 0 only while nobody else in the process, such as a timer of a program
    // that another test has loaded, is in its lane.
    args.test_threads = Some(1);
    let kernel = Kernel::available().map_err(|why| format!("no live kernel: {why}"));
    let trials = TESTS.iter().map(|&(name, test)| match kernel.clone() {
        Ok(kernel) => Trial::test(name, move || test(kernel)),
        Err(why) => {
            // Listing must stay parsable, and a runner that lists first runs each test later.
            if !args.list {
                eprintln!("SKIPPED ({why}): {name}");
            }
            // Run all the same, as with `--ignored`, it fails.
            Trial::test(name, move || Err(why.into())).with_ignored_flag(true)
        }
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    if let (Err(why), false) = (&kernel, args.list) {
        eprintln!("{} tests SKIPPED: {why}", TESTS.len());
    }
    conclusion.exit_code()
}
