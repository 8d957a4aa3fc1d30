//! Programs and maps whose values have special fields.

use bpfarray::MapRef;
use bpfarray::btf::{FieldMask, SpecialFields};

use super::{ProgType, VerifyErrorKind as Kind};

/// Fields on which only kernel functions work, of which there are none here.
const UNAVAILABLE: FieldMask = FieldMask::GRAPH_ROOT
    .union(FieldMask::WORKQUEUE)
    .union(FieldMask::TASK_WORK)
    .union(FieldMask::RES_SPIN_LOCK);

/// Fields that program types which run anywhere in the kernel must not have in their maps.
const NOT_WHEN_TRACING: FieldMask = FieldMask::SPIN_LOCK.union(FieldMask::TIMER);

/// Checks that a program of this type may refer to a map.
///
/// # Kernel
/// `check_map_prog_compatibility`
pub(super) fn check(map: &MapRef, prog_type: ProgType) -> Result<(), Kind> {
    let name = || map.name().to_owned();
    let inner = map.inner_fields().map_or(&[][..], SpecialFields::as_slice);
    let tracing = matches!(
        prog_type,
        ProgType::KPROBE
            | ProgType::TRACEPOINT
            | ProgType::PERF_EVENT
            | ProgType::RAW_TRACEPOINT
            | ProgType::RAW_TRACEPOINT_WRITABLE
    );
    for field in map.special_fields().as_slice() {
        let mask = field.kind.mask();
        let no_lock = prog_type == ProgType::SOCKET_FILTER && mask == FieldMask::SPIN_LOCK;
        if no_lock || tracing && NOT_WHEN_TRACING.contains(mask) {
            return Err(Kind::FieldForType { map: name(), field: field.kind.name(), prog_type });
        }
    }
    let mut fields = map.special_fields().as_slice().iter().chain(inner);
    match fields.find(|field| UNAVAILABLE.contains(field.kind.mask())) {
        Some(field) => Err(Kind::FieldUnavailable { map: name(), field: field.kind.name() }),
        None => Ok(()),
    }
}
