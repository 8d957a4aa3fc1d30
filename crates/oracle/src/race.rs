//! One program of an object, loaded here and into the live kernel, to be timed side by side.

use std::time::Duration;

use bpfarray_vm::elf::Object;
use bpfarray_vm::{Context, LoadOptions, Loaded, Program};

use crate::kernel::Kernel;
use crate::kernel_program::{KernelEngine, KernelProgram};
use crate::programs::{Assembled, Engine};
use crate::request::Creator;

/// The two sides, each with maps of its own. Both trust the program, as root's are trusted.
pub struct Race {
    loaded: Loaded,
    program: Program,
    context: Context,
    packet: Vec<u8>,
    kernel: Option<KernelProgram>,
}

impl Race {
    /// Loads a program that takes packets into an engine, and into the kernel too where there is one.
    ///
    /// # Errors
    /// Why one of the sides cannot load it.
    pub fn new(
        engine: bpfarray_vm::Engine,
        kernel: Option<Kernel>,
        object: &Object,
        program: &str,
        packet: &[u8],
    ) -> Result<Self, String> {
        let creator = Creator::Trusted;
        let options = LoadOptions { bypass_spec_v1: true, engine, ..LoadOptions::default() };
        let loaded = object.clone().load(&options).map_err(|e| e.to_string())?;
        let ours = loaded.program(program).map_err(|e| e.to_string())?;
        // What it has in the end.
        ours.optimise();
        let context = Context::new(ours.prog_type(), packet, None).map_err(|e| e.to_string())?;
        let load = |kernel| KernelEngine { kernel, creator }.load(object, program);
        let kernel = kernel.map(load).transpose()?;
        Ok(Self { loaded, program: ours, context, packet: packet.to_vec(), kernel })
    }

    /// Writes an element of a map on both sides: the same value for each CPU where there are several.
    ///
    /// # Errors
    /// Why one of the sides refuses it.
    pub fn update(&self, map: &str, index: u32, value: &[u8]) -> Result<(), String> {
        let ours = self.loaded.map(map).ok_or("no such map")?;
        let value = value.repeat(ours.user_size() as usize / value.len().max(1));
        ours.update_elem(index, &value, 0).map_err(|e| e.to_string())?;
        self.kernel.as_ref().map_or(Ok(()), |kernel| kernel.update(map, index, &value))
    }

    /// Runs the program here, a number of times.
    ///
    /// # Errors
    /// The fault that ended a run.
    pub fn run(&mut self, times: u64) -> Result<u32, String> {
        let mut retval = 0;
        for _ in 0..times {
            retval = self.program.run(&mut self.context).map_err(|e| e.to_string())?.retval();
        }
        Ok(retval)
    }

    /// What the program returns in the kernel and the nanoseconds it takes there, as the average of so many runs;
    /// `None` without a kernel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run_in_kernel(&self, times: u32) -> Result<Option<(u32, u32)>, String> {
        self.kernel.as_ref().map(|kernel| kernel.time(&self.packet, times)).transpose()
    }
}

/// How long the kernel takes to load a program of an object, whose maps it has already.
///
/// # Errors
/// Why it cannot.
pub fn load_time(kernel: Kernel, object: &Object, program: &str) -> Result<Duration, String> {
    let engine = KernelEngine { kernel, creator: Creator::Trusted };
    Ok(engine.load(object, program)?.load_time())
}

/// How long the kernel takes to load a program of instructions.
///
/// # Errors
/// Why it cannot.
pub fn load_time_of(kernel: Kernel, program: &Assembled) -> Result<Duration, String> {
    let engine = KernelEngine { kernel, creator: Creator::Trusted };
    Ok(engine.assemble(program)?.load_time())
}

impl std::fmt::Debug for Race {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Race").field(&self.program).finish()
    }
}
