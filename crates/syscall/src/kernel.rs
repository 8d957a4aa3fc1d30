//! The other side of the call: a root directory, and what this process has open of it.
//!
//! **Invariant.** The one unsafe function is the door: its caller promises, as a program does to the kernel, that what the
//! attributes name to be written may be written. Nothing else here touches memory by address; `user.rs` does.

use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bpfarray::Directory;
use bpfarray_core::Errno;
use bpfarray_core::map::HandleMode;

use crate::attr::Attr;
use crate::caller;
use crate::command;
use crate::file::{FdSet, Files, INTERNAL, Link, MapObject, NotOurs, Object, OpenMap};
use crate::link::LinkFile;
use crate::listing::Listing;
use crate::prog::ProgObject;
use crate::root::{Kind, Locked, Root, Turn, open_as};
use crate::user::{UserAddr, UserMemory};

/// Answers bpf(2) for this process. There should be one in a process: files that one opens, the other does not know.
///
/// # Concurrency
/// Commands may be given from any number of threads. A signal handler must not give one while its thread is inside
/// another.
///
/// # Kernel
/// `__sys_bpf`
#[derive(Debug)]
pub struct Kernel {
    pub(crate) root: Root,
    pub(crate) listing: Arc<Listing>,
    pub(crate) user: UserMemory,
    /// Held while the directory is locked. Whoever needs both takes it before `files`.
    turn: Mutex<Turn>,
    /// The program whose maps were told last, for which somebody is likely to ask next.
    pub(crate) told: AtomicU32,
    files: RwLock<Files>,
    /// The descriptors that `files` knows.
    remembered: FdSet,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files")
    }
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listing")
    }
}

impl std::fmt::Debug for FdSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.within(0, u32::MAX)).finish()
    }
}

impl Kernel {
    /// Over the objects in a root directory.
    pub fn new(root: Root) -> Self {
        let (turn, files, told) = (Mutex::default(), RwLock::default(), AtomicU32::new(0));
        let listing = Listing::new(&root);
        let (user, remembered) = (UserMemory::new(), FdSet::new());
        Self { root, listing, user, turn, told, files, remembered }
    }

    /// The same for calls of other processes, which its threads answer one at a time: see [`caller`].
    pub(crate) fn for_others(root: Root) -> Self {
        Self { user: UserMemory::of_others(), ..Self::new(root) }
    }

    /// The root directory.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// What the slots of maps in the root directory refer to, for a host that opens such maps itself, with
    /// [`Map::open_in`](bpfarray::Map::open_in), and runs programs on them.
    pub fn directory(&self) -> Arc<dyn Directory> {
        self.listing.clone()
    }

    /// Does what `bpf(cmd, attr, size)` does, with `attr` the address of an attribute block of `size` bytes. Gives a descriptor,
    /// which the caller owns, for commands that make one, otherwise 0.
    ///
    /// # Errors
    /// The kernel's, in its order of checks. `docs/kernel-parity.md` lists the differences.
    ///
    /// # Safety
    /// What the command writes to, by the addresses in the attribute block, must be memory the caller may have changed in this way.
    /// Addresses where nothing is do no harm, nor do any that are only read from.
    #[doc(alias = "__sys_bpf")]
    #[expect(unsafe_code, reason = "writes to addresses that the caller names")]
    pub unsafe fn bpf(&self, cmd: u32, attr: u64, size: u32) -> Result<i32, Errno> {
        let attr = Attr::copy(&self.user, UserAddr(attr), size)?;
        command::dispatch(self, cmd, &attr)
    }

    /// Runs `body` on the object behind a descriptor.
    pub(crate) fn with_object<R>(
        &self,
        fd: RawFd,
        body: impl FnOnce(&Object) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.try_with_object(fd, NotOurs::errno, body)
    }

    /// As `with_object`, with other error numbers for descriptors that are none of ours.
    #[inline]
    pub(crate) fn try_with_object<R>(
        &self,
        fd: RawFd,
        not_ours: impl FnOnce(NotOurs) -> Errno,
        body: impl FnOnce(&Object) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        if let Some(object) = self.files().get(fd) {
            return body(object);
        }
        let object = self.resolve(fd).map_err(not_ours)?;
        body(&object)
    }

    /// Runs `body` on the map behind a descriptor.
    #[inline]
    pub(crate) fn with_map<R>(
        &self,
        fd: RawFd,
        body: impl FnOnce(&OpenMap) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.with_object(fd, |object| match object {
            Object::Map(map) => body(map),
            Object::Btf(_) | Object::Prog(_) | Object::Link(_) => Err(Errno::EINVAL),
        })
    }

    /// The program behind a descriptor.
    pub(crate) fn prog(&self, fd: RawFd) -> Result<Arc<ProgObject>, Errno> {
        self.with_object(fd, |object| match object {
            Object::Prog(prog) => Ok(Arc::clone(prog)),
            Object::Map(_) | Object::Btf(_) | Object::Link(_) => Err(Errno::EINVAL),
        })
    }

    /// The id of the link behind a descriptor.
    pub(crate) fn link(&self, fd: RawFd) -> Result<u32, Errno> {
        self.with_object(fd, |object| match object {
            Object::Link(id) => Ok(*id),
            Object::Map(_) | Object::Btf(_) | Object::Prog(_) => Err(Errno::EINVAL),
        })
    }

    /// What a link links, which the directory keeps as long as it is locked.
    pub(crate) fn linked(
        &self,
        locked: &Locked<'_>,
        link: u32,
    ) -> Result<(Arc<ProgObject>, Arc<MapObject>), Errno> {
        let LinkFile { prog_id, map_id, .. } = locked.root.link(link)?;
        let prog = open_as(&self.root.object(Kind::Prog, prog_id), HandleMode::ReadOnly)?;
        let mut files = self.files_mut();
        let prog = files.prog(&self.root, &self.listing, prog_id, &prog)?;
        if self.user.is_of_others() {
            files.keep(&self.root, &Object::Prog(Arc::clone(&prog)));
        }
        let map = files.map(&self.root, &self.listing, map_id)?;
        Ok((prog, map))
    }

    fn resolve(&self, fd: RawFd) -> Result<Object, NotOurs> {
        if self.user.is_of_others() {
            return self.resolve_of_other(fd);
        }
        let mut files = self.files_mut();
        let object = files.resolve(&self.root, &self.listing, fd)?;
        self.remember(&mut files, fd, &object);
        Ok(object)
    }

    /// What another process has open changes without a word, so its descriptors are looked at in each call.
    fn resolve_of_other(&self, fd: RawFd) -> Result<Object, NotOurs> {
        let link = Link::of_other(fd)?;
        let known = self.files().kept(&link);
        if let Some(object) = known {
            return Ok(object);
        }
        let mut files = self.files_mut();
        let object = files.resolve(&self.root, &self.listing, fd)?;
        caller::still_waits().map_err(NotOurs::Failed)?;
        files.keep(&self.root, &object);
        Ok(object)
    }

    /// Programs move the first three about without closing them by name.
    fn remember(&self, files: &mut Files, fd: RawFd, object: &Object) {
        if fd > 2 && self.remembered.insert(fd) {
            files.set(fd, Some(object.clone()));
        }
    }

    /// Gives a new file to the caller. The last thing that a command does.
    pub(crate) fn install(&self, file: File, object: Option<Object>) -> RawFd {
        let mut files = self.files_mut();
        if self.user.is_of_others() {
            if let Some(object) = &object {
                files.keep(&self.root, object);
            }
            caller::give(file, libc::O_CLOEXEC);
            return 0;
        }
        let fd = file.as_raw_fd();
        files.set(fd, None);
        if let Some(object) = &object {
            match object {
                Object::Map(map) => files.add_map(&map.object),
                Object::Prog(prog) => files.add_prog(prog),
                Object::Btf(_) | Object::Link(_) => {}
            }
            self.remember(&mut files, fd, object);
        }
        file.into_raw_fd()
    }

    /// Waits for its turn to change the root directory.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, Errno> {
        self.root.lock(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn files(&self) -> RwLockReadGuard<'_, Files> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn files_mut(&self) -> RwLockWriteGuard<'_, Files> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program is about to close a descriptor, or to put another file in its place.
    ///
    /// A program that closes one without this must not use its number for another file and give that to bpf(2).
    pub fn forget(&self, fd: RawFd) {
        if !self.remembered.contains(fd) || !self.user.is_own_process() {
            return;
        }
        self.remembered.remove(fd);
        self.files_mut().set(fd, None);
    }

    /// As [`Kernel::forget`], for all descriptors from `first` to `last`.
    pub fn forget_range(&self, first: u32, last: u32) {
        for fd in self.remembered.within(first, last) {
            self.forget(fd);
        }
    }

    /// Whether a descriptor is one that the library has open for itself. The program must not close it.
    pub fn is_internal(fd: RawFd) -> bool {
        INTERNAL.contains(fd)
    }

    /// Descriptors from `first` to `last` that the library has open for itself, in order.
    pub fn internal_within(first: u32, last: u32) -> impl Iterator<Item = RawFd> {
        INTERNAL.within(first, last)
    }

    /// Waits until no thread is inside a command, and keeps others out until the guard is dropped: what has to be done before
    /// `fork`, so that the child meets no lock that nobody holds.
    pub fn before_fork(&self) -> ForkGuard<'_> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        ForkGuard { kernel: self, files: self.files_mut(), _turn: turn }
    }
}

/// Keeps commands from running while the process forks.
pub struct ForkGuard<'a> {
    kernel: &'a Kernel,
    files: RwLockWriteGuard<'a, Files>,
    _turn: MutexGuard<'a, Turn>,
}

impl ForkGuard<'_> {
    /// In the child: closes what the parent had open for itself, and opens it anew when it is needed.
    pub fn in_child(mut self) {
        self.kernel.user.after_fork();
        self.files.clear();
        self.kernel.forget_all();
    }
}

impl Kernel {
    fn forget_all(&self) {
        for fd in self.remembered.within(0, u32::MAX) {
            self.remembered.remove(fd);
        }
    }
}
