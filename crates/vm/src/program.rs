//! A program that can run, from any number of threads.

mod error;
mod forms;
mod profile;
#[cfg(test)]
mod tests;

pub use error::ProgramError;
pub use profile::Profile;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bpfarray::{Map, MapRef, ProgramObject};
use bpfarray_core::btf::Btf;
use bpfarray_core::insn::{Insn, pseudo};
use bpfarray_core::map::Kind;
use bpfarray_core::map::prog_array::Owner;

use crate::context::Context;
use crate::digest::digest;
use crate::elf::ProgramCode;
use crate::engine::{Accesses, Engine};
use crate::fault::{Fault, FaultKind};
use crate::helper::HelperSet;
use crate::interp::{self, DEFAULT_FUEL, Executable, run};
use crate::jit::{self, Compiled};
use crate::loaded::LoadOptions;
use crate::prog_type::{AttachType, ProgType};
use crate::verify::{Environment, Fact, IterAccess, LogLevel, Refusal, Safety, globals, verify};
use crate::xlate::{Xlated, xlate};

/// A place in a program's source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceLine {
    /// Name of the file, as the compiler was given it.
    pub file: String,
    /// Line number, from 1.
    pub line: u32,
    /// The line.
    pub text: String,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text.trim())
    }
}

/// How a run ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The program's r0.
    pub r0: u64,
}

impl Outcome {
    /// The low half of r0: what the kernel takes as the result.
    pub const fn retval(self) -> u32 {
        self.r0 as u32
    }
}

/// A program that can run.
///
/// ```
/// use bpfarray_core::insn::{Insn, Reg, alu};
/// use bpfarray_vm::{Context, ProgType, Program};
/// let insns = [Insn::mov64_imm(Reg::R0, 6), Insn::alu64_imm(alu::MUL, Reg::R0, 7), Insn::exit()];
/// let program = Program::from_insns(ProgType::SYSCALL, &insns, &[])?;
/// let mut context = Context::new(ProgType::SYSCALL, &[], None)?;
/// assert_eq!(program.run(&mut context)?.retval(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// A program may be run from any number of threads. Each run enters a lane, of which there is one for each
/// possible CPU, so that no more programs run at the same time; others wait. A helper of the host runs in
/// its program's lane: while it waits for another thread, that one must not need a lane. A clone is
/// another handle to the same program.
///
/// Machine code is made when it is needed first: by the first run, by whoever looks at it, as
/// [`Program::engine`] does, or when the program is loaded if tail calls may lead to it or start from it. That takes about as long as
/// verifying the program. Once it has executed some thousand times as many instructions as it has, whoever runs it next makes
/// better code, which takes several times as long; others go on meanwhile. [`Program::optimise`] does that at a time of its caller's
/// choice, and for who runs a program once, but for long. A helper that runs a hot program makes
/// its code in the middle of the run that called it. A timer goes on with the code that started it.
#[derive(Clone)]
pub struct Program(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    id: u32,
    name: String,
    hash: [u8; 32],
    /// But for whether it has machine code.
    owner: Owner,
    maps: Vec<MapRef>,
    helpers: Arc<HelperSet>,
    xlated: Xlated,
    /// The engine that was asked for.
    engine: Engine,
    /// How many instructions a run may take, about.
    fuel: u64,
    /// Made from the fields above when it is first needed.
    first: OnceLock<Arc<Executable>>,
    /// The same with the best machine code there can be, once that is worth its while.
    best: OnceLock<Arc<Executable>>,
    /// For each instruction, as loaded, its source line.
    lines: Vec<(usize, SourceLine)>,
    log: String,
    max_ctx_offset: usize,
    iter_access: IterAccess,
}

impl Program {
    /// A program from its instructions, with Linux's helpers.
    ///
    /// Maps are referred to by their index in `maps` (`pseudo::MAP_IDX`, `pseudo::MAP_IDX_VALUE`).
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Exclusive`], [`ProgramError::Owner`],
    /// [`ProgramError::Xlate`].
    pub fn from_insns(
        prog_type: ProgType,
        insns: &[Insn],
        maps: &[Map],
    ) -> Result<Self, ProgramError> {
        Self::with_helpers(prog_type, insns, maps, &Arc::new(HelperSet::linux()))
    }

    /// As [`Program::from_insns`], with the helpers of a host.
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Exclusive`], [`ProgramError::Owner`],
    /// [`ProgramError::Xlate`].
    pub fn with_helpers(
        prog_type: ProgType,
        insns: &[Insn],
        maps: &[Map],
        helpers: &Arc<HelperSet>,
    ) -> Result<Self, ProgramError> {
        let code = ProgramCode { insns: insns.to_vec(), ..ProgramCode::default() };
        let maps = maps.iter().map(Map::to_ref).collect();
        let source = Source::of_insns(&code);
        let made = Self::build(source, owner(prog_type, 0), maps, helpers, Mode::default())?;
        made.claiming(insns)
    }

    /// As [`Program::from_insns`], with the helpers and the engine of these options.
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Exclusive`], [`ProgramError::Owner`],
    /// [`ProgramError::Xlate`].
    pub fn with_options(
        prog_type: ProgType,
        insns: &[Insn],
        maps: &[Map],
        options: &LoadOptions,
    ) -> Result<Self, ProgramError> {
        let code = ProgramCode { insns: insns.to_vec(), ..ProgramCode::default() };
        let maps = maps.iter().map(Map::to_ref).collect();
        let source = Source::of_insns(&code);
        let helpers = Arc::new(options.helpers.clone());
        let made = Self::build(source, owner(prog_type, 0), maps, &helpers, Mode::of(options))?;
        made.claiming(insns)
    }

    pub(crate) fn build(
        source: Source<'_>,
        owner: Owner,
        maps: Vec<MapRef>,
        helpers: &Arc<HelperSet>,
        mode: Mode,
    ) -> Result<Self, ProgramError> {
        static LAST_ID: AtomicU32 = AtomicU32::new(0);
        let Source { name, code, btf, gpl_compatible, sleepable, hash } = source;
        let program = || name.to_owned();
        let lines = source_lines(code, btf);
        let prog_type = ProgType(owner.prog_type);
        let environment = Environment {
            attach_type: AttachType(owner.expected_attach_type),
            // Programs for system calls are nothing else.
            sleepable: sleepable || prog_type == ProgType::SYSCALL,
            gpl_compatible,
            strict: mode.strict,
            log: mode.log,
            globals: globals(code, btf, prog_type),
            lines: &lines,
            ..Environment::new(prog_type, &maps, helpers)
        };
        let verified = verify(code.insns.clone(), &environment).map_err(|refusal| {
            let Refusal { error, log } = refusal;
            let line = line_of(&lines, error.insn).cloned().map(Box::new);
            ProgramError::Verify { program: program(), error: Box::new(error), line, log }
        })?;
        let hash = hash.unwrap_or_else(|| digest(&code.insns));
        if let Some(map) = maps_of(&code.insns, &maps).find(|map| !map.may_be_used_by(&hash)) {
            let (program, map) = (program(), map.name().to_owned());
            return Err(ProgramError::Exclusive { program, map });
        }
        let xlated = xlate(&verified, &maps)
            .map_err(|error| ProgramError::Xlate { program: program(), error })?;
        let reached = |fact: &Fact| match fact {
            Fact::Ctx(access) => Some(access.native_off + access.native_size),
            _ => None,
        };
        let max_ctx_offset = verified.facts.iter().filter_map(reached).max().unwrap_or(0);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let made = Self(Arc::new(Inner {
            id,
            name: name.to_owned(),
            hash,
            owner,
            maps,
            helpers: Arc::clone(helpers),
            xlated,
            engine: mode.engine,
            fuel: DEFAULT_FUEL,
            first: OnceLock::new(),
            best: OnceLock::new(),
            lines,
            log: verified.log,
            max_ctx_offset,
            iter_access: verified.iter_access,
        }));
        Ok(made)
    }

    /// Makes the program the owner of each PROG_ARRAY that its instructions refer to, or finds it unlike the owner there is.
    ///
    /// # Kernel
    /// `bpf_check_tail_call`
    pub(crate) fn claiming(self, insns: &[Insn]) -> Result<Self, ProgramError> {
        let maps = maps_of(insns, &self.0.maps);
        for map in maps.filter(|map| map.layout().kind() == Kind::ProgArray) {
            map.claim_owner(&self.owner()).map_err(|error| {
                let (program, map) = (self.name().to_owned(), map.name().to_owned());
                ProgramError::Owner { program, map, error }
            })?;
        }
        Ok(self)
    }

    /// What runs. Whoever asks first makes it.
    #[inline]
    pub(crate) fn executable(&self) -> &Arc<Executable> {
        match self.0.best.get() {
            Some(best) => best,
            None => self.0.early(),
        }
    }

    /// What runs after a tail call. No better code is made in the middle of a run, which others may wait for: the context is told.
    pub(crate) fn executable_in_run(&self, context: &mut Context) -> &Arc<Executable> {
        if let Some(best) = self.0.best.get() {
            return best;
        }
        let first = self.0.first();
        if first.compiled.as_deref().is_some_and(Compiled::is_hot) {
            *context.hot() = Some(self.clone());
        }
        first
    }

    /// The program's name; empty for one made from instructions.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The program's type.
    pub fn prog_type(&self) -> ProgType {
        ProgType(self.0.owner.prog_type)
    }

    /// The program's id: positive, and never used again in this process.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// SHA-256 of the program's instructions, without what tells its maps apart: what
    /// [`MapAttr::excl_prog_hash`](bpfarray::attr::MapAttr::excl_prog_hash) names. The first 8 bytes are the tag that the kernel shows
    /// for the same program when a loader of objects has loaded it.
    ///
    /// # Kernel
    /// `bpf_prog_calc_tag`
    #[doc(alias = "bpf_prog_calc_tag")]
    pub fn hash(&self) -> [u8; 32] {
        self.0.hash
    }

    /// The maps the program can refer to. It holds them, but is no user of them: when the last handle to a
    /// PROG_ARRAY is dropped, its slots are emptied.
    pub fn maps(&self) -> &[MapRef] {
        &self.0.maps
    }

    /// The instructions that run, as the kernel would show them: maps by their id.
    ///
    /// # Kernel
    /// `xlated_prog_insns` of `struct bpf_prog_info`
    #[doc(alias = "xlated_prog_insns")]
    pub fn xlated(&self) -> Vec<Insn> {
        self.0.xlated.dump(&self.0.maps)
    }

    /// What the verifier wrote down, as [`LoadOptions::log`] asked for.
    ///
    /// # Kernel
    /// `log_buf` of `BPF_PROG_LOAD`
    pub fn verifier_log(&self) -> &str {
        &self.0.log
    }

    /// What executes the program: what was asked for, or the interpreter where no machine code could be made.
    pub fn engine(&self) -> Engine {
        self.0.first().engine()
    }

    /// The machine code that the program has from its first run on, also where better code runs by now; `None` in the interpreter.
    ///
    /// # Kernel
    /// `jited_prog_insns` of `struct bpf_prog_info`
    #[doc(alias = "jited_prog_insns")]
    pub fn jited(&self) -> Option<&[u8]> {
        self.0.first().compiled.as_deref().map(|compiled| compiled.bytes())
    }

    /// The best machine code for the program, which runs from now on: what a program gets by itself when it has run for a while.
    /// `None` in the interpreter.
    ///
    /// ```
    /// use bpfarray_core::insn::{Insn, Reg};
    /// use bpfarray_vm::{Engine, ProgType, Program};
    /// let insns = [Insn::mov64_imm(Reg::R0, 0), Insn::exit()];
    /// let program = Program::from_insns(ProgType::SYSCALL, &insns, &[])?;
    /// assert_eq!(program.optimise().is_some(), Engine::Jit.is_available());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn optimise(&self) -> Option<&[u8]> {
        self.0.best().compiled.as_deref().map(|compiled| compiled.bytes())
    }

    /// Makes the machine code that so many runs are served with best, so that none of them makes it.
    pub fn prepare(&self, runs: u64) {
        /// About where better code is worth its while.
        const MANY: u64 = 1000;
        if runs < MANY {
            self.0.first()
        } else {
            self.0.best()
        };
    }

    /// The best machine code as text, function by function, which runs from now on; `None` in the interpreter.
    pub fn disassemble(&self) -> Option<String> {
        let executable = self.0.best();
        executable.compiled.as_ref()?;
        let proven = |at| self.0.xlated.safety(at) == Safety::Proven;
        let insns = self.0.xlated.link(&self.0.maps);
        jit::disassemble(&insns, &executable.code, &executable.environment, &proven)
    }

    /// How many loads, stores and atomic operations the best machine code has that need no check; and that have one. `None`
    /// in the interpreter, which checks all of them.
    pub fn accesses(&self) -> Option<Accesses> {
        self.0.best().compiled.as_deref().map(|compiled| compiled.accesses())
    }

    /// Whether the memory access of instruction `insn` of [`Program::xlated`] was proved to be allowed in every run.
    pub fn is_proven(&self, insn: usize) -> bool {
        self.0.xlated.safety(insn) == Safety::Proven
    }

    /// The source line that instruction `insn` of [`Program::xlated`] comes from.
    pub fn source_line(&self, insn: usize) -> Option<&SourceLine> {
        line_of(&self.0.lines, self.0.xlated.origin(insn))
    }

    /// The instruction, as loaded, that instruction `insn` of [`Program::xlated`] comes from.
    pub fn origin(&self, insn: usize) -> usize {
        self.0.xlated.origin(insn)
    }

    /// How many bytes of its context the program reaches, as far as that is known before it runs.
    ///
    /// # Kernel
    /// `max_ctx_offset` of `struct bpf_prog_aux`
    pub fn max_ctx_offset(&self) -> usize {
        self.0.max_ctx_offset
    }

    /// The same program under another id, such as that under which a directory of programs lists it.
    #[must_use]
    pub fn with_id(mut self, id: u32) -> Self {
        Arc::make_mut(&mut self.0).id = id;
        self
    }

    /// The same program with another bound on a run: it ends after about `fuel` instructions.
    #[must_use]
    pub fn with_fuel(mut self, fuel: u64) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.fuel = fuel;
        for made in [&mut inner.first, &mut inner.best] {
            if let Some(executable) = made.take() {
                let environment = executable.environment.clone().with_fuel(fuel);
                let executable = Executable { environment, ..Executable::clone(&executable) };
                *made = OnceLock::from(Arc::new(executable));
            }
        }
        self
    }

    /// The same program, which may touch the values of one more map, whose address it is given. Its code is its own: what
    /// is sure to be one of these values is nothing to others.
    pub(crate) fn with_map(mut self, map: MapRef) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.maps.push(map);
        (inner.first, inner.best) = (OnceLock::new(), OnceLock::new());
        self
    }

    /// What the program needs of the elements of a map that it is called for.
    pub(crate) fn iter_access(&self) -> IterAccess {
        self.0.iter_access
    }

    /// How the program expects to be attached, or 0.
    pub(crate) fn expected_attach_type(&self) -> AttachType {
        AttachType(self.0.owner.expected_attach_type)
    }

    /// Runs the program once.
    ///
    /// # Errors
    /// [`FaultKind::ContextType`] for a context of another type than the program's. A [`Fault`] ends the run where the
    /// program does what it may not, or has used up its fuel. What it had
    /// done to maps, packet and context stays done.
    ///
    /// # Kernel
    /// `bpf_prog_run`
    #[doc(alias = "bpf_prog_run")]
    pub fn run(&self, context: &mut Context) -> Result<Outcome, Fault> {
        self.check_context(context)?;
        let result = run(self.executable(), context);
        if let Some(hot) = context.hot().take() {
            hot.0.early();
        }
        Ok(Outcome { r0: result.map_err(|fault| *fault)? })
    }

    /// Runs the program once in the interpreter, and adds to a profile how often it executes each of its instructions.
    /// Those of programs that it tail-calls are not counted.
    ///
    /// ```
    /// use bpfarray_core::insn::{Insn, Reg, alu, jmp};
    /// use bpfarray_vm::{Context, ProgType, Profile, Program};
    /// let insns = [
    ///     Insn::mov64_imm(Reg::R0, 3),
    ///     Insn::alu64_imm(alu::SUB, Reg::R0, 1),
    ///     Insn::jmp_imm(jmp::JNE, Reg::R0, 0, -2),
    ///     Insn::exit(),
    /// ];
    /// let program = Program::from_insns(ProgType::SYSCALL, &insns, &[])?;
    /// let mut profile = Profile::default();
    /// program.profile(&mut Context::new(ProgType::SYSCALL, &[], None)?, &mut profile)?;
    /// assert_eq!([0, 1, 3].map(|insn| profile.count(insn)), [1, 3, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Program::run`].
    pub fn profile(&self, context: &mut Context, profile: &mut Profile) -> Result<Outcome, Fault> {
        self.check_context(context)?;
        profile.counts.resize(self.0.xlated.len(), 0);
        let r0 = interp::profile(self.executable(), context, &mut profile.counts)
            .map_err(|fault| *fault)?;
        Ok(Outcome { r0 })
    }

    #[inline]
    fn check_context(&self, context: &Context) -> Result<(), Fault> {
        #[cold]
        fn refused(prog_type: ProgType) -> Fault {
            Fault { program: None, insn: 0, kind: FaultKind::ContextType(prog_type) }
        }
        let prog_type = self.prog_type();
        if context.is_for(prog_type) { Ok(()) } else { Err(refused(prog_type)) }
    }
}

impl ProgramObject for Program {
    fn id(&self) -> u32 {
        self.0.id
    }

    fn owner(&self) -> Owner {
        Owner { jited: self.engine() == Engine::Jit, ..self.0.owner }
    }
}

/// What a program is made from.
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) code: &'a ProgramCode,
    pub(crate) btf: Option<&'a Btf>,
    pub(crate) gpl_compatible: bool,
    pub(crate) sleepable: bool,
    pub(crate) hash: Option<[u8; 32]>,
}

impl<'a> Source<'a> {
    /// Instructions alone, which may call every helper.
    const fn of_insns(code: &'a ProgramCode) -> Self {
        Self { name: "", code, btf: None, gpl_compatible: true, sleepable: false, hash: None }
    }
}

/// How a program is made.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Mode {
    pub(crate) engine: Engine,
    pub(crate) strict: bool,
    pub(crate) log: LogLevel,
}

impl Mode {
    pub(crate) const fn of(options: &LoadOptions) -> Self {
        Self { engine: options.engine, strict: options.strict, log: options.log }
    }
}

/// What programs that share a PROG_ARRAY have in common with one of this type.
pub(crate) fn owner(prog_type: ProgType, expected_attach_type: u32) -> Owner {
    Owner { prog_type: prog_type.0, jited: false, xdp_has_frags: false, expected_attach_type }
}

/// The maps that instructions refer to, as often as they do.
fn maps_of<'a>(insns: &[Insn], maps: &'a [MapRef]) -> impl Iterator<Item = &'a MapRef> {
    let is_map = |insn: &&Insn| {
        insn.is_ld_imm64()
            && matches!(insn.src.index() as u8, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE)
    };
    insns.iter().filter(is_map).filter_map(|insn| maps.get(insn.imm as usize))
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({:?}, {})", self.name(), self.prog_type())
    }
}

fn source_lines(code: &ProgramCode, btf: Option<&Btf>) -> Vec<(usize, SourceLine)> {
    let string = |offset| btf.and_then(|btf| btf.string(offset)).unwrap_or_default().to_owned();
    let line = |line: &crate::elf::Line| SourceLine {
        file: string(line.file_name_off),
        line: line.line,
        text: string(line.line_off),
    };
    code.lines.iter().map(|info| (info.insn, line(info))).collect()
}

fn line_of(lines: &[(usize, SourceLine)], insn: usize) -> Option<&SourceLine> {
    let behind = lines.partition_point(|(first, _)| *first <= insn);
    Some(&lines.get(behind.checked_sub(1)?)?.1)
}
