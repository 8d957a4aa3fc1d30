//! From instructions somebody wrote to a program that may run.
//!
//! What can never be right is refused here: opcodes that do not exist, jumps that leave the program,
//! unknown helpers, maps that a helper cannot take, fields a context does not have. What depends
//! on run time is left to the checks of the engine, but in strict mode, where the rules of the kernel decide.

mod alu;
mod args;
mod branch;
mod call;
mod depth;
mod explore;
mod fields;
mod global;
mod live;
mod log;
mod memory;
mod proto;
mod range;
mod relevant;
mod rule;
mod state;
#[cfg(test)]
mod strict_tests;
mod structure;
#[cfg(test)]
mod tests;
mod tnum;
mod value;

pub(crate) use global::{Global, globals};
pub use rule::Rule;
pub(crate) use structure::{function_target, is_exit, is_unconditional_jump, jump_target, len};

use std::collections::HashMap;

use bpfarray::MapRef;
use bpfarray_core::btf::SpecialFields;
use bpfarray_core::insn::{Insn, pseudo};
use bpfarray_core::map::Kind;
use bpfarray_core::map::array::DirectValueError;
use bpfarray_core::{Errno, Layout, helper_id};

use crate::context::CtxAccess;
use crate::fault::missing_helper;
use crate::helper::HelperSet;
use crate::prog_type::{AttachType, ProgType};
use crate::program::SourceLine;
use explore::{Explored, Explorer};
use log::Log;

/// What a program is verified against.
pub(crate) struct Environment<'a> {
    pub(crate) prog_type: ProgType,
    /// The maps that `MAP_IDX` immediates index.
    pub(crate) maps: &'a [MapRef],
    pub(crate) helpers: &'a HelperSet,
    /// How the program expects to be attached, or 0.
    pub(crate) attach_type: AttachType,
    pub(crate) sleepable: bool,
    pub(crate) gpl_compatible: bool,
    /// Whether what is not proven to keep to the kernel's rules is refused.
    pub(crate) strict: bool,
    pub(crate) log: LogLevel,
    /// By the first of their instructions.
    pub(crate) globals: HashMap<usize, Global>,
    /// Source lines by the first of their instructions, ascending.
    pub(crate) lines: &'a [(usize, SourceLine)],
}

impl<'a> Environment<'a> {
    /// The default mode, for a program without source.
    pub(crate) fn new(prog_type: ProgType, maps: &'a [MapRef], helpers: &'a HelperSet) -> Self {
        Self {
            prog_type,
            maps,
            helpers,
            attach_type: AttachType(0),
            sleepable: false,
            gpl_compatible: true,
            strict: false,
            log: LogLevel::None,
            globals: HashMap::new(),
            lines: &[],
        }
    }
}

/// What the verifier writes down of what it did.
///
/// # Kernel
/// `BPF_LOG_LEVEL1`, `BPF_LOG_LEVEL2`
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
#[doc(alias = "BPF_LOG_LEVEL1")]
#[doc(alias = "BPF_LOG_LEVEL2")]
pub enum LogLevel {
    /// Nothing, unless the program is refused in strict mode: then as with [`LogLevel::Path`].
    #[default]
    None,
    /// The path to the instruction that is refused; of a program that is not, the last one.
    Path,
    /// All paths.
    All,
}

/// Instructions that were found legal, with what was learned about them.
pub(crate) struct Verified {
    pub(crate) insns: Vec<Insn>,
    /// One entry for each instruction.
    pub(crate) facts: Vec<Fact>,
    /// One entry for each instruction.
    pub(crate) safety: Vec<Safety>,
    /// Whether any path leads to an instruction. One entry for each.
    pub(crate) reached: Vec<bool>,
    /// Where functions start, in ascending order.
    pub(crate) functions: Vec<usize>,
    /// Bytes of stack that functions use, by where they start; `None` if a store may hit any byte.
    pub(crate) stack: Option<HashMap<usize, i64>>,
    pub(crate) log: String,
}

impl Verified {
    /// Bytes of stack, in whole slots, that the function uses in which an instruction is; `None` if a store may hit any.
    pub(crate) fn stack_at(&self, at: usize) -> Option<i16> {
        let function = self.functions.iter().rev().find(|start| **start <= at)?;
        let used = self.stack.as_ref()?.get(function).copied().unwrap_or(0);
        i16::try_from((used + 7) / 8 * 8).ok()
    }
}

/// A program that is refused, with what was written down until then.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: VerifyError,
    pub(crate) log: String,
}

/// Whether an instruction's access to memory was proved to be allowed; for a lookup that is inlined, that to its key.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Safety {
    /// Whatever path leads there.
    Proven,
    /// It has to be checked when it happens.
    Guarded,
}

/// What the analysis knows about an instruction that [`crate::xlate`] acts upon.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fact {
    /// Nothing.
    None,
    /// A lookup in this map, on every path.
    Lookup(KnownMap),
    /// A tail call through this map, on every path.
    TailCall {
        /// Index into the program's maps.
        map: u32,
    },
    /// A call of `bpf_loop` with flags that are known to be 0 and one function, on every path.
    Loop {
        /// Where the function starts.
        function: usize,
    },
    /// An access to the program's context.
    Ctx(CtxAccess),
}

/// A map that the analysis knows.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum KnownMap {
    /// The one with this index in the program's list.
    Listed(u32),
    /// One from the slots of the ARRAY_OF_MAPS with this index, of which the template tells the shape.
    Inner(u32),
}

impl KnownMap {
    /// The sizes that all maps which it can be have in common.
    pub(crate) fn layout(self, maps: &[MapRef]) -> Option<&Layout> {
        match self {
            Self::Listed(map) => maps.get(map as usize).map(MapRef::layout),
            Self::Inner(outer) => maps.get(outer as usize).and_then(MapRef::inner_template),
        }
    }

    /// The special fields that values of all maps have which it can be.
    fn special_fields(self, maps: &[MapRef]) -> Option<&SpecialFields> {
        match self {
            Self::Listed(map) => maps.get(map as usize).map(MapRef::special_fields),
            Self::Inner(outer) => maps.get(outer as usize).and_then(MapRef::inner_fields),
        }
    }

    /// What people call it.
    fn name(self, maps: &[MapRef]) -> String {
        let name = |map: u32| maps.get(map as usize).map(MapRef::name).unwrap_or_default();
        match self {
            Self::Listed(map) => name(map).to_owned(),
            Self::Inner(outer) => format!("{}[]", name(outer)),
        }
    }
}

/// A program that can never be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("instruction {insn}: {kind}")]
pub struct VerifyError {
    /// Index of the instruction, counted as loaded: a 64-bit immediate takes two.
    pub insn: usize,
    /// What is wrong with it.
    pub kind: VerifyErrorKind,
}

/// What is wrong with an instruction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// The program has no instructions, or more than the kernel's limit of a million.
    #[error("a program has 1 to 1000000 instructions, not {0}")]
    Length(usize),
    /// The opcode does not exist.
    #[error("unknown opcode {0:#04x}")]
    Opcode(u8),
    /// A field that the opcode does not use is not zero, or holds an unknown variant.
    #[error("opcode {0:#04x} with a reserved field set")]
    ReservedField(u8),
    /// A register that does not exist.
    #[error("register r{0} is invalid")]
    Register(usize),
    /// The frame pointer is read only.
    #[error("frame pointer r10 is read only")]
    FramePointer,
    /// An immediate of 0 as a divisor.
    #[error("division by zero")]
    DivisionByZero,
    /// A shift by as many bits as the register has, or more.
    #[error("invalid shift {0}")]
    Shift(i32),
    /// Half of a 64-bit immediate load.
    #[error("64-bit immediate load without its second half")]
    HalfLoad,
    /// A jump or call out of the function, or into the middle of an instruction.
    #[error("jump to instruction {0}, which is outside the function or inside an instruction")]
    Jump(i64),
    /// Control falls off the end of a function.
    #[error("control falls off the end of the function")]
    FallsOff,
    /// A helper that is not registered.
    #[error("call of {}", missing_helper(*.0))]
    Helper(u32),
    /// A kernel function.
    #[error("kernel functions (kfuncs) are not available")]
    Kfunc,
    /// A map index that the program's list does not have.
    #[error("map index {index} is not below {maps}")]
    MapIndex {
        /// The index.
        index: i32,
        /// How many maps there are.
        maps: usize,
    },
    /// A pseudo source register of a 64-bit immediate load that has no meaning here.
    #[error("64-bit immediate load of unsupported kind {0}")]
    LoadKind(usize),
    /// The address of a map value that cannot be had.
    #[error("direct value of map '{map}': {error}")]
    DirectValue {
        /// The map's name.
        map: String,
        /// Why.
        error: DirectValueError,
    },
    /// A helper that cannot take this kind of map.
    #[error("cannot pass map '{map}' of type {} into helper {}", .kind.map_type(), helper_name(*.helper))]
    MapKind {
        /// The helper's id.
        helper: u32,
        /// The map's name.
        map: String,
        /// The map's kind.
        kind: Kind,
    },
    /// A map with a special field in its values that programs of this type cannot use.
    #[error("programs of type {prog_type} cannot use map '{map}': its values have {field}")]
    FieldForType {
        /// The map's name.
        map: String,
        /// The field's name.
        field: &'static str,
        /// The program's type.
        prog_type: ProgType,
    },
    /// A map with a special field in its values that is not available here.
    #[error("map '{map}' has {field} in its values, which is not available here")]
    FieldUnavailable {
        /// The map's name.
        map: String,
        /// The field's name.
        field: &'static str,
    },
    /// A context access that the program type does not have.
    #[error("invalid context access, offset {offset}, {size} bytes")]
    CtxAccess {
        /// Byte offset in the context.
        offset: i16,
        /// Bytes.
        size: u32,
    },
    /// One of the kernel's rules that strict mode goes by.
    #[error(transparent)]
    Rule(Rule),
}

fn helper_name(id: u32) -> String {
    match bpfarray_core::helper_id::name(id) {
        Some(name) => format!("{name}#{id}"),
        None => format!("#{id}"),
    }
}

impl VerifyError {
    /// The error number with which the kernel refuses such a program.
    pub fn errno(&self) -> Errno {
        match &self.kind {
            VerifyErrorKind::Rule(rule) => rule.errno(),
            VerifyErrorKind::Length(_) => Errno::E2BIG,
            VerifyErrorKind::DirectValue { error, .. } => error.errno(),
            VerifyErrorKind::MapKind { helper: helper_id::FOR_EACH_MAP_ELEM, .. } => {
                Errno::ENOTSUPP
            }
            VerifyErrorKind::FramePointer | VerifyErrorKind::CtxAccess { .. } => Errno::EACCES,
            _ => Errno::EINVAL,
        }
    }
}

/// How many maps a program may refer to.
///
/// # Kernel
/// `MAX_USED_MAPS`
const MAX_USED_MAPS: usize = 64;

/// Verifies a program.
///
/// # Errors
/// [`VerifyError`] for the first instruction that can never be right: first by form, in program
/// order, then by meaning, along the paths that can be reached; in strict mode also for the first that
/// breaks a rule of the kernel.
///
/// # Kernel
/// `bpf_check`
pub(crate) fn verify(insns: Vec<Insn>, env: &Environment<'_>) -> Result<Verified, Refusal> {
    let early = |error| Refusal { error, log: String::new() };
    let functions = structure::check(&insns, env).map_err(early)?;
    if env.strict {
        check_whole(&insns, env).map_err(early)?;
    }
    match explore(&insns, &functions, env, env.log) {
        Ok((found, log)) => {
            let Explored { facts, safety, reached, stack } = found;
            Ok(Verified { insns, facts, safety, reached, functions, stack, log })
        }
        // It is refused a second time, with the way to it written down.
        Err(Refusal { .. }) if env.strict && env.log == LogLevel::None => {
            match explore(&insns, &functions, env, LogLevel::Path) {
                Err(refusal) => Err(refusal),
                Ok(_) => unreachable!("what is refused is refused again"),
            }
        }
        Err(refusal) => Err(refusal),
    }
}

/// What strict mode asks of a program as a whole.
fn check_whole(insns: &[Insn], env: &Environment<'_>) -> Result<(), VerifyError> {
    let fail = |insn, rule| Err(VerifyError { insn, kind: VerifyErrorKind::Rule(rule) });
    let mut used = std::collections::BTreeSet::new();
    for (at, insn) in insns.iter().enumerate() {
        let is_map = matches!(insn.src.index() as u8, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE);
        if !insn.is_ld_imm64() || !is_map {
            continue;
        }
        used.insert(insn.imm);
        if used.len() > MAX_USED_MAPS {
            return fail(at, Rule::TooManyMaps(MAX_USED_MAPS));
        }
        let kind = env.maps.get(insn.imm as usize).map(|map| map.layout().kind());
        let asleep =
            matches!(kind, Some(Kind::Array | Kind::PercpuArray | Kind::ArrayOfMaps) | None);
        if env.sleepable && !asleep {
            return fail(at, Rule::SleepableMap);
        }
    }
    match live::unreachable(insns) {
        Some(at) => fail(at, Rule::UnreachableInsn(at)),
        None => Ok(()),
    }
}

fn explore(
    insns: &[Insn],
    functions: &[usize],
    env: &Environment<'_>,
    level: LogLevel,
) -> Result<(Explored, String), Refusal> {
    let mut explorer = Explorer::new(insns, functions, env);
    explorer.log = (level != LogLevel::None).then(|| Log::new(insns, env, level == LogLevel::All));
    let done = explorer.explore().and_then(|()| match env.strict {
        true => depth::check(insns, functions, &explorer.stack),
        false => Ok(()),
    });
    let statistics = explorer.statistics();
    let log = explorer.log.take().map(|mut log| {
        if let Err(error) = &done {
            log.say(&error.kind);
        }
        log.say(statistics);
        log.into_text()
    });
    let log = log.unwrap_or_default();
    match done {
        Ok(()) => Ok((explorer.finish(), log)),
        Err(error) => Err(Refusal { error, log }),
    }
}

#[cfg(test)]
mod form_tests {
    use bpfarray::Map;
    use bpfarray_core::attr::{MapAttr, MapType};
    use bpfarray_core::insn::{Reg, alu, class, jmp, mode, pseudo, size};

    use super::*;

    const LOOKUP: Insn = Insn::call(helper_id::MAP_LOOKUP_ELEM);

    fn map(map_type: MapType) -> MapRef {
        let attr =
            MapAttr { map_type, key_size: 4, value_size: 8, max_entries: 5, ..MapAttr::default() };
        Map::create(&attr).unwrap().to_ref()
    }

    /// Verifies an XDP program with maps ARRAY, PERCPU_ARRAY, ARRAY.
    fn check(insns: &[Insn]) -> Result<Verified, VerifyError> {
        let maps = [map(MapType::ARRAY), map(MapType::PERCPU_ARRAY), map(MapType::ARRAY)];
        let helpers = HelperSet::linux();
        let env = Environment::new(ProgType::XDP, &maps, &helpers);
        verify(insns.to_vec(), &env).map_err(|refusal| refusal.error)
    }

    fn refusal(insns: &[Insn]) -> (usize, VerifyErrorKind) {
        let Err(error) = check(insns) else { panic!("accepted") };
        (error.insn, error.kind)
    }

    fn map_address(dst: Reg, index: u64) -> [Insn; 2] {
        Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), index)
    }

    #[test]
    fn a_lookup_in_a_known_map_is_recognised_even_after_a_spill() {
        let [lo, hi] = map_address(Reg::R1, 1);
        let verified = check(&[
            lo,
            hi,
            Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
            Insn::mov64_imm(Reg::R1, 0),
            Insn::mov64_reg(Reg::R3, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R3, -16),
            Insn::ldx_mem(size::DW, Reg::R1, Reg::R3, 8),
            LOOKUP,
            Insn::exit(),
        ]);
        assert_eq!(verified.unwrap().facts[7], Fact::Lookup(KnownMap::Listed(1)));
    }

    #[test]
    fn a_partly_overwritten_spill_is_forgotten() {
        let [lo, hi] = map_address(Reg::R1, 1);
        let verified = check(&[
            lo,
            hi,
            Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
            Insn::st_mem(size::B, Reg::R10, -1, 0),
            Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, -8),
            LOOKUP,
            Insn::exit(),
        ]);
        assert_eq!(verified.unwrap().facts[5], Fact::None);
    }

    #[test]
    fn a_lookup_that_two_paths_reach_with_different_maps_stays_a_call() {
        let [lo0, hi0] = map_address(Reg::R1, 0);
        let [lo2, hi2] = map_address(Reg::R1, 2);
        let two_paths = |other: [Insn; 2]| {
            check(&[
                lo0,
                hi0,
                Insn::jmp_imm(jmp::JEQ, Reg::R2, 0, 2),
                other[0],
                other[1],
                LOOKUP,
                Insn::exit(),
            ])
        };
        assert_eq!(two_paths([lo2, hi2]).unwrap().facts[5], Fact::None);
        assert_eq!(two_paths([lo0, hi0]).unwrap().facts[5], Fact::Lookup(KnownMap::Listed(0)));
    }

    #[test]
    fn a_callback_gets_the_map_that_is_iterated() {
        let [lo, hi] = map_address(Reg::R1, 2);
        let [func, zero] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 4);
        let verified = check(&[
            lo,
            hi,
            func,
            zero,
            Insn::call(helper_id::FOR_EACH_MAP_ELEM),
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
            LOOKUP,
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
        ]);
        assert_eq!(verified.unwrap().facts[7], Fact::Lookup(KnownMap::Listed(2)));
    }

    #[test]
    fn jumps_stay_in_their_function_and_out_of_immediates() {
        let [lo, hi] = Insn::ld_imm64(Reg::R0, Reg::R0, 7);
        assert_eq!(refusal(&[Insn::ja(1), Insn::exit()]), (0, VerifyErrorKind::Jump(2)));
        assert_eq!(refusal(&[Insn::ja(1), lo, hi, Insn::exit()]), (0, VerifyErrorKind::Jump(2)));
        assert_eq!(refusal(&[Insn::ja(-2), Insn::exit()]), (0, VerifyErrorKind::Jump(-1)));
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(1), 0, 1);
        let into_callee = [call, Insn::ja(0), Insn::mov64_imm(Reg::R0, 0), Insn::exit()];
        assert_eq!(refusal(&into_callee), (1, VerifyErrorKind::Jump(2)));
    }

    #[test]
    fn a_program_ends_in_exit_or_a_jump() {
        assert_eq!(refusal(&[]), (0, VerifyErrorKind::Length(0)));
        let no_exit = [Insn::mov64_imm(Reg::R0, 0)];
        assert_eq!(refusal(&no_exit), (0, VerifyErrorKind::FallsOff));
        let [lo, _] = Insn::ld_imm64(Reg::R0, Reg::R0, 7);
        assert_eq!(refusal(&[lo]), (0, VerifyErrorKind::HalfLoad));
    }

    #[test]
    fn the_per_cpu_move_is_no_instruction_of_programs() {
        let insns = [Insn::mov64_percpu_reg(Reg::R0, Reg::R0), Insn::exit()];
        assert_eq!(refusal(&insns), (0, VerifyErrorKind::ReservedField(0xbf)));
    }

    #[test]
    fn missing_helpers_and_kfuncs_are_refused_by_name() {
        let error = check(&[Insn::call(4), Insn::exit()]).map(drop).unwrap_err();
        assert_eq!(
            error.to_string(),
            "instruction 0: call of helper bpf_probe_read#4, which is not available here"
        );
        let kfunc = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(2), 0, 77);
        assert_eq!(refusal(&[kfunc, Insn::exit()]), (0, VerifyErrorKind::Kfunc));
    }

    #[test]
    fn a_helper_for_per_cpu_maps_takes_no_array() {
        let [lo, hi] = map_address(Reg::R1, 0);
        let call = Insn::call(helper_id::MAP_LOOKUP_PERCPU_ELEM);
        let (insn, kind) = refusal(&[lo, hi, call, Insn::exit()]);
        assert_eq!(insn, 2);
        assert!(matches!(kind, VerifyErrorKind::MapKind { helper: 195, .. }), "{kind:?}");
        let [lo, hi] = map_address(Reg::R1, 1);
        assert!(check(&[lo, hi, call, Insn::exit()]).is_ok());
    }

    #[test]
    fn helpers_on_events_take_only_maps_of_events_and_those_no_other_helper() {
        let helpers = [
            (helper_id::PERF_EVENT_READ, Reg::R1),
            (helper_id::PERF_EVENT_OUTPUT, Reg::R2),
            (helper_id::PERF_EVENT_READ_VALUE, Reg::R1),
        ];
        let types = [MapType::ARRAY, MapType::PROG_ARRAY, MapType::PERF_EVENT_ARRAY];
        let maps = types.map(|map_type| {
            let sizes =
                MapAttr { key_size: 4, value_size: 4, max_entries: 5, ..MapAttr::default() };
            Map::create(&MapAttr { map_type, ..sizes }).unwrap().to_ref()
        });
        let set = HelperSet::linux();
        let env = Environment::new(ProgType::XDP, &maps, &set);
        let judge = |helper, reg, index| {
            let [lo, hi] = map_address(reg, index);
            verify(vec![lo, hi, Insn::call(helper), Insn::exit()], &env)
                .map(drop)
                .map_err(|refusal| refusal.error)
        };
        for (helper, reg) in helpers {
            assert!(judge(helper, reg, 2).is_ok(), "{helper}");
            for index in [0, 1] {
                let error = judge(helper, reg, index).unwrap_err();
                assert!(matches!(error.kind, VerifyErrorKind::MapKind { .. }), "{error}");
                assert_eq!(error.errno(), Errno::EINVAL);
            }
        }
        let lookup = judge(helper_id::MAP_LOOKUP_ELEM, Reg::R1, 2).unwrap_err();
        assert_eq!(lookup.errno(), Errno::EINVAL);
    }

    #[test]
    fn a_spill_that_a_helper_overwrites_is_forgotten() {
        let [lo, hi] = map_address(Reg::R1, 1);
        let read_value = |len| {
            check(&[
                lo,
                hi,
                Insn::stx_mem(size::DW, Reg::R10, Reg::R1, -8),
                Insn::mov64_reg(Reg::R3, Reg::R10),
                Insn::alu64_imm(alu::ADD, Reg::R3, -32),
                Insn::mov64_imm(Reg::R4, len),
                Insn::mov64_imm(Reg::R1, 0),
                Insn::call(helper_id::PERF_EVENT_READ_VALUE),
                Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, -8),
                LOOKUP,
                Insn::exit(),
            ])
        };
        assert_eq!(read_value(25).unwrap().facts[9], Fact::None);
        assert_eq!(read_value(24).unwrap().facts[9], Fact::Lookup(KnownMap::Listed(1)));
    }

    #[test]
    fn a_field_that_the_context_lacks_is_refused() {
        let load = Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 64);
        let kind = VerifyErrorKind::CtxAccess { offset: 64, size: 4 };
        assert_eq!(refusal(&[load, Insn::exit()]), (0, kind));
        let data_end = Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 4);
        assert!(check(&[data_end, Insn::exit()]).is_ok());
        let extended = Insn::new(class::LDX | mode::MEMSX | size::W, Reg::R0, Reg::R1, 4, 0);
        let kind = VerifyErrorKind::CtxAccess { offset: 4, size: 4 };
        assert_eq!(refusal(&[extended, Insn::exit()]), (0, kind));
    }

    #[test]
    fn a_direct_value_needs_a_map_of_one_element() {
        let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), 0);
        let error = check(&[lo, hi, Insn::exit()]).map(drop).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOTSUPP);
        let [lo, hi] = map_address(Reg::R1, 9);
        let none = VerifyErrorKind::MapIndex { index: 9, maps: 3 };
        assert_eq!(refusal(&[lo, hi, Insn::exit()]), (0, none));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(proptest::array::uniform8(proptest::num::u8::ANY), 1..40)
        ) {
            let insns: Vec<Insn> = bytes.into_iter().map(Insn::decode).collect();
            let _ = check(&insns);
        }
    }
}
