//! New files: complete before anybody can see them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, linkat, memfd_create, open,
};
use zerocopy::IntoBytes;

use super::error::FileError;
use super::exclusive::{EXCLUSIVE_OFFSET, ExclusiveHeader};
use super::header::Header;
use super::template::{TEMPLATE_OFFSET, TemplateHeader};

/// What a new file begins and ends with.
pub(super) struct Content<'a> {
    pub(super) header: Header,
    pub(super) template: Option<TemplateHeader>,
    pub(super) exclusive: Option<ExclusiveHeader>,
    pub(super) btf: &'a [u8],
    pub(super) btf_offset: u64,
    pub(super) file_len: u64,
}

impl Content<'_> {
    /// Everything between the parts is a hole, which reads as zeros.
    fn write_to(&self, file: &File) -> io::Result<()> {
        file.set_len(self.file_len)?;
        file.write_all_at(self.header.as_bytes(), 0)?;
        if let Some(template) = &self.template {
            file.write_all_at(template.as_bytes(), TEMPLATE_OFFSET)?;
        }
        if let Some(exclusive) = &self.exclusive {
            file.write_all_at(exclusive.as_bytes(), EXCLUSIVE_OFFSET)?;
        }
        file.write_all_at(self.btf, self.btf_offset)
    }
}

/// The name of an open file by which it can be opened or linked again.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Gives an open file another name. An existing one is never replaced.
pub(super) fn link_open_file(fd: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    linkat(CWD, proc_path(fd), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Makes a file at `path`, where there must be none.
pub(super) fn create(path: &Path, content: &Content<'_>) -> Result<File, FileError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let unnamed = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(dir, unnamed, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            let file = File::from(fd);
            complete(path, &file, content)?;
            link_open_file(std::os::fd::AsFd::as_fd(&file), path)
                .map_err(FileError::io(path, "create"))?;
            Ok(file)
        }
        // Not every file system has files without a name.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            create_under_another_name(path, content)
        }
        Err(errno) => Err(FileError::io(path, "create")(errno)),
    }
}

fn create_under_another_name(path: &Path, content: &Content<'_>) -> Result<File, FileError> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{number}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = open(&temporary, flags, Mode::RUSR | Mode::WUSR)
        .map_err(FileError::io(&temporary, "create"))?;
    let file = File::from(fd);
    let created = complete(path, &file, content).and_then(|()| {
        // Unlike a rename, a link cannot replace a file that somebody else just made.
        rustix::fs::link(&temporary, path).map_err(FileError::io(path, "create"))
    });
    // What cannot be removed is an unused file that nobody looks for.
    let _ = std::fs::remove_file(&temporary);
    created.map(|()| file)
}

fn complete(path: &Path, file: &File, content: &Content<'_>) -> Result<(), FileError> {
    content.write_to(file).map_err(FileError::io(path, "write"))?;
    // No name must lead to a half-written header, not even after a power failure.
    file.sync_data().map_err(FileError::io(path, "write"))
}

/// Makes a file in memory that has no name in any directory and can neither shrink nor grow.
pub(super) fn create_memfd(name: &str, content: &Content<'_>) -> Result<File, FileError> {
    let path = Path::new("memfd");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(name, flags).map_err(FileError::io(path, "create"))?;
    let file = File::from(fd);
    content.write_to(&file).map_err(FileError::io(path, "write"))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(FileError::io(path, "seal"))?;
    Ok(file)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::{MapAttr, MapType};
    use crate::file::header::Shape;

    fn content() -> Content<'static> {
        let sizes = MapAttr { key_size: 4, value_size: 8, max_entries: 3, ..MapAttr::default() };
        let attr = MapAttr { map_type: MapType::ARRAY, ..sizes };
        let shape = Shape::of(&attr, 2, 0, None).unwrap();
        Content {
            header: Header::of(&shape, 2),
            template: None,
            exclusive: None,
            btf: &[],
            btf_offset: 0,
            file_len: shape.geometry.file_len,
        }
    }

    #[test]
    fn file_systems_without_unnamed_files_get_whole_files_as_well() {
        let dir = std::env::temp_dir().join(format!("bpfarray-disk-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("map");
        create_under_another_name(&path, &content()).unwrap();
        let again = create_under_another_name(&path, &content()).unwrap_err();
        assert_eq!(again.errno().raw(), libc::EEXIST);
        let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, [path], "no temporary file is left");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
