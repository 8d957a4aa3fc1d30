//! The types of values with special fields that maps are created with.

use std::sync::LazyLock;

use bpfarray_core::btf::{Btf, Kind};

/// The file in which the types are.
pub(crate) const BYTES: &[u8] = include_bytes!("../../../testdata/btf/fields.btf");

/// The types that the kernel has too; without them, maps have none.
pub(crate) static BTF: LazyLock<Option<Btf>> = LazyLock::new(|| Btf::parse(BYTES).ok());

/// The structs of which values are made.
pub(crate) const NAMES: [&str; 8] =
    ["locked", "late_lock", "timed", "locked_timer", "counted", "holder", "worker", "plain"];

/// The struct's name as it is in the list.
pub(crate) fn parse(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

/// Type id of a struct, and its size.
pub(crate) fn find(name: &str) -> Option<(u32, u32)> {
    let btf = BTF.as_ref()?;
    let id = btf.find_by_name(name, Kind::Struct)?;
    Some((id, btf.size_of(id).ok()?))
}

/// Type id of keys.
pub(crate) fn key() -> u32 {
    BTF.as_ref().and_then(|btf| btf.find_by_name("int", Kind::Int)).unwrap_or(0)
}
