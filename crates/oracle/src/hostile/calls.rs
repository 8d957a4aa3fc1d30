//! The statements of generated programs that call something.

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, jmp, size};
use bpfarray_vm::ProgType;

use super::generate::{
    ARRAY, CTX, ENTRIES, FRAME, FRAME_LEN, Function, Generator, INNER, KEY, LOCKED, NUMBER,
    NUMBERS, OUTER, PERCPU, PROGRAMS, READ_ONLY, VALUE_SIZES,
};
use super::statements::{BEHIND_LOCK, Way};

/// Where `struct locked` has its lock.
const LOCK: i32 = 4;

impl Generator<'_> {
    pub(super) fn locked(&mut self) {
        if matches!(self.prog_type, ProgType::SOCKET_FILTER | ProgType::RAW_TRACEPOINT) {
            return self.element();
        }
        self.map_address(Reg::R1, LOCKED);
        self.look_up();
        self.unless(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0), |this| {
            let lock = this.one_of(LOCK, &[0, 3, 8, 5]);
            this.emit([
                Insn::mov64_reg(Reg::R8, Reg::R0),
                Insn::mov64_reg(Reg::R1, Reg::R0),
                Insn::alu64_imm(alu::ADD, Reg::R1, lock),
            ]);
            let helper = this.one_of(helper_id::SPIN_LOCK, &[helper_id::SPIN_UNLOCK]);
            this.emit([Insn::call(helper)]);
            match this.one_of(0, &[1, 2, 3, 4]) {
                1 => this.emit([Insn::call(helper_id::KTIME_GET_NS)]),
                2 => this.emit([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]),
                3 => this.call_function(Function::Called { depth: 0 }),
                4 => this.emit([Insn::st_mem(size::W, Reg::R8, LOCK as i16, 1)]),
                _ => this.access(Reg::R8, BEHIND_LOCK, size::W, Way::Any),
            }
            this.emit([
                Insn::mov64_reg(Reg::R1, Reg::R8),
                Insn::alu64_imm(alu::ADD, Reg::R1, LOCK),
            ]);
            if !this.errs() {
                this.emit([Insn::call(helper_id::SPIN_UNLOCK)]);
            }
        });
    }

    pub(super) fn turns(&mut self) {
        let turns = self.one_of(3, &[0, -1, 1 << 23]);
        self.emit([Insn::mov64_imm(Reg::R1, turns)]);
        self.function_address(Reg::R2, Function::Turn);
        let frame = self.near(FRAME);
        let flags = self.one_of(0, &[1, -1]);
        self.emit([
            Insn::mov64_reg(Reg::R3, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R3, frame.into()),
            Insn::mov64_imm(Reg::R4, flags),
            Insn::call(helper_id::LOOP),
        ]);
    }

    pub(super) fn each_element(&mut self) {
        let map = self.one_of(ARRAY, &[PERCPU, READ_ONLY, OUTER, PROGRAMS, NUMBERS]);
        self.map_address(Reg::R1, map);
        self.function_address(Reg::R2, Function::Element);
        let flags = self.one_of(0, &[1]);
        let (base, frame) = (self.one_of(Reg::R10, &[NUMBER, CTX]), self.near(FRAME));
        self.emit([
            Insn::mov64_reg(Reg::R3, base),
            Insn::alu64_imm(alu::ADD, Reg::R3, frame.into()),
            Insn::mov64_imm(Reg::R4, flags),
            Insn::call(helper_id::FOR_EACH_MAP_ELEM),
        ]);
    }

    pub(super) fn call(&mut self) {
        self.emit([Insn::mov64_reg(Reg::R1, NUMBER)]);
        if self.rng.percent(50) {
            let frame = self.near(FRAME);
            self.emit([
                Insn::mov64_reg(Reg::R1, Reg::R10),
                Insn::alu64_imm(alu::ADD, Reg::R1, frame.into()),
            ]);
        }
        self.unknown(Reg::R2);
        let depth = self.rng.below(3) as u8;
        let depth = self.one_of(depth, &[6, 7, 8]);
        self.call_function(Function::Called { depth });
    }

    pub(super) fn update(&mut self) {
        let map = self.rng.pick(&[ARRAY, PERCPU, INNER]);
        let map = self.one_of(map, &[READ_ONLY, PROGRAMS, OUTER, NUMBERS, LOCKED]);
        let key = self.rng.below(ENTRIES + 1) as i32;
        self.emit([Insn::st_mem(size::W, Reg::R10, KEY, key)]);
        self.map_address(Reg::R1, map);
        let (key, value) = (self.near(KEY), self.near(FRAME));
        let value = self.one_of(value, &[-16, -8, -4, 0]);
        let base = self.one_of(Reg::R10, &[NUMBER, CTX]);
        self.emit([
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, key.into()),
            Insn::mov64_reg(Reg::R3, base),
            Insn::alu64_imm(alu::ADD, Reg::R3, value.into()),
            Insn::mov64_imm(Reg::R4, 0),
        ]);
        if self.errs() {
            let arg = self.rng.pick(&[Reg::R1, Reg::R2, Reg::R3]);
            let number = self.rng.pick(&[0, 1, 4096]);
            self.emit([Insn::mov64_imm(arg, number)]);
        }
        let helper = self.one_of(
            helper_id::MAP_UPDATE_ELEM,
            &[helper_id::MAP_DELETE_ELEM, helper_id::MAP_LOOKUP_PERCPU_ELEM],
        );
        self.emit([Insn::call(helper)]);
    }

    /// A helper that is told how many bytes there are.
    pub(super) fn sized_argument(&mut self) {
        let (helper, base) = match self.rng.below(3) {
            0 => (helper_id::CSUM_DIFF, Reg::R10),
            1 => (helper_id::CSUM_DIFF, NUMBER),
            _ => (helper_id::TRACE_PRINTK, NUMBER),
        };
        let has_csum = matches!(self.prog_type, ProgType::XDP | ProgType::SCHED_CLS);
        let helper = if has_csum { helper } else { helper_id::TRACE_PRINTK };
        let (start, len) = if base == Reg::R10 { (FRAME, FRAME_LEN) } else { (0, 16) };
        if self.rng.percent(50) {
            self.unknown(Reg::R2);
            let op = self.one_of(alu::AND, &[alu::RSH, alu::OR, alu::ADD]);
            let mask = self.one_of(12, &[-1, 0xffff, 0x7fff_ffff, 28, 60]);
            self.emit([Insn::alu64_imm(op, Reg::R2, mask), Insn::alu64_imm(alu::ADD, Reg::R2, 4)]);
        } else {
            let len = self.near(len);
            self.emit([Insn::mov64_imm(Reg::R2, len.into())]);
        }
        let start = self.near(start);
        self.emit([
            Insn::mov64_reg(Reg::R1, base),
            Insn::alu64_imm(alu::ADD, Reg::R1, start.into()),
            Insn::mov64_imm(Reg::R3, 0),
            Insn::mov64_imm(Reg::R4, 0),
            Insn::mov64_imm(Reg::R5, 0),
            Insn::call(helper),
        ]);
    }

    pub(super) fn tail_call(&mut self) {
        if self.prog_type == ProgType::SYSCALL && !self.errs() {
            return self.update();
        }
        let map = self.one_of(PROGRAMS, &[ARRAY, OUTER]);
        let ctx = self.one_of(CTX, &[NUMBER, Reg::R10]);
        self.map_address(Reg::R2, map);
        self.unknown(Reg::R3);
        let mask = self.rng.pick(&[1, 3, -1]);
        self.emit([
            Insn::mov64_reg(Reg::R1, ctx),
            Insn::alu64_imm(alu::AND, Reg::R3, mask),
            Insn::call(helper_id::TAIL_CALL),
        ]);
    }

    /// Copies a part of the packet to the stack.
    pub(super) fn copy_of_packet(&mut self) {
        let helper = match self.prog_type {
            ProgType::XDP => helper_id::XDP_LOAD_BYTES,
            ProgType::SYSCALL | ProgType::RAW_TRACEPOINT => return self.update(),
            _ => helper_id::SKB_LOAD_BYTES,
        };
        let ctx = self.one_of(CTX, &[NUMBER, Reg::R10]);
        let to = self.near(FRAME);
        self.emit([
            Insn::mov64_reg(Reg::R1, ctx),
            Insn::mov64_imm(Reg::R2, 2),
            Insn::mov64_reg(Reg::R3, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R3, to.into()),
        ]);
        self.unknown(Reg::R4);
        self.bound(Reg::R4, FRAME_LEN - 1, |this| {
            let least = this.one_of(1, &[0, 2, -1]);
            this.emit([Insn::alu64_imm(alu::ADD, Reg::R4, least), Insn::call(helper)]);
        });
    }

    /// Registers that a call leaves without a value.
    pub(super) fn clobbered(&mut self) {
        self.emit([
            Insn::mov64_reg(Reg::R2, NUMBER),
            Insn::mov64_reg(Reg::R8, NUMBER),
            Insn::call(helper_id::GET_SMP_PROCESSOR_ID),
        ]);
        let base = self.one_of(Reg::R8, &[Reg::R0, Reg::R1, Reg::R2, Reg::R7]);
        self.emit([Insn::ldx_mem(size::W, Reg::R3, base, 0)]);
    }

    pub(super) fn function(&mut self, function: Function) {
        let result = self.one_of(0, &[2, -1]);
        match function {
            Function::Called { depth } => {
                let low = self.one_of(-16, &[-400, -512, -513]);
                self.emit([Insn::st_mem(size::DW, Reg::R10, low, 3)]);
                let off = self.near(16);
                let way = if self.rng.percent(50) { Way::Read } else { Way::Write };
                let base = self.one_of(Reg::R1, &[Reg::R2, Reg::R3, NUMBER]);
                self.emit([
                    Insn::mov64_reg(Reg::R8, Reg::R1),
                    Insn::ldx_mem(size::W, Reg::R3, base, off),
                ]);
                if way == Way::Write {
                    self.emit([Insn::stx_mem(size::DW, Reg::R8, Reg::R3, off)]);
                }
                if depth > 0 {
                    self.emit([Insn::mov64_reg(Reg::R1, Reg::R8), Insn::mov64_imm(Reg::R2, 1)]);
                    self.call_function(Function::Called { depth: depth - 1 });
                }
                let result = self.one_of(Reg::R3, &[Reg::R4, Reg::R10]);
                if depth == 0 {
                    self.emit([Insn::mov64_reg(Reg::R0, result)]);
                } else if self.errs() {
                    // Perhaps an address of the caller's frame.
                    self.emit([Insn::mov64_reg(Reg::R0, Reg::R8)]);
                }
                self.emit([Insn::exit()]);
            }
            Function::Turn => {
                let off = self.near(FRAME_LEN - 8);
                let base = self.one_of(Reg::R2, &[Reg::R1, Reg::R3]);
                self.emit([
                    Insn::ldx_mem(size::DW, Reg::R4, base, off),
                    Insn::alu64_reg(alu::ADD, Reg::R4, Reg::R1),
                    Insn::stx_mem(size::DW, Reg::R2, Reg::R4, 8),
                    Insn::mov64_imm(Reg::R0, result),
                    Insn::exit(),
                ]);
            }
            Function::Element => {
                let off = self.near(VALUE_SIZES[ARRAY as usize] - 4);
                let base = self.one_of(Reg::R3, &[Reg::R1, Reg::R2]);
                self.emit([
                    Insn::ldx_mem(size::W, Reg::R5, base, off),
                    Insn::stx_mem(size::W, Reg::R4, Reg::R5, 0),
                    Insn::stx_mem(size::W, Reg::R3, Reg::R5, 4),
                    Insn::mov64_imm(Reg::R0, result),
                    Insn::exit(),
                ]);
            }
        }
    }
}
