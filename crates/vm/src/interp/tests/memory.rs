//! Loads, stores and atomics, and the memory they may touch.

use bpfarray::Lane;
use bpfarray::attr::{MapFlags, MapType};
use bpfarray_core::VALUE_OFFSET;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, mode, pseudo, size};
use bpfarray_core::map::gen_lookup;

use super::{Case, R0, R1, R2, R3, R4, R6, R10, fault, map, run_insns};
use crate::context::Context;
use crate::prog_type::ProgType;

const SIZES: [(u8, u32); 4] = [(size::B, 8), (size::H, 16), (size::W, 32), (size::DW, 64)];

fn truncated(number: u64, bits: u32) -> u64 {
    number & (u64::MAX >> (64 - bits))
}

#[test]
fn loads_and_stores_have_the_width_they_say() {
    let number = 0x8182_8384_8586_8788_u64;
    for (size, bits) in SIZES {
        for off in [-8, -13] {
            let [lo, hi] = Insn::ld_imm64(R1, R0, number);
            let store = [lo, hi, Insn::stx_mem(size, R10, R1, off)];
            let load = [Insn::ldx_mem(size, R0, R10, off), Insn::exit()];
            let whole = [Insn::ldx_mem(size::DW, R0, R10, off), Insn::exit()];
            let stored = [&store[..], &load].concat();
            assert_eq!(run_insns(&stored), Ok(truncated(number, bits)));
            let whole = [&store[..], &whole].concat();
            assert_eq!(
                run_insns(&whole),
                Ok(truncated(number, bits)),
                "only {bits} bits are stored"
            );
            let imm = [Insn::st_mem(size, R10, off, -2), load[0], load[1]];
            assert_eq!(run_insns(&imm), Ok(truncated(-2_i64 as u64, bits)));
            if size != size::DW {
                let sx = Insn::new(class::LDX | mode::MEMSX | size, R0, R10, off, 0);
                let shift = 64 - bits;
                let extended = ((number << shift) as i64 >> shift) as u64;
                assert_eq!(run_insns(&[&store[..], &[sx, Insn::exit()]].concat()), Ok(extended));
            }
        }
    }
}

/// What is left in memory, in the source register and in r0.
fn atomic(size: u8, op: i32, memory: u64, src: u64, r0: u64) -> [u64; 3] {
    let mut results = [0; 3];
    for (result, wanted) in results.iter_mut().zip([None, Some(R2), Some(R0)]) {
        let mut insns = [
            Insn::ld_imm64(R1, R0, memory),
            Insn::ld_imm64(R2, R0, src),
            Insn::ld_imm64(R0, R0, r0),
        ]
        .concat();
        insns.push(Insn::stx_mem(size::DW, R10, R1, -8));
        insns.push(Insn::atomic(size, op, R10, R2, -8));
        insns.push(match wanted {
            None => Insn::ldx_mem(size::DW, R0, R10, -8),
            Some(reg) => Insn::mov64_reg(R0, reg),
        });
        insns.push(Insn::exit());
        *result = run_insns(&insns).unwrap();
    }
    results
}

type Operation = fn(u64, u64) -> u64;

#[test]
fn atomics_do_what_they_say_on_both_widths() {
    let (m, s, r0) = (0xf0f0_f0f0_0000_00ff, 0x0101_0101_ffff_ff0f, 0x77);
    let low = |number: u64| number & 0xffff_ffff;
    let operations: [(i32, Operation); 4] = [
        (atomic::ADD, u64::wrapping_add),
        (atomic::OR, |a, b| a | b),
        (atomic::AND, |a, b| a & b),
        (atomic::XOR, |a, b| a ^ b),
    ];
    for (op, result) in operations {
        let wide = result(m, s);
        let narrow = m & !0xffff_ffff | low(result(low(m), low(s)));
        assert_eq!(atomic(size::DW, op, m, s, r0), [wide, s, r0]);
        assert_eq!(atomic(size::W, op, m, s, r0), [narrow, s, r0]);
        let fetch = op | atomic::FETCH;
        assert_eq!(atomic(size::DW, fetch, m, s, r0), [wide, m, r0]);
        assert_eq!(atomic(size::W, fetch, m, s, r0), [narrow, low(m), r0]);
    }
    assert_eq!(atomic(size::DW, atomic::XCHG, m, s, r0), [s, m, r0]);
    assert_eq!(atomic(size::W, atomic::XCHG, m, s, r0), [m & !0xffff_ffff | low(s), low(m), r0]);
    assert_eq!(atomic(size::DW, atomic::CMPXCHG, m, s, m), [s, s, m]);
    assert_eq!(atomic(size::DW, atomic::CMPXCHG, m, s, r0), [m, s, m]);
    let swapped = m & !0xffff_ffff | low(s);
    assert_eq!(atomic(size::W, atomic::CMPXCHG, m, s, 0xdead_0000_0000_00ff), [swapped, s, low(m)]);
    assert_eq!(atomic(size::W, atomic::CMPXCHG, m, s, r0), [m, s, low(m)]);
}

#[test]
fn acquiring_loads_and_releasing_stores_have_every_width() {
    let number = 0x8182_8384_8586_8788_u64;
    for (size, bits) in SIZES {
        let [lo, hi] = Insn::ld_imm64(R1, R0, number);
        let result = run_insns(&[
            lo,
            hi,
            Insn::atomic(size, atomic::STORE_REL, R10, R1, -8),
            Insn::atomic(size, atomic::LOAD_ACQ, R0, R10, -8),
            Insn::exit(),
        ]);
        assert_eq!(result, Ok(truncated(number, bits)));
    }
}

#[test]
fn misaligned_atomics_fault() {
    for op in [atomic::ADD, atomic::CMPXCHG, atomic::LOAD_ACQ, atomic::STORE_REL] {
        let insn = Insn::atomic(size::DW, op, R10, R10, -12);
        assert!(fault(&[insn]).ends_with("is a misaligned atomic operation"));
    }
    let byte = Insn::atomic(size::B, atomic::ADD, R10, R1, -8);
    assert_eq!(fault(&[byte]), "instruction 0: unknown opcode 0xd3");
}

#[test]
fn null_is_told_apart() {
    assert_eq!(
        fault(&[Insn::ldx_mem(size::DW, R0, R2, 16)]),
        "instruction 0: 8-byte read at 0x10 touches no memory of this program (NULL pointer?)"
    );
    assert_eq!(
        fault(&[Insn::st_mem(size::W, R0, -4, 1)]),
        "instruction 0: 4-byte write at 0xfffffffffffffffc touches no memory of this program"
    );
}

#[test]
fn the_stack_is_512_bytes_of_the_running_function() {
    assert_eq!(run_insns(&[Insn::st_mem(size::DW, R10, -512, 0), Insn::exit()]), Ok(0));
    for off in [-513, -516, -4, 0, 8, 2000, -3000] {
        let text = fault(&[Insn::st_mem(size::DW, R10, off, 0)]);
        assert!(text.ends_with("is outside the stack frames in use"), "{off}: {text}");
    }
}

#[test]
fn what_an_earlier_run_left_on_the_stack_is_gone() {
    let mut write = vec![Insn::mov64_imm(R1, -1)];
    write.extend((1..=64).map(|i| Insn::stx_mem(size::DW, R10, R1, -8 * i)));
    write.push(Insn::exit());
    let mut read: Vec<Insn> = Vec::new();
    for i in 1..=64 {
        read.push(Insn::ldx_mem(size::DW, R1, R10, -8 * i));
        read.push(Insn::alu64_reg(alu::OR, R0, R1));
    }
    read.push(Insn::exit());
    run_insns(&write).unwrap();
    assert_eq!(run_insns(&read), Ok(0));
}

#[test]
fn an_inlined_lookup_finds_this_cpus_value() {
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        let map = map(map_type, 12, 3, MapFlags::empty());
        let program = |index| {
            let mut insns = vec![
                Insn::st_mem(size::W, R10, -4, index),
                Insn::mov64_reg(R2, R10),
                Insn::alu64_imm(alu::ADD, R2, -4),
            ];
            insns.extend(Insn::ld_imm64(R1, R0, map.addr()));
            insns.extend(gen_lookup(map.layout()).unwrap().iter());
            insns.push(Insn::exit());
            insns
        };
        let lane = Lane::enter();
        for index in [0, 2, 3, -1] {
            let found = Case::new(&program(index)).maps(&[&map]).run();
            let expected = map.prog_lookup_elem(&lane, index as u32).unwrap_or(0);
            assert_eq!(found, Ok(expected));
        }
    }
}

#[test]
fn the_cpu_number_is_a_per_cpu_variable() {
    let insns = [
        Insn::mov64_imm(R0, bpfarray::CPU_NUMBER_OFFSET as i32),
        Insn::mov64_percpu_reg(R0, R0),
        Insn::ldx_mem(size::W, R0, R0, 0),
        Insn::exit(),
    ];
    let lane = Lane::enter();
    assert_eq!(run_insns(&insns), Ok(lane.cpu().into()));
}

#[test]
fn map_values_are_read_and_written_in_place() {
    let map = map(MapType::ARRAY, 12, 2, MapFlags::empty());
    let value = |off: i16| {
        let addr = map.addr() + u64::from(VALUE_OFFSET) + 16;
        let mut insns = Insn::ld_imm64(R1, R0, addr).to_vec();
        insns.push(Insn::st_mem(size::W, R1, off, 7));
        insns.push(Insn::exit());
        Case::new(&insns).maps(&[&map]).run()
    };
    assert_eq!(value(8), Ok(0));
    let mut bytes = [0; 12];
    map.lookup_elem(1, &mut bytes, 0).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    for off in [9, 12, -4, -2] {
        let fault = value(off).unwrap_err().to_string();
        assert!(fault.ends_with("leaves the value it starts in"), "{off}: {fault}");
    }
    let header = Insn::ld_imm64(R1, R0, map.addr());
    let insns = [header[0], header[1], Insn::ldx_mem(size::DW, R0, R1, 0), Insn::exit()];
    let fault = Case::new(&insns).maps(&[&map]).run().unwrap_err().to_string();
    assert!(fault.ends_with("touches no memory of this program"), "{fault}");
}

#[test]
fn a_packet_ends_where_data_end_says() {
    let packet: Vec<u8> = (0..64).collect();
    let read = |off| {
        let insns =
            [Insn::ldx_mem(size::DW, R2, R1, 0), Insn::ldx_mem(size::W, R0, R2, off), Insn::exit()];
        let context = Context::new(ProgType::XDP, &packet, None).unwrap();
        Case::with_context(&insns, context).run()
    };
    assert_eq!(read(60), Ok(0x3f3e_3d3c));
    for off in [61, 64, -1, -4, 3000] {
        let fault = read(off).unwrap_err().to_string();
        assert!(fault.ends_with("is outside the packet"), "{off}: {fault}");
    }
}

#[test]
fn only_some_fields_of_a_context_can_be_written() {
    let write = |prog_type, off| {
        let insns = [Insn::st_mem(size::W, R1, off, 5), Insn::exit()];
        let context = Context::new(prog_type, &[0; 64], None).unwrap();
        Case::with_context(&insns, context).run().is_ok()
    };
    let written = |prog_type| -> Vec<i16> {
        (0..224).step_by(4).filter(|off| write(prog_type, *off)).collect()
    };
    assert!(written(ProgType::XDP).is_empty());
    assert_eq!(written(ProgType::SOCKET_FILTER), [48, 52, 56, 60, 64]);
    let classifier = [8, 12, 32, 44, 48, 52, 56, 60, 64, 72, 152, 156];
    assert_eq!(written(ProgType::SCHED_CLS), classifier);
}

#[test]
fn a_functions_address_reaches_the_register_but_no_memory() {
    let [lo, hi] = Insn::ld_imm64(R3, Reg::new(pseudo::FUNC), 0);
    let insns = [lo, hi, Insn::mov64_reg(R6, R3), Insn::stx_mem(size::DW, R6, R4, 0)];
    assert!(fault(&insns).contains("touches no memory"));
}
