//! What the library knows in this process, and how it comes through `fork`.
//!
//! **Invariant.** The handlers of `fork` are functions of this library, which stays loaded as long as the process lives.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use bpfarray_syscall::{Errno, ForkGuard, Kernel, Root};

static KERNEL: OnceLock<Result<Kernel, Errno>> = OnceLock::new();

thread_local! {
    /// Between the beginning of `fork` and its end.
    static FORKING: RefCell<Option<ForkGuard<'static>>> = const { RefCell::new(None) };
}

/// The other side of bpf(2), which is set up when it is first needed.
pub(crate) fn kernel() -> Result<&'static Kernel, Errno> {
    let kernel = KERNEL.get_or_init(|| {
        let root = Root::from_environment().map_err(|error| {
            eprintln!("bpfarray: {error}");
            error.errno()
        })?;
        // SAFETY: the handlers take nothing and stay where they are.
        if unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) } != 0
        {
            return Err(Errno::ENOMEM);
        }
        Ok(Kernel::new(root))
    });
    kernel.as_ref().map_err(|errno| *errno)
}

/// The same, if it was needed before.
pub(crate) fn kernel_in_use() -> Option<&'static Kernel> {
    KERNEL.get()?.as_ref().ok()
}

extern "C" fn before_fork() {
    let Some(kernel) = kernel_in_use() else { return };
    let _ = catch_unwind(|| FORKING.set(Some(kernel.before_fork())));
}

extern "C" fn in_parent() {
    let _ = catch_unwind(|| drop(FORKING.take()));
}

extern "C" fn in_child() {
    let _ = catch_unwind(|| {
        if let Some(guard) = FORKING.take() {
            guard.in_child();
        }
    });
}

/// Runs `body`; a panic in it is EIO.
pub(crate) fn caught<R>(body: impl FnOnce() -> Result<R, Errno>) -> Result<R, Errno> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Errno::from_raw(libc::EIO)))
}
