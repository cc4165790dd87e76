//! Open descriptors kept for reuse: a bounded number, whatever number of inodes is known.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::state::{LowerDir, LowerDirId};
use crate::layers::number::Ino;

/// What a kept descriptor is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FdKey {
    /// A directory of a lower layer, `O_PATH`.
    LowerDir(LowerDirId),
    /// A directory's upper part, `O_PATH`.
    UpperDir(Ino),
    /// A file's data in a lower layer.
    LowerData(Ino),
    /// A file's data in upper, for reading.
    Read(Ino),
    /// A file's data in upper, for reading and writing.
    Write(Ino),
}

/// The cache, least recently used out first.
#[derive(Debug)]
pub(super) struct FdCache(Mutex<LruCache<FdKey, Arc<OwnedFd>>>);

impl FdCache {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(capacity)))
    }

    pub(super) fn get(&self, key: FdKey) -> Option<Arc<OwnedFd>> {
        self.0.lock().get(&key).cloned()
    }

    pub(super) fn put(&self, key: FdKey, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        // The descriptor that makes room is closed after the lock is free.
        let evicted = self.0.lock().push(key, Arc::clone(&fd));
        drop(evicted);
        fd
    }

    pub(super) fn remove(&self, key: FdKey) {
        let removed = self.0.lock().pop(&key);
        drop(removed);
    }

    /// Drops all that is kept for an inode, and for its lower directories.
    pub(super) fn forget<'a>(&self, ino: Ino, lowers: impl Iterator<Item = &'a Arc<LowerDir>>) {
        let keys = [FdKey::UpperDir, FdKey::LowerData, FdKey::Read, FdKey::Write];
        keys.into_iter().for_each(|key| self.remove(key(ino)));
        for dir in lowers {
            self.remove(FdKey::LowerDir(dir.id));
        }
    }
}
