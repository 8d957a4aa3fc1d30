//! `BPF_MAP_TYPE_ARRAY`: values side by side in one block of memory.

use crate::attr::{MapFlags, elem_flags};
use crate::errno::Errno;
use crate::gen_lookup::InlinedLookup;
use crate::insn::{Insn, Reg, alu};
use crate::layout::Layout;
use crate::map::{DeleteError, Kind, UpdateError};

/// First byte offset that no direct value access may use.
const MAX_VAR_OFF: u32 = 1 << 29;

/// Offset of an element in bytes from the first value, or `None` past the end.
///
/// # Kernel
/// `array_map_lookup_elem`
#[doc(alias = "array_map_lookup_elem")]
pub const fn lookup_elem(map: &Layout, index: u32) -> Option<u64> {
    if index < map.max_entries() { Some(map.elem_offset(index)) } else { None }
}

/// Offset of an element that is to be overwritten, in bytes from the first value.
///
/// `spin_lock` tells whether values have a `bpf_spin_lock`.
///
/// # Errors
/// [`UpdateError::Flags`], [`UpdateError::Index`], [`UpdateError::Exists`],
/// [`UpdateError::NoSpinLock`]: existence is judged before the lock.
///
/// # Kernel
/// `array_map_update_elem`
#[doc(alias = "array_map_update_elem")]
pub const fn update_elem(
    map: &Layout,
    index: u32,
    flags: u64,
    spin_lock: bool,
) -> Result<u64, UpdateError> {
    if flags & !elem_flags::F_LOCK > elem_flags::EXIST {
        return Err(UpdateError::Flags(flags));
    }
    let Some(offset) = lookup_elem(map, index) else {
        return Err(UpdateError::Index { index, max_entries: map.max_entries() });
    };
    if flags & elem_flags::NOEXIST != 0 {
        return Err(UpdateError::Exists);
    }
    if flags & elem_flags::F_LOCK != 0 && !spin_lock {
        return Err(UpdateError::NoSpinLock);
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
#[doc(alias = "array_map_delete_elem")]
pub const fn delete_elem(_map: &Layout, _index: u32) -> Result<(), DeleteError> {
    Err(DeleteError::Unsupported)
}

/// The inlined lookup: r1 = map, r2 = address of the key; r0 = address of the element or 0.
///
/// `None` for inner maps of varying length, whose bound is not known to the program.
///
/// # Kernel
/// `array_map_gen_lookup`
#[doc(alias = "array_map_gen_lookup")]
pub fn gen_lookup(map: &Layout) -> Option<InlinedLookup> {
    if map.map_flags().contains(MapFlags::INNER_MAP) {
        return None;
    }
    let mut code = InlinedLookup::index(map, 3);
    let elem_size = map.elem_size();
    code.push(if elem_size.is_power_of_two() {
        Insn::alu64_imm(alu::LSH, Reg::R0, elem_size.trailing_zeros() as i32)
    } else {
        Insn::alu64_imm(alu::MUL, Reg::R0, elem_size as i32)
    });
    code.push(Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R1));
    code.push(Insn::ja(1));
    code.push(Insn::mov64_imm(Reg::R0, 0));
    Some(code)
}

/// Why a program cannot have the address of a map's value in an instruction.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirectValueError {
    /// The offset does not fit the verifier's arithmetic.
    #[error("offset {0} is past 2^29")]
    OffsetTooLarge(u32),
    /// Only an ARRAY has direct values.
    #[error("a map of this type has no direct value")]
    MapType,
    /// Only an array of one element has a direct value.
    #[error("a direct value needs max_entries 1, not {0}")]
    MaxEntries(u32),
    /// The offset is past the value.
    #[error("offset {offset} is not below value_size {value_size}")]
    Offset {
        /// Byte offset asked for.
        offset: u32,
        /// Bytes of the value.
        value_size: u32,
    },
}

impl DirectValueError {
    /// The error number that loading a program reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::OffsetTooLarge(_) | Self::MapType | Self::Offset { .. } => Errno::EINVAL,
            Self::MaxEntries(_) => Errno::ENOTSUPP,
        }
    }
}

/// Byte offset from the first value that an instruction with this `offset` refers to.
///
/// # Errors
/// The variants of [`DirectValueError`] in their order.
///
/// # Kernel
/// `array_map_direct_value_addr`, with the tests its caller does
#[doc(alias = "array_map_direct_value_addr")]
pub const fn direct_value_addr(map: &Layout, offset: u32) -> Result<u64, DirectValueError> {
    if offset >= MAX_VAR_OFF {
        return Err(DirectValueError::OffsetTooLarge(offset));
    }
    match map.kind() {
        Kind::Array => {}
        Kind::PercpuArray
        | Kind::ProgArray
        | Kind::PerfEventArray
        | Kind::CgroupArray
        | Kind::ArrayOfMaps => return Err(DirectValueError::MapType),
    }
    if map.max_entries() != 1 {
        return Err(DirectValueError::MaxEntries(map.max_entries()));
    }
    if offset >= map.value_size() {
        return Err(DirectValueError::Offset { offset, value_size: map.value_size() });
    }
    Ok(offset as u64)
}

/// The way back: the offset that `addr` has in the value whose first byte is at `value_addr`, or
/// `None` if the address is not in this map. Both are addresses in bytes.
///
/// The padding behind the value counts as inside, as in the kernel.
///
/// # Kernel
/// `array_map_direct_value_meta`
#[doc(alias = "array_map_direct_value_meta")]
pub const fn direct_value_meta(map: &Layout, value_addr: u64, addr: u64) -> Option<u32> {
    if map.max_entries() != 1 || addr < value_addr {
        return None;
    }
    let offset = addr - value_addr;
    if offset < map.elem_size() as u64 { Some(offset as u32) } else { None }
}

/// Why a map has no hash. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HashError {
    /// Only an ARRAY has a hash.
    #[error("a map of this type has no hash")]
    MapType,
    /// Only what can no longer change has a hash.
    #[error("the map is not frozen")]
    NotFrozen,
}

impl HashError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::MapType => Errno::EINVAL,
            Self::NotFrozen => Errno::EPERM,
        }
    }
}

/// Number of bytes from the first value on, padding included, of which the hash of a map is made.
///
/// # Errors
/// The variants of [`HashError`] in their order.
///
/// # Kernel
/// `array_map_get_hash`, with the tests its caller does
#[doc(alias = "array_map_get_hash")]
pub const fn hashed_len(map: &Layout, frozen: bool) -> Result<u64, HashError> {
    match map.kind() {
        Kind::Array => {}
        Kind::PercpuArray
        | Kind::ProgArray
        | Kind::PerfEventArray
        | Kind::CgroupArray
        | Kind::ArrayOfMaps => return Err(HashError::MapType),
    }
    if !frozen {
        return Err(HashError::NotFrozen);
    }
    Ok(map.max_entries() as u64 * map.elem_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};

    fn array(value_size: u32, max_entries: u32) -> Layout {
        let attr = MapAttr {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size,
            max_entries,
            ..MapAttr::default()
        };
        attr.check(&Creator::default()).unwrap()
    }

    #[test]
    fn flags_beat_the_index_and_the_index_beats_existence() {
        let map = array(8, 4);
        let errno =
            |index, flags| update_elem(&map, index, flags, false).map_err(UpdateError::errno);
        assert_eq!(errno(3, 0), Ok(24));
        assert_eq!(errno(3, 2), Ok(24));
        for flags in [3, 7, 8, 12, 1 << 32, 1 << 63] {
            assert_eq!(errno(9, flags), Err(Errno::EINVAL), "flags {flags:#x}");
        }
        assert_eq!(errno(4, 1), Err(Errno::E2BIG));
        assert_eq!(errno(0, 1), Err(Errno::EEXIST));
        assert_eq!(errno(0, 5), Err(Errno::EEXIST));
        assert_eq!(errno(0, 4), Err(Errno::EINVAL));
    }

    #[test]
    fn a_locked_value_can_be_updated_under_its_lock() {
        let map = array(8, 4);
        assert_eq!(update_elem(&map, 1, 4, true), Ok(8));
        assert_eq!(update_elem(&map, 1, 6, true), Ok(8));
        assert_eq!(update_elem(&map, 1, 5, true), Err(UpdateError::Exists));
    }

    #[test]
    fn direct_values_stop_at_value_size_not_at_the_padding() {
        let map = array(12, 1);
        assert_eq!(direct_value_addr(&map, 11), Ok(11));
        assert_eq!(direct_value_addr(&map, 12).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(direct_value_addr(&map, 1 << 29).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(direct_value_addr(&array(12, 2), 0).unwrap_err().errno(), Errno::ENOTSUPP);
        assert_eq!(direct_value_meta(&map, 100, 115), Some(15));
        assert_eq!(direct_value_meta(&map, 100, 116), None);
        assert_eq!(direct_value_meta(&map, 100, 99), None);
    }
}
