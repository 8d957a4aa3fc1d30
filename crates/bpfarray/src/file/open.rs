//! What [`Map`] can do with files.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bpfarray_core::attr::{CreateError, Creator, MapAttr, MapType};
use bpfarray_core::btf::{Btf, FieldMask, SpecialFields};
use bpfarray_core::map::{HandleMode, Kind};
use rustix::fs::{OFlags, SealFlags, fcntl_get_seals, fcntl_getfl};
use rustix::param::page_size;
use zerocopy::{FromZeros, IntoBytes};

use super::disk::{self, Content};
use super::error::FileError;
use super::exclusive::{EXCLUSIVE_OFFSET, ExclusiveHeader};
use super::header::{Header, HeaderError, PAGE, Shape};
use super::lanes::Lanes;
use super::seat::Seat;
use super::template::{TEMPLATE_OFFSET, Template, TemplateHeader};
use super::{LaneWords, MapFile, Source};
use crate::area::Area;
use crate::cpu::possible_cpus;
use crate::directory::Directory;
use crate::map::{InSlots, Inner, Map, MapRef};
use crate::window::Extent;

/// The map files that are open in this process, so that a file opened twice is one map.
static OPEN: Mutex<Vec<OpenFile>> = Mutex::new(Vec::new());

/// # Kernel
/// `BTF_MAX_SIZE`
const BTF_MAX_SIZE: u64 = 16 << 20;

struct OpenFile {
    key: (u64, u64),
    /// Who opened it: what a process has from its parent it must not use.
    process: u32,
    read_only: bool,
    map: Weak<Inner>,
}

impl Map {
    /// Creates a map whose memory is a new file, readable and writable for this user only.
    ///
    /// Values are zero and take up no space before they are written. Lookups are masked against
    /// Spectre v1. The file appears under its name when it is complete.
    ///
    /// ```
    /// use bpfarray::attr::{MapAttr, MapType};
    /// use bpfarray::{HandleMode, Map};
    /// # let dir = std::env::temp_dir().join(format!("bpfarray-doc-{}", std::process::id()));
    /// # std::fs::create_dir(&dir)?;
    /// # let path = dir.join("limits");
    /// let sizes = MapAttr { key_size: 4, value_size: 8, max_entries: 4, ..MapAttr::default() };
    /// let map = Map::create_file(&path, &MapAttr { map_type: MapType::ARRAY, ..sizes })?;
    /// map.update_elem(1, &1500u64.to_ne_bytes(), 0)?;
    ///
    /// // The same, or another process:
    /// let map = Map::open_file(&path, HandleMode::ReadOnly)?;
    /// let mut value = [0; 8];
    /// map.lookup_elem(1, &mut value, 0)?;
    /// assert_eq!(u64::from_ne_bytes(value), 1500);
    /// # std::fs::remove_dir_all(dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`FileError::NoDirectory`] for maps of objects, which [`Map::create_in`] makes; [`FileError::Machine`];
    /// [`FileError::Header`] for attributes no map can have; [`FileError::SpecialField`]; [`FileError::Io`], among others if there is such a file already.
    pub fn create_file(path: impl AsRef<Path>, attr: &MapAttr) -> Result<Self, FileError> {
        Self::create_file_with_btf(path, attr, &[])
    }

    /// Creates a map file that also holds the BTF its type ids refer to. Values can have a `bpf_spin_lock`, which
    /// excludes threads of all processes, and none for longer than it lives.
    ///
    /// # Errors
    /// As [`Map::create_file`].
    pub fn create_file_with_btf(
        path: impl AsRef<Path>,
        attr: &MapAttr,
        btf: &[u8],
    ) -> Result<Self, FileError> {
        let path = path.as_ref();
        refuse_objects(path, attr)?;
        let (content, mode) = content(path, attr, btf, None)?;
        adopt(path, disk::create(path, &content)?, mode, false, None)
    }

    /// Creates a map file that a directory of maps lists under an id, which the file's header names. The slots of such a
    /// map may hold what the directory lists. An ARRAY_OF_MAPS is for maps that look like `inner`.
    ///
    /// # Errors
    /// As [`Map::create_file`]. [`FileError::Private`] for an inner map with special fields that is in no file.
    pub fn create_in(
        directory: &Arc<dyn Directory>,
        path: impl AsRef<Path>,
        id: u32,
        attr: &MapAttr,
        btf: &[u8],
        inner: Option<&MapRef>,
    ) -> Result<Self, FileError> {
        let path = path.as_ref();
        let inner = inner.filter(|_| attr.map_type == MapType::ARRAY_OF_MAPS);
        let template =
            inner.map(|inner| Template { attr: inner.inner.attr, layout: *inner.layout() });
        let inner_btf = match inner {
            Some(inner) if !inner.special_fields().is_empty() => {
                let file = inner.inner.gate.file().ok_or(FileError::Private)?;
                file.read_btf().map_err(FileError::io(path, "read BTF for"))?
            }
            _ => Vec::new(),
        };
        let btf = if template.is_some() { &inner_btf } else { btf };
        let (mut content, mode) = content(path, attr, btf, template)?;
        content.header = content.header.with_id(id);
        adopt(path, disk::create(path, &content)?, mode, false, Some(directory))
    }

    /// Creates a map that other processes can get from this one, with [`Map::as_fd`] and
    /// [`Map::from_fd`]: a file in memory, without a name, sealed so that nobody can make it
    /// shorter or longer.
    ///
    /// # Errors
    /// As [`Map::create_file`].
    pub fn create_shared(attr: &MapAttr) -> Result<Self, FileError> {
        let path = Path::new("memfd");
        refuse_objects(path, attr)?;
        let (content, mode) = content(path, attr, &[], None)?;
        let name = attr.map_name.iter().take_while(|&&b| b != 0).map(|&b| char::from(b));
        let file = disk::create_memfd(&name.collect::<String>(), &content)?;
        adopt(path, file, mode, false, None)
    }

    /// Opens a map file.
    ///
    /// Opened for reading only, the file needs no write permission, and programs cannot change
    /// values either. Opening a file that this process has open gives another handle to the same
    /// map.
    ///
    /// # Errors
    /// [`FileError::Machine`]; [`FileError::Io`]; [`FileError::NotRegular`]; [`FileError::Header`]
    /// for a file that is no map file or lies about itself; [`FileError::NoDirectory`] for a map of objects, which
    /// [`Map::open_in`] opens; [`FileError::SpecialField`].
    ///
    /// # Concurrency
    /// After `fork` without `exec`, the child must not use the maps of its parent but open the
    /// files itself: the two would be one process to each other.
    ///
    /// # Kernel
    /// `BPF_OBJ_GET`
    #[doc(alias = "BPF_OBJ_GET")]
    pub fn open_file(path: impl AsRef<Path>, mode: HandleMode) -> Result<Self, FileError> {
        let path = path.as_ref();
        let read_only = mode == HandleMode::ReadOnly;
        adopt(path, open(path, read_only)?, mode, read_only, None)
    }

    /// Opens a map file that a directory of maps lists, whose slots may hold what it lists.
    ///
    /// # Errors
    /// As [`Map::open_file`].
    pub fn open_in(
        directory: &Arc<dyn Directory>,
        path: impl AsRef<Path>,
        mode: HandleMode,
    ) -> Result<Self, FileError> {
        let path = path.as_ref();
        let read_only = mode == HandleMode::ReadOnly;
        adopt(path, open(path, read_only)?, mode, read_only, Some(directory))
    }

    /// The map of a file descriptor that another process passed on, by inheritance or through a
    /// socket. It may only read if the descriptor may.
    ///
    /// # Errors
    /// As [`Map::open_file`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, FileError> {
        let path = disk::proc_path(fd.as_fd());
        let flags = fcntl_getfl(&fd).map_err(FileError::io(&path, "use"))?;
        let mode = match flags & OFlags::RWMODE {
            OFlags::RDONLY => HandleMode::ReadOnly,
            _ => HandleMode::ReadWrite,
        };
        // Locks belong to an opening of a file, and the other process keeps that one.
        let read_only = mode == HandleMode::ReadOnly;
        adopt(&path, open(&path, read_only)?, mode, read_only, None)
    }

    /// The open file under a map, for other processes to use with [`Map::from_fd`]; `None` for a
    /// map that is private to this process. It is closed on `exec`.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.gate.file().map(|file| file.file().as_fd())
    }

    /// Gives the map's file another name on the same file system: a hard link.
    ///
    /// # Errors
    /// [`FileError::Private`]; [`FileError::Io`], among others for a name that exists, and for
    /// [shared maps](Map::create_shared), which can have no name.
    ///
    /// # Kernel
    /// `BPF_OBJ_PIN`
    #[doc(alias = "BPF_OBJ_PIN")]
    pub fn pin(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        let path = path.as_ref();
        let fd = self.as_fd().ok_or(FileError::Private)?;
        disk::link_open_file(fd, path).map_err(FileError::io(path, "pin"))
    }

    /// Whether values were lost because somebody truncated the file, or the disk was full. From
    /// then on this process sees zeros in their place, and what it writes there nobody else sees.
    pub fn has_lost_pages(&self) -> bool {
        self.inner.gate.file().is_some_and(|file| file.has_lost_pages())
    }

    /// The BTF that the map's file holds, which may be none.
    ///
    /// # Errors
    /// [`FileError::Private`], [`FileError::Io`].
    pub fn read_btf(&self) -> Result<Vec<u8>, FileError> {
        let file = self.inner.gate.file().ok_or(FileError::Private)?;
        file.read_btf().map_err(FileError::io(Path::new(self.name()), "read BTF of the map"))
    }
}

/// Nobody could find what is in the slots of a file that no directory lists.
fn refuse_objects(path: &Path, attr: &MapAttr) -> Result<(), FileError> {
    match Kind::of(attr.map_type).is_some_and(Kind::holds_objects) {
        true => Err(FileError::NoDirectory(path.to_owned())),
        false => Ok(()),
    }
}

/// What a new file holds, and the mode of the handle to it.
fn content<'a>(
    path: &Path,
    attr: &MapAttr,
    btf: &'a [u8],
    template: Option<Template>,
) -> Result<(Content<'a>, HandleMode), FileError> {
    check_machine()?;
    let cpus = possible_cpus();
    let shape =
        Shape::of(attr, cpus, btf.len() as u64, template).map_err(FileError::header(path))?;
    if template.is_none() {
        fields(path, attr, btf)?;
    }
    let content = Content {
        header: Header::of(&shape, cpus),
        template: template.as_ref().map(TemplateHeader::of),
        exclusive: attr.excl_prog_hash.map(ExclusiveHeader::of),
        btf,
        btf_offset: shape.geometry.btf_offset,
        file_len: shape.geometry.file_len,
    };
    Ok((content, HandleMode::of(attr.map_flags)))
}

/// The special fields of values that the file's BTF describes: BTF that cannot be read describes none. Values in files have
/// locks and counts at most.
fn fields(path: &Path, attr: &MapAttr, btf: &[u8]) -> Result<SpecialFields, FileError> {
    const OF_FILES: FieldMask = FieldMask::SPIN_LOCK.union(FieldMask::REFCOUNT);
    let btf = match Btf::parse(btf) {
        Ok(parsed) if attr.btf_value_type_id != 0 && btf.len() as u64 <= BTF_MAX_SIZE => parsed,
        _ => return Ok(SpecialFields::none()),
    };
    let fields = attr.check_btf(&Creator::default(), &btf);
    let fields = fields.map_err(|error| FileError::create(path)(error.into()))?;
    match fields.as_slice().iter().find(|field| !OF_FILES.contains(field.kind.mask())) {
        Some(other) => {
            Err(FileError::SpecialField { path: path.to_owned(), field: other.kind.name() })
        }
        None => Ok(fields),
    }
}

fn check_machine() -> Result<(), FileError> {
    let fits = cfg!(target_endian = "little") && page_size() as u64 == PAGE;
    if fits { Ok(()) } else { Err(FileError::Machine) }
}

fn open(path: &Path, read_only: bool) -> Result<File, FileError> {
    check_machine()?;
    // Opening a pipe must not wait for its other end.
    let file = File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(FileError::io(path, "open"))?;
    Ok(file)
}

/// The map in an open file that nobody else uses in this process.
fn adopt(
    path: &Path,
    file: File,
    mode: HandleMode,
    read_only: bool,
    directory: Option<&Arc<dyn Directory>>,
) -> Result<Map, FileError> {
    let metadata = file.metadata().map_err(FileError::io(path, "open"))?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular(path.to_owned()));
    }
    let key = (metadata.dev(), metadata.ino());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    open.retain(|other| other.map.strong_count() > 0 && other.process == process);
    let same = open.iter().find(|other| other.key == key && other.read_only == read_only);
    if let Some(inner) = same.and_then(|other| other.map.upgrade()) {
        return Ok(MapRef { inner }.with_mode(mode));
    }
    let shape = read_shape(path, &file, metadata.len())?;
    let map = map_file(path, Arc::new(file), key, read_only, &shape, directory)?;
    open.push(OpenFile { key, process, read_only, map: Arc::downgrade(&map.inner) });
    Ok(map.with_mode(mode))
}

/// What a file of this length says of itself, once it was judged.
pub(super) fn read_shape(path: &Path, file: &File, len: u64) -> Result<Shape, FileError> {
    if len < PAGE {
        return Err(FileError::header(path)(HeaderError::Short(len)));
    }
    let mut header = Header::new_zeroed();
    file.read_exact_at(header.as_mut_bytes(), 0).map_err(FileError::io(path, "read"))?;
    let mut template = None;
    if header.has_template() {
        let mut header = TemplateHeader::new_zeroed();
        let read = file.read_exact_at(header.as_mut_bytes(), TEMPLATE_OFFSET);
        read.map_err(FileError::io(path, "read"))?;
        template = Some(header.check().map_err(FileError::header(path))?);
    }
    let mut prog_hash = None;
    if header.has_prog_hash() {
        let mut header = ExclusiveHeader::new_zeroed();
        let read = file.read_exact_at(header.as_mut_bytes(), EXCLUSIVE_OFFSET);
        read.map_err(FileError::io(path, "read"))?;
        prog_hash = Some(header.check().map_err(FileError::header(path))?);
    }
    header.check(len, possible_cpus(), template, prog_hash).map_err(FileError::header(path))
}

fn map_file(
    path: &Path,
    file: Arc<File>,
    key: (u64, u64),
    read_only: bool,
    shape: &Shape,
    directory: Option<&Arc<dyn Directory>>,
) -> Result<MapRef, FileError> {
    let Shape { attr, layout, geometry, template, .. } = shape;
    if layout.kind().holds_objects() && directory.is_none() {
        return Err(FileError::NoDirectory(path.to_owned()));
    }
    let no_memory = || FileError::create(path)(CreateError::NoMemory(geometry.file_len));
    let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let source = Source {
        file: Arc::clone(&file),
        shared: !read_only,
        sealed,
        lost: Arc::new(AtomicBool::new(false)),
    };
    let len = usize::try_from(geometry.file_len).map_err(|_| no_memory())?;
    let whole = source.memory(len).map_err(FileError::errno_of(path, "map"))?;
    let part =
        |offset: u64, len: u64| whole.view(offset as usize, len as usize).map_err(|_| no_memory());
    let header = part(0, PAGE)?;
    let lanes = match read_only {
        true => None,
        false => {
            let seat = Seat::take(&file).map_err(FileError::io(path, "lock"))?;
            let words = LaneWords(part(geometry.lanes_offset, geometry.lanes_len)?);
            Some(Lanes::new(words, seat))
        }
    };
    // The ids. What programs load from the area is each process's own.
    let slots = match layout.kind().holds_objects() {
        true => part(PAGE, u64::from(layout.max_entries()) * u64::from(layout.stride()))?,
        false => part(PAGE, 0)?,
    };
    let area = match layout.kind() {
        Kind::PercpuArray => {
            Extent::of_file(layout.window_len(), &source, |cpu| geometry.cpu_offset(cpu))
                .and_then(|extent| Area::allocate_over(layout, Some(extent)))
        }
        Kind::Array => Area::over(layout, whole, None),
        Kind::ProgArray | Kind::PerfEventArray | Kind::CgroupArray | Kind::ArrayOfMaps => {
            Area::allocate(layout)
        }
    }
    .map_err(FileError::errno_of(path, "map"))?;
    let (long_writers, value_locks) = (Mutex::new(0), Mutex::default());
    let (shape, directory) = (*shape, directory.cloned());
    if let Some(directory) = &directory {
        directory.opened(source.file.as_fd());
    }
    let file =
        MapFile { key, source, shape, header, slots, lanes, long_writers, value_locks, directory };
    let described = template.as_ref().map_or(attr, |template| &template.attr);
    let btf = match described.btf_value_type_id {
        0 => Vec::new(),
        // As much as the kernel takes. More would be for somebody else to read.
        _ if shape.geometry.btf_len > BTF_MAX_SIZE => Vec::new(),
        _ => file.read_btf().map_err(FileError::io(path, "read BTF of"))?,
    };
    let fields = fields(path, described, &btf)?;
    let (fields, inner) = match template {
        None => (fields, None),
        Some(Template { layout, .. }) => {
            (SpecialFields::none(), Some(InSlots { layout: *layout, fields }))
        }
    };
    MapRef::over_file(attr, *layout, area, fields, inner, Arc::new(file))
        .map_err(FileError::create(path))
}
