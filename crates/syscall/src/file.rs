//! Descriptors of this process, or of one whose call it answers, and the objects behind them. Safe code: a descriptor is
//! looked at through its link in `/proc/PID/fd`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bpfarray::{HandleMode, Map, MapRef};
use bpfarray_core::Errno;
use bpfarray_core::btf::Btf;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use crate::caller;
use crate::listing::Listing;
use crate::prog::ProgObject;
use crate::prog_file::ProgFile;
use crate::root::{BTF_OFFSET, Kind, Root, errno};

/// What a descriptor refers to.
#[derive(Clone)]
pub(crate) enum Object {
    Map(OpenMap),
    Btf(Arc<BtfObject>),
    Prog(Arc<ProgObject>),
    /// A link, by its id. What it links may change.
    Link(u32),
}

/// A map as one descriptor has it.
#[derive(Clone)]
pub(crate) struct OpenMap {
    /// With the descriptor's mode.
    pub(crate) handle: Map,
    pub(crate) object: Arc<MapObject>,
}

/// A map of the root directory in this process.
pub(crate) struct MapObject {
    pub(crate) id: u32,
    /// The BTF it was created with, or 0.
    pub(crate) btf_id: u32,
    map: MapRef,
    /// Device and inode.
    key: (u64, u64),
}

impl MapObject {
    /// A map whose file has just been opened.
    pub(crate) fn new(root: &Root, id: u32, map: &Map) -> Result<Arc<Self>, Errno> {
        let found = fs::metadata(root.object(Kind::Map, id)).map_err(|error| errno(&error))?;
        let (map, key) = (map.to_ref(), (found.dev(), found.ino()));
        Ok(Arc::new(Self { id, btf_id: root.btf_id_of_map(id), map, key }))
    }

    /// Whether the root directory still has it.
    fn is_listed(&self, root: &Root) -> bool {
        let found = fs::symlink_metadata(root.object(Kind::Map, self.id));
        found.is_ok_and(|found| (found.dev(), found.ino()) == self.key)
    }

    pub(crate) fn with_mode(self: &Arc<Self>, mode: HandleMode) -> OpenMap {
        OpenMap { handle: self.map.with_mode(mode), object: Arc::clone(self) }
    }

    pub(crate) fn to_ref(&self) -> MapRef {
        self.map.clone()
    }
}

/// A BTF object.
pub(crate) struct BtfObject {
    pub(crate) id: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Descriptors from this one on are looked up anew for each command.
const REMEMBERED: usize = 4096;

/// A set of small descriptors that is read without a lock.
pub(crate) struct FdSet([AtomicU64; REMEMBERED / 64]);

/// Files that the library has open for itself. The program does not know of them, and must not close them.
pub(crate) static INTERNAL: FdSet = FdSet::new();

impl FdSet {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; REMEMBERED / 64])
    }

    fn word(&self, fd: RawFd) -> Option<(&AtomicU64, u64)> {
        let fd = usize::try_from(fd).ok()?;
        Some((self.0.get(fd / 64)?, 1 << (fd % 64)))
    }

    pub(crate) fn contains(&self, fd: RawFd) -> bool {
        self.word(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Whether the descriptor was small enough.
    pub(crate) fn insert(&self, fd: RawFd) -> bool {
        let word = self.word(fd);
        word.is_some_and(|(word, bit)| {
            word.fetch_or(bit, Ordering::Relaxed);
            true
        })
    }

    pub(crate) fn remove(&self, fd: RawFd) {
        if let Some((word, bit)) = self.word(fd) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// All descriptors in the set that are in a range.
    pub(crate) fn within(&self, first: u32, last: u32) -> impl Iterator<Item = RawFd> {
        let last = last.min(REMEMBERED as u32 - 1);
        (first..=last).map(|fd| fd.cast_signed()).filter(|&fd| self.contains(fd))
    }
}

/// Why a descriptor is none of ours.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum NotOurs {
    /// It is not open.
    Closed,
    /// It is something else.
    Other,
    /// It is ours, but cannot be used.
    Failed(Errno),
}

impl NotOurs {
    /// What most commands answer.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::Closed => Errno::EBADF,
            Self::Other => Errno::EINVAL,
            Self::Failed(errno) => errno,
        }
    }
}

/// The name of an open file of the caller, by which it can be opened once more.
pub(crate) fn proc_path(fd: RawFd) -> String {
    match caller::process() {
        Some(tid) => format!("/proc/{tid}/fd/{fd}"),
        None => format!("/proc/self/fd/{fd}"),
    }
}

/// What can be told of a descriptor without opening its file.
pub(crate) struct Link {
    /// What it was opened for.
    mode: HandleMode,
    /// Device and inode.
    key: (u64, u64),
}

impl Link {
    pub(crate) fn of(fd: RawFd) -> Result<Self, NotOurs> {
        const READ: u32 = 0o400;
        const WRITE: u32 = 0o200;
        let path = proc_path(fd);
        let link = fs::symlink_metadata(&path).map_err(|_| NotOurs::Closed)?;
        let mode = match (link.mode() & READ != 0, link.mode() & WRITE != 0) {
            (true, false) => HandleMode::ReadOnly,
            (false, true) => HandleMode::WriteOnly,
            _ => HandleMode::ReadWrite,
        };
        let found = fs::metadata(&path).map_err(|_| NotOurs::Closed)?;
        if !found.is_file() {
            return Err(NotOurs::Other);
        }
        Ok(Self { mode, key: (found.dev(), found.ino()) })
    }

    /// The same for a descriptor of another process, by the shorter way if there is one.
    pub(crate) fn of_other(fd: RawFd) -> Result<Self, NotOurs> {
        let copy = match caller::copy_of(fd) {
            Ok(copy) => File::from(copy),
            Err(rustix::io::Errno::BADF) => return Err(NotOurs::Closed),
            Err(_) => {
                let link = Self::of(fd);
                return caller::still_waits().map_err(NotOurs::Failed).and(link);
            }
        };
        let found = fstat(&copy).map_err(|_| NotOurs::Other)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(NotOurs::Other);
        }
        let flags = fcntl_getfl(&copy).map_err(|_| NotOurs::Other)?;
        let mode = match flags & OFlags::RWMODE {
            OFlags::RDONLY => HandleMode::ReadOnly,
            OFlags::WRONLY => HandleMode::WriteOnly,
            _ => HandleMode::ReadWrite,
        };
        Ok(Self { mode, key: (found.st_dev, found.st_ino) })
    }
}

/// Files of this process: its descriptors, as far as commands met them, its maps and its programs.
#[derive(Default)]
pub(crate) struct Files {
    open: Vec<Option<Object>>,
    maps: Vec<Weak<MapObject>>,
    progs: Vec<Weak<ProgObject>>,
    /// Maps that other processes gave to commands. Each keeps its file, so the inode is still the map's.
    kept: HashMap<(u64, u64), Arc<MapObject>>,
    /// Programs, in the same way, by their ids.
    kept_progs: HashMap<u32, Arc<ProgObject>>,
    /// How many came since it was last looked which of them are still there.
    newly_kept: usize,
}

impl Files {
    pub(crate) fn get(&self, fd: RawFd) -> Option<&Object> {
        self.open.get(usize::try_from(fd).ok()?)?.as_ref()
    }

    /// Remembers what a descriptor is. Only for those that `FdSet` can hold.
    pub(crate) fn set(&mut self, fd: RawFd, object: Option<Object>) {
        let Ok(at) = usize::try_from(fd) else { return };
        if at >= self.open.len() {
            self.open.resize(at + 1, None);
        }
        if let Some(place) = self.open.get_mut(at) {
            *place = object;
        }
    }

    pub(crate) fn add_map(&mut self, object: &Arc<MapObject>) {
        self.maps.retain(|map| map.strong_count() > 0);
        self.maps.push(Arc::downgrade(object));
    }

    pub(crate) fn add_prog(&mut self, object: &Arc<ProgObject>) {
        self.progs.retain(|prog| prog.strong_count() > 0);
        self.progs.push(Arc::downgrade(object));
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The map behind another process's descriptor, if it is kept.
    pub(crate) fn kept(&self, link: &Link) -> Option<Object> {
        Some(Object::Map(self.kept.get(&link.key)?.with_mode(link.mode)))
    }

    /// Keeps a map or program for later commands of other processes. It is no reference: who holds none, loses it.
    pub(crate) fn keep(&mut self, root: &Root, object: &Object) {
        self.newly_kept += 1;
        if self.newly_kept * 4 > self.kept.len() + self.kept_progs.len() {
            self.newly_kept = 0;
            self.kept_progs.retain(|&id, _| root.object(Kind::Prog, id).exists());
            self.kept.retain(|_, map| map.is_listed(root));
        }
        match object {
            Object::Map(map) => {
                self.kept.insert(map.object.key, Arc::clone(&map.object));
            }
            Object::Prog(prog) => {
                self.add_prog(prog);
                self.kept_progs.insert(prog.id, Arc::clone(prog));
            }
            Object::Btf(_) | Object::Link(_) => {}
        }
    }

    /// The object behind a descriptor, from its file.
    pub(crate) fn resolve(
        &mut self,
        root: &Root,
        listing: &Listing,
        fd: RawFd,
    ) -> Result<Object, NotOurs> {
        let Link { mode, key } = Link::of(fd)?;
        let path = proc_path(fd);
        // A map that is in use here keeps its file, so the inode is still the map's.
        let same = self.maps.iter().filter_map(Weak::upgrade).find(|map| map.key == key);
        if let Some(map) = same {
            return Ok(Object::Map(map.with_mode(mode)));
        }
        let file = File::open(&path).map_err(|_| NotOurs::Other)?;
        match root.identify(&file).ok_or(NotOurs::Other)? {
            (Kind::Map, id) => {
                let object = self.map(root, listing, id).map_err(NotOurs::Failed)?;
                Ok(Object::Map(object.with_mode(mode)))
            }
            (Kind::Btf, id) => {
                let bytes = read_btf(&file).map_err(|error| NotOurs::Failed(errno(&error)))?;
                Ok(Object::Btf(Arc::new(BtfObject { id, bytes })))
            }
            (Kind::Prog, id) => {
                self.prog(root, listing, id, &file).map(Object::Prog).map_err(NotOurs::Failed)
            }
            (Kind::Link, id) => Ok(Object::Link(id)),
        }
    }

    /// The map with an id, which somebody refers to.
    pub(crate) fn map(
        &mut self,
        root: &Root,
        listing: &Listing,
        id: u32,
    ) -> Result<Arc<MapObject>, Errno> {
        let known = self.maps.iter().filter_map(Weak::upgrade).find(|map| map.id == id);
        if let Some(object) = known {
            return Ok(object);
        }
        let object = MapObject::new(root, id, &listing.open_map(id)?)?;
        self.add_map(&object);
        Ok(object)
    }

    /// The program that a file says it is.
    pub(crate) fn prog(
        &mut self,
        root: &Root,
        listing: &Listing,
        id: u32,
        file: &File,
    ) -> Result<Arc<ProgObject>, Errno> {
        let known = self.progs.iter().filter_map(Weak::upgrade).find(|prog| prog.id == id);
        if let Some(object) = known {
            return Ok(object);
        }
        let file = ProgFile::read(file).map_err(|error| errno(&error))?;
        let maps =
            file.maps.iter().map(|&map| self.map(root, listing, map)).collect::<Result<_, _>>()?;
        let types = || {
            let btf = File::open(root.object(Kind::Btf, file.btf_id)).ok()?;
            Btf::parse(&read_btf(&btf).ok()?).ok()
        };
        let btf = if file.btf_id == 0 { None } else { types() };
        let object = ProgObject::new(id, file, maps, btf);
        self.add_prog(&object);
        Ok(object)
    }
}

pub(crate) fn read_btf(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().saturating_sub(BTF_OFFSET);
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, BTF_OFFSET)?;
    Ok(bytes)
}
