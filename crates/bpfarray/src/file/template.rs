//! What the header page of an ARRAY_OF_MAPS says about the maps in its slots.

use bpfarray_core::Layout;
use bpfarray_core::attr::{Creator, MapAttr, MapFlags, MapType};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::header::{HeaderError, checksum};

/// Where it is in the header page.
pub(crate) const TEMPLATE_OFFSET: u64 = 144;

/// The shape of the maps that an ARRAY_OF_MAPS takes.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Template {
    /// Its type ids are of the file's BTF.
    pub(crate) attr: MapAttr,
    pub(crate) layout: Layout,
}

/// The same as it is in the file. All zero in files of other maps.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct TemplateHeader {
    map_type: U32,
    key_size: U32,
    value_size: U32,
    max_entries: U32,
    map_flags: U32,
    numa_node: U32,
    btf_key_type_id: U32,
    btf_value_type_id: U32,
    checksum: U64,
}

impl TemplateHeader {
    pub(crate) fn of(template: &Template) -> Self {
        let Template { attr, layout } = template;
        let mut header = Self {
            map_type: attr.map_type.0.into(),
            key_size: attr.key_size.into(),
            value_size: attr.value_size.into(),
            max_entries: attr.max_entries.into(),
            map_flags: layout.map_flags().bits().into(),
            numa_node: attr.numa_node.into(),
            btf_key_type_id: attr.btf_key_type_id.into(),
            btf_value_type_id: attr.btf_value_type_id.into(),
            checksum: 0.into(),
        };
        header.checksum = header.sum().into();
        header
    }

    fn sum(&self) -> u64 {
        let bytes = self.as_bytes();
        checksum(&bytes[..bytes.len() - size_of::<U64>()])
    }

    /// Judges what a file says. Whether such a map can be held, the rules of the ARRAY_OF_MAPS say.
    pub(crate) fn check(&self) -> Result<Template, HeaderError> {
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
            btf_key_type_id: self.btf_key_type_id.get(),
            btf_value_type_id: self.btf_value_type_id.get(),
            ..MapAttr::default()
        };
        // Whether a node is online mattered to the creator.
        let creator = Creator { online_nodes: &[attr.numa_node], ..Creator::default() };
        let layout = attr.check(&creator)?;
        let (found, expected) = (self.map_flags.get(), layout.map_flags().bits());
        if found != expected {
            let (found, expected) = (found.into(), expected.into());
            return Err(HeaderError::Field { field: "inner map_flags", found, expected });
        }
        Ok(Template { attr, layout })
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::map::testing::{ARRAY, PERCPU};
    use bpfarray_core::attr::NUMA_NO_NODE;

    fn template(attr: MapAttr) -> Template {
        let creator = Creator { online_nodes: &[0, 3], ..Creator::default() };
        Template { attr, layout: attr.check(&creator).unwrap() }
    }

    #[test]
    fn the_shape_comes_back_as_it_was() {
        let numa = MapFlags::NUMA_NODE;
        for attr in [
            MapAttr { map_flags: MapFlags::INNER_MAP | MapFlags::RDONLY, ..ARRAY },
            MapAttr { map_flags: numa, numa_node: 3, ..ARRAY },
            MapAttr { map_flags: numa, numa_node: NUMA_NO_NODE, ..PERCPU },
            MapAttr { btf_key_type_id: 1, btf_value_type_id: 7, ..PERCPU },
        ] {
            let template = template(attr);
            let found = TemplateHeader::of(&template).check().unwrap();
            assert_eq!(found.layout, template.layout);
            assert_eq!(found.attr.btf_value_type_id, attr.btf_value_type_id);
        }
    }

    #[test]
    fn every_changed_byte_is_noticed_and_lies_are_found() {
        let header = TemplateHeader::of(&template(ARRAY));
        for at in 0..size_of::<TemplateHeader>() {
            let mut header = header;
            header.as_mut_bytes()[at] ^= 0x10;
            assert!(header.check().is_err(), "byte {at}");
        }
        let lie = |change: fn(&mut TemplateHeader)| {
            let mut header = header;
            change(&mut header);
            header.checksum = header.sum().into();
            header.check().unwrap_err().to_string()
        };
        assert!(lie(|h| h.map_flags = 8.into()).contains("inner map_flags"));
        assert!(lie(|h| h.value_size = 0.into()).contains("value_size"));
        // A map of maps has no template of its own here, so it is none.
        assert!(lie(|h| (h.map_type, h.value_size) = (12.into(), 4.into())).contains("inner map"));
    }
}
