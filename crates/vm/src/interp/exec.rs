//! The main loop.

use bpfarray::{AtomicError, Memory};
use bpfarray_core::insn::atomic;

use super::code::{Op, OpCode};
use super::machine::{Frame, Machine};
use crate::fault::{Fault, FaultKind};

/// How often `may_goto` stays in the loops of one call of a function.
///
/// # Kernel
/// `BPF_MAX_LOOPS`
pub(crate) const MAX_LOOPS: u32 = 1 << 23;

const R0: usize = 0;
const R1: usize = 1;
const R6: usize = 6;
const R9: usize = 9;
const R10: usize = 10;

impl<'e> Machine<'e> {
    /// Runs a function until it returns, and gives its r0.
    pub(super) fn exec(&mut self, entry: usize, args: [u64; 5]) -> Result<u64, Box<Fault>> {
        match self.counts {
            None => self.exec_as::<false>(entry, args),
            Some(_) => self.exec_as::<true>(entry, args),
        }
    }

    fn exec_as<const COUNTED: bool>(
        &mut self,
        entry: usize,
        args: [u64; 5],
    ) -> Result<u64, Box<Fault>> {
        let mut ops = self.running.code.ops();
        let base = self.frames.len();
        let mut pc = entry;
        let mut regs = [0_u64; 16];
        regs[1..=5].copy_from_slice(&args);

        // Names the instruction a failure belongs to.
        macro_rules! at_pc {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(kind) => return Err(self.fault(pc, kind.into())),
                }
            };
        }
        regs[R10] = at_pc!(self.push(Frame { entry, may_goto: MAX_LOOPS, ..Frame::default() }));

        loop {
            let Some(op) = ops.get(pc) else {
                return Err(self.fault(pc, FaultKind::PastEnd));
            };
            if COUNTED {
                self.count(pc);
            }
            let (dst, src) = (op.dst().index(), op.src().index());

            // The second operand: the immediate or the source register.
            macro_rules! operand {
                (K) => {
                    op.imm
                };
                (X) => {
                    regs[src]
                };
            }
            macro_rules! alu64 {
                ($operand:ident, $f:expr) => {
                    regs[dst] = $f(regs[dst], operand!($operand))
                };
            }
            macro_rules! alu32 {
                ($operand:ident, $f:expr) => {
                    regs[dst] = u64::from($f(regs[dst] as u32, operand!($operand) as u32))
                };
            }
            // A jump backwards is charged with what it closes over.
            macro_rules! go_to_target {
                () => {{
                    let target = op.target as usize;
                    if target <= pc {
                        at_pc!(self.burn((pc - target) as u64 + 1));
                    }
                    pc = target;
                    continue;
                }};
            }
            macro_rules! jump {
                ($condition:expr) => {
                    if $condition {
                        go_to_target!()
                    }
                };
            }
            macro_rules! jump64 {
                ($operand:ident, $type:ty, $f:expr) => {
                    jump!($f(&(regs[dst] as $type), &(operand!($operand) as $type)))
                };
            }
            macro_rules! load {
                ($size:literal $(as $type:ty)*) => {{
                    let addr = regs[src].wrapping_add_signed(op.off.into());
                    regs[dst] = at_pc!(self.load::<$size>(addr)) $(as $type)*;
                }};
            }
            macro_rules! store {
                ($size:literal, $operand:ident) => {{
                    let addr = regs[dst].wrapping_add_signed(op.off.into());
                    at_pc!(self.store::<$size>(addr, operand!($operand)));
                }};
            }
            macro_rules! exit {
                () => {{
                    at_pc!(self.burn(pc.saturating_sub(self.entry()) as u64 + 1));
                    let Some(frame) = self.pop() else { return Ok(regs[R0]) };
                    if self.frames.len() == base {
                        at_pc!(self.held.check_unlocked("exit"));
                        return Ok(regs[R0]);
                    }
                    // What the callee left in other registers than r0 is nobody's business.
                    regs[R1..].fill(0);
                    regs[R6..=R9].copy_from_slice(&frame.saved);
                    regs[R10] = self.frame_top();
                    ops = self.running.code.ops();
                    pc = frame.resume;
                    continue;
                }};
            }

            match op.code {
                OpCode::Add64K => alu64!(K, u64::wrapping_add),
                OpCode::Add64X => alu64!(X, u64::wrapping_add),
                OpCode::Add32K => alu32!(K, u32::wrapping_add),
                OpCode::Add32X => alu32!(X, u32::wrapping_add),
                OpCode::Sub64K => alu64!(K, u64::wrapping_sub),
                OpCode::Sub64X => alu64!(X, u64::wrapping_sub),
                OpCode::Sub32K => alu32!(K, u32::wrapping_sub),
                OpCode::Sub32X => alu32!(X, u32::wrapping_sub),
                OpCode::Mul64K => alu64!(K, u64::wrapping_mul),
                OpCode::Mul64X => alu64!(X, u64::wrapping_mul),
                OpCode::Mul32K => alu32!(K, u32::wrapping_mul),
                OpCode::Mul32X => alu32!(X, u32::wrapping_mul),
                OpCode::Div64K => alu64!(K, div64),
                OpCode::Div64X => alu64!(X, div64),
                OpCode::Div32K => alu32!(K, div32),
                OpCode::Div32X => alu32!(X, div32),
                OpCode::Sdiv64K => alu64!(K, sdiv64),
                OpCode::Sdiv64X => alu64!(X, sdiv64),
                OpCode::Sdiv32K => alu32!(K, sdiv32),
                OpCode::Sdiv32X => alu32!(X, sdiv32),
                OpCode::Mod64K => alu64!(K, mod64),
                OpCode::Mod64X => alu64!(X, mod64),
                OpCode::Mod32K => alu32!(K, mod32),
                OpCode::Mod32X => alu32!(X, mod32),
                OpCode::Smod64K => alu64!(K, smod64),
                OpCode::Smod64X => alu64!(X, smod64),
                OpCode::Smod32K => alu32!(K, smod32),
                OpCode::Smod32X => alu32!(X, smod32),
                OpCode::Or64K => alu64!(K, |a, b| a | b),
                OpCode::Or64X => alu64!(X, |a, b| a | b),
                OpCode::Or32K => alu32!(K, |a, b| a | b),
                OpCode::Or32X => alu32!(X, |a, b| a | b),
                OpCode::And64K => alu64!(K, |a, b| a & b),
                OpCode::And64X => alu64!(X, |a, b| a & b),
                OpCode::And32K => alu32!(K, |a, b| a & b),
                OpCode::And32X => alu32!(X, |a, b| a & b),
                OpCode::Xor64K => alu64!(K, |a, b| a ^ b),
                OpCode::Xor64X => alu64!(X, |a, b| a ^ b),
                OpCode::Xor32K => alu32!(K, |a, b| a ^ b),
                OpCode::Xor32X => alu32!(X, |a, b| a ^ b),
                OpCode::Lsh64K => alu64!(K, |a: u64, b| a.wrapping_shl(b as u32)),
                OpCode::Lsh64X => alu64!(X, |a: u64, b| a.wrapping_shl(b as u32)),
                OpCode::Lsh32K => alu32!(K, u32::wrapping_shl),
                OpCode::Lsh32X => alu32!(X, u32::wrapping_shl),
                OpCode::Rsh64K => alu64!(K, |a: u64, b| a.wrapping_shr(b as u32)),
                OpCode::Rsh64X => alu64!(X, |a: u64, b| a.wrapping_shr(b as u32)),
                OpCode::Rsh32K => alu32!(K, u32::wrapping_shr),
                OpCode::Rsh32X => alu32!(X, u32::wrapping_shr),
                OpCode::Arsh64K => alu64!(K, |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                OpCode::Arsh64X => alu64!(X, |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                OpCode::Arsh32K => alu32!(K, |a, b| (a as i32).wrapping_shr(b) as u32),
                OpCode::Arsh32X => alu32!(X, |a, b| (a as i32).wrapping_shr(b) as u32),
                OpCode::LdImm64 => {
                    regs[dst] = op.imm;
                    pc += 2;
                    continue;
                }
                OpCode::Mov64K => regs[dst] = op.imm,
                OpCode::Mov64X => regs[dst] = regs[src],
                OpCode::Mov32K => regs[dst] = op.imm as u32 as u64,
                OpCode::Mov32X => regs[dst] = regs[src] as u32 as u64,
                OpCode::Movsx8To64 => regs[dst] = regs[src] as i8 as u64,
                OpCode::Movsx16To64 => regs[dst] = regs[src] as i16 as u64,
                OpCode::Movsx32To64 => regs[dst] = regs[src] as i32 as u64,
                OpCode::Movsx8To32 => regs[dst] = regs[src] as i8 as u32 as u64,
                OpCode::Movsx16To32 => regs[dst] = regs[src] as i16 as u32 as u64,
                OpCode::MovPercpu => regs[dst] = regs[src].wrapping_add(self.percpu_base()),
                OpCode::Neg64 => regs[dst] = regs[dst].wrapping_neg(),
                OpCode::Neg32 => regs[dst] = (regs[dst] as u32).wrapping_neg().into(),
                OpCode::Le16 => regs[dst] = (regs[dst] as u16).to_le().into(),
                OpCode::Le32 => regs[dst] = (regs[dst] as u32).to_le().into(),
                OpCode::Le64 => regs[dst] = regs[dst].to_le(),
                OpCode::Be16 => regs[dst] = (regs[dst] as u16).to_be().into(),
                OpCode::Be32 => regs[dst] = (regs[dst] as u32).to_be().into(),
                OpCode::Be64 => regs[dst] = regs[dst].to_be(),
                OpCode::Swap16 => regs[dst] = (regs[dst] as u16).swap_bytes().into(),
                OpCode::Swap32 => regs[dst] = (regs[dst] as u32).swap_bytes().into(),
                OpCode::Swap64 => regs[dst] = regs[dst].swap_bytes(),

                OpCode::Jeq64K => jump64!(K, u64, u64::eq),
                OpCode::Jeq64X => jump64!(X, u64, u64::eq),
                OpCode::Jeq32K => jump64!(K, u32, u32::eq),
                OpCode::Jeq32X => jump64!(X, u32, u32::eq),
                OpCode::Jne64K => jump64!(K, u64, u64::ne),
                OpCode::Jne64X => jump64!(X, u64, u64::ne),
                OpCode::Jne32K => jump64!(K, u32, u32::ne),
                OpCode::Jne32X => jump64!(X, u32, u32::ne),
                OpCode::Jset64K => jump64!(K, u64, |a, b| a & b != 0),
                OpCode::Jset64X => jump64!(X, u64, |a, b| a & b != 0),
                OpCode::Jset32K => jump64!(K, u32, |a, b| a & b != 0),
                OpCode::Jset32X => jump64!(X, u32, |a, b| a & b != 0),
                OpCode::Jgt64K => jump64!(K, u64, u64::gt),
                OpCode::Jgt64X => jump64!(X, u64, u64::gt),
                OpCode::Jgt32K => jump64!(K, u32, u32::gt),
                OpCode::Jgt32X => jump64!(X, u32, u32::gt),
                OpCode::Jge64K => jump64!(K, u64, u64::ge),
                OpCode::Jge64X => jump64!(X, u64, u64::ge),
                OpCode::Jge32K => jump64!(K, u32, u32::ge),
                OpCode::Jge32X => jump64!(X, u32, u32::ge),
                OpCode::Jlt64K => jump64!(K, u64, u64::lt),
                OpCode::Jlt64X => jump64!(X, u64, u64::lt),
                OpCode::Jlt32K => jump64!(K, u32, u32::lt),
                OpCode::Jlt32X => jump64!(X, u32, u32::lt),
                OpCode::Jle64K => jump64!(K, u64, u64::le),
                OpCode::Jle64X => jump64!(X, u64, u64::le),
                OpCode::Jle32K => jump64!(K, u32, u32::le),
                OpCode::Jle32X => jump64!(X, u32, u32::le),
                OpCode::Jsgt64K => jump64!(K, i64, i64::gt),
                OpCode::Jsgt64X => jump64!(X, i64, i64::gt),
                OpCode::Jsgt32K => jump64!(K, i32, i32::gt),
                OpCode::Jsgt32X => jump64!(X, i32, i32::gt),
                OpCode::Jsge64K => jump64!(K, i64, i64::ge),
                OpCode::Jsge64X => jump64!(X, i64, i64::ge),
                OpCode::Jsge32K => jump64!(K, i32, i32::ge),
                OpCode::Jsge32X => jump64!(X, i32, i32::ge),
                OpCode::Jslt64K => jump64!(K, i64, i64::lt),
                OpCode::Jslt64X => jump64!(X, i64, i64::lt),
                OpCode::Jslt32K => jump64!(K, i32, i32::lt),
                OpCode::Jslt32X => jump64!(X, i32, i32::lt),
                OpCode::Jsle64K => jump64!(K, i64, i64::le),
                OpCode::Jsle64X => jump64!(X, i64, i64::le),
                OpCode::Jsle32K => jump64!(K, i32, i32::le),
                OpCode::Jsle32X => jump64!(X, i32, i32::le),
                OpCode::Ja => go_to_target!(),
                OpCode::MayGoto => jump!(!self.may_loop()),

                OpCode::Ldx8 => load!(1),
                OpCode::Ldx16 => load!(2),
                OpCode::Ldx32 => load!(4),
                OpCode::Ldx64 => load!(8),
                OpCode::Ldxsx8 => load!(1 as i8 as u64),
                OpCode::Ldxsx16 => load!(2 as i16 as u64),
                OpCode::Ldxsx32 => load!(4 as i32 as u64),
                OpCode::St8 => store!(1, K),
                OpCode::St16 => store!(2, K),
                OpCode::St32 => store!(4, K),
                OpCode::St64 => store!(8, K),
                OpCode::Stx8 => store!(1, X),
                OpCode::Stx16 => store!(2, X),
                OpCode::Stx32 => store!(4, X),
                OpCode::Stx64 => store!(8, X),
                OpCode::Atomic8 => at_pc!(self.atomic_op(op, 1, &mut regs)),
                OpCode::Atomic16 => at_pc!(self.atomic_op(op, 2, &mut regs)),
                OpCode::Atomic32 => at_pc!(self.atomic_op(op, 4, &mut regs)),
                OpCode::Atomic64 => at_pc!(self.atomic_op(op, 8, &mut regs)),

                OpCode::CallHelper => {
                    let [_, args @ .., _, _, _, _, _, _, _, _, _, _] = regs;
                    regs[R0] = at_pc!(self.call_helper(op.imm as u32, args));
                }
                OpCode::CallFunction => {
                    let [.., a, b, c, d, _, _, _, _, _, _] = regs;
                    let entry = op.target as usize;
                    let (resume, saved) = (pc + 1, [a, b, c, d]);
                    let frame = Frame { entry, resume, saved, may_goto: MAX_LOOPS, caller: None };
                    let top = at_pc!(self.push(frame));
                    regs[R0] = 0;
                    regs[R6..].fill(0);
                    regs[R10] = top;
                    pc = entry;
                    continue;
                }
                OpCode::TailCall => {
                    let [_, args @ .., _, _, _, _, _, _, _, _, _, _] = regs;
                    at_pc!(self.burn(pc.saturating_sub(self.entry()) as u64 + 1));
                    if at_pc!(self.tail_call(args)) {
                        regs = [0; 16];
                        (regs[R1], regs[R10]) = (args[0], self.frame_top());
                        ops = self.running.code.ops();
                        pc = 0;
                        continue;
                    }
                }
                OpCode::Exit => exit!(),
                OpCode::Illegal => at_pc!(Err(FaultKind::IllegalOpcode(op.imm as u8))),
                OpCode::End => at_pc!(Err(FaultKind::PastEnd)),
            }
            pc += 1;
        }
    }

    #[cold]
    pub(crate) fn fault(&self, insn: usize, kind: FaultKind) -> Box<Fault> {
        Box::new(Fault { program: self.other_program(), insn, kind })
    }

    /// Whether `may_goto` stays in its loop.
    fn may_loop(&mut self) -> bool {
        let Some(frame) = self.frames.last_mut() else { return false };
        let left = frame.may_goto.checked_sub(1);
        frame.may_goto = left.unwrap_or(0);
        left.is_some()
    }

    fn call_helper(&mut self, id: u32, args: [u64; 5]) -> Result<u64, FaultKind> {
        let environment = self.environment();
        let helper = environment.helpers.get(id).ok_or(FaultKind::UnknownHelper(id))?;
        helper.call(self, args)
    }

    fn atomic_op(&mut self, op: &Op, size: usize, regs: &mut [u64; 16]) -> Result<(), FaultKind> {
        let (dst, src) = (op.dst().index(), op.src().index());
        let kind = op.imm as i32;
        let base = if kind == atomic::LOAD_ACQ { regs[src] } else { regs[dst] };
        let addr = base.wrapping_add_signed(op.off.into());
        let operand = regs[src];
        let r0 = regs[R0];
        let operation: &dyn Fn(&Memory, usize) -> Result<u64, AtomicError> = match kind {
            atomic::LOAD_ACQ => {
                let load = |memory: &Memory, at| memory.load_acquire(at, size);
                regs[dst] = self.access(addr, size, false, load)?;
                return Ok(());
            }
            atomic::STORE_REL => {
                let store = |memory: &Memory, at| memory.store_release(at, size, operand);
                return Ok(self.access(addr, size, true, store)?);
            }
            atomic::XCHG => &|memory, at| memory.exchange(at, size, operand),
            atomic::CMPXCHG => &|memory, at| memory.compare_exchange(at, size, r0, operand),
            _ => match kind & !atomic::FETCH {
                atomic::ADD => &|memory, at| memory.fetch_add(at, size, operand),
                atomic::OR => &|memory, at| memory.fetch_or(at, size, operand),
                atomic::AND => &|memory, at| memory.fetch_and(at, size, operand),
                _ => &|memory, at| memory.fetch_xor(at, size, operand),
            },
        };
        // The old value is read even where nobody asks for it.
        self.access(addr, size, false, |_, _| Ok(()))?;
        let old = self.access(addr, size, true, operation)?;
        match kind {
            atomic::CMPXCHG => regs[R0] = old,
            _ if kind & atomic::FETCH != 0 => regs[src] = old,
            _ => {}
        }
        Ok(())
    }
}

fn div64(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(0)
}

fn div32(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(0)
}

fn sdiv64(a: u64, b: u64) -> u64 {
    if b == 0 { 0 } else { (a as i64).wrapping_div(b as i64) as u64 }
}

fn sdiv32(a: u32, b: u32) -> u32 {
    if b == 0 { 0 } else { (a as i32).wrapping_div(b as i32) as u32 }
}

fn mod64(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

fn mod32(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}

fn smod64(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
}

fn smod32(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}
