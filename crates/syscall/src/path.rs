//! Paths of bpffs, and where they lead in a root directory.

use std::path::{Component, Path, PathBuf};

use crate::root::Root;

/// Where programs expect bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

impl Root {
    /// Where a path leads that is in bpffs, or in the directory that stands for it; `None` for other paths. `.` and `..` are
    /// resolved by the words of the path. A relative path is none of bpffs.
    ///
    /// ```
    /// use bpfarray_syscall::Root;
    /// # let dir = std::env::temp_dir().join(format!("bpfarray-path-doc-{}", std::process::id()));
    /// let root = Root::open(&dir)?;
    /// assert_eq!(root.translate("/sys/fs/bpf/./a//b"), Some(root.pins().join("a/b")));
    /// assert_eq!(root.translate("/sys/fs/bpf/../x"), None);
    /// # std::fs::remove_dir_all(dir)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let path = plain(path.as_ref());
        let pins = self.pins();
        if path.starts_with(&pins) {
            return Some(path);
        }
        // Joining nothing would put a slash behind the directory's name.
        match path.strip_prefix(BPFFS).ok()? {
            rest if rest.as_os_str().is_empty() => Some(pins),
            rest => Some(pins.join(rest)),
        }
    }
}

/// The path without `.`, `..` and repeated slashes.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
