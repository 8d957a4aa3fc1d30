//! Instructions in the forms that `bpftool prog dump xlated` has, text and JSON.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display};

use bpfarray_core::disasm::{Disasm, Line, Names};
use bpfarray_core::insn::{Insn, pseudo};
use bpfarray_vm::elf::{Function, ProgramSpec};
use bpfarray_vm::{Loaded, SourceLine};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use crate::args::DumpArgs;
use crate::clean::Clean;
use crate::ctype::prototype;
use crate::error::Error;
use crate::object;
use crate::report::Hex;

/// A program's instructions, ready to be printed.
#[derive(Serialize)]
pub(super) struct Dump(Vec<Entry>);

#[derive(Serialize)]
struct Entry {
    #[serde(skip)]
    index: usize,
    /// The function that begins here.
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<String>,
    /// The source line that begins here.
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<String>,
    disasm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    opcodes: Option<Opcodes>,
}

impl Dump {
    /// Makes a program ready to run and takes it apart.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot run.
    pub(super) fn new(loaded: &Loaded, spec: &ProgramSpec, args: &DumpArgs) -> Result<Self, Error> {
        let program = object::program(loaded, spec, &args.object)?;
        let xlated = program.xlated();
        let maps = loaded.maps().map(|(spec, map)| (map.id(), spec.name.as_str())).collect();
        let functions = functions(&xlated, spec.code().map_or(&[], |code| &code.functions));
        let names = Known { maps, functions };
        let btf = loaded.btf();
        let mut insns = Vec::with_capacity(xlated.len());
        let mut last: Option<&SourceLine> = None;
        for line in Disasm::with_names(&xlated, &names) {
            let proto = names.functions.get(&line.index).map(|function| {
                let prototype = btf.and_then(|btf| prototype(btf, function.type_id));
                prototype.unwrap_or_else(|| function.name.to_string())
            });
            let source = program.source_line(line.index);
            let is_new = source.is_some_and(|new| last.is_none_or(|last| !std::ptr::eq(last, new)));
            last = source;
            insns.push(Entry {
                index: line.index,
                proto,
                src: source.filter(|_| is_new).map(|source| source.text.trim().to_owned()),
                disasm: line.to_string(),
                opcodes: args.opcodes.then(|| Opcodes::new(&line)),
            });
        }
        Ok(Self(insns))
    }
}

impl Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.0 {
            if let Some(proto) = &entry.proto {
                writeln!(f, "{}:", Clean(proto))?;
            }
            if let Some(src) = &entry.src {
                writeln!(f, "; {}", Clean(src))?;
            }
            writeln!(f, "{:4}: {}", entry.index, Clean(&entry.disasm))?;
            if let Some(Opcodes(bytes)) = &entry.opcodes {
                let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(f, "       {}", bytes.join(" "))?;
            }
        }
        Ok(())
    }
}

/// Names of what instructions refer to.
struct Known<'a> {
    /// By the id they have in this process, which says nothing to anybody.
    maps: HashMap<u32, &'a str>,
    /// By their first instruction.
    functions: BTreeMap<usize, &'a Function>,
}

impl Names for Known<'_> {
    fn map(&self, _: u8, id: i32) -> Option<&str> {
        self.maps.get(&(id as u32)).copied()
    }

    fn subprog(&self, index: usize) -> Option<&str> {
        self.functions.get(&index).map(|function| &*function.name)
    }
}

/// Where the functions of a program begin. An object's program holds only functions that it calls or
/// takes the address of, so those places, in order, are those of the functions.
fn functions<'a>(xlated: &[Insn], functions: &'a [Function]) -> BTreeMap<usize, &'a Function> {
    let target = |(at, insn): (usize, &Insn)| {
        let is_address = insn.is_ld_imm64() && insn.src.index() == usize::from(pseudo::FUNC);
        let refers = is_address || insn.is_pseudo_call();
        refers.then(|| (at + 1).checked_add_signed(insn.imm as isize)).flatten()
    };
    let targets = xlated.iter().enumerate().filter_map(target);
    let starts: BTreeSet<_> = std::iter::once(0).chain(targets).collect();
    starts.into_iter().zip(functions).collect()
}

/// The bytes of an instruction, or of both halves of a 64-bit immediate load.
struct Opcodes(Vec<u8>);

impl Opcodes {
    fn new<N: Names>(line: &Line<'_, N>) -> Self {
        let halves = std::iter::once(line.insn).chain(line.second);
        Self(halves.flat_map(Insn::encode).collect())
    }
}

impl Serialize for Opcodes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let [code, regs, off @ ..] = &self.0[..] else { return to.serialize_unit() };
        let (off, imm) = off.split_at(off.len().min(2));
        let mut fields = to.serialize_struct("Opcodes", 5)?;
        fields.serialize_field("code", &format!("{code:#04x}"))?;
        fields.serialize_field("src_reg", &format!("{:#x}", regs >> 4))?;
        fields.serialize_field("dst_reg", &format!("{:#x}", regs & 15))?;
        fields.serialize_field("off", &Hex(off))?;
        fields.serialize_field("imm", &Hex(imm))?;
        fields.end()
    }
}
