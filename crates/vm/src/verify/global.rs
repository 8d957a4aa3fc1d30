//! Global functions. The kernel verifies each on its own, for whatever arguments its types allow, and a call of one
//! by these types alone.

use std::collections::HashMap;

use bpfarray_core::btf::{Btf, Def, Linkage};
use bpfarray_core::insn::{Insn, Reg};

use super::explore::Explorer;
use super::memory::Access;
use super::proto::proto;
use super::rule::Rule;
use super::state::{Return, State};
use super::structure::function_target;
use super::value::{Base, Pointer, Value};
use super::{ProgType, VerifyErrorKind as Kind};
use crate::elf::ProgramCode;

/// What a global function takes in a register.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum GlobalArg {
    Number,
    Ctx,
    /// So many bytes, or 0.
    Memory(u32),
    /// Something that cannot be verified.
    Unsupported,
}

/// The types of a global function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Global {
    pub(super) name: String,
    pub(super) args: Vec<GlobalArg>,
    /// Whether it returns a number.
    pub(super) returns: bool,
}

/// The global functions of a program but the program itself, by their first instruction.
///
/// # Kernel
/// `btf_prepare_func_args`
pub(crate) fn globals(
    code: &ProgramCode,
    btf: Option<&Btf>,
    prog_type: ProgType,
) -> HashMap<usize, Global> {
    let functions = code.functions.iter().skip(1);
    let global = |function: &crate::elf::Function| {
        let btf = btf?;
        let Def::Func { proto, linkage: Linkage::Global } = btf.get(function.type_id).ok()?.def
        else {
            return None;
        };
        let Def::FuncProto(proto) = btf.get(proto).ok()?.def else { return None };
        let args = proto.params().map(|param| arg(btf, param.ty, prog_type)).collect();
        let returns = matches!(btf.resolve(proto.ret).ok()?.def, Def::Int(_) | Def::Enum(_));
        Some((function.insn, Global { name: function.name.to_string(), args, returns }))
    };
    functions.filter_map(global).collect()
}

fn arg(btf: &Btf, id: u32, prog_type: ProgType) -> GlobalArg {
    match btf.resolve(id).map(|ty| ty.def) {
        Ok(Def::Int(_) | Def::Enum(_)) => GlobalArg::Number,
        Ok(Def::Ptr(to)) => match btf.resolve(to) {
            Ok(ty) if is_context(ty.name, prog_type) => GlobalArg::Ctx,
            Ok(_) => btf.size_of(to).map_or(GlobalArg::Unsupported, GlobalArg::Memory),
            Err(_) => GlobalArg::Unsupported,
        },
        _ => GlobalArg::Unsupported,
    }
}

/// # Kernel
/// `btf_is_prog_ctx_type`
fn is_context(name: &str, prog_type: ProgType) -> bool {
    match prog_type {
        ProgType::XDP => name == "xdp_md",
        ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT => name == "__sk_buff",
        ProgType::KPROBE => matches!(name, "pt_regs" | "bpf_user_pt_regs_t" | "user_pt_regs"),
        ProgType::PERF_EVENT => name == "bpf_perf_event_data",
        ProgType::RAW_TRACEPOINT | ProgType::RAW_TRACEPOINT_WRITABLE => {
            name == "bpf_raw_tracepoint_args"
        }
        _ => false,
    }
}

impl Explorer<'_> {
    /// Calls a global function, if that is what is there; tells whether it was.
    ///
    /// # Kernel
    /// `check_func_call`, `btf_check_subprog_call`
    pub(super) fn call_global(&mut self, target: usize, state: &mut State) -> Result<bool, Kind> {
        let Some(global) = self.env.globals.get(&target).filter(|_| self.env.strict) else {
            return Ok(false);
        };
        let refuse = |rule| Err(Kind::Rule(rule));
        if state.lock.is_some() {
            return refuse(Rule::GlobalCallUnderLock);
        }
        if !global.returns {
            return refuse(Rule::GlobalReturn(global.name.clone()));
        }
        for (place, arg) in global.args.iter().enumerate() {
            let reg = Reg::new(place as u8 + 1);
            let value = self.read(state, reg)?;
            let number = reg.index();
            match (arg, value) {
                (GlobalArg::Number, Value::Number(_)) => {}
                (GlobalArg::Number, _) => return refuse(Rule::GlobalNumber(number)),
                (GlobalArg::Ctx, _) if value == Value::to(Base::Ctx) => {}
                (GlobalArg::Ctx, _) => {
                    let is = self.type_name(value);
                    return refuse(Rule::ArgType { reg: number, is, expected: "ctx" });
                }
                (GlobalArg::Memory(_), _) if value.is_null() => {}
                (GlobalArg::Memory(size), Value::Pointer(pointer)) => {
                    // Behind an address that may be 0 all bytes are there, too, or it is 0.
                    let there = Value::Pointer(Pointer { maybe_null: false, ..pointer });
                    for write in [false, true] {
                        let access = Access { write, indirect: true };
                        self.check_memory((reg, there), i64::from(*size), access, state)
                            .map_err(Kind::Rule)?;
                    }
                    if let Base::Stack(frame) = pointer.base {
                        let (lo, hi) = pointer.span();
                        let len = hi - lo + i64::from(*size);
                        self.scrub(state, frame, lo, len);
                        state.overwrite(frame, lo, len);
                    }
                }
                (GlobalArg::Memory(_), _) => {
                    let is = self.type_name(value);
                    return refuse(Rule::ArgType {
                        reg: number,
                        is,
                        expected: super::args::MEMORY,
                    });
                }
                (GlobalArg::Unsupported, _) => {
                    return refuse(Rule::GlobalArg { arg: place, function: global.name.clone() });
                }
            }
        }
        if self.called.insert(target) {
            let mut args = [Value::Unreadable; 5];
            for (arg, value) in global.args.iter().zip(&mut args) {
                *value = self.any(*arg);
            }
            self.push(target, State::entry(target, args, Return::Global), None);
        }
        if moves_packet(self.insns, self.functions, target, &mut Vec::new()) {
            state.forget(|pointer| {
                matches!(pointer.base, Base::Packet | Base::PacketMeta | Base::PacketEnd)
            });
        }
        state.clobber_caller_saved();
        state.set(Reg::R0, Value::UNKNOWN);
        Ok(true)
    }

    /// Whatever an argument can be.
    fn any(&mut self, arg: GlobalArg) -> Value {
        match arg {
            GlobalArg::Number => Value::UNKNOWN,
            GlobalArg::Ctx => Value::to(Base::Ctx),
            GlobalArg::Memory(size) => {
                let memory = Pointer::to(Base::Memory(size));
                Value::Pointer(Pointer { id: self.new_id(), maybe_null: true, ..memory })
            }
            GlobalArg::Unsupported => Value::Unreadable,
        }
    }
}

/// Whether a function, or one that it calls, calls a helper after which the packet may be elsewhere.
///
/// # Kernel
/// `changes_pkt_data` of `struct bpf_subprog_info`
fn moves_packet(insns: &[Insn], functions: &[usize], start: usize, seen: &mut Vec<usize>) -> bool {
    if seen.contains(&start) {
        return false;
    }
    seen.push(start);
    let end = functions.iter().find(|other| **other > start).copied().unwrap_or(insns.len());
    let moves = |helper| proto(helper).is_none_or(|proto| proto.moves_packet);
    (start..end).any(|at| {
        let insn = insns[at];
        let target = function_target(at, insn).and_then(|target| usize::try_from(target).ok());
        insn.is_helper_call() && moves(insn.imm as u32)
            || target.is_some_and(|target| moves_packet(insns, functions, target, seen))
    })
}
