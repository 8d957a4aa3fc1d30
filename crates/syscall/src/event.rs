//! Perf events for output of programs: what opens them, and what their descriptors do.
//!
//! An event is a ring file and a pipe of the root directory. A descriptor is an open end of the pipe, with a shared `flock`
//! as every reference, so it can be polled, duplicated, inherited and passed on. A mapping is one of the ring file. Who
//! writes a record makes the pipe readable.
//!
//! **Invariant.** The one mapping made here is of a ring, at an address that the kernel picks or the caller names as to `mmap`, whose
//! promise it is, as it is that the memory may be written in which results go.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bpfarray::perf::{PerfEventAttr, Sample, SharedRing, SharedRingAttr, Wakeup};
use bpfarray::{Directory, HandleMode, possible_cpus};
use bpfarray_core::Errno;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use rustix::time::{ClockId, clock_gettime};

use crate::attr::check_tail;
use crate::file::proc_path;
use crate::kernel::Kernel;
use crate::references::is_open;
use crate::root::{Locked, Root, errno, open_as, refer};
use crate::user::UserAddr;

/// The directory of perf events.
pub(crate) const EVENTS: &str = "perf-event";
/// What the name of an event's pipe ends with.
const SIGNAL: &str = ".signal";

const PAGE: u64 = 4096;

/// Bytes of `struct perf_event_attr` in its first version, and in Linux 6.18.
const ATTR_SIZE_VER0: u32 = 64;
const ATTR_SIZE: u32 = 136;

const FLAG_PID_CGROUP: u64 = 4;
const FLAG_FD_CLOEXEC: u64 = 8;
const FLAGS: u64 = 15;

const SAMPLES: u64 = (1 << 25) - 1;
const READ_FORMATS: u64 = (1 << 5) - 1;

/// Bits of the block's flags.
mod bit {
    pub(super) const DISABLED: u64 = 1;
    pub(super) const INHERIT: u64 = 1 << 1;
    pub(super) const FREQ: u64 = 1 << 10;
    pub(super) const WATERMARK: u64 = 1 << 14;
    pub(super) const SAMPLE_ID_ALL: u64 = 1 << 18;
    /// Those that Linux knows.
    pub(super) const ALL: u64 = (1 << 38) - 1;
    /// Those that change nothing for output of programs: pinned, exclusive, the `exclude` ones, `inherit_stat`,
    /// `enable_on_exec`, `precise_ip` and `sample_id_all`.
    pub(super) const IDLE: u64 = 0xfc | 1 << 11 | 1 << 12 | 3 << 15 | SAMPLE_ID_ALL | 0xf << 19;
}

/// Requests to descriptors of events.
mod request {
    pub(super) const ENABLE: u32 = 0x2400;
    pub(super) const DISABLE: u32 = 0x2401;
    pub(super) const REFRESH: u32 = 0x2402;
    pub(super) const RESET: u32 = 0x2403;
    pub(super) const ID: u32 = 0x8008_2407;
    pub(super) const PAUSE_OUTPUT: u32 = 0x4004_2409;
}

/// Set once a descriptor of an event was met, so that others need not be looked at before.
static ANY: AtomicBool = AtomicBool::new(false);

/// A caller's `struct perf_event_attr`, with zeroes where it is shorter than ours.
struct Block([u8; ATTR_SIZE as usize]);

impl Block {
    fn u32(&self, offset: usize) -> u32 {
        self.u64(offset) as u32
    }

    fn u64(&self, offset: usize) -> u64 {
        let field = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        field.map_or(0, |field| u64::from_le_bytes(*field))
    }

    fn flags(&self) -> u64 {
        self.u64(40)
    }

    /// Refuses what the kernel refuses, and then what rings here don't have.
    ///
    /// # Kernel
    /// `perf_copy_attr`, `perf_event_open`
    fn check(&self) -> Result<(), Errno> {
        const RESERVED: [usize; 5] = [110, 111, 117, 118, 119];
        let is_known = |offset, known: u64| self.u64(offset) & !known == 0;
        let is_reserved_set = RESERVED.iter().any(|&at| self.0.get(at) != Some(&0));
        if is_reserved_set
            || !is_known(40, bit::ALL)
            || !is_known(24, SAMPLES)
            || !is_known(32, READ_FORMATS)
        {
            return Err(Errno::EINVAL);
        }
        if self.flags() & bit::FREQ == 0 && self.u64(16) >> 63 != 0 {
            return Err(Errno::EINVAL);
        }
        let done = bit::DISABLED | bit::INHERIT | bit::WATERMARK | bit::IDLE;
        // With `sample_id_all`, reports of losses have the fields of the others, too.
        let has_more =
            self.flags() & bit::SAMPLE_ID_ALL != 0 && self.u64(24) != Sample::RAW.bits().into();
        if !is_known(24, Sample::all().bits().into()) || !is_known(40, done) || has_more {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(())
    }

    fn wakeup(&self) -> Wakeup {
        let number = self.u32(48);
        if self.flags() & bit::WATERMARK != 0 {
            Wakeup::Watermark(number)
        } else {
            Wakeup::Events(number)
        }
    }
}

impl Root {
    /// The file of a perf event.
    pub(crate) fn event(&self, id: u32) -> PathBuf {
        self.path().join(EVENTS).join(id.to_string())
    }

    /// The pipe of a perf event, which descriptors of it have open.
    pub(crate) fn signal(&self, id: u32) -> PathBuf {
        self.path().join(EVENTS).join(format!("{id}{SIGNAL}"))
    }

    /// The perf event whose pipe a path names.
    pub(crate) fn event_of_signal(&self, path: &Path) -> Option<u32> {
        let name = path.strip_prefix(self.path()).ok()?.strip_prefix(EVENTS).ok()?;
        name.to_str()?.strip_suffix(SIGNAL)?.parse().ok()
    }
}

impl Locked<'_> {
    /// An id that no perf event had before. Removes events that nobody refers to every few times.
    ///
    /// # Errors
    /// ENOSPC after 2³¹ - 2 of them.
    pub(crate) fn next_event_id(&self) -> Result<u32, Errno> {
        const COUNTER: u64 = 32;
        const SWEEP_EVERY: u32 = 16;
        let mut last = [0; 4];
        let last = match self.ids.read_exact_at(&mut last, COUNTER) {
            Ok(()) => u32::from_le_bytes(last),
            Err(_) => 0,
        };
        let id = last.checked_add(1).filter(|&id| id < i32::MAX.cast_unsigned());
        let id = id.ok_or(Errno::ENOSPC)?;
        self.ids.write_all_at(&id.to_le_bytes(), COUNTER).map_err(|error| errno(&error))?;
        if id.is_multiple_of(SWEEP_EVERY) {
            self.sweep_events()?;
        }
        Ok(id)
    }
}

/// Whether a descriptor is one of a pipe. Nothing is allocated for most answers, as signal handlers may poll.
fn is_pipe(fd: RawFd) -> bool {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills it in if it gives 0.
    unsafe {
        libc::fstat(fd, found.as_mut_ptr()) == 0
            && found.assume_init().st_mode & libc::S_IFMT == libc::S_IFIFO
    }
}

impl Kernel {
    /// Does what `perf_event_open` does where it asks for output of programs on one CPU, with `attr` the address of a
    /// `perf_event_attr`. `None` for all other events, and for addresses and flags that the system refuses just as well.
    ///
    /// # Errors
    /// E2BIG for a size that is none, which is then replaced, or bytes past the known ones; EINVAL; ENOSPC; EOPNOTSUPP for
    /// records of more than what programs write, and for records of other happenings.
    ///
    /// # Safety
    /// As [`Kernel::bpf`].
    ///
    /// # Kernel
    /// `perf_event_open`
    pub unsafe fn perf_event_open(
        &self,
        attr: u64,
        pid: i32,
        cpu: i32,
        group_fd: i32,
        flags: u64,
    ) -> Option<Result<RawFd, Errno>> {
        let mut start = [0; 16];
        let is_refused = flags & !FLAGS != 0 || flags & FLAG_PID_CGROUP != 0;
        if pid != -1 || group_fd != -1 || is_refused {
            return None;
        }
        self.user.read(UserAddr(attr), &mut start).ok()?;
        let [kind, size, config, high] = *start.as_chunks::<4>().0 else { return None };
        let number = u32::from_le_bytes;
        let is_output = number(kind) == PerfEventAttr::TYPE_SOFTWARE
            && (number(config), number(high)) == (PerfEventAttr::SW_BPF_OUTPUT as u32, 0);
        is_output.then(|| {
            let block = self.copy_event_attr(UserAddr(attr), number(size))?;
            block.check()?;
            let cpu = u32::try_from(cpu).ok().filter(|&cpu| cpu < possible_cpus());
            self.open_event(&block, cpu.ok_or(Errno::EINVAL)?, flags & FLAG_FD_CLOEXEC != 0)
        })
    }

    /// # Kernel
    /// `perf_copy_attr`
    fn copy_event_attr(&self, addr: UserAddr, size: u32) -> Result<Block, Errno> {
        let size = if size == 0 { ATTR_SIZE_VER0 } else { size };
        let too_big = || {
            self.user.write(addr.offset(4)?, &ATTR_SIZE.to_le_bytes())?;
            Err(Errno::E2BIG)
        };
        if size < ATTR_SIZE_VER0 {
            return too_big();
        }
        match check_tail(&self.user, addr, size, ATTR_SIZE as usize) {
            Err(Errno::E2BIG) => return too_big(),
            other => other?,
        }
        let mut block = Block([0; ATTR_SIZE as usize]);
        self.user.read(addr, &mut block.0[..size.min(ATTR_SIZE) as usize])?;
        Ok(block)
    }

    fn open_event(&self, block: &Block, cpu: u32, cloexec: bool) -> Result<RawFd, Errno> {
        let locked = self.lock()?;
        let id = locked.next_event_id()?;
        let now = clock_gettime(ClockId::Monotonic);
        let attr = SharedRingAttr {
            id,
            cpu,
            inherit: block.flags() & bit::INHERIT != 0,
            sample: Sample::from_bits_truncate(block.u32(24)),
            wakeup: block.wakeup(),
            since: (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64),
        };
        let (path, signal) = (self.root.event(id), self.root.signal(id));
        let from = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
        // In this order: what is left of an event whose process dies here is found by its file.
        SharedRing::create(path, &attr).map_err(|error| errno(&error))?;
        mknodat(CWD, &signal, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(from)?;
        let file = open_as(&signal, HandleMode::ReadWrite)?;
        refer(&file)?;
        let ring = self.listing.open_event(id).map_err(|error| errno(&error))?;
        ring.set_enabled(block.flags() & bit::DISABLED == 0);
        drop((ring, locked));
        if !cloexec {
            fcntl_setfd(&file, FdFlags::empty()).map_err(from)?;
        }
        ANY.store(true, Ordering::Relaxed);
        Ok(self.install(file, None))
    }

    /// The event behind a descriptor.
    pub(crate) fn event_behind(&self, fd: RawFd) -> Option<u32> {
        if !is_pipe(fd) {
            return None;
        }
        let id = self.root.event_of_signal(&fs::read_link(proc_path(fd)).ok()?)?;
        ANY.store(true, Ordering::Relaxed);
        Some(id)
    }

    /// Whether a descriptor is one of an event with a ring. `poll` is to report such a descriptor once for each wake-up, after which
    /// [`Kernel::take_wakeup`] has to be called.
    pub fn is_event(&self, fd: RawFd) -> bool {
        ANY.load(Ordering::Relaxed) && self.event_behind(fd).is_some()
    }

    /// Makes the descriptor of an event one that is not readable, until the next wake-up.
    ///
    /// # Kernel
    /// `perf_poll`
    #[doc(alias = "perf_poll")]
    pub fn take_wakeup(&self, fd: RawFd) {
        // An open file of its own, for the program may have made its one wait.
        let mut options = File::options();
        let pipe = options.read(true).custom_flags(libc::O_NONBLOCK).open(proc_path(fd));
        let mut bytes = [0; PAGE as usize];
        // There is one byte at most, but for what others wrote.
        let _ = pipe.and_then(|mut pipe| pipe.read(&mut bytes));
    }

    /// Does what `ioctl` of an event's descriptor does; `None` for other descriptors and requests.
    ///
    /// # Errors
    /// EINVAL for `PERF_EVENT_IOC_PAUSE_OUTPUT` without a ring; EFAULT; what the system says.
    ///
    /// # Safety
    /// As `ioctl`: where the request says, results may be written.
    ///
    /// # Kernel
    /// `_perf_ioctl`
    #[doc(alias = "_perf_ioctl")]
    pub unsafe fn event_ioctl(
        &self,
        fd: RawFd,
        request: u32,
        argument: u64,
    ) -> Option<Result<i32, Errno>> {
        let id = self.event_behind(fd)?;
        let with_ring = |body: &dyn Fn(&SharedRing) -> Result<(), Errno>| {
            body(&self.listing.open_event(id).map_err(|error| errno(&error))?)
        };
        let enable = |enabled| {
            with_ring(&|ring| {
                ring.set_enabled(enabled);
                Ok(())
            })
        };
        let result = match request {
            request::ENABLE | request::REFRESH => enable(true),
            request::DISABLE => enable(false),
            request::RESET => Ok(()),
            request::ID => self.user.write(UserAddr(argument), &u64::from(id).to_le_bytes()),
            request::PAUSE_OUTPUT => with_ring(&|ring| {
                if ring.set_paused(argument as u32 != 0) { Ok(()) } else { Err(Errno::EINVAL) }
            }),
            _ => return None,
        };
        Some(result.map(|()| 0))
    }

    /// Does what `mmap` of an event's descriptor does; `None` for other descriptors.
    ///
    /// # Safety
    /// As `mmap`.
    ///
    /// # Kernel
    /// `perf_mmap`
    pub(crate) unsafe fn mmap_event(
        &self,
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Option<Result<u64, Errno>> {
        let id = self.event_behind(fd)?;
        let map = || {
            if prot & libc::PROT_EXEC != 0 {
                return Err(Errno::EPERM);
            }
            if flags & libc::MAP_TYPE == libc::MAP_PRIVATE || offset != 0 || len == 0 {
                return Err(Errno::EINVAL);
            }
            let pages = u32::try_from(len.div_ceil(PAGE)).map_err(|_| Errno::ENOMEM)?;
            let path = self.root.event(id);
            let _locked = self.lock()?;
            let ring = self.listing.open_event(id).map_err(|error| errno(&error))?;
            let is_mapped = is_open(&path)?;
            if is_mapped && ring.pages() != pages {
                return Err(Errno::EINVAL);
            }
            if !is_mapped {
                let overwrites = prot & libc::PROT_WRITE == 0;
                ring.allocate(pages, overwrites).map_err(|error| error.errno())?;
            }
            // An opening of its own: the reference lasts as long as the mapping.
            let file = open_as(&path, HandleMode::ReadWrite)?;
            refer(&file)?;
            let at = std::ptr::without_provenance_mut(addr as usize);
            let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
            let prot = ProtFlags::from_bits_retain(prot.cast_unsigned());
            let flags = MapFlags::from_bits_retain(flags.cast_unsigned());
            let from = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
            // SAFETY: without MAP_FIXED the kernel picks an unused place; with it, the caller promises that
            // nothing there is needed. No Rust reference is made to the mapping.
            let mapped = unsafe { mmap(at, len, prot, flags, &file, PAGE) }.map_err(from)?;
            // SAFETY: the mapping that was just made; the advice changes nothing for this process.
            let _ = unsafe { madvise(mapped, len, Advice::LinuxDontFork) };
            Ok(mapped.addr() as u64)
        };
        Some(map())
    }
}

/// Opens a perf event for programs of this process.
pub(crate) fn open(root: &Root, directory: &Arc<dyn Directory>, id: u32) -> io::Result<SharedRing> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let signal = options.open(root.signal(id))?;
    if !signal.metadata()?.file_type().is_fifo() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    SharedRing::open(directory, root.event(id), signal)
}
