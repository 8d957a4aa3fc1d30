//! The live kernel's bpf(2), and comparisons of this workspace's crates with it.
//!
//! [`Kernel::available`] tells whether there is a kernel to ask. [`Map`], [`Prog`] and [`Btf`] are the
//! kernel's objects; their errors are the kernel's own error numbers. [`compare`] asks the kernel
//! and our crates the same random questions, [`record`] writes down what the kernel answered,
//! and [`replay`] compares our crates with that, without a kernel.

mod attr;
mod btf;
pub mod compare;
pub mod corpus;
mod create;
pub mod door;
mod events;
pub mod flows;
pub mod gen_lookup;
pub mod helpers;
pub mod hostile;
pub mod inputs;
pub mod isa;
mod kernel;
mod kernel_program;
mod kernel_side;
pub mod loops;
pub mod measure;
pub mod objects;
pub mod ops;
mod our_program;
mod ours;
mod perf_ring;
pub mod programs;
pub mod race;
pub mod random;
pub mod ranges;
pub mod record;
pub mod replay;
mod request;
mod rng;
mod subject;
mod sys;
mod text;
mod value_type;
pub mod vectors;
pub mod xlated;

pub use attr::{MapInfo, ProgLoad, TestRun, TestRunResult};
pub use create::MapCreate;
pub use kernel::{Kernel, Unavailable, possible_cpus};
pub use our_program::Form;
pub use request::{Created, Creator, Request};
pub use rng::Rng;
pub use sys::{Btf, LoadError, Map, Prog};
