//! The rules of the Linux BPF array maps, as `kernel/bpf/arraymap.c` has them: creation checks,
//! memory layout, element operations, errnos and the instructions a lookup is inlined to.
//!
//! `no_std`, without `unsafe`, and without memory of its own: functions here say *where* an element
//! is and *whether* an operation is allowed; whoever owns the bytes does the copying.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod attr;
pub mod batch;
pub mod btf;
pub mod disasm;
mod errno;
pub mod gen_lookup;
pub mod helper_id;
pub mod insn;
mod layout;
pub mod map;

pub use errno::Errno;
pub use layout::{Layout, PPTR_SIZE, VALUE_OFFSET};
