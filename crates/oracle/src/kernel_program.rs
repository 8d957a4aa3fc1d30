//! Programs in the live kernel.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use bpfarray::perf::PerfEvent;
use bpfarray_core::attr::MapAttr;
use bpfarray_core::btf::SpecialFields;
use bpfarray_core::insn::Insn;
use bpfarray_vm::elf::{MapSpec, Object, Slot};
use bpfarray_vm::prog_type::ProgType;

use crate::attr::{ProgLoad, TestRun};
use crate::create::MapCreate;
use crate::events::{COUNTERS, Filling, RING_CPUS, without_ids};
use crate::inputs::Input;
use crate::kernel::Kernel;
use crate::perf_ring::PerfRing;
use crate::programs::{Assembled, Contents, Engine, Outcome, Program};
use crate::request::{Creator, Request};
use crate::sys::{Btf, LoadError, Map, Prog};
use crate::{btf, kernel_side, possible_cpus};

const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// Room for what a program adds to a packet: more than it can add.
const GROWTH: usize = 8192;

/// A program with maps of its own.
pub(crate) struct KernelProgram {
    prog_type: ProgType,
    prog: Prog,
    maps: Vec<NamedMap>,
}

struct NamedMap {
    name: String,
    create: MapCreate,
    map: Map,
    /// Rings in its slots.
    rings: Vec<PerfRing>,
    /// What was read from the ring of CPU 0 after runs.
    drained: Vec<u8>,
}

impl NamedMap {
    fn new(name: &str, request: &Request, kernel: Kernel) -> Result<Self, String> {
        let created = kernel_side::create(kernel, request).map_err(|e| e.to_string())?;
        let (map, _) = created.map_err(|e| format!("creating map {name}: {e}"))?;
        let create = request.create.clone();
        Ok(Self { name: name.into(), create, map, rings: Vec::new(), drained: Vec::new() })
    }

    /// Puts the events into the slots that belong there by the map's name.
    fn put_events(&mut self) -> Result<(), String> {
        if self.create.map_type != MapCreate::PERF_EVENT_ARRAY {
            return Ok(());
        }
        match Filling::of(&self.name) {
            Filling::Rings { .. } => {
                for cpu in 0..RING_CPUS {
                    let ring = PerfRing::new(cpu).map_err(|e| format!("ring of CPU {cpu}: {e}"))?;
                    self.put(cpu, &ring)?;
                    self.rings.push(ring);
                }
            }
            Filling::Counters => {
                for (index, attr) in (0..).zip(&COUNTERS) {
                    let event =
                        PerfEvent::open(attr).map_err(|e| format!("counter {index}: {e}"))?;
                    self.put(index, &event)?;
                }
            }
            Filling::Nothing => {}
        }
        Ok(())
    }

    /// Reads the ring of CPU 0, if that is done after each run.
    fn after_run(&mut self) {
        if let (Filling::Rings { drained: true }, Some(ring)) =
            (Filling::of(&self.name), self.rings.first())
        {
            self.drained.extend(ring.drain());
        }
    }

    /// The records that programs have written.
    fn records(&self) -> Contents {
        let mut elements: Vec<_> = self.rings.iter().map(PerfRing::drain).collect();
        if let Some(first) = elements.first_mut() {
            first.splice(..0, self.drained.iter().copied());
        }
        let elements = elements.into_iter().map(without_ids).collect();
        Contents { name: self.name.clone(), percpu: None, elements }
    }

    /// Creates a map as its definition says, filled and frozen.
    fn defined(
        spec: &MapSpec,
        kernel: Kernel,
        creator: Creator,
        btf: Option<&Btf>,
    ) -> Result<Self, String> {
        let create = |attr| match btf {
            Some(btf) => MapCreate::from_core(attr).with_types(btf, attr),
            None => MapCreate::from_core(attr),
        };
        let request = |attr| Request::new(creator, create(attr));
        let inner = spec.inner.as_ref().map(request);
        let request = request(&spec.attr);
        let request = inner.into_iter().fold(request, Request::with_inner);
        let this = Self::new(&spec.name, &request, kernel)?;
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

    /// Puts an object into a slot.
    fn put(&self, index: u32, object: &impl AsFd) -> Result<(), String> {
        let fd = object.as_fd().as_raw_fd();
        let put = self.map.update(&index.to_ne_bytes(), &fd.to_ne_bytes(), 0);
        put.map_err(|e| format!("filling slot {index} of map {}: {e}", self.name))
    }

    /// What is in the map, if it can be known: values, or records in rings.
    fn contents(&self) -> Option<Result<Contents, String>> {
        if !self.create.holds_objects() {
            return Some(self.values());
        }
        (!self.rings.is_empty()).then(|| Ok(self.records()))
    }

    fn values(&self) -> Result<Contents, String> {
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

/// The object's types in the kernel, if values of its maps have special fields.
fn types_of_fields(object: &Object) -> Result<Option<Btf>, String> {
    let Some(btf) = object.btf() else { return Ok(None) };
    let has_fields = |attr: &MapAttr| {
        SpecialFields::of(btf, attr.btf_value_type_id).is_ok_and(|fields| !fields.is_empty())
    };
    if !object.maps().iter().any(|spec| has_fields(&spec.attr)) {
        return Ok(None);
    }
    Btf::load(&btf.to_bytes()).map(Some).map_err(|e| format!("loading the object's BTF: {e}"))
}

/// Loads a program of an object, with the object's maps in their order.
pub(crate) fn load(object: &Object, program: &str, maps: &[&Map]) -> Result<Prog, String> {
    let spec = object.program(program).ok_or("no such program")?;
    let prog_type = spec.prog_type().map_err(|e| e.to_string())?;
    let code = spec.code().map_err(|e| e.to_string())?;
    let mut load = ProgLoad::new(prog_type.0, &code.insns, maps);
    load.expected_attach_type = spec.expected_attach_type().map_or(0, |attach_type| attach_type.0);
    load.prog_flags = load_flags(prog_type, spec.def.is_some_and(|def| def.xdp_has_frags));
    load_with_btf(load)?.map_err(refusal)
}

fn refusal(why: LoadError) -> String {
    format!("loading the program: {why}")
}

/// The flags with which a program is loaded.
pub(crate) fn load_flags(prog_type: ProgType, has_frags: bool) -> u32 {
    let sleepable = if prog_type == ProgType::SYSCALL { BPF_F_SLEEPABLE } else { 0 };
    sleepable | if has_frags { BPF_F_XDP_HAS_FRAGS } else { 0 }
}

/// Functions whose address is taken must be described by BTF. What the kernel says about the program is told apart from what
/// kept it from being asked.
fn load_with_btf(load: ProgLoad<'_>) -> Result<Result<Prog, LoadError>, String> {
    let btf = Btf::load(&btf::blob()).map_err(|e| format!("loading BTF: {e}"))?;
    let func_info = btf::func_info(load.insns);
    let prog_flags = load.prog_flags | load_flags(ProgType(load.prog_type), false);
    let load = ProgLoad { btf: Some(&btf), func_info: &func_info, prog_flags, ..load };
    Ok(Prog::load(&load))
}

/// The kernel, and who creates the maps of programs in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelEngine {
    /// The kernel.
    pub(crate) kernel: Kernel,
    /// Who creates maps.
    pub(crate) creator: Creator,
}

/// Maps of one program, or of several, in the order in which instructions index them.
pub(crate) struct KernelMaps(Vec<NamedMap>);

impl KernelMaps {
    pub(crate) fn maps(&self) -> Vec<&Map> {
        self.0.iter().map(|map| &map.map).collect()
    }
}

impl KernelEngine {
    /// Creates the maps of an object; slots are not filled.
    pub(crate) fn define(&self, object: &Object) -> Result<KernelMaps, String> {
        let btf = types_of_fields(object)?;
        let define = |spec| NamedMap::defined(spec, self.kernel, self.creator, btf.as_ref());
        object.maps().iter().map(define).collect::<Result<_, _>>().map(KernelMaps)
    }

    /// Creates maps that are named by their index, of which one may hold another one in its first slot.
    pub(crate) fn make(
        &self,
        all: &[MapCreate],
        inner: Option<(usize, usize)>,
    ) -> Result<KernelMaps, String> {
        let request = |create: &MapCreate| Request::new(self.creator, create.clone());
        let mut maps: Vec<NamedMap> = Vec::new();
        for (i, create) in all.iter().enumerate() {
            let inner = inner.filter(|(outer, _)| *outer == i);
            let inner = inner.and_then(|(_, inner)| maps.get(inner));
            let template = inner.map(|inner| request(&inner.create));
            let request = template.into_iter().fold(request(create), Request::with_inner);
            let map = NamedMap::new(&i.to_string(), &request, self.kernel)?;
            if let Some(inner) = inner {
                map.put(0, &inner.map)?;
            }
            maps.push(map);
        }
        Ok(KernelMaps(maps))
    }
}

impl KernelEngine {
    /// Loads a program with fresh maps, or gives what the kernel says about it.
    pub(crate) fn ask_to_assemble(
        &self,
        assembled: &Assembled,
    ) -> Result<Result<KernelProgram, LoadError>, String> {
        let KernelMaps(maps) = self.make(&assembled.maps, assembled.inner)?;
        let prog_type = assembled.prog_type;
        let prog = {
            let maps: Vec<&Map> = maps.iter().map(|map| &map.map).collect();
            load_with_btf(ProgLoad::new(prog_type.0, &assembled.insns, &maps))?
        };
        Ok(prog.map(|prog| KernelProgram { prog_type, prog, maps }))
    }
}

impl Engine for KernelEngine {
    type Program = KernelProgram;

    fn load(&self, object: &Object, program: &str) -> Result<KernelProgram, String> {
        let KernelMaps(mut maps) = self.define(object)?;
        maps.iter_mut().try_for_each(NamedMap::put_events)?;
        let map_refs: Vec<&Map> = maps.iter().map(|map| &map.map).collect();
        let mut slots: Vec<(u32, &Slot, &NamedMap)> = Vec::new();
        for (spec, map) in object.maps().iter().zip(&maps) {
            slots.extend(spec.slots.iter().map(|(index, slot)| (*index, slot, map)));
        }
        for (index, slot, map) in slots {
            match slot {
                Slot::Map(inner) => map.put(index, map_refs[*inner])?,
                Slot::Program(name) => map.put(index, &load(object, name, &map_refs)?)?,
            }
        }
        let prog = load(object, program, &map_refs)?;
        let spec = object.program(program).ok_or("no such program")?;
        let prog_type = spec.prog_type().map_err(|e| e.to_string())?;
        Ok(KernelProgram { prog_type, prog, maps })
    }

    fn assemble(&self, assembled: &Assembled) -> Result<KernelProgram, String> {
        self.ask_to_assemble(assembled)?.map_err(refusal)
    }
}

impl KernelProgram {
    /// Writes an element of one of its maps.
    pub(crate) fn update(&self, map: &str, index: u32, value: &[u8]) -> Result<(), String> {
        let named = self.maps.iter().find(|named| named.name == map).ok_or("no such map")?;
        named.map.update(&index.to_ne_bytes(), value, 0).map_err(|e| e.to_string())
    }

    /// Runs the program on a packet, a number of times; gives what it returned and the nanoseconds of a run on
    /// average.
    pub(crate) fn time(&self, packet: &[u8], times: u32) -> Result<(u32, u32), String> {
        let run = TestRun { data_in: packet, repeat: times, ..TestRun::default() };
        let result = self.prog.test_run(&run).map_err(|e| e.to_string())?;
        Ok((result.retval, result.duration_ns))
    }
}

impl KernelProgram {
    /// How long the kernel took to load the program alone.
    pub(crate) fn load_time(&self) -> Duration {
        self.prog.load_time()
    }

    /// Closes the descriptors of the maps, which the program alone holds then.
    pub(crate) fn close_maps(&mut self) {
        self.maps.clear();
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
        self.maps.iter_mut().for_each(NamedMap::after_run);
        Ok(Outcome {
            retval: result.retval,
            data: input.data.is_some().then_some(result.data_out),
            ctx: (input.ctx.is_some() && !is_raw_tp).then_some(result.ctx_out),
        })
    }

    fn maps(&self) -> Result<Vec<Contents>, String> {
        self.maps.iter().filter_map(NamedMap::contents).collect()
    }

    fn xlated(&self) -> Result<Vec<Insn>, String> {
        self.prog.xlated().map_err(|e| e.to_string())
    }
}
