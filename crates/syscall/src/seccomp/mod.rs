//! Answers the bpf(2) calls of other processes, whatever they are written in: the kernel makes each call wait until it is
//! answered (seccomp user notification), for any user, from Linux 5.14 on.
//!
//! ```no_run
//! use bpfarray_syscall::{Root, seccomp};
//! let (mut child, listener) = seccomp::spawn(std::process::Command::new("./static_program"))?;
//! let root = Root::from_environment()?;
//! std::thread::spawn(move || listener.serve(root, false));
//! child.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is caught besides bpf(2) are rare calls: shared mappings of files, and calls with a path that may lead into bpffs. Those that
//! turn out to be about something else, the kernel does as if nothing were.

mod filter;
mod listener;
mod other;
mod paths;
mod serve;
mod spawn;

pub(crate) use listener::Waiting;
pub use listener::{Listener, install};
pub use spawn::{SpawnError, spawn};
