//! The forms in which a program runs: what it has first, and what is best for it.

use std::sync::Arc;

use super::Inner;
use crate::engine::Engine;
use crate::interp::{Code, Environment, Executable};
use crate::jit::{self, Compiled};
use crate::verify::Safety;

impl Inner {
    /// What runs before the best code is there, unless it is worth making that now.
    #[cold]
    pub(super) fn early(&self) -> &Arc<Executable> {
        let first = self.first();
        let stays = |code: &Compiled| code.is_quick() && !(code.is_hot() && code.claim());
        if first.compiled.as_deref().is_some_and(stays) { first } else { self.best() }
    }

    pub(super) fn first(&self) -> &Arc<Executable> {
        self.first.get_or_init(|| {
            let insns = self.xlated.link(&self.maps);
            let code = Code::new(&insns);
            let environment = Environment::new(&self.name, &self.maps, &self.helpers);
            let environment = environment.with_fuel(self.fuel);
            let proven = |at| self.xlated.safety(at) == Safety::Proven;
            let compiled = match self.engine {
                Engine::Interp => None,
                Engine::Jit => jit::compile_quick(&insns, &code, &environment, &proven)
                    .or_else(|| jit::compile(&insns, &code, &environment, &proven)),
            };
            Arc::new(Executable { code, compiled: compiled.map(Arc::new), environment })
        })
    }

    pub(super) fn best(&self) -> &Arc<Executable> {
        self.best.get_or_init(|| {
            let first = self.first();
            let Executable { code, environment, .. } = &**first;
            let make = || {
                let proven = |at| self.xlated.safety(at) == Safety::Proven;
                let insns = self.xlated.link(&self.maps);
                jit::compile(&insns, code, environment, &proven)
            };
            match first.compiled.as_deref().and_then(|quick| quick.better(make)) {
                Some(best) => {
                    let compiled = Some(Arc::clone(best));
                    Arc::new(Executable { compiled, ..Executable::clone(first) })
                }
                None => Arc::clone(first),
            }
        })
    }
}
