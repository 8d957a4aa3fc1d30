//! Helpers on maps.

use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::{DeleteError, UpdateError};
use bpfarray_core::{Errno, helper_id};

use super::Builtin;
use crate::fault::{AccessError, AccessReason, HelperError};
use crate::interp::Machine;

pub(super) const HELPERS: &[Builtin] = &[
    (helper_id::MAP_LOOKUP_ELEM, lookup_elem),
    (helper_id::MAP_UPDATE_ELEM, update_elem),
    (helper_id::MAP_DELETE_ELEM, delete_elem),
    (helper_id::MAP_LOOKUP_PERCPU_ELEM, lookup_percpu_elem),
    (helper_id::FOR_EACH_MAP_ELEM, for_each_map_elem),
    (helper_id::CURRENT_TASK_UNDER_CGROUP, current_task_under_cgroup),
];

fn read_index(machine: &mut Machine<'_>, addr: u64) -> Result<u32, HelperError> {
    Ok(machine.load::<4>(addr)? as u32)
}

fn lookup_elem(machine: &mut Machine<'_>, [map, key, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let map = machine.map(map)?;
    let index = read_index(machine, key)?;
    Ok(map.prog_lookup_elem(machine.lane(), index).unwrap_or(0))
}

fn lookup_percpu_elem(
    machine: &mut Machine<'_>,
    [map, key, cpu, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let map = machine.map(map)?;
    let index = read_index(machine, key)?;
    Ok(map.prog_lookup_percpu_elem(index, cpu as u32).unwrap_or(0))
}

/// Bytes of what counts as a small value.
const SMALL: usize = 64;

fn update_elem(
    machine: &mut Machine<'_>,
    [map, key, value, flags, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let addr = map;
    let map = machine.map(addr)?;
    if map.map_flags().contains(MapFlags::RDONLY_PROG) {
        let (size, reason) = (map.value_size().into(), AccessReason::ReadOnly);
        return Err(AccessError { addr, size, write: true, reason }.into());
    }
    let index = read_index(machine, key)?;
    // Most values are small, and then need no memory of their own.
    let (mut small, large);
    let value = if map.value_size() as usize <= SMALL {
        small = [0; SMALL];
        let value_here = &mut small[..map.value_size() as usize];
        machine.read(value, value_here)?;
        &*value_here
    } else {
        large = machine.read_vec(value, map.value_size().into())?;
        &*large
    };
    let result = map.prog_update_elem(machine.lane(), index, value, flags);
    Ok(result.map_err(UpdateError::errno).map_or_else(|errno| errno.to_return(), |()| 0))
}

fn delete_elem(machine: &mut Machine<'_>, [map, key, ..]: [u64; 5]) -> Result<u64, HelperError> {
    let map = machine.map(map)?;
    let index = read_index(machine, key)?;
    let result = map.prog_delete_elem(index).map_err(DeleteError::errno);
    Ok(result.map_or_else(|errno| errno.to_return(), |()| 0))
}

/// Calls a function for each element, with map, key, value and a context of the program's, until one call
/// does not return 0. Gives the number of calls.
fn for_each_map_elem(
    machine: &mut Machine<'_>,
    [map_addr, callback, context, flags, _]: [u64; 5],
) -> Result<u64, HelperError> {
    let map = machine.map(map_addr)?;
    if flags != 0 {
        return Ok(Errno::EINVAL.to_return());
    }
    let mut calls = 0;
    for index in 0..map.max_entries() {
        let value = map.prog_lookup_elem(machine.lane(), index).unwrap_or(0);
        calls += 1;
        let stop = machine.lend(index, |machine, key| {
            machine.call(callback, [map_addr, key, value, context, 0])
        })?;
        if stop != 0 {
            break;
        }
    }
    Ok(calls)
}

fn current_task_under_cgroup(
    machine: &mut Machine<'_>,
    [map, index, ..]: [u64; 5],
) -> Result<u64, HelperError> {
    let under = machine.map(map)?.current_task_under_cgroup(machine.lane(), index as u32);
    Ok(under.map_or_else(|error| error.errno().to_return(), u64::from))
}
