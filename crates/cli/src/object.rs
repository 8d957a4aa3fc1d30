//! Opening objects and choosing programs.

use std::collections::HashMap;
use std::path::Path;

use bpfarray_core::btf::Btf;
use bpfarray_vm::elf::{Object, ParseOptions, ProgramSpec};
use bpfarray_vm::{LoadObjectError, LoadOptions, Loaded, Program};

use crate::error::{Error, InFile, Kind};
use crate::input::{self, FILE_LIMIT};
use crate::report::MapView;

/// Reads an object and makes its maps. CO-RE relocations are about the types of `btf`, if given.
///
/// # Errors
/// [`Error::File`]
pub(crate) fn load(
    path: &Path,
    btf: Option<&Path>,
    options: &LoadOptions,
) -> Result<Loaded, Error> {
    let object = parse(path, btf)?;
    let section = |spec: &ProgramSpec| (spec.name.clone(), spec.section.clone());
    let sections: HashMap<_, _> = object.programs().iter().map(section).collect();
    let loaded = object.load(options).map_err(|error| match error {
        LoadObjectError::Map(error) => Kind::from(error),
        LoadObjectError::Program(error) => {
            Kind::program(error, |program| sections.get(program).cloned())
        }
    });
    loaded.in_file(path)
}

/// Makes a program of an object ready to run.
///
/// # Errors
/// [`Error::File`] if it cannot be.
pub(crate) fn program(loaded: &Loaded, spec: &ProgramSpec, path: &Path) -> Result<Program, Error> {
    let program = loaded.program(&spec.name);
    program.map_err(|error| Kind::program(error, |_| Some(spec.section.clone()))).in_file(path)
}

/// Reads an object.
///
/// # Errors
/// [`Error::File`]
pub(crate) fn parse(path: &Path, btf: Option<&Path>) -> Result<Object, Error> {
    let bytes = input::read(path, FILE_LIMIT)?;
    let target = btf.map(|path| Btf::parse(&input::read(path, FILE_LIMIT)?).in_file(path));
    let target = target.transpose()?;
    Object::parse_with(&bytes, &ParseOptions { target_btf: target.as_ref() }).in_file(path)
}

/// The program with this name, or the only one.
///
/// # Errors
/// [`Error::File`] that lists the programs there are.
pub(crate) fn choose<'a>(
    programs: &'a [ProgramSpec],
    name: Option<&str>,
    path: &Path,
) -> Result<&'a ProgramSpec, Error> {
    let available = || programs.iter().map(|program| program.name.clone()).collect();
    let found = match (programs, name) {
        ([], _) => Err(Kind::NoPrograms),
        (_, Some(name)) => programs
            .iter()
            .find(|program| program.name == name)
            .ok_or_else(|| Kind::NoSuchProgram { name: name.to_owned(), available: available() }),
        ([program], None) => Ok(program),
        (_, None) => {
            only_runnable(programs).ok_or_else(|| Kind::SeveralPrograms { available: available() })
        }
    };
    found.in_file(path)
}

/// The one program whose type is known and that needs no running kernel.
fn only_runnable(programs: &[ProgramSpec]) -> Option<&ProgramSpec> {
    let mut runnable =
        programs.iter().filter(|program| program.def.is_some() && program.code().is_ok());
    runnable.next().filter(|_| runnable.next().is_none())
}

/// The object's maps, to be shown.
pub(crate) fn views(loaded: &Loaded) -> Vec<MapView<'_>> {
    let maps = loaded.maps().map(|(spec, map)| {
        let attr = &spec.attr;
        MapView::new(&spec.name, map, loaded.btf(), attr.btf_key_type_id, attr.btf_value_type_id)
    });
    maps.collect()
}
