//! Many programs under the monitor, on all CPUs.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bpfarray_core::insn::Insn;

use super::monitor::{Monitor, Violation};
use super::runs::Runs;
use super::{Case, Cases, shrink};
use crate::corpus::{self, Corpus};

/// A program that did what it must not, and the shortest one that was found to do the same.
#[derive(Clone, Debug)]
pub struct Finding {
    seed: u64,
    case: Case,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { origin, prog_type, .. } = &self.case;
        writeln!(f, "seed {}: {prog_type}, from {origin}", self.seed)?;
        for line in self.case.listing() {
            writeln!(f, "    {line}")?;
        }
        write!(f, "  {}", self.what)
    }
}

/// Why a campaign ended early, or failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}")]
    Finding(Box<Finding>),
    #[error("a worker died of signal {signal} in the program of seed {seed}\n{listing}")]
    Died { signal: i32, seed: u64, listing: String },
    #[error("a worker failed:\n{0}")]
    Worker(String),
    #[error("{0}")]
    Workers(String),
    #[error("CPU {0} is not for this process: {1}")]
    Cpu(usize, io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Corpus(#[from] corpus::Error),
}

/// Runs the programs of these seeds on a CPU, on which this thread stays. No other thread of the process may run
/// programs. `note` is told each seed before.
///
/// # Errors
/// The first finding; what kept it from being looked for.
pub fn run(
    cpu: usize,
    (seed, count): (u64, u64),
    strict: bool,
    note: &mut dyn FnMut(u64),
) -> Result<Runs, Error> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus).map_err(|e| Error::Cpu(cpu, e.into()))?;
    let corpus = Corpus::read()?;
    let cases = Cases::new(&corpus);
    let mut monitor = Monitor::new(&corpus, strict)?;
    let mut runs = Runs::default();
    for seed in seed..seed.saturating_add(count) {
        note(seed);
        let case = cases.random(seed);
        if let Err(Violation(what)) = monitor.run(&case, &case.insns, seed, &mut runs) {
            return Err(Error::Finding(Box::new(shortest((&corpus, strict), seed, case, what))));
        }
    }
    Ok(runs)
}

/// The finding with a short program.
fn shortest((corpus, strict): (&Corpus, bool), seed: u64, mut case: Case, what: String) -> Finding {
    // Each program is tried on fresh memory: the last one may have spoilt it.
    let judge = |insns: &[Insn]| {
        let mut monitor = Monitor::new(corpus, strict).ok()?;
        monitor.run(&case, insns, seed, &mut Runs::default()).err()
    };
    let short = shrink(&case.insns, |insns| judge(insns).is_some());
    let what = judge(&short).map_or(what, |Violation(what)| what);
    case.insns = short;
    Finding { seed, case, what }
}

/// A process that runs a part of the programs.
struct Worker {
    child: Child,
    note: PathBuf,
}

/// Runs the programs of these seeds in processes of `oracle`, one for each CPU that this one may run on.
///
/// # Errors
/// The workers that did not end well.
pub fn run_in_processes(
    oracle: &Path,
    (seed, count): (u64, u64),
    strict: bool,
) -> Result<Runs, Error> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(io::Error::from)?;
    let cpus: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let share = count.div_ceil(cpus.len().max(1) as u64);
    let mut workers = Vec::new();
    for (index, &cpu) in cpus.iter().enumerate() {
        let before = share * index as u64;
        let share = share.min(count.saturating_sub(before));
        if share == 0 {
            break;
        }
        let name = format!("bpfarray-hostile-{}-{cpu}", std::process::id());
        let note = std::env::temp_dir().join(name);
        let mut command = Command::new(oracle);
        command.arg("hostile").args(["--cpu", &cpu.to_string()]);
        command.args(["--seed", &(seed + before).to_string(), "--count", &share.to_string()]);
        command.args(strict.then_some("--strict")).arg("--note").arg(&note);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        workers.push(Worker { child, note });
    }
    let ends: Vec<Result<Runs, Error>> = workers.into_iter().map(Worker::end).collect();
    let (mut all, mut failures) = (Runs::default(), Vec::new());
    for runs in ends {
        match runs {
            Ok(runs) => all += runs,
            Err(error) => failures.push(error.to_string()),
        }
    }
    if failures.is_empty() { Ok(all) } else { Err(Error::Workers(failures.join("\n"))) }
}

impl Worker {
    fn end(self) -> Result<Runs, Error> {
        let output = self.child.wait_with_output()?;
        let seed = std::fs::read(&self.note).ok().and_then(|note| note.first_chunk().copied());
        let _ = std::fs::remove_file(&self.note);
        if let Some(signal) = output.status.signal() {
            let seed = seed.map_or(0, u64::from_ne_bytes);
            let cases = Cases::new(&Corpus::read()?);
            let listing = cases.random(seed).listing().join("\n");
            return Err(Error::Died { signal, seed, listing });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let failed = || Error::Worker(String::from_utf8_lossy(&output.stderr).into_owned());
        text.lines()
            .last()
            .and_then(Runs::parse)
            .filter(|_| output.status.success())
            .ok_or_else(failed)
    }
}

/// Where a worker notes the seed that it is at, for its parent to find should it die.
///
/// # Errors
/// When the file cannot be made.
pub fn note_in(path: &Path) -> io::Result<impl FnMut(u64) + use<>> {
    let file = File::create(path)?;
    Ok(move |seed: u64| {
        // Without the note, only the seed of a death is not known.
        let _ = file.write_all_at(&seed.to_ne_bytes(), 0);
    })
}
