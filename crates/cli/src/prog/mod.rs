//! `bpfarray prog`: the programs of an object.

mod dump;
mod profile;
mod verify;

use std::io::Write;

use bpfarray_vm::{LoadOptions, Loaded};
use serde::Serialize;

use crate::args::{DumpArgs, Form, ObjectArgs};
use crate::clean::Clean;
use crate::error::Error;
use crate::object;
use crate::report::json;
use crate::report::table::Table;
use dump::Dump;
pub(crate) use profile::profile;
pub(crate) use verify::verify;

/// Lists the programs of an object.
///
/// # Errors
/// [`Error::File`] about the object, [`Error::Output`].
pub(crate) fn show(args: &ObjectArgs, out: &mut dyn Write) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        name: &'a str,
        section: &'a str,
        /// `None` for a section that says nothing of its programs' type.
        #[serde(rename = "type")]
        prog_type: Option<String>,
        /// `None` for a program that needs a running kernel.
        insns: Option<usize>,
    }
    let object = object::parse(&args.object, None)?;
    let programs = object.programs().iter().map(|spec| Shown {
        name: &spec.name,
        section: &spec.section,
        prog_type: spec.def.map(|def| def.prog_type.to_string()),
        insns: spec.code().ok().map(|code| code.insns.len()),
    });
    if args.output.is_json() {
        return Ok(json::write(out, &programs.collect::<Vec<_>>(), args.output.pretty)?);
    }
    let columns = [("program", false), ("type", false), ("section", false), ("instructions", true)];
    let mut rows = Table::new(columns);
    for program in programs {
        rows.push(program.name);
        rows.push(program.prog_type.as_deref().unwrap_or("unknown"));
        rows.push(program.section);
        match program.insns {
            Some(insns) => rows.push(insns),
            None => rows.push("needs a kernel"),
        }
    }
    Ok(rows.write(out)?)
}

/// Prints the instructions of one program, or of all that can be made.
///
/// # Errors
/// [`Error::File`] about the object, the program that was asked for, or the first one if none can be
/// made; [`Error::Output`].
pub(crate) fn dump(args: &DumpArgs, out: &mut dyn Write) -> Result<(), Error> {
    let loaded = object::load(&args.object, args.btf.as_deref(), &LoadOptions::default())?;
    if args.form == Form::Jited {
        return dump_jited(&loaded, args, out);
    }
    if let Some(name) = &args.prog {
        let spec = object::choose(loaded.programs(), Some(name), &args.object)?;
        let dump = Dump::new(&loaded, spec, args)?;
        if args.output.is_json() {
            json::write(out, &dump, args.output.pretty)?;
        } else {
            write!(out, "{dump}")?;
        }
        return Ok(());
    }
    let programs = dump_all(&loaded, args)?;
    if args.output.is_json() {
        return Ok(json::write(out, &programs, args.output.pretty)?);
    }
    for (at, program) in programs.iter().enumerate() {
        out.write_all(if at == 0 { b"" } else { b"\n" })?;
        match &program.code {
            Code::Insns(dump) => write!(out, "{dump}")?,
            Code::Error(error) => writeln!(out, "skipped: {}", Clean(error))?,
        }
    }
    Ok(())
}

/// Prints the machine code of one program, as text or, with `--opcodes` and in JSON, as bytes too.
fn dump_jited(loaded: &Loaded, args: &DumpArgs, out: &mut dyn Write) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Jited<'a> {
        name: &'a str,
        bytes: String,
        text: String,
    }
    let spec = object::choose(loaded.programs(), args.prog.as_deref(), &args.object)?;
    let program = object::program(loaded, spec, &args.object)?;
    // Nothing, where the interpreter runs the program.
    let bytes = program.optimise().unwrap_or_default();
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = program.disassemble().unwrap_or_default();
    if args.output.is_json() {
        let jited = Jited { name: &spec.name, bytes: hex.concat(), text };
        return Ok(json::write(out, &jited, args.output.pretty)?);
    }
    write!(out, "{text}")?;
    if args.opcodes {
        for line in hex.chunks(16) {
            writeln!(out, "{}", line.join(" "))?;
        }
    }
    Ok(())
}

/// One of several programs.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    /// `None` for a section that says nothing of its programs' type.
    #[serde(rename = "type")]
    prog_type: Option<String>,
    #[serde(flatten)]
    code: Code,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Code {
    Insns(Dump),
    /// Why there are none.
    Error(String),
}

/// All programs, if one at least can be made.
fn dump_all<'a>(loaded: &'a Loaded, args: &DumpArgs) -> Result<Vec<Listed<'a>>, Error> {
    let mut programs = Vec::new();
    let mut errors = Vec::new();
    for spec in loaded.programs() {
        let code = match Dump::new(loaded, spec, args) {
            Ok(dump) => Code::Insns(dump),
            Err(error) => {
                let problem = error.problem();
                errors.push(error);
                Code::Error(problem)
            }
        };
        let prog_type = spec.def.map(|def| def.prog_type.to_string());
        programs.push(Listed { name: &spec.name, prog_type, code });
    }
    if errors.len() == programs.len() && !errors.is_empty() {
        return Err(errors.swap_remove(0));
    }
    Ok(programs)
}
