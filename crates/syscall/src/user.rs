//! Memory that a caller names by address, which is an allegation until it was copied.
//!
//! **Invariant.** Memory is touched in one of two ways. In the general one the kernel copies, and reports what it cannot reach:
//! with `process_vm_readv` and `process_vm_writev` on this process itself, or through a file or a pipe, see [`Scratch`]. The fast one is
//! a plain copy, done only if all bytes lie in memory that is there for as long as the calling function runs:
//!
//! 1. *the calling thread's stack, from this function's frame upwards*: the frames of active functions, which return
//!    through it;
//! 2. *writable data of the main program*: it is never unloaded;
//! 3. *the heap between its beginning and the program break*, which allocators lower only over memory that is free.
//!
//! So a pointer that is wrong gets EFAULT, by the second or first way, and no signal handler is needed. Who could break it is a
//! program that unmaps or protects part of its own stack, data or heap by hand while these are in use; it would get
//! SIGSEGV where the kernel says EFAULT. The copies are relaxed atomic accesses, for other threads may write at any
//! time. That the bytes may be *changed* at all is the promise of the caller of [`Kernel::bpf`](crate::Kernel::bpf).
//!
//! Memory of *other processes*, whose calls come through seccomp, is only touched in the general way. Their threads wait for the
//! answer meanwhile, and a number is a thread's as long as it waits: that it still does is asked after reading, before anything
//! is done with the bytes, and before writing. `docs/soundness.md` says what remains.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use bpfarray_core::Errno;

use crate::caller;
use crate::scratch::{SLOT, Scratch};

/// An address that a caller gave.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct UserAddr(pub(crate) u64);

impl UserAddr {
    pub(crate) fn is_null(self) -> bool {
        self.0 == 0
    }

    /// # Errors
    /// EFAULT past the end of the address space.
    pub(crate) fn offset(self, bytes: u64) -> Result<Self, Errno> {
        self.0.checked_add(bytes).map(Self).ok_or(Errno::EFAULT)
    }
}

/// Longer copies are made by the kernel: what the system call costs is lost in them.
const PLAIN_MAX: usize = 1024;

/// The memory of this process, as its threads give it to bpf(2), or that of the process whose call this thread answers.
#[derive(Debug)]
pub(crate) struct UserMemory {
    pid: AtomicI32,
    of_others: bool,
    scratch: Scratch,
}

impl UserMemory {
    pub(crate) fn new() -> Self {
        let memory = Self { pid: AtomicI32::new(0), of_others: false, scratch: Scratch::new() };
        // Nobody may fork while this is found out.
        program();
        memory.after_fork();
        memory
    }

    /// The memory of callers, see [`caller`].
    pub(crate) fn of_others() -> Self {
        Self { of_others: true, ..Self::new() }
    }

    /// Whether callers are other processes.
    pub(crate) fn is_of_others(&self) -> bool {
        self.of_others
    }

    /// The process has another number now.
    pub(crate) fn after_fork(&self) {
        self.pid.store(std::process::id().cast_signed(), Ordering::Relaxed);
        self.scratch.after_fork();
    }

    /// Whether this is the process that the memory is of, not one that borrowed it with `vfork`.
    pub(crate) fn is_own_process(&self) -> bool {
        self.pid.load(Ordering::Relaxed) == std::process::id().cast_signed()
    }

    /// Copies the bytes at an address.
    ///
    /// # Errors
    /// EFAULT if some of them cannot be read. `buf` may be changed in part.
    #[inline]
    pub(crate) fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result<(), Errno> {
        if self.of_others {
            return caller::read(addr.0, buf, |addr, buf| self.read_by_kernel(UserAddr(addr), buf));
        }
        if is_resident(addr, buf.len()) {
            // SAFETY: all bytes are in memory of which the invariant says that it is there.
            unsafe { copy_out(addr.0, buf) };
            return Ok(());
        }
        if buf.len() <= SLOT
            && let Some(copied) = self.scratch.read(addr.0, buf)
        {
            return copied;
        }
        self.read_by_kernel(addr, buf)
    }

    fn read_by_kernel(&self, addr: UserAddr, buf: &mut [u8]) -> Result<(), Errno> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = remote(addr, buf.len());
        let pid = self.pid();
        // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`, and checks the other address itself.
        let copied =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        self.still_waits()?;
        if copied.cast_unsigned() == buf.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Copies bytes to an address.
    ///
    /// # Errors
    /// EFAULT if some of them cannot be written; those before may have been.
    #[inline]
    pub(crate) fn write(&self, addr: UserAddr, bytes: &[u8]) -> Result<(), Errno> {
        if !self.of_others && is_resident(addr, bytes.len()) {
            // SAFETY: all bytes are in memory of which the invariant says that it is there.
            unsafe { copy_in(addr.0, bytes) };
            return Ok(());
        }
        if !self.of_others
            && bytes.len() <= SLOT
            && let Some(copied) = self.scratch.write(addr.0, bytes)
        {
            return copied;
        }
        let local =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote = remote(addr, bytes.len());
        let pid = self.pid();
        if self.of_others {
            caller::forget_ahead();
        }
        self.still_waits()?;
        // SAFETY: the kernel only reads `bytes`, and checks the other address itself.
        let copied =
            unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
        if copied.cast_unsigned() == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn pid(&self) -> i32 {
        if self.of_others { caller::tid() } else { self.pid.load(Ordering::Relaxed) }
    }

    /// # Errors
    /// ESRCH if the number of another process may be somebody else's by now.
    fn still_waits(&self) -> Result<(), Errno> {
        if self.of_others { caller::still_waits() } else { Ok(()) }
    }

    pub(crate) fn read_u32(&self, addr: UserAddr) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        self.read(addr, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// A string up to its NUL, of at most `max` bytes with it.
    ///
    /// # Errors
    /// EFAULT; `too_long` if there is no NUL among them.
    pub(crate) fn read_string(
        &self,
        addr: UserAddr,
        max: usize,
        too_long: Errno,
    ) -> Result<Vec<u8>, Errno> {
        const PAGE: u64 = 4096;
        let mut string = Vec::new();
        while string.len() < max {
            let at = addr.offset(string.len() as u64)?;
            // What lies past the page of the NUL need not be there.
            let len = ((PAGE - at.0 % PAGE) as usize).min(max - string.len());
            let start = string.len();
            string.resize(start + len, 0);
            self.read(at, &mut string[start..])?;
            if let Some(end) = string[start..].iter().position(|&byte| byte == 0) {
                string.truncate(start + end);
                return Ok(string);
            }
        }
        Err(too_long)
    }
}

fn remote(addr: UserAddr, len: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::without_provenance_mut(addr.0 as usize), iov_len: len }
}

/// Whether all bytes are in memory that is surely there.
#[inline]
fn is_resident(addr: UserAddr, len: usize) -> bool {
    if len > PLAIN_MAX {
        return false;
    }
    let Some(end) = addr.0.checked_add(len as u64) else { return false };
    let contains = |range: &Range<u64>| range.start <= addr.0 && end <= range.end;
    let frame = 0_u8;
    let frame = (&raw const frame).addr() as u64;
    let stack = stack();
    // A thread that runs on another stack for a while is not inside its own.
    if stack.contains(&frame) && frame <= addr.0 && end <= stack.end {
        return true;
    }
    let program = program();
    program.data.iter().any(contains) || contains(&(program.heap..program_break()))
}

/// The calling thread's stack.
#[inline]
fn stack() -> Range<u64> {
    thread_local! {
        static STACK: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }
    let (start, end) = STACK.get();
    if end != 0 {
        return start..end;
    }
    let found = find_stack().unwrap_or(1..1);
    STACK.set((found.start, found.end));
    found
}

fn find_stack() -> Option<Range<u64>> {
    let mut attr = MaybeUninit::uninit();
    // SAFETY: the function fills in `attr` for a thread that exists, as this one does.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attr.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut base, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: `attr` was filled in above; it is destroyed once, and not used afterwards.
    let found = unsafe {
        let found = libc::pthread_attr_getstack(attr.as_ptr(), &raw mut base, &raw mut size);
        libc::pthread_attr_destroy(attr.as_mut_ptr());
        found
    };
    let start = base.addr() as u64;
    (found == 0).then(|| start..start + size as u64)
}

#[inline]
fn program_break() -> u64 {
    // SAFETY: an increment of 0 changes nothing; glibc answers from memory.
    let end = unsafe { libc::sbrk(0) };
    if end.addr() == usize::MAX { 0 } else { end.addr() as u64 }
}

/// What was found out once about the main program.
struct Program {
    data: Vec<Range<u64>>,
    /// Where the heap begins.
    heap: u64,
}

fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let exe = fs::read_link("/proc/self/exe").unwrap_or_default();
        Program::of(&maps, &exe.to_string_lossy(), program_break())
    })
}

impl Program {
    /// The writable data of the program `exe`, with what follows each piece without a file (`.bss`), and the heap.
    fn of(maps: &str, exe: &str, heap: u64) -> Self {
        let mut program = Self { data: Vec::new(), heap };
        for (range, writable, name) in maps.lines().filter_map(parse) {
            match program.data.last_mut() {
                _ if name == "[heap]" => program.heap = range.start,
                _ if !writable => {}
                _ if !exe.is_empty() && name == exe => program.data.push(range),
                Some(last) if name.is_empty() && last.end == range.start => last.end = range.end,
                _ => {}
            }
        }
        program
    }
}

/// A line of `/proc/PID/maps`: addresses, whether one may read and write there, and what is mapped.
fn parse(line: &str) -> Option<(Range<u64>, bool, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let writable = fields.next()?.starts_with("rw");
    let name = fields.nth(3).unwrap_or_default().trim_start();
    Some((address(start)?..address(end)?, writable, name))
}

/// # Safety
/// The bytes at `addr` must be there.
#[inline]
unsafe fn copy_out(addr: u64, buf: &mut [u8]) {
    let addr = addr as usize;
    // SAFETY: (all blocks) the address is that of a byte which the caller vouches for, at a multiple of the
    // size, and all accesses to these bytes here are atomic.
    if addr.is_multiple_of(8) && buf.len().is_multiple_of(8) {
        for (at, unit) in (addr..).step_by(8).zip(buf.as_chunks_mut::<8>().0) {
            // SAFETY: as above.
            *unit = unsafe { AtomicU64::from_ptr(at as *mut u64) }
                .load(Ordering::Relaxed)
                .to_ne_bytes();
        }
    } else if addr.is_multiple_of(4) && buf.len().is_multiple_of(4) {
        for (at, unit) in (addr..).step_by(4).zip(buf.as_chunks_mut::<4>().0) {
            // SAFETY: as above.
            *unit = unsafe { AtomicU32::from_ptr(at as *mut u32) }
                .load(Ordering::Relaxed)
                .to_ne_bytes();
        }
    } else {
        for (at, byte) in (addr..).zip(buf) {
            // SAFETY: as above.
            *byte = unsafe { AtomicU8::from_ptr(at as *mut u8) }.load(Ordering::Relaxed);
        }
    }
}

/// # Safety
/// The bytes at `addr` must be there, and be the caller's to change.
#[inline]
pub(crate) unsafe fn copy_in(addr: u64, bytes: &[u8]) {
    let addr = addr as usize;
    // SAFETY: (all blocks) as in `copy_out`.
    if addr.is_multiple_of(8) && bytes.len().is_multiple_of(8) {
        for (at, unit) in (addr..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            // SAFETY: as above.
            unsafe { AtomicU64::from_ptr(at as *mut u64) }
                .store(u64::from_ne_bytes(*unit), Ordering::Relaxed);
        }
    } else if addr.is_multiple_of(4) && bytes.len().is_multiple_of(4) {
        for (at, unit) in (addr..).step_by(4).zip(bytes.as_chunks::<4>().0) {
            // SAFETY: as above.
            unsafe { AtomicU32::from_ptr(at as *mut u32) }
                .store(u32::from_ne_bytes(*unit), Ordering::Relaxed);
        }
    } else {
        for (at, byte) in (addr..).zip(bytes) {
            // SAFETY: as above.
            unsafe { AtomicU8::from_ptr(at as *mut u8) }.store(*byte, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr<T: ?Sized>(at: *const T) -> UserAddr {
        UserAddr(at.cast::<u8>().expose_provenance() as u64)
    }

    #[test]
    fn memory_of_every_kind_is_copied_both_ways() {
        static DATA: [AtomicU64; 5] = [const { AtomicU64::new(1) }; 5];
        let user = UserMemory::new();
        let mut stack = [0_u8; 40];
        let mut heap = vec![0_u8; 40];
        let mut large = vec![0_u8; 1 << 20];
        let places = [
            addr(&raw mut stack),
            addr(heap.as_mut_ptr()),
            addr(large.as_mut_ptr()),
            addr(&raw const DATA),
        ];
        for (place, at) in places.into_iter().enumerate() {
            for (offset, len) in [(0, 40), (4, 8), (8, 8), (3, 7), (4, 4), (39, 1), (40, 0)] {
                let at = at.offset(offset).unwrap();
                let bytes: Vec<u8> = (0..len).map(|byte| byte + place as u8 + 1).collect();
                user.write(at, &bytes).unwrap();
                let mut back = vec![0; bytes.len()];
                user.read(at, &mut back).unwrap();
                assert_eq!(back, bytes, "{len} bytes at {offset} in place {place}");
            }
        }
    }

    #[test]
    fn addresses_where_nothing_is_fault_and_nothing_crashes() {
        let user = UserMemory::new();
        for at in [0, 1, 4096, u64::MAX, u64::MAX - 7, 1 << 47, 0xffff_8000_0000_0000] {
            assert_eq!(user.read(UserAddr(at), &mut []), Ok(()), "no bytes are everywhere");
            assert_eq!(user.write(UserAddr(at), &[]), Ok(()));
            for len in [1, 8, 5000] {
                assert_eq!(user.read(UserAddr(at), &mut vec![0; len]), Err(Errno::EFAULT));
                assert_eq!(user.write(UserAddr(at), &vec![0; len]), Err(Errno::EFAULT));
            }
        }
        let text = addr(b"literal".as_ptr());
        assert_eq!(user.write(text, b"x"), Err(Errno::EFAULT), "constants cannot be written");
        let mut copy = [0; 7];
        user.read(text, &mut copy).unwrap();
        assert_eq!(&copy, b"literal");
    }

    #[test]
    fn the_stack_and_the_programs_data_need_no_system_call() {
        static DATA: AtomicU64 = AtomicU64::new(1);
        let local = 0_u64;
        assert!(is_resident(addr(&raw const local), 8));
        assert!(is_resident(addr(&raw const DATA), 8));
        assert!(!is_resident(UserAddr(stack().end - 4), 8), "past the end of the stack");
        assert!(!is_resident(UserAddr(stack().start), 8), "below all frames");
        std::thread::spawn(move || {
            assert!(!is_resident(addr(&raw const local).offset(0).unwrap(), PLAIN_MAX + 1));
            let own = 0_u64;
            assert!(is_resident(addr(&raw const own), 8));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn only_the_programs_own_writable_memory_counts_as_its_data() {
        let maps = "\
1000-2000 r--p 00000000 00:00 1 /bin/x y
2000-3000 rw-p 00000000 00:00 1                  /bin/x y
3000-5000 rw-p 00000000 00:00 0
6000-7000 rw-p 00000000 00:00 0                  [heap]
8000-9000 rw-p 00000000 00:00 0
9000-a000 rw-p 00000000 00:00 2                  /lib/z.so
";
        let program = Program::of(maps, "/bin/x y", 5);
        assert_eq!((program.data.len(), program.heap), (1, 0x6000));
        assert_eq!(program.data[0], 0x2000..0x5000);
        assert!(Program::of("", "", 5).data.is_empty());
    }

    #[test]
    fn strings_end_at_their_nul_and_may_end_with_their_page() {
        let user = UserMemory::new();
        let string = std::ffi::CString::new("a/b").unwrap();
        let at = addr(string.as_ptr());
        assert_eq!(user.read_string(at, 4096, Errno::E2BIG), Ok(b"a/b".to_vec()));
        assert_eq!(user.read_string(at, 3, Errno::E2BIG), Err(Errno::E2BIG));
        assert_eq!(user.read_string(UserAddr(0), 3, Errno::E2BIG), Err(Errno::EFAULT));
    }
}
