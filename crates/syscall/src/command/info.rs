//! What can be told about an object.

use bpfarray_core::Errno;

use super::link::link_info;
use super::prog::prog_info;
use crate::attr::{Attr, check_tail};
use crate::file::{BtfObject, NotOurs, Object, OpenMap};
use crate::kernel::Kernel;
use crate::user::UserAddr;

const BPF_FD: usize = 0;
const INFO_LEN: usize = 4;
const INFO: usize = 8;
const END: usize = 16;

/// A closed descriptor, to this one command.
const EBADFD: Errno = Errno::from_raw(libc::EBADFD);

/// # Kernel
/// `bpf_obj_get_info_by_fd`
pub(super) fn by_fd(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    let errno = |why| match why {
        NotOurs::Closed => EBADFD,
        other => other.errno(),
    };
    kernel.try_with_object(attr.fd(BPF_FD), errno, |object| match object {
        Object::Map(map) => map_info(kernel, attr, map),
        Object::Btf(btf) => btf_info(kernel, attr, btf),
        Object::Prog(prog) => prog_info(kernel, attr, prog),
        Object::Link(id) => link_info(kernel, attr, *id),
    })
}

/// The caller's block of `N` bytes or fewer.
pub(super) struct Info<const N: usize> {
    addr: UserAddr,
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Info<N> {
    /// Refuses a longer block unless the rest is zero.
    pub(super) fn read(kernel: &Kernel, attr: &Attr) -> Result<Self, Errno> {
        let (addr, size) = (attr.pointer(INFO), attr.u32(INFO_LEN));
        check_tail(&kernel.user, addr, size, N)?;
        let len = N.min(size as usize);
        let mut bytes = [0; N];
        kernel.user.read(addr, &mut bytes[..len])?;
        Ok(Self { addr, len, bytes })
    }

    pub(super) fn u32(&self, offset: usize) -> u32 {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        rest.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    pub(super) fn pointer(&self, offset: usize) -> UserAddr {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        UserAddr(rest.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
    }

    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        let rest = self.bytes.get_mut(offset..).unwrap_or_default();
        for (to, from) in rest.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    pub(super) fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    pub(super) fn write(&self, kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
        kernel.user.write(self.addr, &self.bytes[..self.len])?;
        attr.put_u32(&kernel.user, INFO_LEN, self.len as u32)
    }
}

/// # Kernel
/// `bpf_map_get_info_by_fd`, `struct bpf_map_info`
fn map_info(kernel: &Kernel, attr: &Attr, map: &OpenMap) -> Result<(), Errno> {
    const HASH: usize = 88;
    const HASH_SIZE: usize = 96;
    const SHA256: u32 = 32;
    let asked = Info::<104>::read(kernel, attr)?;
    let of_map = map.handle.info();
    let mut info = Info { bytes: [0; 104], ..asked };
    info.put_u32(0, of_map.map_type.0);
    info.put_u32(4, map.object.id);
    info.put_u32(8, of_map.key_size);
    info.put_u32(12, of_map.value_size);
    info.put_u32(16, of_map.max_entries);
    info.put_u32(20, of_map.map_flags.bits());
    info.put(24, &of_map.name);
    info.put_u32(64, map.object.btf_id);
    info.put_u32(68, of_map.btf_key_type_id);
    info.put_u32(72, of_map.btf_value_type_id);
    let (hash, size) = (asked.pointer(HASH), asked.u32(HASH_SIZE));
    if !hash.is_null() || size != 0 {
        use bpfarray::HashError;
        let is_array = !matches!(map.handle.hash(), Err(HashError::MapType));
        if !is_array || hash.is_null() || size != SHA256 {
            return Err(Errno::EINVAL);
        }
        let digest = map.handle.hash().map_err(|error| error.errno())?;
        kernel.user.write(hash, &digest)?;
        info.put(HASH, &asked.bytes[HASH..HASH + 8]);
        info.put_u32(HASH_SIZE, size);
    }
    info.write(kernel, attr)
}

/// # Kernel
/// `btf_get_info_by_fd`, `struct bpf_btf_info`
fn btf_info(kernel: &Kernel, attr: &Attr, btf: &BtfObject) -> Result<(), Errno> {
    const BTF: usize = 0;
    const BTF_SIZE: usize = 8;
    const ID: usize = 12;
    const NAME: usize = 16;
    const NAME_LEN: usize = 24;
    const KERNEL_BTF: usize = 28;
    let mut info = Info::<32>::read(kernel, attr)?;
    info.put_u32(ID, btf.id);
    let len = btf.bytes.len().min(info.u32(BTF_SIZE) as usize);
    kernel.user.write(info.pointer(BTF), &btf.bytes[..len])?;
    info.put_u32(BTF_SIZE, btf.bytes.len() as u32);
    info.put_u32(KERNEL_BTF, 0);
    let (name, name_len) = (info.pointer(NAME), info.u32(NAME_LEN));
    if name.is_null() != (name_len == 0) {
        return Err(Errno::EINVAL);
    }
    info.put_u32(NAME_LEN, 0);
    if !name.is_null() {
        // Only BTF of the kernel has a name.
        kernel.user.write(name, &[0])?;
    }
    info.write(kernel, attr)
}
