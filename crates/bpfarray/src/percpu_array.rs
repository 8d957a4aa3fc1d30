//! Per-CPU arrays of values of a Rust type.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bpfarray_core::Errno;
use bpfarray_core::attr::{CreateError, MapType};
use bpfarray_core::map::{FreezeError, UpdateError};

use crate::cpu::possible_cpus;
use crate::element::{Element, Integer, ShapeError, TypedMap, check_shape, create, wrapping_add};
use crate::file::MapFile;
use crate::lane::Lane;
use crate::map::Map;
use crate::memory::Memory;

/// A PERCPU_ARRAY map with elements of type `T`: each CPU has values of its own.
///
/// Made for counters that many threads add to: [`PercpuArray::add`] writes where no other thread
/// writes at the time, so cache lines stay where they are.
///
/// ```
/// use bpfarray::PercpuArray;
/// let packets = PercpuArray::<u64>::new(256)?;
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| (0..1000).try_for_each(|_| packets.add(6, 1)));
///     }
/// });
/// assert_eq!(packets.sum(6), Some(4000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Concurrency
/// Any thread may read at any time, in pieces as [`Array`](crate::Array) does. Changes made in a
/// [`Lane`] are never lost to each other. [`PercpuArray::set`] can be lost to, or undo, a change
/// that a lane is making at the same time, as in the kernel.
#[doc(alias = "BPF_MAP_TYPE_PERCPU_ARRAY")]
pub struct PercpuArray<T> {
    /// Exactly the elements of each CPU.
    values: Box<[Memory]>,
    /// Of a map that other processes share.
    file: Option<Arc<MapFile>>,
    map: TypedMap,
    element: PhantomData<fn() -> T>,
}

/// Why the element of a CPU cannot be written.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuError {
    /// No such CPU.
    #[error("cpu {cpu} is not below {possible_cpus}, the number of possible CPUs")]
    Cpu {
        /// The CPU asked for.
        cpu: u32,
        /// The number of CPUs.
        possible_cpus: u32,
    },
    /// As for any element.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

impl CpuError {
    /// The error number `bpf(2)` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Cpu { .. } => Errno::ERANGE,
            Self::Update(error) => error.errno(),
        }
    }
}

impl<T: Element> PercpuArray<T> {
    /// Creates a map of `max_entries` elements for each possible CPU, all zero.
    ///
    /// # Errors
    /// [`CreateError::MaxEntries`], [`CreateError::ValueSize`], [`CreateError::ValueTooLarge`],
    /// [`CreateError::TooManyEntries`], [`CreateError::NoMemory`].
    pub fn new(max_entries: u32) -> Result<Self, CreateError> {
        Ok(Self::over(create::<T>(MapType::PERCPU_ARRAY, max_entries)?))
    }

    /// Gives a map's elements the type `T`. With a read-only handle, or on a frozen map, the array
    /// can only read.
    ///
    /// # Errors
    /// The variants of [`ShapeError`] in their order.
    pub fn from_map(map: Map) -> Result<Self, ShapeError> {
        check_shape::<T>(&map, MapType::PERCPU_ARRAY)?;
        Ok(Self::over(map))
    }

    fn over(map: Map) -> Self {
        let map = TypedMap::new(map);
        let file = map.map().inner.gate.file().cloned();
        Self { values: map.area().percpu().into(), file, map, element: PhantomData }
    }

    /// The map under the array.
    pub fn map(&self) -> &Map {
        self.map.map()
    }

    /// Number of elements of each CPU.
    pub fn len(&self) -> u32 {
        self.map().max_entries()
    }

    /// Always `false`: a map has elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies an element of one CPU; `None` past the end, and for a CPU that does not exist.
    #[inline]
    pub fn get(&self, index: u32, cpu: u32) -> Option<T> {
        self.values.get(cpu as usize)?.read_elem(index)
    }

    /// Copies an element of each CPU, in the order of CPUs; `None` past the end.
    pub fn values(&self, index: u32) -> Option<Vec<T>> {
        (0..possible_cpus()).map(|cpu| self.get(index, cpu)).collect()
    }

    /// Replaces an element of one CPU.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`], [`CpuError::Cpu`], [`UpdateError::Index`].
    pub fn set(&self, index: u32, cpu: u32, value: T) -> Result<(), CpuError> {
        self.map.check_writable()?;
        let values = self
            .values
            .get(cpu as usize)
            .ok_or(CpuError::Cpu { cpu, possible_cpus: possible_cpus() })?;
        values.write_elem(index, value).ok_or_else(|| self.map().no_index(index).into())
    }

    /// Replaces the element of the lane's CPU by what `change` makes of it.
    ///
    /// ```
    /// use bpfarray::{Lane, PercpuArray};
    /// let longest = PercpuArray::<u32>::new(1)?;
    /// let lane = Lane::enter();
    /// longest.update(&lane, 0, |length| length.max(1500))?;
    /// assert_eq!(longest.get(0, lane.cpu()), Some(1500));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`], [`UpdateError::Index`].
    ///
    /// # Concurrency
    /// Needs no atomic read-modify-write: no other thread has the lane. `change` itself is in it, so what it
    /// does to the same element, by [`PercpuArray::add`] or otherwise, is overwritten; and if it waits
    /// for another thread, that one must not need a lane.
    /// If other processes share the map, `change` must not touch another shared map either, whose lane
    /// another process could hold while it waits for this one's.
    #[inline]
    pub fn update(
        &self,
        lane: &Lane,
        index: u32,
        change: impl FnOnce(T) -> T,
    ) -> Result<(), UpdateError> {
        self.map.check_writable()?;
        let values = self.values.get(lane.cpu() as usize);
        let write = || values?.write_elem(index, change(values?.read_elem(index)?));
        match &self.file {
            None => write(),
            Some(file) => {
                let _held = file.claim(lane.cpu());
                write()
            }
        }
        .ok_or_else(|| self.map().no_index(index))
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

impl<T: Integer> PercpuArray<T> {
    /// Adds to an element of the CPU this thread runs on, or of another one if that CPU's lane is
    /// taken, wrapping around.
    ///
    /// # Errors
    /// [`UpdateError::NotWritable`], [`UpdateError::Index`].
    ///
    /// # Concurrency
    /// No addition is ever lost to one of another thread, nor to a program's in its lane.
    #[inline]
    pub fn add(&self, index: u32, n: T) -> Result<(), UpdateError> {
        self.update(&Lane::enter(), index, |value| wrapping_add(value, n))
    }

    /// The sum of an element over all CPUs, wrapping around; `None` past the end.
    ///
    /// # Concurrency
    /// CPUs are read one after the other, so the sum may be one that never was at any instant. It
    /// has all that was added before the call.
    pub fn sum(&self, index: u32) -> Option<T> {
        (0..possible_cpus())
            .map(|cpu| self.get(index, cpu))
            .try_fold(T::from_bits(0), |sum, value| Some(wrapping_add(sum, value?)))
    }
}

impl<T> fmt::Debug for PercpuArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PercpuArray").field(self.map.map()).finish()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_has_values_of_its_own() {
        let array = PercpuArray::<i64>::new(3).unwrap();
        let expected: Vec<i64> = (0..possible_cpus()).map(|cpu| -1 - i64::from(cpu)).collect();
        for (cpu, &value) in expected.iter().enumerate() {
            array.set(1, cpu as u32, value).unwrap();
        }
        assert_eq!(array.values(1), Some(expected.clone()));
        assert_eq!(array.sum(1), Some(expected.iter().sum()));
        assert_eq!((array.sum(0), array.sum(3), array.values(3)), (Some(0), None, None));
        assert_eq!(array.get(1, possible_cpus()), None);
    }

    #[test]
    fn a_cpu_that_does_not_exist_beats_a_bad_index() {
        let array = PercpuArray::<u32>::new(3).unwrap();
        assert_eq!(array.set(3, possible_cpus(), 1).unwrap_err().errno(), Errno::ERANGE);
        assert_eq!(array.set(3, 0, 1).unwrap_err().errno(), Errno::E2BIG);
    }

    #[test]
    fn an_addition_goes_to_the_cpu_of_the_lane() {
        let array = PercpuArray::<u32>::new(2).unwrap();
        let lane = Lane::enter();
        array.add(1, u32::MAX).unwrap();
        array.add(1, 3).unwrap();
        let mut expected = vec![0; possible_cpus() as usize];
        expected[lane.cpu() as usize] = 2;
        assert_eq!(array.values(1), Some(expected));
        assert!(matches!(array.add(2, 1), Err(UpdateError::Index { .. })));
    }

    #[test]
    fn a_frozen_array_takes_nothing_more() {
        let mut array = PercpuArray::<u64>::new(1).unwrap();
        array.add(0, 5).unwrap();
        array.freeze().unwrap();
        assert_eq!(array.add(0, 1), Err(UpdateError::NotWritable));
        assert_eq!(array.set(0, 0, 1), Err(UpdateError::NotWritable.into()));
        assert_eq!(array.sum(0), Some(5));
    }

    #[test]
    fn no_addition_is_lost_when_threads_outnumber_cpus() {
        const THREADS: u64 = 8;
        const ROUNDS: u64 = 50_000;
        let array = PercpuArray::<u64>::new(2).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let array = &array;
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        array.add((thread % 2) as u32, thread + 1).unwrap();
                    }
                });
            }
        });
        let expected = |first: u64| (first..=THREADS).step_by(2).sum::<u64>() * ROUNDS;
        assert_eq!(array.sum(0), Some(expected(1)));
        assert_eq!(array.sum(1), Some(expected(2)));
    }
}
