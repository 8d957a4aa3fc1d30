//! The sections with instructions, and the functions in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bpfarray_core::btf::{BtfExt, CoreRelo, ExtSection, FuncInfo, LineInfo};
use bpfarray_core::insn::{INSN_SIZE, Insn};
use object::elf;

use super::error::{FunctionName, InsnPlace, LoadError, RelocDefect};
use super::file::{File, Place, Section, SectionKind, Symbol};
use super::program::Line;
use crate::core_reloc::CoreReloc;

/// The section whose functions are no programs, whatever else they are.
const SUBPROGRAMS: &str = ".text";

/// All code of an object, CO-RE relocations applied.
pub(super) struct Code {
    pub(super) functions: Vec<Function>,
    sections: BTreeMap<usize, CodeSection>,
    /// Functions by section and first byte in it.
    starts: BTreeMap<(usize, u64), usize>,
}

/// A function, in instructions of its section. It has at least one and lies within its section.
pub(super) struct Function {
    pub(super) name: Arc<str>,
    pub(super) section: usize,
    pub(super) start: usize,
    pub(super) len: usize,
    /// Whether it can be run on its own.
    pub(super) is_program: bool,
}

#[derive(Default)]
struct CodeSection {
    insns: Vec<Insn>,
    /// Type ids of functions, by their first instruction.
    types: BTreeMap<usize, u32>,
    /// In ascending order of `insn`, which counts within the section here.
    lines: Vec<Line>,
}

impl Code {
    pub(super) fn collect(
        file: &File<'_>,
        ext: &BtfExt,
        mut core_reloc: Option<CoreReloc<'_>>,
    ) -> Result<Self, LoadError> {
        let records = Records::new(ext);
        let mut sections = BTreeMap::new();
        for (index, section) in file.sections.iter().enumerate() {
            if section.kind == SectionKind::Code {
                let place = |insn| place(file, index, insn);
                let code = CodeSection::parse(section, &records, core_reloc.as_mut(), place)?;
                sections.insert(index, code);
            }
        }
        let mut functions = Vec::new();
        for symbol in file.symbols.iter().filter(|symbol| symbol.kind == elf::STT_FUNC) {
            let Place::Section(index) = symbol.place else { continue };
            let Some((code, section)) = sections.get(&index).zip(file.sections.get(index)) else {
                continue;
            };
            let (start, len) = whole_insns(symbol.value, symbol.size, code.insns.len())
                .ok_or_else(|| LoadError::Function {
                    section: section.name.to_owned(),
                    function: symbol.name.to_owned(),
                    offset: symbol.value,
                    size: symbol.size,
                })?;
            functions.push(Function {
                name: symbol.name.into(),
                section: index,
                start,
                len,
                is_program: is_program(section, symbol),
            });
        }
        functions.sort_by_key(|function| (function.section, function.start));
        let mut starts = BTreeMap::new();
        for (index, function) in functions.iter().enumerate() {
            let first_byte = (function.start * INSN_SIZE) as u64;
            starts.entry((function.section, first_byte)).or_insert(index);
        }
        Ok(Self { functions, sections, starts })
    }

    /// The index of the function that begins at this byte of this section.
    pub(super) fn function_at(&self, section: usize, byte: i64) -> Option<usize> {
        self.starts.get(&(section, u64::try_from(byte).ok()?)).copied()
    }

    /// The name of the program that begins at this byte of this section.
    pub(super) fn program_at(&self, section: usize, byte: u64) -> Option<&str> {
        let function = self.functions.get(*self.starts.get(&(section, byte))?)?;
        function.is_program.then_some(&*function.name)
    }

    pub(super) fn insns(&self, function: &Function) -> &[Insn] {
        let section = self.sections.get(&function.section);
        section
            .and_then(|code| code.insns.get(function.start..function.start + function.len))
            .unwrap_or_default()
    }

    /// The BTF type of a function, or 0.
    pub(super) fn type_id(&self, function: &Function) -> u32 {
        let section = self.sections.get(&function.section);
        section.and_then(|code| code.types.get(&function.start)).copied().unwrap_or(0)
    }

    /// The source lines of a function's instructions; `insn` counts within the section.
    pub(super) fn lines(&self, function: &Function) -> &[Line] {
        let lines = self.sections.get(&function.section).map_or(&[][..], |code| &code.lines);
        let first = lines.partition_point(|line| line.insn < function.start);
        let last = lines.partition_point(|line| line.insn < function.start + function.len);
        lines.get(first..last).unwrap_or_default()
    }
}

impl CodeSection {
    fn parse(
        section: &Section<'_>,
        records: &Records<'_>,
        core_reloc: Option<&mut CoreReloc<'_>>,
        place: impl Fn(usize) -> InsnPlace,
    ) -> Result<Self, LoadError> {
        let name = section.name;
        let (chunks, rest) = section.data.as_chunks();
        if !rest.is_empty() {
            return Err(LoadError::SectionSize {
                section: name.to_owned(),
                size: section.data.len(),
            });
        }
        let mut insns: Vec<Insn> = chunks.iter().map(|chunk| Insn::decode(*chunk)).collect();
        if let Some(reloc) = section.relocs.iter().find(|reloc| {
            reloc.offset % INSN_SIZE as u64 != 0 || reloc.offset >= section.data.len() as u64
        }) {
            let insn = usize::try_from(reloc.offset / INSN_SIZE as u64).unwrap_or(usize::MAX);
            let defect = RelocDefect::Offset(reloc.offset);
            return Err(LoadError::Insn { place: Box::new(place(insn)), defect });
        }
        if let Some(core_reloc) = core_reloc {
            core_reloc.apply(&mut insns, about(&records.core_relo, name)).map_err(|error| {
                LoadError::CoreReloc { place: Box::new(place(error.insn)), defect: error.defect }
            })?;
        }
        let types = about(&records.func_info, name).iter();
        let types = types.map(|info| (info.insn_off as usize / INSN_SIZE, info.type_id)).collect();
        let lines: Vec<_> = about(&records.line_info, name).iter().map(Line::in_section).collect();
        if !lines.is_sorted_by(|a, b| a.insn < b.insn) {
            return Err(LoadError::BtfExtOrder { section: name.to_owned() });
        }
        Ok(Self { insns, types, lines })
    }
}

/// What `.BTF.ext` says, by section.
struct Records<'a> {
    func_info: HashMap<&'a str, Vec<FuncInfo>>,
    line_info: HashMap<&'a str, Vec<LineInfo>>,
    core_relo: HashMap<&'a str, Vec<CoreRelo>>,
}

impl<'a> Records<'a> {
    fn new(ext: &'a BtfExt) -> Self {
        Self {
            func_info: by_section(&ext.func_info),
            line_info: by_section(&ext.line_info),
            core_relo: by_section(&ext.core_relo),
        }
    }
}

fn by_section<T: Copy>(parts: &[ExtSection<T>]) -> HashMap<&str, Vec<T>> {
    let mut sections = HashMap::<_, Vec<T>>::new();
    for part in parts {
        sections.entry(part.section.as_str()).or_default().extend_from_slice(&part.records);
    }
    sections
}

fn about<'r, T>(sections: &'r HashMap<&str, Vec<T>>, name: &str) -> &'r [T] {
    sections.get(name).map_or(&[], Vec::as_slice)
}

fn is_program(section: &Section<'_>, symbol: &Symbol<'_>) -> bool {
    section.name != SUBPROGRAMS && !symbol.is_local
}

/// Where the instruction with this index in its section is, as people look for it.
pub(super) fn place(file: &File<'_>, section: usize, insn: usize) -> InsnPlace {
    let distance = |symbol: &Symbol<'_>| {
        let in_section = symbol.kind == elf::STT_FUNC && symbol.place == Place::Section(section);
        let distance = (insn as u64).checked_mul(INSN_SIZE as u64)?.checked_sub(symbol.value)?;
        (in_section && distance < symbol.size).then_some(distance as usize / INSN_SIZE)
    };
    let mut symbols = file.symbols.iter();
    let function = symbols.find_map(|symbol| Some((symbol, distance(symbol)?)));
    let Some(section) = file.sections.get(section) else {
        return InsnPlace { section: String::new(), function: None, insn };
    };
    let name = |symbol: &Symbol<'_>| match is_program(section, symbol) {
        true => FunctionName::Program(symbol.name.into()),
        false => FunctionName::Subprogram(symbol.name.into()),
    };
    InsnPlace {
        section: section.name.to_owned(),
        function: function.map(|(symbol, _)| name(symbol)),
        insn: function.map_or(insn, |(_, distance)| distance),
    }
}

/// First instruction and number of instructions of a function, if it is made of instructions of its section.
fn whole_insns(offset: u64, size: u64, available: usize) -> Option<(usize, usize)> {
    let insn_size = INSN_SIZE as u64;
    if size == 0 || !offset.is_multiple_of(insn_size) || !size.is_multiple_of(insn_size) {
        return None;
    }
    let start = usize::try_from(offset / insn_size).ok()?;
    let len = usize::try_from(size / insn_size).ok()?;
    (start.checked_add(len)? <= available).then_some((start, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_cover_whole_instructions_within_their_section() {
        assert_eq!(whole_insns(8, 16, 3), Some((1, 2)));
        for (offset, size) in
            [(0, 0), (4, 8), (0, 12), (8, 24), (u64::MAX - 7, 16), (0, u64::MAX - 7)]
        {
            assert_eq!(whole_insns(offset, size, 3), None, "{size} bytes at {offset}");
        }
    }
}
