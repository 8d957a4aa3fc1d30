//! Loading of objects: those clang made, and damaged ones.
#![allow(clippy::unwrap_used)]

mod damaged;
mod elf;
mod objects;

use std::path::{Path, PathBuf};

use bpfarray_vm::elf::Object;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

fn load(path: &str) -> Object {
    Object::parse(&read(path)).unwrap()
}

/// Every object in the repository.
fn all_objects() -> Vec<PathBuf> {
    let folders = ["examples", "testdata/elf", "testdata/progs", "testdata/core_reloc"];
    let entries = folders.into_iter().flat_map(|dir| std::fs::read_dir(root().join(dir)).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().ends_with(".bpf.o")).collect()
}
