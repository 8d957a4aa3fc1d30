//! Slots of maps of objects. What is in them are references, so they change under the lock of the directory.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bpfarray::{Cgroup, Object};
use bpfarray_core::Errno;
use bpfarray_core::map::{Kind, fd_array};

use crate::file::{self, OpenMap, proc_path};
use crate::kernel::Kernel;

/// Puts the object behind `value_fd` into a slot of the map behind `map_fd`, which may be written to.
///
/// # Kernel
/// `bpf_fd_array_map_update_elem`
pub(super) fn update(
    kernel: &Kernel,
    map_fd: i32,
    index: u32,
    value_fd: i32,
    flags: u64,
) -> Result<(), Errno> {
    with_slots(kernel, map_fd, |map| {
        if map.handle.layout().kind() == Kind::PerfEventArray {
            return update_event(kernel, map, map_fd, index, value_fd, flags);
        }
        let object = object_for(kernel, map, index, value_fd, flags)?;
        map.handle.update_object(index, &object, flags).map_err(|error| error.errno())
    })
}

/// Puts an event into a slot. One of the running kernel is of the process that opened it; others learn that the slot is filled.
fn update_event(
    kernel: &Kernel,
    map: &OpenMap,
    map_fd: i32,
    index: u32,
    value_fd: i32,
    flags: u64,
) -> Result<(), Errno> {
    const NAME: &str = "anon_inode:[perf_event]";
    fd_array::update_elem(map.handle.layout(), index, flags).map_err(|error| error.errno())?;
    if let Some(id) = kernel.event_behind(value_fd) {
        let event = kernel.listing.open_event(id).map_err(|_| Errno::EBADF)?;
        if event.attr().inherit {
            return Err(Errno::EOPNOTSUPP);
        }
        return Kernel::claim_event_slot(&map.handle, index, map_fd, id);
    }
    let is_event = fs::read_link(proc_path(value_fd)).is_ok_and(|name| name == Path::new(NAME));
    if !is_event {
        return Err(Errno::EBADF);
    }
    Kernel::claim_event_slot(&map.handle, index, map_fd, 0)
}

/// Empties a slot.
///
/// # Kernel
/// `fd_array_map_delete_elem`
pub(super) fn delete(kernel: &Kernel, map_fd: i32, index: u32) -> Result<(), Errno> {
    with_slots(kernel, map_fd, |map| map.handle.delete_elem(index).map_err(|error| error.errno()))
}

/// Puts the objects behind descriptors into slots, up to the first that is refused. Gives how many there were, and why
/// there were no more.
pub(super) fn update_many(
    kernel: &Kernel,
    map_fd: i32,
    keys: &[u32],
    value_fds: &[i32],
    flags: u64,
) -> (u32, Result<(), Errno>) {
    let mut done = 0;
    let result = with_slots(kernel, map_fd, |map| {
        let (mut objects, mut refused) = (Vec::new(), Ok(()));
        for (&index, &fd) in keys.iter().zip(value_fds) {
            match object_for(kernel, map, index, fd, flags) {
                Ok(object) => objects.push(object),
                Err(errno) => {
                    refused = Err(errno);
                    break;
                }
            }
        }
        match map.handle.update_object_batch(&keys[..objects.len()], &objects, flags) {
            Ok(count) => done = count,
            Err(error) => {
                done = error.count().unwrap_or(0);
                return Err(error.errno());
            }
        }
        refused
    });
    (done, result)
}

/// Runs `body` on a map while nobody else changes slots or looks for what nobody refers to. The map is in no other
/// hands then: `fork` waits for the lock.
fn with_slots<R>(
    kernel: &Kernel,
    fd: i32,
    body: impl FnOnce(&OpenMap) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let _locked = kernel.lock()?;
    let map = kernel.with_map(fd, |map| Ok(map.clone()))?;
    body(&map)
}

/// The object that a descriptor stands for, once flags and index were found good.
fn object_for(
    kernel: &Kernel,
    map: &OpenMap,
    index: u32,
    fd: i32,
    flags: u64,
) -> Result<Object, Errno> {
    let layout = map.handle.layout();
    fd_array::update_elem(layout, index, flags).map_err(|error| error.errno())?;
    match layout.kind() {
        Kind::ArrayOfMaps => kernel.with_object(fd, |object| match object {
            file::Object::Map(map) => Ok(Object::Map(map.handle.to_ref())),
            file::Object::Btf(_) | file::Object::Prog(_) | file::Object::Link(_) => {
                Err(Errno::EINVAL)
            }
        }),
        Kind::CgroupArray => {
            // What cannot be opened is not open.
            fs::symlink_metadata(proc_path(fd)).map_err(|_| Errno::EBADF)?;
            Cgroup::open(proc_path(fd)).map(Object::Cgroup).map_err(|error| error.errno())
        }
        Kind::ProgArray => {
            let program = kernel.prog(fd)?.program()?.clone();
            Ok(Object::Program(Arc::new(program)))
        }
        // Events have slots of their own way, and values are no descriptors.
        Kind::PerfEventArray | Kind::Array | Kind::PercpuArray => Err(Errno::EINVAL),
    }
}
