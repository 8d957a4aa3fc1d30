//! `bpfarray prog profile`: where the time of a program goes.

use std::io::Write;

use bpfarray_core::disasm::Disasm;
use bpfarray_core::insn::class;
use bpfarray_vm::{Profile, Program};
use serde::Serialize;

use crate::args::RunArgs;
use crate::clean::Clean;
use crate::error::Error;
use crate::object;
use crate::report::json;
use crate::report::table::{Table, plural};
use crate::run::{Input, execute};

/// Lines that people are shown unless they ask for all.
const SHOWN: usize = 20;

/// What came of it.
#[derive(Serialize)]
struct Profiled<'a> {
    program: &'a str,
    engine: String,
    runs: u64,
    ns_per_run: f64,
    insns_per_run: f64,
    /// Accesses to memory that were sure to be allowed.
    proven_per_run: f64,
    /// Accesses that were checked when they happened.
    guarded_per_run: f64,
    /// The lines that were executed, the one with most instructions first.
    lines: Vec<Line>,
}

/// A source line, or where there are none an instruction.
#[derive(Default, Serialize)]
struct Line {
    place: String,
    text: String,
    insns: u64,
    proven: u64,
    guarded: u64,
}

/// Profiles a program.
///
/// # Errors
/// Those of `bpfarray run`.
pub(crate) fn profile(args: &RunArgs, out: &mut dyn Write) -> Result<(), Error> {
    let load = || {
        let loaded = object::load(&args.object, args.btf.as_deref(), &args.options())?;
        let spec = object::choose(loaded.programs(), args.prog.as_deref(), &args.object)?.clone();
        let program = object::program(&loaded, &spec, &args.object)?.with_fuel(args.fuel);
        Ok::<_, Error>((loaded, spec, program))
    };
    let (loaded, spec, program) = load()?;
    let input = Input::read(args, &program)?;
    let mut profile = Profile::default();
    let once = RunArgs { repeat: 1, ..args.clone() };
    let counted = execute(&once, &loaded, &spec, &program, &input, &mut |context| {
        program.profile(context, &mut profile)
    })?;
    let (loaded, _, timed) = load()?;
    let run = execute(args, &loaded, &spec, &timed, &input, &mut |context| timed.run(context))?;

    let lines = lines(&program, &profile);
    let per_run = |count: fn(&Line) -> u64| match counted.runs {
        0 => 0.0,
        runs => lines.iter().map(count).sum::<u64>() as f64 / runs as f64,
    };
    let profiled = Profiled {
        program: &spec.name,
        engine: timed.engine().to_string(),
        runs: run.runs,
        ns_per_run: run.ns_per_run(),
        insns_per_run: per_run(|line| line.insns),
        proven_per_run: per_run(|line| line.proven),
        guarded_per_run: per_run(|line| line.guarded),
        lines,
    };
    if args.output.is_json() {
        return Ok(json::write(out, &profiled, args.output.pretty)?);
    }
    Ok(write_text(out, &profiled, args.all)?)
}

/// The lines of a program with what was executed there, most first.
fn lines(program: &Program, profile: &Profile) -> Vec<Line> {
    let insns = program.xlated();
    let mut lines: Vec<Line> = Vec::new();
    for line in Disasm::new(&insns) {
        let insn = line.index;
        let count = profile.count(insn);
        if count == 0 {
            continue;
        }
        let (place, text) = match program.source_line(insn) {
            Some(source) => {
                (format!("{}:{}", source.file, source.line), source.text.trim().to_owned())
            }
            None => (insn.to_string(), line.to_string()),
        };
        let at = lines.iter().position(|line| line.place == place && line.text == text);
        let at = at.unwrap_or_else(|| {
            lines.push(Line { place, text, ..Line::default() });
            lines.len() - 1
        });
        let is_access = matches!(insns[insn].class(), class::LDX | class::ST | class::STX);
        let is_proven = program.is_proven(insn);
        lines[at].insns += count;
        lines[at].proven += if is_access && is_proven { count } else { 0 };
        lines[at].guarded += if is_access && !is_proven { count } else { 0 };
    }
    lines.sort_by_key(|line| std::cmp::Reverse(line.insns));
    lines
}

fn write_text(out: &mut dyn Write, profiled: &Profiled<'_>, all: bool) -> std::io::Result<()> {
    let Profiled { program, engine, runs, ns_per_run, insns_per_run, .. } = profiled;
    writeln!(
        out,
        "{} ({engine}): {}, {ns_per_run:.0} ns, {insns_per_run:.1} instructions, {:.1} proven and {:.1} guarded \
         accesses per run\n",
        Clean(program),
        plural(*runs, "run"),
        profiled.proven_per_run,
        profiled.guarded_per_run,
    )?;
    let all_insns: u64 = profiled.lines.iter().map(|line| line.insns).sum();
    let mut rows = Table::new([
        ("share", true),
        ("instructions", true),
        ("guarded", true),
        ("line", false),
        ("", false),
    ]);
    let shown = if all { profiled.lines.len() } else { SHOWN };
    for line in profiled.lines.iter().take(shown) {
        rows.push(format_args!("{:.1} %", line.insns as f64 * 100.0 / all_insns as f64));
        rows.push(line.insns);
        rows.push(line.guarded);
        rows.push(&line.place);
        rows.push(&line.text);
    }
    rows.write(out)?;
    match profiled.lines.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "  and {} with less: --all shows them", plural(more as u64, "line")),
    }
}
