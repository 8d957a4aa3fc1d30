//! BPF programs outside the kernel: load clang's objects, verify them, run them on [`bpfarray`] maps.
//!
//! ```
//! use bpfarray_vm::{Context, LoadOptions, Object, ProgType};
//!
//! let object = Object::parse(&std::fs::read("../../examples/packet_count.bpf.o")?)?;
//! let loaded = object.load(&LoadOptions::default())?;
//! let program = loaded.program("count_packets")?;
//!
//! let packet = [0_u8; 64];
//! let mut context = Context::new(ProgType::XDP, &packet, None)?;
//! assert_eq!(program.run(&mut context)?.retval(), 2); // XDP_PASS
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An object passes through [`Object::parse`] (ELF, BTF, relocations), [`Object::load`] (maps), and
//! [`Loaded::program`] (verification, translation). A program runs on any number of threads at once;
//! whatever it does wrong ends the run with a [`Fault`] that names the instruction.

// What only generated code needs.
#![cfg_attr(not(feature = "jit"), allow(dead_code, unused_imports))]

pub mod context;
mod core_reloc;
mod digest;
pub mod elf;
mod engine;
pub mod fault;
pub mod helper;
mod interp;
mod iter;
#[cfg(feature = "jit")]
mod jit;
#[cfg(not(feature = "jit"))]
#[path = "no_jit.rs"]
mod jit;
mod loaded;
pub mod prog_type;
mod program;
mod region;
mod source;
mod verify;
mod xlate;

pub use context::Context;
pub use digest::prog_hash;
pub use elf::{LoadError, Object};
pub use engine::{Accesses, Engine};
pub use fault::Fault;
pub use helper::HelperSet;
pub use interp::DEFAULT_FUEL;
pub use iter::{IterError, MapElemIter};
pub use loaded::{LoadObjectError, LoadOptions, Loaded, MapError, MapErrorKind, is_gpl_compatible};
pub use prog_type::ProgType;
pub use program::{Outcome, Profile, Program, ProgramError, SourceLine};
pub use source::ProgramSource;
pub use verify::{LogLevel, Rule, VerifyError, VerifyErrorKind};
pub use xlate::XlateError;

/// The README's example is a test too.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
