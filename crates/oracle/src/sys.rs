//! The system calls: bpf(2), perf_event_open(2), and capset(2) for one thread. Besides
//! [`perf_ring`](crate::perf_ring) the only file of the crate with `unsafe`.
//!
//! Invariant: whatever address is put into an attribute block for the kernel to *write* to is the
//! start of a buffer owned or exclusively borrowed by the function that makes the call, and at least
//! as long as the kernel may write for that command. How long that is depends on the map, so [`Map`]
//! takes its lengths at creation and keeps its fields private; nothing outside this file can
//! break it. Addresses the kernel only reads from need no care here: it copies what it can reach,
//! and answers EFAULT otherwise.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bpfarray::perf::PerfEventAttr;
use bpfarray_core::Errno;
use bpfarray_core::insn::{INSN_SIZE, Insn};

use crate::attr::{Attr, MapInfo, ProgLoad, TestRun, TestRunResult};
use crate::create::MapCreate;
use crate::kernel::possible_cpus;
use crate::ops::Mode;

/// Commands of bpf(2).
mod cmd {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP_ELEM: u32 = 1;
    pub(super) const MAP_UPDATE_ELEM: u32 = 2;
    pub(super) const MAP_DELETE_ELEM: u32 = 3;
    pub(super) const MAP_GET_NEXT_KEY: u32 = 4;
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const PROG_TEST_RUN: u32 = 10;
    pub(super) const MAP_GET_FD_BY_ID: u32 = 14;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const BTF_LOAD: u32 = 18;
    pub(super) const MAP_FREEZE: u32 = 22;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
}

/// Calls bpf(2) with the first `size` bytes of `attr`.
///
/// # Safety
/// Every address in `attr` that the kernel writes to under command `cmd` must be valid for writes of
/// all the bytes it may write.
unsafe fn bpf(cmd: u32, attr: &mut Attr, size: usize) -> Result<i32, Errno> {
    let size = size.min(Attr::SIZE);
    // SAFETY: `attr` is borrowed exclusively and at least `size` bytes long, so the kernel may read
    // it and write results back; the addresses inside it are the caller's promise.
    let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size) };
    i32::try_from(r).ok().filter(|r| *r >= 0).ok_or_else(last_errno)
}

fn last_errno() -> Errno {
    Errno::from_raw(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: called only with what a creating bpf(2) command, or perf_event_open(2), has just returned:
    // a new, open descriptor that nothing else in the process knows of.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A map of the live kernel, closed on drop.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
}

impl Map {
    /// Creates a map (`BPF_MAP_CREATE`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(create: &MapCreate) -> Result<Self, Errno> {
        Self::create_with(create, None)
    }

    /// Creates a map with an inner map.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create_with(create: &MapCreate, inner: Option<&Self>) -> Result<Self, Errno> {
        const INNER_MAP_FD: usize = 20;
        let mut attr = create.encode();
        if let Some(inner) = inner {
            attr.u32(INNER_MAP_FD, inner.raw());
        }
        // SAFETY: the kernel writes to no address of this command.
        let fd = unsafe { bpf(cmd::MAP_CREATE, &mut attr, MapCreate::SIZE) }?;
        Ok(Self {
            fd: owned(fd),
            key_len: create.key_size as usize,
            value_len: create.value_len(possible_cpus()),
        })
    }

    /// Another descriptor of the map, for a mode of its own (`BPF_MAP_GET_FD_BY_ID`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn with_mode(&self, mode: Mode) -> Result<Self, Errno> {
        let mut attr = Attr::default();
        attr.u32(0, self.info()?.id).u32(8, mode.open_flags());
        // SAFETY: the kernel writes to no address of this command.
        let fd = unsafe { bpf(cmd::MAP_GET_FD_BY_ID, &mut attr, 12) }?;
        Ok(Self { fd: owned(fd), key_len: self.key_len, value_len: self.value_len })
    }

    /// Bytes of a value as the element commands copy it: all CPUs' values for per-CPU types.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    fn elem(&self, key: &[u8]) -> Attr {
        assert_eq!(key.len(), self.key_len, "key length");
        let mut attr = Attr::default();
        attr.u32(0, self.raw()).ptr(8, key.as_ptr());
        attr
    }

    /// Reads an element (`BPF_MAP_LOOKUP_ELEM`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn lookup(&self, key: &[u8], flags: u64) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; self.value_len];
        let mut attr = self.elem(key);
        attr.ptr(16, value.as_mut_ptr()).u64(24, flags);
        // SAFETY: the kernel writes at most a value to `value`, which is `value_len` bytes long: the
        // most any map type copies out for this value size on this number of CPUs.
        unsafe { bpf(cmd::MAP_LOOKUP_ELEM, &mut attr, 32) }?;
        Ok(value)
    }

    /// Writes an element (`BPF_MAP_UPDATE_ELEM`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        assert_eq!(value.len(), self.value_len, "value length");
        let mut attr = self.elem(key);
        attr.ptr(16, value.as_ptr()).u64(24, flags);
        // SAFETY: the kernel writes to no address of this command.
        unsafe { bpf(cmd::MAP_UPDATE_ELEM, &mut attr, 32) }.map(drop)
    }

    /// Deletes an element (`BPF_MAP_DELETE_ELEM`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        let mut attr = self.elem(key);
        // SAFETY: the kernel writes to no address of this command.
        unsafe { bpf(cmd::MAP_DELETE_ELEM, &mut attr, 16) }.map(drop)
    }

    /// The key after `key`, or the first one (`BPF_MAP_GET_NEXT_KEY`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        let mut next = vec![0; self.key_len];
        let mut attr = Attr::default();
        attr.u32(0, self.raw()).ptr(16, next.as_mut_ptr());
        if let Some(key) = key {
            assert_eq!(key.len(), self.key_len, "key length");
            attr.ptr(8, key.as_ptr());
        }
        // SAFETY: the kernel writes one key to `next`, which is `key_len` bytes long.
        unsafe { bpf(cmd::MAP_GET_NEXT_KEY, &mut attr, 24) }?;
        Ok(next)
    }

    /// Reads elements from the first one on (`BPF_MAP_LOOKUP_BATCH`), as many as there is room for keys. Gives
    /// how many those were.
    ///
    /// # Errors
    /// What the kernel says; ENOENT when there are fewer.
    pub fn lookup_batch(&self, keys: &mut [u32], values: &mut [u8]) -> Result<u32, Errno> {
        assert!(self.key_len == 4 && values.len() == keys.len() * self.value_len, "lengths");
        let mut last = 0_u32;
        let mut attr = Attr::default();
        attr.ptr(8, &raw mut last)
            .ptr(16, keys.as_mut_ptr())
            .ptr(24, values.as_mut_ptr())
            .len(32, keys.len())
            .u32(36, self.raw());
        // SAFETY: the kernel writes one key to `last`, and at most the count at offset 32 of keys and values
        // to `keys` and `values`, which are that long.
        unsafe { bpf(cmd::MAP_LOOKUP_BATCH, &mut attr, 56) }?;
        Ok(attr.get_u32(32))
    }

    /// Forbids further writes by system calls (`BPF_MAP_FREEZE`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn freeze(&self) -> Result<(), Errno> {
        let mut attr = Attr::default();
        attr.u32(0, self.raw());
        // SAFETY: the kernel writes to no address of this command.
        unsafe { bpf(cmd::MAP_FREEZE, &mut attr, 4) }.map(drop)
    }

    /// Bytes of kernel memory the map is charged for: the `memlock` line of its fdinfo.
    ///
    /// # Errors
    /// EPROTO where there is no such line.
    pub fn memlock(&self) -> Result<u64, Errno> {
        let fdinfo = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = std::fs::read_to_string(fdinfo).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("memlock:"));
        line.and_then(|l| l.trim().parse().ok()).ok_or(Errno::EPROTO)
    }

    /// What the kernel tells about the map (`BPF_OBJ_GET_INFO_BY_FD`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn info(&self) -> Result<MapInfo, Errno> {
        let mut info = [0; MapInfo::SIZE];
        obj_info(&self.fd, &mut info)?;
        Ok(MapInfo::decode(&info))
    }

    fn raw(&self) -> u32 {
        self.fd.as_raw_fd().cast_unsigned()
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Fills `info` for an object that has no input addresses in its block.
fn obj_info(fd: &OwnedFd, info: &mut [u8]) -> Result<(), Errno> {
    let mut attr = Attr::default();
    attr.u32(0, fd.as_raw_fd().cast_unsigned()).len(4, info.len()).ptr(8, info.as_mut_ptr());
    // SAFETY: the kernel writes at most the length at offset 4 to `info`, and reads further output
    // addresses from it only where the caller put some; see `Prog::xlated`.
    unsafe { bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr, 16) }.map(drop)
}

/// A BTF object of the live kernel, closed on drop.
#[derive(Debug)]
pub struct Btf(OwnedFd);

impl Btf {
    /// Loads BTF (`BPF_BTF_LOAD`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn load(btf: &[u8]) -> Result<Self, Errno> {
        let mut attr = Attr::default();
        attr.ptr(0, btf.as_ptr()).len(16, btf.len());
        // SAFETY: no log buffer is given, so the kernel writes to no address of this command.
        unsafe { bpf(cmd::BTF_LOAD, &mut attr, 28) }.map(|fd| Self(owned(fd)))
    }
}

impl AsFd for Btf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why a program was not loaded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{errno}\n{log}")]
pub struct LoadError {
    /// The error number.
    pub errno: Errno,
    /// What the verifier wrote, empty where it was not reached.
    pub log: String,
}

/// Room for the verifier's log.
const LOG_LEN: usize = 1 << 20;

fn log_text(log: &[u8]) -> String {
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// A program of the live kernel, closed on drop.
#[derive(Debug)]
pub struct Prog {
    fd: OwnedFd,
    load_time: Duration,
}

impl Prog {
    /// Loads a program (`BPF_PROG_LOAD`). It is loaded once without a log; a refused one again with.
    ///
    /// # Errors
    /// What the kernel says, with the verifier's log.
    pub fn load(load: &ProgLoad<'_>) -> Result<Self, LoadError> {
        if let Ok(prog) = Self::load_with_log(load, 0, &mut []) {
            return Ok(prog);
        }
        let mut log = vec![0; LOG_LEN];
        Self::load_with_log(load, 1, &mut log)
            .map_err(|errno| LoadError { errno, log: log_text(&log) })
    }

    /// Loads a program and gives what the verifier wrote about each instruction (log level 2).
    ///
    /// # Errors
    /// What the kernel says, with the verifier's log.
    pub fn verify(load: &ProgLoad<'_>) -> Result<String, LoadError> {
        let mut log = vec![0; LOG_LEN];
        match Self::load_with_log(load, 2, &mut log) {
            Ok(_) => Ok(log_text(&log)),
            Err(errno) => Err(LoadError { errno, log: log_text(&log) }),
        }
    }

    fn load_with_log(load: &ProgLoad<'_>, level: u32, log: &mut [u8]) -> Result<Self, Errno> {
        let insns: Vec<u8> = load.insns.iter().flat_map(|i| i.encode()).collect();
        let maps: Vec<u32> = load.maps.iter().map(|m| m.raw()).collect();
        let func_info: Vec<u32> = load.func_info.iter().flat_map(|f| [f.0, f.1]).collect();
        let license = b"Dual MIT/GPL\0";
        let mut attr = Attr::default();
        attr.u32(0, load.prog_type)
            .len(4, load.insns.len())
            .ptr(8, insns.as_ptr())
            .ptr(16, license.as_ptr())
            .u32(44, load.prog_flags)
            .u32(68, load.expected_attach_type);
        if let Some(btf) = load.btf {
            attr.u32(72, btf.0.as_raw_fd().cast_unsigned())
                .u32(76, 8)
                .ptr(80, func_info.as_ptr())
                .len(88, load.func_info.len());
        }
        if !maps.is_empty() {
            attr.ptr(120, maps.as_ptr());
        }
        if level != 0 {
            attr.u32(24, level).len(28, log.len()).ptr(32, log.as_mut_ptr());
        }
        let start = Instant::now();
        // SAFETY: the kernel writes at most the length at offset 28 to `log`, and to no other address of this
        // command.
        let fd = unsafe { bpf(cmd::PROG_LOAD, &mut attr, 152) }?;
        Ok(Self { fd: owned(fd), load_time: start.elapsed() })
    }

    /// How long the kernel took to load it.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// The program's id.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn id(&self) -> Result<u32, Errno> {
        // Type and id of `struct bpf_prog_info`.
        let mut info = [0; 8];
        obj_info(&self.fd, &mut info)?;
        Ok(u32::from_ne_bytes(std::array::from_fn(|i| info[4 + i])))
    }

    /// The program's instructions after the verifier has rewritten them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn xlated(&self) -> Result<Vec<Insn>, Errno> {
        const XLATED_LEN: usize = 20;
        const XLATED_INSNS: usize = 32;
        let mut info = [0; 40];
        obj_info(&self.fd, &mut info)?;
        let len: [u8; 4] = std::array::from_fn(|i| info[XLATED_LEN + i]);
        let mut insns = vec![[0; INSN_SIZE]; u32::from_ne_bytes(len) as usize / INSN_SIZE];
        // `info` again, this time with an output address: `xlated_prog_len` bytes, as just told, and
        // a program's length does not change. The other lengths are zero.
        info = [0; 40];
        info[XLATED_LEN..XLATED_LEN + 4].copy_from_slice(&len);
        info[XLATED_INSNS..].copy_from_slice(&(insns.as_mut_ptr() as u64).to_ne_bytes());
        obj_info(&self.fd, &mut info)?;
        Ok(insns.into_iter().map(Insn::decode).collect())
    }

    /// Runs the program (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn test_run(&self, run: &TestRun<'_>) -> Result<TestRunResult, Errno> {
        // Syscall programs get their context back through the input address.
        let mut ctx_in = run.ctx_in.to_vec();
        let mut ctx_out = vec![0; if run.ctx_is_copied_back { 0 } else { ctx_in.len() }];
        let mut data_out = vec![0; run.data_out_len];
        let mut attr = Attr::default();
        attr.u32(0, self.fd.as_raw_fd().cast_unsigned()).u32(32, run.repeat);
        if !run.data_in.is_empty() {
            attr.len(8, run.data_in.len()).ptr(16, run.data_in.as_ptr());
        }
        if !data_out.is_empty() {
            attr.len(12, data_out.len()).ptr(24, data_out.as_mut_ptr());
        }
        if !ctx_in.is_empty() {
            attr.len(40, ctx_in.len()).ptr(48, ctx_in.as_mut_ptr());
        }
        if !ctx_out.is_empty() {
            attr.len(44, ctx_out.len()).ptr(56, ctx_out.as_mut_ptr());
        }
        // SAFETY: the kernel writes at most the lengths at offsets 12, 40 and 44 to `data_out`,
        // `ctx_in` and `ctx_out`, all three owned here.
        unsafe { bpf(cmd::PROG_TEST_RUN, &mut attr, 80) }?;
        data_out.truncate(attr.get_u32(12) as usize);
        ctx_out.truncate(attr.get_u32(44) as usize);
        Ok(TestRunResult {
            retval: attr.get_u32(4),
            data_out,
            ctx_out: if run.ctx_is_copied_back { ctx_in } else { ctx_out },
            duration_ns: attr.get_u32(36),
        })
    }
}

impl AsFd for Prog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const SAMPLE_RAW: u64 = 1 << 10;
const DISABLED: u64 = 1;
const INHERIT: u64 = 2;

/// A software event of the live kernel that counts nothing: output of programs on CPU 0, or
/// one that children of this process inherit (`perf_event_open`).
///
/// # Errors
/// What the kernel says.
pub(crate) fn perf_event(inherit: bool) -> Result<OwnedFd, Errno> {
    if inherit {
        let attr = PerfEventAttr::software_of_thread(PerfEventAttr::SW_CPU_CLOCK);
        software_event(attr, 0, DISABLED | INHERIT)
    } else {
        let attr = PerfEventAttr::software(PerfEventAttr::SW_BPF_OUTPUT, 0);
        software_event(attr, 0, DISABLED)
    }
}

/// The event to which programs on a CPU can write records.
///
/// # Errors
/// What the kernel says.
pub(crate) fn output_event(cpu: u32) -> Result<OwnedFd, Errno> {
    let cpu = i32::try_from(cpu).map_err(|_| Errno::EINVAL)?;
    software_event(PerfEventAttr::software(PerfEventAttr::SW_BPF_OUTPUT, cpu), SAMPLE_RAW, 0)
}

fn software_event(event: PerfEventAttr, samples: u64, flags: u64) -> Result<OwnedFd, Errno> {
    const ATTR_SIZE: u32 = 64;
    const CLOEXEC: u64 = 8;
    let mut attr = Attr::default();
    attr.u32(0, event.event_type).u32(4, ATTR_SIZE).u64(8, event.config);
    attr.u64(16, u64::from(samples != 0)).u64(24, samples).u64(40, flags);
    let (ptr, pid, cpu) = (attr.as_mut_ptr(), event.pid, event.cpu);
    // SAFETY: the kernel reads the block, of `ATTR_SIZE` bytes; should it not like the size, it writes
    // another one to the field at offset 4.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, ptr, pid, cpu, -1, CLOEXEC) };
    i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(owned).ok_or_else(last_errno)
}

/// Takes capabilities, named by their bits, out of the calling thread's effective set.
pub(crate) fn drop_capabilities(caps: u64) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Effective, permitted, inheritable; first for capabilities 0 to 31, then for 32 to 63.
    let mut data = [0_u32; 6];
    // SAFETY: version 3 reads and may write the two words of the header, and writes six words.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) } != 0 {
        return Err(last_errno());
    }
    data[0] &= !(caps as u32);
    data[3] &= !((caps >> 32) as u32);
    // SAFETY: version 3 reads and may write the two words of the header, and reads six words.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) } != 0 {
        return Err(last_errno());
    }
    Ok(())
}
