//! The root directory as maps see it: where the ids in their slots lead.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};

use bpfarray::{Cgroup, Directory, HandleMode, Kind as MapKind, Map, Object};
use bpfarray_core::Errno;

use crate::file::INTERNAL;
use crate::root::{Kind, Root};

/// Finds objects for the slots of maps, and keeps account of the files that maps have open.
pub(crate) struct Listing {
    root: Root,
    /// For the maps it finds, which want to find others.
    this: Weak<Self>,
}

impl Listing {
    pub(crate) fn new(root: &Root) -> Arc<Self> {
        let root = root.clone();
        Arc::new_cyclic(|this| Self { root, this: this.clone() })
    }

    /// Opens a map for all that its permissions allow: what a descriptor may do, its handle knows.
    pub(crate) fn open_map(&self, id: u32) -> Result<Map, Errno> {
        let path = self.root.object(Kind::Map, id);
        let directory: Arc<dyn Directory> = self.this.upgrade().ok_or(Errno::ENOENT)?;
        Map::open_in(&directory, &path, HandleMode::ReadWrite)
            .or_else(|_| Map::open_in(&directory, &path, HandleMode::ReadOnly))
            .map_err(|error| error.errno())
    }
}

impl Directory for Listing {
    fn object(&self, holder: MapKind, id: u64) -> Option<Object> {
        match holder {
            MapKind::ArrayOfMaps => {
                let map = self.open_map(u32::try_from(id).ok()?).ok()?;
                Some(Object::Map(map.to_ref()))
            }
            MapKind::CgroupArray => Cgroup::from_id(id).ok().map(Object::Cgroup),
            // Perf events are of the process that opened them, and programs cannot be loaded yet.
            MapKind::ProgArray | MapKind::PerfEventArray => None,
            MapKind::Array | MapKind::PercpuArray => None,
        }
    }

    fn opened(&self, file: BorrowedFd<'_>) {
        INTERNAL.insert(file.as_raw_fd());
    }

    fn closing(&self, file: BorrowedFd<'_>) {
        INTERNAL.remove(file.as_raw_fd());
    }
}
