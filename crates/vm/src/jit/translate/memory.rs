//! Loads, stores and atomic operations.

use bpfarray_core::insn::{Insn, atomic, class, mode};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AtomicRmwOp, InstBuilder, MemFlagsData, Type, Value, types};

use super::frame::{Frame, Place, int};
use super::{FIELD, R0, SHARED, Translation, ule};
use crate::context::Context;
use crate::interp::{Op, place};
use crate::jit::analysis::{Access, Near};
use crate::jit::trampoline::{self, READS, WRITES};
use crate::region::Hit;

/// Where an access is made.
#[derive(Copy, Clone)]
enum At {
    Variable(cranelift_frontend::Variable),
    /// An address and a distance from it.
    Memory(Value, i32),
}

/// How a check that did not pass quickly goes on.
struct Slow {
    function: usize,
    args: Vec<Value>,
}

impl Translation<'_, '_> {
    pub(super) fn memory(&mut self, at: usize, insn: Insn, op: Op, access: Access) {
        let width = int(insn.size_bytes() as u8).unwrap_or(types::I64);
        match insn.class() {
            class::LDX => {
                let signed = insn.mode() == mode::MEMSX;
                let value = self.load(at, op, width, access);
                let value = match signed {
                    true if width != types::I64 => {
                        let low = self.low(value, width);
                        self.builder.ins().sextend(types::I64, low)
                    }
                    _ => self.widen(value),
                };
                self.set(op.dst().index(), value);
            }
            class::STX if insn.mode() == mode::ATOMIC => self.atomic(at, insn, op, width, access),
            _ => {
                let number = match insn.class() {
                    class::ST => self.int(op.imm),
                    _ => self.get(op.src().index()),
                };
                self.store(at, op, width, number, access);
            }
        }
    }

    /// The place of an access that needs no check.
    fn place(&mut self, base: usize, off: i16, access: Access) -> At {
        if let (Access::Frame(at), Frame::Private(places)) = (access, &self.frame) {
            match places.get(&at) {
                Some(Place::Variable(variable, _)) => return At::Variable(*variable),
                Some(Place::Slot(slot, within)) => {
                    let (slot, within) = (*slot, *within);
                    return At::Memory(self.builder.ins().stack_addr(types::I64, slot, within), 0);
                }
                // The analysis has seen every access.
                None => {}
            }
        }
        At::Memory(self.get(base), off.into())
    }

    fn load(&mut self, at: usize, op: Op, width: Type, access: Access) -> Value {
        let (base, off) = (op.src().index(), op.off);
        if !matches!(access, Access::Frame(_)) {
            // Others may have written since the last load from there: every load is made.
            self.builder.ins().sequence_point();
        }
        if matches!(access, Access::Frame(_) | Access::Proven) {
            return match self.place(base, off, access) {
                At::Variable(variable) => self.builder.use_var(variable),
                At::Memory(addr, off) => self.builder.ins().load(width, SHARED, addr, off),
            };
        }
        let addr = self.address(base, off);
        let size = self.int(width.bytes().into());
        let insn = self.int(at as u64);
        let slow = Slow {
            function: trampoline::load as *const () as usize,
            args: vec![self.machine, addr, size, insn],
        };
        let loaded = self.guarded(addr, width, access, false, false, &slow, |this, addr| {
            let value = this.builder.ins().load(width, SHARED, addr, 0);
            Some(this.widen(value))
        });
        loaded.unwrap_or(addr)
    }

    fn store(&mut self, at: usize, op: Op, width: Type, number: Value, access: Access) {
        let (base, off) = (op.dst().index(), op.off);
        let low = self.low(number, width);
        if matches!(access, Access::Frame(_) | Access::Proven) {
            match self.place(base, off, access) {
                At::Variable(variable) => self.builder.def_var(variable, low),
                At::Memory(addr, off) => {
                    self.builder.ins().store(SHARED, low, addr, off);
                }
            }
            return;
        }
        let addr = self.address(base, off);
        let size = self.int(width.bytes().into());
        let insn = self.int(at as u64);
        let slow = Slow {
            function: trampoline::store as *const () as usize,
            args: vec![self.machine, addr, size, insn, number],
        };
        self.guarded(addr, width, access, true, false, &slow, |this, addr| {
            this.builder.ins().store(SHARED, low, addr, 0);
            None
        });
    }

    fn address(&mut self, base: usize, off: i16) -> Value {
        let base = self.get(base);
        if off == 0 { base } else { self.builder.ins().iadd_imm_s(base, i64::from(off)) }
    }

    /// An access under a check. What passes quickly is done by `fast`, at an address that is 0 where a processor
    /// goes on although the check fails. For the rest, the machine checks and does it, if it has a value, or checks.
    #[allow(clippy::too_many_arguments)]
    fn guarded(
        &mut self,
        addr: Value,
        width: Type,
        access: Access,
        write: bool,
        is_atomic: bool,
        slow: &Slow,
        fast: impl Fn(&mut Self, Value) -> Option<Value>,
    ) -> Option<Value> {
        let size = width.bytes();
        let aligned = is_atomic.then(|| self.is_aligned(addr, size));
        let passes = match (access, aligned) {
            // Only an atomic operation is checked at all then: it must be aligned, too.
            (Access::Proven, Some(aligned)) => aligned,
            (_, aligned) => {
                let inside = match access {
                    Access::Near(near) => self.is_near(addr, near, size),
                    Access::Packet => self.is_in_packet(addr, size),
                    _ => self.is_where_the_last_was(addr, size, write),
                };
                aligned.map_or(inside, |aligned| self.builder.ins().band(inside, aligned))
            }
        };
        let (quick, slowly) = (self.builder.create_block(), self.builder.create_block());
        let done = self.builder.create_block();
        let zero = self.int(0);
        let safe = self.builder.ins().select_spectre_guard(passes, addr, zero);
        self.builder.ins().brif(passes, quick, &[], slowly, &[]);
        self.builder.switch_to_block(quick);
        let value = fast(self, safe);
        if let Some(value) = value {
            let kind = self.builder.func.dfg.value_type(value);
            self.builder.append_block_param(done, kind);
        }
        self.builder.ins().jump(done, value.map(Into::into).as_slice());

        self.builder.switch_to_block(slowly);
        self.builder.set_cold_block(slowly);
        let answer = self.call_rust(slow.function, &slow.args, 2);
        self.unless_stopped(answer[1]);
        let value = match (value, is_atomic) {
            // A field of the context may be wider there than the load is.
            (Some(_), false) => Some(answer[0]),
            // The machine has only checked.
            (_, true) => fast(self, addr),
            (None, false) => None,
        };
        self.builder.ins().jump(done, value.map(Into::into).as_slice());
        self.builder.switch_to_block(done);
        self.builder.block_params(done).first().copied()
    }

    fn is_aligned(&mut self, addr: Value, size: u32) -> Value {
        let low = self.builder.ins().band_imm_u(addr, i64::from(size) - 1);
        self.builder.ins().icmp_imm_u(IntCC::Equal, low, 0)
    }

    fn is_near(&mut self, addr: Value, near: Near, size: u32) -> Value {
        let (start, len) = (self.int(near.start), self.int(near.len));
        let off = self.builder.ins().isub(addr, start);
        let inside = self.builder.ins().icmp(IntCC::UnsignedLessThan, off, len);
        let (mask, room) = (self.int(near.mask), self.int(near.room));
        let in_elem = self.builder.ins().band(off, mask);
        debug_assert!(size <= 8);
        let fits = ule(&mut self.builder, in_elem, room);
        self.builder.ins().band(inside, fits)
    }

    fn is_in_packet(&mut self, addr: Value, size: u32) -> Value {
        let context = self.field(place::CONTEXT, FIXED_POINTER);
        let field = |this: &mut Self, at: usize| {
            this.builder.ins().load(types::I64, FIELD, context, at as i32)
        };
        let base = field(self, Context::BASE);
        let (start, end) = (field(self, Context::PACKET_START), field(self, Context::PACKET_END));
        let at = self.builder.ins().isub(addr, base);
        let len = self.builder.ins().isub(end, start);
        let off = self.builder.ins().isub(at, start);
        let inside = self.builder.ins().icmp(IntCC::UnsignedLessThan, off, len);
        let left = self.builder.ins().isub(len, off);
        let size = self.int(size.into());
        let fits = ule(&mut self.builder, size, left);
        self.builder.ins().band(inside, fits)
    }

    fn is_where_the_last_was(&mut self, addr: Value, size: u32, write: bool) -> Value {
        let hit = if write { place::WRITE_HIT } else { place::READ_HIT };
        let (start, len) = (self.field(hit + Hit::START, FIELD), self.field(hit + Hit::LEN, FIELD));
        let off = self.builder.ins().isub(addr, start);
        let inside = self.builder.ins().icmp(IntCC::UnsignedLessThan, off, len);
        let (mask, room) = (self.field(hit + Hit::MASK, FIELD), self.field(hit + Hit::ROOM, FIELD));
        let in_elem = self.builder.ins().band(off, mask);
        let end = self.builder.ins().iadd_imm_s(in_elem, i64::from(size));
        let fits = ule(&mut self.builder, end, room);
        self.builder.ins().band(inside, fits)
    }

    fn atomic(&mut self, at: usize, insn: Insn, op: Op, width: Type, access: Access) {
        let kind = insn.imm;
        let base = if kind == atomic::LOAD_ACQ { op.src() } else { op.dst() }.index();
        // What is read is carried around loops, so no more than that is.
        let zero = self.builder.ins().iconst(width, 0);
        let read = |this: &mut Self, is_read, reg| match is_read {
            true => {
                let value = this.get(reg);
                this.low(value, width)
            }
            false => zero,
        };
        let operand = read(self, kind != atomic::LOAD_ACQ, op.src().index());
        let expected = read(self, kind == atomic::CMPXCHG, R0);
        let operation = move |this: &mut Self, addr: Value| {
            atomic_operation(this, kind, width, addr, operand, expected)
        };
        let known = match access {
            Access::Frame(off) => i64::from(off) % i64::from(width.bytes()) == 0,
            _ => false,
        };
        let old = match (access, known) {
            (Access::Frame(_), true) => match self.place(base, op.off, access) {
                At::Memory(addr, off) => {
                    let addr = self.builder.ins().iadd_imm_s(addr, i64::from(off));
                    operation(self, addr)
                }
                // No place of an atomic operation is a variable.
                At::Variable(_) => None,
            },
            _ => {
                let addr = self.address(base, op.off);
                let directions = match kind {
                    atomic::LOAD_ACQ => READS,
                    atomic::STORE_REL => WRITES,
                    _ => READS | WRITES,
                };
                let size = self.int(u64::from(width.bytes()) | directions);
                let insn = self.int(at as u64);
                let slow = Slow {
                    function: trampoline::check as *const () as usize,
                    args: vec![self.machine, addr, size, insn],
                };
                let write = kind != atomic::LOAD_ACQ;
                self.guarded(addr, width, access, write, true, &slow, operation)
            }
        };
        let Some(old) = old else { return };
        let old = self.widen(old);
        match kind {
            atomic::LOAD_ACQ => self.set(op.dst().index(), old),
            atomic::CMPXCHG => self.set(R0, old),
            kind if kind & atomic::FETCH != 0 => self.set(op.src().index(), old),
            _ => {}
        }
    }
}

/// A pointer that the machine is made with.
const FIXED_POINTER: MemFlagsData = super::FIXED;

/// Does an atomic operation; gives the old value where the program wants it, which the processor does not fetch otherwise.
fn atomic_operation(
    this: &mut Translation<'_, '_>,
    kind: i32,
    width: Type,
    addr: Value,
    operand: Value,
    expected: Value,
) -> Option<Value> {
    let ins = this.builder.ins();
    let rmw = match kind {
        atomic::LOAD_ACQ => return Some(ins.atomic_load(width, SHARED, addr)),
        atomic::STORE_REL => {
            ins.atomic_store(SHARED, operand, addr);
            return None;
        }
        atomic::CMPXCHG => return Some(ins.atomic_cas(SHARED, addr, expected, operand)),
        atomic::XCHG => AtomicRmwOp::Xchg,
        kind => match kind & !atomic::FETCH {
            atomic::ADD => AtomicRmwOp::Add,
            atomic::OR => AtomicRmwOp::Or,
            atomic::AND => AtomicRmwOp::And,
            _ => AtomicRmwOp::Xor,
        },
    };
    let old = ins.atomic_rmw(width, SHARED, rmw, addr, operand);
    (kind & atomic::FETCH != 0).then_some(old)
}
