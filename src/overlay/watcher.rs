//! Telling a kernel that caches what it was told, where no reply does.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::Overlay;
use super::inode::Inode;
use crate::layers::number::Ino;

/// What of its cache the kernel should drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// An inode's attributes: they have changed.
    Attributes(Ino),
    /// A directory's names: to list them again brings the attributes of all.
    Listing(Ino),
}

/// See [`Overlay::watch`].
#[derive(Default)]
pub(super) struct Watcher(OnceLock<Box<dyn Fn(Stale) + Send + Sync>>);

impl Watcher {
    /// Attributes have changed: to be called before the reply to who changed them.
    ///
    /// The kernel knows that of most operations. But another's request may have the old
    /// attributes in its reply already, and bring them after that.
    pub(super) fn tell(&self, ino: Ino) {
        self.tell_of(Stale::Attributes(ino));
    }

    fn tell_of(&self, stale: Stale) {
        if let Some(watcher) = self.0.get() {
            watcher(stale);
        }
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watcher({})", self.0.get().is_some())
    }
}

/// From how many names on listing them again costs less than asking for each, and which part of
/// the directory they must be, for all of it is looked at.
const WORTH_LISTING: u16 = 4;
const WORTH_LISTING_PART: usize = 8;
/// In place of a count: the kernel was told.
const TOLD: u16 = u16::MAX;

impl Overlay {
    /// Sets who is told of what a kernel should ask for again. Only the first is kept.
    pub fn watch(&self, watcher: impl Fn(Stale) + Send + Sync + 'static) {
        let _ = self.watcher.0.set(Box::new(watcher));
    }

    /// Notes that the kernel's time of access of `inode` is out of date, for it was read: the next
    /// stat(2) will ask for its attributes. Where that is so for many names of a directory, the
    /// kernel had better list it again when it is listed: one request brings the attributes of all.
    pub(super) fn was_accessed(&self, inode: &Inode) {
        let Some(link) = inode.any_link() else { return };
        let count = &link.parent.accessed;
        let add = |n: u16| (n != TOLD).then(|| n + 1);
        let Ok(before) = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) else {
            return;
        };
        let accessed = before + 1;
        if accessed < WORTH_LISTING {
            return;
        }
        let names = link.parent.dir.read().as_ref().map_or(0, |listing| listing.len());
        if usize::from(accessed) * WORTH_LISTING_PART >= names
            && count.swap(TOLD, Ordering::Relaxed) != TOLD
        {
            self.watcher.tell_of(Stale::Listing(link.parent.ino));
        }
    }

    /// Notes that the kernel lists a directory, and gets the attributes of its names.
    pub(super) fn is_listed(&self, dir: &Arc<Inode>) {
        dir.accessed.store(0, Ordering::Relaxed);
    }
}
