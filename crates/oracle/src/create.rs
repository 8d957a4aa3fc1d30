//! The attribute block of map creation, and random choices of it.

use std::fmt;

use bpfarray_core::Errno;
use bpfarray_core::attr::{MapAttr, MapFlags, MapType, PROG_HASH_LEN};

use std::os::fd::{AsFd, AsRawFd};

use crate::attr::Attr;
use crate::request::Creator;
use crate::rng::Rng;
use crate::sys::Btf;
use crate::{text, value_type};

/// A hash that no program has.
static NO_PROGRAM: [u8; PROG_HASH_LEN] = [0x5a; PROG_HASH_LEN];

macro_rules! map_create {
    ($($offset:literal $name:ident,)*) => {
        /// The fields of `BPF_MAP_CREATE`.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the names of union bpf_attr")]
        pub struct MapCreate {
            $(pub $name: u32,)*
            pub map_name: [u8; 16],
            pub map_extra: u64,
            /// Whether `excl_prog_hash` is given: the hash of no program.
            pub exclusive: bool,
            /// The struct of `testdata/btf/fields.btf` that values are, for which type ids and `btf_fd` stand.
            pub value_type: Option<&'static str>,
        }

        impl MapCreate {
            fn words(&self) -> impl Iterator<Item = (&'static str, usize, u32)> {
                [$((stringify!($name), $offset, self.$name),)*].into_iter()
            }

            fn word_mut(&mut self, name: &str) -> Option<&mut u32> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

map_create! {
    0 map_type,
    4 key_size,
    8 value_size,
    12 max_entries,
    16 map_flags,
    20 inner_map_fd,
    24 numa_node,
    44 map_ifindex,
    48 btf_fd,
    52 btf_key_type_id,
    56 btf_value_type_id,
    60 btf_vmlinux_value_type_id,
    72 value_type_btf_obj_fd,
    76 map_token_fd,
}

impl MapCreate {
    /// Number of `BPF_MAP_TYPE_ARRAY`.
    pub const ARRAY: u32 = MapType::ARRAY.0;
    /// Number of `BPF_MAP_TYPE_PROG_ARRAY`.
    pub const PROG_ARRAY: u32 = MapType::PROG_ARRAY.0;
    /// Number of `BPF_MAP_TYPE_PERF_EVENT_ARRAY`.
    pub const PERF_EVENT_ARRAY: u32 = MapType::PERF_EVENT_ARRAY.0;
    /// Number of `BPF_MAP_TYPE_PERCPU_ARRAY`.
    pub const PERCPU_ARRAY: u32 = MapType::PERCPU_ARRAY.0;
    /// Number of `BPF_MAP_TYPE_CGROUP_ARRAY`.
    pub const CGROUP_ARRAY: u32 = MapType::CGROUP_ARRAY.0;
    /// Number of `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    pub const ARRAY_OF_MAPS: u32 = MapType::ARRAY_OF_MAPS.0;
    /// The types of which every part is compared.
    pub const TYPES: [u32; 6] = [
        Self::ARRAY,
        Self::PROG_ARRAY,
        Self::PERF_EVENT_ARRAY,
        Self::PERCPU_ARRAY,
        Self::CGROUP_ARRAY,
        Self::ARRAY_OF_MAPS,
    ];
    /// Bytes of the block up to its last field.
    pub(crate) const SIZE: usize = 92;

    /// A map with a 4-byte key and no flags.
    pub fn array(map_type: u32, value_size: u32, max_entries: u32) -> Self {
        Self { map_type, key_size: 4, value_size, max_entries, ..Self::default() }
    }

    /// Whether elements are slots that hold objects or nothing.
    pub fn holds_objects(&self) -> bool {
        let values = [Self::ARRAY, Self::PERCPU_ARRAY];
        Self::TYPES.contains(&self.map_type) && !values.contains(&self.map_type)
    }

    /// Bytes of a value as the element commands copy it, at most.
    pub fn value_len(&self, possible_cpus: usize) -> usize {
        let size = self.value_size as usize;
        match self.map_type {
            Self::ARRAY => size,
            _ if self.holds_objects() => size,
            _ => size.next_multiple_of(8) * possible_cpus,
        }
    }

    pub(crate) fn encode(&self) -> Attr {
        let mut attr = Attr::default();
        for (_, offset, value) in self.words() {
            attr.u32(offset, value);
        }
        attr.bytes(28, &self.map_name).u64(64, self.map_extra);
        if self.exclusive {
            attr.ptr(80, NO_PROGRAM.as_ptr()).len(88, NO_PROGRAM.len());
        }
        attr
    }

    /// The part that our crates take: what means something without file descriptors.
    pub fn to_core(&self) -> MapAttr {
        MapAttr {
            map_type: MapType(self.map_type),
            key_size: self.key_size,
            value_size: self.value_size,
            max_entries: self.max_entries,
            map_flags: MapFlags::from_bits_retain(self.map_flags),
            numa_node: self.numa_node,
            map_name: self.map_name,
            map_ifindex: self.map_ifindex,
            btf_key_type_id: self.btf_key_type_id,
            btf_value_type_id: self.btf_value_type_id,
            btf_vmlinux_value_type_id: self.btf_vmlinux_value_type_id,
            map_extra: self.map_extra,
            excl_prog_hash: self.exclusive.then_some(NO_PROGRAM),
        }
        .of_types(self.value_type)
    }

    /// The same with what the kernel needs to know the types of keys and values.
    pub(crate) fn with_value_type(self) -> Result<(Self, Option<Btf>), Errno> {
        let Some(name) = self.value_type else { return Ok((self, None)) };
        let btf = Btf::load(value_type::BYTES)?;
        let attr = MapAttr::default().of_types(Some(name));
        Ok((self.with_types(&btf, &attr), Some(btf)))
    }

    /// What our crates take, as the kernel takes it. BTF types are left out: they would need a file
    /// descriptor.
    pub fn from_core(attr: &MapAttr) -> Self {
        Self {
            map_type: attr.map_type.0,
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_flags: attr.map_flags.bits(),
            numa_node: attr.numa_node,
            map_name: attr.map_name,
            map_extra: attr.map_extra,
            ..Self::default()
        }
    }

    /// The same with the types of keys and values, which are in this BTF; a map of objects has none.
    #[must_use]
    pub fn with_types(self, btf: &Btf, attr: &MapAttr) -> Self {
        if self.holds_objects() {
            return self;
        }
        Self {
            btf_fd: btf.as_fd().as_raw_fd().cast_unsigned(),
            btf_key_type_id: attr.btf_key_type_id,
            btf_value_type_id: attr.btf_value_type_id,
            ..self
        }
    }

    /// A valid map of a type.
    pub fn random_shape(rng: &mut Rng, map_type: u32) -> Self {
        let value_size = match rng.below(20) {
            _ if Self::array(map_type, 4, 1).holds_objects() => 4,
            0 => rng.pick(&[4096, 5000, 8192, 32767, 32768]),
            _ => rng.within(1, 200),
        };
        let mut create = Self::array(map_type, value_size, rng.within(1, 40));
        create.map_flags = match map_type {
            Self::ARRAY if rng.percent(30) => rng.pick(&[0x400, 0x480, 0x1000, 0x1400, 0x408]),
            Self::ARRAY | Self::PERCPU_ARRAY => rng.pick(&[0, 0, 0, 0x8, 0x10, 0x80, 0x100, 0x88]),
            Self::PERF_EVENT_ARRAY => rng.pick(&[0, 0, 0, 0x8, 0x10, 0x800, 0x808]),
            _ => rng.pick(&[0, 0, 0, 0x8, 0x10]),
        };
        create
    }

    /// A map of values with special fields, or without any.
    pub fn random_typed(rng: &mut Rng) -> Self {
        let name = rng.pick(&value_type::NAMES);
        let map_type = if rng.percent(80) { Self::ARRAY } else { Self::PERCPU_ARRAY };
        let map_flags = match map_type {
            Self::ARRAY => rng.pick(&[0, 0, 0, 0, 0x400, 0x400, 0x1000, 0x80, 0x100]),
            _ => rng.pick(&[0, 0, 0, 0x80]),
        };
        let wrong_by = if rng.percent(3) { 8 } else { 0 };
        let create = Self::typed(map_type, name, rng.within(1, 6));
        Self { map_flags, value_size: create.value_size + wrong_by, ..create }
    }

    /// A map of values of a type.
    pub(crate) fn typed(map_type: u32, name: &'static str, max_entries: u32) -> Self {
        let size = value_type::find(name).map_or(0, |(_, size)| size);
        Self { value_type: Some(name), ..Self::array(map_type, size, max_entries) }
    }

    /// A block with each field from a set of interesting values, that asks for a few megabytes at most.
    pub fn random_attr(rng: &mut Rng, creator: Creator) -> Self {
        let map_type = rng.pick(&Self::TYPES);
        let mut create = Self::random_shape(rng, map_type);
        // No open file.
        create.inner_map_fd = if map_type == Self::ARRAY_OF_MAPS { 9999 } else { 0 };
        // Few fields at a time, or nothing but the first check would ever be seen.
        for _ in 0..rng.below(4) {
            match rng.below(15) {
                0 => create.map_type = rng.pick(&[0, 34, 200, u32::MAX]),
                1 => create.key_size = rng.pick(&[0, 1, 3, 5, 8, u32::MAX]),
                2 => {
                    create.value_size = rng.pick(&[0, 3, 5, 8, 32769, 32776, 0x8000_0000, u32::MAX])
                }
                3 => create.max_entries = 0,
                // Unmasked, and with these many entries, the kernel would really allocate.
                4 if creator != Creator::Trusted => {
                    create.max_entries = rng.pick(&[0x8000_0001, u32::MAX]);
                }
                4 | 5 => create.map_flags |= 1 << rng.below(32),
                6 => create.map_flags |= rng.next_u64() as u32,
                7 => {
                    create.map_flags |= if rng.percent(70) { 0x4 } else { 0 };
                    create.numa_node = rng.pick(&[0, 1000, u32::MAX]);
                }
                8 => create.map_name = random_name(rng),
                // Offloading takes CAP_SYS_ADMIN, of which our crates' creator knows nothing.
                9 if creator == Creator::Masked => {}
                9 => create.map_ifindex = 0x7fff_ffff,
                10 => create.btf_key_type_id = rng.pick(&[1, u32::MAX]),
                11 => create.btf_vmlinux_value_type_id = 1,
                12 => create.map_extra = rng.pick(&[1, 1 << 40]),
                13 => create.exclusive = true,
                // Looked at only with flags that are not set.
                _ => {
                    create.inner_map_fd = 9999;
                    create.btf_fd = 9999;
                    create.value_type_btf_obj_fd = 9999;
                }
            }
        }
        create
    }

    pub(crate) fn parse(fields: &str) -> Option<Self> {
        let mut create = Self::default();
        for field in fields.split_whitespace() {
            let (name, value) = field.split_once('=')?;
            match name {
                "map_name" => create.map_name = text::unhex(value)?.try_into().ok()?,
                "map_extra" => create.map_extra = text::number(value)?,
                "value_type" => create.value_type = Some(value_type::parse(value)?),
                "exclusive" => create.exclusive = text::number(value)? != 0,
                _ => *create.word_mut(name)? = text::number(value)?.try_into().ok()?,
            }
        }
        Some(create)
    }
}

/// The fields that are not zero.
impl fmt::Display for MapCreate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, _, value)) in self.words().filter(|(_, _, v)| *v != 0).enumerate() {
            let space = if i == 0 { "" } else { " " };
            match name {
                "map_flags" => write!(f, "{space}{name}={value:#x}")?,
                _ => write!(f, "{space}{name}={value}")?,
            }
        }
        if self.map_name != [0; 16] {
            write!(f, " map_name={}", text::hex(&self.map_name))?;
        }
        if self.map_extra != 0 {
            write!(f, " map_extra={:#x}", self.map_extra)?;
        }
        if self.exclusive {
            f.write_str(" exclusive=1")?;
        }
        self.value_type.iter().try_for_each(|name| write!(f, " value_type={name}"))
    }
}

/// What a type of values means to our crates.
trait OfTypes {
    fn of_types(self, value_type: Option<&str>) -> Self;
}

impl OfTypes for MapAttr {
    fn of_types(self, value_type: Option<&str>) -> Self {
        match value_type.and_then(value_type::find) {
            Some((id, _)) => {
                Self { btf_key_type_id: value_type::key(), btf_value_type_id: id, ..self }
            }
            None => self,
        }
    }
}

fn random_name(rng: &mut Rng) -> [u8; 16] {
    let mut name = [0; 16];
    let len = rng.pick(&[1, 3, 15, 16]);
    for byte in &mut name[..len] {
        *byte = rng.pick(b"abcXYZ059_.");
    }
    if rng.percent(40) {
        name[rng.below(len as u32) as usize] = if rng.percent(50) {
            rng.pick(b"-/ \0\xc3\xa9\xd7\xf7\x7f\xff")
        } else {
            rng.below(256) as u8
        };
    }
    name
}
