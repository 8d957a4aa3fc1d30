//! The attribute block of a command: how much of it there is, and where its fields are.

use bpfarray_core::Errno;

use crate::user::{UserAddr, UserMemory};

/// Bytes of `union bpf_attr` in Linux 6.18.
pub(crate) const ATTR_SIZE: usize = 168;

/// A block longer than this is refused whatever is in it.
const MAX_SIZE: u32 = 4096;

/// A private copy of a command's attribute block. What the caller left out reads as zero.
///
/// # Kernel
/// `union bpf_attr`
pub(crate) struct Attr {
    addr: UserAddr,
    size: u32,
    bytes: [u8; ATTR_SIZE],
}

impl Attr {
    /// Copies a block of `size` bytes.
    ///
    /// # Errors
    /// In this order: E2BIG for more than 4096 bytes; E2BIG for bytes past the known ones that are not zero, and
    /// EFAULT where these, or the block, cannot be read.
    ///
    /// # Kernel
    /// `__sys_bpf`, `bpf_check_uarg_tail_zero`
    pub(crate) fn copy(user: &UserMemory, addr: UserAddr, size: u32) -> Result<Self, Errno> {
        check_tail(user, addr, size, ATTR_SIZE)?;
        let mut bytes = [0; ATTR_SIZE];
        user.read(addr, &mut bytes[..ATTR_SIZE.min(size as usize)])?;
        Ok(Self { addr, size, bytes })
    }

    /// Refuses bytes that are not zero from `end` on, where the command has no more fields.
    ///
    /// # Kernel
    /// `CHECK_ATTR`
    pub(crate) fn ends_at(&self, end: usize) -> Result<(), Errno> {
        // What was left out is zero.
        let rest = self.bytes.get(end..ATTR_SIZE.min(self.size as usize)).unwrap_or_default();
        if rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    pub(crate) fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        rest.first_chunk().copied().unwrap_or([0; N])
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.field(offset))
    }

    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.field(offset))
    }

    /// A field that holds a file descriptor.
    pub(crate) fn fd(&self, offset: usize) -> i32 {
        self.u32(offset).cast_signed()
    }

    /// A field that holds an address.
    pub(crate) fn pointer(&self, offset: usize) -> UserAddr {
        UserAddr(self.u64(offset))
    }

    /// Writes a field of the caller's block.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn put_u32(
        &self,
        user: &UserMemory,
        offset: usize,
        value: u32,
    ) -> Result<(), Errno> {
        user.write(self.addr.offset(offset as u64)?, &value.to_ne_bytes())
    }

    /// Writes a field only if the caller's block reaches that far.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn put_u32_if_there(
        &self,
        user: &UserMemory,
        offset: usize,
        value: u32,
    ) -> Result<(), Errno> {
        if (self.size as usize) < offset + size_of::<u32>() {
            return Ok(());
        }
        self.put_u32(user, offset, value)
    }
}

/// Refuses a block of `size` bytes of which only `known` mean something, unless the others are zero.
///
/// # Errors
/// E2BIG, or EFAULT where they cannot be read.
///
/// # Kernel
/// `bpf_check_uarg_tail_zero`
#[inline]
pub(crate) fn check_tail(
    user: &UserMemory,
    addr: UserAddr,
    size: u32,
    known: usize,
) -> Result<(), Errno> {
    if size > MAX_SIZE {
        return Err(Errno::E2BIG);
    }
    match (size as usize).checked_sub(known) {
        None | Some(0) => Ok(()),
        Some(len) => check_zero(user, addr.offset(known as u64)?, len),
    }
}

/// Refuses bytes, not more than [`MAX_SIZE`], that are not zero.
#[cold]
fn check_zero(user: &UserMemory, addr: UserAddr, len: usize) -> Result<(), Errno> {
    let mut tail = [0; MAX_SIZE as usize];
    let tail = &mut tail[..len];
    user.read(addr, tail)?;
    if tail.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Errno::E2BIG) }
}
