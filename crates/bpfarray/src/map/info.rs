//! What can be told about a map.

use bpfarray_core::attr::{MAP_NAME_LEN, MapFlags, MapType};
use bpfarray_core::map::array::{HashError, hashed_len};
use sha2::{Digest, Sha256};

use super::MapRef;

/// What `BPF_OBJ_GET_INFO_BY_FD` tells about a map. Fields of the kernel's struct that are 0 for every
/// array map are left out.
///
/// # Kernel
/// `struct bpf_map_info`
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[doc(alias = "bpf_map_info")]
pub struct MapInfo {
    /// Map type.
    pub map_type: MapType,
    /// Id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, as asked for.
    pub value_size: u32,
    /// Number of elements, as asked for.
    pub max_entries: u32,
    /// Flags of the map, without those of the handle.
    pub map_flags: MapFlags,
    /// Name, NUL padded.
    pub name: [u8; MAP_NAME_LEN],
    /// BTF type of keys, or 0.
    pub btf_key_type_id: u32,
    /// BTF type of values, or 0.
    pub btf_value_type_id: u32,
}

impl MapRef {
    /// What `bpf(2)` tells about the map, through a handle of any mode.
    ///
    /// # Kernel
    /// `bpf_map_get_info_by_fd`
    #[doc(alias = "bpf_map_get_info_by_fd")]
    #[doc(alias = "BPF_OBJ_GET_INFO_BY_FD")]
    pub fn info(&self) -> MapInfo {
        let attr = &self.inner.attr;
        let mut name = attr.map_name;
        // What comes after the first NUL is no part of the name.
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name[end..].fill(0);
        MapInfo {
            map_type: self.map_type(),
            id: self.id(),
            key_size: self.key_size(),
            value_size: self.value_size(),
            max_entries: self.max_entries(),
            map_flags: self.map_flags(),
            name,
            btf_key_type_id: attr.btf_key_type_id,
            btf_value_type_id: attr.btf_value_type_id,
        }
    }

    /// The SHA-256 of all values of a frozen ARRAY, with the padding behind each.
    ///
    /// ```
    /// use bpfarray::{Array, HashError};
    /// let mut array = Array::<u64>::new(2)?;
    /// assert_eq!(array.map().hash(), Err(HashError::NotFrozen));
    /// array.freeze()?;
    /// assert_eq!(array.map().hash()?[..4], [0x37, 0x47, 0x08, 0xff]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The variants of [`HashError`] in their order.
    ///
    /// # Concurrency
    /// Programs may still write to a frozen map, unless they may only read it.
    ///
    /// # Kernel
    /// `array_map_get_hash`
    #[doc(alias = "array_map_get_hash")]
    pub fn hash(&self) -> Result<[u8; 32], HashError> {
        /// Bytes that are copied at once.
        const PART: usize = 16 << 10;
        let len = hashed_len(self.layout(), self.is_frozen())? as usize;
        let mut hasher = Sha256::new();
        let mut part = [0; PART];
        for offset in (0..len).step_by(PART) {
            let part = &mut part[..PART.min(len - offset)];
            // The values end where the memory does.
            self.inner.area.payload().read(offset, part).map_err(|_| HashError::MapType)?;
            hasher.update(&*part);
        }
        Ok(hasher.finalize().into())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::MapAttr;
    use crate::map::testing::{ARRAY, PERCPU, create, objects, with_fields};

    #[test]
    fn the_info_is_what_the_map_was_created_from() {
        let map_flags = MapFlags::WRONLY | MapFlags::MMAPABLE;
        let map_name = *b"name\0and more..\0";
        let map = create(MapAttr { map_flags, map_name, ..ARRAY });
        let info = map.info();
        let name = *b"name\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!((info.id, info.name), (map.id(), name));
        assert_eq!((info.key_size, info.value_size, info.max_entries), (4, 12, 5));
        assert_eq!((info.map_type, info.map_flags), (MapType::ARRAY, MapFlags::MMAPABLE));
        assert_eq!((info.btf_key_type_id, info.btf_value_type_id), (0, 0));
        let typed = with_fields("locked", 2);
        let [key, value] = [typed.info().btf_key_type_id, typed.info().btf_value_type_id];
        assert!(key != 0 && value > key);
    }

    #[test]
    fn the_hash_covers_all_values_with_their_padding() {
        let map = create(MapAttr { max_entries: 5000, ..ARRAY });
        let memory = &map.regions()[0].memory;
        let bytes: Vec<u8> = (0..memory.len()).map(|at| (at * at) as u8).collect();
        memory.write(0, &bytes).unwrap();
        map.freeze().unwrap();
        assert_eq!(map.hash(), Ok(Sha256::digest(&bytes).into()));
        assert_eq!(bytes.len(), 5000 * 16);
    }

    #[test]
    fn only_a_frozen_array_has_a_hash() {
        for map in [create(PERCPU), objects(MapType::PROG_ARRAY, 1)] {
            assert_eq!(map.hash(), Err(HashError::MapType));
            map.freeze().unwrap();
            assert_eq!(map.hash(), Err(HashError::MapType));
        }
        assert_eq!(create(ARRAY).hash(), Err(HashError::NotFrozen));
    }

    #[test]
    fn an_exclusive_map_is_for_one_program() {
        let map = create(MapAttr { excl_prog_hash: Some([3; 32]), ..ARRAY });
        assert!(map.may_be_used_by(&[3; 32]) && !map.may_be_used_by(&[4; 32]));
        assert!(create(ARRAY).may_be_used_by(&[4; 32]));
    }
}
