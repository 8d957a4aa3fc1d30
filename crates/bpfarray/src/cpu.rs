//! CPUs: how many there can be, and which one this thread runs on.
//!
//! **Invariant.** The only memory read here is the rseq area of the calling thread, which glibc
//! registered with the kernel at `__rseq_offset` from the thread pointer and keeps for the thread's
//! life. glibc says in `__rseq_size` whether it did; where it did not, libc is asked instead. The
//! answer is a hint that may be outdated as soon as it is given, so nothing may depend on it for
//! safety.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Number of CPUs the machine can ever have: the highest possible CPU number plus one.
///
/// # Kernel
/// `num_possible_cpus`, or rather `nr_cpu_ids`
#[doc(alias = "num_possible_cpus")]
#[doc(alias = "nr_cpu_ids")]
#[inline]
pub fn possible_cpus() -> u32 {
    static COUNT: OnceLock<u32> = OnceLock::new();
    *COUNT.get_or_init(|| {
        std::fs::read_to_string("/sys/devices/system/cpu/possible")
            .ok()
            .and_then(|list| parse_cpu_list(&list))
            .unwrap_or_else(configured_cpus)
    })
}

/// One more than the highest number in a list such as `0-3,8-11`.
fn parse_cpu_list(list: &str) -> Option<u32> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

fn configured_cpus() -> u32 {
    // SAFETY: sysconf takes no pointers.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// The CPU this thread runs on, or ran on a moment ago.
#[cfg(not(loom))]
#[inline]
pub(crate) fn current_cpu() -> u32 {
    rseq::cpu_id().unwrap_or_else(|| {
        // SAFETY: sched_getcpu takes no pointers. A failure gives -1, a CPU that does not exist.
        unsafe { libc::sched_getcpu() as u32 }
    })
}

#[cfg(all(not(loom), target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod rseq {
    use std::sync::atomic::{AtomicIsize, AtomicU32, Ordering};

    /// Offset of `cpu_id` in `struct rseq`.
    const CPU_ID: isize = 4;

    /// Offset of the area from the thread pointer: a multiple of 4, or one of the two numbers below.
    static OFFSET: AtomicIsize = AtomicIsize::new(UNKNOWN);
    /// glibc was not asked yet.
    const UNKNOWN: isize = 1;
    /// There is no area.
    const NONE: isize = 2;

    /// Reads the CPU number that the kernel keeps up to date for this thread, if it does.
    #[inline]
    pub(super) fn cpu_id() -> Option<u32> {
        let mut offset = OFFSET.load(Ordering::Relaxed);
        if offset % 4 != 0 {
            offset = ask()?;
        }
        // SAFETY: a multiple of 4 is what glibc gave. It says that each thread has an rseq area `offset`
        // bytes from its thread pointer, 4-byte aligned and at least 32 bytes long; only the kernel writes to it.
        let cpu_id = unsafe {
            AtomicU32::from_ptr(thread_pointer().offset(offset + CPU_ID).cast())
                .load(Ordering::Relaxed)
        };
        // Threads that the kernel refused to register have a negative number there.
        i32::try_from(cpu_id).ok().map(|_| cpu_id)
    }

    /// Asks glibc where the area is, if nobody did yet.
    #[cold]
    fn ask() -> Option<isize> {
        if OFFSET.load(Ordering::Relaxed) == NONE {
            return None;
        }
        let offset = area_offset().filter(|offset| offset % 4 == 0);
        // Others that ask at the same time are told the same.
        OFFSET.store(offset.unwrap_or(NONE), Ordering::Relaxed);
        offset
    }

    fn area_offset() -> Option<isize> {
        // SAFETY: dlsym gets NUL-terminated names and gives null or the address of the symbol,
        // which glibc defines as `const unsigned int` and `const ptrdiff_t`.
        unsafe {
            let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
            let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
            (!size.is_null() && !offset.is_null() && *size != 0).then(|| *offset)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn thread_pointer() -> *mut u8 {
        let pointer: *mut u8;
        // SAFETY: the x86-64 ABI keeps the thread pointer at the address it points to, fs:0.
        unsafe {
            std::arch::asm!(
                "mov {}, qword ptr fs:[0]",
                out(reg) pointer,
                options(nostack, preserves_flags, readonly, pure)
            );
        }
        pointer
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    fn thread_pointer() -> *mut u8 {
        let pointer: *mut u8;
        // SAFETY: reading the thread pointer's register changes nothing.
        unsafe {
            std::arch::asm!(
                "mrs {}, tpidr_el0",
                out(reg) pointer,
                options(nostack, preserves_flags, nomem, pure)
            );
        }
        pointer
    }
}

#[cfg(all(
    not(loom),
    not(all(target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))
))]
mod rseq {
    pub(super) fn cpu_id() -> Option<u32> {
        None
    }
}

/// Models have no CPUs; their threads say which lane they would like.
#[cfg(loom)]
pub(crate) fn current_cpu() -> u32 {
    0
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_end_with_the_highest_cpu() {
        assert_eq!(parse_cpu_list("0\n"), Some(1));
        assert_eq!(parse_cpu_list("0-1\n"), Some(2));
        assert_eq!(parse_cpu_list("0,2-3,9\n"), Some(10));
        assert_eq!(parse_cpu_list("\n"), None);
        assert_eq!(parse_cpu_list("4294967295"), None);
    }

    #[test]
    fn a_pinned_thread_runs_on_its_cpu() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            for cpu in (0..possible_cpus()).filter(|&cpu| allowed.is_set(cpu as usize)) {
                let mut only = rustix::thread::CpuSet::new();
                only.set(cpu as usize);
                rustix::thread::sched_setaffinity(None, &only).unwrap();
                assert_eq!(current_cpu(), cpu);
            }
        })
        .join()
        .unwrap();
    }
}
