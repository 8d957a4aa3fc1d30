//! Writing down what the live kernel answers.

use std::collections::HashSet;

use crate::corpus::Corpus;
use crate::gen_lookup::Question;
use crate::kernel::Kernel;
use crate::kernel_program::KernelEngine;
use crate::kernel_side::KernelSide;
use crate::ops::{Case, to_text};
use crate::programs::{self, Style, on_cpu_0};
use crate::request::{Creator, Request};
use crate::subject::answers;
use crate::vectors::Recorder;
use crate::{compare, gen_lookup, kernel_side, possible_cpus, ranges, text, xlated};

/// Map creations.
pub const CREATIONS: &str = "ops/creations.vec";
/// Operations on maps.
pub const OPS: &str = "ops/ops.vec";
/// Operations on maps whose values have special fields.
pub const FIELDS: &str = "ops/fields.vec";
/// Digests of more operations on maps.
pub const CASES: &str = "ops/cases.vec";
/// Inlined lookups.
pub const LOOKUPS: &str = "gen_lookup/lookups.vec";
/// Compiled programs.
pub const PROGRAMS: &str = "progs/programs.vec";
/// Random programs.
pub const RANDOM_PROGRAMS: &str = "progs/random.vec";
/// Translated instructions of compiled programs.
pub const XLATED: &str = "progs/xlated.vec";
/// What the verifier knows about numbers.
pub const RANGES: &str = "verifier/ranges.vec";

const CREATE_FORMAT: &str = "\
`create WHO FIELD=VALUE...` asks for a map; fields that are not named are 0. WHO is trusted (has every
capability), masked (neither CAP_PERFMON nor CAP_SYS_ADMIN) or nobody (no CAP_BPF either). `inner create ...`
behind it is the map whose descriptor is given as inner_map_fd; `exclusive` asks for the hash of no program,
`value_type` for values of a struct in testdata/btf/fields.btf.";

const OP_FORMAT: &str = "\
`create WHO FIELD=VALUE... [inner create ...]` asks for a map. `lookup KEY FLAGS`, `update KEY FLAGS SEED`,
`put KEY FLAGS OBJECT`, `delete KEY`, `next [KEY]`, `freeze`, `refer PROG_TYPE` (loads a program that refers
to the map), `reopen` (opens a handle again, and closes the old one). Before an operation, `read-only` or
`write-only` tell through which handle other than the first it goes.
The value of an update is the first bytes of the splitmix64 sequence of SEED, each number little-endian.
An OBJECT is the name of something in the catalogue of crates/oracle/src/objects.rs.
Values longer than 32 bytes are given as #LENGTH:FNV-1a.";

/// Records a file.
pub type Record = fn(Kernel, &Corpus) -> Result<Recorder, compare::Error>;

/// How each file is recorded.
pub const FILES: [(&str, Record); 9] = [
    (CREATIONS, |kernel, _| creations(kernel, 1_000_000, 3_000)),
    (OPS, |kernel, _| ops(kernel, 1_000_000, 12_000, Case::random)),
    (FIELDS, |kernel, _| ops(kernel, 3_000_000, 5_000, Case::with_fields)),
    (CASES, |kernel, _| cases(kernel, 2_000_000, 400_000)),
    (LOOKUPS, |kernel, _| lookups(kernel, 1_000_000, 1_500)),
    (PROGRAMS, programs),
    (XLATED, |kernel, corpus| Ok(xlated(kernel, corpus))),
    (RANDOM_PROGRAMS, |kernel, _| random_programs(kernel, 1_000_000, 1_000)),
    (RANGES, |kernel, _| ranges(kernel, 1_000_000, 500)),
];

/// Records `count` creations.
///
/// # Errors
/// When the kernel stopped answering.
pub fn creations(kernel: Kernel, seed: u64, count: u64) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Map creations.\n{CREATE_FORMAT}\nThe answer is an error number, or the flags that \
             stay with the map and its memlock in bytes."
        ),
    );
    for seed in seed..seed + count {
        let request = Request::random(kernel, seed);
        let answer = kernel_side::create(kernel, &request)?.map(|(_, created)| created);
        out.fact(&request, to_text(&answer));
    }
    Ok(out)
}

/// Records at least `count` operations.
///
/// # Errors
/// When the kernel stopped answering.
pub fn ops(
    kernel: Kernel,
    seed: u64,
    count: usize,
    make: fn(u64) -> Case,
) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!("Operations on maps. Each applies to the map that was created last.\n{OP_FORMAT}"),
    );
    let side = KernelSide::new(kernel)?;
    let mut done = 0;
    for case in (seed..).map(make) {
        let answers = answers(&side, &case, possible_cpus())?;
        for (line, answer) in case.lines(case.steps.len()).iter().zip(answers) {
            out.fact(line, answer);
        }
        done += case.steps.len();
        if done >= count {
            break;
        }
    }
    Ok(out)
}

/// Records digests of the answers to at least `count` operations.
///
/// # Errors
/// When the kernel stopped answering.
pub fn cases(kernel: Kernel, seed: u64, count: usize) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Operations on maps: the seed of a case, a digest of the creation and the operations, \
             a line each,\nand a digest of the answers.\n{OP_FORMAT}"
        ),
    );
    let side = KernelSide::new(kernel)?;
    let mut done = 0;
    for seed in seed.. {
        let case = Case::random(seed);
        out.fact(case_question(seed, &case), case_answer(&answers(&side, &case, possible_cpus())?));
        done += case.steps.len();
        if done >= count {
            break;
        }
    }
    Ok(out)
}

/// How a case is named in [`CASES`].
pub(crate) fn case_question(seed: u64, case: &Case) -> String {
    format!("{seed} {}", text::digest(case.lines(case.steps.len()).join("\n").as_bytes()))
}

/// How the answers to a case are written in [`CASES`].
pub(crate) fn case_answer(answers: &[String]) -> String {
    text::digest(answers.join("\n").as_bytes())
}

/// Records `count` inlined lookups and tail calls.
///
/// # Errors
/// When the kernel stopped answering.
pub fn lookups(kernel: Kernel, seed: u64, count: u64) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Instructions that replace a program's lookup in a map, its lookup in a map and then in \
             the inner map\nthat it found, or its tail call.\n{CREATE_FORMAT}\nThe answer is the \
             instructions, 8 bytes each. The offset of the values is replaced by {},\nand a call \
             of a map type's lookup function by one of the helper.",
            bpfarray_core::VALUE_OFFSET
        ),
    );
    for question in (seed..seed + count).map(Question::random) {
        out.fact(&question, gen_lookup::to_text(&gen_lookup::ask(kernel, &question)?));
    }
    Ok(out)
}

/// Records the runs of compiled programs.
///
/// # Errors
/// When CPU 0 is not to be had.
pub fn programs(kernel: Kernel, corpus: &Corpus) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        "Runs of the compiled programs, as testdata/progs/inputs lists them, on CPU 0.\n\
         `run OBJECT PROGRAM INPUT` gives the return value, and packet and context where they changed;\n\
         for a capture file, how often each return value came and a digest of all answers.\n\
         `map OBJECT PROGRAM MAP` gives, after the last run, the elements that are not zero, those of all\n\
         CPUs side by side. Bytes longer than 32 are given as #LENGTH:FNV-1a.",
    );
    let engine = KernelEngine { kernel, creator: Creator::Trusted };
    let style = Style { cpus: possible_cpus(), brief: true };
    for run in &corpus.runs {
        let ask = || programs::ask(&engine, corpus, run, style);
        for qa in on_cpu_0(ask)? {
            out.fact(&qa.question, &qa.answer);
        }
    }
    Ok(out)
}

/// Records the translated instructions of compiled programs.
pub fn xlated(kernel: Kernel, corpus: &Corpus) -> Recorder {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Translated instructions of the compiled programs, 8 bytes each. Maps are numbered as they come; addresses of \
             helpers\nand of the CPU's number are 0, the offset of values is replaced by {}, and a call \
             has the distance of its\nfunction as the immediate.",
            bpfarray_core::VALUE_OFFSET
        ),
    );
    let engine = KernelEngine { kernel, creator: Creator::Trusted };
    for run in xlated::programs(corpus) {
        if let Some(insns) = xlated::ask(&engine, corpus, run) {
            out.fact(xlated::question(run), gen_lookup::to_text(&insns));
        }
    }
    out
}

/// Records the results of `count` random programs of each kind.
///
/// # Errors
/// When CPU 0 is not to be had.
pub fn random_programs(kernel: Kernel, seed: u64, count: u64) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        "Random programs on CPU 0: kind, seed and a digest of the instructions.\n\
         The answer is a digest of what the program left in its maps.",
    );
    let engine = KernelEngine { kernel, creator: Creator::Trusted };
    let style = Style { cpus: possible_cpus(), brief: true };
    for kind in programs::Kind::ALL {
        for seed in seed..seed + count {
            let qa = on_cpu_0(|| programs::ask_random(&engine, kind, seed, style))?;
            out.fact(&qa.question, &qa.answer);
        }
    }
    Ok(out)
}

/// Records what the verifier knows about the registers of `count` random programs.
///
/// # Errors
/// When the kernel refused a program.
pub fn ranges(kernel: Kernel, seed: u64, count: u64) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        "What the verifier knows about numbers, as its log has it: an instruction, what is known about its destination \
         and, if\nthat is a register, about its source. After an operation stands what is then known about the \
         destination; after a jump\nwhat is known about destination and source where it is not taken, and where \
         it is. `-` is a way that cannot be gone,\nand `?` one that is always gone, where nothing is learnt.",
    );
    let mut seen = HashSet::new();
    for seed in seed..seed + count {
        for (question, answer) in ranges::ask(kernel, seed)? {
            if seen.insert(question.clone()) {
                out.fact(question, answer);
            }
        }
    }
    Ok(out)
}
