//! bpf(2) in user space: [`Kernel::bpf`] takes the attribute blocks that programs written for Linux hand to the kernel,
//! and answers as Linux 6.18 does.
//!
//! Objects are files in a [`Root`] directory, which is to bpfarray what the kernel's id tables and bpffs are to Linux. There is
//! no daemon: a descriptor is an open file of that directory, so `close`, `dup`, `fork`, `exec` and passing it through a
//! socket work by themselves.
//!
//! ```
//! use bpfarray_syscall::{Kernel, Root};
//! # let dir = std::env::temp_dir().join(format!("bpfarray-syscall-doc-{}", std::process::id()));
//! let kernel = Kernel::new(Root::open(&dir)?);
//! // BPF_MAP_CREATE: map_type ARRAY, key_size, value_size, max_entries.
//! let attr: [u32; 4] = [2, 4, 8, 16];
//! // SAFETY: the command writes to no address in its block.
//! let fd = unsafe { kernel.bpf(0, attr.as_ptr().addr() as u64, 16) }?;
//! assert!(fd > 2);
//! # std::fs::remove_dir_all(dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("bpf(2) is a system call of Linux");

mod attr;
mod caller;
mod command;
mod event;
mod file;
mod kernel;
mod link;
mod listing;
mod map_fd;
mod path;
mod prog;
mod prog_file;
mod references;
mod root;
mod scratch;
pub mod seccomp;
mod trace;
mod user;

pub use bpfarray_core::Errno;
pub use command::command_name;
pub use kernel::{ForkGuard, Kernel};
pub use path::BPFFS;
pub use root::{ROOT_VARIABLE, Root, RootError};
pub use trace::line as trace_line;
