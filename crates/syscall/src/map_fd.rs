//! What programs do with the descriptor of a map besides bpf(2).
//!
//! **Invariant.** The one mapping made here is of the values of a map's file, at an address that the kernel picks or the caller names
//! as to `mmap`, whose promise it is. A descriptor that is borrowed is used for locks on bytes that no file has.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use bpfarray::{HandleMode, Map, count_as_writer};
use bpfarray_core::insn::INSN_SIZE;
use bpfarray_core::map::mmap::check_mmap;
use bpfarray_core::{Errno, VALUE_OFFSET};
use rustix::mm::{MapFlags, ProtFlags};

use crate::caller;
use crate::file::{Object, OpenMap};
use crate::kernel::Kernel;
use crate::link::{ITER_TARGET, LinkFile};
use crate::prog::ProgObject;
use crate::prog_file::ProgFile;
use crate::root::{Kind, Root, errno, open_as, refer};

impl Kernel {
    /// Does what `mmap` of a map's or a perf event's descriptor does; `None` for a descriptor that is none of them here.
    ///
    /// # Errors
    /// EPERM for executable mappings; EINVAL for private ones; then the variants of
    /// [`MmapError`](bpfarray_core::map::mmap::MmapError) in their order, or EINVAL for a ring that is not a page and a power of two of
    /// pages, or other than one that is mapped; what the system says.
    ///
    /// # Safety
    /// As `mmap`: with `MAP_FIXED`, nothing may be at the address that is still needed.
    ///
    /// # Kernel
    /// `bpf_map_mmap`, `perf_mmap`
    pub unsafe fn mmap(
        &self,
        addr: u64,
        len: u64,
        prot: i32,
        flags: i32,
        fd: RawFd,
        offset: u64,
    ) -> Option<Result<u64, Errno>> {
        let Some(map) = self.map_behind(fd) else {
            // SAFETY: the caller's promise.
            return unsafe { self.mmap_event(addr, len, prot, flags, fd, offset) };
        };
        let write = prot & libc::PROT_WRITE != 0;
        let check = || {
            may_map(&map, len, prot, flags, offset)?;
            // An opening of its own: the reference, and the right to write, last as long as the mapping.
            let mode = if write { HandleMode::ReadWrite } else { HandleMode::ReadOnly };
            let file = open_as(&self.root.object(Kind::Map, map.object.id), mode)?;
            refer(&file)?;
            if write {
                let is_writer = count_as_writer(&file).map_err(|error| errno(&error))?;
                // Somebody may have frozen the map meanwhile.
                if !is_writer || map.handle.is_frozen() {
                    return Err(Errno::EPERM);
                }
            }
            let at = std::ptr::without_provenance_mut(addr as usize);
            let offset = offset.checked_add(VALUE_OFFSET as u64).ok_or(Errno::EINVAL)?;
            let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
            let prot = ProtFlags::from_bits_retain(prot.cast_unsigned());
            let flags = MapFlags::from_bits_retain(flags.cast_unsigned());
            // SAFETY: without MAP_FIXED the kernel picks an unused place; with it, the caller promises that
            // nothing there is needed. No Rust reference is made to the mapping.
            let mapped = unsafe { rustix::mm::mmap(at, len, prot, flags, &file, offset) };
            let mapped = mapped.map_err(|error| Errno::from_raw(error.raw_os_error()))?;
            Ok(mapped.addr() as u64)
        };
        Some(check())
    }

    /// Fills a slot of a PERF_EVENT_ARRAY for as long as the open file behind a descriptor of the map is open.
    pub(crate) fn claim_event_slot(
        map: &Map,
        index: u32,
        map_fd: RawFd,
        event: u32,
    ) -> Result<(), Errno> {
        if caller::process().is_some() {
            // Another process's descriptor: a copy has the same open file.
            let copy =
                caller::copy_of(map_fd).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
            let claimed = map.claim_event_slot(index, copy.as_fd(), event, 0);
            return claimed.map_err(|error| error.errno());
        }
        // SAFETY: the program's own descriptor. Should another thread close it and open something else under its number just
        // now, that gets a lock on a byte that it does not have.
        let owner = unsafe { BorrowedFd::borrow_raw(map_fd) };
        map.claim_event_slot(index, owner, event, 0).map_err(|error| error.errno())
    }

    /// Whether `mmap` of a map's descriptor would be allowed if it were for a shared mapping; `None` for a descriptor that is none
    /// of a map here.
    pub(crate) fn check_mmap(
        &self,
        fd: RawFd,
        len: u64,
        prot: i32,
        offset: u64,
    ) -> Option<Result<(), Errno>> {
        Some(may_map(&self.map_behind(fd)?, len, prot, libc::MAP_SHARED, offset))
    }

    fn map_behind(&self, fd: RawFd) -> Option<OpenMap> {
        let map = |object: &Object| match object {
            Object::Map(map) => Ok(map.clone()),
            Object::Btf(_) | Object::Prog(_) | Object::Link(_) => Err(Errno::EBADF),
        };
        self.try_with_object(fd, |_| Errno::EBADF, map).ok()
    }

    /// What `/proc/self/fdinfo/N` would show of an object's descriptor in the kernel, from the lines of all descriptors on; `None`
    /// for descriptors that are none of an object here.
    ///
    /// # Kernel
    /// `bpf_map_show_fdinfo`, `bpf_prog_show_fdinfo`, `bpf_link_show_fdinfo`
    pub fn fdinfo(&self, fd: RawFd) -> Option<String> {
        let show = |object: &Object| match object {
            Object::Map(map) => {
                let info = map.handle.info();
                let owner = map.handle.owner().map_or_else(String::new, |owner| {
                    let jited = u8::from(owner.jited);
                    format!("owner_prog_type:\t{}\nowner_jited:\t{jited}\n", owner.prog_type)
                });
                Ok(format!(
                    "map_type:\t{}\nkey_size:\t{}\nvalue_size:\t{}\nmax_entries:\t{}\nmap_flags:\t{:#x}\n\
                     map_extra:\t0x0\nmemlock:\t{}\nmap_id:\t{}\nfrozen:\t{}\n{owner}",
                    info.map_type.0,
                    info.key_size,
                    info.value_size,
                    info.max_entries,
                    info.map_flags.bits(),
                    map.handle.mem_usage(),
                    map.object.id,
                    u8::from(map.handle.is_frozen()),
                ))
            }
            Object::Btf(btf) => Ok(format!("btf_id:\t{}\n", btf.id)),
            Object::Prog(prog) => prog_fdinfo(&self.root, prog),
            Object::Link(id) => link_fdinfo(&self.root, *id),
        };
        self.with_object(fd, show).ok()
    }
}

fn may_map(map: &OpenMap, len: u64, prot: i32, flags: i32, offset: u64) -> Result<(), Errno> {
    if prot & libc::PROT_EXEC != 0 {
        return Err(Errno::EPERM);
    }
    if flags & libc::MAP_TYPE == libc::MAP_PRIVATE {
        return Err(Errno::EINVAL);
    }
    let handle = &map.handle;
    let write = prot & libc::PROT_WRITE != 0;
    let special = !handle.special_fields().is_empty();
    let (layout, frozen) = (handle.layout(), handle.is_frozen());
    check_mmap(layout, handle.mode(), frozen, offset, len, write, special)
        .map_err(|error| error.errno())
}

/// # Kernel
/// `bpf_prog_show_fdinfo`
fn prog_fdinfo(root: &Root, prog: &ProgObject) -> Result<String, Errno> {
    /// Bytes of `struct bpf_prog` before the instructions.
    const HEADER: usize = 72;
    const PAGE: usize = 4096;
    let program = prog.program()?;
    let memlock = (HEADER + program.xlated().len() * INSN_SIZE).next_multiple_of(PAGE);
    let (run_time_ns, run_cnt) = root.stats_of(prog.id);
    let tag = hex(&prog.file.tag());
    Ok(format!(
        "prog_type:\t{}\nprog_jited:\t{}\nprog_tag:\t{tag}\nmemlock:\t{memlock}\nprog_id:\t{}\n\
         run_time_ns:\t{run_time_ns}\nrun_cnt:\t{run_cnt}\nrecursion_misses:\t0\nverified_insns:\t{}\n",
        prog.file.prog_type,
        u8::from(program.jited().is_some()),
        prog.id,
        prog.file.verified_insns(),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// # Kernel
/// `bpf_link_show_fdinfo`, `bpf_iter_map_show_fdinfo`
fn link_fdinfo(root: &Root, id: u32) -> Result<String, Errno> {
    let LinkFile { prog_id, map_id } = root.link(id)?;
    let prog = open_as(&root.object(Kind::Prog, prog_id), HandleMode::ReadOnly)?;
    let prog = ProgFile::read(&prog).map_err(|error| errno(&error))?;
    Ok(format!(
        "link_type:\titer\nlink_id:\t{id}\nprog_tag:\t{}\nprog_id:\t{prog_id}\ntarget_name:\t{ITER_TARGET}\nmap_id:\t{map_id}\n",
        hex(&prog.tag()),
    ))
}
