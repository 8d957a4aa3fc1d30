//! Element flags that name CPUs, which [`Rules::Linux7_0`] adds for per-CPU maps.

use crate::attr::{Rules, elem_flags};
use crate::errno::Errno;
use crate::layout::Layout;
use crate::map::Kind;

/// Whose values the caller's buffer of an operation holds.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Cpus {
    /// Those of each CPU, one after the other; of a map without per-CPU values, its one value.
    Each,
    /// That of one CPU.
    One(u32),
    /// One value for all CPUs.
    All,
}

/// Why flags name no CPUs. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuFlagsError {
    /// Flags that the operation or the map type does not know, or that exclude each other.
    #[error("flags {0:#x} are not valid")]
    Flags(u64),
    /// No such CPU.
    #[error("cpu {cpu} is not below {possible_cpus}, the number of possible CPUs")]
    Cpu {
        /// The CPU asked for.
        cpu: u32,
        /// The number of CPUs.
        possible_cpus: u32,
    },
}

impl CpuFlagsError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Flags(_) => Errno::EINVAL,
            Self::Cpu { .. } => Errno::ERANGE,
        }
    }
}

/// The CPUs that the flags of an operation name. The lower half of `flags` may have the bits in `allowed`;
/// the upper half is the number of a CPU.
///
/// # Errors
/// The variants of [`CpuFlagsError`] in their order.
///
/// # Kernel
/// `bpf_map_check_op_flags`
pub(crate) const fn cpus(
    map: &Layout,
    flags: u64,
    allowed: u64,
    possible_cpus: u32,
) -> Result<Cpus, CpuFlagsError> {
    const BOTH: u64 = elem_flags::F_CPU | elem_flags::F_ALL_CPUS;
    let (cpu, named) = ((flags >> 32) as u32, flags & BOTH);
    let known = flags as u32 as u64 & !allowed == 0;
    let right_map = match map.kind() {
        Kind::PercpuArray => true,
        Kind::Array
        | Kind::ProgArray
        | Kind::PerfEventArray
        | Kind::CgroupArray
        | Kind::ArrayOfMaps => named == 0,
    };
    if !known || !right_map || named == BOTH || (cpu != 0 && named != elem_flags::F_CPU) {
        return Err(CpuFlagsError::Flags(flags));
    }
    match named {
        elem_flags::F_CPU if cpu >= possible_cpus => Err(CpuFlagsError::Cpu { cpu, possible_cpus }),
        elem_flags::F_CPU => Ok(Cpus::One(cpu)),
        elem_flags::F_ALL_CPUS => Ok(Cpus::All),
        _ => Ok(Cpus::Each),
    }
}

/// The flags of an element without those that name CPUs, where the map's rules know them.
pub(crate) const fn without_cpus(map: &Layout, flags: u64) -> u64 {
    match map.rules() {
        Rules::Linux6_18 => flags,
        Rules::Linux7_0 => flags as u32 as u64 & !(elem_flags::F_CPU | elem_flags::F_ALL_CPUS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};
    use crate::map::{
        HandleMode, LookupError, UpdateError, check_lookup, check_update, percpu_array,
    };

    fn layout(map_type: MapType, rules: Rules) -> Layout {
        let attr =
            MapAttr { map_type, key_size: 4, value_size: 4, max_entries: 3, ..MapAttr::default() };
        attr.check(&Creator { rules, ..Creator::default() }).unwrap()
    }

    const CPU_1: u64 = 1 << 32 | elem_flags::F_CPU;

    fn lookup(map: &Layout, flags: u64) -> Result<Cpus, Errno> {
        check_lookup(map, HandleMode::ReadWrite, flags, false, 2).map_err(LookupError::errno)
    }

    fn update(map: &Layout, flags: u64) -> Result<Cpus, Errno> {
        check_update(map, HandleMode::ReadWrite, false, flags, false, 2).map_err(UpdateError::errno)
    }

    #[test]
    fn flags_name_one_cpu_or_all() {
        let map = layout(MapType::PERCPU_ARRAY, Rules::Linux7_0);
        assert_eq!((lookup(&map, CPU_1), lookup(&map, 0)), (Ok(Cpus::One(1)), Ok(Cpus::Each)));
        assert_eq!((update(&map, 8), update(&map, 16)), (Ok(Cpus::One(0)), Ok(Cpus::All)));
        assert_eq!(update(&map, CPU_1 | elem_flags::EXIST), Ok(Cpus::One(1)));
        assert_eq!(lookup(&map, 16), Err(Errno::EINVAL), "one value cannot be read from all");
        for flags in [24, 1 << 32, 1 << 32 | 16] {
            assert_eq!(update(&map, flags), Err(Errno::EINVAL), "{flags:#x}");
        }
        for operation in [lookup, update] {
            assert_eq!(operation(&map, 2 << 32 | elem_flags::F_CPU), Err(Errno::ERANGE));
            assert_eq!(operation(&map, 2 << 32 | 24), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn only_newer_rules_and_per_cpu_maps_know_the_flags() {
        let older = layout(MapType::PERCPU_ARRAY, Rules::Linux6_18);
        assert_eq!(lookup(&older, CPU_1), Err(Errno::EINVAL));
        let errno =
            |map, flags| percpu_array::update_elem(map, 0, flags).map_err(UpdateError::errno);
        assert_eq!(
            (update(&older, CPU_1), errno(&older, CPU_1)),
            (Ok(Cpus::Each), Err(Errno::EINVAL))
        );
        let array = layout(MapType::ARRAY, Rules::Linux7_0);
        for flags in [8, 16, 1 << 32] {
            assert_eq!(update(&array, flags), Err(Errno::EINVAL), "{flags:#x}");
        }
    }

    #[test]
    fn the_other_flags_of_an_update_keep_their_meaning() {
        let map = layout(MapType::PERCPU_ARRAY, Rules::Linux7_0);
        let errno = |index, flags| {
            percpu_array::update_elem(&map, index, flags).map_err(UpdateError::errno)
        };
        assert_eq!(errno(1, CPU_1), Ok(8));
        assert_eq!(errno(1, 16 | elem_flags::EXIST), Ok(8));
        assert_eq!(errno(1, 16 | elem_flags::NOEXIST), Err(Errno::EEXIST));
        assert_eq!(errno(3, 16 | elem_flags::NOEXIST), Err(Errno::E2BIG));
        for flags in [3, 4, 12, 32, CPU_1 | 3] {
            assert_eq!(errno(3, flags), Err(Errno::EINVAL), "{flags:#x}");
        }
    }

    #[test]
    fn newer_rules_judge_the_mode_before_the_flags() {
        for (rules, expected) in
            [(Rules::Linux6_18, Errno::EINVAL), (Rules::Linux7_0, Errno::EPERM)]
        {
            let map = layout(MapType::ARRAY, rules);
            let error = check_lookup(&map, HandleMode::WriteOnly, 1, false, 2).unwrap_err();
            assert_eq!(error.errno(), expected);
        }
    }
}
