//! BTF from anybody: read, asked for sizes and special fields, and used to show a value.
#![no_main]

use bpfarray_core::btf::{Btf, SpecialFields, show};
use libfuzzer_sys::fuzz_target;

/// Takes text as long as somebody would read.
struct Screen(usize);

impl std::fmt::Write for Screen {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(std::fmt::Error)?;
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(btf) = Btf::parse(data) else { return };
    let value = &data[..data.len().min(64)];
    for id in 1..btf.len().min(64) {
        let _ = btf.size_of(id);
        let _ = SpecialFields::of(&btf, id);
        let _ = show(&btf, id, value, &mut Screen(1 << 16));
    }
});
