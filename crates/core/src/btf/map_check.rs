//! Whether the BTF types a map is created with fit the map.

use super::special::FieldMask;
use super::{Btf, Def, SpecialFields};
use crate::attr::{Creator, MapAttr, MapFlags, MapType};
use crate::errno::Errno;

/// Why the types of keys and values do not fit a map. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckBtfError {
    /// The map type is not built in.
    #[error("maps of {0} are not available")]
    MapType(MapType),
    /// The type of keys has no size, or not that of keys.
    #[error("btf_key_type_id {id} is no type of {key_size} bytes")]
    KeySize {
        /// The type.
        id: u32,
        /// Bytes of a key.
        key_size: u32,
    },
    /// A map type that needs a type for its keys.
    #[error("btf_key_type_id is missing, which {0} needs")]
    NoKey(MapType),
    /// The type of values has no size, or not that of values.
    #[error("btf_value_type_id {id} is no type of {value_size} bytes")]
    ValueSize {
        /// The type.
        id: u32,
        /// Bytes of a value.
        value_size: u32,
    },
    /// The creator may not have special fields in values.
    #[error("not permitted to have {0} in values")]
    NotPermitted(&'static str),
    /// Special fields in values that programs cannot both read and write.
    #[error("{0} in values excludes RDONLY_PROG and WRONLY_PROG")]
    ProgAccess(&'static str),
    /// A special field that values of this map type cannot have.
    #[error("{field} cannot be in values of {map_type}")]
    Field {
        /// The field.
        field: &'static str,
        /// The map type.
        map_type: MapType,
    },
    /// Values of this map type have no types.
    #[error("{0} takes no BTF types")]
    Unsupported(MapType),
    /// Keys are no 32-bit integers.
    #[error("btf_key_type_id {0} is no 32-bit integer")]
    Key(u32),
    /// No type of keys, which only an ARRAY with a single data section as its value can do without.
    #[error("btf_key_type_id is missing, and the map is no array of one data section")]
    Keyless,
}

impl CheckBtfError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapType(_)
            | Self::KeySize { .. }
            | Self::NoKey(_)
            | Self::ValueSize { .. }
            | Self::Key(_)
            | Self::Keyless => Errno::EINVAL,
            Self::NotPermitted(_) => Errno::EPERM,
            Self::ProgAccess(_) => Errno::EACCES,
            Self::Field { .. } => Errno::EOPNOTSUPP,
            Self::Unsupported(_) => Errno::ENOTSUPP,
        }
    }
}

/// What a map type says to BTF.
enum Hook {
    /// `array_map_check_btf`
    Array {
        /// Whether the one value may be a data section without a key.
        keyless: bool,
    },
    /// None: any key of 4 bytes will do, but there must be one.
    None,
    /// `map_check_no_btf`
    No,
}

const ARRAY_FIELDS: FieldMask = FieldMask::MAP_VALUE.difference(FieldMask::UPTR);
const PERCPU_ARRAY_FIELDS: FieldMask = FieldMask::KPTR.union(FieldMask::REFCOUNT);

/// The hook of a map type, and the special fields its values can have.
const fn rules(map_type: MapType) -> Option<(Hook, FieldMask)> {
    match map_type {
        MapType::ARRAY => Some((Hook::Array { keyless: true }, ARRAY_FIELDS)),
        MapType::PERCPU_ARRAY => Some((Hook::Array { keyless: false }, PERCPU_ARRAY_FIELDS)),
        MapType::PROG_ARRAY => Some((Hook::None, FieldMask::empty())),
        MapType::PERF_EVENT_ARRAY | MapType::CGROUP_ARRAY | MapType::ARRAY_OF_MAPS => {
            Some((Hook::No, FieldMask::empty()))
        }
        _ => None,
    }
}

impl MapAttr {
    /// Checks the types of keys and values, and finds the special fields of values.
    ///
    /// To be called for attributes that passed [`MapAttr::check`], when the map has its memory, and only if one of the type ids
    /// is not 0. That the BTF is not the kernel's own (EACCES) is for whoever resolves `btf_fd` to check.
    ///
    /// A value whose special fields cannot be ([`SpecialFields::of`] has an error) is ordinary bytes, as in
    /// the kernel; loaders find such structs with [`Btf::check_special_structs`].
    ///
    /// ```
    /// use bpfarray_core::attr::{Creator, MapAttr, MapType};
    /// use bpfarray_core::{Errno, btf::{Btf, Kind}};
    ///
    /// let btf = Btf::parse(include_bytes!("../../../../testdata/btf/types.btf"))?;
    /// let attr = MapAttr {
    ///     map_type: MapType::ARRAY,
    ///     key_size: 4,
    ///     value_size: 144,
    ///     max_entries: 1,
    ///     btf_key_type_id: btf.find_by_name("int", Kind::Int).ok_or("int")?,
    ///     btf_value_type_id: btf.find_by_name("outer", Kind::Struct).ok_or("outer")?,
    ///     ..MapAttr::default()
    /// };
    /// assert!(attr.check_btf(&Creator::default(), &btf)?.is_empty());
    ///
    /// let perf = MapAttr { map_type: MapType::PERF_EVENT_ARRAY, ..attr };
    /// assert_eq!(perf.check_btf(&Creator::default(), &btf).unwrap_err().errno(), Errno::ENOTSUPP);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`CheckBtfError`] in their order, but for [`CheckBtfError::Key`] and
    /// [`CheckBtfError::Keyless`], of which a map has at most one.
    ///
    /// # Kernel
    /// `map_check_btf`, `array_map_check_btf`
    #[doc(alias = "map_check_btf")]
    #[doc(alias = "array_map_check_btf")]
    pub fn check_btf(
        &self,
        creator: &Creator<'_>,
        btf: &Btf,
    ) -> Result<SpecialFields, CheckBtfError> {
        let &Self { map_type, key_size, value_size, .. } = self;
        let (key, value) = (self.btf_key_type_id, self.btf_value_type_id);
        let (hook, allowed) = rules(map_type).ok_or(CheckBtfError::MapType(map_type))?;
        if key != 0 && btf.size_of(key) != Ok(key_size) {
            return Err(CheckBtfError::KeySize { id: key, key_size });
        }
        if key == 0 && matches!(hook, Hook::None) {
            return Err(CheckBtfError::NoKey(map_type));
        }
        if btf.size_of(value) != Ok(value_size) {
            return Err(CheckBtfError::ValueSize { id: value, value_size });
        }
        let fields = SpecialFields::of(btf, value).unwrap_or_default();
        if let Some(first) = fields.as_slice().first() {
            let name = first.kind.name();
            if !creator.may_create {
                return Err(CheckBtfError::NotPermitted(name));
            }
            if self.map_flags.intersects(MapFlags::RDONLY_PROG | MapFlags::WRONLY_PROG) {
                return Err(CheckBtfError::ProgAccess(name));
            }
        }
        if let Some(field) = fields.as_slice().iter().find(|f| !allowed.contains(f.kind.mask())) {
            return Err(CheckBtfError::Field { field: field.kind.name(), map_type });
        }
        match hook {
            Hook::Array { keyless } if key == 0 => {
                let is_section = matches!(btf.resolve(value).map(|ty| ty.def), Ok(Def::Datasec(_)));
                if !keyless || self.max_entries != 1 || !is_section {
                    return Err(CheckBtfError::Keyless);
                }
            }
            Hook::Array { .. } => {
                let def = btf.value_type(key).map(|ty| ty.def);
                if !matches!(def, Some(Def::Int(int)) if int.bits == 32 && int.offset == 0) {
                    return Err(CheckBtfError::Key(key));
                }
            }
            Hook::None => {}
            Hook::No => return Err(CheckBtfError::Unsupported(map_type)),
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;
    use std::vec;

    use super::*;
    use crate::btf::testing::{Builder, unhex};

    const MAPS: &str = include_str!("../../../../testdata/check_btf/maps.vec");

    /// The attributes of a line `map map_type=2 ...`.
    fn attr(line: &str) -> MapAttr {
        let mut attr = MapAttr { key_size: 4, ..MapAttr::default() };
        for (name, value) in line.split(' ').map(|field| field.split_once('=').unwrap()) {
            let value = value.parse().unwrap();
            match name {
                "map_type" => attr.map_type = MapType(value),
                "value_size" => attr.value_size = value,
                "max_entries" => attr.max_entries = value,
                "map_flags" => attr.map_flags = MapFlags::from_bits_retain(value),
                "key" => attr.btf_key_type_id = value,
                "value" => attr.btf_value_type_id = value,
                _ => panic!("{name}"),
            }
        }
        attr
    }

    /// What the kernel's recorder would have written down for us.
    fn answer(attr: &MapAttr, btf: &Btf) -> String {
        if let Err(error) = btf.check_special_structs() {
            return match error.errno().raw() {
                40 => "load ELOOP".into(),
                _ => format!("load {}", error.errno()),
            };
        }
        // The checks before this one, as far as they concern the recorded maps.
        let is_map = matches!(attr.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
        let array_only = MapFlags::MMAPABLE | MapFlags::INNER_MAP;
        if !is_map && attr.value_size != 4
            || attr.map_type != MapType::ARRAY && attr.map_flags.intersects(array_only)
        {
            return "create EINVAL".into();
        }
        let fields = match attr.check_btf(&Creator::default(), btf) {
            Ok(fields) => fields,
            Err(error) => return format!("create {}", error.errno()),
        };
        if !is_map {
            return "ok".into();
        }
        let updated = vec![0x55; attr.value_size as usize];
        let mut seen = vec![0; updated.len()];
        for range in fields.ordinary(seen.len()) {
            seen[range.clone()].copy_from_slice(&updated[range]);
        }
        fields.init(&mut seen);
        let lock = if fields.spin_lock().is_some() { " lock" } else { "" };
        let image = if seen == updated {
            "plain".into()
        } else {
            seen.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        format!("ok{lock} {image}")
    }

    #[test]
    fn maps_take_the_btf_the_kernel_takes() {
        let (mut btf, mut asked) = (None, 0);
        for line in MAPS.lines().filter(|line| !line.starts_with('#')) {
            if let Some(hex) = line.strip_prefix("btf ") {
                btf = Some(
                    Btf::parse(&unhex(hex)).map_err(|error| format!("{error}: {hex}")).unwrap(),
                );
                continue;
            }
            let (map, expected) = line.strip_prefix("map ").unwrap().split_once(" = ").unwrap();
            assert_eq!(answer(&attr(map), btf.as_ref().unwrap()), expected, "{map} {btf:?}");
            asked += 1;
        }
        assert!(asked > 1000, "{asked}");
    }

    fn with_timer() -> (Btf, MapAttr) {
        let mut b = Builder::new();
        let timer = b.opaque("bpf_timer", 16);
        let value = b.structure("v", 24, &[(1, 0), (timer, 8)]);
        let attr = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 24,
            max_entries: 1,
            btf_key_type_id: 1,
            btf_value_type_id: value,
            ..MapAttr::default()
        };
        (b.build(), attr)
    }

    #[test]
    fn the_first_check_that_fails_decides() {
        let (btf, good) = with_timer();
        let nobody = Creator { may_create: false, ..Creator::default() };
        let check = |attr: MapAttr| attr.check_btf(&nobody, &btf).unwrap_err();
        let attr = MapAttr {
            map_type: MapType::CGROUP_ARRAY,
            map_flags: MapFlags::RDONLY_PROG,
            btf_key_type_id: 99,
            btf_value_type_id: 99,
            ..good
        };
        assert_eq!(check(attr), CheckBtfError::KeySize { id: 99, key_size: 4 });
        let attr = MapAttr { btf_key_type_id: 0, ..attr };
        assert_eq!(check(attr), CheckBtfError::ValueSize { id: 99, value_size: 24 });
        let prog = MapAttr { map_type: MapType::PROG_ARRAY, ..attr };
        assert_eq!(check(prog), CheckBtfError::NoKey(MapType::PROG_ARRAY));
        let attr = MapAttr { btf_value_type_id: good.btf_value_type_id, ..attr };
        assert_eq!(check(attr), CheckBtfError::NotPermitted("bpf_timer"));
        let check = |attr: MapAttr| attr.check_btf(&Creator::default(), &btf).unwrap_err();
        assert_eq!(check(attr), CheckBtfError::ProgAccess("bpf_timer"));
        let attr = MapAttr { map_flags: MapFlags::empty(), ..attr };
        let map_type = MapType::CGROUP_ARRAY;
        assert_eq!(check(attr), CheckBtfError::Field { field: "bpf_timer", map_type });
        let attr = MapAttr { btf_value_type_id: 1, value_size: 4, ..attr };
        assert_eq!(check(attr), CheckBtfError::Unsupported(map_type));
        assert_eq!(check(MapAttr { map_type: MapType::ARRAY, ..attr }), CheckBtfError::Keyless);
    }

    #[test]
    fn special_fields_are_allowed_to_whoever_may_create_maps() {
        let (btf, attr) = with_timer();
        assert_eq!(attr.check_btf(&Creator::default(), &btf).unwrap().timer(), Some(8));
    }

    #[test]
    fn types_of_maps_that_are_not_built_in_are_einval() {
        let (btf, attr) = with_timer();
        let error =
            MapAttr { map_type: MapType::HASH, ..attr }.check_btf(&Creator::default(), &btf);
        assert_eq!(error, Err(CheckBtfError::MapType(MapType::HASH)));
    }
}
