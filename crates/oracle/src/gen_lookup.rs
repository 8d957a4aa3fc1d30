//! The instructions a lookup is inlined to: the kernel's, cut out of a dump, and ours.

use bpfarray_core::insn::{Insn, Reg, alu, pseudo, size};
use bpfarray_core::{Errno, VALUE_OFFSET, helper_id, map};
use bpfarray_vm::{ProgType, Program};

use crate::attr::ProgLoad;
use crate::create::{Creator, MapCreate, Request};
use crate::kernel::Kernel;
use crate::rng::Rng;
use crate::sys::{Map, Prog};
use crate::{LoadError, Unavailable};

/// Why the kernel's instructions could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("creating the map: {0}")]
    Create(Errno),
    #[error("loading a program that looks up: {0}")]
    Load(#[from] LoadError),
    #[error("dumping the program: {0}")]
    Xlated(Errno),
}

/// A map for a lookup to be inlined for.
pub fn random(rng: &mut Rng) -> Request {
    let creator = rng.pick(&[Creator::Trusted, Creator::Masked]);
    let map_type = rng.pick(&[MapCreate::ARRAY, MapCreate::PERCPU_ARRAY]);
    let value_size = match rng.below(4) {
        0 => 1 << rng.below(15),
        1 => rng.within(1, 16),
        _ => rng.within(1, 1000),
    };
    let max_entries = match (map_type, rng.below(10)) {
        (MapCreate::ARRAY, 0) => rng.pick(&[1 << 16, 65537, 100_000]),
        (MapCreate::ARRAY, 1..4) => rng.within(1, 3000),
        (_, 4..6) => 1 << rng.below(6),
        _ => rng.within(1, 40),
    };
    let value_size = if max_entries > 40 { value_size.min(64) } else { value_size };
    let mut create = MapCreate::array(map_type, value_size, max_entries);
    if map_type == MapCreate::ARRAY {
        create.map_flags = rng.pick(&[0, 0, 0, 0x80, 0x400, 0x1000]);
    }
    Request { creator, create }
}

/// A program that looks up key 0 in the map with index 0, and where in it the call is.
fn lookup_program() -> (Vec<Insn>, usize) {
    let [map_lo, map_hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
    let insns = vec![
        Insn::st_mem(size::DW, Reg::R10, -8, 0),
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -8),
        map_lo,
        map_hi,
        Insn::call(helper_id::MAP_LOOKUP_ELEM),
        Insn::mov64_imm(Reg::R0, 0),
        Insn::exit(),
    ];
    (insns, 5)
}

/// What a dump of [`lookup_program`] has in the place of its call; `None` where that is still a call.
fn cut(xlated: &[Insn]) -> Option<&[Insn]> {
    let (insns, call) = lookup_program();
    let behind = insns.len() - call - 1;
    let inlined = xlated.get(call..xlated.len().checked_sub(behind)?)?;
    inlined.iter().all(|insn| !insn.is_helper_call()).then_some(inlined)
}

/// What the kernel makes of a lookup in a map like this; `None` where it leaves a call. The first
/// instruction's immediate, the offset of the values, is ours.
///
/// # Errors
/// Whatever the kernel refused.
pub fn ask(kernel: Kernel, request: &Request) -> Result<Option<Vec<Insn>>, Error> {
    let map =
        kernel.run_as(request.creator, || Map::create(&request.create))?.map_err(Error::Create)?;
    let (insns, _) = lookup_program();
    let prog = Prog::load(&ProgLoad::new(ProgType::SOCKET_FILTER.0, &insns, &[&map]))?;
    let xlated = prog.xlated().map_err(Error::Xlated)?;
    Ok(cut(&xlated).map(|inlined| {
        let mut inlined = inlined.to_vec();
        if let Some(first) = inlined.first_mut() {
            first.imm = VALUE_OFFSET as i32;
        }
        inlined
    }))
}

/// What our rules make of it.
///
/// # Errors
/// That of an invalid request.
pub fn ours(request: &Request) -> Result<Option<Vec<Insn>>, Errno> {
    let creator = request.creator.to_core();
    let layout = request.create.to_core().check(&creator).map_err(|e| e.errno())?;
    Ok(map::gen_lookup(&layout).map(|inlined| inlined.to_vec()))
}

/// What our loader makes of it, in a whole program.
///
/// # Errors
/// Why there is no such map or program.
pub fn ours_in_a_program(request: &Request) -> Result<Option<Vec<Insn>>, String> {
    let creator = request.creator.to_core();
    let map = bpfarray::Map::create_as(&request.create.to_core(), &creator);
    let map = map.map_err(|e| e.to_string())?;
    let (insns, _) = lookup_program();
    let program = Program::from_insns(ProgType::SOCKET_FILTER, &insns, &[map]);
    let xlated = program.map_err(|e| e.to_string())?.xlated();
    Ok(cut(&xlated).map(<[Insn]>::to_vec))
}

/// The instructions as one word.
pub fn to_text(insns: Option<&[Insn]>) -> String {
    match insns {
        Some(insns) => {
            let word = |i: &Insn| crate::text::hex(&i.encode());
            insns.iter().map(word).collect::<Vec<_>>().join(" ")
        }
        None => "call".into(),
    }
}
