//! An object whose maps exist: what programs are made from, and where their counters are read.

use std::sync::Arc;

use bpfarray::Map;
use bpfarray::attr::{CreateError, Creator};
use bpfarray_core::btf::Btf;
use bpfarray_core::map::{FreezeError, UpdateError};

use crate::elf::{MapSpec, Object, ProgramSpec};
use crate::helper::HelperSet;
use crate::program::{Program, ProgramError};

/// How to load an object.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// What programs can call; Linux's helpers by default.
    pub helpers: HelperSet,
    /// Trust every program that will use the maps, so that lookups need no masking against Spectre v1.
    pub bypass_spec_v1: bool,
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
    /// Its first value cannot be written.
    #[error(transparent)]
    Fill(#[from] UpdateError),
    /// It cannot be frozen.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}

/// An object with its maps.
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
}

impl Object {
    /// Creates the object's maps and fills its data sections.
    ///
    /// Programs are verified when [`Loaded::program`] asks for them, so that one that cannot
    /// run does not stand in the way of the others.
    ///
    /// # Errors
    /// [`MapError`] for the first map that cannot be made.
    pub fn load(self, options: &LoadOptions) -> Result<Loaded, MapError> {
        let creator = Creator { bypass_spec_v1: options.bypass_spec_v1, ..Creator::default() };
        let create = |spec: &MapSpec| {
            create(spec, &creator).map_err(|error| MapError { map: spec.name.clone(), error })
        };
        let maps = self.maps().iter().map(create).collect::<Result<_, _>>()?;
        Ok(Loaded { object: self, maps, helpers: Arc::new(options.helpers.clone()) })
    }
}

fn create(spec: &MapSpec, creator: &Creator<'_>) -> Result<Map, MapErrorKind> {
    let map = Map::create_as(&spec.attr, creator)?;
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

    /// The program with this name, verified and ready to run.
    ///
    /// # Errors
    /// [`ProgramError::NotFound`]; [`ProgramError::Load`] for a program whose type nobody knows or
    /// that needs a running kernel; [`ProgramError::Verify`]; [`ProgramError::Xlate`].
    pub fn program(&self, name: &str) -> Result<Program, ProgramError> {
        let spec = self
            .object
            .program(name)
            .ok_or_else(|| ProgramError::NotFound { program: name.to_owned() })?;
        let prog_type = spec.prog_type()?;
        let code = spec.code()?;
        Program::build(name, prog_type, code, self.object.btf(), &self.maps, &self.helpers)
    }
}
