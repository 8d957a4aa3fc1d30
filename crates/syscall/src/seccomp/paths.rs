//! Calls with paths, which may lead into bpffs.
//!
//! **Invariant.** A call that is made here in the caller's place has the caller's arguments, but for its addresses: the path is a string of
//! this process, and what the kernel fills in is a buffer of this process, as long as the structure of the call.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bpfarray_core::Errno;
use libc::{c_int, c_long};

use crate::root::errno;

/// A call that takes a path.
#[derive(Debug)]
pub(super) struct PathCall {
    number: c_long,
    /// Which argument is the path. If it is not the first, the one before it is the directory that it may be relative to.
    path: usize,
    /// Which argument is the address of a structure that the kernel fills in, and how long that is.
    out: Option<(usize, usize)>,
    /// Whether the result is a new descriptor; its flags follow the path.
    pub(super) opens: bool,
}

const STAT: usize = size_of::<libc::stat>();
const STATX: usize = size_of::<libc::statx>();
const STATFS: usize = size_of::<libc::statfs>();

const fn plain(number: c_long, path: usize) -> PathCall {
    PathCall { number, path, out: None, opens: false }
}

const fn opens(number: c_long, path: usize) -> PathCall {
    PathCall { opens: true, ..plain(number, path) }
}

const fn fills(number: c_long, path: usize, argument: usize, len: usize) -> PathCall {
    PathCall { out: Some((argument, len)), ..plain(number, path) }
}

/// The calls that the preload library takes the place of in libc.
pub(super) const PATH_CALLS: &[PathCall] = &[
    opens(libc::SYS_openat, 1),
    fills(libc::SYS_newfstatat, 1, 2, STAT),
    fills(libc::SYS_statx, 1, 4, STATX),
    fills(libc::SYS_statfs, 0, 1, STATFS),
    plain(libc::SYS_faccessat, 1),
    plain(libc::SYS_faccessat2, 1),
    plain(libc::SYS_mkdirat, 1),
    plain(libc::SYS_unlinkat, 1),
    plain(libc::SYS_fchmodat, 1),
    #[cfg(target_arch = "x86_64")]
    opens(libc::SYS_open, 0),
    #[cfg(target_arch = "x86_64")]
    fills(libc::SYS_stat, 0, 1, STAT),
    #[cfg(target_arch = "x86_64")]
    fills(libc::SYS_lstat, 0, 1, STAT),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_access, 0),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_mkdir, 0),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_rmdir, 0),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_unlink, 0),
    #[cfg(target_arch = "x86_64")]
    plain(libc::SYS_chmod, 0),
];

/// # Kernel
/// `BPF_FS_MAGIC`
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// What a call gave that was made here.
pub(super) enum Done {
    Value(i64),
    /// A descriptor, and the flags that the caller's shall have.
    File(OwnedFd, c_int),
    /// What is to be written, and where.
    Filled(Vec<u8>, u64),
}

impl PathCall {
    pub(super) fn of(number: i64) -> Option<&'static Self> {
        PATH_CALLS.iter().find(|call| call.number == number)
    }

    pub(super) const fn number(&self) -> c_long {
        self.number
    }

    /// The address of the path.
    pub(super) fn path(&self, arguments: &[u64; 6]) -> u64 {
        arguments.get(self.path).copied().unwrap_or(0)
    }

    /// The flags with which a file is opened. Those of the descriptor are `O_CLOEXEC`.
    pub(super) fn flags(&self, arguments: &[u64; 6]) -> c_int {
        arguments.get(self.path + 1).copied().unwrap_or(0) as c_int
    }

    /// Makes the call, with another path.
    pub(super) fn make(&self, arguments: &[u64; 6], path: PathBuf) -> Result<Done, Errno> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let mut ours = arguments.map(|argument| argument as usize);
        if let Some(place) = ours.get_mut(self.path) {
            *place = path.as_ptr().expose_provenance();
        }
        let mut buffer = vec![0_u8; self.out.map_or(0, |(_, len)| len)];
        if let Some((argument, _)) = self.out
            && let Some(place) = ours.get_mut(argument)
        {
            *place = buffer.as_mut_ptr().expose_provenance();
        }
        let [a, b, c, d, e, f] = ours;
        // SAFETY: the invariant; all other arguments of these calls are numbers.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        if result < 0 {
            return Err(errno(&io::Error::last_os_error()));
        }
        if self.opens {
            let fd = c_int::try_from(result).map_err(|_| Errno::EBADF)?;
            // SAFETY: the call has just made it, and nobody else knows of it.
            let file = unsafe { OwnedFd::from_raw_fd(fd) };
            return Ok(Done::File(file, self.flags(arguments) & libc::O_CLOEXEC));
        }
        let Some((argument, _)) = self.out else { return Ok(Done::Value(result)) };
        if self.number == libc::SYS_statfs {
            set_type(&mut buffer);
        }
        Ok(Done::Filled(buffer, arguments.get(argument).copied().unwrap_or(0)))
    }
}

/// `fstatfs` of a directory that stands for one of bpffs: that of the directory of all.
pub(super) fn statfs(path: PathBuf, out: u64) -> Result<Done, Errno> {
    fills(libc::SYS_statfs, 0, 1, STATFS).make(&[0, out, 0, 0, 0, 0], path)
}

/// Lets a `struct statfs` be that of a bpffs.
fn set_type(statfs: &mut [u8]) {
    const OFFSET: usize = std::mem::offset_of!(libc::statfs, f_type);
    let magic = i64::from(BPF_FS_MAGIC).to_ne_bytes();
    if let Some(field) = statfs.get_mut(OFFSET..OFFSET + magic.len()) {
        field.copy_from_slice(&magic);
    }
}
