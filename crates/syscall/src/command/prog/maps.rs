//! The maps that instructions refer to, by descriptor or by a place in an array of descriptors.

use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::insn::{Insn, Reg, class, mode, pseudo};
use bpfarray_core::map::array::direct_value_addr;

use crate::file::{MapObject, NotOurs, Object};
use crate::kernel::Kernel;
use crate::user::UserAddr;

/// Most maps of a program.
///
/// # Kernel
/// `MAX_USED_MAPS`
const MAX_USED_MAPS: usize = 64;

/// Why the maps of a program were not found: an errno, and what the log says.
pub(super) type Refused = (Errno, String);

fn refused<T>(errno: Errno, why: impl Into<String>) -> Result<T, Refused> {
    Err((errno, why.into()))
}

/// The maps of a program, each once.
pub(super) struct UsedMaps<'a> {
    kernel: &'a Kernel,
    fd_array: UserAddr,
    maps: Vec<Arc<MapObject>>,
    /// What exclusive maps know the program by.
    hash: [u8; 32],
}

impl<'a> UsedMaps<'a> {
    /// Begins with those that the loader lists.
    ///
    /// # Kernel
    /// `process_fd_array`
    pub(super) fn new(
        kernel: &'a Kernel,
        fd_array: UserAddr,
        count: u32,
        hash: [u8; 32],
    ) -> Result<Self, Refused> {
        let mut used = Self { kernel, fd_array, maps: Vec::new(), hash };
        if count >= u32::MAX / 4 {
            return refused(Errno::EINVAL, format!("fd_array_cnt is too big ({count})"));
        }
        for index in 0..count {
            let fd = used.listed(index.cast_signed())?;
            let map = kernel.with_object(fd, |object| match object {
                Object::Map(map) => Ok(Some(Arc::clone(&map.object))),
                Object::Btf(_) => Ok(None),
                Object::Prog(_) | Object::Link(_) => Err(Errno::EINVAL),
            });
            let map = map.map_err(|errno| {
                (errno, format!("fd {fd} is not pointing to valid bpf_map or btf"))
            })?;
            if let Some(map) = map {
                used.add(map)?;
            }
        }
        Ok(used)
    }

    /// The descriptor at a place of the array.
    fn listed(&self, index: i32) -> Result<i32, Refused> {
        let at = self.fd_array.0.wrapping_add_signed(i64::from(index) * 4);
        let fd = self.kernel.user.read_u32(UserAddr(at));
        fd.map(u32::cast_signed).map_err(|errno| (errno, String::new()))
    }

    /// # Kernel
    /// `__add_used_map`, `check_map_prog_compatibility`
    fn add(&mut self, map: Arc<MapObject>) -> Result<usize, Refused> {
        if let Some(place) = self.maps.iter().position(|known| known.id == map.id) {
            return Ok(place);
        }
        if self.maps.len() == MAX_USED_MAPS {
            let limit = "The total number of maps per program has reached the limit of 64";
            return refused(Errno::E2BIG, limit);
        }
        if !map.to_ref().may_be_used_by(&self.hash) {
            return refused(Errno::EACCES, "program's hash doesn't match map's excl_prog_hash");
        }
        self.maps.push(map);
        Ok(self.maps.len() - 1)
    }

    /// Replaces descriptors of maps in instructions by places in the list of maps, which it gives.
    ///
    /// # Errors
    /// In the order of the instructions, as the kernel's.
    ///
    /// # Kernel
    /// `resolve_pseudo_ldimm64`
    pub(super) fn resolve(mut self, insns: &mut [Insn]) -> Result<Vec<Arc<MapObject>>, Refused> {
        let mut at = 0;
        while let Some(&insn) = insns.get(at) {
            at += 1;
            let is_load = insn.class() == class::LDX;
            if is_load && (!matches!(insn.mode(), mode::MEM | mode::MEMSX) || insn.imm != 0) {
                return refused(Errno::EINVAL, "BPF_LDX uses reserved fields");
            }
            if !insn.is_ld_imm64() {
                continue;
            }
            let second = Insn { imm: 0, ..insns.get(at).copied().unwrap_or(insn) };
            if second != Insn::new(0, Reg::R0, Reg::R0, 0, 0) {
                return refused(Errno::EINVAL, "invalid bpf_ld_imm64 insn");
            }
            let kind = insn.src.index() as u8;
            let offset = insns[at].imm;
            at += 1;
            let (fd, own_kind) = match kind {
                0 | pseudo::FUNC => continue,
                pseudo::MAP_FD if offset == 0 => (insn.imm, pseudo::MAP_IDX),
                pseudo::MAP_VALUE => (insn.imm, pseudo::MAP_IDX_VALUE),
                pseudo::MAP_IDX if offset == 0 => (self.by_index(insn.imm)?, pseudo::MAP_IDX),
                pseudo::MAP_IDX_VALUE => (self.by_index(insn.imm)?, pseudo::MAP_IDX_VALUE),
                _ => return refused(Errno::EINVAL, "unrecognized bpf_ld_imm64 insn"),
            };
            let map = self.map(fd)?;
            let place = self.add(Arc::clone(&map))?;
            if own_kind == pseudo::MAP_IDX_VALUE {
                let addr = direct_value_addr(map.to_ref().layout(), offset.cast_unsigned());
                addr.map_err(|error| (error.errno(), error.to_string()))?;
            }
            insns[at - 2] = Insn { src: Reg::new(own_kind), imm: place as i32, ..insn };
        }
        Ok(self.maps)
    }

    fn by_index(&self, index: i32) -> Result<i32, Refused> {
        if self.fd_array.is_null() {
            let protocol = Errno::from_raw(libc::EPROTO);
            return refused(protocol, "fd_idx without fd_array is invalid");
        }
        self.listed(index)
    }

    fn map(&self, fd: i32) -> Result<Arc<MapObject>, Refused> {
        let map = self.kernel.try_with_object(fd, NotOurs::errno, |object| match object {
            Object::Map(map) => Ok(Arc::clone(&map.object)),
            Object::Btf(_) | Object::Prog(_) | Object::Link(_) => Err(Errno::EINVAL),
        });
        map.map_err(|errno| (errno, format!("fd {fd} is not pointing to valid bpf_map")))
    }
}
