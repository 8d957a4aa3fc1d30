//! The root directory as maps see it: where the ids in their slots lead.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};

use bpfarray::perf::SharedRing;
use bpfarray::{Cgroup, Directory, HandleMode, Kind as MapKind, Map, Object};
use bpfarray_core::Errno;
use bpfarray_core::btf::Btf;
use bpfarray_vm::{LogLevel, Program};

use crate::event;
use crate::file::{INTERNAL, read_btf};
use crate::prog;
use crate::prog_file::ProgFile;
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

    /// Opens a perf event for programs of this process.
    pub(crate) fn open_event(&self, id: u32) -> io::Result<SharedRing> {
        let directory: Arc<dyn Directory> = self.this.upgrade().ok_or(io::ErrorKind::NotFound)?;
        event::open(&self.root, &directory, id)
    }

    /// A program, verified and compiled for the slot in which it is.
    fn program(&self, id: u32) -> Option<Program> {
        let file = ProgFile::read(&File::open(self.root.object(Kind::Prog, id)).ok()?).ok()?;
        let maps = file.maps.iter().map(|&map| Some(self.open_map(map).ok()?.to_ref()));
        let maps = maps.collect::<Option<_>>()?;
        let btf = match file.btf_id {
            0 => None,
            btf => File::open(self.root.object(Kind::Btf, btf))
                .and_then(|file| read_btf(&file))
                .ok()
                .and_then(|bytes| Btf::parse(&bytes).ok()),
        };
        Some(prog::build(&file, maps, btf.as_ref(), LogLevel::None).ok()?.with_id(id))
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
            MapKind::ProgArray => {
                let program = self.program(u32::try_from(id).ok()?)?;
                Some(Object::Program(Arc::new(program)))
            }
            // Counters are of the process that opened them.
            MapKind::PerfEventArray if id == 0 => None,
            MapKind::PerfEventArray => {
                let event = self.open_event(u32::try_from(id).ok()?).ok()?;
                Some(Object::PerfEvent(Arc::new(event)))
            }
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
