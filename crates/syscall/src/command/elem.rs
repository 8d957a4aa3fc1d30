//! Commands on single elements, and freezing.

use bpfarray::possible_cpus;
use bpfarray_core::Errno;
use bpfarray_core::attr::elem_flags::F_LOCK;
use bpfarray_core::btf::FieldMask;
use bpfarray_core::map::{self, LookupAndDeleteError};

use super::object;
use crate::attr::Attr;
use crate::file::OpenMap;
use crate::kernel::Kernel;

const MAP_FD: usize = 0;
const KEY: usize = 8;
const VALUE: usize = 16;
const NEXT_KEY: usize = 16;
const FLAGS: usize = 24;
const END_OF_ELEM: usize = 32;
const END_OF_DELETE: usize = 16;
const END_OF_NEXT_KEY: usize = 24;
const END_OF_FREEZE: usize = 4;

/// Values up to this size need no memory of their own.
const SMALL: usize = 256;

/// Runs `body` with a buffer for a value.
#[inline]
fn with_buffer<R>(len: u64, body: impl FnOnce(&mut [u8]) -> Result<R, Errno>) -> Result<R, Errno> {
    let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
    if len <= SMALL {
        return body(&mut [0; SMALL][..len]);
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    buffer.resize(len, 0);
    body(&mut buffer)
}

pub(super) fn has_spin_lock(map: &OpenMap) -> bool {
    let fields = map.handle.special_fields().as_slice();
    fields.iter().any(|field| field.kind.mask() == FieldMask::SPIN_LOCK)
}

/// # Kernel
/// `map_lookup_elem`
#[inline]
pub(super) fn lookup(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_ELEM)?;
    let flags = attr.u64(FLAGS);
    if flags & !F_LOCK != 0 {
        return Err(Errno::EINVAL);
    }
    kernel.with_map(attr.fd(MAP_FD), |map| {
        let handle = &map.handle;
        map::check_lookup(
            handle.layout(),
            handle.mode(),
            flags,
            has_spin_lock(map),
            possible_cpus(),
        )
        .map_err(|error| error.errno())?;
        let key = kernel.user.read_u32(attr.pointer(KEY))?;
        with_buffer(handle.user_size(), |value| {
            handle.lookup_elem(key, value, flags).map_err(|error| error.errno())?;
            kernel.user.write(attr.pointer(VALUE), value)
        })
    })
}

/// # Kernel
/// `map_update_elem`
#[inline]
pub(super) fn update(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_ELEM)?;
    let flags = attr.u64(FLAGS);
    let slot = kernel.with_map(attr.fd(MAP_FD), |map| {
        let handle = &map.handle;
        let (layout, frozen) = (handle.layout(), handle.is_frozen());
        map::check_update(
            layout,
            handle.mode(),
            frozen,
            flags,
            has_spin_lock(map),
            possible_cpus(),
        )
        .map_err(|error| error.errno())?;
        let key = kernel.user.read_u32(attr.pointer(KEY))?;
        if layout.kind().holds_objects() {
            return Ok(Some((key, kernel.user.read_u32(attr.pointer(VALUE))?)));
        }
        with_buffer(handle.user_size(), |value| {
            kernel.user.read(attr.pointer(VALUE), value)?;
            handle.update_elem(key, value, flags).map_err(|error| error.errno())
        })?;
        Ok(None)
    })?;
    match slot {
        None => Ok(()),
        Some((key, fd)) => object::update(kernel, attr.fd(MAP_FD), key, fd.cast_signed(), flags),
    }
}

/// # Kernel
/// `map_delete_elem`
pub(super) fn delete(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_DELETE)?;
    let slot = kernel.with_map(attr.fd(MAP_FD), |map| {
        map::check_delete(map.handle.mode(), map.handle.is_frozen())
            .map_err(|error| error.errno())?;
        let key = kernel.user.read_u32(attr.pointer(KEY))?;
        if map.handle.layout().kind().holds_objects() {
            return Ok(Some(key));
        }
        map.handle.delete_elem(key).map_err(|error| error.errno())?;
        Ok(None)
    })?;
    slot.map_or(Ok(()), |key| object::delete(kernel, attr.fd(MAP_FD), key))
}

/// # Kernel
/// `map_get_next_key`
pub(super) fn get_next_key(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_NEXT_KEY)?;
    kernel.with_map(attr.fd(MAP_FD), |map| {
        map::check_next_key(map.handle.mode()).map_err(|error| error.errno())?;
        let at = attr.pointer(KEY);
        let key = if at.is_null() { None } else { Some(kernel.user.read_u32(at)?) };
        let next = map.handle.get_next_key(key).map_err(|error| error.errno())?;
        kernel.user.write(attr.pointer(NEXT_KEY), &next.to_ne_bytes())
    })
}

/// # Kernel
/// `map_lookup_and_delete_elem`
pub(super) fn lookup_and_delete(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_ELEM)?;
    let flags = attr.u64(FLAGS);
    if flags & !F_LOCK != 0 {
        return Err(Errno::EINVAL);
    }
    kernel.with_map(attr.fd(MAP_FD), |map| {
        match map.handle.lookup_and_delete_elem(flags) {
            // That it cannot be done is found after the key.
            Err(error @ LookupAndDeleteError::Unsupported) => {
                kernel.user.read_u32(attr.pointer(KEY))?;
                Err(error.errno())
            }
            other => other.map_err(|error| error.errno()),
        }
    })
}

/// # Kernel
/// `map_freeze`
pub(super) fn freeze(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END_OF_FREEZE)?;
    kernel.with_map(attr.fd(MAP_FD), |map| map.handle.freeze().map_err(|error| error.errno()))
}
