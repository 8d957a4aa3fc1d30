//! What executes programs.

use std::fmt;

/// What executes programs.
///
/// ```
/// use bpfarray_vm::Engine;
/// assert_eq!(Engine::default(), if Engine::Jit.is_available() { Engine::Jit } else { Engine::Interp });
/// ```
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Engine {
    /// The interpreter: safe code, on every machine.
    Interp,
    /// Machine code, made at once when a program first needs it, and better code when it has run for a while.
    Jit,
}

impl Engine {
    /// Whether it can be had here. The JIT needs the feature `jit`, and Linux on x86-64 or aarch64.
    pub const fn is_available(self) -> bool {
        let supported = cfg!(all(
            feature = "jit",
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        ));
        matches!(self, Self::Interp) || supported
    }
}

/// The fastest that is available.
impl Default for Engine {
    fn default() -> Self {
        if Self::Jit.is_available() { Self::Jit } else { Self::Interp }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interp => "interp",
            Self::Jit => "jit",
        })
    }
}

/// How the accesses of a program are made.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct Accesses {
    /// Loads, stores and atomic operations that need no check.
    pub proven: usize,
    /// Those that are checked each time.
    pub guarded: usize,
}
