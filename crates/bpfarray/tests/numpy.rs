//! Map files are readable without this crate: `examples/read_map.py` does it with NumPy.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, and what they share, fail by panicking"
)]

mod common;

use std::process::Command;

use bpfarray::attr::MapType;
use bpfarray::{Array, Map, PercpuArray, possible_cpus};
use common::{TempDir, attr};

#[test]
fn numpy_reads_a_map_file() {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: numpy_reads_a_map_file needs python3 with numpy (or PYTHON=...)");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/read_map.py");
    let read = |path| {
        let output = Command::new(&python).arg(script).arg(path).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let dir = TempDir::new();

    let path = dir.join("array");
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 3)).unwrap();
    let array = Array::<u64>::from_map(map).unwrap();
    array.set(1, u64::MAX).unwrap();
    assert_eq!(read(&path), format!("0: 0\n1: {}\n2: 0\n", u64::MAX));

    let path = dir.join("percpu");
    let map = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 8, 2)).unwrap();
    let percpu = PercpuArray::<u64>::from_map(map).unwrap();
    let numbers: Vec<u64> = (0..u64::from(possible_cpus())).map(|cpu| 10 + cpu).collect();
    for (cpu, &number) in numbers.iter().enumerate() {
        percpu.set(1, cpu as u32, number).unwrap();
    }
    let (zeros, sum) = (vec![0; numbers.len()], numbers.iter().sum::<u64>());
    assert_eq!(read(&path), format!("0: {zeros:?}  sum 0\n1: {numbers:?}  sum {sum}\n"));

    let path = dir.join("bytes");
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 3, 2)).unwrap();
    map.update_elem(1, &[0x41, 0, 0x42], 0).unwrap();
    assert_eq!(read(&path), "0: 000000\n1: 410042\n");
}
