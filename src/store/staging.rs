//! Directories in which something is built before one rename brings it into the store.
//!
//! Each is locked (flock) by whoever builds in it. What a killed process left is unlocked:
//! the next one that builds removes it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::digest::DiffId;
use super::{Result, Store, io_error};
use crate::layers::acl;
use crate::sys::{self, Errno};

/// A directory below ROOT/tmp; what is still in it goes on drop.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// In a staging directory: the DiffIDs of layers of the store that its builder will use, a line
/// each.
const USES: &str = "uses";

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("remove {}: {error}", self.path.display());
        }
    }
}

impl Store {
    /// A directory for something to be built.
    pub fn staging(&self) -> Result<Staging> {
        // Under the store's lock nobody takes a directory for abandoned before it is locked.
        let _lock = self.lock()?;
        let tmp = self.root.join("tmp");
        if let Err(error) = self.remove_abandoned(&tmp) {
            log::warn!("{error}"); // another user's, perhaps; it is in nobody's way
        }
        let made = tempfile::Builder::new().prefix("build-").tempdir_in(&tmp);
        let path = made.map_err(io_error("write", &tmp))?.keep();
        let lock = File::open(&path).map_err(io_error("open", &path))?;
        // What is built in it has the modes and ACLs that an image gives, no others.
        match sys::remove_xattr(lock.as_fd(), acl::DEFAULT) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(io_error("remove the default ACL of", &path)(errno.into())),
        }
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| io_error("lock", &path)(errno.into()))?;
        Ok(Staging { path, _lock: lock })
    }

    /// Of these layers, those that the store has; nobody removes them before `staging` ends.
    pub(crate) fn pin(
        &self,
        staging: &Staging,
        layers: impl Iterator<Item = DiffId>,
    ) -> Result<HashSet<DiffId>> {
        let _lock = self.lock()?;
        let present: HashSet<DiffId> = layers.filter(|diff| self.has_layer(diff)).collect();
        let lines: String = present.iter().map(|diff| format!("{diff}\n")).collect();
        let path = staging.path.join(USES);
        fs::write(&path, lines).map_err(io_error("write", &path))?;
        Ok(present)
    }

    /// The layers that are pinned. The caller has the store's lock.
    pub(super) fn pinned_locked(&self) -> Result<HashSet<DiffId>> {
        let tmp = self.root.join("tmp");
        let mut pinned = HashSet::new();
        for entry in fs::read_dir(&tmp).map_err(io_error("read", &tmp))? {
            let path = entry.map_err(io_error("read", &tmp))?.path().join(USES);
            let Ok(text) = fs::read_to_string(&path) else { continue }; // none, or gone
            pinned.extend(text.lines().filter_map(|line| line.parse().ok()).map(DiffId));
        }
        Ok(pinned)
    }

    /// Removes what killed processes left in the staging directories.
    pub(super) fn remove_leftovers_locked(&self) -> Result<()> {
        self.remove_abandoned(&self.root.join("tmp"))
    }

    /// Removes directories that nobody has locked, and small files, which exist only while somebody
    /// has the store's lock, as the caller has it now; as many as can be removed.
    fn remove_abandoned(&self, tmp: &Path) -> Result<()> {
        let mut result = Ok(());
        for entry in fs::read_dir(tmp).map_err(io_error("read", tmp))? {
            let path = entry.map_err(io_error("read", tmp))?.path();
            let Ok(held) = File::open(&path) else { continue }; // gone since
            let is_dir = path.is_dir();
            let lock = FlockOperation::NonBlockingLockExclusive;
            if is_dir && rustix::fs::flock(&held, lock).is_err() {
                continue;
            }
            let removed = if is_dir { remove_all(&path) } else { fs::remove_file(&path) };
            result = result.and(removed.map_err(io_error("remove", &path)));
        }
        result
    }
}

/// Removes a tree, also directories that their owner may not read or write, and however deep: where
/// the usual way fails, each directory is moved to the top before it is emptied.
pub(super) fn remove_all(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(e),
        Err(_) => remove_piecewise(path), // not allowed, or more levels than files may be open
    }
}

fn remove_piecewise(path: &Path) -> std::io::Result<()> {
    let open_up = |dir: &Path| fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    open_up(path)?;
    let mut todo = vec![path.to_owned()];
    // No layer has such a name, and no other process.
    let own_prefix = format!(".wh..wh.removed-{}-", std::process::id());
    let is_moved = |name: &OsStr| name.as_bytes().starts_with(own_prefix.as_bytes());
    let mut moved = 0;
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let at = entry.path();
            if !entry.file_type()?.is_dir() {
                fs::remove_file(&at)?;
                continue;
            }
            if dir == path && is_moved(&entry.file_name()) {
                continue; // it is in the list
            }
            open_up(&at)?; // moving it changes its `..`
            moved += 1;
            let top = path.join(format!("{own_prefix}{moved}"));
            fs::rename(&at, &top)?;
            todo.push(top);
        }
        if dir != path {
            fs::remove_dir(&dir)?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_any_kind_go() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        // Deeper than a path may be long, so made from below.
        for level in 0..3000 {
            let (above, below) = (dir.path().join("above"), &top);
            fs::create_dir(&above).unwrap();
            fs::write(above.join("file"), "").unwrap();
            fs::rename(below, above.join(format!("level{level}"))).unwrap();
            fs::rename(&above, below).unwrap();
        }
        let locked = top.join("locked");
        fs::create_dir(&locked).unwrap();
        fs::write(locked.join("file"), "").unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        remove_piecewise(&top).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
