//! Control groups: directories of a cgroup v2 file system.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bpfarray_core::Errno;
use rustix::fs::{AtFlags, FsWord, Mode, OFlags, fstat, fstatfs, open, statat};

/// `CGROUP2_SUPER_MAGIC`
const CGROUP2_MAGIC: FsWord = 0x6367_7270;

/// A control group of the unified hierarchy, kept by an open directory.
///
/// # Kernel
/// `struct cgroup`
#[derive(Clone, Debug)]
#[doc(alias = "cgroup")]
pub struct Cgroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Keeps the control group, as the kernel does for a map.
    _dir: Option<OwnedFd>,
    /// The directory's number, which is the id of the control group.
    id: u64,
    /// The directory on which the hierarchy is mounted.
    mount_point: OwnedFd,
    /// Path of that in the hierarchy.
    mount_root: PathBuf,
}

/// Why a directory is no control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It cannot be opened or looked at.
    #[error("cannot open the control group: {0}")]
    Open(#[from] io::Error),
    /// It is no directory of a cgroup v2 file system.
    #[error("not a directory of a cgroup v2 file system")]
    NotCgroup2,
}

impl CgroupError {
    /// The error number that opening it, or inserting it with `bpf(2)`, reports.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Open(error) => error.raw_os_error().map_or(Errno::EBADF, Errno::from_raw),
            Self::NotCgroup2 => Errno::EBADF,
        }
    }
}

impl Cgroup {
    /// Opens a directory of a cgroup v2 file system.
    ///
    /// # Errors
    /// The variants of [`CgroupError`] in their order.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CgroupError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Self::from_fd(open(path.as_ref(), flags, Mode::empty()).map_err(io::Error::from)?)
    }

    /// Takes over an open directory of a cgroup v2 file system.
    ///
    /// # Errors
    /// The variants of [`CgroupError`] in their order.
    ///
    /// # Kernel
    /// `cgroup_get_from_fd`
    #[doc(alias = "cgroup_get_from_fd")]
    pub fn from_fd(dir: OwnedFd) -> Result<Self, CgroupError> {
        let stat = fstat(&dir).map_err(io::Error::from)?;
        let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if !is_dir || !is_cgroup2(&dir)? {
            return Err(CgroupError::NotCgroup2);
        }
        let (mount_root, mount_point) = mount_of(&dir)?;
        Self::new(stat.st_ino, Some(dir), mount_root, &mount_point)
    }

    /// The control group with this id, whether or not it is still there: ids are not used again. It can be told who is in
    /// it as far as it is under a place where a cgroup v2 file system is mounted.
    ///
    /// # Errors
    /// [`CgroupError::Open`]; [`CgroupError::NotCgroup2`] if none is mounted.
    pub fn from_id(id: u64) -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        // The one that shows most of the hierarchy.
        let found = mounts
            .lines()
            .filter(|line| line.split(" - ").nth(1).is_some_and(|fs| fs.starts_with("cgroup2 ")))
            .filter_map(paths_of_mount)
            .min_by_key(|(root, _)| root.as_os_str().len());
        let (mount_root, mount_point) = found.ok_or(CgroupError::NotCgroup2)?;
        Self::new(id, None, mount_root, &mount_point)
    }

    fn new(
        id: u64,
        dir: Option<OwnedFd>,
        mount_root: PathBuf,
        mount_point: &Path,
    ) -> Result<Self, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount_point = open(mount_point, flags, Mode::empty()).map_err(io::Error::from)?;
        if !is_cgroup2(&mount_point)? {
            return Err(CgroupError::NotCgroup2);
        }
        Ok(Self { inner: Arc::new(Inner { _dir: dir, id, mount_point, mount_root }) })
    }

    /// The control group's id.
    ///
    /// # Kernel
    /// `cgroup_id`
    #[doc(alias = "cgroup_id")]
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Whether the calling thread is in the control group or in one below it.
    ///
    /// # Errors
    /// What reading `/proc/thread-self/cgroup` reports.
    ///
    /// # Kernel
    /// `task_under_cgroup_hierarchy`
    #[doc(alias = "task_under_cgroup_hierarchy")]
    pub fn holds_current_task(&self) -> io::Result<bool> {
        let groups = fs::read_to_string("/proc/thread-self/cgroup")?;
        // The line of the unified hierarchy, if it is mounted at all.
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
        Ok(path.is_some_and(|path| self.holds(Path::new(path))))
    }

    /// Whether a path in the hierarchy leads to the control group or to one below it.
    fn holds(&self, path: &Path) -> bool {
        let Ok(path) = path.strip_prefix(&self.inner.mount_root) else { return false };
        path.ancestors().any(|path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            statat(&self.inner.mount_point, path, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| stat.st_ino == self.inner.id)
        })
    }
}

fn is_cgroup2(dir: impl AsFd) -> Result<bool, CgroupError> {
    Ok(fstatfs(dir).map_err(io::Error::from)?.f_type == CGROUP2_MAGIC)
}

/// The path in its file system of the mount in which an open file is, and where that is mounted.
fn mount_of(file: impl AsFd) -> Result<(PathBuf, PathBuf), CgroupError> {
    let fdinfo = format!("/proc/thread-self/fdinfo/{}", file.as_fd().as_raw_fd());
    let fdinfo = fs::read_to_string(fdinfo)?;
    let mount_id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    mounts
        .lines()
        .find(|line| line.split(' ').next() == mount_id)
        .and_then(paths_of_mount)
        .ok_or(CgroupError::NotCgroup2)
}

/// Which path of a file system a line of `mountinfo` says is mounted, and where.
fn paths_of_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let mut paths = line.split(' ').skip(3).map(unescape);
    Some((paths.next()?.into(), paths.next()?.into()))
}

/// A path as `mountinfo` writes it, with blanks and the like as three octal digits.
fn unescape(field: &str) -> String {
    let mut path = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(code.map_or('\\', char::from));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    path + rest
}

#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod tests {
    use super::*;

    /// Where cgroup v2 is mounted, or `None` with a word about it.
    pub(crate) fn hierarchy() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then(|| unescape(point).into())
        });
        if mount.is_none() {
            eprintln!("SKIPPED: no cgroup v2 file system is mounted");
        }
        mount
    }

    /// A control group that nobody is in, removed when dropped.
    struct Child(PathBuf);

    impl Child {
        fn new(name: &str) -> Option<Self> {
            let path = hierarchy()?.join(format!("bpfarray-test-{name}-{}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => Some(Self(path)),
                Err(error) => {
                    eprintln!("SKIPPED: cannot create {}: {error}", path.display());
                    None
                }
            }
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn other_directories_and_files_are_no_control_groups() {
        for path in ["/", "/proc/self", "/dev/null"] {
            assert_eq!(Cgroup::open(path).unwrap_err().errno(), Errno::EBADF, "{path}");
        }
        assert_eq!(Cgroup::open("/no/such/path").unwrap_err().errno(), Errno::ENOENT);
        let Some(root) = hierarchy() else { return };
        let file = Cgroup::open(root.join("cgroup.procs")).unwrap_err();
        assert_eq!(file.errno(), Errno::EBADF);
    }

    #[test]
    fn the_root_holds_every_task_and_an_empty_group_none() {
        let Some(root) = hierarchy() else { return };
        assert!(Cgroup::open(root).unwrap().holds_current_task().unwrap());
        let Some(child) = Child::new("empty") else { return };
        assert!(!Cgroup::open(&child.0).unwrap().holds_current_task().unwrap());
    }

    #[test]
    fn a_group_holds_what_is_below_it_and_not_what_has_a_similar_name() {
        let (Some(root), Some(child)) = (hierarchy(), Child::new("a")) else { return };
        let group = Cgroup::open(&child.0).unwrap();
        let name = child.0.strip_prefix(&root).unwrap().to_str().unwrap();
        let path = group.inner.mount_root.join(name);
        assert!(group.holds(&path) && group.holds(&path.join("below")));
        assert!(!group.holds(&group.inner.mount_root));
        assert!(!group.holds(Path::new(&format!("{}b", path.display()))));
    }

    #[test]
    fn an_id_alone_tells_who_is_in_a_group() {
        let (Some(root), Some(child)) = (hierarchy(), Child::new("id")) else { return };
        let root = Cgroup::open(root).unwrap();
        let again = Cgroup::from_id(root.id()).unwrap();
        assert_eq!(again.holds_current_task().unwrap(), root.holds_current_task().unwrap());
        let group = Cgroup::open(&child.0).unwrap();
        let again = Cgroup::from_id(group.id()).unwrap();
        let path = again.inner.mount_root.join(child.0.file_name().unwrap());
        assert!(again.holds(&path) && !again.holds_current_task().unwrap());
        fs::remove_dir(&child.0).unwrap();
        assert!(!again.holds(&path));
    }

    #[test]
    fn a_group_of_the_same_name_is_another_group() {
        let Some(child) = Child::new("twice") else { return };
        let group = Cgroup::open(&child.0).unwrap();
        fs::remove_dir(&child.0).unwrap();
        fs::create_dir(&child.0).unwrap();
        let again = Cgroup::open(&child.0).unwrap();
        assert_ne!(group.id(), again.id());
        let path = again.inner.mount_root.join(child.0.file_name().unwrap());
        let in_root = child.0.parent() == hierarchy().as_deref();
        assert!(in_root && again.holds(&path) && !group.holds(&path));
    }

    #[test]
    fn blanks_in_mount_points_are_read_back() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/plain\"), r"/plain\");
    }
}
