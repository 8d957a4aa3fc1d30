//! Map creation: the attribute block, who asks, and random choices of both.

use std::fmt;

use bpfarray_core::attr::{MapAttr, MapFlags, MapType};

use crate::attr::Attr;
use crate::rng::Rng;
use crate::text;

/// Who creates a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// Has every capability: programs' lookups in the map go unmasked.
    Trusted,
    /// Has neither CAP_PERFMON nor CAP_SYS_ADMIN: the map is hardened against Spectre v1.
    Masked,
    /// Has no CAP_BPF either.
    Nobody,
}

impl Creator {
    const ALL: [(Self, &str); 3] =
        [(Self::Trusted, "trusted"), (Self::Masked, "masked"), (Self::Nobody, "nobody")];

    fn parse(s: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == s).map(|(creator, _)| *creator)
    }

    /// The same for our crates.
    pub fn to_core(self) -> bpfarray_core::attr::Creator<'static> {
        bpfarray_core::attr::Creator {
            may_create: self != Self::Nobody,
            bypass_spec_v1: self == Self::Trusted,
            online_nodes: &[0],
            rules: bpfarray_core::attr::Rules::Linux6_18,
        }
    }
}

impl fmt::Display for Creator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(creator, _)| creator == self).map_or("", |(_, s)| s))
    }
}

macro_rules! map_create {
    ($($offset:literal $name:ident,)*) => {
        /// The fields of `BPF_MAP_CREATE`, all of them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names of union bpf_attr")]
        pub struct MapCreate {
            $(pub $name: u32,)*
            pub map_name: [u8; 16],
            pub map_extra: u64,
            pub excl_prog_hash: u64,
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
    88 excl_prog_hash_size,
}

impl MapCreate {
    /// Number of `BPF_MAP_TYPE_ARRAY`.
    pub const ARRAY: u32 = MapType::ARRAY.0;
    /// Number of `BPF_MAP_TYPE_PERCPU_ARRAY`.
    pub const PERCPU_ARRAY: u32 = MapType::PERCPU_ARRAY.0;
    /// Bytes of the block up to its last field.
    pub(crate) const SIZE: usize = 92;

    /// A map with a 4-byte key and no flags.
    pub fn array(map_type: u32, value_size: u32, max_entries: u32) -> Self {
        Self { map_type, key_size: 4, value_size, max_entries, ..Self::default() }
    }

    /// Bytes of a value as the element commands copy it, at most.
    pub fn value_len(&self, possible_cpus: usize) -> usize {
        let size = self.value_size as usize;
        match self.map_type {
            Self::ARRAY => size,
            _ => size.next_multiple_of(8) * possible_cpus,
        }
    }

    pub(crate) fn encode(&self) -> Attr {
        let mut attr = Attr::default();
        for (_, offset, value) in self.words() {
            attr.u32(offset, value);
        }
        attr.bytes(28, &self.map_name).u64(64, self.map_extra).u64(80, self.excl_prog_hash);
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
            excl_prog_hash: None,
        }
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

    /// A map to operate on: nearly always a valid one.
    pub fn random_shape(rng: &mut Rng) -> Self {
        let map_type = rng.pick(&[Self::ARRAY, Self::PERCPU_ARRAY]);
        let value_size = match rng.below(20) {
            0 => rng.pick(&[4096, 5000, 8192, 32767, 32768]),
            _ => rng.within(1, 200),
        };
        let mut create = Self::array(map_type, value_size, rng.within(1, 40));
        let both = [0, 0, 0, 0x8, 0x10, 0x80, 0x100, 0x88];
        let array = [0x400, 0x480, 0x1000, 0x1400, 0x408];
        create.map_flags = rng.pick(&both);
        if map_type == Self::ARRAY && rng.percent(30) {
            create.map_flags = rng.pick(&array);
        }
        create
    }

    /// A block with each field from a set of interesting values, that asks for a few megabytes at most.
    pub fn random_attr(rng: &mut Rng, creator: Creator) -> Self {
        let mut create = Self::random_shape(rng);
        // Few fields at a time, or nothing but the first check would ever be seen.
        for _ in 0..rng.below(4) {
            match rng.below(14) {
                0 => create.map_type = rng.pick(&[0, 34, 200, u32::MAX]),
                1 => create.key_size = rng.pick(&[0, 1, 3, 5, 8, u32::MAX]),
                2 => create.value_size = rng.pick(&[0, 32769, 32776, 0x8000_0000, u32::MAX]),
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

    fn parse(fields: &str) -> Option<Self> {
        let mut create = Self::default();
        for field in fields.split_whitespace() {
            let (name, value) = field.split_once('=')?;
            match name {
                "map_name" => create.map_name = text::unhex(value)?.try_into().ok()?,
                "map_extra" => create.map_extra = text::number(value)?,
                "excl_prog_hash" => create.excl_prog_hash = text::number(value)?,
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
        if self.excl_prog_hash != 0 {
            write!(f, " excl_prog_hash={:#x}", self.excl_prog_hash)?;
        }
        Ok(())
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

/// A map somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub creator: Creator,
    /// For what.
    pub create: MapCreate,
}

impl Request {
    /// The request that `Display` wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let (creator, fields) = line.strip_prefix("create ")?.split_once(' ')?;
        Some(Self { creator: Creator::parse(creator)?, create: MapCreate::parse(fields)? })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "create {} {}", self.creator, self.create)
    }
}

/// What is known of a map that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Flags that stay with the map.
    pub map_flags: u32,
    /// Bytes it is charged for.
    pub memlock: u64,
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flags {:#x} memlock {}", self.map_flags, self.memlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_as_they_were_written() {
        let mut rng = Rng::new(1);
        for _ in 0..1000 {
            let creator = rng.pick(&Creator::ALL).0;
            let request = Request { creator, create: MapCreate::random_attr(&mut rng, creator) };
            assert_eq!(Request::parse(&request.to_string()), Some(request));
        }
    }
}
