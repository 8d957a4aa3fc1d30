//! What the program of a link makes of the elements of its map, as a file.
//!
//! In the kernel an iterator's program runs when the file is read. Here it has run before anybody gets the file, which is a memfd with the
//! text: so it can be read by whatever program it is handed to, with whatever call, as long as somebody has it open.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;
use bpfarray_vm::MapElemIter;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

use super::prog::{count_runs, look_at_slots};
use crate::attr::Attr;
use crate::kernel::Kernel;
use crate::root::{Kind, open_as};

/// # Kernel
/// `bpf_iter_create`, `bpf_iter_new_fd`
pub(super) fn create(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    const LINK_FD: usize = 0;
    const FLAGS: usize = 4;
    const END: usize = 8;
    attr.ends_at(END)?;
    if attr.u32(FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let link = kernel.link(attr.fd(LINK_FD))?;
    let text = text_of(kernel, link)?;
    Ok(kernel.install(text, None))
}

/// Runs the program of a link for each element of its map. Gives its text, in a file that can only be read.
///
/// # Kernel
/// `bpf_seq_read`
fn text_of(kernel: &Kernel, link: u32) -> Result<File, Errno> {
    let (prog, map) = {
        let locked = kernel.lock()?;
        kernel.linked(&locked, link)?
    };
    let program = prog.program()?;
    look_at_slots(kernel, program)?;
    let mut iter = MapElemIter::new(program, &map.to_ref()).map_err(|error| error.errno())?;
    let made = memfd_create("bpf_iter", MemfdFlags::CLOEXEC);
    let mut text = File::from(made.map_err(|error| Errno::from_raw(error.raw_os_error()))?);
    let start = Instant::now();
    let written = write_all(&mut iter, &mut text);
    // The program was called for each of them, and for the end.
    count_runs(kernel, &prog, start.elapsed(), iter.index().saturating_add(1))?;
    // What has no number is a fault, or fuel that was used up.
    written.map_err(|error| error.raw_os_error().map_or(Errno::EFAULT, Errno::from_raw))?;
    let path = format!("/proc/self/fd/{}", text.as_raw_fd());
    File::open(path).map_err(|error| crate::root::errno(&error))
}

fn write_all(iter: &mut MapElemIter, text: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let before = iter.index();
        match iter.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => text.write_all(buffer.get(..len).unwrap_or_default())?,
            // Many elements without text are no reason to stop.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && iter.index() != before => {}
            Err(error) => return Err(error),
        }
    }
}

impl Kernel {
    /// What opening a file of the directory that stands for bpffs gives if it is the pin of a link: the text of its iterator; `None` for
    /// other files, and where it is not to be opened but looked for or made.
    ///
    /// # Errors
    /// As `BPF_ITER_CREATE`.
    ///
    /// # Kernel
    /// `bpf_iter_fops`
    pub fn open_pin(&self, path: &Path, flags: i32) -> Option<Result<OwnedFd, Errno>> {
        const MAKE: i32 = libc::O_CREAT | libc::O_EXCL;
        if flags & (libc::O_PATH | libc::O_DIRECTORY) != 0 || flags & MAKE == MAKE {
            return None;
        }
        let file = open_as(path, HandleMode::ReadOnly).ok()?;
        let Some((Kind::Link, link)) = self.root.identify(&file) else { return None };
        let keep_on_exec = |text: &File| match flags & libc::O_CLOEXEC {
            0 => fcntl_setfd(text, FdFlags::empty()),
            _ => Ok(()),
        };
        Some(text_of(self, link).and_then(|text| {
            let kept = keep_on_exec(&text);
            kept.map_err(|error| Errno::from_raw(error.raw_os_error()))?;
            Ok(text.into())
        }))
    }
}
