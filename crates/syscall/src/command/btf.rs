//! Loading BTF.

use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::btf::{Btf, BtfError};
use bpfarray_core::map::HandleMode;

use crate::attr::Attr;
use crate::file::{BtfObject, Object};
use crate::kernel::Kernel;
use crate::root::Kind;

const BTF: usize = 0;
const LOG_BUF: usize = 8;
const BTF_SIZE: usize = 16;
const LOG_SIZE: usize = 20;
const LOG_LEVEL: usize = 24;
const LOG_TRUE_SIZE: usize = 28;
const BTF_FLAGS: usize = 32;
const END: usize = 40;

/// # Kernel
/// `BTF_MAX_SIZE`
const MAX_SIZE: u32 = 16 << 20;

/// # Kernel
/// `BPF_LOG_MASK`
const LOG_LEVELS: u32 = 0xf;

/// # Kernel
/// `bpf_btf_load`, `btf_new_fd`, `btf_parse`
pub(super) fn load(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END)?;
    if attr.u32(BTF_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let size = attr.u32(BTF_SIZE);
    if size > MAX_SIZE {
        return Err(Errno::E2BIG);
    }
    check_log(attr)?;
    let mut bytes = vec![0; size as usize];
    kernel.user.read(attr.pointer(BTF), &mut bytes)?;
    let parsed = Btf::parse(&bytes);
    write_log(kernel, attr, &parsed.as_ref().err().map(ToString::to_string).unwrap_or_default())?;
    parsed.map_err(|error| match error {
        BtfError::BadVersion { .. } => Errno::ENOTSUPP,
        _ => Errno::EINVAL,
    })?;
    let locked = kernel.lock()?;
    let id = locked.next_id(Kind::Btf)?;
    locked.create_btf(id, &bytes)?;
    let file = locked.open_new(Kind::Btf, id, HandleMode::ReadOnly)?;
    drop(locked);
    Ok(kernel.install(file, Some(Object::Btf(Arc::new(BtfObject { id, bytes })))))
}

/// # Kernel
/// `bpf_verifier_log_attr_valid`
fn check_log(attr: &Attr) -> Result<(), Errno> {
    let (buf, size, level) = (attr.pointer(LOG_BUF), attr.u32(LOG_SIZE), attr.u32(LOG_LEVEL));
    let is_valid = buf.is_null() == (size == 0)
        && (buf.is_null() || level != 0)
        && level & !LOG_LEVELS == 0
        && size <= u32::MAX >> 2;
    if is_valid { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Tells the caller why BTF was refused, if it wants to know. What does not fit is cut off.
fn write_log(kernel: &Kernel, attr: &Attr, text: &str) -> Result<(), Errno> {
    if attr.u32(LOG_LEVEL) == 0 {
        return Ok(());
    }
    let mut line = text.as_bytes().to_vec();
    if !line.is_empty() {
        line.push(b'\n');
    }
    line.push(0);
    let true_size = line.len() as u32;
    let size = attr.u32(LOG_SIZE) as usize;
    if size != 0 && size < line.len() {
        line.truncate(size);
        line[size - 1] = 0;
    }
    if size != 0 {
        kernel.user.write(attr.pointer(LOG_BUF), &line)?;
    }
    attr.put_u32_if_there(&kernel.user, LOG_TRUE_SIZE, true_size)?;
    if size != 0 && size < true_size as usize { Err(Errno::ENOSPC) } else { Ok(()) }
}
