//! Running a program that was written for the kernel's bpf(2).

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bpfarray_syscall::{ROOT_VARIABLE, Root};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::args::ExecArgs;
use crate::error::{Error, InFile, Kind};
use crate::supervise::supervise;

const LIBRARY: &str = "libbpfarray_preload.so";

/// Names the library, in the environment.
const LIBRARY_VARIABLE: &str = "BPFARRAY_PRELOAD";

/// Asks the library for a line on each call.
const TRACE_VARIABLE: &str = "BPFARRAY_TRACE";

/// The dynamic loader's list of libraries that come first.
const LD_PRELOAD: &str = "LD_PRELOAD";

/// Replaces this process by the program, unless its calls would reach the kernel.
pub(crate) fn exec(args: &ExecArgs) -> Result<(), Error> {
    if args.probe {
        return probe();
    }
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(Kind::NoProgram).in_file(Path::new("exec"));
    };
    let program = find_program(name)?;
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments);
    if args.seccomp {
        return supervise(&program, command, open_root(args)?, args.trace);
    }
    check(&program)?;
    let library = find_library()?;
    let root = open_root(args)?;
    check_library(&library)?;
    command.env(LD_PRELOAD, preload_list(&library)).env(ROOT_VARIABLE, root.path());
    if args.trace {
        command.env(TRACE_VARIABLE, "1");
    }
    Err(command.exec()).in_file(&program)
}

fn open_root(args: &ExecArgs) -> Result<Root, Error> {
    let root = match &args.root {
        Some(root) => Root::open(root),
        None => Root::from_environment(),
    };
    root.map_err(Kind::Root).in_file(Path::new("exec"))
}

/// The library, and what the environment has there already.
fn preload_list(library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = env::var_os(LD_PRELOAD).filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

/// Where the shell would find the program.
fn find_program(name: &OsStr) -> Result<PathBuf, Error> {
    let given = Path::new(name);
    if name.as_bytes().contains(&b'/') {
        return Ok(given.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
    };
    let found = env::split_paths(&path).map(|directory| directory.join(given)).find(is_program);
    found.ok_or(Kind::NotInPath).in_file(given)
}

/// Refuses programs with which the dynamic loader does not load the library.
fn check(program: &Path) -> Result<(), Error> {
    let mut file = File::open(program).in_file(program)?;
    let metadata = file.metadata().in_file(program)?;
    let changes_user = metadata.permissions().mode() & 0o6000 != 0
        && metadata.uid() != rustix::process::geteuid().as_raw();
    let capabilities = rustix::fs::getxattr(program, "security.capability", &mut [0_u8; 0]);
    if changes_user || capabilities.is_ok() && !rustix::process::geteuid().is_root() {
        return Err(Kind::Privileged).in_file(program);
    }
    // Program headers follow the header in all programs that linkers make.
    let mut start = Vec::new();
    file.by_ref().take(64 << 10).read_to_end(&mut start).in_file(program)?;
    if let Some(interpreter) = interpreter(&start) {
        return check(Path::new(OsStr::from_bytes(interpreter)));
    }
    if is_dynamic(&start) { Ok(()) } else { Err(Kind::Static).in_file(program) }
}

/// The program that a script names in its first line.
fn interpreter(start: &[u8]) -> Option<&[u8]> {
    let line = start.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    line.trim_ascii().split(|&byte| byte == b' ' || byte == b'\t').next()
}

fn is_dynamic(start: &[u8]) -> bool {
    let Ok(header) = FileHeader64::<LittleEndian>::parse(start) else { return false };
    let Ok(endian) = header.endian() else { return false };
    let headers = header.program_headers(endian, start);
    headers.is_ok_and(|headers| headers.iter().any(|part| part.p_type(endian) == PT_INTERP))
}

/// The library: the one that the environment names, or else the one that came with this program.
fn find_library() -> Result<PathBuf, Error> {
    if let Some(path) = env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).in_file(Path::new(&path));
    }
    let exe = env::current_exe().in_file(Path::new("exec"))?;
    let directory = exe.parent().unwrap_or(Path::new("/"));
    let places = [directory.join(LIBRARY), directory.join("../lib").join(LIBRARY)];
    let found = places.iter().find_map(|place| fs::canonicalize(place).ok());
    found.ok_or(Kind::NoLibrary).in_file(&places[0])
}

/// Makes sure that the dynamic loader takes the library: if it cannot, it only prints a warning, and the program's
/// calls would reach the kernel.
fn check_library(library: &Path) -> Result<(), Error> {
    // The loader divides its list at these.
    if library.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
        return Err(Kind::LibraryPath).in_file(library);
    }
    let exe = env::current_exe().in_file(library)?;
    let probe = Command::new(exe)
        .args(["exec", "--probe"])
        .env(LD_PRELOAD, library)
        .env(LIBRARY_VARIABLE, library)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .in_file(library)?;
    if probe.success() { Ok(()) } else { Err(Kind::NotLoaded).in_file(library) }
}

/// Whether the library is in this process.
fn probe() -> Result<(), Error> {
    let library = env::var(LIBRARY_VARIABLE).unwrap_or_default();
    let maps = fs::read_to_string("/proc/self/maps").in_file(Path::new("/proc/self/maps"))?;
    let is_loaded = !library.is_empty() && maps.lines().any(|line| line.ends_with(&library));
    if is_loaded {
        Ok(())
    } else {
        Err(io::Error::other("not loaded")).in_file(Path::new(&library))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_run_by_the_program_in_its_first_line() {
        assert_eq!(interpreter(b"#!/bin/sh\necho"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#! /usr/bin/env python3\n"), Some(&b"/usr/bin/env"[..]));
        assert_eq!(interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn this_test_is_a_dynamic_program_and_text_is_none() {
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(is_dynamic(&own));
        assert!(!is_dynamic(b"echo"));
        assert!(!is_dynamic(&own[..40]));
    }
}
