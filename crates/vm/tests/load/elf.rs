//! A writer of small ELF objects that says exactly what it is told, right or wrong.

pub(crate) const SHT_PROGBITS: u32 = 1;
pub(crate) const SHT_RELA: u32 = 4;
pub(crate) const SHT_NOBITS: u32 = 8;
pub(crate) const SHT_REL: u32 = 9;

pub(crate) const GLOBAL_FUNC: u8 = 1 << 4 | 2;
pub(crate) const GLOBAL_OBJECT: u8 = 1 << 4 | 1;
pub(crate) const GLOBAL_NOTYPE: u8 = 1 << 4;

pub(crate) const SHN_UNDEF: u16 = 0;
pub(crate) const SHN_COMMON: u16 = 0xfff2;

/// An object under construction. Sections are numbered from 1 in the order they are added.
#[derive(Default)]
pub(crate) struct Elf {
    sections: Vec<Section>,
    symbols: Vec<u8>,
    names: Vec<u8>,
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    link: u32,
    info: u32,
    size: u64,
    data: Vec<u8>,
}

impl Elf {
    pub(crate) fn new() -> Self {
        // Symbol 0 and name 0 are none.
        Self { sections: Vec::new(), symbols: vec![0; 24], names: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
        at
    }

    pub(crate) fn section(mut self, name: &str, kind: u32, flags: u64, data: &[u8]) -> Self {
        let name = self.name(name);
        let (size, data) = (data.len() as u64, data.to_vec());
        self.sections.push(Section { name, kind, flags, link: 0, info: 0, size, data });
        self
    }

    /// A section with instructions of these words.
    pub(crate) fn code(self, name: &str, insns: &[u64]) -> Self {
        let data: Vec<u8> = insns.iter().flat_map(|insn| insn.to_le_bytes()).collect();
        self.section(name, SHT_PROGBITS, 4, &data)
    }

    /// A section of zeroes.
    pub(crate) fn bss(self, name: &str, size: u64) -> Self {
        let mut this = self.section(name, SHT_NOBITS, 0, &[]);
        this.sections.last_mut().unwrap().size = size;
        this
    }

    /// A section of relocations (offset, symbol) of section `of`.
    pub(crate) fn relocs(self, kind: u32, of: u32, relocs: &[(u64, u32)]) -> Self {
        let entry = |(offset, symbol): &(u64, u32)| {
            let info = u64::from(*symbol) << 32 | 1;
            let mut entry = [offset.to_le_bytes(), info.to_le_bytes()].concat();
            entry.resize(if kind == SHT_RELA { 24 } else { 16 }, 0);
            entry
        };
        let data: Vec<u8> = relocs.iter().flat_map(entry).collect();
        let mut this = self.section(".rel", kind, 0, &data);
        this.sections.last_mut().unwrap().info = of;
        this
    }

    /// A symbol. They are numbered from 1 in the order they are added.
    pub(crate) fn symbol(
        mut self,
        name: &str,
        info: u8,
        section: u16,
        value: u64,
        size: u64,
    ) -> Self {
        let name = self.name(name);
        self.symbols.extend_from_slice(&name.to_le_bytes());
        self.symbols.extend_from_slice(&[info, 0]);
        self.symbols.extend_from_slice(&section.to_le_bytes());
        self.symbols.extend_from_slice(&value.to_le_bytes());
        self.symbols.extend_from_slice(&size.to_le_bytes());
        self
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        let symtab = self.sections.len() as u32 + 1;
        let symbols = std::mem::take(&mut self.symbols);
        let mut this = self.section(".symtab", 2, 0, &symbols);
        this.sections.last_mut().unwrap().link = symtab + 1;
        for section in this.sections.iter_mut().filter(|s| matches!(s.kind, SHT_REL | SHT_RELA)) {
            section.link = symtab;
        }
        let name = this.name(".strtab");
        let data = std::mem::take(&mut this.names);
        let size = data.len() as u64;
        this.sections.push(Section { name, kind: 3, flags: 0, link: 0, info: 0, size, data });

        let mut body = Vec::new();
        let mut headers = vec![0; 64];
        for section in &this.sections {
            headers.extend_from_slice(&section.name.to_le_bytes());
            headers.extend_from_slice(&section.kind.to_le_bytes());
            let offset = 64 + body.len() as u64;
            for field in [section.flags, 0, offset, section.size] {
                headers.extend_from_slice(&field.to_le_bytes());
            }
            headers.extend_from_slice(&section.link.to_le_bytes());
            headers.extend_from_slice(&section.info.to_le_bytes());
            headers.extend_from_slice(&[0; 16]);
            body.extend_from_slice(&section.data);
        }
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [1_u16, 247] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        file.extend_from_slice(&1_u32.to_le_bytes());
        for field in [0, 0, 64 + body.len() as u64] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        file.extend_from_slice(&0_u32.to_le_bytes());
        let count = this.sections.len() as u16 + 1;
        for half in [64_u16, 0, 0, 64, count, count - 1] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        [file, body, headers].concat()
    }
}
