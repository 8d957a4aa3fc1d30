//! Creating maps.

use std::fs;

use bpfarray::{HandleMode, Map, online_nodes};
use bpfarray_core::Errno;
use bpfarray_core::attr::{
    CreateError, Creator, MAP_NAME_LEN, MapAttr, MapFlags, MapType, PROG_HASH_LEN,
};
use bpfarray_core::btf::Btf;

use crate::attr::Attr;
use crate::file::{MapObject, Object};
use crate::kernel::Kernel;
use crate::root::Kind;

const MAP_TYPE: usize = 0;
const KEY_SIZE: usize = 4;
const VALUE_SIZE: usize = 8;
const MAX_ENTRIES: usize = 12;
const MAP_FLAGS: usize = 16;
const INNER_MAP_FD: usize = 20;
const NUMA_NODE: usize = 24;
const MAP_NAME: usize = 28;
const MAP_IFINDEX: usize = 44;
const BTF_FD: usize = 48;
const BTF_KEY_TYPE_ID: usize = 52;
const BTF_VALUE_TYPE_ID: usize = 56;
const BTF_VMLINUX_VALUE_TYPE_ID: usize = 60;
const MAP_EXTRA: usize = 64;
const EXCL_PROG_HASH: usize = 80;
const EXCL_PROG_HASH_SIZE: usize = 88;
const END: usize = 92;

/// # Kernel
/// `map_create`
pub(super) fn map(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(END)?;
    let map = MapAttr {
        map_type: MapType(attr.u32(MAP_TYPE)),
        key_size: attr.u32(KEY_SIZE),
        value_size: attr.u32(VALUE_SIZE),
        max_entries: attr.u32(MAX_ENTRIES),
        map_flags: MapFlags::from_bits_retain(attr.u32(MAP_FLAGS)),
        numa_node: attr.u32(NUMA_NODE),
        map_name: attr.field::<MAP_NAME_LEN>(MAP_NAME),
        map_ifindex: attr.u32(MAP_IFINDEX),
        btf_key_type_id: attr.u32(BTF_KEY_TYPE_ID),
        btf_value_type_id: attr.u32(BTF_VALUE_TYPE_ID),
        btf_vmlinux_value_type_id: attr.u32(BTF_VMLINUX_VALUE_TYPE_ID),
        map_extra: attr.u64(MAP_EXTRA),
        excl_prog_hash: None,
    };
    let creator = Creator { online_nodes: online_nodes(), ..Creator::default() };
    // First, and so released last: a process that is forked meanwhile must not have what is held here of maps.
    let locked = kernel.lock()?;
    let inner = match map.map_type {
        MapType::ARRAY_OF_MAPS => {
            kernel.with_map(attr.fd(INNER_MAP_FD), |inner| Ok(Some(inner.handle.to_ref())))
        }
        _ => Ok(None),
    };
    let template = inner.as_ref().ok().and_then(Option::as_ref).map(|inner| inner.layout());
    map.check_with(&creator, template).map_err(|error| match (error, &inner) {
        // Why there is none.
        (CreateError::NoInnerMap, Err(errno)) => *errno,
        _ => error.errno(),
    })?;
    map.check_name().map_err(|error| error.errno())?;
    let btf = match map.btf_value_type_id {
        0 => None,
        _ => Some(kernel.with_object(attr.fd(BTF_FD), |object| match object {
            Object::Btf(btf) => Ok(btf.clone()),
            Object::Map(_) | Object::Prog(_) | Object::Link(_) => Err(Errno::EINVAL),
        })?),
    };
    let bytes = match &btf {
        Some(btf) => {
            let types = Btf::parse(&btf.bytes).map_err(|_| Errno::EINVAL)?;
            map.check_btf(&creator, &types).map_err(|error| error.errno())?;
            btf.bytes.as_slice()
        }
        None => &[],
    };
    let map = MapAttr { excl_prog_hash: excl_prog_hash(kernel, attr)?, ..map };
    let mode = HandleMode::of(map.map_flags);
    let id = locked.next_id(Kind::Map)?;
    let path = kernel.root.object(Kind::Map, id);
    let created = Map::create_in(&kernel.directory(), &path, id, &map, bytes, inner?.as_ref());
    let created = created.map_err(|error| no_memory(error.errno()))?;
    let opened = btf.map_or(Ok(()), |btf| locked.keep_btf(id, btf.id)).and_then(|()| {
        let file = locked.open_new(Kind::Map, id, mode)?;
        Ok((file, MapObject::new(&kernel.root, id, &created)?))
    });
    let (file, object) = opened.inspect_err(|_| {
        // Without a reference, it would be swept later anyway.
        let _ = fs::remove_file(&path);
    })?;
    Ok(kernel.install(file, Some(Object::Map(object.with_mode(mode)))))
}

/// Which program the map is for, if it is for one only.
fn excl_prog_hash(kernel: &Kernel, attr: &Attr) -> Result<Option<[u8; PROG_HASH_LEN]>, Errno> {
    let (addr, size) = (attr.pointer(EXCL_PROG_HASH), attr.u32(EXCL_PROG_HASH_SIZE) as usize);
    if addr.is_null() {
        return if size == 0 { Ok(None) } else { Err(Errno::EINVAL) };
    }
    if size != PROG_HASH_LEN {
        return Err(Errno::EINVAL);
    }
    let mut hash = [0; PROG_HASH_LEN];
    kernel.user.read(addr, &mut hash)?;
    Ok(Some(hash))
}

/// File systems have their own numbers for what is too large.
fn no_memory(errno: Errno) -> Errno {
    match errno.raw() {
        libc::EFBIG | libc::ENOSPC | libc::EDQUOT | libc::E2BIG => Errno::ENOMEM,
        _ => errno,
    }
}
