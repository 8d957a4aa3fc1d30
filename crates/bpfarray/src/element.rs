//! What elements of typed arrays are, and which maps hold them.

use bpfarray_core::attr::{CreateError, MapAttr, MapType};
use bpfarray_core::map::{FreezeError, HandleMode, UpdateError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::area::Area;
use crate::map::Map;

/// A type whose values are their bytes: any bytes make one, and there is no padding in it.
///
/// Derive [`zerocopy`]'s `FromBytes`, `IntoBytes` and `Immutable`, and `Copy`.
pub trait Element: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Element for T {}

mod sealed {
    pub trait Sealed {
        fn to_bits(self) -> u64;
        fn from_bits(bits: u64) -> Self;
    }
}

pub(crate) use sealed::Sealed;

/// The integers that can be added to: `u32`, `i32`, `u64` and `i64`. Sums wrap around.
pub trait Integer: Element + Sealed {}

macro_rules! integers {
    ($($int:ty)*) => {
        $(
            impl Sealed for $int {
                #[inline(always)]
                fn to_bits(self) -> u64 {
                    self as u64
                }

                #[inline(always)]
                fn from_bits(bits: u64) -> Self {
                    bits as Self
                }
            }

            impl Integer for $int {}
        )*
    };
}

integers!(u32 i32 u64 i64);

#[inline(always)]
pub(crate) fn wrapping_add<T: Integer>(a: T, b: T) -> T {
    T::from_bits(a.to_bits().wrapping_add(b.to_bits()))
}

/// Why a map is no array of a type. The variants stand in the order in which they are checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShapeError {
    /// The map is of another type.
    #[error("the map's type is {found}, not {expected}")]
    MapType {
        /// Type of the map.
        found: MapType,
        /// Type that is needed.
        expected: MapType,
    },
    /// The map's values have another size.
    #[error("the map's value_size is {found}, not {expected}")]
    ValueSize {
        /// Bytes of the map's values.
        found: u32,
        /// Bytes of the element type.
        expected: usize,
    },
    /// The map's values have special fields, whose bytes are not for everybody.
    #[error("the map's values have {0}")]
    SpecialField(&'static str),
    /// The handle may only write.
    #[error("the handle may not read")]
    NotReadable,
}

/// Creates a map for elements of type `T`.
pub(crate) fn create<T: Element>(map_type: MapType, max_entries: u32) -> Result<Map, CreateError> {
    let value_size = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    Map::create(&MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() })
}

/// Checks that a map holds elements of type `T` and that its handle can read them.
pub(crate) fn check_shape<T: Element>(map: &Map, expected: MapType) -> Result<(), ShapeError> {
    let found = map.map_type();
    if found != expected {
        return Err(ShapeError::MapType { found, expected });
    }
    let (found, expected) = (map.value_size(), size_of::<T>());
    if found as usize != expected {
        return Err(ShapeError::ValueSize { found, expected });
    }
    if let Some(field) = map.special_fields().as_slice().first() {
        return Err(ShapeError::SpecialField(field.kind.name()));
    }
    match map.mode() {
        HandleMode::WriteOnly => Err(ShapeError::NotReadable),
        HandleMode::ReadOnly | HandleMode::ReadWrite => Ok(()),
    }
}

/// A map under a typed array, which counts as one writer for as long as it may write: as a
/// writable mapping does in the kernel. So no single write has to look whether the map is frozen.
#[derive(Debug)]
pub(crate) struct TypedMap {
    map: Map,
    writable: bool,
}

impl TypedMap {
    pub(crate) fn new(map: Map) -> Self {
        let mut typed = Self { map, writable: false };
        typed.allow_writing();
        typed
    }

    fn allow_writing(&mut self) {
        self.writable = match self.map.mode() {
            HandleMode::ReadOnly => false,
            HandleMode::WriteOnly | HandleMode::ReadWrite => self.map.inner.gate.try_enter(),
        };
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    pub(crate) fn area(&self) -> &Area {
        &self.map.inner.area
    }

    pub(crate) fn freeze(&mut self) -> Result<(), FreezeError> {
        self.forbid_writing();
        let frozen = self.map.freeze();
        if frozen.is_err() {
            self.allow_writing();
        }
        frozen
    }

    fn forbid_writing(&mut self) {
        if self.writable {
            self.writable = false;
            self.map.inner.gate.leave();
        }
    }

    #[inline(always)]
    pub(crate) fn check_writable(&self) -> Result<(), UpdateError> {
        if self.writable { Ok(()) } else { Err(UpdateError::NotWritable) }
    }
}

impl Drop for TypedMap {
    fn drop(&mut self) {
        self.forbid_writing();
    }
}
