//! Staying beside a program whose bpf(2) calls the kernel hands over.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, exit};
use std::thread;

use bpfarray_syscall::{Root, seccomp};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, getrlimit,
    pidfd_open, pidfd_send_signal, set_child_subreaper, setrlimit, wait,
};

use crate::error::{Error, InFile};
use crate::signals::{Held, end_by};

/// Runs a program and answers its calls, and those of all that it starts, until the last of them has ended. Then this process ends as
/// the program did.
pub(crate) fn supervise(
    path: &Path,
    mut command: Command,
    root: Root,
    trace: bool,
) -> Result<(), Error> {
    let signals = Held::hold().in_file(path)?;
    signals.not_in(&mut command);
    // Where only ancestors may access a process's memory, this one remains one.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from).in_file(path)?;
    let (child, listener) = seccomp::spawn(command).in_file(path)?;
    let pid = Pid::from_child(&child);
    let program = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).in_file(path)?;
    allow_many_files();
    thread::Builder::new().spawn(move || pass_on(&signals, &program)).in_file(path)?;
    let serve = move || {
        if let Err(error) = listener.serve(root, trace) {
            // Nobody is left to tell if this fails too.
            let _ = writeln!(io::stderr(), "bpfarray: no more calls are answered: {error}");
        }
    };
    thread::Builder::new().spawn(serve).in_file(path)?;
    end_as(wait_for_all(pid).in_file(path)?)
}

/// How the program ended, once nothing is left of all that it has started.
fn wait_for_all(program: Pid) -> io::Result<WaitStatus> {
    let mut ended = None;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((who, status))) if who == program => ended = Some(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return ended.ok_or(error.into()),
        }
    }
}

fn end_as(status: WaitStatus) -> ! {
    if let Some(signal) = status.terminating_signal() {
        // One core is enough.
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = setrlimit(Resource::Core, none);
        end_by(signal);
    }
    exit(status.exit_status().unwrap_or(1))
}

/// The program's maps are open here, too.
fn allow_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If it cannot be, there are fewer.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Hands on what somebody sends to this process. What a terminal sends, the program gets itself. Once the program has ended,
/// what it has left running loses its answers.
fn pass_on(signals: &Held, to: &OwnedFd) {
    loop {
        let number = signals.next_sent();
        let Some(signal) = Signal::from_named_raw(number) else { continue };
        if pidfd_send_signal(to, signal).is_err() {
            end_by(number);
        }
    }
}
