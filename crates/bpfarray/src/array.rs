//! Arrays of values of a Rust type.

use std::fmt;
use std::marker::PhantomData;

use bpfarray_core::attr::{CreateError, MapType};
use bpfarray_core::map::{FreezeError, UpdateError};

use crate::element::{Element, Integer, ShapeError, TypedMap, check_shape, create};
use crate::map::Map;
use crate::memory::Memory;

/// An ARRAY map with elements of type `T`.
///
/// ```
/// use bpfarray::Array;
/// let counters = Array::<u64>::new(3)?;
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| counters.fetch_add(1, 10));
///     }
/// });
/// assert_eq!(counters.iter().collect::<Vec<_>>(), [0, 40, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Elements may have fields:
/// ```
/// use bpfarray::Array;
/// use bpfarray::zerocopy::{FromBytes, Immutable, IntoBytes};
/// #[derive(Copy, Clone, FromBytes, IntoBytes, Immutable)]
/// #[zerocopy(crate = "bpfarray::zerocopy")]
/// #[repr(C)]
/// struct Limit { rate: u32, burst: u32 }
///
/// let limits = Array::<Limit>::new(16)?;
/// limits.set(0, Limit { rate: 1000, burst: 50 })?;
/// assert_eq!(limits.get(0).map(|limit| limit.burst), Some(50));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Any thread may read and write at any time. An element of up to 8 bytes whose size is a power of
/// two is read and written in one piece. Larger ones can be read half old and half new, piece by
/// piece. Nothing orders accesses to different elements. An array that can write keeps its map from
/// being frozen by others.
#[doc(alias = "BPF_MAP_TYPE_ARRAY")]
pub struct Array<T> {
    /// Exactly the elements, and here rather than behind the map's pointer: a loop keeps its
    /// address in a register.
    values: Memory,
    map: TypedMap,
    element: PhantomData<fn() -> T>,
}

impl<T: Element> Array<T> {
    /// Creates a map of `max_entries` elements, all zero.
    ///
    /// # Errors
    /// [`CreateError::MaxEntries`], [`CreateError::ValueSize`], [`CreateError::ValueTooLarge`],
    /// [`CreateError::TooManyEntries`], [`CreateError::NoMemory`].
    pub fn new(max_entries: u32) -> Result<Self, CreateError> {
        Ok(Self::over(create::<T>(MapType::ARRAY, max_entries)?))
    }

    /// Gives a map's elements the type `T`. With a read-only handle, or on a frozen map, the array
    /// can only read.
    ///
    /// # Errors
    /// The variants of [`ShapeError`] in their order.
    pub fn from_map(map: Map) -> Result<Self, ShapeError> {
        check_shape::<T>(&map, MapType::ARRAY)?;
        Ok(Self::over(map))
    }

    fn over(map: Map) -> Self {
        let map = TypedMap::new(map);
        Self { values: map.area().payload().clone(), map, element: PhantomData }
    }

    /// The map under the array.
    pub fn map(&self) -> &Map {
        self.map.map()
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.map().max_entries()
    }

    /// Always `false`: a map has elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies an element; `None` past the end.
    #[inline]
    pub fn get(&self, index: u32) -> Option<T> {
        self.values.read_elem(index)
    }

    /// Replaces an element.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`], [`UpdateError::Index`].
    #[inline]
    pub fn set(&self, index: u32, value: T) -> Result<(), UpdateError> {
        self.map.check_writable()?;
        self.values.write_elem(index, value).ok_or_else(|| self.map().no_index(index))
    }

    /// Copies one element after the other, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    /// Ends writing to the map, by this array and by handles. Programs may still write.
    ///
    /// # Errors
    /// The variants of [`FreezeError`] in their order; other arrays that can write keep the map
    /// busy.
    ///
    /// # Kernel
    /// `map_freeze`
    pub fn freeze(&mut self) -> Result<(), FreezeError> {
        self.map.freeze()
    }
}

impl<T: Integer> Array<T> {
    /// Adds to an element in one atomic step, wrapping around, and returns what it was before.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`], [`UpdateError::Index`].
    #[inline]
    pub fn fetch_add(&self, index: u32, n: T) -> Result<T, UpdateError> {
        self.map.check_writable()?;
        let at = index as usize * self.map().layout().elem_size() as usize;
        self.values
            .fetch_add(at, size_of::<T>(), n.to_bits())
            .map(T::from_bits)
            .map_err(|_| self.map().no_index(index))
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Array").field(self.map.map()).finish()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::HandleMode;

    #[test]
    fn elements_of_any_size_keep_apart() {
        let array = Array::<[u8; 3]>::new(4).unwrap();
        for index in 0..4 {
            array.set(index, [index as u8 + 1; 3]).unwrap();
        }
        assert_eq!(array.iter().collect::<Vec<_>>(), [[1; 3], [2; 3], [3; 3], [4; 3]]);
        assert_eq!(array.get(4), None);
        assert_eq!(array.set(4, [0; 3]).unwrap_err().errno(), crate::Errno::E2BIG);
        let mut value = [0; 3];
        array.map().lookup_elem(2, &mut value, 0).unwrap();
        assert_eq!(value, [3; 3]);
    }

    #[test]
    fn sums_wrap_around_in_their_own_width() {
        let small = Array::<i32>::new(2).unwrap();
        small.set(1, i32::MAX).unwrap();
        assert_eq!(small.fetch_add(1, 1), Ok(i32::MAX));
        assert_eq!(small.fetch_add(1, -1), Ok(i32::MIN));
        assert_eq!((small.get(0), small.get(1)), (Some(0), Some(i32::MAX)));
        let large = Array::<i64>::new(1).unwrap();
        assert_eq!(large.fetch_add(0, -5), Ok(0));
        assert_eq!(large.get(0), Some(-5));
        assert!(matches!(large.fetch_add(1, 1), Err(UpdateError::Index { .. })));
    }

    #[test]
    fn a_map_of_another_shape_is_no_such_array() {
        let map = Array::<u64>::new(2).unwrap().map().clone();
        assert!(matches!(
            Array::<u32>::from_map(map.clone()).unwrap_err(),
            ShapeError::ValueSize { found: 8, expected: 4 }
        ));
        let percpu = crate::PercpuArray::<u64>::new(2).unwrap().map().clone();
        assert!(matches!(
            Array::<u64>::from_map(percpu).unwrap_err(),
            ShapeError::MapType { found: MapType::PERCPU_ARRAY, .. }
        ));
        let write_only = map.with_mode(HandleMode::WriteOnly);
        assert_eq!(Array::<u64>::from_map(write_only).unwrap_err(), ShapeError::NotReadable);
        assert_eq!(Array::<[u32; 2]>::from_map(map).unwrap().len(), 2);
    }

    #[test]
    fn a_read_only_handle_makes_a_read_only_array() {
        let array = Array::<u64>::new(1).unwrap();
        let reader = array.map().with_mode(HandleMode::ReadOnly);
        let reader = Array::<u64>::from_map(reader).unwrap();
        array.set(0, 7).unwrap();
        assert_eq!(reader.get(0), Some(7));
        assert_eq!(reader.set(0, 8), Err(UpdateError::NotWritable));
        assert_eq!(reader.fetch_add(9, 1), Err(UpdateError::NotWritable));
    }

    #[test]
    fn an_array_that_can_write_keeps_its_map_busy() {
        let mut array = Array::<u64>::new(1).unwrap();
        let map = array.map().clone();
        let mut second = Array::<u64>::from_map(map.clone()).unwrap();
        assert_eq!(map.freeze(), Err(FreezeError::Busy));
        assert_eq!(array.freeze(), Err(FreezeError::Busy));
        assert_eq!(array.set(0, 1), Ok(()), "still writable after the refusal");
        drop(array);
        assert_eq!(second.freeze(), Ok(()));
        assert_eq!(second.set(0, 2), Err(UpdateError::NotWritable));
        let late = Array::<u64>::from_map(map).unwrap();
        assert_eq!((late.get(0), late.set(0, 3)), (Some(1), Err(UpdateError::NotWritable)));
    }

    #[test]
    fn an_element_without_bytes_is_no_value() {
        assert_eq!(Array::<[u8; 0]>::new(1).unwrap_err(), CreateError::ValueSize);
        assert_eq!(Array::<u8>::new(0).unwrap_err(), CreateError::MaxEntries);
    }
}
