//! An object whose maps exist: what programs are made from, and where their counters are read.

use std::sync::{Arc, OnceLock};

use bpfarray::attr::{CreateError, Creator, MapAttr, MapType};
use bpfarray::{Map, Object as SlotObject, online_nodes, possible_cpus};
use bpfarray_core::btf::Btf;
use bpfarray_core::map::prog_array::Owner;
use bpfarray_core::map::{FreezeError, UpdateError};

use crate::elf::{MapSpec, Object, ProgramSpec, Slot};
use crate::engine::Engine;
use crate::helper::HelperSet;
use crate::program::{Mode, Program, ProgramError, Source, owner};
use crate::verify::LogLevel;

/// How to load an object.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// What programs can call; Linux's helpers by default.
    pub helpers: HelperSet,
    /// Trust every program that will use the maps, so that lookups need no masking against Spectre v1.
    pub bypass_spec_v1: bool,
    /// What executes the programs.
    pub engine: Engine,
    /// Refuse what the kernel's verifier refuses. Otherwise programs load that are not wrong in every run, and what is not
    /// proven to be right is checked when it happens.
    pub strict: bool,
    /// What the verifier writes down.
    pub log: LogLevel,
}

/// Why the maps of an object cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("map '{map}': {error}")]
pub struct MapError {
    /// The map's name.
    pub map: String,
    /// What went wrong.
    pub error: MapErrorKind,
}

/// What went wrong with a map.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapErrorKind {
    /// It cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its first value cannot be written, or a slot not be filled.
    #[error(transparent)]
    Fill(#[from] UpdateError),
    /// It cannot be frozen.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}

/// Why an object cannot be loaded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadObjectError {
    /// One of its maps cannot be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A program that the slots of a map hold from the start cannot be.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// An object with its maps.
///
/// It holds the handles to the maps. When it and all other handles to a PROG_ARRAY are gone, the slots are
/// emptied, and tail calls of programs that still run fall through.
///
/// ```
/// use bpfarray_vm::{Context, LoadOptions, Object, ProgType};
///
/// let object = Object::parse(&std::fs::read("../../examples/packet_count.bpf.o")?)?;
/// let loaded = object.load(&LoadOptions::default())?;
/// let program = loaded.program("count_packets")?;
/// let packet = [0_u8; 64];
/// let outcome = program.run(&mut Context::new(ProgType::XDP, &packet, None)?)?;
/// assert_eq!(outcome.retval(), 2); // XDP_PASS
///
/// let counters = loaded.map("packets_by_protocol").ok_or("no such map")?;
/// let mut values = vec![0; counters.user_size() as usize];
/// counters.lookup_elem(6, &mut values, 0)?; // PROTOCOL_OTHER, on every CPU
/// assert!(values.contains(&64)); // bytes
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Loaded {
    object: Object,
    maps: Vec<Map>,
    helpers: Arc<HelperSet>,
    mode: Mode,
    /// Made when they are asked for.
    programs: Vec<OnceLock<Result<Program, ProgramError>>>,
}

impl Object {
    /// Creates the object's maps, fills its data sections, and puts programs and maps into the slots
    /// for which the object names them.
    ///
    /// Other programs are verified when [`Loaded::program`] asks for them, so that one that cannot
    /// run does not stand in the way of the others.
    ///
    /// # Errors
    /// [`LoadObjectError::Map`] for the first map that cannot be made;
    /// [`LoadObjectError::Program`] for the first program of a slot that cannot be verified.
    pub fn load(self, options: &LoadOptions) -> Result<Loaded, LoadObjectError> {
        let creator = Creator {
            bypass_spec_v1: options.bypass_spec_v1,
            online_nodes: online_nodes(),
            // Types that the kernel would not load describe no map.
            btf: self.btf().filter(|btf| btf.check_special_structs().is_ok()),
            ..Creator::default()
        };
        let create = |spec: &MapSpec| {
            create(spec, &creator).map_err(|error| MapError { map: spec.name.clone(), error })
        };
        let maps = self.maps().iter().map(create).collect::<Result<_, _>>()?;
        let programs = self.programs().iter().map(|_| OnceLock::new()).collect();
        let helpers = Arc::new(options.helpers.clone());
        let mode = Mode::of(options);
        let loaded = Loaded { object: self, maps, helpers, mode, programs };
        loaded.fill_slots()?;
        Ok(loaded)
    }
}

fn create(spec: &MapSpec, creator: &Creator<'_>) -> Result<Map, MapErrorKind> {
    let mut attr = spec.attr;
    if attr.map_type == MapType::PERF_EVENT_ARRAY && attr.max_entries == 0 {
        attr.max_entries = possible_cpus();
    }
    // Only the shape of this one is kept.
    let inner = spec.inner.map(|inner| create_typed(inner, creator, None)).transpose()?;
    let map = create_typed(attr, creator, inner.as_ref())?;
    if !spec.initial.is_empty() {
        let mut value = spec.initial.clone();
        value.resize(map.user_size() as usize, 0);
        map.update_elem(0, &value, 0)?;
    }
    if spec.is_frozen() {
        map.freeze()?;
    }
    Ok(map)
}

/// Creates a map with the types of its keys and values or, where these do not fit, without: as libbpf does.
fn create_typed(
    mut attr: MapAttr,
    creator: &Creator<'_>,
    inner: Option<&Map>,
) -> Result<Map, CreateError> {
    let untyped = |attr| MapAttr { btf_key_type_id: 0, btf_value_type_id: 0, ..attr };
    let never_typed = [MapType::PERF_EVENT_ARRAY, MapType::CGROUP_ARRAY, MapType::ARRAY_OF_MAPS];
    if creator.btf.is_none() || never_typed.contains(&attr.map_type) {
        attr = untyped(attr);
    }
    let create = |attr| Map::create_with(&attr, creator, inner.map(|inner| &**inner));
    match create(attr) {
        Err(_) if attr.btf_value_type_id != 0 => create(untyped(attr)),
        created => created,
    }
}

/// Whether a license lets a program call helpers that are for programs under the GPL only.
///
/// ```
/// assert!(bpfarray_vm::is_gpl_compatible("Dual MIT/GPL"));
/// assert!(!bpfarray_vm::is_gpl_compatible("MIT"));
/// ```
///
/// # Kernel
/// `license_is_gpl_compatible`
#[doc(alias = "license_is_gpl_compatible")]
pub fn is_gpl_compatible(license: &str) -> bool {
    matches!(
        license,
        "GPL"
            | "GPL v2"
            | "GPL and additional rights"
            | "Dual BSD/GPL"
            | "Dual MIT/GPL"
            | "Dual MPL/GPL"
    )
}

impl Loaded {
    /// The map with this name; a data section has the section's.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps().find(|(spec, _)| spec.name == name).map(|(_, map)| map)
    }

    /// The maps, with what the object says about each.
    pub fn maps(&self) -> impl Iterator<Item = (&MapSpec, &Map)> {
        self.object.maps().iter().zip(&self.maps)
    }

    /// What the object says about its programs.
    pub fn programs(&self) -> &[ProgramSpec] {
        self.object.programs()
    }

    /// The object's types.
    pub fn btf(&self) -> Option<&Btf> {
        self.object.btf()
    }

    /// The program with this name, verified and ready to run. Asked again, it gives the same program.
    ///
    /// # Errors
    /// [`ProgramError::NotFound`]; [`ProgramError::Load`] for a program whose type nobody knows or
    /// that needs a running kernel; [`ProgramError::Verify`]; [`ProgramError::Exclusive`];
    /// [`ProgramError::Owner`]; [`ProgramError::Xlate`].
    pub fn program(&self, name: &str) -> Result<Program, ProgramError> {
        let spec = self.object.programs().iter().position(|spec| spec.name == name);
        let made = spec.and_then(|at| self.programs.get(at).map(|made| (at, made)));
        let (at, made) = made.ok_or_else(|| ProgramError::NotFound { program: name.to_owned() })?;
        made.get_or_init(|| self.build(&self.object.programs()[at])).clone()
    }

    fn build(&self, spec: &ProgramSpec) -> Result<Program, ProgramError> {
        let prog_type = spec.prog_type()?;
        let attach_type = spec.expected_attach_type().map_or(0, |attach_type| attach_type.0);
        let xdp_has_frags = spec.def.is_some_and(|def| def.xdp_has_frags);
        let owner = Owner { xdp_has_frags, ..owner(prog_type, attach_type) };
        let source = Source {
            name: &spec.name,
            code: spec.code()?,
            btf: self.object.btf(),
            gpl_compatible: is_gpl_compatible(self.object.license()),
            sleepable: spec.def.is_some_and(|def| def.sleepable),
            hash: None,
        };
        let maps = self.maps.iter().map(Map::to_ref).collect();
        let insns = &source.code.insns;
        Program::build(source, owner, maps, &self.helpers, self.mode)?.claiming(insns)
    }

    /// Puts into slots what the object says they hold in the beginning.
    fn fill_slots(&self) -> Result<(), LoadObjectError> {
        for (spec, map) in self.maps() {
            for (index, slot) in &spec.slots {
                let object = match slot {
                    Slot::Map(inner) => {
                        self.maps.get(*inner).map(|map| SlotObject::Map(map.to_ref()))
                    }
                    Slot::Program(name) => Some(SlotObject::Program(Arc::new(self.program(name)?))),
                };
                let Some(object) = object else { continue };
                map.update_object(*index, &object, 0)
                    .map_err(|error| MapError { map: spec.name.clone(), error: error.into() })?;
            }
        }
        Ok(())
    }
}
