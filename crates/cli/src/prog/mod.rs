//! `bpfarray prog`: the programs of an object.

mod dump;

use std::io::Write;

use serde::Serialize;

use crate::args::{DumpArgs, Form, ObjectArgs};
use crate::error::Error;
use crate::object;
use crate::report::json;
use crate::report::table::Table;
use dump::Dump;

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

/// Prints the instructions of one program, or of all.
///
/// # Errors
/// [`Error::File`] about the object, or the first program that cannot run; [`Error::Output`].
pub(crate) fn dump(args: &DumpArgs, out: &mut dyn Write) -> Result<(), Error> {
    let Form::Xlated = args.form;
    let loaded = object::load(&args.object, args.btf.as_deref())?;
    let programs = match &args.prog {
        Some(name) => vec![object::choose(loaded.programs(), Some(name), &args.object)?],
        None => loaded.programs().iter().collect(),
    };
    let dump = |spec| Dump::new(&loaded, spec, args);
    let dumps = programs.into_iter().map(dump).collect::<Result<Vec<_>, _>>()?;
    match &dumps[..] {
        [only] if args.output.is_json() => json::write(out, &only.insns(), args.output.pretty)?,
        _ if args.output.is_json() => json::write(out, &dumps, args.output.pretty)?,
        _ => {
            for (at, dump) in dumps.iter().enumerate() {
                write!(out, "{}{dump}", if at == 0 { "" } else { "\n" })?;
            }
        }
    }
    Ok(())
}
