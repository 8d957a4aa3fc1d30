//! Which system calls of a program are answered here: a program of classic BPF, run by the kernel before each call.
//!
//! It goes by the number of the call, and for `mmap` by its flags. A call by another convention than the processor's own (32 bits, or
//! x32) would have other numbers and structures: bpf(2) among these is ENOSYS, as on a kernel without it.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, MAP_ANONYMOUS, MAP_SHARED,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF, c_long, seccomp_data,
    sock_filter,
};

use super::paths::PATH_CALLS;

const REFUSE: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// # Kernel
/// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_AARCH64`
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// The other convention that the processor has, and its number of bpf(2).
///
/// # Kernel
/// `AUDIT_ARCH_I386`, `AUDIT_ARCH_ARM`
#[cfg(target_arch = "x86_64")]
const COMPAT: (u32, u32) = (0x4000_0003, 357);
#[cfg(target_arch = "aarch64")]
const COMPAT: (u32, u32) = (0x4000_0028, 386);

/// Calls by the x32 convention have the numbers of others, and this bit.
///
/// # Kernel
/// `__X32_SYSCALL_BIT`
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

const fn load(offset: usize) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset as u32 }
}

/// The next instruction if it is so, else the one after it.
const fn test(operation: u32, k: u32) -> sock_filter {
    sock_filter { code: (BPF_JMP | operation | BPF_K) as u16, jt: 0, jf: 1, k }
}

/// The other way round.
const fn test_not(operation: u32, k: u32) -> sock_filter {
    sock_filter { code: (BPF_JMP | operation | BPF_K) as u16, jt: 1, jf: 0, k }
}

const fn end(action: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: action }
}

const fn number(call: c_long) -> u32 {
    call as u32
}

/// Calls that are caught whatever their arguments are, the most frequent one first.
fn caught() -> impl Iterator<Item = c_long> {
    let others = [libc::SYS_bpf, libc::SYS_fstatfs, libc::SYS_mount, libc::SYS_fsopen];
    others.into_iter().chain(PATH_CALLS.iter().map(|call| call.number()))
}

/// The program. All jumps go over one instruction, which ends it.
pub(super) fn filter() -> Vec<sock_filter> {
    const NUMBER: usize = std::mem::offset_of!(seccomp_data, nr);
    const CONVENTION: usize = std::mem::offset_of!(seccomp_data, arch);
    const ARGUMENTS: usize = std::mem::offset_of!(seccomp_data, args);
    /// The lower half of `flags`; both processors have it first.
    const FLAGS: usize = ARGUMENTS + 3 * size_of::<u64>();
    let (compat, compat_bpf) = COMPAT;
    let mut program = vec![load(CONVENTION), test(BPF_JEQ, ARCH)];
    // Over the part for other conventions.
    let others = [
        test_not(BPF_JEQ, compat),
        end(REFUSE),
        load(NUMBER),
        test(BPF_JEQ, compat_bpf),
        end(REFUSE),
        end(SECCOMP_RET_ALLOW),
    ];
    program.push(sock_filter {
        code: (BPF_JMP | libc::BPF_JA) as u16,
        jt: 0,
        jf: 0,
        k: others.len() as u32,
    });
    program.extend(others);
    program.push(load(NUMBER));
    for call in caught() {
        program.extend([test(BPF_JEQ, number(call)), end(SECCOMP_RET_USER_NOTIF)]);
    }
    #[cfg(target_arch = "x86_64")]
    program.extend([test(BPF_JEQ, X32 | number(libc::SYS_bpf)), end(REFUSE)]);
    program.extend([
        test_not(BPF_JEQ, number(libc::SYS_mmap)),
        end(SECCOMP_RET_ALLOW),
        load(FLAGS),
        test(BPF_JSET, MAP_ANONYMOUS.cast_unsigned()),
        end(SECCOMP_RET_ALLOW),
        // MAP_SHARED_VALIDATE has this bit, too.
        test(BPF_JSET, MAP_SHARED.cast_unsigned()),
        end(SECCOMP_RET_USER_NOTIF),
        end(SECCOMP_RET_ALLOW),
    ]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of a call.
    fn run(arch: u32, call: u32, flags: u64) -> u32 {
        let program = filter();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let insn = program[at];
            at += 1;
            let code = u32::from(insn.code);
            let jump = |taken| usize::from(if taken { insn.jt } else { insn.jf });
            if code == BPF_LD | BPF_W | BPF_ABS {
                loaded = match insn.k {
                    0 => call,
                    4 => arch,
                    40 => flags as u32,
                    other => panic!("offset {other}"),
                };
            } else if code == BPF_JMP | libc::BPF_JA {
                at += insn.k as usize;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += jump(loaded == insn.k);
            } else if code == BPF_JMP | BPF_JSET | BPF_K {
                at += jump(loaded & insn.k != 0);
            } else {
                assert_eq!(code, BPF_RET | BPF_K);
                return insn.k;
            }
        }
    }

    #[test]
    fn calls_about_bpf_are_caught_and_no_others() {
        for call in caught() {
            assert_eq!(run(ARCH, number(call), 0), SECCOMP_RET_USER_NOTIF);
        }
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_seccomp, libc::SYS_exit_group] {
            assert_eq!(run(ARCH, number(call), 0), SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn mappings_are_caught_if_they_are_shared_and_of_a_file() {
        let of = |flags: i32| run(ARCH, number(libc::SYS_mmap), flags as u64);
        assert_eq!(of(MAP_SHARED), SECCOMP_RET_USER_NOTIF);
        assert_eq!(of(libc::MAP_SHARED_VALIDATE | libc::MAP_FIXED), SECCOMP_RET_USER_NOTIF);
        assert_eq!(of(MAP_SHARED | MAP_ANONYMOUS), SECCOMP_RET_ALLOW);
        assert_eq!(of(libc::MAP_PRIVATE), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn bpf_by_another_convention_is_refused() {
        let (arch, bpf) = COMPAT;
        assert_eq!(run(arch, bpf, 0), REFUSE);
        assert_eq!(run(arch, number(libc::SYS_bpf), 0), SECCOMP_RET_ALLOW);
        assert_eq!(run(1, 0, 0), REFUSE, "no processor's convention");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(ARCH, X32 | number(libc::SYS_bpf), 0), REFUSE);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(ARCH, X32, 0), SECCOMP_RET_ALLOW);
    }
}
