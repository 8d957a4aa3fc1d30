//! What several test binaries need.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bpfarray::attr::{MapAttr, MapType};

/// A directory that goes with its handle.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("bpfarray-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        Path::new(&self.0).join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr {
        map_type,
        key_size: 4,
        value_size,
        max_entries,
        map_name: MapAttr::name_field("counters"),
        ..MapAttr::default()
    }
}
