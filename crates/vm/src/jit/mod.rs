//! Programs as machine code: made at once, by [`quick`], when they first need it, and by Cranelift when they have run for a while.
//!
//! Translation takes the instructions that the interpreter takes, addresses and all, and knows of arrays as
//! little as that does: in the better code lookups become address arithmetic because [`analysis`] and Cranelift optimise what
//! `gen_lookup` emitted. An access that neither the verifier nor, there, the analysis has proved is checked when it
//! happens, by the machine's own check in the end. So a fault is the interpreter's.

mod analysis;
mod entry;
mod isa;
mod loops;
mod memory;
mod quick;
#[cfg(test)]
mod tests;
mod trampoline;
mod translate;
mod values;

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

use bpfarray_core::insn::Insn;
use cranelift_codegen::Context;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::ExternalName;
use cranelift_frontend::FunctionBuilderContext;

use crate::engine::Accesses;
use crate::fault::{Fault, FaultKind};
use crate::helper::HelperSet;
use crate::interp::{Code, Environment, Machine, Stopped};
use analysis::{Shape, Subject};
use entry::Entry;
use memory::CodeMemory;
use quick::Heat;

/// Functions begin at multiples of this.
const ALIGN: usize = 16;

/// A program's machine code.
pub(crate) struct Compiled {
    entry: Entry,
    memory: CodeMemory,
    /// Addresses of functions, by their first instruction.
    functions: BTreeMap<usize, usize>,
    main: usize,
    accesses: Accesses,
    /// Of code that was made at once.
    quick: Option<Quick>,
    /// What the code has addresses of.
    _helpers: Arc<HelperSet>,
    _literals: Vec<Literals>,
}

/// Of code that was made at once: how much it has run, and the better code that programs with this code share.
struct Quick {
    heat: Heat,
    better: OnceLock<Option<Arc<Compiled>>>,
}

/// Compiles a program at once. `None` where that can't be done.
pub(crate) fn compile_quick(
    insns: &[Insn],
    code: &Code,
    environment: &Environment,
    proven: &dyn Fn(usize) -> bool,
) -> Option<Compiled> {
    let entries: Vec<usize> = code.entries().collect();
    let made = quick::compile(insns, code.ops(), &entries, &environment.helpers, proven)?;
    let quick::Made { bytes, functions, accesses, heat } = made;
    let code = Compiled::new(&bytes, functions, environment)?;
    let quick = Some(Quick { heat, better: OnceLock::new() });
    Some(Compiled { accesses, quick, ..code })
}

/// Compiles a program. `None` where no code can be made: for such a machine, for so long a program, or for lack of
/// memory.
pub(crate) fn compile(
    insns: &[Insn],
    code: &Code,
    environment: &Environment,
    proven: &dyn Fn(usize) -> bool,
) -> Option<Compiled> {
    let made = Maker::new(insns, code, environment, proven, false).run()?;
    let code = Compiled::new(&made.bytes, made.functions, environment)?;
    Some(Compiled { accesses: made.accesses, _literals: made.literals, ..code })
}

/// The text of the machine code that [`compile`] makes, function by function.
pub(crate) fn disassemble(
    insns: &[Insn],
    code: &Code,
    environment: &Environment,
    proven: &dyn Fn(usize) -> bool,
) -> Option<String> {
    Some(Maker::new(insns, code, environment, proven, true).run()?.text)
}

impl Compiled {
    /// Code, with its functions' places in it.
    fn new(
        code: &[u8],
        mut functions: BTreeMap<usize, usize>,
        environment: &Environment,
    ) -> Option<Self> {
        let entry = Entry::new()?;
        let memory = CodeMemory::new(code).ok()?;
        functions.values_mut().for_each(|place| *place += memory.addr());
        let main = *functions.get(&0)?;
        let accesses = Accesses::default();
        let (_helpers, _literals) = (Arc::clone(&environment.helpers), Vec::new());
        Some(Self { entry, memory, functions, main, accesses, quick: None, _helpers, _literals })
    }

    /// Whether it was made at once.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick.is_some()
    }

    /// Whether there is better code than this, or it has run for so long that somebody should make that.
    pub(crate) fn is_hot(&self) -> bool {
        let is_hot = |quick: &Quick| quick.better.get().is_some() || quick.heat.is_enough();
        self.quick.as_ref().is_some_and(is_hot)
    }

    /// Whether there is better code than this, or the caller shall make it. Who asks must then do so: nobody else is told.
    pub(crate) fn claim(&self) -> bool {
        let claim = |quick: &Quick| quick.better.get().is_some() || quick.heat.claim();
        self.quick.as_ref().is_some_and(claim)
    }

    /// Better code, which is made if there is none yet. `None` where it could not be made, or this is the best.
    pub(crate) fn better(&self, make: impl FnOnce() -> Option<Self>) -> Option<&Arc<Self>> {
        // A program that runs shall not end because there is a mistake in what would make it faster.
        let make = || catch_unwind(AssertUnwindSafe(make)).ok().flatten().map(Arc::new);
        self.quick.as_ref()?.better.get_or_init(make).as_ref()
    }

    /// Address of the program's first function.
    pub(crate) fn main(&self) -> usize {
        self.main
    }

    /// The code.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub(crate) fn accesses(&self) -> Accesses {
        self.accesses
    }

    /// Runs the function that begins with instruction `at`, in a frame of its own, and gives its r0.
    /// The program must be the one that is running.
    ///
    /// # Panics
    /// With what a helper of the host panicked with.
    #[inline(always)]
    pub(crate) fn call(
        &self,
        machine: &mut Machine<'_>,
        at: usize,
        args: [u64; 5],
    ) -> Result<u64, Box<Fault>> {
        let (mark, running) = (machine.stack.mark(), machine.running);
        machine.stack.reserve().ok_or_else(|| machine.fault(at, FaultKind::CallDepth))?;
        let Some(r0) = self.enter(machine, at, args) else {
            machine.stack.unwind(mark);
            return Err(machine.fault(at, FaultKind::PastEnd));
        };
        machine.stack.unwind(mark);
        if !std::ptr::eq(machine.running, running) {
            machine.run(running);
        }
        if machine.stopped.is_some() || machine.is_locked() {
            return Err(Self::ended(machine, at));
        }
        Ok(r0)
    }

    /// Why a function that was entered has no r0 to give.
    #[cold]
    fn ended(machine: &mut Machine<'_>, at: usize) -> Box<Fault> {
        match machine.stopped.take() {
            Some(Stopped::Fault(fault)) => fault,
            Some(Stopped::Panic(panic)) => resume_unwind(panic as Box<dyn Any + Send>),
            None => machine.fault(at, FaultKind::Locked("exit".into())),
        }
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compiled({} bytes)", self.memory.bytes().len())
    }
}

/// What Cranelift works in. It keeps its memory from program to program, which is much of what a short one takes.
struct Workshop {
    context: Context,
    builder_context: FunctionBuilderContext,
}

impl Workshop {
    /// A program that is longer than this leaves no memory behind.
    const KEPT: usize = 4096;

    fn new() -> Box<Self> {
        let (context, builder_context) = (Context::new(), FunctionBuilderContext::new());
        Box::new(Self { context, builder_context })
    }
}

thread_local! {
    static WORKSHOP: Cell<Option<Box<Workshop>>> = const { Cell::new(None) };
}

/// Makes the code of all functions of a program.
struct Maker<'a> {
    insns: &'a [Insn],
    code: &'a Code,
    environment: &'a Environment,
    proven: &'a dyn Fn(usize) -> bool,
    shape: Shape,
    joins: BTreeSet<usize>,
    workshop: Box<Workshop>,
    want_text: bool,
}

/// The code of all functions of a program, at no address yet.
#[derive(Default)]
struct Made {
    bytes: Vec<u8>,
    /// Where functions begin, by their first instruction.
    functions: BTreeMap<usize, usize>,
    /// Where the address of a function, named by its first instruction, is to be filled in.
    calls: Vec<(Reloc, usize, usize, i64)>,
    accesses: Accesses,
    literals: Vec<Literals>,
    text: String,
}

/// Numbers that code loads from where they are.
type Literals = Box<[u64]>;

impl<'a> Maker<'a> {
    fn new(
        insns: &'a [Insn],
        code: &'a Code,
        environment: &'a Environment,
        proven: &'a dyn Fn(usize) -> bool,
        want_text: bool,
    ) -> Self {
        let workshop = WORKSHOP.try_with(Cell::take).ok().flatten().unwrap_or_else(Workshop::new);
        let shape = Shape::new(code.ops(), code.entries().next().is_some());
        let jumps = code.ops().iter().enumerate().filter(|(_, op)| op.is_jump());
        let joins = jumps.flat_map(|(at, op)| [op.target as usize, at + 1]).collect();
        Self { insns, code, environment, proven, shape, joins, workshop, want_text }
    }

    fn run(mut self) -> Option<Made> {
        let mut made = Made::default();
        let mut wanted: Vec<usize> = self.code.entries().collect();
        wanted.push(0);
        while let Some(at) = wanted.pop() {
            if !made.functions.contains_key(&at) {
                let before = made.calls.len();
                self.function(at, &mut made)?;
                wanted.extend(made.calls[before..].iter().map(|(_, _, target, _)| *target));
            }
        }
        // Where compiling failed it is dropped, for who knows how it was left.
        if self.insns.len() <= Workshop::KEPT {
            let _ = WORKSHOP.try_with(|place| place.set(Some(self.workshop)));
        }
        made.link().map(|()| made)
    }

    fn function(&mut self, at: usize, made: &mut Made) -> Option<()> {
        let isa = isa::host()?;
        let subject = Subject {
            insns: self.insns,
            ops: self.code.ops(),
            entry: at,
            regions: &self.environment.regions,
            helpers: &self.environment.helpers,
            shape: &self.shape,
            joins: &self.joins,
            proven: self.proven,
        };
        let Workshop { context, builder_context } = &mut *self.workshop;
        context.clear();
        context.set_disasm(self.want_text);
        let (accesses, literals) =
            translate::function(&subject, &mut context.func, builder_context);
        made.literals.push(literals);
        made.accesses.proven += accesses.proven;
        made.accesses.guarded += accesses.guarded;
        context.compile(&**isa, &mut ControlPlane::default()).ok()?;
        let code = context.compiled_code()?;
        let start = made.bytes.len().next_multiple_of(ALIGN);
        made.bytes.resize(start, 0);
        made.bytes.extend_from_slice(code.code_buffer());
        made.functions.insert(at, start);
        if let Some(text) = &code.vcode {
            made.text.push_str(&format!("function at instruction {at}:\n{text}\n"));
        }
        let names = context.func.params.user_named_funcs();
        for reloc in code.buffer.relocs() {
            let cranelift_codegen::FinalizedRelocTarget::ExternalName(ExternalName::User(name)) =
                reloc.target
            else {
                return None;
            };
            let target = names.get(name)?.index as usize;
            made.calls.push((reloc.kind, start + reloc.offset as usize, target, reloc.addend));
        }
        Some(())
    }
}

impl Made {
    /// Fills in the distances of calls. `None` for a distance that no call has room for.
    fn link(&mut self) -> Option<()> {
        for &(kind, at, target, addend) in &self.calls {
            let target = *self.functions.get(&target)? as i64;
            let distance = target + addend - at as i64;
            let field = self.bytes.get_mut(at..)?.first_chunk_mut::<4>()?;
            match kind {
                Reloc::X86CallPCRel4 => *field = i32::try_from(distance).ok()?.to_le_bytes(),
                Reloc::Arm64Call => {
                    let words = distance / 4;
                    let fits = (-(1 << 25)..1 << 25).contains(&words) && distance % 4 == 0;
                    let insn = u32::from_le_bytes(*field) | words as u32 & 0x03ff_ffff;
                    *field = fits.then_some(insn)?.to_le_bytes();
                }
                _ => return None,
            }
        }
        Some(())
    }
}
