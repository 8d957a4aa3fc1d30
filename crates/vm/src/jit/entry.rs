//! From Rust into generated code.
//!
//! **Invariant.** The address of a function in a [`Compiled`](super::Compiled) is that of code which the
//! translation in this directory made, and which
//! - takes what [`TAIL`](super::isa::tail_signature) says: the address of the [`Machine`] of the run and r1 to r5;
//! - touches no memory but that machine's fields at [`place`](crate::interp::place), those of its [`Stack`](crate::interp::Stack) that have a place, numbers that its `Compiled` keeps (one of
//!   which it counts in), its own host stack, and memory
//!   of the program that it, the verifier, or [`Machine`]'s own checks found to be allowed. The last of these is the
//!   soundness of the whole, and `docs/soundness.md` argues it;
//! - calls nothing but itself and the functions in `trampoline.rs`, with that machine;
//! - never unwinds: nothing it calls does.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use super::memory::CodeMemory;
use super::{Compiled, isa};
use crate::interp::Machine;

/// Calls a function by the convention of generated code.
type Enter = unsafe extern "C" fn(*mut Machine<'_>, usize, u64, u64, u64, u64, u64) -> u64;

/// The one function that Rust calls, made once for the process.
fn entry() -> Option<usize> {
    static ENTRY: OnceLock<Option<CodeMemory>> = OnceLock::new();
    ENTRY.get_or_init(isa::entry).as_ref().map(CodeMemory::addr)
}

/// Where generated code can be entered, if it can.
#[derive(Copy, Clone, Debug)]
pub(super) struct Entry(usize);

impl Entry {
    /// `None` where no code can be made.
    pub(super) fn new() -> Option<Self> {
        entry().map(Self)
    }
}

impl Compiled {
    /// Runs the function that begins with instruction `at` and gives its r0, which means nothing if the machine was
    /// stopped. `None`, and nothing is run, if there is no such function, or another program is running.
    #[inline]
    pub(super) fn enter(
        &self,
        machine: &mut Machine<'_>,
        at: usize,
        [a, b, c, d, e]: [u64; 5],
    ) -> Option<u64> {
        let target = if at == 0 { self.main } else { *self.functions.get(&at)? };
        let running = machine.running.compiled.as_deref()?;
        if !std::ptr::eq(self, running) {
            return None;
        }
        let entry = std::ptr::with_exposed_provenance::<()>(self.entry.0);
        // SAFETY: this is the address of code that `isa::entry` made for this signature; its memory is never freed.
        let enter: Enter = unsafe { std::mem::transmute(entry) };
        // SAFETY: the target is code with the invariant above, of the program that is running in `machine`, which is
        // borrowed for as long as the code runs, and used by nobody else meanwhile.
        Some(unsafe { enter(machine, target, a, b, c, d, e) })
    }
}
