//! `bpfarray prog verify`: what the verifier says of an object's programs.

use std::fmt::Display;
use std::io::Write;

use bpfarray_core::insn::class;
use bpfarray_vm::elf::ProgramSpec;
use bpfarray_vm::{Engine, LoadObjectError, LoadOptions, Loaded, LogLevel, Program, ProgramError};
use serde::Serialize;

use crate::args::{LogName, VerifyArgs};
use crate::clean::Clean;
use crate::error::{Error, InFile, Kind};
use crate::object;
use crate::report::json;
use crate::report::table::Table;

/// What there is to say about a program.
#[derive(Serialize)]
struct Verdict<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    prog_type: Option<String>,
    verdict: &'static str,
    /// Instructions as loaded; `None` for a program that needs a running kernel.
    insns: Option<usize>,
    #[serde(flatten)]
    found: Found,
    #[serde(skip_serializing_if = "String::is_empty")]
    log: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    /// Loads, stores and atomic operations of the translated program.
    Accesses {
        proven: usize,
        guarded: usize,
    },
    Refused {
        errno: i32,
        error: String,
    },
}

/// Verifies one program, or all, and says what came of it.
///
/// # Errors
/// [`Error::File`] about the object, the program that was asked for, or programs that were refused; [`Error::Output`].
pub(crate) fn verify(args: &VerifyArgs, out: &mut dyn Write) -> Result<(), Error> {
    let log = match args.log {
        None => LogLevel::None,
        Some(LogName::Path) => LogLevel::Path,
        Some(LogName::All) => LogLevel::All,
    };
    let options =
        LoadOptions { engine: Engine::Interp, strict: args.strict, log, ..LoadOptions::default() };
    let object = object::parse(&args.object, args.btf.as_deref())?;
    let specs = object.programs().to_vec();
    let loaded = match object.load(&options) {
        Ok(loaded) => loaded,
        // Others can be judged when this one can be put into its slot.
        Err(LoadObjectError::Program(error)) => {
            let name = error.program().unwrap_or_default().to_owned();
            let spec = object::choose(&specs, Some(&name), &args.object)?;
            return report(args, out, &[refused(spec, error)]);
        }
        Err(LoadObjectError::Map(error)) => return Err(error).in_file(&args.object),
    };
    let programs = match &args.prog {
        Some(name) => vec![object::choose(loaded.programs(), Some(name), &args.object)?],
        None => loaded.programs().iter().filter(|spec| spec.def.is_some()).collect(),
    };
    if programs.is_empty() {
        return Err(Kind::NoPrograms).in_file(&args.object);
    }
    let verdicts: Vec<_> = programs.into_iter().map(|spec| judge(&loaded, spec)).collect();
    report(args, out, &verdicts)
}

fn report(args: &VerifyArgs, out: &mut dyn Write, verdicts: &[Verdict<'_>]) -> Result<(), Error> {
    if args.output.is_json() {
        json::write(out, &verdicts, args.output.pretty)?;
    } else {
        write_text(out, verdicts)?;
    }
    let refused =
        verdicts.iter().filter(|verdict| matches!(verdict.found, Found::Refused { .. })).count();
    match refused {
        0 => Ok(()),
        refused => Err(Kind::Refused { refused, programs: verdicts.len() }).in_file(&args.object),
    }
}

fn judge<'a>(loaded: &Loaded, spec: &'a ProgramSpec) -> Verdict<'a> {
    let program = match loaded.program(&spec.name) {
        Ok(program) => program,
        Err(error) => return refused(spec, error),
    };
    let (proven, guarded) = accesses(&program);
    let log = program.verifier_log().to_owned();
    Verdict::new(spec, "accepted", Found::Accesses { proven, guarded }, log)
}

fn refused(spec: &ProgramSpec, error: ProgramError) -> Verdict<'_> {
    let found = Found::Refused { errno: error.errno().raw(), error: error.to_string() };
    let log = match error {
        ProgramError::Verify { log, .. } => log,
        _ => String::new(),
    };
    Verdict::new(spec, "refused", found, log)
}

impl<'a> Verdict<'a> {
    fn new(spec: &'a ProgramSpec, verdict: &'static str, found: Found, log: String) -> Self {
        let prog_type = spec.def.map(|def| def.prog_type.to_string());
        let insns = spec.code().ok().map(|code| code.insns.len());
        Self { name: &spec.name, prog_type, verdict, insns, found, log }
    }
}

/// How many accesses need no check, and how many have one.
fn accesses(program: &Program) -> (usize, usize) {
    let insns = program.xlated();
    let accesses = (0..insns.len())
        .filter(|at| matches!(insns[*at].class(), class::LDX | class::ST | class::STX));
    let (proven, guarded): (Vec<_>, Vec<_>) = accesses.partition(|at| program.is_proven(*at));
    (proven.len(), guarded.len())
}

fn write_text(out: &mut dyn Write, verdicts: &[Verdict<'_>]) -> std::io::Result<()> {
    for verdict in verdicts.iter().filter(|verdict| !verdict.log.is_empty()) {
        writeln!(out, "-- log of program '{}'", Clean(verdict.name))?;
        for line in verdict.log.lines() {
            writeln!(out, "{}", Clean(line))?;
        }
        writeln!(out)?;
    }
    let columns = [
        ("program", false),
        ("type", false),
        ("verdict", false),
        ("instructions", true),
        ("proven", true),
        ("guarded", true),
    ];
    let mut rows = Table::new(columns);
    for verdict in verdicts {
        rows.push(verdict.name);
        rows.push(verdict.prog_type.as_deref().unwrap_or("unknown"));
        rows.push(verdict.verdict);
        rows.push(shown(verdict.insns));
        let (proven, guarded) = match verdict.found {
            Found::Accesses { proven, guarded } => (Some(proven), Some(guarded)),
            Found::Refused { .. } => (None, None),
        };
        rows.push(shown(proven));
        rows.push(shown(guarded));
    }
    rows.write(out)?;
    for verdict in verdicts {
        if let Found::Refused { errno, error } = &verdict.found {
            writeln!(
                out,
                "\nrefused with {}: {}",
                bpfarray_core::Errno::from_raw(*errno),
                Clean(error)
            )?;
        }
    }
    Ok(())
}

fn shown(number: Option<impl Display>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}
