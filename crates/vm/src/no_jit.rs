//! Instead of the JIT, where its feature is off: no program has machine code.

use bpfarray_core::insn::Insn;

use crate::engine::Accesses;
use crate::fault::Fault;
use crate::interp::{Code, Environment, Machine};

/// A program's machine code, of which there is none.
#[derive(Debug)]
pub(crate) enum Compiled {}

pub(crate) fn compile(
    _: &[Insn],
    _: &Code,
    _: &Environment,
    _: &dyn Fn(usize) -> bool,
) -> Option<Compiled> {
    None
}

pub(crate) fn compile_quick(
    _: &[Insn],
    _: &Code,
    _: &Environment,
    _: &dyn Fn(usize) -> bool,
) -> Option<Compiled> {
    None
}

pub(crate) fn disassemble(
    _: &[Insn],
    _: &Code,
    _: &Environment,
    _: &dyn Fn(usize) -> bool,
) -> Option<String> {
    None
}

impl Compiled {
    pub(crate) fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub(crate) fn is_hot(&self) -> bool {
        match *self {}
    }

    pub(crate) fn claim(&self) -> bool {
        match *self {}
    }

    pub(crate) fn is_quick(&self) -> bool {
        match *self {}
    }

    pub(crate) fn better(&self, _: impl FnOnce() -> Option<Self>) -> Option<&std::sync::Arc<Self>> {
        match *self {}
    }

    pub(crate) fn accesses(&self) -> Accesses {
        match *self {}
    }

    pub(crate) fn call(
        &self,
        _: &mut Machine<'_>,
        _: usize,
        _: [u64; 5],
    ) -> Result<u64, Box<Fault>> {
        match *self {}
    }
}
