//! The root directory: what the kernel's id tables and bpffs are to Linux. Safe code, all of it file system calls.
//!
//! An object is a file, listed under its id in the directory of its kind. It stays as long as somebody refers to it:
//! - a descriptor, or a mapping made from it, is an open file with a shared `flock`, which the kernel drops with the
//!   last reference to the open file, also when its process is killed;
//! - a pin is another hard link in `pin`;
//! - a map refers to the BTF it was created with by a hard link beside it, a program to its maps and BTF, and a link of bpf(2) to its
//!   program and map, by hard links in a directory beside it.
//!
//! A slot of an ARRAY_OF_MAPS that is there refers to the map whose id it holds, and one of a PROG_ARRAY that has a descriptor or a
//! pin to the program: `references.rs` finds out.
//!
//! What has neither another link nor a lock, nor is in such a slot, is swept by whoever comes across it. Ids, links, slots and sweeping are ordered by
//! an exclusive `flock` on the file `ids`; operations on elements need none of this.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;
use rustix::fs::{AtFlags, CWD, FlockOperation, flock, linkat};

use crate::event::EVENTS;
use crate::prog_file::{self, ProgFile};
use crate::references::{InSlots, State};

/// Names the root directory, in the environment.
pub const ROOT_VARIABLE: &str = "BPFARRAY_ROOT";

/// Bytes before the BTF in the file of a BTF object: magic, version, id.
pub(crate) const BTF_OFFSET: u64 = 16;

/// What the names of files end with that are being made.
const UNFINISHED: &str = "new";

/// What a file in the root directory can be.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Map,
    Btf,
    Prog,
    Link,
}

impl Kind {
    /// The kernel's name for such descriptors, which tools look for in `/proc/self/fd`.
    const fn directory(self) -> &'static str {
        match self {
            Self::Map => "bpf-map",
            Self::Btf => "btf",
            Self::Prog => "bpf-prog",
            Self::Link => "bpf-link",
        }
    }

    /// The first bytes of such files.
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Map => *b"\x8fBPFMAP\n",
            Self::Btf => *b"\x8fBPFBTF\n",
            Self::Prog => crate::prog_file::MAGIC,
            Self::Link => crate::link::MAGIC,
        }
    }

    /// Where a file says under which id it is listed.
    const fn id_offset(self) -> u64 {
        match self {
            Self::Map => 56,
            Self::Btf | Self::Prog | Self::Link => 12,
        }
    }

    /// Where `ids` has the last id that was given out.
    const fn counter_offset(self) -> u64 {
        match self {
            Self::Map => 0,
            Self::Btf => 8,
            Self::Prog => 16,
            Self::Link => 24,
        }
    }

    /// Each before those that it keeps.
    const ALL: [Self; 4] = [Self::Link, Self::Prog, Self::Map, Self::Btf];

    /// How many of [`Kind::ALL`], from the first one on, can keep such objects.
    fn keepers(self) -> usize {
        Self::ALL.iter().take_while(|&&keeper| keeper != self).count()
    }
}

/// Why a root directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// There is no directory for files of this user.
    #[error("neither {ROOT_VARIABLE} nor XDG_RUNTIME_DIR is set, and there is no /dev/shm")]
    NoPlace,
    /// A system call failed.
    #[error("root directory {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to somebody else.
    #[error("root directory {}: belongs to user {owner}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may look into the directory, or write to it.
    #[error("root directory {}: mode is {mode:o}, not 700", path.display())]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is a symbolic link or a file.
    #[error("root directory {}: is no directory", .0.display())]
    NoDirectory(PathBuf),
}

impl RootError {
    /// The error number with which all commands fail.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoPlace => Errno::ENOENT,
            Self::Io { source, .. } => errno(source),
            Self::Owner { .. } | Self::Mode { .. } => Errno::EACCES,
            Self::NoDirectory(_) => Errno::from_raw(libc::ENOTDIR),
        }
    }
}

pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn from_rustix(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// A directory of objects, which belongs to one user.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
}

/// Held by the thread of this process whose turn it is to change the directory: of which kind keepers were looked through last.
pub(crate) type Turn = Cell<Option<(Kind, Instant)>>;

/// Keeps everybody else from giving out ids, linking and sweeping.
pub(crate) struct Locked<'a> {
    pub(crate) root: &'a Root,
    pub(crate) ids: File,
    pub(crate) in_slots: InSlots,
    /// How many of [`Kind::ALL`], from the first one on, have been looked through.
    swept: Cell<usize>,
    /// Only after the lock: a child that is forked meanwhile must not have the open file.
    turn: MutexGuard<'a, Turn>,
}

impl Root {
    /// The directory that [`ROOT_VARIABLE`] names, or else this user's own one on a file system in memory.
    ///
    /// # Errors
    /// [`RootError::NoPlace`], and as [`Root::open`].
    pub fn from_environment() -> Result<Self, RootError> {
        if let Some(path) = std::env::var_os(ROOT_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::open(path);
        }
        if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty())
            && Path::new(&runtime).is_dir()
        {
            return Self::open(Path::new(&runtime).join("bpfarray"));
        }
        let shared = Path::new("/dev/shm");
        if !shared.is_dir() {
            return Err(RootError::NoPlace);
        }
        let user = rustix::process::geteuid().as_raw();
        Self::open(shared.join(format!("bpfarray-{user}")))
    }

    /// Opens a root directory, which is made if there is none.
    ///
    /// # Errors
    /// [`RootError::Io`], [`RootError::NoDirectory`], [`RootError::Owner`], [`RootError::Mode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RootError> {
        let given = path.as_ref();
        let io = |source| RootError::Io { path: given.to_owned(), source };
        make_directory(given).map_err(io)?;
        let found = fs::symlink_metadata(given).map_err(io)?;
        if !found.is_dir() {
            return Err(RootError::NoDirectory(given.to_owned()));
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(RootError::Owner { path: given.to_owned(), owner: found.uid() });
        }
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(RootError::Mode { path: given.to_owned(), mode });
        }
        // From here on the working directory may change.
        let path = fs::canonicalize(given).map_err(io)?;
        for name in Kind::ALL.map(Kind::directory).into_iter().chain(["pin", EVENTS]) {
            make_directory(&path.join(name)).map_err(io)?;
        }
        Ok(Self { path })
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that stands for bpffs.
    pub fn pins(&self) -> PathBuf {
        self.path.join("pin")
    }

    pub(crate) fn object(&self, kind: Kind, id: u32) -> PathBuf {
        self.path.join(kind.directory()).join(id.to_string())
    }

    /// The link by which a map keeps its BTF.
    fn btf_of_map(&self, id: u32) -> PathBuf {
        self.path.join(Kind::Map.directory()).join(format!("{id}.btf"))
    }

    /// The directory of what a program or a link keeps.
    pub(crate) fn kept_by(&self, (keeper, id): (Kind, u32)) -> PathBuf {
        self.path.join(keeper.directory()).join(format!("{id}.keeps"))
    }

    /// The hard link by which a program or a link keeps an object.
    pub(crate) fn name_kept_by(&self, keeper: (Kind, u32), kind: Kind, id: u32) -> PathBuf {
        self.kept_by(keeper).join(format!("{}-{id}", kind.directory()))
    }

    /// The file that is locked while statistics are wanted.
    fn stats(&self) -> PathBuf {
        self.path.join("stats")
    }

    /// Opens what keeps statistics of programs going for as long as it is open.
    ///
    /// # Kernel
    /// `bpf_enable_runtime_stats`
    pub(crate) fn enable_stats(&self) -> Result<File, Errno> {
        let file = open_or_create(&self.stats())?;
        refer(&file)?;
        Ok(file)
    }

    /// How long runs of a program took in nanoseconds, and how many there were, while somebody wanted to know.
    pub(crate) fn stats_of(&self, prog: u32) -> (u64, u64) {
        let file = open_as(&self.object(Kind::Prog, prog), HandleMode::ReadOnly);
        file.map_or((0, 0), |file| prog_file::stats(&file))
    }

    /// Ids of the maps that a program keeps.
    pub(crate) fn maps_of(&self, prog: u32) -> Result<Vec<u32>, Errno> {
        let file = open_as(&self.object(Kind::Prog, prog), HandleMode::ReadOnly)?;
        ProgFile::read(&file).map(|file| file.maps).map_err(|error| errno(&error))
    }

    /// Whether somebody wants statistics of programs.
    pub(crate) fn is_stats_enabled(&self) -> bool {
        let path = self.stats();
        // Mostly there is none, which is told faster than it is not opened.
        if !path.exists() {
            return false;
        }
        let Ok(file) = open_as(&path, HandleMode::ReadOnly) else { return false };
        let lock = retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive));
        if lock.is_ok() {
            // A child that was made meanwhile has the same open file.
            let _ = retry(|| flock(&file, FlockOperation::Unlock));
        }
        lock == Err(Errno::EAGAIN)
    }

    /// Waits for its turn to change the directory, among the threads of this process and among processes.
    pub(crate) fn lock<'a>(&'a self, turn: MutexGuard<'a, Turn>) -> Result<Locked<'a>, Errno> {
        let ids = open_or_create(&self.path.join("ids"))?;
        retry(|| flock(&ids, FlockOperation::LockExclusive))?;
        let (in_slots, swept) = (InSlots::default(), Cell::new(0));
        Ok(Locked { root: self, ids, in_slots, swept, turn })
    }

    /// Which object an open file is, by what it says itself and where it is listed.
    pub(crate) fn identify(&self, file: &File) -> Option<(Kind, u32)> {
        let found = file.metadata().ok()?;
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0).ok()?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.magic() == magic)?;
        let mut id = [0; 4];
        file.read_exact_at(&mut id, kind.id_offset()).ok()?;
        let id = u32::from_le_bytes(id);
        let listed = fs::symlink_metadata(self.object(kind, id)).ok()?;
        ((listed.dev(), listed.ino()) == (found.dev(), found.ino())).then_some((kind, id))
    }

    /// The id of the BTF that a map was created with, or 0.
    pub(crate) fn btf_id_of_map(&self, id: u32) -> u32 {
        let Ok(file) = File::open(self.btf_of_map(id)) else { return 0 };
        self.identify(&file).map_or(0, |(_, id)| id)
    }
}

impl Drop for Locked<'_> {
    /// A process that was started meanwhile has the open file as well, and closing it here would not unlock it.
    fn drop(&mut self) {
        let _ = flock(&self.ids, FlockOperation::Unlock);
    }
}

impl Locked<'_> {
    /// An id that no object of the kind had before.
    ///
    /// # Errors
    /// ENOSPC after 2³¹ - 2 of them.
    pub(crate) fn next_id(&self, kind: Kind) -> Result<u32, Errno> {
        const SWEEP_EVERY: u32 = 64;
        let last = self.last_id(kind)?;
        let id = last.checked_add(1).filter(|&id| id < i32::MAX.cast_unsigned());
        let id = id.ok_or(Errno::ENOSPC)?;
        self.ids
            .write_all_at(&id.to_le_bytes(), kind.counter_offset())
            .map_err(|error| errno(&error))?;
        if id.is_multiple_of(SWEEP_EVERY) {
            self.sweep()?;
        }
        Ok(id)
    }

    /// The id of the kind that was given out last, or 0.
    fn last_id(&self, kind: Kind) -> Result<u32, Errno> {
        let mut last = [0; 4];
        // A new file has no bytes yet.
        match self.ids.read_exact_at(&mut last, kind.counter_offset()) {
            Ok(()) => Ok(u32::from_le_bytes(last)),
            Err(_) => Ok(self.list(kind)?.last().copied().unwrap_or(0)),
        }
    }

    /// Makes the file of a new BTF object.
    pub(crate) fn create_btf(&self, id: u32, bytes: &[u8]) -> Result<(), Errno> {
        let content =
            [&Kind::Btf.magic()[..], &1_u32.to_le_bytes(), &id.to_le_bytes(), bytes].concat();
        self.create(Kind::Btf, id, &content)
    }

    /// Makes the file of a new program, which keeps its maps and its BTF.
    pub(crate) fn create_prog(&self, id: u32, file: &ProgFile) -> Result<(), Errno> {
        let maps = file.maps.iter().map(|&map| (Kind::Map, map));
        let btf = (file.btf_id != 0).then_some((Kind::Btf, file.btf_id));
        self.create_keeper((Kind::Prog, id), &file.encode(id), maps.chain(btf))
    }

    /// Makes the file of a new object that keeps others.
    pub(crate) fn create_keeper(
        &self,
        (kind, id): (Kind, u32),
        content: &[u8],
        mut kept: impl Iterator<Item = (Kind, u32)>,
    ) -> Result<(), Errno> {
        self.create(kind, id, content)?;
        make_directory(&self.root.kept_by((kind, id))).map_err(|error| errno(&error))?;
        kept.try_for_each(|(of, kept)| self.keep((kind, id), of, kept))
    }

    /// Lets a program or a link keep an object.
    pub(crate) fn keep(&self, keeper: (Kind, u32), kind: Kind, id: u32) -> Result<(), Errno> {
        let name = self.root.name_kept_by(keeper, kind, id);
        fs::hard_link(self.root.object(kind, id), name).map_err(|error| errno(&error))
    }

    /// Lets a program keep one more map.
    pub(crate) fn bind(&self, prog: u32, map: u32) -> Result<(), Errno> {
        let path = self.root.object(Kind::Prog, prog);
        let io = |error: io::Error| errno(&error);
        let mut file = File::options().read(true).append(true).open(path).map_err(io)?;
        if ProgFile::read(&file).map_err(io)?.maps.contains(&map) {
            return Ok(());
        }
        self.keep((Kind::Prog, prog), Kind::Map, map)?;
        file.write_all(&map.to_le_bytes()).map_err(io)
    }

    /// Adds to the statistics of a program.
    pub(crate) fn add_stats(&self, prog: u32, run_time_ns: u64, runs: u64) -> Result<(), Errno> {
        let file = open_as(&self.root.object(Kind::Prog, prog), HandleMode::ReadWrite)?;
        prog_file::add_stats(&file, run_time_ns, runs).map_err(|error| errno(&error))
    }

    /// Makes the file of a new object, complete before it has its name.
    fn create(&self, kind: Kind, id: u32, content: &[u8]) -> Result<(), Errno> {
        let path = self.root.object(kind, id);
        let temporary = path.with_extension(UNFINISHED);
        let created = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|file| file.write_all_at(content, 0))
            .and_then(|()| fs::rename(&temporary, &path));
        created.map_err(|error| errno(&error))
    }

    /// Lets a map keep the BTF it was created with.
    pub(crate) fn keep_btf(&self, map: u32, btf: u32) -> Result<(), Errno> {
        let path = self.root.btf_of_map(map);
        fs::hard_link(self.root.object(Kind::Btf, btf), path).map_err(|error| errno(&error))
    }

    /// Opens an object and refers to it: what a descriptor of bpf(2) is.
    ///
    /// # Errors
    /// ENOENT if there is none; EACCES if its permissions say so.
    pub(crate) fn open(&self, kind: Kind, id: u32, mode: HandleMode) -> Result<File, Errno> {
        if !self.is_alive(kind, id)? {
            return Err(Errno::ENOENT);
        }
        if kind == Kind::Map {
            self.empty_if_unused(id)?;
        }
        self.open_new(kind, id, mode)
    }

    /// As [`Locked::open`], for a map that `keeper` may keep: if it does, nobody else has to be looked at.
    pub(crate) fn open_map(&self, id: u32, mode: HandleMode, keeper: u32) -> Result<File, Errno> {
        let keeps = self.root.name_kept_by((Kind::Prog, keeper), Kind::Map, id).exists();
        if keeps && self.is_alive(Kind::Prog, keeper)? {
            self.empty_if_unused(id)?;
            return self.open_new(Kind::Map, id, mode);
        }
        self.open(Kind::Map, id, mode)
    }

    /// As [`Locked::open`], for an object that was made under this lock.
    pub(crate) fn open_new(&self, kind: Kind, id: u32, mode: HandleMode) -> Result<File, Errno> {
        let file = open_as(&self.root.object(kind, id), mode)?;
        refer(&file)?;
        Ok(file)
    }

    /// Gives an open object another name, which keeps it.
    pub(crate) fn pin(&self, file: &File, path: &Path) -> Result<(), Errno> {
        let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(CWD, &*open_file, CWD, path, AtFlags::SYMLINK_FOLLOW).map_err(from_rustix)
    }

    /// The smallest id greater than `after` of an object that somebody refers to.
    pub(crate) fn next(&self, kind: Kind, after: u32) -> Result<Option<u32>, Errno> {
        /// How many ids are tried, before it takes less to read the directory.
        const NEAR: u32 = 64;
        /// Who goes on within this time, with a listing that began with 0, is told of keepers what was found when it began.
        const SAME_LISTING: Duration = Duration::from_millis(100);
        let is_recent = |(of, at): (Kind, Instant)| of == kind && at.elapsed() < SAME_LISTING;
        if after != 0 && self.turn.get().is_some_and(is_recent) {
            self.swept.set(kind.keepers());
        }
        let last = self.last_id(kind)?;
        let far = after.saturating_add(NEAR).min(last);
        for id in after.saturating_add(1)..=far {
            if self.is_alive(kind, id)? {
                return Ok(Some(id));
            }
        }
        if far == last {
            return Ok(None);
        }
        for id in self.list(kind)?.into_iter().filter(|&id| id > far) {
            if self.is_alive(kind, id)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Removes what nobody refers to.
    pub(crate) fn sweep(&self) -> Result<(), Errno> {
        self.swept.set(0);
        self.sweep_up_to(Kind::ALL.len())?;
        self.sweep_events()
    }

    /// Goes on looking through the first `end` of [`Kind::ALL`], unless that has been done before.
    fn sweep_up_to(&self, end: usize) -> Result<(), Errno> {
        while let Some(&kind) = Kind::ALL.iter().take(end).nth(self.swept.get()) {
            self.swept.set(self.swept.get() + 1);
            for id in self.list(kind)? {
                self.is_alive(kind, id)?;
            }
        }
        Ok(())
    }

    /// Whether somebody refers to an object, which is removed otherwise.
    fn is_alive(&self, kind: Kind, id: u32) -> Result<bool, Errno> {
        let path = self.root.object(kind, id);
        let mut state = State::of(&path)?;
        if matches!(state, State::Named(_)) && self.sweep_keepers(kind)? {
            state = State::of(&path)?;
        }
        match state {
            State::Gone => return Ok(false),
            State::Named(_) | State::Open => return Ok(true),
            State::Alone if self.is_in_slot(kind, id)? => return Ok(true),
            State::Alone => {}
        }
        // A map without BTF has no such link; what keeps others has no such directory if its maker died.
        let _ = match kind {
            Kind::Map => fs::remove_file(self.root.btf_of_map(id)),
            Kind::Prog | Kind::Link => fs::remove_dir_all(self.root.kept_by((kind, id))),
            Kind::Btf => Ok(()),
        };
        fs::remove_file(&path).map_err(|error| errno(&error))?;
        Ok(false)
    }

    /// Removes what can keep objects of a kind, besides descriptors and pins, and is kept by nobody itself. Whether it had
    /// to look.
    pub(crate) fn sweep_keepers(&self, kind: Kind) -> Result<bool, Errno> {
        let before = self.swept.get();
        self.sweep_up_to(kind.keepers())?;
        let has_looked = self.swept.get() != before;
        if has_looked {
            self.turn.set(Some((kind, Instant::now())));
        }
        Ok(has_looked)
    }

    /// All ids of a kind, in order.
    pub(crate) fn list(&self, kind: Kind) -> Result<Vec<u32>, Errno> {
        self.list_in(kind.directory())
    }

    /// All numbers that are names in a directory, in order.
    pub(crate) fn list_in(&self, name: &str) -> Result<Vec<u32>, Errno> {
        let directory = self.root.path.join(name);
        let mut ids = Vec::new();
        for entry in fs::read_dir(directory).map_err(|error| errno(&error))?.flatten() {
            let name = entry.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
            // Nobody is making a file under this lock, so who began one was killed.
            if Path::new(&name).extension().is_some_and(|extension| extension == UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

fn open_or_create(path: &Path) -> Result<File, Errno> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|error| errno(&error))
}

/// A shared lock on the open file: it is a reference now.
pub(crate) fn refer(file: &File) -> Result<(), Errno> {
    retry(|| flock(file, FlockOperation::LockShared))
}

/// Opens a file for what a handle may do.
pub(crate) fn open_as(path: &Path, mode: HandleMode) -> Result<File, Errno> {
    File::options()
        .read(mode != HandleMode::WriteOnly)
        .write(mode != HandleMode::ReadOnly)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| errno(&error))
}

pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(from_rustix),
        }
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
