//! Ids of objects.

use std::sync::atomic::Ordering;

use bpfarray_core::Errno;
use bpfarray_core::attr::MapFlags;
use bpfarray_core::map::HandleMode;

use crate::attr::Attr;
use crate::kernel::Kernel;
use crate::root::Kind;

const START_ID: usize = 0;
const NEXT_ID: usize = 4;
const END_OF_NEXT_ID: usize = 8;
const ID: usize = 0;
const OPEN_FLAGS: usize = 8;
const END_OF_PROG_FD: usize = 4;
const END_OF_LINK_FD: usize = 4;
const END_OF_MAP_FD: usize = 12;
const END_OF_BTF_FD: usize = 16;

pub(super) fn next_map(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    next(kernel, attr, Kind::Map)
}

pub(super) fn next_btf(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    next(kernel, attr, Kind::Btf)
}

pub(super) fn next_prog(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    next(kernel, attr, Kind::Prog)
}

pub(super) fn next_link(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    next(kernel, attr, Kind::Link)
}

/// # Kernel
/// `bpf_obj_get_next_id`
fn next(kernel: &Kernel, attr: &Attr, kind: Kind) -> Result<(), Errno> {
    attr.ends_at(END_OF_NEXT_ID)?;
    let start = attr.u32(START_ID);
    if start >= i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    let next = kernel.lock()?.next(kind, start)?.ok_or(Errno::ENOENT)?;
    attr.put_u32(&kernel.user, NEXT_ID, next)
}

/// What a handle may do, by flags of which there must not be others, nor both.
pub(super) fn mode_of(flags: u32) -> Result<HandleMode, Errno> {
    let flags = MapFlags::from_bits_retain(flags);
    let both = MapFlags::RDONLY | MapFlags::WRONLY;
    if !both.contains(flags) || flags == both {
        return Err(Errno::EINVAL);
    }
    Ok(HandleMode::of(flags))
}

/// # Kernel
/// `bpf_map_get_fd_by_id`
pub(super) fn map_fd(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END_OF_MAP_FD)?;
    let mode = mode_of(attr.u32(OPEN_FLAGS))?;
    let told = kernel.told.load(Ordering::Relaxed);
    let file = kernel.lock()?.open_map(attr.u32(ID), mode, told)?;
    Ok(kernel.install(file, None))
}

/// # Kernel
/// `bpf_prog_get_fd_by_id`
pub(super) fn prog_fd(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END_OF_PROG_FD)?;
    let file = kernel.lock()?.open(Kind::Prog, attr.u32(ID), HandleMode::ReadWrite)?;
    Ok(kernel.install(file, None))
}

/// # Kernel
/// `bpf_link_get_fd_by_id`
pub(super) fn link_fd(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END_OF_LINK_FD)?;
    let file = kernel.lock()?.open(Kind::Link, attr.u32(ID), HandleMode::ReadOnly)?;
    Ok(kernel.install(file, None))
}

/// # Kernel
/// `bpf_btf_get_fd_by_id`
pub(super) fn btf_fd(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END_OF_BTF_FD)?;
    if attr.u32(OPEN_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = kernel.lock()?.open(Kind::Btf, attr.u32(ID), HandleMode::ReadOnly)?;
    Ok(kernel.install(file, None))
}
