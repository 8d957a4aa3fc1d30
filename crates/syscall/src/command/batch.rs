//! Commands on many elements.

use bpfarray_core::Errno;
use bpfarray_core::batch::{
    Request, check_delete, check_lookup, check_lookup_and_delete, check_update,
};

use super::elem::has_spin_lock;
use super::object;
use crate::attr::Attr;
use crate::file::OpenMap;
use crate::kernel::Kernel;
use crate::user::UserAddr;

const IN_BATCH: usize = 0;
const OUT_BATCH: usize = 8;
const KEYS: usize = 16;
const VALUES: usize = 24;
const COUNT: usize = 32;
const MAP_FD: usize = 36;
const ELEM_FLAGS: usize = 40;
const END: usize = 56;

const KEY_SIZE: u64 = size_of::<u32>() as u64;

/// Bytes of values that are copied at once.
const PART: u64 = 256 << 10;

/// What the caller asks for, in parts.
struct Parts<'a> {
    kernel: &'a Kernel,
    keys: UserAddr,
    values: UserAddr,
    value_size: u64,
    count: u32,
    flags: u64,
}

impl<'a> Parts<'a> {
    fn of(kernel: &'a Kernel, attr: &Attr, map: &OpenMap) -> Self {
        Self {
            kernel,
            keys: attr.pointer(KEYS),
            values: attr.pointer(VALUES),
            value_size: map.handle.user_size(),
            count: attr.u32(COUNT),
            flags: attr.u64(ELEM_FLAGS),
        }
    }

    /// How many elements come next, after `done`.
    fn next(&self, done: u32) -> usize {
        let most = (PART / self.value_size.max(1)).clamp(1, PART / KEY_SIZE);
        (self.count - done).min(most as u32) as usize
    }

    fn buffers(&self) -> Result<(Vec<u32>, Vec<u8>), Errno> {
        let (keys, mut values) = (vec![0; self.next(0)], Vec::new());
        let len = (keys.len() as u64).saturating_mul(self.value_size);
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        values.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        values.resize(len, 0);
        Ok((keys, values))
    }

    fn key_at(&self, index: u32) -> Result<UserAddr, Errno> {
        self.keys.offset(u64::from(index) * KEY_SIZE)
    }

    fn value_at(&self, index: u32) -> Result<UserAddr, Errno> {
        self.values.offset(u64::from(index).saturating_mul(self.value_size))
    }

    /// Writes elements, each key before its value, up to where one faults.
    fn write(&self, done: u32, keys: &[u32], values: &[u8]) -> Result<(), Errno> {
        let Some((first, others)) = keys.split_first() else { return Ok(()) };
        let user = &self.kernel.user;
        user.write(self.key_at(done)?, &first.to_ne_bytes())?;
        if user.write(self.value_at(done)?, values).is_ok() && !others.is_empty() {
            return user.write(self.key_at(done + 1)?, &to_bytes(others));
        }
        let values = values.chunks_exact(self.value_size as usize);
        for (index, (key, value)) in (done..).zip(keys.iter().zip(values)) {
            user.write(self.key_at(index)?, &key.to_ne_bytes())?;
            user.write(self.value_at(index)?, value)?;
        }
        Ok(())
    }
}

/// Bytes of keys.
fn to_bytes(keys: &[u32]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.to_ne_bytes()).collect()
}

fn request(map: &OpenMap, attr: &Attr) -> Request {
    let (keys, values) = (attr.u32(COUNT) as usize, map.handle.user_size());
    Request {
        mode: map.handle.mode(),
        elem_flags: attr.u64(ELEM_FLAGS),
        keys,
        values: values.saturating_mul(keys as u64),
        possible_cpus: bpfarray::possible_cpus(),
    }
}

/// # Kernel
/// `generic_map_lookup_batch`
pub(super) fn lookup(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    kernel.with_map(attr.fd(MAP_FD), |map| {
        check_lookup(map.handle.layout(), &request(map, attr), has_spin_lock(map))
            .map_err(|error| error.errno())?;
        let parts = Parts::of(kernel, attr, map);
        if parts.count == 0 {
            return Ok(());
        }
        attr.put_u32(&kernel.user, COUNT, 0)?;
        let in_batch = attr.pointer(IN_BATCH);
        let mut after = match in_batch.is_null() {
            true => None,
            false => Some(kernel.user.read_u32(in_batch)?),
        };
        let (mut keys, mut values) = parts.buffers()?;
        let (mut done, mut result) = (0, Ok(()));
        while done < parts.count && result.is_ok() {
            let wanted = parts.next(done);
            let values = &mut values[..wanted * parts.value_size as usize];
            let found = map.handle.lookup_batch(after, &mut keys[..wanted], values, parts.flags);
            let found = found.map_err(|error| error.errno())?;
            let count = found.count as usize;
            parts.write(done, &keys[..count], &values[..count * parts.value_size as usize])?;
            done += found.count;
            after = found.out_batch.or(after);
            result = found.errno().map_or(Ok(()), Err);
        }
        attr.put_u32(&kernel.user, COUNT, done)?;
        if let Some(last) = after.filter(|_| done != 0) {
            kernel.user.write(attr.pointer(OUT_BATCH), &last.to_ne_bytes())?;
        }
        result
    })
}

/// # Kernel
/// `generic_map_update_batch`
pub(super) fn update(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    let slots = kernel.with_map(attr.fd(MAP_FD), |map| {
        let (layout, frozen) = (map.handle.layout(), map.handle.is_frozen());
        check_update(layout, &request(map, attr), frozen, has_spin_lock(map))
            .map_err(|error| error.errno())?;
        let parts = Parts::of(kernel, attr, map);
        if parts.count == 0 {
            return Ok(None);
        }
        attr.put_u32(&kernel.user, COUNT, 0)?;
        if layout.kind().holds_objects() {
            return Ok(Some(parts));
        }
        let (mut done, mut result) = (0, Ok(()));
        let (mut keys, mut values) = parts.buffers()?;
        while done < parts.count && result.is_ok() {
            let mut wanted = parts.next(done);
            if read_part(&parts, done, &mut keys[..wanted], &mut values).is_err() {
                // One of them cannot be read: those before it count.
                wanted = 1;
                if let Err(errno) = read_part(&parts, done, &mut keys[..wanted], &mut values) {
                    result = Err(errno);
                    break;
                }
            }
            let values = &values[..wanted * parts.value_size as usize];
            match map.handle.update_batch(&keys[..wanted], values, parts.flags) {
                Ok(count) => done += count,
                Err(error) => {
                    done += error.count().unwrap_or(0);
                    result = Err(error.errno());
                }
            }
        }
        attr.put_u32(&kernel.user, COUNT, done)?;
        result.map(|()| None)
    })?;
    slots.map_or(Ok(()), |parts| update_slots(&parts, attr))
}

/// Fills slots with the objects behind descriptors.
fn update_slots(parts: &Parts<'_>, attr: &Attr) -> Result<(), Errno> {
    /// As many as that wait together until no program has the old objects.
    const TOGETHER: u32 = 1024;
    let (kernel, mut done, mut result) = (parts.kernel, 0, Ok(()));
    while done < parts.count && result.is_ok() {
        let (mut keys, mut fds) = (Vec::new(), Vec::new());
        for index in done..parts.count.min(done.saturating_add(TOGETHER)) {
            let key = parts.key_at(index).and_then(|at| kernel.user.read_u32(at));
            let both = key.and_then(|key| Ok((key, kernel.user.read_u32(parts.value_at(index)?)?)));
            match both {
                Ok((key, fd)) => {
                    keys.push(key);
                    fds.push(fd.cast_signed());
                }
                Err(errno) => {
                    result = Err(errno);
                    break;
                }
            }
        }
        let (count, stored) =
            object::update_many(kernel, attr.fd(MAP_FD), &keys, &fds, parts.flags);
        done += count;
        result = stored.and(result);
    }
    attr.put_u32(&kernel.user, COUNT, done)?;
    result
}

/// Reads as many elements as there are `keys`.
fn read_part(
    parts: &Parts<'_>,
    done: u32,
    keys: &mut [u32],
    values: &mut [u8],
) -> Result<(), Errno> {
    let user = &parts.kernel.user;
    let mut bytes = vec![0; keys.len() * KEY_SIZE as usize];
    user.read(parts.key_at(done)?, &mut bytes)?;
    for (key, bytes) in keys.iter_mut().zip(bytes.as_chunks().0) {
        *key = u32::from_ne_bytes(*bytes);
    }
    user.read(parts.value_at(done)?, &mut values[..keys.len() * parts.value_size as usize])
}

/// # Kernel
/// `bpf_map_do_batch`
pub(super) fn delete(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    kernel.with_map(attr.fd(MAP_FD), |map| {
        let refused = check_delete(map.handle.mode(), map.handle.is_frozen());
        refused.map_err(|error| error.errno())
    })
}

/// # Kernel
/// `bpf_map_do_batch`
pub(super) fn lookup_and_delete(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    kernel.with_map(attr.fd(MAP_FD), |map| {
        let refused = check_lookup_and_delete(map.handle.mode(), map.handle.is_frozen());
        refused.map_err(|error| error.errno())
    })
}
