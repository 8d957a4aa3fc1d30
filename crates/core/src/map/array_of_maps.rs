//! `BPF_MAP_TYPE_ARRAY_OF_MAPS`: maps in slots, all of one shape.

use crate::attr::MapFlags;
use crate::btf::SpecialFields;
use crate::errno::Errno;
use crate::gen_lookup::InlinedLookup;
use crate::insn::{Insn, Reg, alu, jmp, size};
use crate::layout::Layout;
use crate::map::Kind;

/// Why a map cannot be the template of an ARRAY_OF_MAPS, or cannot be put into one.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InnerError {
    /// A map of maps, in which there can be no other.
    #[error("a map of maps cannot hold another")]
    Nested,
    /// A map type that cannot be held.
    #[error("maps of this type cannot be held")]
    Unsupported,
    /// A map that only one program may use.
    #[error("an exclusive map cannot be held")]
    Exclusive,
    /// A map of another shape than the template.
    #[error("the map differs from the template in {0}")]
    Shape(&'static str),
}

impl InnerError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Nested | Self::Shape(_) => Errno::EINVAL,
            Self::Unsupported | Self::Exclusive => Errno::ENOTSUPP,
        }
    }
}

/// Whether a map of this layout can be a template.
///
/// # Errors
/// [`InnerError::Nested`], [`InnerError::Unsupported`], [`InnerError::Exclusive`].
///
/// # Kernel
/// `bpf_map_meta_alloc`
#[doc(alias = "bpf_map_meta_alloc")]
pub const fn check_template(inner: &Layout) -> Result<(), InnerError> {
    match inner.kind() {
        Kind::ArrayOfMaps => Err(InnerError::Nested),
        Kind::ProgArray => Err(InnerError::Unsupported),
        Kind::Array | Kind::PercpuArray | Kind::PerfEventArray | Kind::CgroupArray => {
            if inner.is_exclusive() { Err(InnerError::Exclusive) } else { Ok(()) }
        }
    }
}

/// Whether a map may be put into a slot: it must look like the template to programs that were translated
/// for that, and have the same special fields in its values. `max_entries` counts for an ARRAY without [`MapFlags::INNER_MAP`] only.
///
/// # Errors
/// [`InnerError::Exclusive`]; [`InnerError::Shape`] with the first field that differs.
///
/// # Kernel
/// `array_map_meta_equal`, `bpf_map_meta_equal`
#[doc(alias = "array_map_meta_equal")]
#[doc(alias = "bpf_map_meta_equal")]
pub fn meta_equal(
    (template, template_fields): (&Layout, &SpecialFields),
    (candidate, fields): (&Layout, &SpecialFields),
) -> Result<(), InnerError> {
    let fixed_len =
        template.kind() == Kind::Array && !template.map_flags().contains(MapFlags::INNER_MAP);
    if candidate.is_exclusive() {
        Err(InnerError::Exclusive)
    } else if template.kind() != candidate.kind() {
        Err(InnerError::Shape("map_type"))
    } else if template.value_size() != candidate.value_size() {
        Err(InnerError::Shape("value_size"))
    } else if template.map_flags() != candidate.map_flags() {
        Err(InnerError::Shape("map_flags"))
    } else if template_fields != fields {
        Err(InnerError::Shape("special fields"))
    } else if fixed_len && template.max_entries() != candidate.max_entries() {
        Err(InnerError::Shape("max_entries"))
    } else {
        Ok(())
    }
}

/// The inlined lookup: r1 = map, r2 = address of the key; r0 = the map in the slot or 0.
///
/// # Kernel
/// `array_of_map_gen_lookup`
#[doc(alias = "array_of_map_gen_lookup")]
pub fn gen_lookup(map: &Layout) -> InlinedLookup {
    let mut code = InlinedLookup::index(map, 5);
    code.push(Insn::alu64_imm(alu::LSH, Reg::R0, map.elem_size().trailing_zeros() as i32));
    code.push(Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R1));
    code.push(Insn::ldx_mem(size::DW, Reg::R0, Reg::R0, 0));
    code.push(Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 1));
    code.push(Insn::ja(1));
    code.push(Insn::mov64_imm(Reg::R0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{CreateError, Creator, MapAttr, MapType};

    const ARRAY: MapAttr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 4,
        map_flags: MapFlags::empty(),
        numa_node: 0,
        map_name: [0; 16],
        map_ifindex: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
        btf_vmlinux_value_type_id: 0,
        map_extra: 0,
        excl_prog_hash: None,
    };

    fn layout(map_type: MapType, value_size: u32, max_entries: u32, map_flags: MapFlags) -> Layout {
        let inner = ARRAY.check(&Creator::default()).unwrap();
        let attr = MapAttr { map_type, value_size, max_entries, map_flags, ..ARRAY };
        attr.check_with(&Creator::default(), Some(&inner)).unwrap()
    }

    fn plain(layout: &Layout) -> (&Layout, &SpecialFields) {
        static NONE: SpecialFields = SpecialFields::none();
        (layout, &NONE)
    }

    #[test]
    fn the_template_is_judged_after_the_sizes_and_before_the_round_up() {
        let errno = |max_entries, inner| {
            let attr = MapAttr { map_type: MapType::ARRAY_OF_MAPS, max_entries, ..ARRAY };
            attr.check_with(&Creator::default(), inner).map(drop).map_err(CreateError::errno)
        };
        let outer = layout(MapType::ARRAY_OF_MAPS, 4, 4, MapFlags::empty());
        let array = layout(MapType::ARRAY, 4, 4, MapFlags::empty());
        assert_eq!(errno(0, None), Err(Errno::EINVAL));
        assert_eq!(errno(u32::MAX, None), Err(Errno::EBADF));
        assert_eq!(errno(u32::MAX, Some(&outer)), Err(Errno::EINVAL));
        assert_eq!(errno(u32::MAX, Some(&array)), Err(Errno::E2BIG));
        assert_eq!(errno(4, Some(&array)), Ok(()));
    }

    #[test]
    fn an_exclusive_map_is_no_template_and_no_element() {
        let exclusive = |map_type, value_size| {
            let attr = MapAttr { map_type, value_size, excl_prog_hash: Some([1; 32]), ..ARRAY };
            let array = ARRAY.check(&Creator::default()).unwrap();
            attr.check_with(&Creator::default(), Some(&array)).unwrap()
        };
        let array = layout(MapType::ARRAY, 4, 4, MapFlags::empty());
        assert_eq!(check_template(&exclusive(MapType::ARRAY, 4)), Err(InnerError::Exclusive));
        let outer = exclusive(MapType::ARRAY_OF_MAPS, 4);
        assert_eq!(check_template(&outer), Err(InnerError::Nested));
        for value_size in [4, 8] {
            let element = exclusive(MapType::ARRAY, value_size);
            assert_eq!(meta_equal(plain(&array), plain(&element)), Err(InnerError::Exclusive));
        }
    }

    #[test]
    fn an_array_matches_only_its_own_shape() {
        let none = MapFlags::empty();
        let array = |value_size, n, flags| layout(MapType::ARRAY, value_size, n, flags);
        let template = array(8, 4, none);
        let errno =
            |candidate| meta_equal(plain(&template), plain(&candidate)).map_err(InnerError::errno);
        assert_eq!(errno(array(8, 4, none)), Ok(()));
        assert_eq!(errno(array(8, 4, MapFlags::RDONLY)), Ok(()));
        for other in [
            array(8, 5, none),
            array(5, 4, none),
            array(8, 4, MapFlags::RDONLY_PROG),
            array(8, 4, MapFlags::INNER_MAP),
            layout(MapType::PERCPU_ARRAY, 8, 4, none),
        ] {
            assert_eq!(errno(other), Err(Errno::EINVAL), "{other:?}");
        }
    }

    #[test]
    fn inner_map_arrays_and_per_cpu_arrays_may_differ_in_length() {
        let inner = |n| layout(MapType::ARRAY, 8, n, MapFlags::INNER_MAP);
        assert_eq!(meta_equal(plain(&inner(4)), plain(&inner(9))), Ok(()));
        let percpu = |n| layout(MapType::PERCPU_ARRAY, 8, n, MapFlags::empty());
        assert_eq!(meta_equal(plain(&percpu(4)), plain(&percpu(9))), Ok(()));
    }

    #[test]
    fn maps_of_maps_and_of_programs_cannot_be_held() {
        let none = MapFlags::empty();
        let errno = |ty| check_template(&layout(ty, 4, 4, none)).map_err(InnerError::errno);
        assert_eq!(errno(MapType::ARRAY_OF_MAPS), Err(Errno::EINVAL));
        assert_eq!(errno(MapType::PROG_ARRAY), Err(Errno::ENOTSUPP));
        assert_eq!(errno(MapType::PERF_EVENT_ARRAY), Ok(()));
    }
}
