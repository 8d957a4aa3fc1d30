//! Signals that are not for this process.
//!
//! **Invariant.** Every pointer handed to libc is to a set or a structure of this thread, initialised by the function that comes before.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::ptr::null_mut;

use libc::{SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// Those that would end this process, and that somebody may mean for a program that it watches.
const SIGNALS: [i32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGALRM, SIGTERM, SIGUSR1, SIGUSR2];

/// Signals wait until they are asked for.
pub(crate) struct Held {
    signals: libc::sigset_t,
    /// What waited before.
    before: libc::sigset_t,
}

impl Held {
    /// For this thread and those that it starts later.
    pub(crate) fn hold() -> io::Result<Self> {
        let mut held = Self { signals: set(&SIGNALS), before: set(&[]) };
        let (signals, before) = (&raw const held.signals, &raw mut held.before);
        // SAFETY: both sets are ones.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, signals, before) } {
            0 => Ok(held),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Lets a program start as if none had been held.
    pub(crate) fn not_in(&self, command: &mut Command) {
        let before = self.before;
        let restore = move || {
            // SAFETY: the set is one; nothing is written.
            match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut()) }
            {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: the closure makes a system call only.
        unsafe { command.pre_exec(restore) };
    }

    /// Waits for the next one that a process has sent; what the kernel sends to all processes of a terminal is left out.
    pub(crate) fn next_sent(&self) -> i32 {
        loop {
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: the set is one; the kernel writes one structure.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.signals, info.as_mut_ptr()) };
            // SAFETY: all bytes were zero at first, which are numbers.
            let info = unsafe { info.assume_init() };
            if signal > 0 && info.si_code <= libc::SI_USER {
                return signal;
            }
        }
    }
}

fn set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: the functions write to one set, which the first initialises.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Ends this process by a signal; if that cannot be, with the status by which shells tell of it.
pub(crate) fn end_by(signal: i32) -> ! {
    let only = set(&[signal]);
    // SAFETY: the set is one; nothing is written. The default action is no function of this program.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, null_mut());
        libc::raise(signal);
    }
    exit(128_i32.saturating_add(signal))
}
