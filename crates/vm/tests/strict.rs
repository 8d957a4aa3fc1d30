//! Strict mode on compiled programs: it takes what Linux 6.18 takes, and refuses what that refuses.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use bpfarray_vm::{Engine, LoadOptions, Loaded, Object, ProgramError};

fn testdata(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(folder)
}

fn load(path: &Path) -> Loaded {
    let object = Object::parse(&std::fs::read(path).unwrap()).unwrap();
    let options = LoadOptions { engine: Engine::Interp, strict: true, ..LoadOptions::default() };
    object.load(&options).unwrap()
}

#[test]
fn every_program_that_runs_in_the_kernel_is_accepted() {
    let mut accepted = 0;
    for entry in std::fs::read_dir(testdata("progs")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".bpf.o") {
            continue;
        }
        let loaded = load(&path);
        for spec in loaded.programs() {
            if let Err(ProgramError::Verify { error, log, .. }) = loaded.program(&spec.name) {
                panic!("{}, {}: {error}\n{log}", path.display(), spec.name);
            }
            accepted += 1;
        }
    }
    assert!(accepted > 200, "{accepted}");
}

#[test]
fn global_functions_are_verified_by_their_types() {
    let loaded = load(&testdata("verifier/global_functions.bpf.o"));
    assert_eq!(loaded.programs().len(), 13);
    for spec in loaded.programs() {
        let verdict = match loaded.program(&spec.name) {
            Ok(_) => "accepted",
            Err(ProgramError::Verify { .. }) => "refused",
            Err(error) => panic!("{error}"),
        };
        assert!(spec.name.ends_with(verdict), "{}: {verdict}", spec.name);
    }
}
