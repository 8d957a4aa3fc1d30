//! From verified instructions to the ones that run: what no path reaches removed, lookups and loops inlined,
//! packet loads turned into calls, context fields into fields of the native structure, the CPU number read from its
//! per-CPU variable.
//!
//! The result is what the kernel shows as `xlated`. Maps are still named by their index in the
//! program's list; [`Xlated::link`] puts addresses in their place, [`Xlated::dump`] ids.

mod dead;
mod patch;
mod upper;

use bpfarray::{CPU_NUMBER_OFFSET, MapRef};
use bpfarray_core::gen_lookup::InlinedLookup;
use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};
use bpfarray_core::{VALUE_OFFSET, helper_id, map};

use crate::context::CtxAccess;
use crate::verify::{Fact, KnownMap, Safety, Verified, function_target, jump_target};

/// A translated program.
#[derive(Clone, Debug)]
pub(crate) struct Xlated {
    insns: Vec<Insn>,
    /// For each instruction the one it came from.
    origins: Vec<usize>,
    /// For each instruction whether its access to memory needs no check.
    safety: Vec<Safety>,
}

/// A program that has become too long for its jumps.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("instruction {insn}: the jump to instruction {target} is too far after calls were inlined")]
pub struct XlateError {
    /// Index of the jump, as loaded.
    pub insn: usize,
    /// Index of its target, as loaded.
    pub target: usize,
}

/// What one instruction becomes.
enum Replacement {
    Same,
    One(Insn),
    Lookup(InlinedLookup),
    CpuNumber([Insn; 3]),
    Loop(Box<[Insn; 19]>),
    Several(Vec<Insn>),
    TailCall([Insn; 3]),
}

impl Replacement {
    fn insns<'a>(&'a self, original: &'a Insn) -> &'a [Insn] {
        match self {
            Self::Same => std::slice::from_ref(original),
            Self::One(insn) => std::slice::from_ref(insn),
            Self::Lookup(code) => code,
            Self::CpuNumber(code) => code,
            Self::Loop(code) => &**code,
            Self::Several(code) => code,
            Self::TailCall(code) => code,
        }
    }
}

/// Translates a program.
///
/// # Errors
/// [`XlateError`] when a jump no longer fits its 16-bit offset.
///
/// # Kernel
/// `do_misc_fixups`, `convert_ctx_accesses`
pub(crate) fn xlate(verified: &Verified, maps: &[MapRef]) -> Result<Xlated, XlateError> {
    let left = dead::remove(&verified.insns, &verified.reached);
    let mut insns = Vec::with_capacity(left.len());
    let mut origins = Vec::with_capacity(left.len());
    let mut safety = Vec::with_capacity(left.len());
    let mut places = Vec::with_capacity(left.len());
    let cleared = upper::cleared_after(&verified.insns, &verified.reached);
    for (at, original) in left.iter().enumerate() {
        let start = insns.len();
        if let Some(original) = original {
            let fact = verified.facts[at];
            let replacement = replacement(at, *original, verified, maps);
            insns.extend_from_slice(replacement.insns(original));
            if cleared.binary_search(&at).is_ok() {
                insns.push(upper::CLEAR);
            }
            safety.resize(insns.len(), verified.safety[at]);
            if matches!(replacement, Replacement::CpuNumber(_) | Replacement::Loop(_)) {
                safety[start..].fill(Safety::Proven);
            }
            if is_in_percpu_inner_map(fact, maps) {
                let pointer = insns[start..].iter().position(|insn| *insn == PPTR_LOAD);
                safety[start..]
                    .iter_mut()
                    .skip(pointer.unwrap_or(0))
                    .for_each(|at| *at = Safety::Guarded);
            }
            origins.resize(insns.len(), at);
        }
        places.push(start..insns.len());
    }
    for (at, original) in left.iter().enumerate() {
        let Some(original) = *original else { continue };
        if let (Fact::Loop { function }, true) = (verified.facts[at], places[at].len() > 1) {
            let call = places[at].start + patch::LOOP_CALL;
            point(&mut insns[call], call + 1, places[function].start)
                .ok_or(XlateError { insn: at, target: function })?;
        }
        if let Some(target) = target_of(at, original) {
            let end = places[at].end;
            point(&mut insns[end - 1], end, places[target].start)
                .ok_or(XlateError { insn: at, target })?;
        }
    }
    Ok(Xlated { insns, origins, safety })
}

/// The load of a pointer to values per CPU in an inlined lookup.
const PPTR_LOAD: Insn = Insn::ldx_mem(size::DW, Reg::R0, Reg::R0, 0);

/// Whether a lookup is one in per-CPU maps of an ARRAY_OF_MAPS. Those may be shorter than the template, by whose length
/// the inlined lookup goes: where the table of pointers ends is checked when one is loaded.
fn is_in_percpu_inner_map(fact: Fact, maps: &[MapRef]) -> bool {
    let Fact::Lookup(map @ KnownMap::Inner(_)) = fact else { return false };
    map.layout(maps).is_some_and(|layout| layout.kind() == map::Kind::PercpuArray)
}

fn replacement(at: usize, insn: Insn, verified: &Verified, maps: &[MapRef]) -> Replacement {
    match verified.facts[at] {
        Fact::Ctx(access) => Replacement::One(native_access(insn, access)),
        Fact::Lookup(map) => map
            .layout(maps)
            .and_then(map::gen_lookup)
            .map_or(Replacement::Same, Replacement::Lookup),
        Fact::TailCall { map } => match maps.get(map as usize).map(MapRef::layout) {
            Some(layout) if !layout.bypass_spec_v1() => Replacement::TailCall([
                Insn::jmp_imm(jmp::JGE, Reg::R3, layout.max_entries() as i32, 2),
                Insn::alu32_imm(alu::AND, Reg::R3, layout.index_mask() as i32),
                insn,
            ]),
            _ => Replacement::Same,
        },
        Fact::Loop { .. } => match verified.stack_at(at).and_then(patch::bpf_loop) {
            Some(code) => Replacement::Loop(Box::new(code)),
            None => Replacement::Same,
        },
        Fact::None if insn == Insn::call(helper_id::GET_SMP_PROCESSOR_ID) => {
            Replacement::CpuNumber([
                Insn::mov64_imm(Reg::R0, CPU_NUMBER_OFFSET as i32),
                Insn::mov64_percpu_reg(Reg::R0, Reg::R0),
                Insn::ldx_mem(size::W, Reg::R0, Reg::R0, 0),
            ])
        }
        Fact::None => patch::load_packet(insn)
            .or_else(|| patch::divide(insn))
            .map_or(Replacement::Same, Replacement::Several),
    }
}

/// The same load or store, at the place and in the width the native context has for the field.
fn native_access(insn: Insn, access: CtxAccess) -> Insn {
    let width = match access.native_size {
        1 => size::B,
        2 => size::H,
        4 => size::W,
        _ => size::DW,
    };
    Insn { code: insn.class() | insn.mode() | width, off: access.native_off as i16, ..insn }
}

/// Where a jump, call or function address leads, as loaded.
fn target_of(at: usize, insn: Insn) -> Option<usize> {
    let target = jump_target(at, insn).or_else(|| function_target(at, insn));
    target.and_then(|target| usize::try_from(target).ok())
}

/// Points a jump, call or function address, behind which is instruction `next`, at another instruction; `None` if that
/// is too far.
fn point(insn: &mut Insn, next: usize, target: usize) -> Option<()> {
    let distance = target as i64 - next as i64;
    let is_far = insn.is_ld_imm64() || insn.is_pseudo_call() || insn.code == class::JMP32 | jmp::JA;
    if is_far {
        insn.imm = i32::try_from(distance).ok()?;
    } else {
        insn.off = i16::try_from(distance).ok()?;
    }
    Some(())
}

impl Xlated {
    /// The instruction, as loaded, that the translated instruction `at` came from.
    pub(crate) fn origin(&self, at: usize) -> usize {
        self.origins.get(at).copied().unwrap_or(at)
    }

    /// How many instructions there are.
    pub(crate) fn len(&self) -> usize {
        self.insns.len()
    }

    /// Whether the access to memory of the translated instruction `at` needs no check.
    pub(crate) fn safety(&self, at: usize) -> Safety {
        self.safety.get(at).copied().unwrap_or(Safety::Guarded)
    }

    /// The instructions with the addresses of maps and values in place, ready to run.
    pub(crate) fn link(&self, maps: &[MapRef]) -> Vec<Insn> {
        self.map_loads(maps, |kind, map, offset| {
            let addr = match kind {
                pseudo::MAP_IDX => map.addr(),
                _ => map.addr() + u64::from(VALUE_OFFSET) + u64::from(offset),
            };
            (0, addr)
        })
    }

    /// The instructions as the kernel shows them: maps by their id.
    ///
    /// # Kernel
    /// `bpf_insn_prepare_dump`
    pub(crate) fn dump(&self, maps: &[MapRef]) -> Vec<Insn> {
        self.map_loads(maps, |kind, map, offset| {
            let kind = if kind == pseudo::MAP_IDX { pseudo::MAP_FD } else { pseudo::MAP_VALUE };
            (kind, u64::from(offset) << 32 | u64::from(map.id()))
        })
    }

    /// A copy in which `load` says, for each load of a map or value, its new kind and immediate.
    fn map_loads(
        &self,
        maps: &[MapRef],
        load: impl Fn(u8, &MapRef, u32) -> (u8, u64),
    ) -> Vec<Insn> {
        let mut insns = self.insns.clone();
        let mut at = 0;
        while at < insns.len() {
            let insn = insns[at];
            if !insn.is_ld_imm64() {
                at += 1;
                continue;
            }
            let kind = insn.src.index() as u8;
            if matches!(kind, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE)
                && let Some(map) = maps.get(insn.imm as usize)
            {
                let (kind, imm) = load(kind, map, insns[at + 1].imm as u32);
                insns[at..at + 2].copy_from_slice(&Insn::ld_imm64(insn.dst, Reg::new(kind), imm));
            }
            at += 2;
        }
        insns
    }
}

#[cfg(test)]
mod tests {
    use bpfarray::Map;
    use bpfarray_core::attr::{Creator, MapAttr, MapType};
    use bpfarray_core::insn::mode;

    use super::*;
    use crate::helper::HelperSet;
    use crate::prog_type::ProgType;
    use crate::verify::{Environment, verify};

    fn translate(insns: Vec<Insn>, maps: &[MapRef]) -> Xlated {
        let helpers = HelperSet::linux();
        let env = Environment::new(ProgType::XDP, maps, &helpers);
        xlate(&verify(insns, &env).unwrap(), maps).unwrap()
    }

    #[test]
    fn jumps_over_and_back_across_an_inlined_lookup_keep_their_targets() {
        let attr = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 5,
            ..MapAttr::default()
        };
        let maps = [Map::create(&attr).unwrap().to_ref()];
        let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
        let back = Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, -4);
        let over = Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 4);
        let call = Insn::call(helper_id::MAP_LOOKUP_ELEM);
        let xlated = translate(vec![over, lo, hi, call, back, Insn::exit()], &maps);
        let inlined = map::gen_lookup(maps[0].layout()).unwrap();

        let dump = xlated.dump(&maps);
        assert_eq!(dump[0].off, 4 - 1 + inlined.len() as i16);
        assert_eq!(dump[1..3], Insn::ld_imm64(Reg::R1, Reg::new(1), u64::from(maps[0].id())));
        assert_eq!(dump[3..3 + inlined.len()], *inlined);
        assert_eq!(dump[3 + inlined.len()].off, -4 + 1 - inlined.len() as i16);
        assert_eq!(xlated.origin(3 + inlined.len() - 1), 3);
        assert_eq!(xlated.origin(3 + inlined.len()), 4);
        assert_eq!(xlated.link(&maps)[1].imm as u32, maps[0].addr() as u32);
    }

    #[test]
    fn the_address_of_the_packet_is_loaded_in_full() {
        let insns = vec![
            Insn::ldx_mem(size::W, Reg::R2, Reg::R1, 0),
            Insn::ldx_mem(size::W, Reg::R3, Reg::R1, 4),
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
        ];
        let dump = translate(insns, &[]).dump(&[]);
        assert_eq!(dump[0], Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, 0));
        assert_eq!(dump[1], Insn::ldx_mem(size::DW, Reg::R3, Reg::R1, 8));
    }

    #[test]
    fn the_cpu_number_is_read_from_its_per_cpu_variable() {
        let call = Insn::call(helper_id::GET_SMP_PROCESSOR_ID);
        let insns = vec![Insn::alu64_imm(alu::MOV, Reg::R0, 0), call, Insn::exit()];
        let dump = translate(insns, &[]).dump(&[]);
        assert_eq!(dump.len(), 5);
        assert_eq!(dump[2], Insn::mov64_percpu_reg(Reg::R0, Reg::R0));
    }

    #[test]
    fn a_packet_load_becomes_a_call_that_may_leave_the_function() {
        let load = |mode, imm| Insn::new(class::LD | mode | size::H, Reg::R0, Reg::R7, 0, imm);
        let insns = vec![
            Insn::mov64_reg(Reg::R6, Reg::R1),
            Insn::mov64_imm(Reg::R7, 10),
            Insn { src: Reg::R0, ..load(mode::ABS, -4) },
            load(mode::IND, 0),
            load(mode::IND, 3),
            Insn::exit(),
        ];
        let helpers = HelperSet::none();
        let env = Environment::new(ProgType::SOCKET_FILTER, &[], &helpers);
        let dump = xlate(&verify(insns, &env).unwrap(), &[]).unwrap().dump(&[]);
        let call = [
            Insn::mov64_reg(Reg::R1, Reg::R6),
            Insn::call(helper_id::SKB_LOAD_HELPER_16_NO_CACHE),
            Insn::jmp_imm(jmp::JSGE, Reg::R0, 0, 2),
            Insn::alu32_reg(alu::XOR, Reg::R0, Reg::R0),
            Insn::exit(),
        ];
        let offset = Insn::mov64_reg(Reg::R2, Reg::R7);
        let parts: [&[Insn]; 6] = [
            &[Insn::mov64_imm(Reg::R2, -4)],
            &call,
            &[offset],
            &call,
            &[offset, Insn::alu64_imm(alu::ADD, Reg::R2, 3)],
            &call,
        ];
        assert_eq!(dump[2..dump.len() - 1], parts.concat());
    }

    #[test]
    fn no_program_calls_what_packet_loads_become() {
        let mut helpers = HelperSet::none();
        let id = helper_id::SKB_LOAD_HELPER_8_NO_CACHE;
        helpers.register(id, "mine", |_, _| Ok(0));
        let env = Environment::new(ProgType::SOCKET_FILTER, &[], &helpers);
        assert!(verify(vec![Insn::call(id), Insn::exit()], &env).is_err());
    }

    #[test]
    fn tail_calls_through_masked_maps_are_guarded() {
        let attr = MapAttr {
            map_type: MapType::PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 5,
            ..MapAttr::default()
        };
        let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 0);
        let call = Insn::call(helper_id::TAIL_CALL);
        for bypass_spec_v1 in [false, true] {
            let creator = Creator { bypass_spec_v1, ..Creator::default() };
            let maps = [Map::create_as(&attr, &creator).unwrap().to_ref()];
            let dump = translate(vec![lo, hi, call, Insn::exit()], &maps).dump(&maps);
            let guard = [
                Insn::jmp_imm(jmp::JGE, Reg::R3, 5, 2),
                Insn::alu32_imm(alu::AND, Reg::R3, 7),
                call,
            ];
            assert_eq!(dump[2..dump.len() - 1], guard[if bypass_spec_v1 { 2 } else { 0 }..]);
        }
    }

    #[test]
    fn lookups_in_inner_maps_are_inlined_with_the_numbers_of_the_template() {
        let attr = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 5,
            ..MapAttr::default()
        };
        let inner = Map::create(&attr).unwrap();
        let outer = MapAttr { map_type: MapType::ARRAY_OF_MAPS, value_size: 4, ..attr };
        let outer = Map::create_with(&outer, &Creator::default(), Some(&inner)).unwrap();
        let maps = [outer.to_ref()];
        let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
        let lookup = Insn::call(helper_id::MAP_LOOKUP_ELEM);
        let insns = vec![
            lo,
            hi,
            lookup,
            Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 2),
            Insn::mov64_reg(Reg::R1, Reg::R0),
            lookup,
            Insn::exit(),
        ];
        let dump = translate(insns, &maps).dump(&maps);
        let of_outer = map::gen_lookup(maps[0].layout()).unwrap();
        let of_inner = map::gen_lookup(inner.layout()).unwrap();
        assert_eq!(dump[2..2 + of_outer.len()], *of_outer);
        assert_eq!(dump[dump.len() - 1 - of_inner.len()..dump.len() - 1], *of_inner);
    }

    #[test]
    fn a_plain_loop_is_bounded_before_the_call() {
        let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 5);
        let with_flags = |flags| {
            let insns = vec![
                lo,
                hi,
                Insn::mov64_imm(Reg::R1, 3),
                flags,
                Insn::call(helper_id::LOOP),
                Insn::exit(),
                Insn::mov64_imm(Reg::R0, 0),
                Insn::exit(),
            ];
            translate(insns, &[]).dump(&[]).len()
        };
        assert_eq!(with_flags(Insn::mov64_imm(Reg::R4, 0)), 8 + 18);
        assert_eq!(with_flags(Insn::mov64_imm(Reg::R4, 1)), 8);
    }

    #[test]
    fn a_jump_that_inlining_makes_too_long_is_named() {
        let attr = MapAttr {
            map_type: MapType::PERCPU_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 5,
            ..MapAttr::default()
        };
        let maps = [Map::create(&attr).unwrap().to_ref()];
        let mut insns = vec![Insn::jmp_imm(jmp::JEQ, Reg::R1, 0, 15_000)];
        for _ in 0..5_000 {
            insns.extend(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0));
            insns.push(Insn::call(helper_id::MAP_LOOKUP_ELEM));
        }
        insns.push(Insn::exit());
        let helpers = HelperSet::linux();
        let env = Environment::new(ProgType::XDP, &maps, &helpers);
        let error = xlate(&verify(insns, &env).unwrap(), &maps).unwrap_err();
        assert_eq!(error, XlateError { insn: 0, target: 15_001 });
    }
}
