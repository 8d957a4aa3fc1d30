//! Programs in the live kernel.

use bpfarray_core::insn::Insn;
use bpfarray_vm::elf::{MapSpec, Object};
use bpfarray_vm::prog_type::ProgType;

use crate::attr::{ProgLoad, TestRun};
use crate::create::MapCreate;
use crate::inputs::Input;
use crate::kernel::Kernel;
use crate::programs::{Assembled, Contents, Engine, Outcome, Program};
use crate::sys::{Btf, Map, Prog};
use crate::{btf, possible_cpus};

/// Room for what a program adds to a packet: more than it can add.
const GROWTH: usize = 8192;

/// A program with maps of its own.
pub struct KernelProgram {
    prog_type: ProgType,
    prog: Prog,
    maps: Vec<NamedMap>,
}

struct NamedMap {
    name: String,
    create: MapCreate,
    map: Map,
}

impl NamedMap {
    fn new(name: &str, create: MapCreate) -> Result<Self, String> {
        let map = Map::create(&create).map_err(|e| format!("creating map {name}: {e}"))?;
        Ok(Self { name: name.into(), create, map })
    }

    /// Creates a map as its definition says, filled and frozen.
    fn defined(spec: &MapSpec) -> Result<Self, String> {
        let this = Self::new(&spec.name, MapCreate::from_core(&spec.attr))?;
        let failed = |e| format!("filling map {}: {e}", spec.name);
        if spec.is_data() {
            let mut value = spec.initial.clone();
            value.resize(this.map.value_len(), 0);
            this.map.update(&[0; 4], &value, 0).map_err(failed)?;
        }
        if spec.is_frozen() {
            this.map.freeze().map_err(failed)?;
        }
        Ok(this)
    }

    fn contents(&self) -> Result<Contents, String> {
        let is_percpu = self.create.map_type == MapCreate::PERCPU_ARRAY;
        let element = |index: u32| self.map.lookup(&index.to_ne_bytes(), 0);
        let elements = (0..self.create.max_entries).map(element).collect::<Result<_, _>>();
        Ok(Contents {
            name: self.name.clone(),
            percpu: is_percpu.then(|| self.map.value_len() / possible_cpus()),
            elements: elements.map_err(|e| format!("reading map {}: {e}", self.name))?,
        })
    }
}

impl KernelProgram {
    fn new(
        prog_type: ProgType,
        expected_attach_type: u32,
        insns: &[Insn],
        maps: Vec<NamedMap>,
    ) -> Result<Self, String> {
        const BPF_F_SLEEPABLE: u32 = 1 << 4;
        // Functions whose address is taken must be described by BTF.
        let btf = Btf::load(&btf::blob()).map_err(|e| format!("loading BTF: {e}"))?;
        let map_refs: Vec<&Map> = maps.iter().map(|map| &map.map).collect();
        let load = ProgLoad {
            expected_attach_type,
            prog_flags: if prog_type == ProgType::SYSCALL { BPF_F_SLEEPABLE } else { 0 },
            btf: Some(&btf),
            func_info: &btf::func_info(insns),
            ..ProgLoad::new(prog_type.0, insns, &map_refs)
        };
        let prog = Prog::load(&load).map_err(|e| format!("loading the program: {e}"))?;
        Ok(Self { prog_type, prog, maps })
    }
}

impl Engine for Kernel {
    type Program = KernelProgram;

    fn load(&self, object: &Object, program: &str) -> Result<KernelProgram, String> {
        let spec = object.program(program).ok_or("no such program")?;
        let prog_type = spec.prog_type().map_err(|e| e.to_string())?;
        let code = spec.code().map_err(|e| e.to_string())?;
        let maps = object.maps().iter().map(NamedMap::defined).collect::<Result<_, _>>()?;
        let attach_type = spec.expected_attach_type().map_or(0, |attach_type| attach_type.0);
        KernelProgram::new(prog_type, attach_type, &code.insns, maps)
    }

    fn assemble(&self, assembled: &Assembled) -> Result<KernelProgram, String> {
        let maps = assembled.maps.iter().enumerate();
        let maps = maps.map(|(i, create)| NamedMap::new(&i.to_string(), create.clone()));
        let maps = maps.collect::<Result<_, _>>()?;
        KernelProgram::new(ProgType::RAW_TRACEPOINT, 0, &assembled.insns, maps)
    }
}

impl Program for KernelProgram {
    fn run(&mut self, input: &Input) -> Result<Outcome, String> {
        let data_in = input.data.as_deref().unwrap_or_default();
        let ctx_in = input.ctx.as_deref().unwrap_or_default();
        let is_raw_tp = self.prog_type == ProgType::RAW_TRACEPOINT;
        let is_syscall = self.prog_type == ProgType::SYSCALL;
        let run = TestRun {
            data_in,
            data_out_len: if input.data.is_some() { data_in.len() + GROWTH } else { 0 },
            ctx_in,
            ctx_is_copied_back: is_raw_tp || is_syscall,
            repeat: 0,
        };
        let result = self.prog.test_run(&run).map_err(|e| e.to_string())?;
        Ok(Outcome {
            retval: result.retval,
            data: input.data.is_some().then_some(result.data_out),
            ctx: (input.ctx.is_some() && !is_raw_tp).then_some(result.ctx_out),
        })
    }

    fn maps(&self) -> Result<Vec<Contents>, String> {
        self.maps.iter().map(NamedMap::contents).collect()
    }
}
