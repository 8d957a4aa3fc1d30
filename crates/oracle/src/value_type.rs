//! The types of values with special fields that maps are created with.

use std::sync::LazyLock;

use bpfarray_core::btf::{Btf, Kind};

/// The file in which the types are.
pub(crate) const BYTES: &[u8] = include_bytes!("../../../testdata/btf/fields.btf");

/// The types that the kernel has too.
pub(crate) static BTF: LazyLock<Btf> = LazyLock::new(|| {
    Btf::parse(BYTES).unwrap_or_else(|why| panic!("testdata/btf/fields.btf: {why}"))
});

/// The structs of which values are made.
pub(crate) const NAMES: [&str; 8] =
    ["locked", "late_lock", "timed", "locked_timer", "counted", "holder", "worker", "plain"];

/// The struct's name as it is in the list.
pub(crate) fn parse(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

/// Type id of a struct, and its size.
pub(crate) fn find(name: &str) -> Option<(u32, u32)> {
    let id = BTF.find_by_name(name, Kind::Struct)?;
    Some((id, BTF.size_of(id).ok()?))
}

/// Type id of keys.
pub(crate) fn key() -> u32 {
    BTF.find_by_name("int", Kind::Int).unwrap_or(0)
}
