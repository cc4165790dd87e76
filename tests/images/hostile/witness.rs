//! What must stay as it is: every stat field, access times too, and every byte.
//!
//! All times are set first, the access times before the others: relatime then notes any access.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

/// Trees as they were.
pub struct Witness {
    roots: Vec<PathBuf>,
    /// Path -> all that lstat(2) tells.
    stats: BTreeMap<PathBuf, String>,
    /// Path -> what a file or symlink holds.
    contents: BTreeMap<PathBuf, Vec<u8>>,
}

impl Witness {
    /// Sees these trees; of a root that ends in `/.` only the directory itself.
    pub fn of(roots: Vec<PathBuf>) -> Self {
        let contents = contents(&roots);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 1_000_000_000, tv_nsec: 1 },
            last_modification: Timespec { tv_sec: 1_100_000_000, tv_nsec: 2 },
        };
        for path in contents.keys() {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let stats = contents.keys().map(|path| (path.clone(), stat(path))).collect();
        Self { roots, stats, contents }
    }

    /// Nothing was touched.
    #[track_caller]
    pub fn check(&mut self, what: &str) {
        // The stats first: to list and read marks the access.
        for (path, before) in &self.stats {
            assert_eq!(&stat(path), before, "{what}: {}", path.display());
        }
        let now = contents(&self.roots);
        let names = |contents: &BTreeMap<PathBuf, _>| contents.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&self.contents), "{what}");
        for (path, content) in &now {
            assert!(self.contents[path] == *content, "{what}: content of {}", path.display());
        }
        *self = Self::of(std::mem::take(&mut self.roots));
    }
}

fn stat(path: &Path) -> String {
    let Ok(meta) = path.symlink_metadata() else { return "gone".into() };
    format!(
        "mode {:o}, owner {}:{}, {} links, inode {}, size {}, accessed {}.{}, modified {}.{}, changed {}.{}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.ino(),
        meta.size(),
        meta.atime(),
        meta.atime_nsec(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    )
}

fn contents(roots: &[PathBuf]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for root in roots {
        let alone = root.as_os_str().as_encoded_bytes().ends_with(b"/.");
        let walk = walkdir::WalkDir::new(root).max_depth(if alone { 0 } else { usize::MAX });
        for entry in walk {
            let entry = entry.unwrap();
            let content = if entry.file_type().is_file() {
                std::fs::read(entry.path()).unwrap()
            } else if entry.file_type().is_symlink() {
                std::fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
            } else {
                Vec::new()
            };
            found.insert(entry.into_path(), content);
        }
    }
    found
}
