//! The threads that answer.
//!
//! **Invariant.** bpf(2) is called for whoever made the call to the kernel, and promised with it that what the attributes name to be
//! written may be written. It is written to that process only.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use bpfarray_core::Errno;

use super::listener::{Listener, Request};
use super::other::{self, Verdict};
use super::paths::Done;
use crate::caller;
use crate::command::is_quick;
use crate::kernel::Kernel;
use crate::root::Root;
use crate::trace;
use crate::user::UserAddr;

/// What all threads that answer share.
struct Server {
    listener: Arc<Listener>,
    kernel: Kernel,
    trace: bool,
    seat: Mutex<Seat>,
    free: Condvar,
    /// Held while a descriptor is given to a caller, until it is not ours any more.
    giving: Mutex<()>,
}

/// Who receives calls. It is one thread at a time: if several did, they would take turns, and each call would wake another one up.
#[derive(Default)]
struct Seat {
    is_taken: bool,
    /// Threads that wait for it.
    waiting: usize,
    is_over: bool,
    /// Why it is over, if not for want of callers.
    error: Option<io::Error>,
}

impl Listener {
    /// Answers calls until all who could make one have ended, over the objects in a root directory. With `trace`, each call of bpf(2)
    /// becomes a line on stderr.
    ///
    /// Before Linux 6.11 it may not notice the end, and does not return.
    ///
    /// # Errors
    /// What the kernel says of the listener. Calls are ENOSYS then.
    ///
    /// # Concurrency
    /// Lookups and updates of single elements are answered one after the other. Other commands, which may have to wait or take long, keep no
    /// call from being answered: there is always a thread more than there are of those.
    pub fn serve(self, root: Root, trace: bool) -> io::Result<()> {
        self.hand_over_directly();
        let server = Server {
            listener: Arc::new(self),
            kernel: Kernel::for_others(root),
            trace,
            seat: Mutex::default(),
            free: Condvar::new(),
            giving: Mutex::default(),
        };
        thread::scope(|scope| server.work(scope));
        server.seat().error.take().map_or(Ok(()), Err)
    }
}

impl Server {
    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn giving(&self) -> MutexGuard<'_, ()> {
        self.giving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        while self.take_seat() {
            let request = loop {
                match self.listener.receive() {
                    Ok(Some(request)) if is_quick_to_answer(&request) => self.answer(&request),
                    Ok(Some(request)) => break request,
                    end => {
                        let mut seat = self.seat();
                        (seat.is_over, seat.error) = (true, end.err());
                        self.free.notify_all();
                        return;
                    }
                }
            };
            self.leave_seat(scope);
            self.answer(&request);
        }
    }

    /// Waits until nobody else receives; `false` when there is nothing more to receive.
    fn take_seat(&self) -> bool {
        let mut seat = self.seat();
        seat.waiting += 1;
        while seat.is_taken && !seat.is_over {
            seat = self.free.wait(seat).unwrap_or_else(PoisonError::into_inner);
        }
        seat.waiting -= 1;
        seat.is_taken = true;
        !seat.is_over
    }

    fn leave_seat<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut seat = self.seat();
        seat.is_taken = false;
        if seat.waiting != 0 {
            self.free.notify_one();
            return;
        }
        drop(seat);
        // If there can be no other thread, calls wait for this one.
        let _ = thread::Builder::new().spawn_scoped(scope, || self.work(scope));
    }

    fn answer(&self, request: &Request) {
        if request.number == libc::SYS_bpf {
            self.bpf(request);
        } else {
            self.other(request);
        }
    }

    /// A call that may have nothing to do with BPF.
    fn other(&self, request: &Request) {
        let waiting = &request.waiting;
        let call = || -> Option<Result<i64, Errno>> {
            Some(match other::judge(&self.kernel, request) {
                Verdict::PassOn => return None,
                Verdict::Done(Ok(Done::Value(value))) => Ok(value),
                Verdict::Done(Ok(Done::Filled(bytes, at))) => {
                    self.kernel.user.write(UserAddr(at), &bytes).map(|()| 0)
                }
                Verdict::Done(Ok(Done::File(file, flags))) => {
                    caller::give(file.into(), flags);
                    Ok(0)
                }
                Verdict::Done(Err(errno)) => Err(errno),
            })
        };
        let (called, file) = caller::with(Arc::clone(waiting), || catch(call));
        match (called.unwrap_or(Some(Err(PANICKED))), file) {
            (None, _) => waiting.pass_on(),
            (Some(Ok(_)), Some((file, flags))) => match waiting.answer_with(&file, flags) {
                Ok(_) => true,
                Err(errno) => waiting.answer(Err(errno)),
            },
            (Some(result), _) => waiting.answer(result),
        };
    }

    fn bpf(&self, request: &Request) {
        let [cmd, attr, size, ..] = request.arguments;
        let (cmd, size) = (cmd as u32, size as u32);
        let waiting = &request.waiting;
        // A caller may have closed what it was just given, and expects the last reference to be gone.
        drop(self.giving());
        let call = || {
            let shown = self.trace.then(|| self.kernel.describe(cmd, attr, size));
            // SAFETY: the invariant.
            (shown, unsafe { self.kernel.bpf(cmd, attr, size) })
        };
        let (called, file) = caller::with(Arc::clone(waiting), || catch(call));
        let (shown, result) = called.unwrap_or((None, Err(PANICKED)));
        let result = match (result, file) {
            (Ok(_), Some((file, flags))) if shown.is_none() => {
                let giving = self.giving();
                let answered = waiting.answer_with(&file, flags);
                drop(file);
                drop(giving);
                match answered {
                    Ok(_) => return,
                    Err(errno) => Err(errno),
                }
            }
            // The number is needed for the line, which comes before the caller goes on.
            (Ok(_), Some((file, flags))) => waiting.give(&file, flags),
            (result, _) => result,
        };
        if let Some(shown) = shown {
            let _ = io::stderr().write_all(trace::line(&shown, result).as_bytes());
        }
        waiting.answer(result.map(i64::from));
    }
}

/// What a caller gets when its call fails in a way that was not thought of.
const PANICKED: Errno = Errno::from_raw(libc::EIO);

fn catch<R>(body: impl FnOnce() -> R) -> thread::Result<R> {
    catch_unwind(AssertUnwindSafe(body))
}

fn is_quick_to_answer(request: &Request) -> bool {
    request.number != libc::SYS_bpf || is_quick(request.arguments[0] as u32)
}
