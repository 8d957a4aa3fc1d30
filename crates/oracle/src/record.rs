//! Writing down what the live kernel answers.

use crate::compare::{kernel_create, random_request};
use crate::corpus::Corpus;
use crate::kernel::Kernel;
use crate::ops::{Case, Elements as _, to_text};
use crate::programs::{self, Style, on_cpu_0};
use crate::rng::Rng;
use crate::vectors::Recorder;
use crate::{compare, gen_lookup, possible_cpus};

/// Map creations.
pub const CREATIONS: &str = "ops/creations.vec";
/// Operations on maps.
pub const OPS: &str = "ops/ops.vec";
/// Inlined lookups.
pub const LOOKUPS: &str = "gen_lookup/lookups.vec";
/// Compiled programs.
pub const PROGRAMS: &str = "progs/programs.vec";
/// Random programs.
pub const RANDOM_PROGRAMS: &str = "progs/random.vec";

const CREATE_FORMAT: &str = "\
`create WHO FIELD=VALUE...` asks for a map; fields that are not named are 0. WHO is trusted (has every
capability), masked (neither CAP_PERFMON nor CAP_SYS_ADMIN) or nobody (no CAP_BPF either).";

/// Everything, by file name.
///
/// # Errors
/// When the kernel stopped answering.
pub fn all(
    kernel: Kernel,
    corpus: &Corpus,
) -> Result<Vec<(&'static str, Recorder)>, compare::Error> {
    Ok(vec![
        (CREATIONS, creations(kernel, 1_000_000, 3_000)?),
        (OPS, ops(kernel, 1_000_000, 10_000)?),
        (LOOKUPS, lookups(kernel, 1_000_000, 1_200)?),
        (PROGRAMS, programs(kernel, corpus)?),
        (RANDOM_PROGRAMS, random_programs(kernel, 1_000_000, 1_000)?),
    ])
}

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
        let request = random_request(kernel, seed);
        let answer = kernel_create(kernel, &request)?.map(|(_, created)| created);
        out.fact(&request, to_text(&answer));
    }
    Ok(out)
}

/// Records at least `count` operations.
///
/// # Errors
/// When the kernel stopped answering.
pub fn ops(kernel: Kernel, seed: u64, count: usize) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Operations on maps. Each applies to the map that was created last.\n{CREATE_FORMAT}\n\
             `lookup KEY FLAGS`, `update KEY FLAGS SEED`, `delete KEY`, `next [KEY]`, `freeze`.\n\
             The value of an update is the first bytes of the splitmix64 sequence of SEED, each \
             number little-endian.\nValues longer than 32 bytes are given as #LENGTH:FNV-1a."
        ),
    );
    let mut done = 0;
    for seed in seed.. {
        let case = Case::random(seed);
        let answer = kernel_create(kernel, &case.request)?;
        out.fact(&case.request, to_text(&answer.as_ref().map(|(_, c)| *c).map_err(|e| *e)));
        if let Ok((map, _)) = answer {
            for op in &case.ops {
                out.fact(op, to_text(&map.apply(op)));
            }
            done += case.ops.len();
        }
        if done >= count {
            break;
        }
    }
    Ok(out)
}

/// Records `count` inlined lookups.
///
/// # Errors
/// When the kernel stopped answering.
pub fn lookups(kernel: Kernel, seed: u64, count: u64) -> Result<Recorder, compare::Error> {
    let mut out = Recorder::new(
        kernel,
        &format!(
            "Instructions that replace a program's lookup in a map.\n{CREATE_FORMAT}\nThe answer is \
             the instructions, 8 bytes each, or `call` where the call stays. The immediate of\n\
             the first instruction, the offset of the values, is replaced by {}.",
            bpfarray_core::VALUE_OFFSET
        ),
    );
    for seed in seed..seed + count {
        let request = gen_lookup::random(&mut Rng::new(seed));
        out.fact(&request, gen_lookup::to_text(gen_lookup::ask(kernel, &request)?.as_deref()));
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
    let style = Style { cpus: possible_cpus(), brief: true };
    for run in &corpus.runs {
        let ask = || programs::ask(&kernel, corpus, run, style);
        for qa in on_cpu_0(ask)? {
            out.fact(&qa.question, &qa.answer);
        }
    }
    Ok(out)
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
    let style = Style { cpus: possible_cpus(), brief: true };
    for kind in programs::Kind::ALL {
        for seed in seed..seed + count {
            let qa = on_cpu_0(|| programs::ask_random(&kernel, kind, seed, style))?;
            out.fact(&qa.question, &qa.answer);
        }
    }
    Ok(out)
}
