//! Runs a program that comes as hexadecimal text, as suites of the instruction set do with any engine.
//!
//! `conformance [MEMORY] [--interp|--jit]`: the program on standard input, 8 bytes an instruction; r1 is the address of
//! the memory, r2 its length. Prints r0 in hexadecimal, or what is wrong.

use std::io::Read;
use std::process::ExitCode;

use bpfarray::Map;
use bpfarray::attr::{MapAttr, MapType};
use bpfarray_core::insn::{Insn, Reg, pseudo};
use bpfarray_vm::{Context, Engine, LoadOptions, ProgType, Program};

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(r0) => {
            println!("{r0:x}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u64, Error> {
    let mut memory = Vec::new();
    let mut engine = Engine::default();
    for arg in std::env::args().skip(1) {
        match &*arg {
            "--interp" => engine = Engine::Interp,
            "--jit" => engine = Engine::Jit,
            _ => memory = bytes(&arg)?,
        }
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let code = bytes(&text)?;
    let (words, []) = code.as_chunks::<8>() else {
        return Err("the program ends within an instruction".into());
    };

    // The memory is the value of a map, so that programs may write to it.
    let attr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: memory.len().max(1).try_into()?,
        max_entries: 1,
        ..MapAttr::default()
    };
    let map = Map::create(&attr)?;
    let mut insns = vec![Insn::mov64_imm(Reg::R1, 0), Insn::mov64_imm(Reg::R2, 0)];
    if !memory.is_empty() {
        map.update_elem(0, &memory, 0)?;
        insns = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), 0).to_vec();
        insns.push(Insn::mov64_imm(Reg::R2, memory.len().try_into()?));
    }
    insns.extend(words.iter().map(|word| Insn::decode(*word)));
    let options = LoadOptions { engine, ..LoadOptions::default() };
    let program = Program::with_options(ProgType::SYSCALL, &insns, &[map], &options)?;
    let mut context = Context::new(ProgType::SYSCALL, &[], None)?;
    Ok(program.run(&mut context)?.r0)
}

fn bytes(text: &str) -> Result<Vec<u8>, Error> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    if !digits.len().is_multiple_of(2) {
        return Err("an odd number of digits".into());
    }
    Ok(digits.chunks(2).map(byte).collect::<Result<_, _>>()?)
}
