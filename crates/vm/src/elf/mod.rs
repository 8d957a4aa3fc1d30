//! BPF object files, as clang writes them.
//!
//! An object is taken apart in steps that each know one thing: `file` the ELF format, `maps` the ways to define
//! maps, `code` functions, `link` references between all of them. What comes out refers to no file any more.

mod btf_maps;
mod code;
mod error;
mod file;
mod globals;
mod legacy_maps;
mod link;
mod maps;
mod program;

use std::collections::HashMap;

use bpfarray_core::btf::{Btf, BtfExt, Def};
use object::elf;

pub use crate::core_reloc::CoreRelocDefect;
use code::Code;
pub use error::{FunctionName, InsnPlace, LoadError, MapDefect, RelocDefect};
use file::{File, Place};
pub use globals::GlobalError;
use link::Linker;
use maps::Maps;
pub use maps::{MapOrigin, MapSpec, Slot};
pub use program::{Function, Line, ProgramCode, ProgramSpec};

use crate::core_reloc::CoreReloc;
use crate::prog_type::section_def;

/// What an object file defines: programs, maps and types.
///
/// ```
/// use bpfarray_vm::elf::Object;
///
/// let object = Object::parse(&std::fs::read("../../examples/packet_count.bpf.o")?)?;
/// for program in object.programs() {
///     match program.code() {
///         Ok(code) => println!("{}: {} instructions", program.name, code.insns.len()),
///         Err(error) => println!("{}: {error}", program.name),
///     }
/// }
/// assert!(object.map(".rodata").is_some_and(|map| map.is_frozen()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Object {
    license: String,
    maps: Vec<MapSpec>,
    programs: Vec<ProgramSpec>,
    btf: Option<Btf>,
}

/// What else there is to say about loading an object.
#[derive(Copy, Clone, Debug, Default)]
pub struct ParseOptions<'a> {
    /// The types that CO-RE relocations ask about, usually those of a kernel; by default the object's own.
    pub target_btf: Option<&'a Btf>,
}

impl Object {
    /// The object in the bytes of a file.
    ///
    /// # Errors
    /// [`LoadError`] about the file's format, its types, its maps and its programs, in this order. That a section
    /// name says nothing of a program's type, or that a program needs a running kernel, is no error yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, LoadError> {
        Self::parse_with(bytes, &ParseOptions::default())
    }

    /// As [`Object::parse`], with options.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub fn parse_with(bytes: &[u8], options: &ParseOptions<'_>) -> Result<Self, LoadError> {
        let file = File::parse(bytes)?;
        let btf = file.section(".BTF").map(|(_, section)| parse_btf(&file, section.data));
        let btf = btf.transpose()?;
        let ext = match (&btf, file.section(".BTF.ext")) {
            (Some(btf), Some((_, section))) => {
                BtfExt::parse(section.data, btf).map_err(LoadError::BtfExt)?
            }
            _ => BtfExt::default(),
        };
        let mut maps = Maps::collect(&file, btf.as_ref())?;
        let core_reloc = btf.as_ref().map(|btf| CoreReloc::new(btf, options.target_btf));
        let code = Code::collect(&file, &ext, core_reloc)?;
        btf_maps::fill_slots(&file, &code, &mut maps)?;
        let programs = link_programs(&file, btf.as_ref(), &code, &maps)?;
        let license = file.section("license").map_or(&[][..], |(_, section)| section.data);
        let license = license.split(|byte| *byte == 0).next().unwrap_or_default();
        let license = String::from_utf8_lossy(license).into_owned();
        Ok(Self { license, maps: maps.specs, programs, btf })
    }

    /// The license, such as `GPL`; empty if the object names none.
    pub fn license(&self) -> &str {
        &self.license
    }

    /// The maps. Programs refer to them by their index.
    pub fn maps(&self) -> &[MapSpec] {
        &self.maps
    }

    /// The programs, in the order of the file.
    pub fn programs(&self) -> &[ProgramSpec] {
        &self.programs
    }

    /// The types, with the sizes of sections and the offsets of variables filled in.
    pub fn btf(&self) -> Option<&Btf> {
        self.btf.as_ref()
    }

    /// The map with this name.
    pub fn map(&self, name: &str) -> Option<&MapSpec> {
        self.maps.iter().find(|map| map.name == name)
    }

    /// The program with this name.
    pub fn program(&self, name: &str) -> Option<&ProgramSpec> {
        self.programs.iter().find(|program| program.name == name)
    }
}

/// Types, completed with what only the ELF file knows: where variables are.
fn parse_btf(file: &File<'_>, data: &[u8]) -> Result<Btf, LoadError> {
    let mut btf = Btf::parse(data).map_err(LoadError::Btf)?;
    let mut offsets = HashMap::new();
    for symbol in &file.symbols {
        if let (Place::Section(section), true) = (symbol.place, symbol.kind == elf::STT_OBJECT)
            && let Ok(offset) = u32::try_from(symbol.value)
        {
            offsets.insert((section, symbol.name), offset);
        }
    }
    let unsized_sections: Vec<_> = btf
        .types()
        .filter(|ty| matches!(ty.def, Def::Datasec(datasec) if datasec.size == 0))
        .filter_map(|ty| Some((ty.id, file.section(ty.name)?)))
        .collect();
    for (id, (index, section)) in unsized_sections {
        let Ok(size) = u32::try_from(section.size) else { continue };
        btf.fix_datasec(id, size, |name| offsets.get(&(index, name)).copied())
            .map_err(LoadError::Btf)?;
    }
    Ok(btf)
}

fn link_programs(
    file: &File<'_>,
    btf: Option<&Btf>,
    code: &Code,
    maps: &Maps,
) -> Result<Vec<ProgramSpec>, LoadError> {
    let mut linker = Linker::new(file, btf, code, maps);
    let mut programs = Vec::new();
    for (index, function) in code.functions.iter().enumerate() {
        if !function.is_program {
            continue;
        }
        let section = file.sections.get(function.section).map_or("", |section| section.name);
        let (section, autoload) = match section.strip_prefix('?') {
            Some(section) => (section, false),
            None => (section, true),
        };
        let code = match linker.link(index) {
            Err(error) if !error.is_kernel_only() => return Err(error),
            code => code,
        };
        programs.push(ProgramSpec {
            name: (*function.name).to_owned(),
            section: section.to_owned(),
            autoload,
            def: section_def(section),
            code,
        });
    }
    Ok(programs)
}
