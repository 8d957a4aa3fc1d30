//! Two processes count in one map file, without locks and without losing anything.
//!
//! `cargo run --release -p bpfarray --example shared_memory`
//!
//! The file stays. Look at it from Python: `python3 examples/read_map.py /tmp/hits.map`

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use bpfarray::attr::{MapAttr, MapType};
use bpfarray::{HandleMode, Map, PercpuArray};

const HITS: u64 = 10_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        None => parent(),
        Some(path) => count(path.into()),
    }
}

/// Makes the file, counts, and lets a child count at the same time.
fn parent() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join("hits.map");
    let _ = std::fs::remove_file(&path);
    // A counter for each of 4 codes. Each CPU has its own, so that CPUs don't wait for each other.
    Map::create_file(
        &path,
        &MapAttr {
            map_type: MapType::PERCPU_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 4,
            map_name: MapAttr::name_field("hits"),
            ..MapAttr::default()
        },
    )?;

    let mut child = Command::new(std::env::current_exe()?).arg(&path).spawn()?;
    count(path.clone())?;
    if !child.wait()?.success() {
        return Err("the child failed".into());
    }

    let hits = PercpuArray::<u64>::from_map(Map::open_file(&path, HandleMode::ReadOnly)?)?;
    let sum = hits.sum(2).unwrap_or_default();
    println!("{}: {sum} hits, per CPU {:?}", path.display(), hits.values(2).unwrap_or_default());
    if sum == 2 * HITS { Ok(()) } else { Err("hits were lost".into()) }
}

fn count(path: PathBuf) -> Result<(), Box<dyn Error>> {
    let hits = PercpuArray::<u64>::from_map(Map::open_file(path, HandleMode::ReadWrite)?)?;
    for _ in 0..HITS {
        hits.add(2, 1)?;
    }
    println!("process {} is done", std::process::id());
    Ok(())
}
