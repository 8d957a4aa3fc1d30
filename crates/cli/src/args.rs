//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use bpfarray_vm::{DEFAULT_FUEL, Engine, LoadOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  bpfarray run prog.bpf.o --pcap traffic.pcap         run on every packet, print the maps
  bpfarray run prog.bpf.o --pcap traffic.pcap --json  the same for programs to read
  bpfarray prog dump xlated prog.bpf.o                the instructions that run
  bpfarray prog verify --strict prog.bpf.o            would the kernel take it?
  bpfarray map show prog.bpf.o                        the maps an object defines

Exit status: 0 if all went well, 1 for bad input or a program that failed, 2 for wrong usage.";

const RUN_EXAMPLES: &str = "\
Examples:
  bpfarray run count.bpf.o --pcap traffic.pcap
  bpfarray run count.bpf.o --pcap traffic.pcap --repeat 1000 --json | jq .ns_per_run
  bpfarray run filter.bpf.o --prog drop_dns --data-in packet.bin
  bpfarray run trace.bpf.o --ctx-in args.bin

Exit status: 0 if all went well, 1 for bad input or a program that failed, 2 for wrong usage.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  bpfarray prog verify prog.bpf.o                     how much of each program is proven
  bpfarray prog verify --strict prog.bpf.o            would the kernel take it? if not, why?
  bpfarray prog verify --strict --log=all prog.bpf.o --prog count_packets

Exit status: 0 if all programs are accepted, 1 if one is refused or the input is bad, 2 for wrong usage.";

const PROFILE_EXAMPLES: &str = "\
Examples:
  bpfarray prog profile count.bpf.o --pcap traffic.pcap
  bpfarray prog profile count.bpf.o --pcap traffic.pcap --repeat 100 --json | jq .lines

Exit status: 0 if all went well, 1 for bad input or a program that failed, 2 for wrong usage.";

const EXEC_EXAMPLES: &str = "\
Examples:
  bpfarray exec -- bpftool map create /sys/fs/bpf/m type array key 4 value 8 entries 4 name m
  bpfarray exec -- bpftool map dump pinned /sys/fs/bpf/m
  bpfarray exec --trace -- python3 client.py
  bpfarray exec --seccomp -- ./written-in-go

Exit status: that of the program; 1 if it is not run.";

/// Runs compiled BPF objects and shows their array maps, without a kernel.
#[derive(Debug, Parser)]
#[command(name = "bpfarray", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(infer_subcommands = true, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program of an object, then print what it returned and its maps
    ///
    /// The PERF_EVENT_ARRAYs of the object get a ring for each CPU; what programs write there is counted.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Look at the programs of an object
    #[command(subcommand)]
    Prog(ProgCommand),
    /// Look at the maps of an object
    #[command(subcommand)]
    Map(MapCommand),
    /// Run a program that was written for Linux BPF, with its bpf(2) calls answered here
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// Print the completions of a shell, to be put where it looks for them
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// Compiled BPF object, as `clang -target bpf -g -O2 -c` writes it
    pub(crate) object: PathBuf,

    /// Program to run, by the name of its function [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub(crate) prog: Option<String>,

    #[command(flatten)]
    pub(crate) input: Input,

    /// Context of the program, as bytes in a file
    ///
    /// For programs that see packets it is a `struct xdp_md` or a `struct __sk_buff`, of which the same
    /// fields may be set as for the kernel's BPF_PROG_TEST_RUN; for all others it is what the program's
    /// argument points to.
    #[arg(long, value_name = "FILE")]
    pub(crate) ctx_in: Option<PathBuf>,

    /// How many times to run, on all packets each time
    ///
    /// `ns_per_run` is the time of all runs together, including the placing of each packet in its
    /// buffer, divided by their number.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) repeat: u64,

    /// About how many instructions one run may take before it is ended
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FUEL)]
    pub(crate) fuel: u64,

    /// What executes the program [default: jit where there is one for the processor]
    #[arg(long)]
    pub(crate) engine: Option<EngineName>,

    /// Refuse what the kernel's verifier would refuse, instead of checking it when it happens
    #[arg(long)]
    pub(crate) strict: bool,

    /// Take the types for CO-RE relocations from this BTF file [default: those of the object]
    #[arg(long, value_name = "FILE")]
    pub(crate) btf: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: Output,

    /// Show every element: also those that are all zero, and those beyond the first 32 MiB of text
    ///
    /// Without it, tables leave out elements that are all zero; JSON has them. Of a map that would become
    /// more than about 32 MiB of JSON, both show the first elements only; JSON counts the others as
    /// `elements_not_shown`. Tables look for elements that are not zero in the first 64 MiB of values.
    #[arg(long)]
    pub(crate) all: bool,
}

/// What it makes are files in the root directory: BPFARRAY_ROOT, or this user's own one in memory. Other programs that
/// are run this way find them by their ids, and by paths under /sys/fs/bpf.
///
/// Programs that are statically linked, or that change their user or capabilities when they start, are refused: their calls
/// would reach the kernel. With --seccomp they run, but give up those capabilities.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Print each bpf(2) call and its result to stderr
    #[arg(long)]
    pub(crate) trace: bool,

    /// Keep objects in this directory, which is made if there is none
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,

    /// Catch the calls in the kernel, also of programs without libc (static ones, Go)
    ///
    /// Needs Linux 5.14. Calls take longer than with the library, maps cannot be mapped, and this command stays until the program
    /// and all that it has started have ended.
    #[arg(long)]
    pub(crate) seccomp: bool,

    /// Only tell whether the library is loaded
    #[arg(long, hide = true)]
    pub(crate) probe: bool,

    /// Program and its arguments
    #[arg(last = true, value_name = "PROGRAM", required_unless_present = "probe")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Input {
    /// Run on each packet of a pcap or pcapng capture of Ethernet frames, as captured
    ///
    /// Frames that are too short or too long for the type of program are skipped, and counted as
    /// `packets_skipped`. The capture is read to its end before the first run.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,

    /// Run on one packet, the bytes of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) data_in: Option<PathBuf>,
}

#[derive(Copy, Clone, Debug, Args)]
pub(crate) struct Output {
    /// Print one line of JSON
    #[arg(long, short)]
    pub(crate) json: bool,

    /// Print JSON with line breaks
    #[arg(long, short)]
    pub(crate) pretty: bool,
}

impl Output {
    pub(crate) fn is_json(self) -> bool {
        self.json || self.pretty
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProgCommand {
    /// List the programs of an object
    Show(ObjectArgs),
    /// Print the instructions of an object's programs
    Dump(DumpArgs),
    /// Verify the programs of an object, and say which accesses are proven
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Run a program, and tell where its time goes: source lines by the instructions executed there
    ///
    /// It runs twice, each time with new maps: once counted, in the interpreter, and once timed.
    #[command(after_help = PROFILE_EXAMPLES)]
    Profile(RunArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MapCommand {
    /// List the maps of an object
    Show(ObjectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ObjectArgs {
    /// Compiled BPF object
    pub(crate) object: PathBuf,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// Which form of the program
    pub(crate) form: Form,

    /// Compiled BPF object
    pub(crate) object: PathBuf,

    /// Program to print, by the name of its function [default: all that can be made]
    ///
    /// In JSON, it is the list of its instructions. All programs are a list with `name`, `type` and `insns`
    /// of each, or an `error` where a program cannot be made.
    #[arg(long, value_name = "NAME")]
    pub(crate) prog: Option<String>,

    /// Print the bytes of each instruction too
    #[arg(long)]
    pub(crate) opcodes: bool,

    /// Take the types for CO-RE relocations from this BTF file [default: those of the object]
    #[arg(long, value_name = "FILE")]
    pub(crate) btf: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Compiled BPF object
    pub(crate) object: PathBuf,

    /// Program to verify, by the name of its function [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) prog: Option<String>,

    /// Refuse what the kernel's verifier would refuse, and show its log
    ///
    /// Without it, only programs are refused that are wrong in every run; accesses that are not proven are guarded:
    /// checked when they happen.
    #[arg(long)]
    pub(crate) strict: bool,

    /// Show what the verifier went through, with the state of registers
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "path")]
    pub(crate) log: Option<LogName>,

    /// Take the types for CO-RE relocations from this BTF file [default: those of the object]
    #[arg(long, value_name = "FILE")]
    pub(crate) btf: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: Output,
}

/// What a log shows.
#[derive(Copy, Clone, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogName {
    /// The last path
    Path,
    /// Every path
    All,
}

/// The forms a program can be printed in.
#[derive(Copy, Clone, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Form {
    /// As it runs: lookups inlined, fields of the context translated
    Xlated,
    /// The best machine code that is made of that
    Jited,
}

/// What can execute a program.
#[derive(Copy, Clone, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum EngineName {
    /// The interpreter
    Interp,
    /// Machine code, made before its first run, and better code while it runs
    Jit,
}

impl RunArgs {
    pub(crate) fn options(&self) -> LoadOptions {
        let engine = match self.engine {
            None => Engine::default(),
            Some(EngineName::Interp) => Engine::Interp,
            Some(EngineName::Jit) => Engine::Jit,
        };
        LoadOptions { engine, strict: self.strict, ..LoadOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
