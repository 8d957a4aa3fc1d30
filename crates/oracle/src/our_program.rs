//! Programs in our engines.

use std::fmt;

use bpfarray::{Map, Object};
use bpfarray_core::attr::Creator;
use bpfarray_core::insn::Insn;
use bpfarray_core::map::Kind;
use bpfarray_vm::{Context, LoadOptions, ProgType, Program, elf};

use crate::create::MapCreate;
use crate::events::{COUNTERS, Filling, OurRing, RING_CPUS, our_counter};
use crate::inputs::Input;
use crate::programs::{self, Assembled, Contents, Engine, Outcome};
use crate::request;
use crate::value_type;

/// What runs our programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The interpreter.
    Interp,
    /// The machine code that a program has from its first run on.
    Quick,
    /// The machine code that it gets when it has run for a while.
    Best,
}

impl Form {
    /// All that there are here.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = [Self::Interp, Self::Quick, Self::Best];
        all.into_iter().filter(|form| form.engine().is_available())
    }

    pub(crate) const fn engine(self) -> bpfarray_vm::Engine {
        match self {
            Self::Interp => bpfarray_vm::Engine::Interp,
            Self::Quick | Self::Best => bpfarray_vm::Engine::Jit,
        }
    }

    /// Brings a program into this form.
    pub(crate) fn prepare(self, program: &Program) -> Result<(), String> {
        let engine = program.engine();
        if engine != self.engine() {
            return Err(format!("it is in the {engine}"));
        }
        // Elsewhere the first code is the best.
        let has_both = cfg!(target_arch = "x86_64");
        let first = program.jited().map(<[u8]>::as_ptr);
        if self == Self::Best && program.optimise().map(<[u8]>::as_ptr) == first && has_both {
            return Err("there is no better code".into());
        }
        Ok(())
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interp => "interpreter",
            Self::Quick => "first machine code",
            Self::Best => "best machine code",
        })
    }
}

/// What runs our programs, and who creates their maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OurEngine {
    pub(crate) form: Form,
    pub(crate) creator: request::Creator,
}

/// A program with maps of its own.
pub(crate) struct OurProgram {
    program: Program,
    maps: Vec<NamedMap>,
}

struct NamedMap {
    name: String,
    map: Map,
    /// Rings in its slots.
    rings: Vec<OurRing>,
}

impl NamedMap {
    fn new(name: &str, map: &Map) -> Self {
        Self { name: name.to_owned(), map: map.clone(), rings: Vec::new() }
    }

    /// Puts the events into the slots that belong there by the map's name.
    fn put_events(&mut self) -> Result<(), String> {
        if self.map.layout().kind() != Kind::PerfEventArray {
            return Ok(());
        }
        let put = |index, event: &Object| {
            let put = self.map.update_object(index, event, 0);
            put.map_err(|e| format!("filling slot {index} of map {}: {e}", self.name))
        };
        match Filling::of(&self.name) {
            Filling::Rings { .. } => {
                for cpu in 0..RING_CPUS {
                    let (event, ring) = OurRing::new(cpu)?;
                    put(cpu, &event)?;
                    self.rings.push(ring);
                }
            }
            Filling::Counters => {
                for (index, attr) in (0..).zip(&COUNTERS) {
                    put(index, &our_counter(attr))?;
                }
            }
            Filling::Nothing => {}
        }
        Ok(())
    }

    /// Reads the ring of CPU 0, if that is done after each run.
    fn after_run(&mut self) -> Result<(), String> {
        match (Filling::of(&self.name), self.rings.first_mut()) {
            (Filling::Rings { drained: true }, Some(ring)) => ring.drain(),
            _ => Ok(()),
        }
    }

    /// What is in the map, if it can be known: values, or records in rings.
    fn contents(&self) -> Option<Result<Contents, String>> {
        if !self.map.layout().kind().holds_objects() {
            return Some(contents(&self.name, &self.map));
        }
        let records = || {
            let elements = self.rings.iter().map(OurRing::records).collect::<Result<_, _>>()?;
            Ok(Contents { name: self.name.clone(), percpu: None, elements })
        };
        (!self.rings.is_empty()).then(records)
    }
}

impl OurEngine {
    fn options(self) -> LoadOptions {
        let bypass_spec_v1 = self.creator.to_core().bypass_spec_v1;
        LoadOptions { bypass_spec_v1, engine: self.form.engine(), ..LoadOptions::default() }
    }

    /// Creates the maps of an object, with what is in their slots.
    pub(crate) fn define(self, object: &elf::Object) -> Result<Vec<Map>, String> {
        let loaded = object.clone().load(&self.options()).map_err(|e| e.to_string())?;
        Ok(loaded.maps().map(|(_, map)| map.clone()).collect())
    }

    /// Creates maps, of which one may hold another one in its first slot.
    pub(crate) fn make(
        self,
        all: &[MapCreate],
        inner: Option<(usize, usize)>,
    ) -> Result<Vec<Map>, String> {
        let mut maps: Vec<Map> = Vec::new();
        for (i, create) in all.iter().enumerate() {
            let inner = inner.filter(|(outer, _)| *outer == i);
            let inner = inner.and_then(|(_, inner)| maps.get(inner));
            let btf = create.value_type.and(value_type::BTF.as_ref());
            let creator = Creator { btf, ..self.creator.to_core() };
            let map = Map::create_with(&create.to_core(), &creator, inner.map(|inner| &**inner));
            let map = map.map_err(|e| e.to_string())?;
            if let Some(inner) = inner {
                let filled = map.update_object(0, &Object::Map(inner.to_ref()), 0);
                filled.map_err(|e| e.to_string())?;
            }
            maps.push(map);
        }
        Ok(maps)
    }

    /// All that there are here.
    pub(crate) fn all(creator: request::Creator) -> impl Iterator<Item = Self> {
        Form::all().map(move |form| Self { form, creator })
    }
}

impl Engine for OurEngine {
    type Program = OurProgram;

    fn load(&self, object: &elf::Object, program: &str) -> Result<OurProgram, String> {
        let loaded = object.clone().load(&self.options()).map_err(|e| e.to_string())?;
        let program = loaded.program(program).map_err(|e| e.to_string())?;
        self.form.prepare(&program)?;
        // They keep the programs in PROG_ARRAYs.
        let maps = loaded.maps().map(|(spec, map)| NamedMap::new(&spec.name, map));
        let mut maps: Vec<NamedMap> = maps.collect();
        maps.iter_mut().try_for_each(NamedMap::put_events)?;
        Ok(OurProgram { program, maps })
    }

    fn assemble(&self, assembled: &Assembled) -> Result<OurProgram, String> {
        let maps = self.make(&assembled.maps, assembled.inner)?;
        let (prog_type, insns) = (assembled.prog_type, &assembled.insns);
        let program = Program::with_options(prog_type, insns, &maps, &self.options());
        let program = program.map_err(|e| e.to_string())?;
        self.form.prepare(&program)?;
        let maps = maps.iter().enumerate().map(|(i, map)| NamedMap::new(&i.to_string(), map));
        let maps = maps.collect();
        Ok(OurProgram { program, maps })
    }
}

impl OurProgram {
    /// Drops the handles to the maps, which the program alone holds then.
    pub(crate) fn close_maps(&mut self) {
        self.maps.clear();
    }
}

impl programs::Program for OurProgram {
    fn run(&mut self, input: &Input) -> Result<Outcome, String> {
        let prog_type = self.program.prog_type();
        let data_in = input.data.as_deref().unwrap_or_default();
        let mut context = Context::new(prog_type, data_in, input.ctx.as_deref())
            .map_err(|e| e.errno().to_string())?;
        let outcome = self.program.run(&mut context).map_err(|e| e.to_string())?;
        self.maps.iter_mut().try_for_each(NamedMap::after_run)?;
        let returns_ctx = input.ctx.is_some() && prog_type != ProgType::RAW_TRACEPOINT;
        Ok(Outcome {
            retval: outcome.retval(),
            data: input.data.is_some().then(|| context.packet()),
            ctx: returns_ctx.then(|| context.ctx_out()),
        })
    }

    fn maps(&self) -> Result<Vec<Contents>, String> {
        self.maps.iter().filter_map(NamedMap::contents).collect()
    }

    fn xlated(&self) -> Result<Vec<Insn>, String> {
        Ok(self.program.xlated())
    }
}

fn contents(name: &str, map: &Map) -> Result<Contents, String> {
    let element = |index| {
        let mut value = vec![0; map.user_size() as usize];
        map.lookup_elem(index, &mut value, 0).map(|()| value)
    };
    let layout = map.layout();
    Ok(Contents {
        name: name.to_owned(),
        percpu: (layout.kind() == Kind::PercpuArray).then_some(layout.elem_size() as usize),
        elements: (0..map.max_entries())
            .map(element)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("reading map {name}: {e}"))?,
    })
}
