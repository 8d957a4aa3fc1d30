//! `BPF_MAP_TYPE_PERCPU_ARRAY`: each CPU has values of its own, found through a table of pointers.

use crate::attr::elem_flags;
use crate::gen_lookup::InlinedLookup;
use crate::insn::{Insn, Reg, alu, size};
use crate::layout::{Layout, PPTR_SIZE};
use crate::map::cpu_flags::without_cpus;
use crate::map::{DeleteError, UpdateError};

/// Offset of an element in bytes from the first element of any one CPU, or `None` past the end.
///
/// # Kernel
/// `percpu_array_map_lookup_elem`
#[doc(alias = "percpu_array_map_lookup_elem")]
pub const fn lookup_elem(map: &Layout, index: u32) -> Option<u64> {
    if index < map.max_entries() { Some(map.elem_offset(index)) } else { None }
}

/// As [`lookup_elem`], for the element of the CPU `cpu`: `None` also for a CPU that is not below `possible_cpus`.
///
/// # Kernel
/// `percpu_array_map_lookup_percpu_elem`
#[doc(alias = "percpu_array_map_lookup_percpu_elem")]
pub const fn lookup_percpu_elem(
    map: &Layout,
    index: u32,
    cpu: u32,
    possible_cpus: u32,
) -> Option<u64> {
    if cpu < possible_cpus { lookup_elem(map, index) } else { None }
}

/// Offset of an element that a handle is to overwrite, in bytes from the first element of a CPU. Programs
/// are judged by [`array::update_elem`](crate::map::array::update_elem), as for an ARRAY.
///
/// # Errors
/// [`UpdateError::Flags`] (`F_LOCK` included: a per-CPU value has no lock), [`UpdateError::Index`],
/// [`UpdateError::Exists`].
///
/// # Kernel
/// `bpf_percpu_array_update`
#[doc(alias = "bpf_percpu_array_update")]
pub const fn update_elem(map: &Layout, index: u32, flags: u64) -> Result<u64, UpdateError> {
    let existence = without_cpus(map, flags);
    if existence > elem_flags::EXIST {
        return Err(UpdateError::Flags(flags));
    }
    let Some(offset) = lookup_elem(map, index) else {
        return Err(UpdateError::Index { index, max_entries: map.max_entries() });
    };
    if existence == elem_flags::NOEXIST {
        return Err(UpdateError::Exists);
    }
    Ok(offset)
}

/// Elements of an array cannot be deleted, whatever the key.
///
/// # Errors
/// Always [`DeleteError::Unsupported`].
///
/// # Kernel
/// `array_map_delete_elem`
pub const fn delete_elem(_map: &Layout, _index: u32) -> Result<(), DeleteError> {
    Err(DeleteError::Unsupported)
}

/// The inlined lookup: r1 = map, r2 = address of the key; r0 = address of this CPU's element or 0.
///
/// # Kernel
/// `percpu_array_map_gen_lookup`
#[doc(alias = "percpu_array_map_gen_lookup")]
pub fn gen_lookup(map: &Layout) -> InlinedLookup {
    let mut code = InlinedLookup::index(map, 5);
    code.push(Insn::alu64_imm(alu::LSH, Reg::R0, PPTR_SIZE.trailing_zeros() as i32));
    code.push(Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R1));
    code.push(Insn::ldx_mem(size::DW, Reg::R0, Reg::R0, 0));
    code.push(Insn::mov64_percpu_reg(Reg::R0, Reg::R0));
    code.push(Insn::ja(1));
    code.push(Insn::mov64_imm(Reg::R0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};
    use crate::errno::Errno;

    fn percpu(value_size: u32, max_entries: u32) -> Layout {
        let attr = MapAttr {
            map_type: MapType::PERCPU_ARRAY,
            key_size: 4,
            value_size,
            max_entries,
            ..MapAttr::default()
        };
        attr.check(&Creator::default()).unwrap()
    }

    #[test]
    fn f_lock_is_an_unknown_flag() {
        let map = percpu(8, 4);
        let errno = |index, flags| update_elem(&map, index, flags).map_err(UpdateError::errno);
        assert_eq!(errno(0, 4), Err(Errno::EINVAL));
        assert_eq!(errno(9, 5), Err(Errno::EINVAL));
        assert_eq!(errno(9, 1), Err(Errno::E2BIG));
        assert_eq!(errno(0, 1), Err(Errno::EEXIST));
        assert_eq!(errno(2, 2), Ok(16));
    }

    #[test]
    fn a_cpu_that_does_not_exist_has_no_element() {
        let map = percpu(8, 4);
        assert_eq!(lookup_percpu_elem(&map, 1, 1, 2), Some(8));
        assert_eq!(lookup_percpu_elem(&map, 1, 2, 2), None);
        assert_eq!(lookup_percpu_elem(&map, 4, 0, 2), None);
    }
}
