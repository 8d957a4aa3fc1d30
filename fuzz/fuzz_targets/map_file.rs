//! Map files from anybody: opened, read, written.
#![no_main]

use std::io::Write;

use bpfarray::Map;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|data: &[u8]| {
    let Ok(fd) = memfd_create("fuzz", MemfdFlags::CLOEXEC) else { return };
    let mut file = std::fs::File::from(fd);
    let Some((&pages, header)) = data.split_first() else { return };
    if file.write_all(header).is_err() || file.set_len(u64::from(pages) << 12).is_err() {
        return;
    }
    let Ok(map) = Map::from_fd(file.into()) else { return };
    for index in [0, 1, map.max_entries() - 1, map.max_entries()] {
        let mut value = vec![0; map.user_size().min(1 << 20) as usize];
        let _ = map.lookup_elem(index, &mut value, 0);
        let _ = map.update_elem(index, &value, 0);
        let _ = map.delete_elem(index);
    }
    let _ = (map.info(), map.hash(), map.freeze());
});
