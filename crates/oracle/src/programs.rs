//! Programs, run with given inputs: what they return, what they leave in packet, context and maps.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use bpfarray_core::insn::Insn;
use bpfarray_vm::ProgType;
use bpfarray_vm::elf::Object;

use crate::corpus::Corpus;
use crate::create::MapCreate;
use crate::inputs::{Input, Run};
use crate::text;

/// What a run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the program returned.
    pub retval: u32,
    /// The packet as it came out, where one went in.
    pub data: Option<Vec<u8>>,
    /// The context as it came out, where one went in that programs of this type can change.
    pub ctx: Option<Vec<u8>>,
}

/// A map's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The map's name.
    pub name: String,
    /// Bytes of each CPU's part of an element, where there are such parts.
    pub percpu: Option<usize>,
    /// All elements, in order.
    pub elements: Vec<Vec<u8>>,
}

/// A program that is loaded, with maps of its own.
pub trait Program {
    /// Runs it once.
    ///
    /// # Errors
    /// Why it did not run to its end.
    fn run(&mut self, input: &Input) -> Result<Outcome, String>;

    /// The contents of its maps.
    ///
    /// # Errors
    /// Why a map cannot be read.
    fn maps(&self) -> Result<Vec<Contents>, String>;

    /// The instructions that run.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn xlated(&self) -> Result<Vec<Insn>, String>;
}

/// Something that loads programs.
pub trait Engine {
    /// What it loads them as.
    type Program: Program;

    /// Loads one program of an object, with fresh maps.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    fn load(&self, object: &Object, program: &str) -> Result<Self::Program, String>;

    /// Loads a program from its instructions, with fresh maps that are named by their index.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    fn assemble(&self, assembled: &Assembled) -> Result<Self::Program, String>;
}

/// A program that was made from instructions, the maps they index, and what it is run with.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// The program's type.
    pub prog_type: ProgType,
    /// The instructions.
    pub insns: Vec<Insn>,
    /// The maps.
    pub maps: Vec<MapCreate>,
    /// Which of the maps holds which other one in its first slot, and takes others like it.
    pub inner: Option<(usize, usize)>,
    /// The packet; empty for a type that takes none.
    pub packet: Vec<u8>,
}

impl Assembled {
    /// A program for a raw tracepoint.
    pub(crate) fn raw_tp(insns: Vec<Insn>, maps: Vec<MapCreate>) -> Self {
        let prog_type = ProgType::RAW_TRACEPOINT;
        Self { prog_type, insns, maps, inner: None, packet: Vec::new() }
    }
}

/// Random programs of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The name in vector files.
    pub name: &'static str,
    /// The program of a seed.
    pub random: fn(u64) -> Assembled,
}

impl Kind {
    /// Arithmetic, branches, stack accesses and atomics.
    pub const ISA: Self = Self { name: "isa", random: crate::isa::random };
    /// Calls of map helpers.
    pub const HELPERS: Self = Self { name: "helpers", random: crate::helpers::random };
    /// Loops, functions, packets, and maps of all kinds.
    pub const FLOWS: Self = Self { name: "flows", random: crate::flows::random };
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::ISA, Self::HELPERS, Self::FLOWS];
}

/// Runs an assembled program once, and gives what came out and its maps.
///
/// # Errors
/// Why it cannot be loaded, or did not run to its end.
pub fn run_assembled<E: Engine>(
    engine: &E,
    assembled: &Assembled,
) -> Result<(Outcome, Vec<Contents>), String> {
    run_once(&mut engine.assemble(assembled)?, assembled)
}

/// Runs a program that has been assembled, and gives what came out and its maps.
///
/// # Errors
/// Why it did not run to its end.
pub(crate) fn run_once<P: Program>(
    program: &mut P,
    assembled: &Assembled,
) -> Result<(Outcome, Vec<Contents>), String> {
    let data = Some(assembled.packet.clone()).filter(|packet| !packet.is_empty());
    let outcome = program.run(&Input { data, ..Input::default() })?;
    Ok((outcome, program.maps()?))
}

/// Asks for what a random program leaves in its maps, as a digest. The question has a digest of
/// the program, so that a changed generator is told from a changed answer.
pub fn ask_random<E: Engine>(engine: &E, kind: Kind, seed: u64, style: Style) -> QA {
    let program = (kind.random)(seed);
    let code: Vec<u8> = program.insns.iter().flat_map(|insn| insn.encode()).collect();
    let answer = run_assembled(engine, &program).map(|(outcome, maps)| {
        let mut all: Vec<String> = maps.iter().map(|map| contents_text(map, style)).collect();
        if let Some(packet) = outcome.data {
            all.push(format!("{} {}", outcome.retval, text::hex(&packet)));
        }
        text::digest(all.join("\n").as_bytes())
    });
    QA {
        question: format!("{} {seed} {}", kind.name, text::digest(&code)),
        answer: answer.unwrap_or_else(|why| why),
    }
}

/// How answers are written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// For how many CPUs values per CPU are given.
    pub cpus: usize,
    /// Whether long values become digests.
    pub brief: bool,
}

impl Style {
    fn bytes(self, bytes: &[u8]) -> String {
        if self.brief { text::bytes(bytes) } else { text::hex(bytes) }
    }
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QA {
    /// What was asked.
    pub question: String,
    /// What was answered.
    pub answer: String,
}

/// Runs a program with all its inputs on one engine, and tells what came out: an answer for each
/// input, or for a run of captured packets one for all, and then one for each map.
pub fn ask<E: Engine>(engine: &E, corpus: &Corpus, run: &Run, style: Style) -> Vec<QA> {
    let what = format!("{} {}", run.object, run.program);
    let object = corpus.objects.get(&run.object).ok_or("no such object".to_owned());
    let mut program = match object.and_then(|object| engine.load(object, &run.program)) {
        Ok(program) => program,
        Err(why) => return vec![QA { question: format!("load {what}"), answer: why }],
    };
    let mut answers: Vec<QA> = Vec::new();
    for input in &run.inputs {
        let answer = match program.run(input) {
            Ok(outcome) => outcome_text(&outcome, input, style),
            Err(why) => why,
        };
        answers.push(QA { question: format!("run {what} {}", input.name), answer });
    }
    if let Some(capture) = &run.capture {
        answers = vec![QA { question: format!("run {what} {capture}"), answer: counts(&answers) }];
    }
    match program.maps() {
        Ok(maps) => answers.extend(maps.iter().map(|map| QA {
            question: format!("map {what} {}", map.name),
            answer: contents_text(map, style),
        })),
        Err(why) => answers.push(QA { question: format!("maps {what}"), answer: why }),
    }
    answers
}

/// The return value, and packet and context where they are not what went in.
fn outcome_text(outcome: &Outcome, input: &Input, style: Style) -> String {
    let mut text = outcome.retval.to_string();
    for (name, before, after) in
        [("data", &input.data, &outcome.data), ("ctx", &input.ctx, &outcome.ctx)]
    {
        if let Some(after) = after
            && before.as_ref() != Some(after)
        {
            let _ = write!(text, " {name} {}", style.bytes(after));
        }
    }
    text
}

/// How often each return value came, and a digest of all answers in order.
fn counts(answers: &[QA]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for QA { answer, .. } in answers {
        *counts.entry(answer.split(' ').next().unwrap_or("")).or_default() += 1;
    }
    let all: Vec<&str> = answers.iter().map(|qa| qa.answer.as_str()).collect();
    let counts = counts.iter().map(|(retval, count)| format!("{retval}x{count}"));
    let counts = counts.collect::<Vec<_>>().join(" ");
    format!("{counts} {}", text::digest(all.join("\n").as_bytes()))
}

/// The elements that are not zero.
fn contents_text(map: &Contents, style: Style) -> String {
    let mut text = String::new();
    for (index, element) in map.elements.iter().enumerate() {
        let len = map.percpu.map_or(element.len(), |each| element.len().min(each * style.cpus));
        let element = &element[..len];
        if element.iter().any(|byte| *byte != 0) {
            let _ = write!(text, "{index}:{} ", style.bytes(element));
        }
    }
    match text.trim_end() {
        "" => "zero".into(),
        text => text.into(),
    }
}

impl fmt::Display for QA {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.question, self.answer)
    }
}

/// Runs `f` on CPU 0, and no two at once in this process.
///
/// # Errors
/// When CPU 0 is not to be had.
pub fn on_cpu_0<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NoCpu> {
    on_cpu(0, f)
}

/// The first CPU that this process may run on: what compares values of all CPUs is content with any.
pub(crate) fn first_cpu() -> usize {
    let Ok(cpus) = rustix::thread::sched_getaffinity(None) else { return 0 };
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)).unwrap_or(0)
}

/// Runs `f` on a CPU, and no two at once in this process: a second thread there would be given
/// the lane of another CPU, and values per CPU would differ.
///
/// # Errors
/// When the CPU is not to be had.
pub(crate) fn on_cpu<T: Send>(cpu: usize, f: impl FnOnce() -> T + Send) -> Result<T, NoCpu> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Callbacks of timers of earlier programs end, which may be in this CPU's lane. This thread is in none.
    let _ = bpfarray::synchronize();
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            let mut cpus = rustix::thread::CpuSet::new();
            cpus.set(cpu);
            rustix::thread::sched_setaffinity(None, &cpus).map_err(|_| NoCpu(cpu))?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// This process may not run on a CPU.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this process may not run on CPU {0}")]
pub struct NoCpu(usize);
