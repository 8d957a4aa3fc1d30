//! From instructions somebody wrote to a program that may run.
//!
//! What can never be right is refused here: opcodes that do not exist, jumps that leave the program,
//! unknown helpers, maps that a helper cannot take, fields a context does not have. What depends
//! on run time is left to the checks of the engine, but in strict mode, where the rules of the kernel decide.

mod alu;
mod args;
mod branch;
mod call;
mod ctx;
mod depth;
mod explore;
mod fields;
#[cfg(test)]
mod form_tests;
mod global;
mod live;
mod log;
mod memory;
#[cfg(test)]
mod paths_tests;
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
pub(crate) use structure::{
    function_target, is_exit, is_unconditional_jump, jump_target, len, successors,
};

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
    pub(crate) iter_access: IterAccess,
    pub(crate) log: String,
}

/// How many bytes of the keys and values of a map a program needs that is called for its elements. Known in strict mode; otherwise
/// accesses are checked when they happen.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct IterAccess {
    /// # Kernel
    /// `max_rdonly_access` of `struct bpf_prog_aux`
    pub(crate) key: u32,
    /// # Kernel
    /// `max_rdwr_access` of `struct bpf_prog_aux`
    pub(crate) value: u32,
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
    let explored = match explore(&insns, &functions, env, env.log) {
        // Once more, with the way to the refusal written down.
        Err(_) if env.strict && env.log == LogLevel::None => {
            explore(&insns, &functions, env, LogLevel::Path)
        }
        explored => explored,
    };
    let (Explored { facts, safety, reached, stack, iter_access }, log) = explored?;
    Ok(Verified { insns, facts, safety, reached, functions, stack, iter_access, log })
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
        true => depth::check(insns, functions, &explorer.stack, env),
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
