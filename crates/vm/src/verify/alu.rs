//! Arithmetic: on numbers, and on addresses as far as that has a meaning.

use bpfarray_core::insn::{Insn, Reg, alu, class, pseudo};

use super::explore::Explorer;
use super::range::Range;
use super::rule::Rule;
use super::state::State;
use super::structure::function_target;
use super::value::{Base, Pointer, Scalar, Value};
use super::{KnownMap, VerifyErrorKind as Kind};

/// How far pointers may be from what they point to. No object is as long, and no sum overflows.
///
/// # Kernel
/// `BPF_MAX_VAR_OFF`
pub(super) const FAR: i64 = 1 << 29;

fn op_name(op: u8) -> &'static str {
    match op {
        alu::ADD => "+=",
        alu::SUB => "-=",
        alu::MUL => "*=",
        alu::DIV => "/=",
        alu::OR => "|=",
        alu::AND => "&=",
        alu::LSH => "<<=",
        alu::RSH => ">>=",
        alu::MOD => "%=",
        alu::XOR => "^=",
        _ => "s>>=",
    }
}

/// The number that an immediate stands for.
pub(super) fn immediate(insn: Insn, is_64: bool) -> Value {
    Value::constant(if is_64 { i64::from(insn.imm) as u64 } else { u64::from(insn.imm as u32) })
}

impl Explorer<'_> {
    pub(super) fn load_imm64(&self, at: usize, insn: Insn) -> Value {
        let high = self.insns[at + 1].imm as u32;
        match insn.src.index() as u8 {
            pseudo::MAP_IDX => Value::to(Base::Map(KnownMap::Listed(insn.imm as u32))),
            pseudo::MAP_IDX_VALUE => {
                let map = KnownMap::Listed(insn.imm as u32);
                Value::Pointer(Pointer { off: high.into(), ..Pointer::to(Base::Value(map)) })
            }
            pseudo::FUNC => match function_target(at, insn) {
                Some(target) => Value::to(Base::Function(target as usize)),
                None => Value::UNKNOWN,
            },
            0 => Value::constant(u64::from(high) << 32 | u64::from(insn.imm as u32)),
            _ => Value::UNKNOWN,
        }
    }

    /// A copy of a register, which from now on is known to be one.
    pub(super) fn copy(&mut self, reg: Reg, state: &mut State) -> Value {
        match state.get(reg) {
            Value::Number(number) if number.id == 0 && number.range.value().is_none() => {
                let linked = Value::Number(Scalar { id: self.new_id(), ..number });
                state.set(reg, linked);
                linked
            }
            value => value,
        }
    }

    pub(super) fn alu(&mut self, insn: Insn, state: &mut State) -> Result<(), Kind> {
        let is_64 = insn.class() == class::ALU64;
        let from_reg = insn.is_reg_src() && insn.op() != alu::END;
        let operand = match from_reg {
            true => self.read(state, insn.src)?,
            false => immediate(insn, is_64),
        };
        let value = match insn.op() {
            alu::MOV if from_reg && insn.off == 0 => {
                let fits = |value: &Value| Range::bytes(4).contains(&value.number());
                if is_64 || fits(&operand) && !operand.is_pointer() {
                    self.copy(insn.src, state)
                } else {
                    Value::range(operand.number().low())
                }
            }
            alu::MOV if insn.off == 0 => operand,
            alu::END => Value::range(self.read(state, insn.dst)?.number().swap(insn)),
            alu::MOV => {
                Value::range(Range::alu(alu::MOV, is_64, insn.off, Range::ANY, operand.number()))
            }
            alu::NEG => {
                let old = self.read(state, insn.dst)?.number();
                Value::range(Range::alu(alu::NEG, is_64, 0, old, old))
            }
            _ => {
                let old = self.read(state, insn.dst)?;
                self.binary(insn, is_64, old, operand)?
            }
        };
        state.set(insn.dst, value);
        Ok(())
    }

    fn binary(&mut self, insn: Insn, is_64: bool, a: Value, b: Value) -> Result<Value, Kind> {
        let (op, reg) = (insn.op(), insn.dst.index());
        let is_add = is_64 && op == alu::ADD;
        let pointer = match (a, b) {
            (Value::Pointer(_), Value::Pointer(_)) => {
                if op != alu::SUB {
                    self.forbid(|| Rule::TwoPointers { reg, op: op_name(op) })?;
                }
                None
            }
            (Value::Pointer(pointer), Value::Number(by)) => {
                self.moved(insn, pointer, by.range, false)?
            }
            (Value::Number(by), Value::Pointer(pointer)) => {
                self.moved(insn, pointer, by.range, true)?
            }
            (Value::Number(Scalar { range, id, delta }), Value::Number(by))
                if is_add && id != 0 =>
            {
                let linked = match (by.range.value(), insn.is_reg_src()) {
                    (Some(by), false) => Some(delta.wrapping_add(by as i64)),
                    _ => None,
                };
                let range = Range::alu(op, is_64, insn.off, range, by.range);
                return Ok(match linked {
                    Some(delta) => Value::Number(Scalar { range, id, delta }),
                    None => Value::range(range),
                });
            }
            _ if self.env.strict && is_given_up(op, is_64, b.number()) => {
                return Ok(Value::UNKNOWN);
            }
            _ => {
                return Ok(Value::range(Range::alu(op, is_64, insn.off, a.number(), b.number())));
            }
        };
        Ok(pointer.map_or(Value::UNKNOWN, Value::Pointer))
    }

    /// A pointer moved by a number, or a number to which one is added.
    ///
    /// # Kernel
    /// `adjust_ptr_min_max_vals`
    fn moved(
        &mut self,
        insn: Insn,
        pointer: Pointer,
        by: Range,
        is_number_first: bool,
    ) -> Result<Option<Pointer>, Kind> {
        let (op, reg) = (insn.op(), insn.dst.index());
        if insn.class() != class::ALU64 {
            if op != alu::SUB {
                self.forbid(|| Rule::PointerHalf(reg))?;
            }
            return Ok(None);
        }
        if pointer.maybe_null {
            self.forbid(|| Rule::ArithmeticOnNull {
                reg,
                is: self.type_name(Value::Pointer(pointer)),
            })?;
            return Ok(None);
        }
        let is = pointer.base;
        let movable = match is {
            Base::PacketEnd => false,
            Base::Map(_) => op == alu::ADD && by.value() == Some(0),
            _ => true,
        };
        if !movable {
            self.forbid(|| Rule::Arithmetic { reg, is: self.type_name(Value::Pointer(pointer)) })?;
            return Ok(None);
        }
        let refuse = |rule| self.forbid(|| rule).map(|()| None);
        let far = |by: String| Rule::FarMove { is: base_name(is), by };
        let (least, most) = (by.smin, by.smax);
        if least <= -FAR || least >= FAR {
            return refuse(far(match by.value() {
                Some(by) => (by as i64).to_string(),
                None if least == i64::MIN => "register with unbounded min value".to_owned(),
                None => format!("value {least}"),
            }));
        }
        let mut moved = match op {
            alu::ADD => match by.value() {
                Some(by) => Pointer { off: pointer.off + by as i64, ..pointer },
                None => Pointer { var: Range::alu(alu::ADD, true, 0, pointer.var, by), ..pointer },
            },
            alu::SUB if is_number_first => return refuse(Rule::FromScalar(reg)),
            alu::SUB if matches!(is, Base::Stack(_)) && self.env.strict => {
                return refuse(Rule::FromStack(reg));
            }
            alu::SUB => match by.value() {
                Some(by) => Pointer { off: pointer.off - by as i64, ..pointer },
                None => Pointer { var: Range::alu(alu::SUB, true, 0, pointer.var, by), ..pointer },
            },
            alu::AND | alu::OR | alu::XOR => {
                return refuse(Rule::PointerBits { reg, op: op_name(op) });
            }
            _ => return refuse(Rule::PointerOperator { reg, op: op_name(op) }),
        };
        if matches!(is, Base::Packet | Base::PacketMeta) && by.value().is_none() {
            moved.id = self.new_id();
            moved.range = 0;
        }
        let (lo, hi) = moved.span();
        // In the default mode, where far pointers are numbers, no sum of a later move overflows.
        if moved.off.abs() >= FAR || lo <= -FAR || !self.env.strict && (most >= FAR || hi >= FAR) {
            return self.forbid(|| far(format!("offset {lo}"))).map(|()| None);
        }
        Ok(Some(moved))
    }
}

/// Whether the kernel knows nothing of the results of an operation, not even of their upper half: of quotients, and of shifts by
/// what it does not know or is too far.
///
/// # Kernel
/// `is_safe_to_compute_dst_reg_range`
fn is_given_up(op: u8, is_64: bool, by: Range) -> bool {
    let bits = if is_64 { 64 } else { 32 };
    match op {
        alu::DIV | alu::MOD => true,
        alu::LSH | alu::RSH | alu::ARSH => by.value().is_none_or(|by| by >= bits),
        _ => false,
    }
}

/// What the kernel calls a pointer of this kind.
pub(super) fn base_name(base: Base) -> &'static str {
    match base {
        Base::Stack(_) => "fp",
        Base::Ctx => "ctx",
        Base::Packet => "pkt",
        Base::PacketMeta => "pkt_meta",
        Base::PacketEnd => "pkt_end",
        Base::Map(_) => "map_ptr",
        Base::Value(_) => "map_value",
        Base::Key => "map_key",
        Base::Function(_) => "func",
        Base::Buffer { .. } => "buf",
        Base::Meta => "trusted_ptr_bpf_iter_meta",
        Base::Memory(_) => "mem",
        Base::Object => "ptr_",
    }
}

impl Explorer<'_> {
    /// What a register holds, in one word.
    ///
    /// # Kernel
    /// `reg_type_str`
    pub(super) fn type_name(&self, value: Value) -> String {
        match value {
            Value::Unreadable => "?".to_owned(),
            Value::Number(_) => "scalar".to_owned(),
            // A slot's map may be missing.
            Value::Pointer(Pointer { base: Base::Map(KnownMap::Inner(_)), maybe_null, .. }) => {
                if maybe_null { "map_value_or_null" } else { "map_ptr" }.to_owned()
            }
            Value::Pointer(pointer) => {
                let null = if pointer.maybe_null { "_or_null" } else { "" };
                let rdonly = match pointer.base {
                    Base::Buffer { writable: false } => "rdonly_",
                    _ => "",
                };
                format!("{rdonly}{}{null}", base_name(pointer.base))
            }
        }
    }
}
