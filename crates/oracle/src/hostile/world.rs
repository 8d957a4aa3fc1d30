//! Maps that programs with mistakes run on, and the memory around what they hold.

use std::ops::Range;
use std::sync::Arc;

use bpfarray::attr::MapFlags;
use bpfarray::{Map, Object};
use bpfarray_core::insn::{Insn, Reg, pseudo, size};
use bpfarray_core::map::Kind;
use bpfarray_vm::{Engine, LoadOptions, ProgType, Program};

use super::monitor::text;
use super::watch::{Memory, PAGE, Watched};
use super::{Case, Maps, generate};
use crate::corpus::Corpus;
use crate::create::MapCreate;
use crate::our_program::{Form, OurEngine};
use crate::request::Creator;
use crate::rng::Rng;

/// Maps that programs run on, and the memory around what they hold.
pub(super) struct World {
    /// For the interpreter, for machine code, and for the interpreter again; all are the same but for PROG_ARRAYs,
    /// which take the programs of one engine.
    pub(super) maps: [Vec<Map>; 3],
    watched: Vec<Watched>,
    /// Maps that no program knows, and that must stay as they are.
    _guards: Vec<Map>,
    is_remembered: bool,
}

impl World {
    /// The maps of a case; `None` if programs on them are not the same twice.
    pub(super) fn new(
        case: &Case,
        corpus: &Corpus,
        options: &dyn Fn(Engine) -> LoadOptions,
    ) -> Result<Option<Self>, String> {
        let engine = OurEngine { form: Form::Interp, creator: Creator::Trusted };
        let guard = |map_type| MapCreate::array(map_type, 24, 4);
        let guards =
            || engine.make(&[guard(MapCreate::ARRAY), guard(MapCreate::PERCPU_ARRAY)], None);
        let mut all_guards = guards()?;
        let maps = match &case.maps {
            Maps::Made(maps, inner) => engine.make(maps, *inner)?,
            Maps::Of { object, .. } => {
                let object = corpus.objects.get(object).ok_or("no such object")?;
                let maps = engine.define(object)?;
                let is_steady = |map: &Map| {
                    let kinds = [Kind::Array, Kind::PercpuArray, Kind::ArrayOfMaps];
                    let kind = map.layout().kind();
                    kinds.contains(&kind)
                        && map.special_fields().is_empty()
                        && map.mem_usage() < 1 << 16
                };
                if !maps.iter().all(is_steady) {
                    return Ok(None);
                }
                maps
            }
        };
        all_guards.extend(guards()?);
        for guard in &all_guards {
            fill(guard, 0x77);
        }
        let mut watched = Vec::new();
        for (index, map) in maps.iter().enumerate() {
            paint_padding(map);
            watch(&format!("map {index}"), map, true, &mut watched);
        }
        for guard in &all_guards {
            watch("a map of nobody", guard, false, &mut watched);
        }
        let with_programs = |engine| with_own_programs(&maps, case.prog_type, &options(engine));
        let maps = [
            with_programs(Engine::Interp)?,
            with_programs(Engine::Jit)?,
            with_programs(Engine::Interp)?,
        ];
        Ok(Some(Self { maps, watched, _guards: all_guards, is_remembered: false }))
    }

    /// Random values in all maps that programs may write.
    pub(super) fn randomize(&self, rng: &mut Rng) {
        for map in &self.maps[0] {
            randomize(map, rng);
        }
    }

    /// Remembers what is there before the first run; what may not change is the same before each other one.
    pub(super) fn remember(&mut self, memory: &Memory) -> Result<(), String> {
        if !self.is_remembered {
            let mut all = self.watched.iter_mut();
            all.try_for_each(|watched| watched.remember(memory)).map_err(text)?;
            self.is_remembered = true;
        }
        Ok(())
    }

    /// Reads what is there after a run, and tells where something has changed that must not.
    pub(super) fn look(&mut self, memory: &Memory) -> Result<Option<String>, String> {
        let mut found = None;
        for watched in &mut self.watched {
            let changed = watched.look(memory, &[]).map_err(text)?;
            found = found.or(changed);
        }
        Ok(found)
    }

    /// What was there after the last run.
    pub(super) fn bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.watched.iter().map(|watched| watched.now.clone())
    }
}

/// The same maps with PROG_ARRAYs of their own, which hold two programs of an engine.
fn with_own_programs(
    maps: &[Map],
    prog_type: ProgType,
    options: &LoadOptions,
) -> Result<Vec<Map>, String> {
    let make = |map: &Map| {
        if map.layout().kind() != Kind::ProgArray {
            return Ok(map.clone());
        }
        let creator = OurEngine { form: Form::Interp, creator: Creator::Trusted };
        let own =
            creator.make(&[MapCreate::array(MapCreate::PROG_ARRAY, 4, map.max_entries())], None)?;
        let own = own.into_iter().next().ok_or("no map was made")?;
        let mut second =
            Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX_VALUE), generate::NUMBERS).to_vec();
        second.push(Insn::st_mem(size::DW, Reg::R1, 8, 1));
        for (slot, before) in [(0, Vec::new()), (1, second)] {
            let insns =
                [before, vec![Insn::mov64_imm(Reg::R0, slot as i32), Insn::exit()]].concat();
            let program = Program::with_options(prog_type, &insns, maps, options);
            let program = Object::Program(Arc::new(program.map_err(text)?));
            own.update_object(slot, &program, 0).map_err(text)?;
        }
        Ok(own)
    };
    maps.iter().map(make).collect()
}

/// A value of bytes.
fn fill(map: &Map, byte: u8) {
    let value = vec![byte; map.user_size() as usize];
    for index in 0..map.max_entries() {
        // A frozen map, and one of objects, stays as it is.
        let _ = map.update_elem(index, &value, 0);
    }
}

/// Random values, small ones among them, in the elements of a map of values.
fn randomize(map: &Map, rng: &mut Rng) {
    // What no program may change is as it was when it was made.
    let is_data = matches!(map.layout().kind(), Kind::Array | Kind::PercpuArray);
    if !is_data || map.map_flags().contains(MapFlags::RDONLY_PROG) {
        return;
    }
    let mut value = vec![0; map.user_size() as usize];
    for index in 0..map.max_entries() {
        for word in value.chunks_mut(8) {
            let number = match rng.below(4) {
                0 => rng.next_u64(),
                1 => rng.pick(&[0, 1, 12, 16, 31, 32, 1 << 31, u64::MAX, 1 << 63]),
                _ => u64::from(rng.below(40)),
            };
            word.copy_from_slice(&number.to_ne_bytes()[..word.len()]);
        }
        if map.layout().kind() == Kind::PercpuArray {
            // Each CPU's part has padding, which is written with it.
            for part in value.chunks_mut(map.layout().elem_size() as usize) {
                part[map.value_size() as usize..].fill(0xa5);
            }
        }
        let _ = map.update_elem(index, &value, 0);
    }
}

/// Fills everything around the values of a map that can be mapped.
fn paint_padding(map: &Map) {
    if let Ok(mapping) = map.mmap(0, 4096, true) {
        let _ = mapping.write(0, &[0xa5; 4096]);
    }
}

/// Watches all memory of a map.
fn watch(name: &str, map: &Map, is_known: bool, watched: &mut Vec<Watched>) {
    let layout = map.layout();
    let (elem, value) = (layout.elem_size() as usize, layout.value_size() as usize);
    let flags = map.map_flags();
    let is_writable = is_known && !flags.contains(MapFlags::RDONLY_PROG);
    let values = |start: usize| -> Vec<Range<usize>> {
        let value = |index: usize| start + index * elem..start + index * elem + value;
        let count = if is_writable { map.max_entries() as usize } else { 0 };
        (0..count).map(value).collect()
    };
    let (payload, may_change) = match layout.kind() {
        Kind::Array => (map.max_entries() as usize * elem, values(PAGE)),
        _ => (8 * map.max_entries() as usize, Vec::new()),
    };
    let len = (PAGE + payload).next_multiple_of(PAGE);
    watched.push(Watched::new(name, map.addr(), len, may_change));
    if layout.kind() == Kind::PercpuArray {
        for cpu in 0..bpfarray::possible_cpus() {
            if let Some(addr) = map.prog_lookup_percpu_elem(0, cpu) {
                let len = map.max_entries() as usize * elem;
                watched.push(Watched::new(&format!("{name} of CPU {cpu}"), addr, len, values(0)));
            }
        }
    }
}
