//! The binary `bpfarray`.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use bpfarray_cli::{Cli, Error, Parser, execute};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let done = execute(&cli, &mut out).and_then(|()| out.flush().map_err(Error::Output));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails too.
            let _ = writeln!(io::stderr(), "bpfarray: {error}");
            ExitCode::FAILURE
        }
    }
}
