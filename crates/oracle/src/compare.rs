//! Random questions, put to the live kernel and to our crates.

use std::fmt;

use bpfarray_core::disasm::Disasm;
use bpfarray_core::insn::Insn;

use crate::corpus::Corpus;
use crate::gen_lookup::{self, Question};
use crate::inputs::{Input, Run};
use crate::kernel::{Kernel, Unavailable};
use crate::kernel_program::{KernelEngine, KernelProgram};
use crate::kernel_side::{self, KernelSide};
use crate::ops::Case;
use crate::our_program::{Form, OurEngine, OurProgram};
use crate::ours::{self, OurSide};
use crate::programs::{self, Engine, Program, QA, Style, on_cpu_0};
use crate::request::{Creator, Request};
use crate::subject::answers;
use crate::xlated::{self, Differences};
use crate::{possible_cpus, ranges};

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
    Ranges(#[from] ranges::Error),
    #[error(transparent)]
    Kernel(#[from] kernel_side::Error),
    #[error(transparent)]
    Ours(#[from] ours::Error),
    #[error(transparent)]
    Cpu(#[from] programs::NoCpu),
}

impl Error {
    /// A program that only the kernel refuses.
    pub(crate) fn refused(seed: u64, questions: Vec<String>, kernel: String) -> Self {
        let ours = "not asked".into();
        Self::Mismatch(Box::new(Mismatch { seed, questions, kernel, ours }))
    }
}

pub(crate) fn same<T: PartialEq + fmt::Debug>(
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

/// Compares `count` map creations: error number, or flags and memory charge.
///
/// # Errors
/// The first difference.
pub fn creations(kernel: Kernel, seed: u64, count: u64) -> Result<(), Error> {
    for seed in seed..seed + count {
        let request = Request::random(kernel, seed);
        let theirs = kernel_side::create(kernel, &request)?.map(|(_, created)| created);
        let ours = ours::create(&request, possible_cpus()).map(|(_, created)| created);
        same(seed, || vec![request.to_string()], &theirs, &ours)?;
    }
    Ok(())
}

/// What a comparison of operations did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Operations compared.
    pub operations: u64,
    /// Operations of cases that need a cgroup v2 hierarchy, where there is none.
    pub skipped: u64,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.operations)?;
        if self.skipped != 0 {
            write!(f, ", {} SKIPPED: no cgroup v2 hierarchy is mounted", self.skipped)?;
        }
        Ok(())
    }
}

/// Compares at least `count` operations on maps of random shapes.
///
/// # Errors
/// The first difference.
pub fn ops(
    kernel: Kernel,
    seed: u64,
    count: u64,
    make: fn(u64) -> Case,
) -> Result<Compared, Error> {
    let (theirs, ours) = (KernelSide::new(kernel)?, OurSide::new(possible_cpus())?);
    let mut done = Compared::default();
    for seed in seed.. {
        let case = make(seed);
        let asked = case.steps.len() as u64;
        if case.is_missing() {
            done.skipped += asked;
        } else {
            let theirs = answers(&theirs, &case, possible_cpus())?;
            let ours = answers(&ours, &case, possible_cpus())?;
            for (at, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                same(seed, || case.lines(at), theirs, ours)?;
            }
            done.operations += asked;
        }
        if done.operations + done.skipped >= count {
            break;
        }
    }
    Ok(done)
}

/// Compares the instructions of `count` inlined lookups and tail calls.
///
/// # Errors
/// The first difference, or what kept the kernel from answering.
pub fn lookups(kernel: Kernel, seed: u64, count: u64) -> Result<(), Error> {
    for seed in seed..seed + count {
        let question = Question::random(seed);
        let theirs = Ok(gen_lookup::ask(kernel, &question)?);
        let ours = gen_lookup::ours_in_a_program(&question);
        same(seed, || vec![question.to_string()], &theirs, &ours)?;
        if let Some(ours) = gen_lookup::ours(&question).transpose() {
            same(seed, || vec![question.to_string()], &theirs, &ours)?;
        }
    }
    Ok(())
}

/// Compares the runs of compiled programs, with maps of trusted and of other creators, and gives the
/// number of answers compared.
///
/// # Errors
/// All differences.
pub fn programs(kernel: Kernel, corpus: &Corpus) -> Result<usize, Error> {
    let style = Style { cpus: possible_cpus(), brief: false };
    let (mut done, mut mismatches) = (0, Vec::new());
    let creators = [Creator::Trusted, Creator::Masked];
    for (run, creator) in corpus.runs.iter().flat_map(|run| creators.map(|c| (run, c))) {
        let theirs = || programs::ask(&KernelEngine { kernel, creator }, corpus, run, style);
        let theirs = on_cpu_0(theirs)?;
        done += theirs.len();
        for engine in OurEngine::all(creator) {
            let ours = on_cpu_0(|| programs::ask(&engine, corpus, run, style))?;
            // A program that one side cannot load has fewer answers there.
            for i in 0..theirs.len().max(ours.len()) {
                let (theirs, ours) = (theirs.get(i), ours.get(i));
                if theirs != ours {
                    let text = |qa: Option<&QA>| qa.map_or("nothing".into(), ToString::to_string);
                    let form = engine.form;
                    let question = format!("{} {} ({creator}, {form})", run.object, run.program);
                    let (kernel, ours) = (text(theirs), text(ours));
                    mismatches.push(ProgramMismatch { question, kernel, ours });
                }
            }
        }
    }
    if mismatches.is_empty() { Ok(done) } else { Err(Error::Programs(mismatches)) }
}

/// Compares the translated instructions of compiled programs, with maps of trusted and of other creators.
///
/// # Errors
/// All programs whose instructions differ in more than what is meant to be so.
pub fn xlated(kernel: Kernel, corpus: &Corpus) -> Result<Translated, Error> {
    let (mut done, mut mismatches) = (Translated::default(), Vec::new());
    let creators = [Creator::Trusted, Creator::Masked];
    for (run, creator) in xlated::programs(corpus).flat_map(|run| creators.map(|c| (run, c))) {
        let Some(object) = corpus.objects.get(&run.object) else { continue };
        let theirs = KernelEngine { kernel, creator }.load(object, &run.program);
        let ours = OurEngine { form: Form::Interp, creator }.load(object, &run.program);
        // What a side cannot load is found by the comparison of runs.
        let (Ok(theirs), Ok(ours)) = (theirs, ours) else { continue };
        let question = || format!("{} ({creator})", xlated::question(run));
        if let Some(mismatch) = done.compare(&ours, &theirs, Differences::are_deliberate, question)
        {
            mismatches.push(mismatch);
        }
    }
    if mismatches.is_empty() { Ok(done) } else { Err(Error::Programs(mismatches)) }
}

/// What a comparison of translated programs found.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// Programs compared.
    pub programs: usize,
    /// Differences in all of them.
    pub differences: Differences,
}

impl fmt::Display for Translated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} translated programs, differences: {}", self.programs, self.differences)
    }
}

impl Translated {
    pub(crate) fn compare(
        &mut self,
        ours: &impl Program,
        theirs: &impl Program,
        are_deliberate: fn(&Differences) -> bool,
        question: impl Fn() -> String,
    ) -> Option<ProgramMismatch> {
        let mismatch = |kernel, ours| Some(ProgramMismatch { question: question(), kernel, ours });
        let (theirs, ours) = match (theirs.xlated(), ours.xlated()) {
            (Ok(theirs), Ok(ours)) => (xlated::normal(&theirs), xlated::normal(&ours)),
            (theirs, ours) => return mismatch(format!("{theirs:?}"), format!("{ours:?}")),
        };
        let found = xlated::compare(&ours, &theirs);
        self.programs += 1;
        self.differences.add(&found);
        let text = |insns: &[Insn]| {
            let lines = Disasm::new(insns).map(|line| format!("\n    {line}"));
            lines.collect::<String>()
        };
        match are_deliberate(&found) {
            true => None,
            false => mismatch(format!("{found}{}", text(&theirs)), text(&ours)),
        }
    }
}

/// Compares what programs are told that make and start timers in a map, while it has users and when it has none.
///
/// # Errors
/// All differences.
pub fn timers_without_users(kernel: Kernel, corpus: &Corpus) -> Result<(), Error> {
    fn ask<P: Program>(
        program: Result<P, String>,
        input: &Input,
        close_maps: fn(&mut P),
    ) -> Vec<String> {
        let Ok(mut program) = program else { return vec!["not loaded".into()] };
        let with_users = format!("{:?}", program.run(input));
        close_maps(&mut program);
        vec![with_users, format!("{:?}", program.run(input))]
    }
    let creator = Creator::Trusted;
    let mut mismatches = Vec::new();
    let is_asked = |run: &&Run| {
        run.object == "timers" && ["init", "start_only"].contains(&run.program.as_str())
    };
    for run in corpus.runs.iter().filter(is_asked) {
        let (object, program) = (&corpus.objects[&run.object], run.program.as_str());
        for input in &run.inputs {
            let theirs = KernelEngine { kernel, creator }.load(object, program);
            let theirs = ask(theirs, input, KernelProgram::close_maps);
            for engine in OurEngine::all(creator) {
                let ours = ask(engine.load(object, program), input, OurProgram::close_maps);
                if theirs != ours || theirs.len() != 2 {
                    let question = format!("{program} {} ({})", input.name, engine.form);
                    let (kernel, ours) = (theirs.join(", "), ours.join(", "));
                    mismatches.push(ProgramMismatch { question, kernel, ours });
                }
            }
        }
    }
    if mismatches.is_empty() { Ok(()) } else { Err(Error::Programs(mismatches)) }
}
