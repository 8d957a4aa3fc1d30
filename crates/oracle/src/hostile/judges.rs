//! Who decides about a program: the live kernel's verifier, and ours in its strict mode.

use std::collections::HashMap;

use bpfarray_core::Errno;
use bpfarray_core::insn::Insn;
use bpfarray_vm::{Engine, LoadOptions, Program, ProgramError};

use super::{Case, Key, Maps};
use crate::corpus::Corpus;
use crate::kernel::Kernel;
use crate::kernel_program::{KernelEngine, KernelMaps, load_flags};
use crate::our_program::{Form, OurEngine};
use crate::request::Creator;
use crate::sys::{Btf, Prog};
use crate::{ProgLoad, btf};

/// What became of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It can be run.
    Accepted,
    /// It cannot.
    Refused {
        /// The error number.
        errno: Errno,
        /// All that was said about it.
        text: String,
    },
}

impl Verdict {
    /// Whether the program can be run.
    pub fn is_accepted(&self) -> bool {
        *self == Self::Accepted
    }
}

/// The kernel's verifier.
pub struct TheKernel<'c> {
    corpus: &'c Corpus,
    engine: KernelEngine,
    btf: Btf,
    maps: HashMap<Key, KernelMaps>,
}

impl<'c> TheKernel<'c> {
    /// With every capability.
    ///
    /// # Errors
    /// What kept the kernel from taking the BTF of functions.
    pub fn new(kernel: Kernel, corpus: &'c Corpus) -> Result<Self, String> {
        let btf = Btf::load(&btf::blob()).map_err(|e| format!("loading BTF: {e}"))?;
        let engine = KernelEngine { kernel, creator: Creator::Trusted };
        Ok(Self { corpus, engine, btf, maps: HashMap::new() })
    }

    /// What it says about a case with these instructions.
    ///
    /// # Errors
    /// Why the maps of the case cannot be created.
    pub fn judge(&mut self, case: &Case, insns: &[Insn]) -> Result<Verdict, String> {
        let key = case.key();
        if !self.maps.contains_key(&key) {
            let maps = match &case.maps {
                Maps::Made(maps, inner) => self.engine.make(maps, *inner)?,
                Maps::Of { object, .. } => self.engine.define(object_of(self.corpus, object)?)?,
            };
            self.maps.insert(key.clone(), maps);
        }
        let maps = self.maps.get(&key).map(KernelMaps::maps).unwrap_or_default();
        let func_info = btf::func_info(insns);
        let load = ProgLoad {
            btf: Some(&self.btf),
            func_info: &func_info,
            prog_flags: load_flags(case.prog_type, case.has_frags),
            expected_attach_type: case.expected_attach_type,
            ..ProgLoad::new(case.prog_type.0, insns, &maps)
        };
        Ok(match Prog::load(&load) {
            Ok(_) => Verdict::Accepted,
            Err(error) => Verdict::Refused { errno: error.errno, text: error.log },
        })
    }
}

/// Our verifier in its strict mode.
pub struct Strict<'c> {
    corpus: &'c Corpus,
    engine: OurEngine,
    maps: HashMap<Key, Vec<bpfarray::Map>>,
}

impl<'c> Strict<'c> {
    /// For maps of a creator with every capability.
    pub fn new(corpus: &'c Corpus) -> Self {
        let engine = OurEngine { form: Form::Interp, creator: Creator::Trusted };
        Self { corpus, engine, maps: HashMap::new() }
    }

    /// What it says about a case with these instructions.
    ///
    /// # Errors
    /// Why the maps of the case cannot be created.
    pub fn judge(&mut self, case: &Case, insns: &[Insn]) -> Result<Verdict, String> {
        let key = case.key();
        if !self.maps.contains_key(&key) {
            let maps = match &case.maps {
                Maps::Made(maps, inner) => self.engine.make(maps, *inner)?,
                Maps::Of { object, .. } => self.engine.define(object_of(self.corpus, object)?)?,
            };
            self.maps.insert(key.clone(), maps);
        }
        let maps = self.maps.get(&key).map(Vec::as_slice).unwrap_or_default();
        let options = LoadOptions {
            engine: Engine::Interp,
            bypass_spec_v1: true,
            strict: true,
            ..LoadOptions::default()
        };
        Ok(match Program::with_options(case.prog_type, insns, maps, &options) {
            // The programs that the object has put into its slots have decided what the map is for.
            Ok(_) | Err(ProgramError::Owner { .. }) => Verdict::Accepted,
            Err(error) => Verdict::Refused { errno: error.errno(), text: error.to_string() },
        })
    }
}

fn object_of<'c>(corpus: &'c Corpus, name: &str) -> Result<&'c bpfarray_vm::Object, String> {
    corpus.objects.get(name).ok_or_else(|| format!("no object {name}"))
}
