//! The maps of an object, from all three ways to define them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use bpfarray_core::attr::{MAP_NAME_LEN, MapAttr, MapFlags, MapType};
use bpfarray_core::btf::{Btf, Datasec, Def, Linkage};
use object::elf;

use super::btf_maps;
use super::error::MapDefect;
use super::file::{File, Place, Section, SectionKind};
use super::{LoadError, legacy_maps};

/// A map as an object defines it, not created yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// Its name; the section's name for a data section.
    pub name: String,
    /// The section that defines it.
    pub section: String,
    /// How it is defined.
    pub origin: MapOrigin,
    /// What to create it from. Nothing is judged yet: the type may be any number.
    pub attr: MapAttr,
    /// First bytes of the only value, for data sections; zeroes follow.
    pub initial: Vec<u8>,
    /// Whether it asks to be shared by name (`LIBBPF_PIN_BY_NAME`).
    pub pin_by_name: bool,
    /// For a map of maps, what its inner maps look like, where the definition says so.
    pub inner: Option<MapAttr>,
    /// For a map of maps or programs, what its slots hold in the beginning, in ascending order.
    pub slots: Vec<(u32, Slot)>,
}

/// How an object defines a map.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MapOrigin {
    /// As a type, in section `.maps`.
    Btf,
    /// As a `struct bpf_map_def`, in section `maps`.
    Legacy,
    /// As a section of variables, `.data*`.
    Data,
    /// As a section of constants, `.rodata*`.
    Rodata,
    /// As a section of variables without initial value, `.bss*`.
    Bss,
}

/// What a slot of a map of maps or programs holds in the beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Slot {
    /// The map with this index in [`super::Object::maps`].
    Map(usize),
    /// The program with this name.
    Program(String),
}

impl MapSpec {
    pub(super) fn new(name: &str, section: &str, origin: MapOrigin, attr: MapAttr) -> Self {
        Self {
            name: name.to_owned(),
            section: section.to_owned(),
            origin,
            attr: MapAttr { map_name: MapAttr::name_field(name), ..attr },
            initial: Vec::new(),
            pin_by_name: false,
            inner: None,
            slots: Vec::new(),
        }
    }

    /// Whether the map is to be frozen once its value is filled in.
    pub fn is_frozen(&self) -> bool {
        self.origin == MapOrigin::Rodata
    }

    /// Whether the map is a section of variables.
    pub fn is_data(&self) -> bool {
        matches!(self.origin, MapOrigin::Data | MapOrigin::Rodata | MapOrigin::Bss)
    }
}

/// The maps of an object, and where each of them is defined.
#[derive(Default)]
pub(super) struct Maps {
    pub(super) specs: Vec<MapSpec>,
    /// By section and byte offset in it; data sections are at offset 0.
    places: BTreeMap<(usize, u64), usize>,
    /// Where the slots of maps of maps and programs begin in section `.maps`, with where they end and whose they are.
    slots: BTreeMap<u64, (u64, usize)>,
}

impl Maps {
    /// All maps: those of `.maps`, then legacy ones, then data sections, each in the order of the file.
    pub(super) fn collect(file: &File<'_>, btf: Option<&Btf>) -> Result<Self, LoadError> {
        let mut maps = Self::default();
        if let Some((index, _)) = file.section(".maps") {
            btf_maps::collect(index, btf.ok_or(LoadError::MapsWithoutBtf)?, &mut maps)?;
        }
        for (index, section) in file.sections.iter().enumerate() {
            if section.name == "maps" || section.name.starts_with("maps/") {
                legacy_maps::collect(file, index, section, &mut maps)?;
            }
        }
        let variables = Variables::new(file, btf);
        for (index, section) in file.sections.iter().enumerate() {
            if let Some(origin) = data_origin(section) {
                maps.push(data_map(index, section, origin, &variables)?, index, 0);
            }
        }
        Ok(maps)
    }

    pub(super) fn push(&mut self, spec: MapSpec, section: usize, offset: u64) {
        self.places.insert((section, offset), self.specs.len());
        self.specs.push(spec);
    }

    /// The index of the map whose definition begins at this byte of this section.
    pub(super) fn at(&self, section: usize, offset: u64) -> Option<usize> {
        self.places.get(&(section, offset)).copied()
    }

    /// Whether the section defines maps.
    pub(super) fn has(&self, section: usize) -> bool {
        self.places.range((section, 0)..=(section, u64::MAX)).next().is_some()
    }

    /// Notes the bytes in section `.maps` where the next map has its slots.
    pub(super) fn push_slots(&mut self, bytes: Range<u64>) {
        self.slots.insert(bytes.start, (bytes.end, self.specs.len()));
    }

    /// The index of the map that has a slot at this byte of section `.maps`, and how many bytes it is behind
    /// the map's first slot.
    pub(super) fn slot_at(&self, offset: u64) -> Option<(usize, u64)> {
        let (start, &(end, index)) = self.slots.range(..=offset).next_back()?;
        (offset < end).then_some((index, offset - start))
    }
}

fn data_origin(section: &Section<'_>) -> Option<MapOrigin> {
    let is = |name: &str| {
        section.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match section.kind {
        _ if section.size == 0 => None,
        SectionKind::Contents if is(".data") => Some(MapOrigin::Data),
        SectionKind::Contents if is(".rodata") => Some(MapOrigin::Rodata),
        SectionKind::Zeroes if is(".bss") => Some(MapOrigin::Bss),
        _ => None,
    }
}

fn data_map(
    index: usize,
    section: &Section<'_>,
    origin: MapOrigin,
    variables: &Variables<'_>,
) -> Result<MapSpec, LoadError> {
    let value_size = u32::try_from(section.size);
    let value_size = value_size.map_err(|_| MapDefect::TooLarge(section.size).of(section.name))?;
    let mut map_flags = MapFlags::empty();
    if origin == MapOrigin::Rodata {
        map_flags |= MapFlags::RDONLY_PROG;
    }
    if variables.has_exported(index, section.name) {
        map_flags |= MapFlags::MMAPABLE;
    }
    let attr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size,
        max_entries: 1,
        map_flags,
        btf_value_type_id: variables.datasecs.get(section.name).map_or(0, |(id, _)| *id),
        ..MapAttr::default()
    };
    let mut spec = MapSpec::new(section.name, section.name, origin, attr);
    // Sections may have characters in their name that maps must not have.
    for byte in &mut spec.attr.map_name[..MAP_NAME_LEN - 1] {
        if !(*byte == 0 || byte.is_ascii_alphanumeric() || matches!(*byte, b'_' | b'.')) {
            *byte = b'_';
        }
    }
    spec.initial = section.data.to_vec();
    Ok(spec)
}

/// What is known about variables.
struct Variables<'a> {
    btf: Option<&'a Btf>,
    /// The types of sections, with their ids, by name.
    datasecs: HashMap<&'a str, (u32, Datasec<'a>)>,
    /// The variables that other objects may see, by section.
    exported: HashSet<(usize, &'a str)>,
}

impl<'a> Variables<'a> {
    fn new(file: &File<'a>, btf: Option<&'a Btf>) -> Self {
        let mut datasecs = HashMap::new();
        for ty in btf.into_iter().flat_map(Btf::types) {
            if let Def::Datasec(datasec) = ty.def {
                datasecs.entry(ty.name).or_insert((ty.id, datasec));
            }
        }
        let mut exported = HashSet::new();
        for symbol in &file.symbols {
            if let Place::Section(section) = symbol.place
                && symbol.kind == elf::STT_OBJECT
                && !symbol.is_local
                && !symbol.is_hidden
            {
                exported.insert((section, symbol.name));
            }
        }
        Self { btf, datasecs, exported }
    }

    /// Whether a section has a variable that the loading process may want to see: it is mappable then.
    fn has_exported(&self, section: usize, name: &str) -> bool {
        let Some(((_, datasec), btf)) = self.datasecs.get(name).zip(self.btf) else { return false };
        datasec.vars().filter_map(|var| btf.get(var.var).ok()).any(|ty| {
            matches!(ty.def, Def::Var { linkage: Linkage::Global, .. })
                && self.exported.contains(&(section, ty.name))
        })
    }
}
