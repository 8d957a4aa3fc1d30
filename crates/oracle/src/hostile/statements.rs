//! The statements of generated programs.

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, jmp, mode, pseudo, size};
use bpfarray_vm::ProgType;

use super::generate::{
    ARRAY, CTX, ENTRIES, FRAME, FRAME_LEN, Generator, INNER, KEY, LOCKED, NUMBER, NUMBERS, OUTER,
    PERCPU, PROGRAMS, READ_ONLY, VALUE_SIZES, WRITE_ONLY,
};

/// Where `struct locked` has a number behind its lock.
pub(super) const BEHIND_LOCK: i16 = 8;

/// What a statement may do to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
    Any,
}

impl Generator<'_> {
    pub(super) fn statement(&mut self) {
        let has_packet = matches!(self.prog_type, ProgType::XDP | ProgType::SCHED_CLS);
        match self.rng.below(22) {
            0 => self.frame(),
            1 => self.frame_at_unknown(),
            2 | 3 => self.element(),
            4 => self.direct_value(),
            5 => self.inner_element(),
            6..9 if has_packet => self.packet(),
            9 => self.context(),
            10 => self.spilled(),
            11 => self.locked(),
            12 => self.turns(),
            13 => self.each_element(),
            14 => self.call(),
            15 => self.update(),
            16 => self.sized_argument(),
            17 => self.tail_call(),
            18 => self.pointer_arithmetic(),
            19 => self.copy_of_packet(),
            20 => self.repeat(),
            _ => self.clobbered(),
        }
    }

    /// A load, a store or an atomic operation.
    pub(super) fn access(&mut self, base: Reg, off: i16, width: u8, way: Way) {
        let kind = match way {
            Way::Read => 0,
            Way::Write => 1 + self.rng.below(2),
            Way::Any => self.rng.below(4),
        };
        let value = Reg::new(self.one_of(NUMBER.index() as u8, &[3, 4, 5, 8, 10]));
        match kind {
            0 => self.emit([Insn::ldx_mem(width, Reg::R1, base, off)]),
            1 => self.emit([Insn::st_mem(width, base, off, 0x5a5a)]),
            3 if width == size::W || width == size::DW => {
                let op = self.rng.pick(&[atomic::ADD, atomic::XOR, atomic::AND]);
                self.emit([
                    Insn::mov64_imm(Reg::R1, 3),
                    Insn::atomic(width, op, base, Reg::R1, off),
                ]);
            }
            _ => {
                // A pointer that is kept, whole or in part, or a number.
                let value = if width == size::DW && self.rng.percent(30) { value } else { Reg::R1 };
                if value == Reg::R1 {
                    self.unknown(Reg::R1);
                }
                self.emit([Insn::new(class::STX | mode::MEM | width, base, value, off, 0)]);
            }
        }
    }

    /// An offset for a width in an object of some bytes: often at its start or its end.
    fn offset(&mut self, len: i16, bytes: i16) -> i16 {
        let slots = (len - bytes) / bytes;
        let slot = match self.rng.below(3) {
            0 => 0,
            1 => slots,
            _ => self.rng.below(slots as u32 + 1) as i16,
        };
        self.near(slot * bytes)
    }

    fn frame(&mut self) {
        let (width, bytes) = self.width();
        let off = self.offset(FRAME_LEN, bytes);
        let off = self.one_of(FRAME + off, &[0, 8, -512, -513, -516, -520, -4, -2, -1]);
        self.access(Reg::R10, off, width, Way::Any);
    }

    /// Bounds a number to `0..=max`, in one of many ways.
    pub(super) fn bound(&mut self, reg: Reg, max: i16, body: impl FnOnce(&mut Self)) {
        let max = i32::from(self.near(max));
        match self.rng.below(6) {
            0 if (max + 1) & max == 0 => {
                let class = self.rng.pick(&[class::ALU, class::ALU64]);
                self.emit([Insn::new(class | alu::AND, reg, Reg::R0, 0, max)]);
                body(self);
            }
            // A remainder, of which the kernel knows no bounds.
            1 if self.errs() => {
                self.emit([Insn::alu64_imm(alu::MOD, reg, max + 1)]);
                body(self);
            }
            2 => {
                // From below by a test of the sign.
                let negative = Insn::jmp_imm(jmp::JSLT, reg, 0, 0);
                self.unless(negative, |this| {
                    this.unless(Insn::jmp_imm(jmp::JSGT, reg, max, 0), body);
                });
            }
            3 => {
                self.emit([Insn::alu32_reg(alu::MOV, reg, reg)]);
                let jump = Insn::new(class::JMP32 | jmp::JGT, reg, Reg::R0, 0, max);
                self.unless(jump, body);
            }
            _ => self.unless(Insn::jmp_imm(jmp::JGT, reg, max, 0), body),
        }
    }

    fn frame_at_unknown(&mut self) {
        let (width, bytes) = self.one_of((size::B, 1), &[(size::H, 2), (size::DW, 8)]);
        self.unknown(Reg::R2);
        self.bound(Reg::R2, FRAME_LEN - bytes, |this| {
            this.emit([
                Insn::mov64_reg(Reg::R3, Reg::R10),
                Insn::alu64_reg(alu::ADD, Reg::R3, Reg::R2),
            ]);
            this.access(Reg::R3, FRAME, width, Way::Read);
        });
    }

    /// Looks a key up in the map in r1.
    pub(super) fn look_up(&mut self) {
        if self.rng.percent(50) {
            let key = self.rng.below(ENTRIES + 1) as i32;
            self.emit([Insn::st_mem(size::W, Reg::R10, KEY, key)]);
        } else {
            self.unknown(Reg::R2);
            self.emit([Insn::stx_mem(size::W, Reg::R10, Reg::R2, KEY)]);
        }
        let key = self.near(KEY);
        self.emit([
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, key.into()),
            Insn::call(helper_id::MAP_LOOKUP_ELEM),
        ]);
    }

    /// Works on an element in r0 of the map with this index.
    fn work_on(&mut self, map: u64) {
        let len = VALUE_SIZES[map as usize];
        let way = match map {
            READ_ONLY => Way::Read,
            WRITE_ONLY => Way::Write,
            _ => Way::Any,
        };
        let way = self.one_of(way, &[Way::Any]);
        let (width, bytes) = self.width();
        if map != LOCKED && self.rng.percent(50) {
            self.unknown(Reg::R2);
            let first = self.rng.pick(&[0, 0, 4]);
            // Only bytes at offsets that nothing is known of, or whole words.
            let (width, bytes) = if way == Way::Any { (size::B, 1) } else { (width, bytes) };
            if len - bytes < first {
                return;
            }
            self.bound(Reg::R2, len - bytes - first, |this| {
                let add = this.one_of(alu::ADD, &[alu::SUB, alu::OR]);
                this.emit([Insn::alu64_reg(add, Reg::R0, Reg::R2)]);
                this.access(Reg::R0, first, width, way);
            });
        } else {
            let off = match map {
                LOCKED => self.near(BEHIND_LOCK),
                _ => self.offset(len, bytes),
            };
            self.access(Reg::R0, off, width, way);
        }
    }

    pub(super) fn element(&mut self) {
        let map =
            self.rng.pick(&[ARRAY, ARRAY, PERCPU, PERCPU, READ_ONLY, WRITE_ONLY, LOCKED, INNER]);
        let map = match (map, self.prog_type) {
            (LOCKED, ProgType::SOCKET_FILTER | ProgType::RAW_TRACEPOINT) => ARRAY,
            _ => map,
        };
        let looked_up = self.one_of(map, &[NUMBERS, ARRAY, PERCPU, OUTER, READ_ONLY, PROGRAMS]);
        self.map_address(Reg::R1, looked_up);
        self.look_up();
        self.unless(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0), |this| this.work_on(map));
    }

    fn direct_value(&mut self) {
        // Of a map with one value; of others there is no such address.
        let map = self.rng.pick(&[NUMBERS, READ_ONLY, WRITE_ONLY]);
        let map = self.one_of(map, &[ARRAY, PERCPU, OUTER]);
        let len = VALUE_SIZES[map as usize];
        let (width, bytes) = self.width();
        let off = self.offset(len, bytes);
        let (before, behind) = if self.rng.percent(50) { (off, 0) } else { (0, off) };
        let way = if map == WRITE_ONLY { Way::Write } else { Way::Read };
        let [mut lo, mut hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX_VALUE), 0);
        (lo.imm, hi.imm) = (map as i32, before.into());
        self.emit([lo, hi]);
        self.access(Reg::R2, behind, width, way);
    }

    fn inner_element(&mut self) {
        self.map_address(Reg::R1, OUTER);
        self.look_up();
        self.unless(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0), |this| {
            this.emit([Insn::mov64_reg(Reg::R1, Reg::R0)]);
            this.look_up();
            this.unless(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0), |this| this.work_on(INNER));
        });
    }

    /// An access to the packet behind a test of its length.
    fn packet(&mut self) {
        let (data, data_end) = if self.prog_type == ProgType::XDP { (0, 4) } else { (76, 80) };
        let (width, bytes) = self.width();
        let at_unknown = self.rng.percent(50);
        let len = bytes + self.rng.pick(&[0, 0, 6, 14]);
        if at_unknown {
            self.unknown(Reg::R5);
            let mask = self.one_of(31, &[0x7fff, 0xffff, i32::MAX, -1, -8]);
            self.emit([Insn::alu64_imm(alu::AND, Reg::R5, mask)]);
        }
        self.emit([
            Insn::ldx_mem(size::W, Reg::R2, CTX, data),
            Insn::ldx_mem(size::W, Reg::R3, CTX, data_end),
        ]);
        if at_unknown {
            self.emit([Insn::alu64_reg(alu::ADD, Reg::R2, Reg::R5)]);
        }
        let tested = self.near(len);
        self.emit([
            Insn::mov64_reg(Reg::R4, Reg::R2),
            Insn::alu64_imm(alu::ADD, Reg::R4, tested.into()),
        ]);
        let past_end = match self.rng.below(4) {
            0 => Insn {
                code: Self::if_greater(Reg::R3, Reg::R4).code & 0x0f | jmp::JLT,
                ..Self::if_greater(Reg::R3, Reg::R4)
            },
            _ => Self::if_greater(Reg::R4, Reg::R3),
        };
        self.unless(past_end, |this| {
            if this.errs() {
                this.adjust();
            }
            let off = this.near(len - bytes);
            let base = this.one_of(Reg::R2, &[Reg::R3, Reg::R4]);
            let way = this.one_of(Way::Read, &[Way::Any]);
            let way = if this.rng.percent(40) { Way::Write } else { way };
            this.access(base, off, width, way);
        });
    }

    /// Moves the packet, so that its addresses are others.
    fn adjust(&mut self) {
        let helper = match self.prog_type {
            ProgType::XDP => {
                self.rng.pick(&[helper_id::XDP_ADJUST_HEAD, helper_id::XDP_ADJUST_TAIL])
            }
            _ => helper_id::SKB_PULL_DATA,
        };
        let delta = self.rng.pick(&[-8, 4, 8]);
        self.emit([
            Insn::mov64_reg(Reg::R8, Reg::R2),
            Insn::mov64_reg(Reg::R1, CTX),
            Insn::mov64_imm(Reg::R2, delta),
            Insn::call(helper),
            Insn::mov64_reg(Reg::R2, Reg::R8),
        ]);
    }

    fn context(&mut self) {
        let off = match self.prog_type {
            ProgType::XDP => self.rng.pick(&[0, 4, 8, 12, 16]),
            ProgType::SYSCALL | ProgType::RAW_TRACEPOINT => 8 * self.rng.below(4) as i16,
            _ => self.rng.pick(&[0, 4, 8, 16, 48, 64, 68]),
        };
        let off = self.near(off);
        let width = self.one_of(size::W, &[size::B, size::H, size::DW]);
        let width = if self.prog_type == ProgType::RAW_TRACEPOINT { size::DW } else { width };
        let base = match self.rng.below(6) {
            0 => {
                self.emit([Insn::mov64_reg(Reg::R2, CTX)]);
                let by = self.one_of(0, &[4, 8, -4, 4096]);
                self.emit([Insn::alu64_imm(alu::ADD, Reg::R2, by)]);
                if self.errs() {
                    self.unknown(Reg::R3);
                    self.emit([
                        Insn::alu64_imm(alu::AND, Reg::R3, 4),
                        Insn::alu64_reg(alu::ADD, Reg::R2, Reg::R3),
                    ]);
                }
                Reg::R2
            }
            _ => CTX,
        };
        let way = self.one_of(Way::Read, &[Way::Write, Way::Any]);
        self.access(base, off, width, way);
    }

    /// A pointer that goes through the stack.
    fn spilled(&mut self) {
        let at = self.one_of(-72, &[-76, -68, -73, -4]);
        let pointer = self.rng.pick(&[NUMBER, CTX, Reg::R10]);
        let width = self.one_of(size::DW, &[size::W, size::H]);
        self.emit([Insn::new(class::STX | mode::MEM | width, Reg::R10, pointer, at, 0)]);
        if self.errs() {
            let (width, bytes) = self.width();
            let part = at + bytes * self.rng.below(8 / bytes as u32) as i16;
            self.emit([Insn::st_mem(width, Reg::R10, part, 0)]);
        }
        let from = self.one_of(at, &[at - 8, at + 8, at + 4]);
        let width = self.one_of(size::DW, &[size::W, size::B]);
        self.emit([Insn::ldx_mem(width, Reg::R2, Reg::R10, from)]);
        let off = if pointer == Reg::R10 { FRAME } else { 0 };
        let off = self.near(off);
        let width = if self.prog_type == ProgType::RAW_TRACEPOINT { size::DW } else { size::W };
        self.access(Reg::R2, off, width, Way::Read);
    }

    /// What may be done with the numbers of pointers, and now and then what may not.
    fn pointer_arithmetic(&mut self) {
        let pointer = self.rng.pick(&[NUMBER, Reg::R10, CTX]);
        self.emit([Insn::mov64_reg(Reg::R2, pointer), Insn::mov64_reg(Reg::R3, NUMBER)]);
        self.unknown(Reg::R4);
        let op = self.one_of(
            alu::ADD,
            &[
                alu::MUL,
                alu::AND,
                alu::OR,
                alu::XOR,
                alu::LSH,
                alu::RSH,
                alu::NEG,
                alu::DIV,
                alu::SUB,
            ],
        );
        match self.rng.below(4) {
            0 => {
                self.emit([Insn::alu64_imm(op, Reg::R2, 8), Insn::alu64_imm(alu::ADD, Reg::R2, -8)])
            }
            1 => {
                let class = self.one_of(class::ALU64, &[class::ALU]);
                let back = match self.errs() {
                    true => Insn::alu64_imm(alu::SUB, Reg::R2, 16),
                    false => Insn::alu64_imm(alu::ADD, Reg::R2, -16),
                };
                self.emit([Insn::new(class | op, Reg::R2, Reg::R0, 0, 16), back]);
            }
            2 => {
                let source = self.one_of(Reg::R4, &[Reg::R3, Reg::R10, CTX]);
                self.emit([Insn::alu64_imm(alu::AND, Reg::R4, 8)]);
                self.emit([
                    Insn::alu64_reg(op, Reg::R3, source),
                    Insn::mov64_reg(Reg::R2, Reg::R3),
                ]);
            }
            _ => {
                let jump = self.rng.pick(&[jmp::JEQ, jmp::JNE, jmp::JGT, jmp::JSLT]);
                let other = self.rng.pick(&[Reg::R3, Reg::R4, Reg::R10]);
                self.emit([Insn::new(class::JMP | jump | 8, Reg::R2, other, 1, 0)]);
                self.emit([Insn::mov64_imm(Reg::R4, 1)]);
            }
        }
        if pointer == NUMBER {
            self.access(Reg::R2, 0, size::W, Way::Read);
        } else {
            self.emit([Insn::stx_mem(size::DW, NUMBER, Reg::R2, 8)]);
        }
    }

    /// A loop over memory.
    fn repeat(&mut self) {
        let turns = self.near(8);
        self.emit([Insn::mov64_imm(Reg::R7, 0), Insn::mov64_reg(Reg::R2, NUMBER)]);
        let start = self.insns.len();
        let off = self.near(8);
        self.access(Reg::R2, off, size::DW, Way::Read);
        let step = self.one_of(8, &[16, 64, -8]);
        self.emit([
            Insn::alu64_imm(alu::ADD, Reg::R2, step),
            Insn::alu64_imm(alu::ADD, Reg::R7, 1),
        ]);
        let back = start as i64 - self.insns.len() as i64 - 1;
        let jump = self.one_of(jmp::JLT, &[jmp::JNE, jmp::JGT, jmp::JSGE]);
        self.emit([Insn::jmp_imm(jump, Reg::R7, turns.into(), back as i16)]);
    }
}
