//! Telling a kernel that caches what it was told, where no reply does.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use super::Overlay;
use super::inode::Inode;
use super::state::Link;
use crate::layers::number::Ino;

/// What of its cache the kernel should drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// An inode's attributes: they have changed.
    Attributes(Ino),
    /// A directory's names: to list them again brings the attributes of all.
    Listing(Ino),
    /// A file's data: the layer's filesystem has it in memory, too.
    Data(Ino),
}

/// See [`Overlay::watch`].
#[derive(Default)]
pub(super) struct Watcher(OnceLock<Box<dyn Fn(Stale) -> bool + Send + Sync>>);

impl Watcher {
    /// Attributes have changed: to be called before the reply to who changed them.
    ///
    /// The kernel knows that of most operations. But another's request may have the old
    /// attributes in its reply already, and bring them after that.
    pub(super) fn tell(&self, ino: Ino) {
        self.tell_of(Stale::Attributes(ino));
    }

    pub(super) fn tell_of(&self, stale: Stale) -> bool {
        self.0.get().is_some_and(|watcher| watcher(stale))
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watcher({})", self.0.get().is_some())
    }
}

/// From how many accesses on listing the names again costs less than asking for each, and which part
/// of the directory they must be, for all of it is looked at.
const WORTH_LISTING: u16 = 4;
const WORTH_LISTING_PART: usize = 8;

/// How often the names of a directory were accessed since the kernel has listed it: reads from the
/// beginning of a file, and listings. It is counted up to 32,766: of a directory of more than
/// eight times as many names the kernel keeps its listing. And whether it has listed it at any time.
#[derive(Debug)]
pub(super) struct Accesses(AtomicU16);

impl Accesses {
    const WAS_LISTED: u16 = 1 << 15;
    /// In place of a count: the kernel has no whole listing to drop. What is dropped while it
    /// fills one in, it would never fill in again.
    const NOT_LISTED: u16 = Self::WAS_LISTED - 1;

    /// The kernel begins to list.
    pub(super) fn begin_listing(&self) {
        self.0.fetch_or(Self::NOT_LISTED, Ordering::Relaxed);
    }

    /// The kernel has listed all names, and has all their attributes.
    pub(super) fn end_listing(&self) {
        self.0.store(Self::WAS_LISTED, Ordering::Relaxed);
    }

    /// Whether the kernel has listed all names, ever.
    pub(super) fn was_listed(&self) -> bool {
        self.0.load(Ordering::Relaxed) & Self::WAS_LISTED != 0
    }

    /// Counts one more access.
    fn count(&self) -> Option<u16> {
        let is_counted = |n: u16| n & Self::NOT_LISTED < Self::NOT_LISTED - 1;
        let add = |n: u16| is_counted(n).then(|| n + 1);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some((before & Self::NOT_LISTED) + 1)
    }
}

impl Default for Accesses {
    fn default() -> Self {
        Self(AtomicU16::new(Self::NOT_LISTED))
    }
}

impl Overlay {
    /// Sets who is told of what a kernel should ask for again, and says whether it will be. Only the
    /// first is kept.
    pub fn watch(&self, watcher: impl Fn(Stale) -> bool + Send + Sync + 'static) {
        let _ = self.watcher.0.set(Box::new(watcher));
    }

    /// Notes that the kernel's time of access of `inode` is out of date, for it was read: the next
    /// stat(2) will ask for its attributes. Where that is so for many names of a directory, the
    /// kernel had better list it again when it is listed: one request brings the attributes of all.
    pub(super) fn was_accessed(&self, inode: &Inode) {
        let Some(Link { parent, .. }) = inode.any_link() else { return };
        let Some(accesses) = parent.accesses.count().filter(|n| *n >= WORTH_LISTING) else {
            return;
        };
        // Who changes the directory at this moment is not waited for: the next access counts too.
        let names =
            parent.dir.try_read().map(|names| names.as_ref().map_or(0, |names| names.len()));
        let is_worth_it = |names| usize::from(accesses) * WORTH_LISTING_PART >= names;
        if !names.is_some_and(is_worth_it) {
            return;
        }
        parent.accesses.begin_listing();
        if !self.watcher.tell_of(Stale::Listing(parent.ino)) {
            parent.accesses.end_listing();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_counted_of_what_is_listed() {
        let accesses = Accesses::default();
        assert!(accesses.count().is_none() && !accesses.was_listed());
        accesses.end_listing();
        assert_eq!((accesses.count(), accesses.count()), (Some(1), Some(2)));
        accesses.begin_listing();
        assert!(accesses.count().is_none() && accesses.was_listed());
        accesses.end_listing();
        let most = (1..).find(|_| accesses.count().is_none()).unwrap() - 1;
        assert_eq!(most, 32_766);
        assert!(accesses.was_listed());
    }
}
