//! The header of a map file: what it says, and whether it may be believed.
//!
//! A header is read into private memory and judged once. Everything it says about sizes and offsets
//! follows from the map's type and sizes, so what was judged is computed again and compared.

use bpfarray_core::attr::{
    CreateError, Creator, MAP_NAME_LEN, MapAttr, MapFlags, MapType, PROG_HASH_LEN,
};
use bpfarray_core::map::Kind;
use bpfarray_core::{Layout, VALUE_OFFSET};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::template::Template;
use crate::numa::online_nodes;

/// Bytes that page-aligned parts are aligned to, and of the header page.
pub(crate) const PAGE: u64 = VALUE_OFFSET as u64;

/// Offset of `frozen`, a `u64`: 1 once handles may no longer write.
pub(crate) const FROZEN_OFFSET: usize = 2048;
/// Offset of `generation`, a `u64` that counts changes to the map that are not to values.
pub(crate) const GENERATION_OFFSET: usize = 2056;
/// Offset of `slot_changes`, a `u64` that changes with what is in slots, and is odd while it does.
pub(crate) const SLOT_CHANGES_OFFSET: usize = 2064;
/// Offset of `owner`, a `u64`: what the programs of a PROG_ARRAY have in common, or 0 before the first.
pub(crate) const OWNER_OFFSET: usize = 2072;

/// Bytes from one lane to the next: processors fetch cache lines in pairs.
pub(crate) const LANE_STRIDE: u64 = 128;

/// Begins with a byte no text begins with, and ends as lines do on two systems.
const MAGIC: [u8; 8] = *b"\x8fBPFMAP\n";
const FORMAT_VERSION: u32 = 1;

/// In `features`: the map is for one program only.
const EXCLUSIVE: u32 = 1;

/// The immutable part of a header page, as it is in the file.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    magic: [u8; 8],
    format_version: U32,
    features: U32,
    map_type: U32,
    key_size: U32,
    value_size: U32,
    max_entries: U32,
    map_flags: U32,
    numa_node: U32,
    map_name: [u8; MAP_NAME_LEN],
    id: U32,
    possible_cpus: U32,
    btf_key_type_id: U32,
    btf_value_type_id: U32,
    btf_offset: U64,
    btf_len: U64,
    values_offset: U64,
    values_len: U64,
    cpu_stride: U64,
    lanes_offset: U64,
    lanes_len: U64,
    file_len: U64,
    checksum: U64,
}

/// Why a header is not believed. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// There are fewer bytes than a header page has.
    #[error("{0} bytes are too few for a map file's header")]
    Short(u64),
    /// The file does not begin as map files do.
    #[error("magic is not that of a map file")]
    Magic,
    /// A version of the format that this version of the crate does not know.
    #[error("format_version {0} is not known")]
    Version(u32),
    /// The immutable part is damaged.
    #[error("checksum is {found:#x}, but the header's is {expected:#x}")]
    Checksum {
        /// What the file says.
        found: u64,
        /// What its bytes say.
        expected: u64,
    },
    /// No map can have this type, these sizes, flags or name.
    #[error(transparent)]
    Attr(#[from] CreateError),
    /// More bytes than a file can have.
    #[error("max_entries {max_entries} of value_size {value_size} do not fit in a file")]
    TooLarge {
        /// Number of elements.
        max_entries: u32,
        /// Bytes of a value.
        value_size: u32,
    },
    /// A field contradicts the others, or this machine.
    #[error("{field} is {found:#x}, not {expected:#x}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What the file says.
        found: u64,
        /// What it would have to say.
        expected: u64,
    },
    /// The file is longer or shorter than it says.
    #[error("file_len is {file_len}, but the file has {found} bytes")]
    Length {
        /// What the header says.
        file_len: u64,
        /// Bytes of the file.
        found: u64,
    },
}

/// Where the parts of a map file are. Offsets and lengths are bytes from the file's beginning.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// Bytes of an ARRAY's values or of a map's slots, with the surplus ones, or of one CPU's values.
    pub(crate) values_len: u64,
    /// From a CPU's values to the next CPU's; 0 for other maps.
    pub(crate) cpu_stride: u64,
    pub(crate) lanes_offset: u64,
    pub(crate) lanes_len: u64,
    pub(crate) btf_offset: u64,
    pub(crate) btf_len: u64,
    pub(crate) file_len: u64,
}

impl Geometry {
    /// `None` for more bytes than a file can have.
    pub(crate) fn of(layout: &Layout, possible_cpus: u32, btf_len: u64) -> Option<Self> {
        let page_up = |len: u64| len.checked_next_multiple_of(PAGE);
        let (values_len, cpu_stride, values_end) = match layout.kind() {
            Kind::Array
            | Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps => {
                let len = layout.payload_len();
                (len, 0, page_up(PAGE.checked_add(len)?)?)
            }
            Kind::PercpuArray => {
                let len = layout.window_len();
                let stride = page_up(len)?;
                (len, stride, stride.checked_mul(u64::from(possible_cpus))?.checked_add(PAGE)?)
            }
        };
        let lanes_len = page_up(u64::from(possible_cpus) * LANE_STRIDE)?;
        let lanes_end = values_end.checked_add(lanes_len)?;
        let file_len = page_up(lanes_end.checked_add(btf_len)?)?;
        i64::try_from(file_len).ok()?;
        Some(Self {
            values_len,
            cpu_stride,
            lanes_offset: values_end,
            lanes_len,
            btf_offset: if btf_len == 0 { 0 } else { lanes_end },
            btf_len,
            file_len,
        })
    }

    /// Where a CPU's values begin.
    pub(crate) fn cpu_offset(&self, cpu: u32) -> u64 {
        PAGE + self.cpu_stride * u64::from(cpu)
    }
}

/// What a header says that was found true.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) attr: MapAttr,
    pub(crate) layout: Layout,
    pub(crate) geometry: Geometry,
    /// Of an ARRAY_OF_MAPS.
    pub(crate) template: Option<Template>,
    /// The id under which a directory lists the file, or 0.
    pub(crate) id: u32,
}

impl Shape {
    /// The shape of a new file.
    pub(crate) fn of(
        attr: &MapAttr,
        cpus: u32,
        btf_len: u64,
        template: Option<Template>,
    ) -> Result<Self, HeaderError> {
        let creator = Creator { online_nodes: online_nodes(), ..Creator::default() };
        Self::checked(*attr, &creator, cpus, btf_len, template)
    }

    fn checked(
        attr: MapAttr,
        creator: &Creator<'_>,
        cpus: u32,
        btf_len: u64,
        template: Option<Template>,
    ) -> Result<Self, HeaderError> {
        let layout = attr.check_with(creator, template.as_ref().map(|inner| &inner.layout))?;
        attr.check_name()?;
        let MapAttr { max_entries, value_size, .. } = attr;
        let geometry = Geometry::of(&layout, cpus, btf_len)
            .ok_or(HeaderError::TooLarge { max_entries, value_size })?;
        Ok(Self { attr, layout, geometry, template, id: 0 })
    }
}

impl Header {
    pub(crate) fn of(shape: &Shape, possible_cpus: u32) -> Self {
        let Shape { attr, layout, geometry, .. } = shape;
        let mut map_name = [0; MAP_NAME_LEN];
        for (to, &from) in map_name.iter_mut().zip(&attr.map_name).take_while(|(_, b)| **b != 0) {
            *to = from;
        }
        let mut header = Self {
            magic: MAGIC,
            format_version: FORMAT_VERSION.into(),
            features: features(attr).into(),
            map_type: attr.map_type.0.into(),
            key_size: attr.key_size.into(),
            value_size: attr.value_size.into(),
            max_entries: attr.max_entries.into(),
            map_flags: layout.map_flags().bits().into(),
            numa_node: attr.numa_node.into(),
            map_name,
            id: 0.into(),
            possible_cpus: possible_cpus.into(),
            btf_key_type_id: attr.btf_key_type_id.into(),
            btf_value_type_id: attr.btf_value_type_id.into(),
            btf_offset: geometry.btf_offset.into(),
            btf_len: geometry.btf_len.into(),
            values_offset: PAGE.into(),
            values_len: geometry.values_len.into(),
            cpu_stride: geometry.cpu_stride.into(),
            lanes_offset: geometry.lanes_offset.into(),
            lanes_len: geometry.lanes_len.into(),
            file_len: geometry.file_len.into(),
            checksum: 0.into(),
        };
        header.checksum = header.sum().into();
        header
    }

    /// The same header with the id under which a directory lists the file.
    pub(crate) fn with_id(mut self, id: u32) -> Self {
        self.id = id.into();
        self.checksum = self.sum().into();
        self
    }

    /// Of all bytes before the checksum.
    fn sum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum(&bytes[..bytes.len() - size_of::<U64>()])
    }

    /// Whether the page also has the template of an ARRAY_OF_MAPS.
    pub(crate) fn has_template(&self) -> bool {
        self.map_type == MapType::ARRAY_OF_MAPS.0
    }

    /// Whether the page also has the hash of the program that an exclusive map is for.
    pub(crate) fn has_prog_hash(&self) -> bool {
        self.features == EXCLUSIVE
    }

    /// Judges a header, for a file of `found_len` bytes on a machine with `cpus` possible CPUs. `template` is what
    /// an ARRAY_OF_MAPS was found to take, `excl_prog_hash` which program an exclusive map was found to be for.
    pub(crate) fn check(
        &self,
        found_len: u64,
        cpus: u32,
        template: Option<Template>,
        excl_prog_hash: Option<[u8; PROG_HASH_LEN]>,
    ) -> Result<Shape, HeaderError> {
        if self.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        if self.format_version != FORMAT_VERSION {
            return Err(HeaderError::Version(self.format_version.get()));
        }
        let (found, expected) = (self.checksum.get(), self.sum());
        if found != expected {
            return Err(HeaderError::Checksum { found, expected });
        }
        let attr = MapAttr {
            map_type: MapType(self.map_type.get()),
            key_size: self.key_size.get(),
            value_size: self.value_size.get(),
            max_entries: self.max_entries.get(),
            map_flags: MapFlags::from_bits_retain(self.map_flags.get()),
            numa_node: self.numa_node.get(),
            map_name: self.map_name,
            btf_key_type_id: self.btf_key_type_id.get(),
            btf_value_type_id: self.btf_value_type_id.get(),
            excl_prog_hash,
            ..MapAttr::default()
        };
        // Whether a node is online mattered to the creator.
        let creator = Creator { online_nodes: &[attr.numa_node], ..Creator::default() };
        let shape = Shape::checked(attr, &creator, cpus, self.btf_len.get(), template)?;
        let claims = [
            ("features", self.features.get(), features(&attr)),
            ("map_flags", self.map_flags.get(), shape.layout.map_flags().bits()),
            ("possible_cpus", self.possible_cpus.get(), cpus),
        ];
        let Geometry { values_len, cpu_stride, lanes_offset, lanes_len, btf_offset, .. } =
            shape.geometry;
        let wide_claims = [
            ("values_offset", self.values_offset, PAGE),
            ("values_len", self.values_len, values_len),
            ("cpu_stride", self.cpu_stride, cpu_stride),
            ("lanes_offset", self.lanes_offset, lanes_offset),
            ("lanes_len", self.lanes_len, lanes_len),
            ("btf_offset", self.btf_offset, btf_offset),
            ("file_len", self.file_len, shape.geometry.file_len),
        ];
        let wide = wide_claims.map(|(field, found, expected)| (field, found.get(), expected));
        claims
            .map(|(field, found, expected)| (field, u64::from(found), u64::from(expected)))
            .into_iter()
            .chain(wide)
            .find(|(_, found, expected)| found != expected)
            .map_or(Ok(()), |(field, found, expected)| {
                Err(HeaderError::Field { field, found, expected })
            })?;
        if found_len != shape.geometry.file_len {
            return Err(HeaderError::Length { file_len: self.file_len.get(), found: found_len });
        }
        Ok(Shape { id: self.id.get(), ..shape })
    }
}

/// What a reader must know to use a file of such a map.
fn features(attr: &MapAttr) -> u32 {
    if attr.excl_prog_hash.is_some() { EXCLUSIVE } else { 0 }
}

/// FNV-1a.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const CPUS: u32 = 3;

    fn shape(map_type: MapType) -> Shape {
        let attr = MapAttr {
            map_type,
            key_size: 4,
            value_size: 12,
            max_entries: 1000,
            map_name: *b"counters\0garbage",
            ..MapAttr::default()
        };
        Shape::of(&attr, CPUS, 10, None).unwrap()
    }

    fn header(map_type: MapType) -> Header {
        Header::of(&shape(map_type), CPUS)
    }

    const OBJECT_MAPS: [MapType; 4] = [
        MapType::PROG_ARRAY,
        MapType::PERF_EVENT_ARRAY,
        MapType::CGROUP_ARRAY,
        MapType::ARRAY_OF_MAPS,
    ];

    /// The template of an ARRAY_OF_MAPS.
    fn template(map_type: MapType) -> Option<Template> {
        let inner = shape(MapType::ARRAY);
        let template = Template { attr: inner.attr, layout: inner.layout };
        (map_type == MapType::ARRAY_OF_MAPS).then_some(template)
    }

    fn shape_of_objects(map_type: MapType) -> Shape {
        let attr = MapAttr { map_type, value_size: 4, ..shape(MapType::ARRAY).attr };
        Shape::of(&attr, CPUS, 0, template(map_type)).unwrap()
    }

    #[test]
    fn a_map_of_objects_has_a_slot_of_eight_bytes_for_each() {
        for map_type in OBJECT_MAPS {
            let shape = shape_of_objects(map_type);
            let Geometry { values_len, cpu_stride, lanes_offset, .. } = shape.geometry;
            assert_eq!((values_len, cpu_stride, lanes_offset), (1024 * 8, 0, 4096 + 8192));
            let header = Header::of(&shape, CPUS).with_id(7);
            let len = shape.geometry.file_len;
            let found = header.check(len, CPUS, template(map_type), None).unwrap();
            assert_eq!((found.layout, found.geometry, found.id), (shape.layout, shape.geometry, 7));
            let other = header.check(len, CPUS, None, None);
            assert_eq!(
                other.is_err(),
                header.has_template(),
                "an ARRAY_OF_MAPS needs its template"
            );
        }
    }

    #[test]
    fn fields_are_where_the_format_says() {
        let bytes = header(MapType::ARRAY);
        let bytes = bytes.as_bytes();
        assert_eq!(bytes.len(), 144);
        let at = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
        assert_eq!(&bytes[..8], b"\x8fBPFMAP\n");
        assert_eq!(at(16), 2 | 4 << 32, "map_type, key_size");
        assert_eq!(at(24), 12 | 1000 << 32, "value_size, max_entries");
        assert_eq!(&bytes[40..56], b"counters\0\0\0\0\0\0\0\0");
        assert_eq!(at(56), u64::from(CPUS) << 32, "id, possible_cpus");
        assert_eq!((at(88), at(96), at(104)), (4096, 1024 * 16, 0));
        assert_eq!((at(112), at(120), at(128)), (20480, 4096, 28672));
        assert_eq!((at(72), at(80)), (24576, 10), "BTF");
    }

    #[test]
    fn each_cpu_has_pages_of_its_own() {
        let geometry = shape(MapType::PERCPU_ARRAY).geometry;
        assert_eq!((geometry.values_len, geometry.cpu_stride), (16000, 16384));
        assert_eq!(geometry.cpu_offset(2), 4096 + 2 * 16384);
        assert_eq!(geometry.lanes_offset, geometry.cpu_offset(CPUS));
    }

    #[test]
    fn a_true_header_is_believed() {
        for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
            let shape = shape(map_type);
            let found = header(map_type).check(shape.geometry.file_len, CPUS, None, None).unwrap();
            assert_eq!((found.layout, found.geometry), (shape.layout, shape.geometry));
            assert_eq!(found.attr.check_name(), Ok(&b"counters"[..]));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for at in 0..size_of::<Header>() {
            let mut header = header(MapType::ARRAY);
            header.as_mut_bytes()[at] ^= 0x10;
            assert!(header.check(28672, CPUS, None, None).is_err(), "byte {at}");
        }
    }

    /// The error for a header that was changed by someone who knows the checksum.
    fn lie(map_type: MapType, change: impl FnOnce(&mut Header)) -> String {
        let mut header = header(map_type);
        let len = header.file_len.get();
        change(&mut header);
        header.checksum = header.sum().into();
        header.check(len, CPUS, None, None).unwrap_err().to_string()
    }

    #[test]
    fn every_field_that_lies_is_named() {
        type Lie = fn(&mut Header);
        let lies: [(&str, Lie); 22] = [
            ("magic", |h| h.magic[7] = 0),
            ("format_version", |h| h.format_version = 2.into()),
            ("features", |h| h.features = 1.into()),
            ("map type", |h| h.map_type = 1.into()),
            ("values_len", |h| h.map_type = 6.into()),
            ("key_size", |h| h.key_size = 8.into()),
            ("value_size", |h| h.value_size = 0.into()),
            ("value_size", |h| h.value_size = u32::MAX.into()),
            ("max_entries", |h| h.max_entries = 0.into()),
            ("max_entries", |h| h.max_entries = u32::MAX.into()),
            ("values_len", |h| h.max_entries = 2000.into()),
            ("map_flags", |h| h.map_flags = 1.into()),
            ("map_flags", |h| h.map_flags = 8.into()),
            ("map_name", |h| h.map_name[0] = b'/'),
            ("possible_cpus", |h| h.possible_cpus = (CPUS + 1).into()),
            ("btf_offset", |h| h.btf_offset = 4096.into()),
            ("do not fit", |h| h.btf_len = u64::MAX.into()),
            ("values_offset", |h| h.values_offset = 0.into()),
            ("values_len", |h| h.values_len = u64::MAX.into()),
            ("lanes_offset", |h| h.lanes_offset = 8192.into()),
            ("lanes_len", |h| h.lanes_len = 0.into()),
            ("file_len", |h| h.file_len = (28672 + 4096).into()),
        ];
        for (name, change) in lies {
            let error = lie(MapType::ARRAY, change);
            assert!(error.contains(name), "{name}: {error}");
        }
        assert!(lie(MapType::PERCPU_ARRAY, |h| h.cpu_stride = 4096.into()).contains("cpu_stride"));
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let huge = lie(MapType::ARRAY, |h| {
            h.value_size = (i32::MAX as u32).into();
            h.max_entries = (1 << 31).into();
        });
        assert!(huge.contains("values_len"), "{huge}");
        let error = lie(MapType::ARRAY, |h| h.btf_len = (i64::MAX as u64).into());
        assert!(error.contains("do not fit"), "{error}");
    }

    #[test]
    fn whatever_a_believed_header_says_lies_inside_the_file() {
        let values = [MapType::ARRAY, MapType::PERCPU_ARRAY].map(shape);
        for shape in values.into_iter().chain(OBJECT_MAPS.map(shape_of_objects)) {
            let len = shape.geometry.file_len;
            let template = template(shape.attr.map_type);
            let mut believed = 0;
            for at in 0..size_of::<Header>() {
                for flip in 1..=u8::MAX {
                    let mut header = Header::of(&shape, CPUS);
                    header.as_mut_bytes()[at] ^= flip;
                    header.checksum = header.sum().into();
                    let Ok(Shape { layout, geometry, .. }) =
                        header.check(len, CPUS, template, None)
                    else {
                        continue;
                    };
                    believed += 1;
                    let values_end = if layout.kind() == Kind::PercpuArray {
                        assert!(layout.window_len() <= geometry.cpu_stride);
                        geometry.cpu_offset(CPUS)
                    } else {
                        PAGE + layout.payload_len()
                    };
                    assert!(values_end <= geometry.lanes_offset);
                    let lanes_end = geometry.lanes_offset + geometry.lanes_len;
                    assert!(u64::from(CPUS) * LANE_STRIDE <= geometry.lanes_len);
                    assert!(lanes_end <= geometry.btf_offset || geometry.btf_len == 0);
                    assert!(geometry.btf_offset + geometry.btf_len <= len && lanes_end <= len);
                }
            }
            assert!(believed > 100, "names and ids may be anything");
        }
    }

    #[test]
    fn an_exclusive_map_is_one_for_readers_who_know_the_program() {
        let only = Some([7; PROG_HASH_LEN]);
        let attr = MapAttr { excl_prog_hash: only, ..shape(MapType::ARRAY).attr };
        let shape = Shape::of(&attr, CPUS, 10, None).unwrap();
        let header = Header::of(&shape, CPUS);
        assert!(header.has_prog_hash());
        let len = shape.geometry.file_len;
        let found = header.check(len, CPUS, None, only).unwrap();
        assert_eq!((found.attr.excl_prog_hash, found.layout), (only, shape.layout));
        assert!(header.check(len, CPUS, None, None).is_err());
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let header = header(MapType::ARRAY);
        for len in [0, 4096, 28671, 28673] {
            let error = header.check(len, CPUS, None, None).unwrap_err();
            assert_eq!(error, HeaderError::Length { file_len: 28672, found: len });
        }
    }
}
