//! How much stack functions need together.

use std::collections::HashMap;

use bpfarray_core::helper_id;
use bpfarray_core::insn::Insn;

use super::rule::Rule;
use super::structure::{function_target, len};
use super::{Environment, VerifyError, VerifyErrorKind as Kind};
use crate::prog_type::{AttachType, ProgType};

/// Bytes that functions which run at a time have together.
const STACK: i64 = crate::interp::FRAME_SIZE as i64;
/// Bytes of the functions below one that makes a tail call.
const BELOW_TAIL_CALL: i64 = 256;
/// To multiples of so many bytes a function's stack is rounded up where programs are machine code.
const ROUND: i64 = 16;

/// A frame of so many bytes is not among the others where functions can have stacks of their own.
///
/// # Kernel
/// `BPF_PRIV_STACK_MIN_SIZE`
const APART: i64 = 64;
const TAIL_CALL: Insn = Insn::call(helper_id::TAIL_CALL);

/// The frames of all chains of calls have to fit.
///
/// # Kernel
/// `check_max_stack_depth`
pub(super) fn check(
    insns: &[Insn],
    functions: &[usize],
    stack: &HashMap<usize, i64>,
    env: &Environment<'_>,
) -> Result<(), VerifyError> {
    let are_apart = has_own_stacks(env) && !insns.contains(&TAIL_CALL);
    let depth = Depth { insns, functions, stack, are_apart };
    depth.follow(0, 0, 1)
}

/// Whether functions of such programs get stacks of their own.
///
/// # Kernel
/// `bpf_enable_priv_stack`, on x86-64
fn has_own_stacks(env: &Environment<'_>) -> bool {
    match env.prog_type {
        ProgType::KPROBE
        | ProgType::TRACEPOINT
        | ProgType::PERF_EVENT
        | ProgType::RAW_TRACEPOINT => true,
        ProgType::TRACING => env.attach_type != AttachType::TRACE_ITER,
        _ => false,
    }
}

struct Depth<'a> {
    insns: &'a [Insn],
    functions: &'a [usize],
    stack: &'a HashMap<usize, i64>,
    /// Whether large frames are not among the others.
    are_apart: bool,
}

impl Depth<'_> {
    fn follow(&self, function: usize, below: i64, calls: usize) -> Result<(), VerifyError> {
        let fail = |insn, rule| Err(VerifyError { insn, kind: Kind::Rule(rule) });
        let own = self.stack.get(&function).copied().unwrap_or(0);
        let own = (own + ROUND - 1) / ROUND * ROUND;
        let bytes = if self.are_apart && own >= APART { below } else { below + own };
        if bytes > STACK {
            return fail(function, Rule::StackSize { calls, bytes });
        }
        let end = self.functions.iter().find(|start| **start > function);
        let mut at = function;
        while at < end.copied().unwrap_or(self.insns.len()) {
            let insn = self.insns[at];
            if insn == TAIL_CALL && calls > 1 && below >= BELOW_TAIL_CALL {
                return fail(at, Rule::TailCallStack(below));
            }
            if let Some(target) =
                function_target(at, insn).and_then(|target| usize::try_from(target).ok())
            {
                // More functions than that were refused where they were called.
                if calls < 8 {
                    self.follow(target, bytes, calls + 1)?;
                }
            }
            at += len(insn);
        }
        Ok(())
    }
}
