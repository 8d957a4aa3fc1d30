//! What the slots of object maps hold.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bpfarray_core::map::prog_array::Owner;

use crate::cgroup::Cgroup;
use crate::map::MapRef;
use crate::perf::EventObject;

/// A program, as a PROG_ARRAY sees it. Who runs programs gets back the type they were inserted
/// as, through [`Any`].
///
/// # Kernel
/// `struct bpf_prog`
#[doc(alias = "bpf_prog")]
pub trait ProgramObject: Any + Send + Sync {
    /// The program's id, which lookups give.
    fn id(&self) -> u32;

    /// What all programs of a map must agree in.
    fn owner(&self) -> Owner;
}

impl dyn ProgramObject {
    /// The program as the type it was inserted as.
    pub fn downcast_ref<P: ProgramObject>(&self) -> Option<&P> {
        (self as &dyn Any).downcast_ref()
    }
}

/// What a slot is to hold: what the descriptor in an update of `bpf(2)` stands for.
#[derive(Clone)]
pub enum Object {
    /// A map, for an ARRAY_OF_MAPS.
    Map(MapRef),
    /// A program, for a PROG_ARRAY.
    Program(Arc<dyn ProgramObject>),
    /// A perf event, for a PERF_EVENT_ARRAY.
    PerfEvent(Arc<dyn EventObject>),
    /// A control group, for a CGROUP_ARRAY.
    Cgroup(Cgroup),
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(map) => f.debug_tuple("Map").field(map).finish(),
            Self::Program(program) => f.debug_tuple("Program").field(&program.id()).finish(),
            Self::PerfEvent(_) => f.write_str("PerfEvent"),
            Self::Cgroup(cgroup) => f.debug_tuple("Cgroup").field(cgroup).finish(),
        }
    }
}
