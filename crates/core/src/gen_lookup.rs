//! Lookups as instructions: what the verifier puts in the place of a call of `bpf_map_lookup_elem`.

use core::ops::Deref;

use crate::insn::{Insn, Reg, alu, class, jmp, size};
use crate::layout::{Layout, VALUE_OFFSET};

/// Most instructions an inlined lookup has.
const MAX_LEN: usize = 10;

/// The instructions of an inlined lookup. They change only r0 and r1.
///
/// ```
/// use bpfarray_core::attr::{Creator, MapAttr, MapType};
/// use bpfarray_core::map;
/// let attr = MapAttr { map_type: MapType::ARRAY, key_size: 4, value_size: 8, max_entries: 5, ..MapAttr::default() };
/// let trusting = Creator { bypass_spec_v1: true, ..Creator::default() };
/// assert_eq!(map::gen_lookup(&attr.check(&Creator::default())?).unwrap().len(), 8);
/// assert_eq!(map::gen_lookup(&attr.check(&trusting)?).unwrap().len(), 7);
/// # Ok::<(), bpfarray_core::attr::CreateError>(())
/// ```
#[derive(Copy, Clone, Debug)]
pub struct InlinedLookup {
    insns: [Insn; MAX_LEN],
    len: usize,
}

impl Deref for InlinedLookup {
    type Target = [Insn];

    fn deref(&self) -> &[Insn] {
        &self.insns[..self.len]
    }
}

impl InlinedLookup {
    /// The common start: r1 = first value, r0 = index from `*r2`, masked where the map asks for
    /// it; an index past the end jumps over `rest` more instructions.
    ///
    /// The kernel compares 64 bits with the sign-extended `max_entries`, which from 2^31 entries
    /// on lets every index pass; there, and only there, the comparison here is a 32-bit one.
    pub(crate) fn index(map: &Layout, rest: i16) -> Self {
        let mut code = Self { insns: [Insn::exit(); MAX_LEN], len: 0 };
        let max_entries = map.max_entries() as i32;
        let compare = if max_entries < 0 { class::JMP32 } else { class::JMP };
        let distance = if map.bypass_spec_v1() { rest } else { rest + 1 };
        code.push(Insn::alu64_imm(alu::ADD, Reg::R1, VALUE_OFFSET as i32));
        code.push(Insn::ldx_mem(size::W, Reg::R0, Reg::R2, 0));
        code.push(Insn::new(compare | jmp::JGE, Reg::R0, Reg::R0, distance, max_entries));
        if !map.bypass_spec_v1() {
            code.push(Insn::alu32_imm(alu::AND, Reg::R0, map.index_mask() as i32));
        }
        code
    }

    pub(crate) fn push(&mut self, insn: Insn) {
        self.insns[self.len] = insn;
        self.len += 1;
    }
}
