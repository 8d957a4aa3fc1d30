//! Whether there is a live kernel to ask, and which one.

use std::fmt;
use std::sync::OnceLock;

use bpfarray_core::Errno;

use crate::create::MapCreate;
use crate::request::Creator;
use crate::sys::{self, Map};

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Proof that this process may create maps in the running kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(());

/// The series whose rules this workspace follows. Others differ in details.
const SERIES: &str = "6.18";

/// Why there is no live kernel to ask.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// A kernel, but one with other rules.
    #[error("Linux {0} is not of the series {SERIES}")]
    Version(String),
    /// The process may not create a map, or the system has no bpf(2).
    #[error("BPF_MAP_CREATE: {0}")]
    Create(Errno),
    /// capset(2) was refused, so maps with Spectre v1 masks cannot be had.
    #[error("capset: {0}")]
    Capset(Errno),
}

impl Kernel {
    /// Tries the kernel out: a tiny map, created with and without the capability that lets programs
    /// skip index masks.
    ///
    /// # Errors
    /// `Version`, then the first thing that was refused.
    pub fn available() -> Result<Self, Unavailable> {
        let version = version();
        if !version.split('.').take(2).eq(SERIES.split('.')) {
            return Err(Unavailable::Version(version));
        }
        let tiny = MapCreate::array(MapCreate::ARRAY, 8, 1);
        Map::create(&tiny).map_err(Unavailable::Create)?;
        Self(()).run_as(Creator::Masked, || Map::create(&tiny))?.map_err(Unavailable::Create)?;
        Ok(Self(()))
    }

    /// Runs `f` with the rights of `creator`, on a thread of its own unless those are all.
    ///
    /// # Errors
    /// `Capset` when the thread could not give capabilities up.
    pub fn run_as<T: Send>(
        self,
        creator: Creator,
        f: impl FnOnce() -> T + Send,
    ) -> Result<T, Unavailable> {
        let without = match creator {
            Creator::Trusted => return Ok(f()),
            Creator::Masked => CAP_SYS_ADMIN | CAP_PERFMON,
            Creator::Nobody => CAP_SYS_ADMIN | CAP_PERFMON | CAP_BPF,
        };
        std::thread::scope(|s| {
            let thread = s.spawn(|| sys::drop_capabilities(without).map(|()| f()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .map_err(Unavailable::Capset)
    }

    /// Whether creating a map takes a capability at all on this system.
    pub fn restricts_creation(self) -> bool {
        std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled")
            .is_ok_and(|s| s.trim() != "0")
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} with {} possible CPUs", version(), possible_cpus())
    }
}

/// The running kernel's version, without what its builder appended.
fn version() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().split('-').next().unwrap_or_default().to_owned()
}

/// Number of possible CPUs, as per-CPU values are copied.
pub fn possible_cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| {
        let list = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
        // Without the list, more than any kernel is built for: buffers come out too long, never too
        // short.
        count_cpus(list.trim()).unwrap_or(8192)
    })
}

/// Counts a list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(count + (last + 1).checked_sub(first)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted_not_measured() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-1"), Some(2));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus(""), None);
    }
}
