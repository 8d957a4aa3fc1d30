//! Random programs that call map helpers, with good and bad arguments.
//!
//! A program works on one array map and leaves the result of each call in a map value.

use bpfarray_core::helper_id::{
    MAP_DELETE_ELEM, MAP_LOOKUP_ELEM, MAP_LOOKUP_PERCPU_ELEM, MAP_UPDATE_ELEM,
};
use bpfarray_core::insn::{Insn, Reg, alu, jmp, pseudo, size};

use crate::create::MapCreate;
use crate::programs::Assembled;
use crate::rng::Rng;

const CALLS: u32 = 24;
/// What stands for NULL among the results: no byte of a value and no error number.
const NULL: i32 = 0x4e55_4c4c;

/// The program of a seed. Its maps are the results' and the one it works on.
pub fn random(seed: u64) -> Assembled {
    let rng = &mut Rng::new(seed);
    let map_type = rng.pick(&[MapCreate::ARRAY, MapCreate::PERCPU_ARRAY]);
    let mut map = MapCreate::array(map_type, rng.within(1, 64), rng.within(1, 12));
    if map_type == MapCreate::ARRAY {
        map.map_flags = rng.pick(&[0, 0, 0x400, 0x1000]);
    }
    let mut insns = Vec::new();
    for call in 0..CALLS {
        random_call(rng, &map, &mut insns);
        insns.extend(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), 0));
        insns.push(Insn::stx_mem(size::DW, Reg::R1, Reg::R0, call as i16 * 8));
    }
    insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    let results = MapCreate::array(MapCreate::ARRAY, CALLS * 8, 1);
    Assembled::raw_tp(insns, vec![results, map])
}

/// A call with its arguments that leaves its result in r0.
fn random_call(rng: &mut Rng, map: &MapCreate, insns: &mut Vec<Insn>) {
    let key = match rng.below(6) {
        0 => rng.pick(&[map.max_entries as i32, i32::MAX, i32::MIN, -1]),
        _ => rng.below(map.max_entries) as i32,
    };
    insns.push(Insn::st_mem(size::W, Reg::R10, -4, key));
    let percpu = map.map_type == MapCreate::PERCPU_ARRAY;
    let helper = match rng.below(8) {
        0..2 => MAP_LOOKUP_ELEM,
        2 if percpu => MAP_LOOKUP_PERCPU_ELEM,
        7 => MAP_DELETE_ELEM,
        _ => MAP_UPDATE_ELEM,
    };
    if helper == MAP_UPDATE_ELEM {
        let words = i16::try_from(map.value_size.div_ceil(8)).unwrap_or(0);
        for word in 1..=words {
            insns.extend(Insn::ld_imm64(Reg::R3, Reg::R0, rng.next_u64()));
            insns.push(Insn::stx_mem(size::DW, Reg::R10, Reg::R3, -8 - 8 * word));
        }
        insns.push(Insn::mov64_reg(Reg::R3, Reg::R10));
        insns.push(Insn::alu64_imm(alu::ADD, Reg::R3, -8 - 8 * i32::from(words)));
        let flags = match rng.below(2) {
            0 => rng.pick(&[0, 2]),
            _ => rng.pick(&[1, 3, 4, 5, 6, 7, 8, 16, 1 << 32, 1 << 63]),
        };
        insns.extend(Insn::ld_imm64(Reg::R4, Reg::R0, flags));
    }
    if helper == MAP_LOOKUP_PERCPU_ELEM {
        let cpu = rng.pick(&[0, 1, 0x4000, i32::MAX, -1]);
        insns.push(Insn::alu32_imm(alu::MOV, Reg::R3, cpu));
    }
    insns.extend(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 1));
    insns.push(Insn::mov64_reg(Reg::R2, Reg::R10));
    insns.push(Insn::alu64_imm(alu::ADD, Reg::R2, -4));
    insns.push(Insn::call(helper));
    if helper == MAP_LOOKUP_ELEM || helper == MAP_LOOKUP_PERCPU_ELEM {
        // The address itself is nobody's business: take a byte of the value, and change it.
        let byte = rng.below(map.value_size) as i16;
        insns.push(Insn::jmp_imm(jmp::JNE, Reg::R0, 0, 2));
        insns.push(Insn::mov64_imm(Reg::R0, NULL));
        insns.push(Insn::ja(4));
        insns.push(Insn::ldx_mem(size::B, Reg::R1, Reg::R0, byte));
        insns.push(Insn::alu64_imm(alu::XOR, Reg::R1, 0x55));
        insns.push(Insn::stx_mem(size::B, Reg::R0, Reg::R1, byte));
        insns.push(Insn::mov64_reg(Reg::R0, Reg::R1));
    }
}
