//! Maps defined as types: section `.maps`, where a struct's members say what a map is.
//!
//! `__uint(name, N)` is a pointer to an array of N elements, `__type(name, T)` a pointer to T, `__ulong(name, N)` an
//! enumeration with the single value N, `__array(values, T)` an array of unknown length of pointers to T.

use bpfarray_core::attr::{MapAttr, MapFlags, MapType};
use bpfarray_core::btf::{Btf, BtfError, Composite, Def, Kind, Linkage, Member};

use super::LoadError;
use super::code::Code;
use super::error::MapDefect;
use super::file::{File, MAX_NAME, Place};
use super::maps::{MapOrigin, MapSpec, Maps, Slot};

const SECTION: &str = ".maps";
/// Bytes of a pointer in `.maps`, and so of an initial value.
const SLOT_SIZE: u64 = 8;

/// `LIBBPF_PIN_NONE` and `LIBBPF_PIN_BY_NAME`
const PIN_NONE: u32 = 0;
const PIN_BY_NAME: u32 = 1;

/// Adds the maps of the section, in the order in which they lie there.
pub(super) fn collect(section: usize, btf: &Btf, maps: &mut Maps) -> Result<(), LoadError> {
    let id = btf.find_by_name(SECTION, Kind::Datasec).ok_or(LoadError::MapsWithoutBtf)?;
    let Def::Datasec(datasec) = btf.get(id).map_err(LoadError::Btf)?.def else {
        return Err(LoadError::MapsWithoutBtf);
    };
    for var in datasec.vars() {
        let name = btf.get(var.var).map_err(LoadError::Btf)?.name;
        if name.len() > MAX_NAME {
            return Err(MapDefect::NameTooLong(name.len()).of(SECTION));
        }
        let def = map_struct(btf, var.var).map_err(|defect| defect.of(name))?;
        let definition = Definition::parse(btf, def, false).map_err(|defect| defect.of(name))?;
        let mut spec = MapSpec::new(name, SECTION, MapOrigin::Btf, definition.attr);
        spec.pin_by_name = definition.pin_by_name;
        spec.inner = definition.inner;
        if let Some(inner) = &mut spec.inner {
            inner.map_name = MapAttr::name_field(&format!("{name}.inner"));
        }
        let start = u64::from(var.offset);
        if let Some(values) = definition.values_offset {
            maps.push_slots(start + u64::from(values)..start + u64::from(var.size));
        }
        maps.push(spec, section, start);
    }
    Ok(())
}

/// The struct that defines the map a variable stands for.
fn map_struct(btf: &Btf, var: u32) -> Result<Composite<'_>, MapDefect> {
    let var = btf.get(var).map_err(unsized_("type"))?;
    let Def::Var { ty, linkage: Linkage::Global | Linkage::Static } = var.def else {
        return Err(MapDefect::NoDefinition(var.kind()));
    };
    let ty = btf.resolve(ty).map_err(unsized_("type"))?;
    match ty.def {
        Def::Struct(def) => Ok(def),
        _ => Err(MapDefect::NoDefinition(ty.kind())),
    }
}

fn unsized_(field: &'static str) -> impl Fn(BtfError) -> MapDefect {
    move |source| MapDefect::Unsized { field, source }
}

/// What the members of a definition say.
struct Definition {
    attr: MapAttr,
    pin_by_name: bool,
    inner: Option<MapAttr>,
    /// Bytes from the start of the definition to the first slot.
    values_offset: Option<u32>,
}

impl Definition {
    fn parse(btf: &Btf, def: Composite<'_>, is_inner: bool) -> Result<Self, MapDefect> {
        let mut this =
            Self { attr: MapAttr::default(), pin_by_name: false, inner: None, values_offset: None };
        let attr = &mut this.attr;
        let count = def.members().len();
        for (index, member) in def.members().enumerate() {
            match member.name {
                "type" => attr.map_type = MapType(uint(btf, "type", member)?),
                "max_entries" => attr.max_entries = uint(btf, "max_entries", member)?,
                "map_flags" => {
                    attr.map_flags = MapFlags::from_bits_retain(uint(btf, "map_flags", member)?);
                }
                "numa_node" => attr.numa_node = uint(btf, "numa_node", member)?,
                "map_extra" => attr.map_extra = ulong(btf, "map_extra", member)?,
                "key_size" => {
                    let size = uint(btf, "key_size", member)?;
                    agree("key_size", &mut attr.key_size, size)?;
                }
                "value_size" => {
                    let size = uint(btf, "value_size", member)?;
                    agree("value_size", &mut attr.value_size, size)?;
                }
                "key" => {
                    attr.btf_key_type_id = pointee(btf, "key", member)?;
                    let size = btf.size_of(attr.btf_key_type_id).map_err(unsized_("key"))?;
                    agree("key", &mut attr.key_size, size)?;
                }
                "value" => {
                    attr.btf_value_type_id = pointee(btf, "value", member)?;
                    let size = btf.size_of(attr.btf_value_type_id).map_err(unsized_("value"))?;
                    agree("value", &mut attr.value_size, size)?;
                }
                "pinning" if is_inner => return Err(MapDefect::InInnerMap("pinning")),
                "pinning" => {
                    this.pin_by_name = match uint(btf, "pinning", member)? {
                        PIN_NONE => false,
                        PIN_BY_NAME => true,
                        value => {
                            let value = u64::from(value);
                            return Err(MapDefect::Value { field: "pinning", value });
                        }
                    }
                }
                "values" if is_inner => return Err(MapDefect::InInnerMap("values")),
                "values" if index + 1 != count => return Err(MapDefect::ValuesNotLast),
                "values" => {
                    agree("values", &mut attr.value_size, 4)?;
                    this.inner = values(btf, attr.map_type, member)?;
                    this.values_offset = Some(member.bit_offset / 8);
                }
                unknown => return Err(MapDefect::UnknownField(unknown.to_owned())),
            }
        }
        // The kernel refuses the one without the other, and loaders drop it.
        if this.attr.btf_value_type_id == 0 {
            this.attr.btf_key_type_id = 0;
        }
        if this.attr.map_type == MapType(0) { Err(MapDefect::NoType) } else { Ok(this) }
    }
}

/// Sets a size that may have been given in another way before.
fn agree(field: &'static str, size: &mut u32, new: u32) -> Result<(), MapDefect> {
    if *size != 0 && *size != new {
        return Err(MapDefect::Conflict { field, old: *size, new });
    }
    *size = new;
    Ok(())
}

fn pointee(btf: &Btf, field: &'static str, member: Member<'_>) -> Result<u32, MapDefect> {
    let ty = btf.resolve(member.ty).map_err(unsized_(field))?;
    match ty.def {
        Def::Ptr(to) => Ok(to),
        _ => Err(MapDefect::Kind { field, expected: Kind::Ptr, found: ty.kind() }),
    }
}

fn uint(btf: &Btf, field: &'static str, member: Member<'_>) -> Result<u32, MapDefect> {
    let ty = btf.resolve(pointee(btf, field, member)?).map_err(unsized_(field))?;
    match ty.def {
        Def::Array(array) => Ok(array.len),
        _ => Err(MapDefect::Kind { field, expected: Kind::Array, found: ty.kind() }),
    }
}

fn ulong(btf: &Btf, field: &'static str, member: Member<'_>) -> Result<u64, MapDefect> {
    match btf.resolve(member.ty).map_err(unsized_(field))?.def {
        // A negative value stands for the number with the same bits.
        Def::Enum(def) => match (def.len(), def.value(0)) {
            (1, Some(only)) => Ok(only.value as u64),
            (len, _) => Err(MapDefect::Value { field, value: len as u64 }),
        },
        _ => uint(btf, field, member).map(u64::from),
    }
}

/// What the `values` member says about inner maps.
fn values(btf: &Btf, map_type: MapType, member: Member<'_>) -> Result<Option<MapAttr>, MapDefect> {
    const FIELD: &str = "values";
    let wrong = |expected, found| MapDefect::Kind { field: FIELD, expected, found };
    let ty = btf.resolve(member.ty).map_err(unsized_(FIELD))?;
    let Def::Array(array) = ty.def else { return Err(wrong(Kind::Array, ty.kind())) };
    if array.len != 0 {
        return Err(MapDefect::Value { field: FIELD, value: u64::from(array.len) });
    }
    let ty = btf.resolve(array.element).map_err(unsized_(FIELD))?;
    let Def::Ptr(to) = ty.def else { return Err(wrong(Kind::Ptr, ty.kind())) };
    let ty = btf.resolve(to).map_err(unsized_(FIELD))?;
    match (map_type, ty.def) {
        (MapType::PROG_ARRAY, Def::FuncProto(_)) => Ok(None),
        (MapType::PROG_ARRAY, _) => Err(wrong(Kind::FuncProto, ty.kind())),
        (MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS, Def::Struct(def)) => {
            Ok(Some(Definition::parse(btf, def, true)?.attr))
        }
        (MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS, _) => Err(wrong(Kind::Struct, ty.kind())),
        _ => Err(MapDefect::Values),
    }
}

/// Fills in the slots of maps of maps and of programs: the relocations of the section.
pub(super) fn fill_slots(file: &File<'_>, code: &Code, maps: &mut Maps) -> Result<(), LoadError> {
    let Some((section, contents)) = file.section(SECTION) else { return Ok(()) };
    for reloc in &contents.relocs {
        let misplaced = || MapDefect::SlotOffset(reloc.offset).of(SECTION);
        let (index, from_first) = maps.slot_at(reloc.offset).ok_or_else(misplaced)?;
        let spec = maps.specs.get(index).ok_or_else(misplaced)?;
        let slot = u32::try_from(from_first / SLOT_SIZE).map_err(|_| misplaced())?;
        // In the field itself is what the compiler wants added to the symbol's value.
        let addend = usize::try_from(reloc.offset).ok().and_then(|at| {
            contents.data.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
        });
        let addend = addend.filter(|_| from_first % SLOT_SIZE == 0).ok_or_else(misplaced)?;
        let symbol = file.symbol(reloc.symbol).ok_or_else(misplaced)?;
        let value = symbol.value.wrapping_add(addend);
        let is_prog_array = spec.attr.map_type == MapType::PROG_ARRAY;
        let content = match symbol.place {
            Place::Section(at) if is_prog_array => {
                code.program_at(at, value).map(|name| Slot::Program(name.to_owned()))
            }
            Place::Section(at) if at == section => maps.at(at, value).map(Slot::Map),
            _ => None,
        };
        let expected = if is_prog_array { "program" } else { "map" };
        let content = content.ok_or_else(|| {
            MapDefect::Slot { slot, symbol: symbol.name.to_owned(), expected }.of(&spec.name)
        })?;
        if let Some(spec) = maps.specs.get_mut(index) {
            spec.slots.push((slot, content));
        }
    }
    Ok(())
}
