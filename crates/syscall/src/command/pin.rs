//! Names of objects.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;

use super::id::mode_of;
use crate::attr::Attr;
use crate::caller;
use crate::file::{Object, proc_path};
use crate::kernel::Kernel;
use crate::root::{Kind, errno};

const PATHNAME: usize = 0;
const BPF_FD: usize = 8;
const FILE_FLAGS: usize = 12;
const PATH_FD: usize = 16;
const END: usize = 20;

/// # Kernel
/// `BPF_F_PATH_FD`
const F_PATH_FD: u32 = 0x4000;

/// Bytes of a path, with its NUL.
const PATH_MAX: usize = 4096;

/// # Kernel
/// `bpf_obj_pin`
pub(super) fn pin(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    if attr.u32(FILE_FLAGS) & !F_PATH_FD != 0 {
        return Err(Errno::EINVAL);
    }
    check_path_fd(attr)?;
    let fd = attr.fd(BPF_FD);
    // The descriptor is judged before the path, and whatever is wrong with it is EINVAL.
    kernel.try_with_object(
        fd,
        |_| Errno::EINVAL,
        |object| match object {
            Object::Map(_) | Object::Prog(_) | Object::Link(_) => Ok(()),
            Object::Btf(_) => Err(Errno::EINVAL),
        },
    )?;
    let path = path(kernel, attr)?;
    let Some(inside) = kernel.root.translate(&path) else {
        let parent = path.parent().map_or(Ok(true), |parent| parent.try_exists());
        return Err(match (parent, path.symlink_metadata()) {
            (Ok(false), _) => Errno::ENOENT,
            (_, Ok(_)) => Errno::EEXIST,
            _ => Errno::EPERM,
        });
    };
    inside.file_name().ok_or(Errno::EEXIST)?;
    if !inside.parent().is_some_and(|parent| parent.is_dir()) {
        return Err(Errno::ENOENT);
    }
    if is_reserved(&inside) {
        return Err(Errno::EPERM);
    }
    let locked = kernel.lock()?;
    let file = File::open(proc_path(fd)).map_err(|error| errno(&error))?;
    locked.pin(&file, &inside)
}

/// # Kernel
/// `bpf_obj_get`, `bpf_obj_get_user`
pub(super) fn get(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END)?;
    let flags = attr.u32(FILE_FLAGS);
    if attr.u32(BPF_FD) != 0 {
        return Err(Errno::EINVAL);
    }
    let mode = mode_of(flags & !F_PATH_FD)?;
    check_path_fd(attr)?;
    let path = path(kernel, attr)?;
    let inside = match kernel.root.translate(&path) {
        Some(inside) if is_reserved(&inside) => return Err(Errno::EPERM),
        Some(inside) => inside,
        None => path,
    };
    let locked = kernel.lock()?;
    let found = fs::metadata(&inside).map_err(|error| errno(&error))?;
    if !found.is_file() {
        return Err(Errno::EACCES);
    }
    let file = File::open(&inside).map_err(|error| errno(&error))?;
    let (kind, id) = kernel.root.identify(&file).ok_or(Errno::EACCES)?;
    let mode = match kind {
        Kind::Map => mode,
        Kind::Prog => HandleMode::ReadWrite,
        Kind::Link if mode != HandleMode::ReadWrite => return Err(Errno::EINVAL),
        Kind::Link => HandleMode::ReadOnly,
        Kind::Btf => return Err(Errno::EACCES),
    };
    let file = locked.open(kind, id, mode)?;
    drop(locked);
    Ok(kernel.install(file, None))
}

/// Whether it is a name that only the kernel gives, in a directory that is there.
///
/// # Kernel
/// `bpf_lookup`
fn is_reserved(inside: &Path) -> bool {
    let has_dot = inside.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'.'));
    has_dot && inside.parent().is_some_and(Path::is_dir)
}

fn check_path_fd(attr: &Attr) -> Result<(), Errno> {
    let is_given = attr.u32(FILE_FLAGS) & F_PATH_FD != 0;
    if !is_given && attr.u32(PATH_FD) != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The path that the caller means, from the root of the file system on.
fn path(kernel: &Kernel, attr: &Attr) -> Result<PathBuf, Errno> {
    let too_long = Errno::from_raw(libc::ENAMETOOLONG);
    let bytes = kernel.user.read_string(attr.pointer(PATHNAME), PATH_MAX, too_long)?;
    if bytes.is_empty() {
        return Err(Errno::ENOENT);
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    if path.is_absolute() {
        return Ok(path);
    }
    let directory = match attr.u32(FILE_FLAGS) & F_PATH_FD {
        0 => caller::current_dir(),
        _ if attr.fd(PATH_FD) == libc::AT_FDCWD => caller::current_dir(),
        _ => fs::read_link(proc_path(attr.fd(PATH_FD))),
    };
    directory.map(|directory| directory.join(path)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Errno::EBADF,
        _ => errno(&error),
    })
}
