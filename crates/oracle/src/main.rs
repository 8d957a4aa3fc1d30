//! Campaigns against the live kernel, and the recording of vectors.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oracle::corpus::Corpus;
use oracle::hostile::runs::Runs;
use oracle::hostile::{campaign, verify};
use oracle::ops::Case;
use oracle::programs::Kind;
use oracle::{Kernel, compare, random, record};

/// Compare bpfarray with the live kernel, or record what the kernel answers
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare random operations on random maps
    Ops(Campaign),
    /// Compare random operations on values with special fields
    Fields(Campaign),
    /// Compare raw attribute blocks of bpf(2)
    Door(Campaign),
    /// Compare random map creations
    Creations(Campaign),
    /// Compare the instructions of random inlined lookups and tail calls
    Lookups(Campaign),
    /// Compare the runs of the compiled programs
    Programs,
    /// Compare the translated instructions of the compiled programs
    Xlated,
    /// Compare random programs over the instruction set
    Isa(Campaign),
    /// Compare random programs that call map helpers
    Helpers(Campaign),
    /// Compare random programs with loops, functions, packets and maps of all kinds
    Flows(Campaign),
    /// Compare what the kernel's verifier refuses with what ours refuses in its strict mode
    Verify(Campaign),
    /// Run programs with mistakes in every form, and watch all memory around what they were given; needs no kernel
    Hostile(Hostile),
    /// Write the vector files of testdata
    Record {
        /// Files to write, such as ops/ops.vec; all without a name
        files: Vec<String>,
    },
}

#[derive(clap::Args)]
struct Campaign {
    /// How many questions to ask
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Seed of the first case; each further case has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct Hostile {
    #[command(flatten)]
    campaign: Campaign,
    /// Load them in strict mode, which has to refuse those that would fault
    #[arg(long)]
    strict: bool,
    /// Run on this CPU alone, and note the seed of each program in the file
    #[arg(long, requires = "note", hide = true)]
    cpu: Option<usize>,
    #[arg(long, hide = true)]
    note: Option<PathBuf>,
}

impl Hostile {
    fn run(&self) -> Result<Runs, Box<dyn std::error::Error>> {
        let Campaign { count, seed } = self.campaign;
        if let (Some(cpu), Some(note)) = (self.cpu, &self.note) {
            return Ok(campaign::run(
                cpu,
                (seed, count),
                self.strict,
                &mut campaign::note_in(note)?,
            )?);
        }
        Ok(campaign::run_in_processes(&std::env::current_exe()?, (seed, count), self.strict)?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oracle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn random_programs(kernel: Kernel, kind: Kind, c: &Campaign) -> Result<(), compare::Error> {
    println!("{}", random::compare(kernel, kind, c.seed, c.count)?);
    Ok(())
}

fn operations(kernel: Kernel, c: &Campaign, make: fn(u64) -> Case) -> Result<(), compare::Error> {
    println!("{}: no difference", compare::ops(kernel, c.seed, c.count, make)?);
    Ok(())
}

fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    if let Command::Hostile(hostile) = &command {
        println!("{}", hostile.run()?);
        return Ok(());
    }
    let kernel = Kernel::available().map_err(|e| format!("no live kernel: {e}"))?;
    match command {
        Command::Hostile(_) => {}
        Command::Ops(c) => operations(kernel, &c, Case::random)?,
        Command::Fields(c) => operations(kernel, &c, Case::with_fields)?,
        Command::Door(c) => {
            let done = oracle::door::compare(kernel, c.seed, c.count)?;
            println!("{done} calls: no difference");
        }
        Command::Creations(c) => {
            compare::creations(kernel, c.seed, c.count)?;
            println!("{} creations: no difference", c.count);
        }
        Command::Lookups(c) => {
            compare::lookups(kernel, c.seed, c.count)?;
            println!("{} lookups: no difference", c.count);
        }
        Command::Programs => {
            let done = compare::programs(kernel, &Corpus::read()?)?;
            println!("{done} answers of programs: no difference");
        }
        Command::Xlated => {
            println!("{}", compare::xlated(kernel, &Corpus::read()?)?);
        }
        Command::Isa(c) => random_programs(kernel, Kind::ISA, &c)?,
        Command::Helpers(c) => random_programs(kernel, Kind::HELPERS, &c)?,
        Command::Flows(c) => random_programs(kernel, Kind::FLOWS, &c)?,
        Command::Verify(c) => {
            let verdicts = verify::compare(kernel, &Corpus::read()?, c.seed, c.count)?;
            println!("{verdicts}");
        }
        Command::Record { files } => {
            let corpus = Corpus::read()?;
            let asked = |name: &str| files.is_empty() || files.iter().any(|file| file == name);
            for (name, record) in record::FILES.iter().filter(|(name, _)| asked(name)) {
                println!("{name}: {} bytes", record(kernel, &corpus)?.write(name)?);
            }
        }
    }
    Ok(())
}
