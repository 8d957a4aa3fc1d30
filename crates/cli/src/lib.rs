//! The command `bpfarray`: runs compiled BPF objects and shows their array maps, without a kernel.
//!
//! The binary is a thin shell around [`Cli`] and [`execute`], so that tests, and programs that want its
//! output, need no process.
//!
//! ```
//! use bpfarray_cli::{Cli, Parser, execute};
//! let cli = Cli::parse_from(["bpfarray", "map", "show", "../../examples/packet_count.bpf.o"]);
//! let mut output = Vec::new();
//! execute(&cli, &mut output)?;
//! assert!(String::from_utf8(output)?.contains("packets_by_protocol"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod args;
mod clean;
mod ctype;
mod error;
mod events;
mod exec;
mod input;
mod map;
mod object;
mod packets;
mod prog;
mod progress;
mod report;
mod retval;
mod run;
mod signals;
mod supervise;
mod value;

use std::io::Write;

pub use args::Cli;
use args::{Command, MapCommand, ProgCommand};
use clap::CommandFactory;
pub use clap::Parser;
pub use error::{Error, Problem};

/// Does what the command line says, and writes the result to `out`.
///
/// # Errors
/// [`Error::File`] for bad input and programs that fail, with nothing written but the verdicts about programs that
/// are refused; [`Error::Output`].
pub fn execute(cli: &Cli, out: &mut dyn Write) -> Result<(), Error> {
    match &cli.command {
        Command::Run(args) => run::run(args, out),
        Command::Prog(ProgCommand::Show(args)) => prog::show(args, out),
        Command::Prog(ProgCommand::Dump(args)) => prog::dump(args, out),
        Command::Prog(ProgCommand::Profile(args)) => prog::profile(args, out),
        Command::Prog(ProgCommand::Verify(args)) => prog::verify(args, out),
        Command::Map(MapCommand::Show(args)) => map::show(args, out),
        Command::Exec(args) => exec::exec(args),
        Command::Completions { shell } => {
            // Through a buffer: the generator panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "bpfarray", &mut script);
            Ok(out.write_all(&script)?)
        }
        Command::Man => Ok(clap_mangen::Man::new(Cli::command()).render(&mut &mut *out)?),
    }
}
