//! From a function to a program: references resolved, and the functions it calls appended.

use std::collections::{BTreeMap, HashMap};

use bpfarray_core::btf::{Btf, Def, Kind};
use bpfarray_core::insn::{INSN_SIZE, Insn, Reg, class, jmp, pseudo};

use super::LoadError;
use super::code::{Code, place};
use super::error::RelocDefect;
use super::file::{File, Place, SectionKind, Symbol};
use super::maps::Maps;
use super::program::{Function, Line, ProgramCode};

/// Instructions of all programs of an object together. Programs share subprograms, so a small file could ask
/// for a huge number.
const MAX_INSNS: usize = 1 << 22;

/// Something only a kernel has.
#[derive(Copy, Clone)]
enum Extern {
    Kconfig,
    Ksym { is_func: bool },
}

pub(super) struct Linker<'a> {
    file: &'a File<'a>,
    code: &'a Code,
    maps: &'a Maps,
    externs: HashMap<&'a str, Extern>,
    /// Instructions that may still be made.
    room: usize,
}

/// What an instruction refers to.
enum Reference {
    None,
    Map(usize),
    Value { map: usize, offset: u32 },
    Function(usize),
}

/// A function whose instructions are being looked at.
struct Pending {
    function: usize,
    /// Where in the program it is.
    base: usize,
    /// The next instruction to look at, counted in the function.
    next: usize,
}

impl<'a> Linker<'a> {
    pub(super) fn new(
        file: &'a File<'a>,
        btf: Option<&'a Btf>,
        code: &'a Code,
        maps: &'a Maps,
    ) -> Self {
        let externs = btf.map_or_else(HashMap::new, find_externs);
        Self { file, code, maps, externs, room: MAX_INSNS }
    }

    /// The program that begins with function `main`.
    ///
    /// Functions follow in the order in which they are first referred to, depth first, as libbpf has them.
    pub(super) fn link(&mut self, main: usize) -> Result<ProgramCode, LoadError> {
        let mut program = ProgramCode::default();
        let mut bases = BTreeMap::new();
        let mut pending = vec![self.append(&mut program, &mut bases, main)?];
        while let Some(current) = pending.last_mut() {
            let Some(function) = self.code.functions.get(current.function) else { break };
            let at = current.base + current.next;
            let Some(insn) = program.insns.get(at).filter(|_| current.next < function.len) else {
                pending.pop();
                continue;
            };
            let index = function.start + current.next;
            let in_insn = |defect| LoadError::Insn {
                place: Box::new(place(self.file, function.section, index)),
                defect,
            };
            let is_load = insn.is_ld_imm64();
            current.next += if is_load { 2 } else { 1 };
            if current.next > function.len {
                return Err(in_insn(RelocDefect::HalfLoad));
            }
            let reference = self.reference(function.section, index, *insn).map_err(in_insn)?;
            let (src, low, high) = match reference {
                Reference::None => continue,
                Reference::Map(map) => (pseudo::MAP_IDX, map as i32, 0),
                Reference::Value { map, offset } => {
                    (pseudo::MAP_IDX_VALUE, map as i32, offset as i32)
                }
                Reference::Function(callee) => {
                    let base = match bases.get(&callee) {
                        Some(base) => *base,
                        None => {
                            let callee = self.append(&mut program, &mut bases, callee)?;
                            let base = callee.base;
                            pending.push(callee);
                            base
                        }
                    };
                    let src = if is_load { pseudo::FUNC } else { pseudo::CALL };
                    // Both are far below 2^31, see MAX_INSNS.
                    (src, base as i32 - at as i32 - 1, 0)
                }
            };
            if let Some(insn) = program.insns.get_mut(at) {
                *insn = Insn { src: Reg::new(src), imm: low, ..*insn };
            }
            if let Some(second) = program.insns.get_mut(at + 1).filter(|_| is_load) {
                second.imm = high;
            }
        }
        Ok(program)
    }

    fn append(
        &mut self,
        program: &mut ProgramCode,
        bases: &mut BTreeMap<usize, usize>,
        function: usize,
    ) -> Result<Pending, LoadError> {
        let base = program.insns.len();
        if let Some(code) = self.code.functions.get(function) {
            let too_many = LoadError::TooManyInsns(MAX_INSNS);
            self.room = self.room.checked_sub(code.len).ok_or(too_many)?;
            program.insns.extend_from_slice(self.code.insns(code));
            program.functions.push(Function {
                insn: base,
                name: code.name.clone(),
                type_id: self.code.type_id(code),
            });
            let lines = self.code.lines(code).iter();
            program
                .lines
                .extend(lines.map(|line| Line { insn: base + line.insn - code.start, ..*line }));
        }
        bases.insert(function, base);
        Ok(Pending { function, base, next: 0 })
    }

    fn reference(
        &self,
        section: usize,
        index: usize,
        insn: Insn,
    ) -> Result<Reference, RelocDefect> {
        let is_load = insn.is_ld_imm64();
        let Some(symbol) = self.relocation(section, index)? else {
            return if insn.is_pseudo_call() {
                self.function_at(
                    section,
                    (index as i64 + i64::from(insn.imm) + 1) * INSN_SIZE as i64,
                )
            } else if is_load && insn.src != Reg::R0 {
                Err(RelocDefect::Unrelocated(insn.src.index()))
            } else {
                Ok(Reference::None)
            };
        };
        let is_call = insn.code == class::JMP | jmp::CALL;
        let at = match symbol.place {
            Place::Section(at) => at,
            Place::Undefined => return Err(self.undefined(symbol)),
            Place::Special => return Err(RelocDefect::NoSection(symbol.name.to_owned())),
        };
        if is_load {
            self.target(symbol, at, (symbol.value as i64).wrapping_add(i64::from(insn.imm)))
        } else if is_call && insn.is_pseudo_call() {
            let distance = (i64::from(insn.imm) + 1) * INSN_SIZE as i64;
            self.function_at(at, (symbol.value as i64).wrapping_add(distance))
        } else {
            Err(RelocDefect::Opcode { symbol: symbol.name.to_owned(), code: insn.code })
        }
    }

    /// What is at this byte of this section.
    fn target(
        &self,
        symbol: &Symbol<'_>,
        section: usize,
        offset: i64,
    ) -> Result<Reference, RelocDefect> {
        let name = self.section_name(section);
        if self.file.sections.get(section).is_some_and(|section| section.kind == SectionKind::Code)
        {
            return self.function_at(section, offset);
        }
        let at = |offset| self.maps.at(section, offset);
        let data = at(0).filter(|map| self.maps.specs.get(*map).is_some_and(|map| map.is_data()));
        if let Some(map) = data {
            return match u32::try_from(offset) {
                Ok(offset) => Ok(Reference::Value { map, offset }),
                Err(_) => Err(RelocDefect::NoValue { section: name, offset }),
            };
        }
        match u64::try_from(offset).ok().and_then(at) {
            Some(map) => Ok(Reference::Map(map)),
            None if self.maps.has(section) => Err(RelocDefect::NoMap { section: name, offset }),
            None => Err(RelocDefect::Section { symbol: symbol.name.to_owned(), section: name }),
        }
    }

    fn function_at(&self, section: usize, offset: i64) -> Result<Reference, RelocDefect> {
        let function = self.code.function_at(section, offset);
        function
            .map(Reference::Function)
            .ok_or_else(|| RelocDefect::NoFunction { section: self.section_name(section), offset })
    }

    /// The symbol that an instruction is relocated against.
    fn relocation(&self, section: usize, index: usize) -> Result<Option<&Symbol<'a>>, RelocDefect> {
        let relocs = self.file.sections.get(section).map_or(&[][..], |section| &section.relocs);
        let offset = (index * INSN_SIZE) as u64;
        let first = relocs.partition_point(|reloc| reloc.offset < offset);
        let Some(reloc) = relocs.get(first).filter(|reloc| reloc.offset == offset) else {
            return Ok(None);
        };
        let symbol = self.file.symbol(reloc.symbol);
        symbol.map(Some).ok_or(RelocDefect::NoSymbol(reloc.symbol))
    }

    fn undefined(&self, symbol: &Symbol<'_>) -> RelocDefect {
        let symbol = symbol.name.to_owned();
        match self.externs.get(symbol.as_str()) {
            Some(Extern::Kconfig) => RelocDefect::Kconfig(symbol),
            Some(Extern::Ksym { is_func }) => RelocDefect::Ksym { symbol, is_func: *is_func },
            None => RelocDefect::UnknownSymbol(symbol),
        }
    }

    fn section_name(&self, section: usize) -> String {
        self.file.sections.get(section).map_or("", |section| section.name).to_owned()
    }
}

/// The symbols that types declare to be the kernel's.
fn find_externs(btf: &Btf) -> HashMap<&str, Extern> {
    let mut externs = HashMap::new();
    for section in [".kconfig", ".ksyms"] {
        let Some(id) = btf.find_by_name(section, Kind::Datasec) else { continue };
        let Ok(Def::Datasec(datasec)) = btf.get(id).map(|ty| ty.def) else { continue };
        for var in datasec.vars() {
            let Ok(ty) = btf.get(var.var) else { continue };
            let is_func = ty.kind() == Kind::Func;
            let kind =
                if section == ".kconfig" { Extern::Kconfig } else { Extern::Ksym { is_func } };
            externs.insert(ty.name, kind);
        }
    }
    externs
}
