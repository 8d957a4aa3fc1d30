//! Random programs of the kind people write: loops, functions, callbacks, packet accesses, maps of all kinds, offsets that
//! only bounds make safe.
//!
//! An XDP program works on 16 numbers in a map value, whose address stays in r9, with the context in r6 and loop
//! counters in r7 and r8. Every program passes the kernel's verifier, but for the few on whose many paths it gives up.

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, X, alu, atomic, class, jmp, pseudo, size};
use bpfarray_vm::ProgType;

use crate::create::MapCreate;
use crate::programs::Assembled;
use crate::rng::Rng;

/// Numbers that programs work on.
const SLOTS: u32 = 16;
/// Where in each frame 8 numbers are, from r10.
const FRAME: i16 = -96;
/// Where in the frame keys are.
const KEY: i16 = -4;

/// Maps, by their index.
const RESULTS: u64 = 0;
const ARRAY: u64 = 1;
const PERCPU: u64 = 2;
const OUTER: u64 = 3;

const CTX: Reg = Reg::R6;
const COUNTERS: [Reg; 2] = [Reg::R7, Reg::R8];
const VALUE: Reg = Reg::R9;

struct Generator<'r> {
    rng: &'r mut Rng,
    insns: Vec<Insn>,
    /// Calls and addresses of functions, to be pointed at them: instruction and function.
    uses: Vec<(usize, Function)>,
    /// Bytes of a value of the maps, a power of two.
    value_size: u32,
    /// How many branches may still come: each doubles the paths of a verifier.
    branches: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Function {
    /// Of two arguments: the address of 8 numbers, and a number.
    Mix,
    /// Called back with an index and the address of a number.
    Callback,
}

/// The program of a seed.
pub fn random(seed: u64) -> Assembled {
    let rng = &mut Rng::new(seed);
    let value_size = rng.pick(&[16, 32, 64]);
    let packet = rng.within(14, 64) as usize;
    let packet = rng.bytes(packet);
    let mut this = Generator { rng, insns: Vec::new(), uses: Vec::new(), value_size, branches: 8 };
    this.main();
    let functions = [Function::Mix, Function::Callback].map(|function| {
        let at = this.insns.len();
        if this.uses.iter().any(|(_, used)| *used == function) {
            this.function(function);
        }
        (function, at)
    });
    for (at, function) in this.uses {
        let target = functions.iter().find(|(known, _)| *known == function);
        this.insns[at].imm = target.map_or(0, |(_, target)| *target as i32 - at as i32 - 1);
    }
    let map = |map_type, n| MapCreate::array(map_type, value_size, n);
    let maps = vec![
        MapCreate::array(MapCreate::ARRAY, SLOTS * 8, 1),
        map(MapCreate::ARRAY, 12),
        map(MapCreate::PERCPU_ARRAY, 12),
        MapCreate::array(MapCreate::ARRAY_OF_MAPS, 4, 2),
    ];
    let inner = Some((OUTER as usize, ARRAY as usize));
    Assembled { prog_type: ProgType::XDP, insns: this.insns, maps, inner, packet }
}

impl Generator<'_> {
    fn emit(&mut self, insns: impl IntoIterator<Item = Insn>) {
        self.insns.extend(insns);
    }

    fn main(&mut self) {
        self.emit([Insn::mov64_reg(CTX, Reg::R1)]);
        self.emit(Insn::ld_imm64(VALUE, Reg::new(pseudo::MAP_IDX_VALUE), 0));
        const { assert!(RESULTS == 0) };
        for slot in 0..SLOTS {
            let number = self.rng.next_u64() >> self.rng.below(64);
            self.emit(Insn::ld_imm64(Reg::R1, Reg::R0, number));
            self.emit([Insn::stx_mem(size::DW, VALUE, Reg::R1, 8 * slot as i16)]);
        }
        self.fill_frame(VALUE);
        let statements = self.rng.within(3, 14);
        self.block(statements, 0);
        self.load(Reg::R0);
        self.emit([Insn::alu64_imm(alu::AND, Reg::R0, 3), Insn::exit()]);
    }

    /// Copies 8 numbers into the frame.
    fn fill_frame(&mut self, from: Reg) {
        for slot in 0..8 {
            self.emit([
                Insn::ldx_mem(size::DW, Reg::R1, from, 8 * slot),
                Insn::stx_mem(size::DW, Reg::R10, Reg::R1, FRAME + 8 * slot),
            ]);
        }
    }

    fn slot(&mut self) -> i16 {
        8 * self.rng.below(SLOTS) as i16
    }

    /// Loads one of the numbers.
    fn load(&mut self, reg: Reg) {
        let slot = self.slot();
        self.emit([Insn::ldx_mem(size::DW, reg, VALUE, slot)]);
    }

    /// Stores a register as one of the numbers.
    fn store(&mut self, reg: Reg) {
        let slot = self.slot();
        self.emit([Insn::stx_mem(size::DW, VALUE, reg, slot)]);
    }

    /// A jump over what `body` emits.
    fn skip_if(&mut self, jump: Insn, body: impl FnOnce(&mut Self)) {
        let at = self.insns.len();
        self.emit([jump]);
        body(self);
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
    }

    fn block(&mut self, statements: u32, depth: usize) {
        for _ in 0..statements {
            match self.rng.below(14) {
                0 | 1 => self.arithmetic(),
                2 | 3 if self.branches > 0 => self.branch(depth),
                4 if depth < COUNTERS.len() => self.repeat(depth),
                5 | 6 => self.packet(),
                7 => self.element(ARRAY),
                8 => self.element(PERCPU),
                9 => self.element(OUTER),
                10 => self.call(),
                11 => self.call_back(),
                12 => self.frame(),
                _ => self.helper(),
            }
        }
    }

    fn arithmetic(&mut self) {
        let ops = [alu::ADD, alu::SUB, alu::MUL, alu::DIV, alu::OR, alu::AND, alu::XOR, alu::MOD];
        self.load(Reg::R1);
        self.load(Reg::R2);
        let class = self.rng.pick(&[class::ALU, class::ALU64]);
        let op = self.rng.pick(&ops);
        self.emit([Insn::new(class | op | X, Reg::R1, Reg::R2, 0, 0)]);
        let shift = self.rng.below(32) as i32;
        let shift_op = self.rng.pick(&[alu::LSH, alu::RSH, alu::ARSH]);
        self.emit([Insn::new(class | shift_op, Reg::R1, Reg::R0, 0, shift)]);
        self.store(Reg::R1);
    }

    fn branch(&mut self, depth: usize) {
        self.branches -= 1;
        self.load(Reg::R1);
        let class = self.rng.pick(&[class::JMP, class::JMP32]);
        let op = self.rng.pick(&[jmp::JEQ, jmp::JGT, jmp::JSET, jmp::JSGT, jmp::JLE, jmp::JSLT]);
        let imm = self.rng.next_u64() as i32 >> self.rng.below(32);
        let statements = self.rng.within(1, 3);
        let otherwise = self.rng.percent(50);
        self.skip_if(Insn::new(class | op, Reg::R1, Reg::R0, 0, imm), |this| {
            this.block(statements, depth);
            if otherwise {
                this.emit([Insn::ja(0)]);
            }
        });
        if otherwise {
            // What jumped goes on behind the jump that ended the other block.
            let at = self.insns.len() - 1;
            self.block(1, depth);
            self.insns[at].off = (self.insns.len() - at - 1) as i16;
        }
    }

    /// A loop with a counter of its own.
    fn repeat(&mut self, depth: usize) {
        let counter = COUNTERS[depth];
        let turns = self.rng.within(1, 6) as i32;
        self.emit([Insn::mov64_imm(counter, 0)]);
        let start = self.insns.len();
        let statements = self.rng.within(1, 2);
        self.block(statements, depth + 1);
        self.load(Reg::R1);
        self.emit([Insn::alu64_reg(alu::ADD, Reg::R1, counter)]);
        self.store(Reg::R1);
        self.emit([Insn::alu64_imm(alu::ADD, counter, 1)]);
        let back = start as i64 - self.insns.len() as i64 - 1;
        self.emit([Insn::jmp_imm(jmp::JLT, counter, turns, back as i16)]);
    }

    /// An access to the packet at an offset that is known by its bounds only.
    fn packet(&mut self) {
        let (size, bytes) =
            self.rng.pick(&[(size::B, 1), (size::H, 2), (size::W, 4), (size::DW, 8)]);
        let mask = self.rng.pick(&[0, 7, 31, 63]);
        let write = self.rng.percent(40);
        self.load(Reg::R2);
        self.emit([
            Insn::alu64_imm(alu::AND, Reg::R2, mask),
            Insn::ldx_mem(size::W, Reg::R3, CTX, 0),
            Insn::ldx_mem(size::W, Reg::R4, CTX, 4),
            Insn::alu64_reg(alu::ADD, Reg::R3, Reg::R2),
            Insn::mov64_reg(Reg::R5, Reg::R3),
            Insn::alu64_imm(alu::ADD, Reg::R5, bytes),
        ]);
        let past_end = Insn::new(class::JMP | jmp::JGT | X, Reg::R5, Reg::R4, 0, 0);
        self.skip_if(past_end, |this| {
            if write {
                this.load(Reg::R1);
                this.emit([Insn::stx_mem(size, Reg::R3, Reg::R1, 0)]);
            } else {
                this.emit([Insn::ldx_mem(size, Reg::R1, Reg::R3, 0)]);
                this.store(Reg::R1);
            }
        });
    }

    /// Puts a key below `mask + 1` into the frame and looks it up in the map in r1.
    fn look_up(&mut self, mask: i32) {
        self.load(Reg::R2);
        self.emit([
            Insn::alu64_imm(alu::AND, Reg::R2, mask),
            Insn::stx_mem(size::W, Reg::R10, Reg::R2, KEY),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, KEY.into()),
            Insn::call(helper_id::MAP_LOOKUP_ELEM),
        ]);
    }

    /// Works on an element at an offset that is known by its bounds only, if there is the element.
    fn element(&mut self, map: u64) {
        let is_null = Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0);
        self.emit(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), map));
        if map == OUTER {
            self.look_up(1);
            self.skip_if(is_null, |this| {
                this.emit([Insn::mov64_reg(Reg::R1, Reg::R0)]);
                this.look_up(15);
                this.skip_if(is_null, Self::change_element);
            });
        } else {
            // A key that is known spares the test.
            let mask = self.rng.pick(&[0, 7, 15]);
            self.look_up(mask);
            self.skip_if(is_null, Self::change_element);
        }
    }

    fn change_element(&mut self) {
        self.load(Reg::R2);
        self.emit([
            Insn::alu64_imm(alu::AND, Reg::R2, self.value_size as i32 - 8),
            Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R2),
        ]);
        self.load(Reg::R1);
        let op = self.rng.pick(&[
            atomic::ADD,
            atomic::XOR | atomic::FETCH,
            atomic::ADD | atomic::FETCH,
            atomic::XCHG,
        ]);
        if self.rng.percent(40) {
            self.emit([Insn::atomic(size::DW, op, Reg::R0, Reg::R1, 0)]);
        } else {
            let narrow = self.rng.pick(&[size::B, size::H, size::W, size::DW]);
            self.emit([
                Insn::ldx_mem(narrow, Reg::R2, Reg::R0, 0),
                Insn::alu64_reg(alu::ADD, Reg::R1, Reg::R2),
                Insn::stx_mem(size::DW, Reg::R0, Reg::R1, 0),
            ]);
        }
        self.store(Reg::R1);
    }

    /// Calls a function with the address of numbers on the stack, or in the map value.
    fn call(&mut self) {
        if self.rng.percent(50) {
            self.emit([
                Insn::mov64_reg(Reg::R1, Reg::R10),
                Insn::alu64_imm(alu::ADD, Reg::R1, FRAME.into()),
            ]);
        } else {
            self.emit([Insn::mov64_reg(Reg::R1, VALUE)]);
        }
        self.load(Reg::R2);
        self.uses.push((self.insns.len(), Function::Mix));
        let call = Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 0);
        self.emit([call]);
        self.store(Reg::R0);
    }

    /// Has a function called back, which changes a number in this frame.
    fn call_back(&mut self) {
        // Linux 6.18 removes a function that is never called back, and then misses it.
        let times = self.rng.within(1, 5) as i32;
        self.emit([Insn::mov64_imm(Reg::R1, times)]);
        self.uses.push((self.insns.len(), Function::Callback));
        self.emit(Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 0));
        self.emit([
            Insn::mov64_reg(Reg::R3, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R3, FRAME.into()),
            Insn::mov64_imm(Reg::R4, 0),
            Insn::call(helper_id::LOOP),
        ]);
        self.store(Reg::R0);
        self.emit([Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, FRAME)]);
        self.store(Reg::R1);
    }

    /// Accesses of all widths to the frame, some at an offset that is known by its bounds only.
    fn frame(&mut self) {
        let narrow = self.rng.pick(&[(size::B, 1), (size::H, 2), (size::W, 4), (size::DW, 8)]);
        let at = FRAME + narrow.1 * self.rng.below(64 / narrow.1 as u32) as i16;
        self.load(Reg::R1);
        match self.rng.below(3) {
            0 => self.emit([Insn::stx_mem(narrow.0, Reg::R10, Reg::R1, at)]),
            1 => {
                self.emit([Insn::ldx_mem(narrow.0, Reg::R1, Reg::R10, at)]);
                self.store(Reg::R1);
            }
            _ => {
                let write = self.rng.percent(40);
                self.emit([
                    Insn::alu64_imm(alu::AND, Reg::R1, 56),
                    Insn::mov64_reg(Reg::R2, Reg::R10),
                    Insn::alu64_reg(alu::ADD, Reg::R2, Reg::R1),
                ]);
                if write {
                    self.load(Reg::R3);
                    self.emit([Insn::stx_mem(size::DW, Reg::R2, Reg::R3, FRAME)]);
                } else {
                    self.emit([Insn::ldx_mem(size::DW, Reg::R3, Reg::R2, FRAME)]);
                    self.store(Reg::R3);
                }
            }
        }
    }

    /// A helper that changes a map or the packet.
    fn helper(&mut self) {
        if self.rng.percent(30) {
            let delta = self.rng.pick(&[-4, -2, 2, 4]);
            self.emit([
                Insn::mov64_reg(Reg::R1, CTX),
                Insn::mov64_imm(Reg::R2, delta),
                Insn::call(helper_id::XDP_ADJUST_HEAD),
            ]);
        } else {
            let map = self.rng.pick(&[ARRAY, PERCPU]);
            let key = self.rng.below(14) as i32;
            let flags = self.rng.below(3) as i32;
            self.emit([Insn::st_mem(size::W, Reg::R10, KEY, key)]);
            self.emit(Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), map));
            self.emit([
                Insn::mov64_reg(Reg::R2, Reg::R10),
                Insn::alu64_imm(alu::ADD, Reg::R2, KEY.into()),
                Insn::mov64_reg(Reg::R3, Reg::R10),
                Insn::alu64_imm(alu::ADD, Reg::R3, FRAME.into()),
                Insn::mov64_imm(Reg::R4, flags),
                Insn::call(helper_id::MAP_UPDATE_ELEM),
            ]);
        }
        self.store(Reg::R0);
    }

    fn function(&mut self, function: Function) {
        match function {
            Function::Mix => {
                self.emit([Insn::mov64_reg(CTX, Reg::R1), Insn::mov64_reg(Reg::R7, Reg::R2)]);
                self.fill_frame(CTX);
                // Sums up what a walk through the numbers comes by, and leaves a trace.
                self.emit([Insn::mov64_imm(Reg::R8, 0), Insn::mov64_imm(Reg::R0, 0)]);
                let start = self.insns.len();
                self.emit([
                    Insn::alu64_imm(alu::AND, Reg::R7, 7),
                    Insn::alu64_imm(alu::LSH, Reg::R7, 3),
                    Insn::mov64_reg(Reg::R1, CTX),
                    Insn::alu64_reg(alu::ADD, Reg::R1, Reg::R7),
                    Insn::ldx_mem(size::DW, Reg::R7, Reg::R1, 0),
                    Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R7),
                    Insn::stx_mem(size::W, Reg::R1, Reg::R0, 0),
                    Insn::alu64_imm(alu::ADD, Reg::R8, 1),
                ]);
                let back = start as i64 - self.insns.len() as i64 - 1;
                self.emit([
                    Insn::jmp_imm(jmp::JNE, Reg::R8, 4, back as i16),
                    Insn::ldx_mem(size::DW, Reg::R1, Reg::R10, FRAME + 16),
                    Insn::alu64_reg(alu::XOR, Reg::R0, Reg::R1),
                    Insn::exit(),
                ]);
            }
            Function::Callback => self.emit([
                Insn::ldx_mem(size::DW, Reg::R3, Reg::R2, 0),
                Insn::alu64_imm(alu::MUL, Reg::R3, 5),
                Insn::alu64_reg(alu::ADD, Reg::R3, Reg::R1),
                Insn::stx_mem(size::DW, Reg::R2, Reg::R3, 0),
                Insn::alu64_imm(alu::AND, Reg::R3, 1),
                Insn::mov64_reg(Reg::R0, Reg::R3),
                Insn::exit(),
            ]),
        }
    }
}
