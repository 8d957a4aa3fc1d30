//! Where the slots of shared maps find their objects.

use std::os::fd::BorrowedFd;

use bpfarray_core::map::Kind;

use crate::object::Object;

/// What lists map files and other objects of several processes under ids.
///
/// A slot of a map file holds an id. Each process that runs programs on the map has a table of its own with what the ids
/// stand for, which it makes with the help of the directory: see
/// [`MapRef::refresh_slots`](crate::MapRef::refresh_slots).
///
/// An id in a slot is a reference: the directory keeps the object for as long as it keeps the map (see
/// [`slots_of_file`](crate::slots_of_file)). So whoever changes slots holds whatever keeps the directory from looking for
/// objects without references, and others from changing slots at the same time.
pub trait Directory: Send + Sync {
    /// The object that a slot of a map of this kind names. `None` if there is none, or none that this process can use.
    fn object(&self, holder: Kind, id: u64) -> Option<Object>;

    /// A map has opened its file, for itself.
    fn opened(&self, file: BorrowedFd<'_>);

    /// The map is going, and with it the open file.
    fn closing(&self, file: BorrowedFd<'_>);
}
