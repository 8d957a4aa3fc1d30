//! Loading BTF.

use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::btf::{Btf, BtfError};
use bpfarray_core::map::HandleMode;

use super::log::Log;
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
    let (buf, log_size) = (attr.pointer(LOG_BUF), attr.u32(LOG_SIZE));
    let log = Log::new(buf, log_size, attr.u32(LOG_LEVEL), LOG_TRUE_SIZE)?;
    let mut bytes = vec![0; size as usize];
    kernel.user.read(attr.pointer(BTF), &mut bytes)?;
    let parsed = Btf::parse(&bytes).and_then(|types| types.check_sections());
    let why = parsed.as_ref().err().map(|error| format!("{error}\n"));
    log.write(kernel, attr, &why.unwrap_or_default())?;
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
