//! Linux BPF array maps with memory of their own: [`Map`] as `bpf(2)` and programs know it,
//! [`Array`] and [`PercpuArray`] for values of a Rust type, and [`Lane`]s, which hold a thread on
//! one CPU's values.
//!
//! ```
//! use bpfarray::{Array, PercpuArray};
//!
//! let limits = Array::<u32>::new(4)?;
//! limits.set(2, 1500)?;
//! assert_eq!(limits.get(2), Some(1500));
//! assert_eq!(limits.get(4), None);
//!
//! let packets = PercpuArray::<u64>::new(256)?;
//! packets.add(6, 1)?;
//! assert_eq!(packets.sum(6), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything works from any number of threads through shared references. Nobody ever gets a
//! reference to the bytes of a value: values are copied, in units of 8 bytes where they are
//! aligned.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("bpfarray needs 64-bit addresses, as BPF programs have them");

mod area;
mod array;
mod cgroup;
mod cpu;
mod directory;
mod element;
mod fields;
mod file;
mod gate;
mod index;
mod lane;
mod map;
mod mapping;
mod memory;
mod numa;
mod object;
mod percpu_array;
pub mod perf;
mod prog;
pub mod rcu;
mod slot;
mod sync;
mod window;

pub use bpfarray_core::attr;
pub use bpfarray_core::batch::{BatchError, LookupBatch, UpdateBatchError};
pub use bpfarray_core::btf;
pub use bpfarray_core::map::array::HashError;
pub use bpfarray_core::map::array_of_maps::InnerError;
pub use bpfarray_core::map::cpu_flags::CpuFlagsError;
pub use bpfarray_core::map::prog_array::{Owner, OwnerError};
pub use bpfarray_core::map::{
    DeleteError, FreezeError, HandleMode, Kind, LookupAndDeleteError, LookupError, NextKeyError,
    UpdateError,
};
pub use bpfarray_core::{Errno, Layout, VALUE_OFFSET};
pub use zerocopy;

pub use array::Array;
pub use bpfarray_core::map::mmap::MmapError;
pub use cgroup::{Cgroup, CgroupError};
pub use cpu::possible_cpus;
pub use directory::Directory;
pub use element::{Element, Integer, ShapeError};
pub use fields::{
    ElementField, ElementLock, Kptr, KptrError, TimerCallback, TimerError, TimerStart,
};
pub use file::{
    FileError, FileSlots, HeaderError, SharedLanes, count_as_writer, empty_slots_of_file,
    slots_of_file,
};
pub use lane::{InLane, Lane, synchronize};
pub use map::{Map, MapInfo, MapRef};
pub use mapping::{Mapping, MappingError};
pub use memory::{AtomicError, Memory, OutOfBounds};
pub use numa::online_nodes;
pub use object::{Object, ProgramObject};
pub use percpu_array::{CpuError, PercpuArray};
pub use perf::EventObject;
pub use prog::{Region, UnderCgroupError};
pub use window::{CPU_NUMBER_OFFSET, window_base};
