//! The ELF file taken apart: sections, symbols and relocations, with everything checked that could make a
//! later step read outside the file or use more memory than the file is worth.

use std::collections::HashMap;

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, Rel, SectionHeader, SectionTable, Sym, SymbolTable};
use object::read::{SectionIndex, SymbolIndex};

use super::LoadError;

type Header = elf::FileHeader64<LittleEndian>;
type Symbols<'a> = SymbolTable<'a, Header>;

const ENDIAN: LittleEndian = LittleEndian;

/// Longer names are taken for damage: many symbols can share one long string, and each would become a copy.
pub(super) const MAX_NAME: usize = 1024;

/// A relocatable BPF object. Section 0 is the unused one, as in ELF.
pub(super) struct File<'a> {
    pub(super) sections: Vec<Section<'a>>,
    pub(super) symbols: Vec<Symbol<'a>>,
    /// The first section with each name.
    by_name: HashMap<&'a str, usize>,
}

pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    /// Contents; empty for a section that only has a size.
    pub(super) data: &'a [u8],
    /// Bytes in memory.
    pub(super) size: u64,
    pub(super) kind: SectionKind,
    /// In ascending order of their offset.
    pub(super) relocs: Vec<Reloc>,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum SectionKind {
    /// Instructions.
    Code,
    /// Any other contents.
    Contents,
    /// Zeroes, without contents in the file.
    Zeroes,
    /// Tables of the ELF format.
    Other,
}

#[derive(Copy, Clone)]
pub(super) struct Symbol<'a> {
    /// The section's name for the symbol of a section.
    pub(super) name: &'a str,
    pub(super) kind: elf::SymbolType,
    pub(super) is_local: bool,
    /// Whether only the objects it is linked with see it.
    pub(super) is_hidden: bool,
    pub(super) place: Place,
    pub(super) value: u64,
    pub(super) size: u64,
}

/// Where a symbol is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Not in this file.
    Undefined,
    /// In this section.
    Section(usize),
    /// An absolute value or a common symbol.
    Special,
}

#[derive(Copy, Clone)]
pub(super) struct Reloc {
    /// Bytes from the start of the section.
    pub(super) offset: u64,
    /// Index of the symbol.
    pub(super) symbol: u32,
}

impl<'a> File<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, LoadError> {
        let header = parse_header(data)?;
        let part = "section headers";
        let table = header.sections(ENDIAN, data).map_err(|e| LoadError::elf(part, e))?;
        let mut sections = Vec::with_capacity(table.len());
        let mut used = 0_u64;
        for (SectionIndex(index), section) in table.enumerate() {
            let name = table.section_name(ENDIAN, section);
            let name = name.map_err(|e| LoadError::elf(format!("section {index}"), e))?;
            let name =
                parse_name(name).map_err(|e| LoadError::elf(format!("section {index}"), e))?;
            let in_section = |e| LoadError::elf(format!("section '{name}'"), e);
            let kind = match section.sh_type(ENDIAN) {
                elf::SHT_PROGBITS if section.sh_flags(ENDIAN).contains(elf::SHF_EXECINSTR) => {
                    SectionKind::Code
                }
                elf::SHT_PROGBITS => SectionKind::Contents,
                elf::SHT_NOBITS => SectionKind::Zeroes,
                _ => SectionKind::Other,
            };
            let contents = match index {
                0 => &[],
                _ => section.data(ENDIAN, data).map_err(in_section)?,
            };
            used += contents.len() as u64;
            let size = if index == 0 { 0 } else { section.sh_size(ENDIAN) };
            sections.push(Section { name, data: contents, size, kind, relocs: Vec::new() });
        }
        // Whatever is made from sections costs memory in proportion to their sizes, so that their sum must be bounded.
        if used > data.len() as u64 {
            return Err(LoadError::elf(part, "the sections are larger than the file"));
        }
        let part = "symbol table";
        let symbols = table.symbols(ENDIAN, data, elf::SHT_SYMTAB);
        let symbols = symbols.map_err(|e| LoadError::elf(part, e))?;
        let has_code =
            |section: &Section<'_>| section.kind == SectionKind::Code && section.size != 0;
        if symbols.is_empty() && sections.iter().any(has_code) {
            return Err(LoadError::elf(part, "there is none; was the object stripped?"));
        }
        let symbols = parse_symbols(&symbols, &sections)?;
        parse_relocs(data, &table, &mut sections)?;
        let mut by_name = HashMap::new();
        for (index, section) in sections.iter().enumerate().skip(1) {
            by_name.entry(section.name).or_insert(index);
        }
        Ok(Self { sections, symbols, by_name })
    }

    pub(super) fn symbol(&self, index: u32) -> Option<&Symbol<'a>> {
        // Symbol 0 is none.
        self.symbols.get(usize::try_from(index).ok()?).filter(|_| index != 0)
    }

    /// The first section with this name, and its index.
    pub(super) fn section(&self, name: &str) -> Option<(usize, &Section<'a>)> {
        let index = *self.by_name.get(name)?;
        Some((index, self.sections.get(index)?))
    }
}

fn parse_header(data: &[u8]) -> Result<&Header, LoadError> {
    let ident = data.get(..7).ok_or(LoadError::NotElf)?;
    if !ident.starts_with(&elf::ELFMAG) {
        return Err(LoadError::NotElf);
    }
    if ident.get(4) != Some(&elf::ELFCLASS64.0) {
        return Err(LoadError::NotBpf("it is not a 64-bit ELF file"));
    }
    if ident.get(5) != Some(&elf::ELFDATA2LSB.0) {
        return Err(LoadError::NotBpf("it is not little-endian"));
    }
    let header = Header::parse(data).map_err(|e| LoadError::elf("ELF header", e))?;
    // Early compilers for BPF wrote no machine.
    if !matches!(header.e_machine(ENDIAN), elf::EM_BPF | elf::EM_NONE) {
        return Err(LoadError::NotBpf("it is for another machine"));
    }
    if header.e_type(ENDIAN) != elf::ET_REL {
        return Err(LoadError::NotBpf("it is not relocatable"));
    }
    Ok(header)
}

fn parse_relocs<'a>(
    data: &'a [u8],
    table: &SectionTable<'a, Header>,
    sections: &mut [Section<'a>],
) -> Result<(), LoadError> {
    for section in table.iter() {
        let Some(target) = sections.get_mut(section.info_link(ENDIAN).0) else { continue };
        let part = || format!("relocations of section '{}'", target.name);
        if section.sh_type(ENDIAN) == elf::SHT_RELA && target.kind == SectionKind::Code {
            return Err(LoadError::elf(
                part(),
                "they have addends of their own, unlike in BPF objects",
            ));
        }
        let relocs = section.rel(ENDIAN, data).map_err(|e| LoadError::elf(part(), e))?;
        let relocs = relocs.map_or(&[][..], |(relocs, _)| relocs).iter();
        let relocs =
            relocs.map(|rel| Reloc { offset: rel.r_offset(ENDIAN), symbol: rel.r_sym(ENDIAN) });
        target.relocs.extend(relocs);
    }
    for section in sections {
        section.relocs.sort_by_key(|reloc| reloc.offset);
    }
    Ok(())
}

fn parse_name(name: &[u8]) -> Result<&str, &'static str> {
    match std::str::from_utf8(name) {
        Ok(name) if name.len() <= MAX_NAME => Ok(name),
        Ok(_) => Err("its name is too long"),
        Err(_) => Err("its name is not UTF-8"),
    }
}

fn parse_symbols<'a>(
    table: &Symbols<'a>,
    sections: &[Section<'a>],
) -> Result<Vec<Symbol<'a>>, LoadError> {
    let parse = |(index, symbol): (_, &'a elf::Sym64<LittleEndian>)| {
        let SymbolIndex(number) = index;
        let in_symbol =
            |e: &dyn ToString| LoadError::elf(format!("symbol {number}"), e.to_string());
        let name = table.symbol_name(ENDIAN, symbol).map_err(|e| in_symbol(&e))?;
        let name = parse_name(name).map_err(|e| in_symbol(&e))?;
        let place = match table.symbol_section(ENDIAN, symbol, index).map_err(|e| in_symbol(&e))? {
            Some(SectionIndex(section)) if section < sections.len() => Place::Section(section),
            Some(_) => return Err(in_symbol(&"it is in a section that does not exist")),
            None if symbol.is_undefined(ENDIAN) => Place::Undefined,
            None => Place::Special,
        };
        let name = match (symbol.st_type(), place) {
            (elf::STT_SECTION, Place::Section(at)) => sections.get(at).map_or(name, |s| s.name),
            _ => name,
        };
        Ok(Symbol {
            name,
            kind: symbol.st_type(),
            is_local: symbol.st_bind() == elf::STB_LOCAL,
            is_hidden: matches!(symbol.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL),
            place,
            value: symbol.st_value(ENDIAN),
            size: symbol.st_size(ENDIAN),
        })
    };
    table.enumerate().map(parse).collect()
}
