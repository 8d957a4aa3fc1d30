//! The interpreter checks every access, and so tells on a proof that was wrong.

use std::path::Path;
use std::time::Instant;

use bpfarray::Map;
use bpfarray_core::attr::{MapAttr, MapFlags, MapType};
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode, pseudo, size};
use bpfarray_core::{Errno, helper_id};

use crate::context::Context;
use crate::fault::{Fault, FaultKind, HelperError};
use crate::program::Program;
use crate::{Engine, LoadOptions, Object, ProgType};

/// Numbers that are the same in each run of the tests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn options() -> LoadOptions {
    LoadOptions { engine: Engine::Interp, ..LoadOptions::default() }
}

/// Every program of the test objects, with the object's maps and its type.
fn compiled() -> Vec<(String, ProgType, Vec<Insn>, Vec<Map>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/progs");
    let mut programs = Vec::new();
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.to_string_lossy().ends_with(".bpf.o")) {
        let Ok(object) = Object::parse(&std::fs::read(path).unwrap()) else { continue };
        let Ok(loaded) = object.load(&options()) else { continue };
        let maps: Vec<Map> = loaded.maps().map(|(_, map)| map.clone()).collect();
        for spec in loaded.programs() {
            if let (Ok(prog_type), Ok(code)) = (spec.prog_type(), spec.code()) {
                let name = format!("{}:{}", path.file_stem().unwrap().display(), spec.name);
                programs.push((name, prog_type, code.insns.clone(), maps.clone()));
            }
        }
    }
    programs
}

fn contexts(prog_type: ProgType) -> Vec<Context> {
    let packet: Vec<u8> = (0..90).map(|i| (i * 7) as u8).collect();
    let inputs: [(&[u8], Option<&[u8]>); 4] =
        [(&packet, None), (&packet[..14], None), (&[], None), (&[], Some(&packet[..64]))];
    let make = |(packet, ctx)| Context::new(prog_type, packet, ctx).ok();
    inputs.into_iter().filter_map(make).collect()
}

/// The fault in the function that a helper called, however deep.
fn innermost(fault: &Fault) -> &Fault {
    match &fault.kind {
        FaultKind::Helper { error: HelperError::Callback(inner), .. } => innermost(inner),
        _ => fault,
    }
}

/// Runs a program in the monitor; tells how many runs faulted.
fn run(name: &str, program: &Program) -> usize {
    let program = program.clone().with_fuel(50_000);
    let mut faults = 0;
    for mut context in contexts(program.prog_type()) {
        let Err(fault) = program.run(&mut context) else { continue };
        faults += 1;
        let innermost = innermost(&fault);
        if let FaultKind::Access(_) = innermost.kind
            && innermost.program.is_none()
            && program.is_proven(innermost.insn)
        {
            let text: Vec<String> = program.xlated().iter().map(|i| format!("{i:?}")).collect();
            panic!("{name}: {fault} was proven\n{}", text.join("\n"));
        }
    }
    faults
}

fn shares(program: &Program) -> (usize, usize) {
    let insns = program.xlated();
    let is_access = |insn: &Insn| matches!(insn.class(), class::LDX | class::ST | class::STX);
    let accesses = || (0..insns.len()).filter(|at| is_access(&insns[*at]));
    (accesses().filter(|at| program.is_proven(*at)).count(), accesses().count())
}

#[test]
fn nearly_all_accesses_of_compiled_programs_are_proven() {
    let (mut proven, mut all) = (0, 0);
    for (name, prog_type, insns, maps) in compiled() {
        let Ok(program) = Program::with_options(prog_type, &insns, &maps, &options()) else {
            continue;
        };
        run(&name, &program);
        let (p, a) = shares(&program);
        if p < a {
            println!("{name}: {p} of {a} accesses proven");
        }
        proven += p;
        all += a;
    }
    println!("{proven} of {all} accesses proven");
    assert!(proven * 100 > all * 95, "{proven} of {all}");
}

#[test]
fn no_proven_access_of_a_mutated_program_faults() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let programs = compiled();
    let (mut runs, mut faults) = (0, 0);
    for round in 0..3000 {
        let (name, prog_type, original, maps) = &programs[random.below(programs.len())];
        let mut insns = original.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(insns.len());
            let insn = &mut insns[at];
            match random.below(7) {
                0 => insn.off = insn.off.wrapping_add(random.of(&[-8, -4, -1, 1, 4, 8, 64])),
                1 => insn.imm = random.of(&[0, 1, -1, 5, 63, 255, 4096, i32::MAX, i32::MIN]),
                2 => insn.dst = Reg::new(random.below(10) as u8),
                3 => insn.src = Reg::new(random.below(11) as u8),
                4 => insn.code = insn.code & 7 | random.of(&[0x10, 0x20, 0x30, 0x50, 0xa0, 0xb0]),
                5 => *insn = original[random.below(original.len())],
                _ => insn.code ^= random.of(&[0x08, 0x01, 0x18]),
            }
        }
        if let Ok(program) = Program::with_options(*prog_type, &insns, maps, &options()) {
            runs += 1;
            faults += run(&format!("{name}, round {round}"), &program);
        }
    }
    println!("{runs} programs ran, {faults} faults");
    assert!(runs > 500 && faults > 50, "{runs} {faults}");
}

fn map(map_type: MapType, value_size: u32, map_flags: MapFlags) -> Map {
    let attr = MapAttr {
        map_type,
        key_size: 4,
        value_size,
        max_entries: 3,
        map_flags,
        ..MapAttr::default()
    };
    Map::create(&attr).unwrap()
}

/// A program of steps that make, move, test, keep and use pointers.
fn generated(random: &mut Random) -> Vec<Insn> {
    let mut insns = vec![
        Insn::mov64_reg(Reg::R9, Reg::R1),
        Insn::mov64_reg(Reg::R8, Reg::R10),
        Insn::ldx_mem(size::W, Reg::R6, Reg::R1, 0),
        Insn::ldx_mem(size::W, Reg::R7, Reg::R1, 4),
    ];
    let steps = 6 + random.below(30);
    for _ in 0..steps {
        let reg = |random: &mut Random| Reg::new(random.of(&[0, 1, 2, 3, 4, 5, 6, 7, 8]));
        let (a, b) = (reg(random), reg(random));
        let width = random.of(&[size::B, size::H, size::W, size::DW]);
        let off = random.of(&[-16_i16, -8, -8, -4, 0, 0, 1, 4, 8, 12, 14]);
        match random.below(16) {
            0 | 1 => insns.push(Insn::ldx_mem(width, a, b, off)),
            2 => insns.push(Insn::new(class::STX | mode::MEM | width, a, b, off, 0)),
            3 => insns.push(Insn::st_mem(width, a, off, random.of(&[0, 1, 2, 3, -1]))),
            4 => insns.push(Insn::mov64_reg(a, random.of(&[b, Reg::R10, Reg::R9]))),
            5 => insns.push(Insn::alu64_imm(
                random.of(&[alu::ADD, alu::ADD, alu::SUB, alu::AND, alu::RSH, alu::LSH]),
                a,
                random.of(&[0, 1, 4, 8, 12, 14]),
            )),
            6 => insns.push(Insn::alu64_reg(random.of(&[alu::ADD, alu::SUB, alu::OR]), a, b)),
            7 => insns.push(Insn::alu32_imm(alu::AND, a, random.of(&[1, 3, 7, 15, 255]))),
            8 => {
                let op = random.of(&[jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE]);
                let far = 1 + random.below(4) as i16;
                let class = random.of(&[class::JMP, class::JMP, class::JMP32]);
                insns.push(Insn::new(class | op | 8, a, random.of(&[b, Reg::R7]), far, 0));
            }
            9 => {
                let op = random.of(&[jmp::JEQ, jmp::JNE, jmp::JGT, jmp::JLT, jmp::JSGT, jmp::JSLT]);
                let imm = random.of(&[0, 0, 0, 1, 4, 8, 20, -1]);
                insns.push(Insn::jmp_imm(op, a, imm, 1 + random.below(4) as i16));
            }
            10 | 11 => {
                let index = random.below(4) as u64;
                insns.push(Insn::st_mem(size::W, Reg::R10, -4, random.below(4) as i32));
                insns.push(Insn::mov64_reg(Reg::R2, Reg::R10));
                insns.push(Insn::alu64_imm(alu::ADD, Reg::R2, -4));
                insns.extend(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), index));
                insns.push(Insn::call(helper_id::MAP_LOOKUP_ELEM));
                insns.push(Insn::mov64_reg(a, Reg::R0));
            }
            12 => {
                insns.push(Insn::mov64_reg(a, Reg::R6));
                insns.push(Insn::alu64_imm(alu::ADD, a, random.of(&[8, 14, 20, 100])));
                insns.push(Insn::new(class::JMP | jmp::JGT | 8, a, Reg::R7, 2, 0));
            }
            13 => {
                let back = random.of(&[-3_i16, -5, -8]);
                if insns.len() > 12 {
                    insns.push(Insn::jmp_imm(jmp::JLT, a, random.of(&[3, 20, 100]), back));
                }
            }
            14 => {
                insns.push(Insn::mov64_reg(Reg::R1, Reg::R9));
                insns.push(Insn::mov64_imm(Reg::R2, random.of(&[-8, 4, 8])));
                insns.push(Insn::call(
                    random.of(&[helper_id::XDP_ADJUST_HEAD, helper_id::XDP_ADJUST_TAIL]),
                ));
            }
            _ => insns.push(Insn::new(
                class::STX | mode::ATOMIC | random.of(&[size::W, size::DW]),
                a,
                b,
                off,
                random.of(&[atomic::ADD, atomic::OR | atomic::FETCH, atomic::CMPXCHG]),
            )),
        }
    }
    insns.extend([Insn::mov64_imm(Reg::R0, 0); 5]);
    insns.push(Insn::exit());
    insns
}

#[test]
fn no_proven_access_of_a_generated_program_faults() {
    let maps = [
        map(MapType::ARRAY, 20, MapFlags::empty()),
        map(MapType::PERCPU_ARRAY, 16, MapFlags::empty()),
        map(MapType::ARRAY, 8, MapFlags::RDONLY_PROG),
        map(MapType::ARRAY, 8, MapFlags::WRONLY_PROG),
    ];
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut runs, mut faults, mut proven, mut all) = (0, 0, 0, 0);
    for round in 0..20_000 {
        let insns = generated(&mut random);
        let made = Program::with_options(ProgType::XDP, &insns, &maps, &options());
        let Ok(program) = made else { continue };
        runs += 1;
        faults += run(&format!("round {round}"), &program);
        let (p, a) = shares(&program);
        (proven, all) = (proven + p, all + a);
    }
    println!("{runs} programs, {faults} faults, {proven} of {all} accesses proven");
    assert!(runs > 2000 && faults > 1000 && proven * 10 > all, "{runs} {faults} {proven} {all}");
}

#[test]
fn long_programs_are_verified_soon() {
    for (len, diamonds) in [(4_096, true), (100_000, true), (100_000, false)] {
        let mut insns = vec![Insn::call(helper_id::GET_PRANDOM_U32)];
        while insns.len() < len - 4 {
            let n = insns.len() as i32;
            insns.push(Insn::alu64_imm(alu::RSH, Reg::R0, 1));
            if diamonds {
                insns.push(Insn::jmp_imm(jmp::JSET, Reg::R0, 1, 1));
            }
            insns.push(Insn::alu64_imm(alu::ADD, Reg::R6, n));
            insns.push(Insn::stx_mem(size::DW, Reg::R10, Reg::R6, -8 * (1 + n as i16 % 60)));
        }
        insns.extend([Insn::jmp_imm(jmp::JLT, Reg::R6, 77, -3000), Insn::exit()]);
        let start = Instant::now();
        let made = Program::with_options(ProgType::XDP, &insns, &[], &options());
        println!("{len} instructions, branches {diamonds}: {:?}", start.elapsed());
        assert!(made.is_ok(), "{:?}", made.map_err(|error| error.errno() == Errno::EINVAL));
    }
}
