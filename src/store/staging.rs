//! Directories in which something is built before one rename brings it into the store.
//!
//! Each is locked (flock) by whoever builds in it. What a killed process left is unlocked:
//! the next one that builds removes it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::digest::DiffId;
use super::{Result, Store, io_error};

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
        self.remove_abandoned(&tmp)?;
        let made = tempfile::Builder::new().prefix("build-").tempdir_in(&tmp);
        let path = made.map_err(io_error("write", &tmp))?.keep();
        let lock = File::open(&path).map_err(io_error("open", &path))?;
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
    /// has the store's lock, as the caller has it now.
    fn remove_abandoned(&self, tmp: &Path) -> Result<()> {
        for entry in fs::read_dir(tmp).map_err(io_error("read", tmp))? {
            let path = entry.map_err(io_error("read", tmp))?.path();
            let Ok(held) = File::open(&path) else { continue }; // gone since
            let is_dir = path.is_dir();
            let lock = FlockOperation::NonBlockingLockExclusive;
            if is_dir && rustix::fs::flock(&held, lock).is_err() {
                continue;
            }
            let removed = if is_dir { remove_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Removes a tree, also directories that their owner may not read or write.
pub(super) fn remove_all(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}
