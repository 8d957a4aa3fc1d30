//! Short programs that use every kind of pointer next to the end of what it points to, with a few mistakes.
//!
//! Each statement is right unless a mistake is made in it: a bound that is one off, a test that is missing,
//! an address of something else. A program without mistakes passes the kernel's verifier.

use bpfarray_core::insn::{Insn, Reg, X, class, jmp, pseudo, size};
use bpfarray_vm::ProgType;

use crate::create::MapCreate;
use crate::programs::Assembled;
use crate::rng::Rng;

/// Maps, by their index.
pub(super) const NUMBERS: u64 = 0;
pub(super) const ARRAY: u64 = 1;
pub(super) const PERCPU: u64 = 2;
pub(super) const INNER: u64 = 3;
pub(super) const OUTER: u64 = 4;
pub(super) const READ_ONLY: u64 = 5;
pub(super) const WRITE_ONLY: u64 = 6;
pub(super) const LOCKED: u64 = 7;
pub(super) const PROGRAMS: u64 = 8;

/// Bytes of the maps' values.
pub(super) const VALUE_SIZES: [i16; 9] = [128, 20, 12, 24, 4, 16, 16, 16, 4];
/// Elements of the maps that have several.
pub(super) const ENTRIES: u32 = 3;

/// The context.
pub(super) const CTX: Reg = Reg::R6;
/// The numbers in map [`NUMBERS`].
pub(super) const NUMBER: Reg = Reg::R9;
/// Where keys are in the frame.
pub(super) const KEY: i16 = -4;
/// Where in the frame some numbers are: from here to `FRAME + FRAME_LEN`.
pub(super) const FRAME: i16 = -64;
pub(super) const FRAME_LEN: i16 = 32;

const MMAPABLE: u32 = 0x400;
const RDONLY_PROG: u32 = 0x80;
const WRONLY_PROG: u32 = 0x100;

/// A function to be put behind the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    /// Called with the address of a number and a number; calls another one as often as the depth says.
    Called { depth: u8 },
    /// Called back by `bpf_loop`.
    Turn,
    /// Called back by `bpf_for_each_map_elem`.
    Element,
}

/// A program in the making.
pub(super) struct Generator<'r> {
    pub(super) rng: &'r mut Rng,
    pub(super) prog_type: ProgType,
    pub(super) insns: Vec<Insn>,
    uses: Vec<(usize, Function)>,
    /// How many mistakes may still be made.
    mistakes: u32,
}

/// The maps of every program.
pub(super) fn maps() -> (Vec<MapCreate>, Option<(usize, usize)>) {
    let map = |map_type, index: u64, entries, map_flags| MapCreate {
        map_flags,
        ..MapCreate::array(map_type, VALUE_SIZES[index as usize] as u32, entries)
    };
    let array = |index, entries, flags| map(MapCreate::ARRAY, index, entries, flags);
    let maps = vec![
        array(NUMBERS, 1, MMAPABLE),
        array(ARRAY, ENTRIES, MMAPABLE),
        map(MapCreate::PERCPU_ARRAY, PERCPU, ENTRIES, 0),
        array(INNER, ENTRIES, 0),
        map(MapCreate::ARRAY_OF_MAPS, OUTER, 2, 0),
        array(READ_ONLY, 1, MMAPABLE | RDONLY_PROG),
        array(WRITE_ONLY, 1, MMAPABLE | WRONLY_PROG),
        MapCreate::typed(MapCreate::ARRAY, "locked", ENTRIES),
        map(MapCreate::PROG_ARRAY, PROGRAMS, 2, 0),
    ];
    (maps, Some((OUTER as usize, INNER as usize)))
}

/// The program of a generator, with up to this many mistakes.
pub(super) fn random(rng: &mut Rng, mistakes: u32) -> Assembled {
    let prog_type = match rng.below(20) {
        0..12 => ProgType::XDP,
        12..15 => ProgType::SCHED_CLS,
        15..17 => ProgType::SOCKET_FILTER,
        17..19 => ProgType::SYSCALL,
        _ => ProgType::RAW_TRACEPOINT,
    };
    let mut this = Generator { rng, prog_type, insns: Vec::new(), uses: Vec::new(), mistakes };
    this.main();
    this.functions();
    let (maps, inner) = maps();
    let has_packet = ![ProgType::SYSCALL, ProgType::RAW_TRACEPOINT].contains(&prog_type);
    let packet = if has_packet { (0..40).collect() } else { Vec::new() };
    Assembled { prog_type, insns: this.insns, maps, inner, packet }
}

impl Generator<'_> {
    /// Whether to make a mistake here.
    pub(super) fn errs(&mut self) -> bool {
        let errs = self.mistakes > 0 && self.rng.percent(12);
        self.mistakes -= u32::from(errs);
        errs
    }

    /// The number that is right, or now and then one near it.
    pub(super) fn near(&mut self, right: i16) -> i16 {
        if !self.errs() {
            return right;
        }
        let by = self.rng.pick(&[-8, -4, -1, 1, 1, 2, 4, 4, 8, 16, 512]);
        right.wrapping_add(by)
    }

    /// The choice that is right, or now and then another one.
    pub(super) fn one_of<T: Copy>(&mut self, right: T, wrong: &[T]) -> T {
        if self.errs() { self.rng.pick(wrong) } else { right }
    }

    pub(super) fn emit(&mut self, insns: impl IntoIterator<Item = Insn>) {
        self.insns.extend(insns);
    }

    pub(super) fn map_address(&mut self, dst: Reg, map: u64) {
        self.emit(Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), map));
    }

    /// A width, and its bytes.
    pub(super) fn width(&mut self) -> (u8, i16) {
        self.rng.pick(&[(size::B, 1), (size::H, 2), (size::W, 4), (size::DW, 8)])
    }

    /// A number that no verifier knows.
    pub(super) fn unknown(&mut self, dst: Reg) {
        let slot = 8 * self.rng.below(16) as i16;
        self.emit([Insn::ldx_mem(size::DW, dst, NUMBER, slot)]);
    }

    /// A jump over what `body` emits; now and then it is missing, or another one.
    pub(super) fn unless(&mut self, jump: Insn, body: impl FnOnce(&mut Self)) {
        let at = self.insns.len();
        let jump = match self.errs() {
            false => jump,
            true => {
                let other = [jmp::JEQ, jmp::JNE, jmp::JLT, jmp::JSGT, jmp::JSLE, jmp::JA];
                let op = self.rng.pick(&other);
                match op {
                    jmp::JA => Insn::ja(0),
                    _ => Insn { code: jump.code & 0x0f | op, ..jump },
                }
            }
        };
        self.emit([jump]);
        body(self);
        if jump != Insn::ja(0) {
            self.insns[at].off = (self.insns.len() - at - 1) as i16;
        }
    }

    /// `dst > src` as a jump whose distance is still to come.
    pub(super) fn if_greater(dst: Reg, src: Reg) -> Insn {
        Insn::new(class::JMP | jmp::JGT | X, dst, src, 0, 0)
    }

    /// The address of a function.
    pub(super) fn function_address(&mut self, dst: Reg, function: Function) {
        self.uses.push((self.insns.len(), function));
        self.emit(Insn::ld_imm64(dst, Reg::new(pseudo::FUNC), 0));
    }

    /// A call of a function.
    pub(super) fn call_function(&mut self, function: Function) {
        self.uses.push((self.insns.len(), function));
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 0);
        self.emit([call]);
    }

    fn main(&mut self) {
        self.emit([Insn::mov64_reg(CTX, Reg::R1)]);
        self.emit(Insn::ld_imm64(NUMBER, Reg::new(pseudo::MAP_IDX_VALUE), NUMBERS));
        for slot in 0..FRAME_LEN / 8 {
            self.emit([Insn::st_mem(size::DW, Reg::R10, FRAME + 8 * slot, i32::from(slot))]);
        }
        for _ in 0..self.rng.within(1, 4) {
            self.statement();
        }
        let result = self.one_of(2, &[-1, 77, 1 << 20]);
        self.emit([Insn::mov64_imm(Reg::R0, result), Insn::exit()]);
    }

    /// Every function that is used, and what those use.
    fn functions(&mut self) {
        let mut done: Vec<(Function, usize)> = Vec::new();
        let mut next = 0;
        while let Some(&(at, function)) = self.uses.get(next) {
            next += 1;
            let known = done.iter().find(|(known, _)| *known == function);
            let target = match known {
                Some((_, target)) => *target,
                None => {
                    let target = self.insns.len();
                    done.push((function, target));
                    self.function(function);
                    target
                }
            };
            self.insns[at].imm = target as i32 - at as i32 - 1;
        }
    }
}
