//! Links of programs to maps for whose elements they are called. Other programs cannot be linked to anything.

use std::fs;
use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;
use bpfarray_vm::prog_type::AttachType;
use bpfarray_vm::{MapElemIter, ProgType};

use super::info::Info;
use crate::attr::{Attr, check_tail};
use crate::file::{MapObject, Object};
use crate::kernel::Kernel;
use crate::link::{ITER_TARGET, LINK_TYPE_ITER, LinkFile};
use crate::prog::F_SLEEPABLE;
use crate::prog_file::ProgFile;
use crate::root::{Kind, errno, open_as};

/// # Kernel
/// `link_create`, `bpf_iter_link_attach`
pub(super) fn create(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    const PROG_FD: usize = 0;
    const TARGET_FD: usize = 4;
    const ATTACH_TYPE: usize = 8;
    const FLAGS: usize = 12;
    const END: usize = 60;
    attr.ends_at(END)?;
    let prog = kernel.prog(attr.fd(PROG_FD))?;
    if !is_iterator(&prog.file) || AttachType(attr.u32(ATTACH_TYPE)) != AttachType::TRACE_ITER {
        return Err(Errno::EINVAL);
    }
    if attr.u32(TARGET_FD) != 0 || attr.u32(FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let map_fd = map_fd_of_info(kernel, attr)?;
    if prog.file.prog_flags & F_SLEEPABLE != 0 {
        return Err(Errno::EINVAL);
    }
    let map = map_to_visit(kernel, map_fd)?;
    MapElemIter::check(prog.program()?, &map.to_ref()).map_err(|error| error.errno())?;
    let locked = kernel.lock()?;
    let id = locked.next_id(Kind::Link)?;
    let opened = locked
        .create_link(id, LinkFile { prog_id: prog.id, map_id: map.id })
        .and_then(|()| locked.open_new(Kind::Link, id, HandleMode::ReadOnly));
    let opened = opened.inspect_err(|_| {
        // Without a reference, it would be swept later anyway.
        let _ = fs::remove_dir_all(kernel.root.kept_by((Kind::Link, id)));
        let _ = fs::remove_file(kernel.root.object(Kind::Link, id));
    })?;
    drop(locked);
    Ok(kernel.install(opened, Some(Object::Link(id))))
}

fn is_iterator(prog: &ProgFile) -> bool {
    let attach_type = AttachType(prog.expected_attach_type);
    (ProgType(prog.prog_type), attach_type) == (ProgType::TRACING, AttachType::TRACE_ITER)
}

/// The map that the caller's `union bpf_iter_link_info` names, or 0 without one.
fn map_fd_of_info(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    const ITER_INFO: usize = 16;
    const ITER_INFO_LEN: usize = 24;
    /// `union bpf_iter_link_info`, of which the first field is the map's descriptor.
    const SIZE: usize = 16;
    let (addr, len) = (attr.pointer(ITER_INFO), attr.u32(ITER_INFO_LEN));
    if addr.is_null() != (len == 0) {
        return Err(Errno::EINVAL);
    }
    check_tail(&kernel.user, addr, len, SIZE)?;
    let mut info = [0; SIZE];
    kernel.user.read(addr, &mut info[..SIZE.min(len as usize)])?;
    let [map_fd, ..] = info.as_chunks().0 else { return Ok(0) };
    Ok(i32::from_ne_bytes(*map_fd))
}

/// # Kernel
/// `bpf_iter_attach_map`
fn map_to_visit(kernel: &Kernel, fd: i32) -> Result<Arc<MapObject>, Errno> {
    // A structure without a descriptor has this one.
    if fd == 0 {
        return Err(Errno::EBADF);
    }
    kernel.with_map(fd, |map| Ok(Arc::clone(&map.object)))
}

/// # Kernel
/// `link_update`, `bpf_iter_link_replace`
pub(super) fn update(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    const LINK_FD: usize = 0;
    const NEW_PROG_FD: usize = 4;
    const FLAGS: usize = 8;
    const OLD_PROG_FD: usize = 12;
    const END: usize = 16;
    /// `BPF_F_REPLACE`
    const F_REPLACE: u32 = 1 << 2;
    attr.ends_at(END)?;
    let flags = attr.u32(FLAGS);
    if flags & !F_REPLACE != 0 {
        return Err(Errno::EINVAL);
    }
    let link = kernel.link(attr.fd(LINK_FD))?;
    let new = kernel.prog(attr.fd(NEW_PROG_FD))?;
    let old = match flags & F_REPLACE {
        0 if attr.u32(OLD_PROG_FD) != 0 => return Err(Errno::EINVAL),
        0 => None,
        _ => Some(kernel.prog(attr.fd(OLD_PROG_FD))?.id),
    };
    let locked = kernel.lock()?;
    let linked = kernel.root.link(link)?.prog_id;
    if old.is_some_and(|old| old != linked) {
        return Err(Errno::EPERM);
    }
    let file = open_as(&kernel.root.object(Kind::Prog, linked), HandleMode::ReadOnly)?;
    let linked = ProgFile::read(&file).map_err(|error| errno(&error))?;
    let purpose = |prog: &ProgFile| (prog.prog_type, prog.expected_attach_type, prog.attach_btf_id);
    if purpose(&linked) != purpose(&new.file) {
        return Err(Errno::EINVAL);
    }
    locked.replace_prog(link, new.id)
}

/// An iterator is attached to nothing that it could be taken off.
///
/// # Kernel
/// `link_detach`
pub(super) fn detach(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    const LINK_FD: usize = 0;
    const END: usize = 4;
    attr.ends_at(END)?;
    kernel.link(attr.fd(LINK_FD))?;
    Err(Errno::EOPNOTSUPP)
}

/// # Kernel
/// `bpf_link_get_info_by_fd`, `bpf_iter_link_fill_link_info`, `struct bpf_link_info`
pub(super) fn link_info(kernel: &Kernel, attr: &Attr, id: u32) -> Result<(), Errno> {
    const TARGET_NAME: usize = 16;
    const TARGET_NAME_LEN: usize = 24;
    const MAP_ID: usize = 28;
    let mut info = Info::<64>::read(kernel, attr)?;
    let LinkFile { prog_id, map_id } = kernel.root.link(id)?;
    info.put_u32(0, LINK_TYPE_ITER);
    info.put_u32(4, id);
    info.put_u32(8, prog_id);
    let (addr, room) = (info.pointer(TARGET_NAME), info.u32(TARGET_NAME_LEN) as usize);
    if addr.is_null() != (room == 0) {
        return Err(Errno::EINVAL);
    }
    let mut name = format!("{ITER_TARGET}\0").into_bytes();
    let len = name.len();
    info.put_u32(TARGET_NAME_LEN, len as u32);
    if !addr.is_null() {
        if room < len {
            name.truncate(room - 1);
            name.push(0);
        }
        kernel.user.write(addr, &name)?;
        if room < len {
            return Err(Errno::ENOSPC);
        }
    }
    info.put_u32(MAP_ID, map_id);
    info.write(kernel, attr)
}
