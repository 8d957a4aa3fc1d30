//! The BPF objects in the repository are, byte for byte, what clang makes of their sources. Where
//! clang-19 or libbpf's headers are missing, the test counts as ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

use libtest_mimic::{Arguments, Failed, Trial};

const NAME: &str = "objects_are_what_clang_makes_of_their_sources";
const TOOLS: [&str; 2] = ["clang-19", "llvm-strip-19"];
const HEADERS: &str = "/usr/include/bpf/bpf_helpers.h";
const FOLDERS: [&str; 6] = [
    "crates/cli/tests/data",
    "crates/oracle/benches",
    "examples",
    "testdata/elf",
    "testdata/progs",
    "testdata/verifier",
];

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let trial = match missing() {
        None => Trial::test(NAME, rebuild),
        Some(what) => {
            // A runner that only lists the tests parses what is printed.
            if !args.list {
                eprintln!("SKIPPED (no {what}): {NAME}");
            }
            Trial::test(NAME, move || Err(format!("no {what}").into())).with_ignored_flag(true)
        }
    };
    libtest_mimic::run(&args, vec![trial]).exit_code()
}

fn missing() -> Option<&'static str> {
    TOOLS
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").output().is_err())
        .or_else(|| (!Path::new(HEADERS).exists()).then_some(HEADERS))
}

fn rebuild() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rebuild");
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&fresh)?,
    }

    let status = Command::new(root.join("testdata/build-bpf")).arg(&fresh).status()?;
    if !status.success() {
        return Err(format!("testdata/build-bpf: {status}").into());
    }

    let built = objects(&fresh)?;
    let mut kept = BTreeMap::new();
    for folder in FOLDERS {
        kept.append(&mut objects(&root.join(folder))?);
    }
    let names = built.keys().chain(kept.keys()).collect::<BTreeSet<_>>();
    let mut stale = Vec::new();
    for name in names {
        match (built.get(name), kept.get(name)) {
            (Some(_), None) => stale.push(format!("{name:?} is not in the repository")),
            (None, Some(_)) => stale.push(format!("{name:?} has no source")),
            (Some(built), Some(kept)) if fs::read(built)? != fs::read(kept)? => {
                stale.push(format!("{name:?} is not what its source makes"));
            }
            _ => {}
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("{}\nrun testdata/build-bpf", stale.join("\n")).into())
}

/// The objects of a folder by file name.
fn objects(folder: &Path) -> io::Result<BTreeMap<OsString, PathBuf>> {
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "o") {
            objects.insert(entry.file_name(), entry.path());
        }
    }
    Ok(objects)
}
