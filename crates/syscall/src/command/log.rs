//! What a command that judges bytes says about them, in a buffer of the caller.

use bpfarray_core::Errno;
use bpfarray_vm::LogLevel;

use crate::attr::Attr;
use crate::kernel::Kernel;
use crate::user::UserAddr;

/// # Kernel
/// `BPF_LOG_MASK`
const LEVELS: u32 = 0xf;

/// The beginning of a text that is too long is kept, not its end.
///
/// # Kernel
/// `BPF_LOG_FIXED`
const FIXED: u32 = 8;

/// Where the caller wants to read it.
pub(super) struct Log {
    level: u32,
    buf: UserAddr,
    size: u32,
    /// Where the block has room for the length of the text.
    true_size_at: usize,
}

impl Log {
    /// # Errors
    /// EINVAL.
    ///
    /// # Kernel
    /// `bpf_verifier_log_attr_valid`
    pub(super) fn new(
        buf: UserAddr,
        size: u32,
        level: u32,
        true_size_at: usize,
    ) -> Result<Self, Errno> {
        let is_valid = buf.is_null() == (size == 0)
            && (buf.is_null() || level != 0)
            && level & !LEVELS == 0
            && size <= u32::MAX >> 2;
        if is_valid { Ok(Self { level, buf, size, true_size_at }) } else { Err(Errno::EINVAL) }
    }

    /// How much the caller wants to know.
    ///
    /// # Kernel
    /// `BPF_LOG_LEVEL1`, `BPF_LOG_LEVEL2`
    pub(super) fn level(&self) -> LogLevel {
        match self.level & 3 {
            0 => LogLevel::None,
            1 => LogLevel::Path,
            _ => LogLevel::All,
        }
    }

    /// Tells the caller, if it wants to know.
    ///
    /// # Errors
    /// EFAULT; ENOSPC if the text does not fit: then the end of it is there, or the beginning if the caller asked for that.
    ///
    /// # Kernel
    /// `bpf_vlog_finalize`
    pub(super) fn write(&self, kernel: &Kernel, attr: &Attr, text: &str) -> Result<(), Errno> {
        let mut text = text.as_bytes().to_vec();
        text.push(0);
        let size = self.size as usize;
        let true_size = if self.level == 0 { 0 } else { text.len() as u32 };
        let mut result = Ok(());
        if self.level != 0 && size != 0 {
            if text.len() > size {
                result = Err(Errno::ENOSPC);
                if self.level & FIXED == 0 {
                    text.drain(..text.len() - size);
                } else {
                    text.truncate(size - 1);
                    text.push(0);
                }
            }
            result = kernel.user.write(self.buf, &text).and(result);
        }
        attr.put_u32_if_there(&kernel.user, self.true_size_at, true_size).and(result)
    }
}
