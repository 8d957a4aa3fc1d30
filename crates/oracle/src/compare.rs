//! Random questions, put to the live kernel and to our crates.

use std::fmt;

use bpfarray_core::disasm::Disasm;

use crate::corpus::Corpus;
use crate::create::{Created, Creator, MapCreate, Request};
use crate::kernel::{Kernel, Unavailable};
use crate::ops::{Case, Elements as _};
use crate::our_program::Interpreter;
use crate::programs::{self, Kind, QA, Style, on_cpu_0, run_assembled};
use crate::rng::Rng;
use crate::sys::Map;
use crate::{gen_lookup, ours, possible_cpus};

/// Where the kernel and we differ in a sequence of questions.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The seed that leads here alone, with a count of 1.
    pub seed: u64,
    /// Everything asked so far, the last line being the question that was answered differently.
    pub questions: Vec<String>,
    /// The kernel's answer.
    pub kernel: String,
    /// Our answer.
    pub ours: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.seed)?;
        for question in &self.questions {
            writeln!(f, "  {question}")?;
        }
        write!(f, "kernel: {}\nours:   {}", self.kernel, self.ours)
    }
}

/// Where the kernel and we differ about a program.
#[derive(Clone, Debug)]
pub struct ProgramMismatch {
    /// What was asked.
    pub question: String,
    /// The kernel's answer.
    pub kernel: String,
    /// Our answer.
    pub ours: String,
}

impl fmt::Display for ProgramMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  kernel: {}\n  ours:   {}", self.question, self.kernel, self.ours)
    }
}

/// The first few of many.
fn first(mismatches: &[ProgramMismatch]) -> String {
    let shown: Vec<String> = mismatches.iter().take(20).map(ToString::to_string).collect();
    shown.join("\n")
}

/// Why a comparison ended early, or failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("seed {0}")]
    Mismatch(Box<Mismatch>),
    #[error("{} answers differ:\n{}", .0.len(), first(.0))]
    Programs(Vec<ProgramMismatch>),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    GenLookup(#[from] gen_lookup::Error),
    #[error(transparent)]
    Cpu(#[from] programs::NoCpu0),
}

fn same<T: PartialEq + fmt::Debug>(
    seed: u64,
    questions: impl FnOnce() -> Vec<String>,
    kernel: &T,
    ours: &T,
) -> Result<(), Error> {
    if kernel == ours {
        return Ok(());
    }
    Err(Error::Mismatch(Box::new(Mismatch {
        seed,
        questions: questions(),
        kernel: format!("{kernel:x?}"),
        ours: format!("{ours:x?}"),
    })))
}

/// Creates the map in the kernel.
pub(crate) fn kernel_create(
    kernel: Kernel,
    request: &Request,
) -> Result<Result<(Map, Created), bpfarray_core::Errno>, Unavailable> {
    kernel.run_as(request.creator, || {
        let map = Map::create(&request.create)?;
        let created = Created { map_flags: map.info()?.map_flags, memlock: map.memlock()? };
        Ok((map, created))
    })
}

/// The creation request of a seed.
pub(crate) fn random_request(kernel: Kernel, seed: u64) -> Request {
    let mut rng = Rng::new(seed);
    let creator = match rng.below(10) {
        0 | 1 if kernel.restricts_creation() => Creator::Nobody,
        2..6 => Creator::Masked,
        _ => Creator::Trusted,
    };
    Request { creator, create: MapCreate::random_attr(&mut rng, creator) }
}

/// Compares `count` map creations: error number, or flags and memory charge.
///
/// # Errors
/// The first difference.
pub fn creations(kernel: Kernel, seed: u64, count: u64) -> Result<(), Error> {
    for seed in seed..seed + count {
        let request = random_request(kernel, seed);
        let theirs = kernel_create(kernel, &request)?.map(|(_, created)| created);
        let ours = ours::create(&request, possible_cpus()).map(|(_, created)| created);
        same(seed, || vec![request.to_string()], &theirs, &ours)?;
    }
    Ok(())
}

/// Compares at least `count` operations on maps of random shapes, and gives the number compared.
///
/// # Errors
/// The first difference.
pub fn ops(kernel: Kernel, seed: u64, count: u64) -> Result<u64, Error> {
    let mut done = 0;
    for seed in seed.. {
        let case = Case::random(seed);
        let theirs = kernel_create(kernel, &case.request)?;
        let ours = ours::create(&case.request, possible_cpus());
        let created = (theirs.as_ref().map(|(_, c)| c), ours.as_ref().map(|(_, c)| c));
        same(seed, || vec![case.request.to_string()], &created.0, &created.1)?;
        if let (Ok((theirs, _)), Ok((ours, _))) = (theirs, ours) {
            for (i, op) in case.ops.iter().enumerate() {
                let questions = || {
                    let ops = case.ops[..=i].iter().map(ToString::to_string);
                    [case.request.to_string()].into_iter().chain(ops).collect()
                };
                same(seed, questions, &theirs.apply(op), &ours.apply(op))?;
                done += 1;
            }
        }
        if done >= count {
            break;
        }
    }
    Ok(done)
}

/// Compares the instructions of `count` inlined lookups.
///
/// # Errors
/// The first difference, or what kept the kernel from answering.
pub fn lookups(kernel: Kernel, seed: u64, count: u64) -> Result<(), Error> {
    for seed in seed..seed + count {
        let request = gen_lookup::random(&mut Rng::new(seed));
        let theirs = gen_lookup::ask(kernel, &request)?;
        let ours = gen_lookup::ours(&request);
        same(seed, || vec![request.to_string()], &Ok(theirs.clone()), &ours)?;
        let ours = gen_lookup::ours_in_a_program(&request);
        same(seed, || vec![request.to_string()], &Ok(theirs), &ours)?;
    }
    Ok(())
}

/// Compares the runs of compiled programs, and gives the number of answers compared.
///
/// # Errors
/// All differences.
pub fn programs(kernel: Kernel, corpus: &Corpus) -> Result<usize, Error> {
    let style = Style { cpus: possible_cpus(), brief: false };
    let (mut done, mut mismatches) = (0, Vec::new());
    for run in &corpus.runs {
        let theirs = || programs::ask(&kernel, corpus, run, style);
        let ours = || programs::ask(&Interpreter, corpus, run, style);
        let (theirs, ours) = on_cpu_0(|| (theirs(), ours()))?;
        done += theirs.len();
        // A program that one side cannot load has fewer answers there.
        for i in 0..theirs.len().max(ours.len()) {
            let (theirs, ours) = (theirs.get(i), ours.get(i));
            if theirs != ours {
                let text = |qa: Option<&QA>| qa.map_or("nothing".into(), ToString::to_string);
                let question = format!("{} {}", run.object, run.program);
                let (kernel, ours) = (text(theirs), text(ours));
                mismatches.push(ProgramMismatch { question, kernel, ours });
            }
        }
    }
    if mismatches.is_empty() { Ok(done) } else { Err(Error::Programs(mismatches)) }
}

/// Compares what `count` random programs of a kind leave in their maps.
///
/// # Errors
/// The first difference.
pub fn random_programs(kernel: Kernel, kind: Kind, seed: u64, count: u64) -> Result<(), Error> {
    for seed in seed..seed + count {
        let program = (kind.random)(seed);
        let theirs = || run_assembled(&kernel, &program);
        let ours = || run_assembled(&Interpreter, &program);
        let (theirs, ours) = on_cpu_0(|| (theirs(), ours()))?;
        let listing = || Disasm::new(&program.insns).map(|line| line.to_string()).collect();
        same(seed, listing, &theirs, &ours)?;
    }
    Ok(())
}
