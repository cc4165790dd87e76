//! Removing names: unlink and rmdir.
//!
//! First the whiteout, then the upper file: between the two the name is still there, and
//! once the file is gone the whiteout hides the lower one. So no crash brings it back.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::fs::AtFlags;

use super::error::{Context, Error, Result, best_effort};
use super::fd_cache::FdKey;
use super::held::Held;
use super::inode::Inode;
use super::listing::{Entry, Listing};
use super::state::UpperFile;
use super::{Overlay, held_name};
use crate::layers::number::Ino;
use crate::layers::upper::Upper;
use crate::sys::{Errno, Stat, Timestamp};

/// A directory's names, locked for a change.
pub(super) type Names<'a> = RwLockWriteGuard<'a, Option<Box<Listing>>>;

impl Overlay {
    /// Removes a name that is not a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let name = &*held_name(name)?;
        let parent = self.inode(parent)?;
        let target = self.known(&parent, name)?;
        if target.is_dir() {
            return Err(Error::IsDirectory);
        }
        self.copy_up(&parent)?;
        let mut names = parent.dir.write();
        let entry = self.checked_entry(&names, &target, &parent, name)?;
        let dir = self.upper_dir(&parent)?;
        let before = self.removable(&target)?;
        self.hold_if_last(&target, &parent, &entry)?;
        let remove = || {
            if entry.needs_whiteout() {
                self.upper()?.make_whiteout(dir.as_fd(), name).context("make whiteout", name)?;
            }
            if entry.in_upper() {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).context("unlink", name)?;
            }
            Ok(())
        };
        remove().inspect_err(|_| target.let_go())?;
        self.name_is_gone(&target, &parent, &mut names, name);
        self.count_out(&target, &entry, &before);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let name = &*held_name(name)?;
        let parent = self.inode(parent)?;
        let target = self.known(&parent, name)?;
        drop(self.listing(&target)?); // reads it, or fails as something else
        self.copy_up(&parent)?;
        let (mut names, inside) = lock_two(&parent, &target);
        let entry = self.checked_entry(&names, &target, &parent, name)?;
        if inside.as_ref().and_then(|i| i.as_deref()).is_some_and(|i| !i.is_empty()) {
            return Err(Error::NotEmpty);
        }
        let dir = self.upper_dir(&parent)?;
        self.removable(&target)?;
        self.hold_if_last(&target, &parent, &entry)?;
        let remove = || {
            if entry.needs_whiteout() {
                self.upper()?.make_whiteout(dir.as_fd(), name).context("make whiteout", name)?;
            }
            if entry.in_upper() { self.remove_upper_dir(dir.as_fd(), name) } else { Ok(()) }
        };
        remove().inspect_err(|_| target.let_go())?;
        self.name_is_gone(&target, &parent, &mut names, name);
        Ok(())
    }

    /// The name's entry, if it is still the target's.
    pub(super) fn checked_entry(
        &self,
        names: &Names<'_>,
        target: &Inode,
        parent: &Inode,
        name: &[u8],
    ) -> Result<Entry> {
        let entry = names.as_deref().and_then(|names| names.get(&self.hashing, name));
        let is_link = target.state.read().links.iter().any(|link| link.is(parent, name));
        entry.filter(|_| is_link).cloned().ok_or(Error::NotFound)
    }

    /// Removes an upper directory whose merged view is empty: it may still hold marks.
    pub(super) fn remove_upper_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.upper()?.discard_dir(dir, name).context("discard directory", name)
            }
            result => result.context("remove directory", name),
        }
    }

    /// The attributes of an inode that may lose a name.
    ///
    /// # Errors
    /// EPERM if its flags forbid that (`chattr +i`, `+a`), found before anything is changed.
    pub(super) fn removable(&self, target: &Arc<Inode>) -> Result<Stat> {
        let stat = self.stat_object(target)?;
        if stat.is_protected() {
            return Err(Errno::PERM).context("remove a name that is immutable", b"");
        }
        Ok(stat)
    }

    /// Prepares an inode for losing a name: it stays usable by those who have it open. Should
    /// the name stay after all, [`Inode::let_go`] undoes it.
    pub(super) fn hold_if_last(
        &self,
        target: &Arc<Inode>,
        parent: &Inode,
        entry: &Entry,
    ) -> Result<()> {
        let last = target.state.read().links.iter().all(|link| link.is(parent, &entry.name));
        if last && target.in_upper() {
            let fd = match self.fds.get(FdKey::Write(target.ino)) {
                Some(fd) => fd,
                None => self.object(target)?,
            };
            // A directory has no second name to be parked under.
            let held = if self.held.has_room() || target.is_dir() {
                self.held.hold(fd)
            } else {
                let parked = self.upper()?.park(fd.as_fd()).context("park", &entry.name)?;
                Held::Parked(Arc::new(parked))
            };
            if let Some(upper) = &mut target.state.write().upper {
                *upper = Arc::new(UpperFile { ino: upper.ino, held: Some(held) });
            }
        }
        Ok(())
    }

    /// Counts a name out that is gone: `left`, the number of names that the layer still
    /// shows, and the index link, which goes with the last name. It comes after the fact,
    /// so what a crash leaves is a count too high, which loses nothing.
    pub(super) fn count_out(&self, target: &Inode, entry: &Entry, before: &Stat) {
        let Some(index) = self.upper.as_ref().map(Upper::index).filter(|_| !target.is_dir()) else {
            return;
        };
        let indexed = self.is_indexed(target);
        let in_upper = entry.in_upper();
        if !in_upper && (indexed || index.left(target.ino).is_some() || before.nlink > 1) {
            let now = Some(Timestamp::now());
            best_effort("record links", index.count_down(target.ino, before.nlink, now));
        }
        let left = index.left(target.ino).map_or(0, |left| left.names);
        // Its names in upper: without the one that went, and without the index's link.
        let names = before.nlink.saturating_sub(u32::from(in_upper) + u32::from(indexed));
        if names > 0 || left > 0 {
            self.watcher.tell(target.ino);
            return;
        }
        let upper = target.state.read().upper.as_ref().map(|upper| upper.ino);
        if let Some(upper) = upper {
            best_effort("drop a copy", index.drop_copy(upper, target.ino, indexed));
        } else if indexed {
            best_effort("drop index link", index.unlink(target.ino));
        }
    }

    pub(super) fn name_is_gone(
        &self,
        target: &Inode,
        parent: &Inode,
        names: &mut Names<'_>,
        name: &[u8],
    ) {
        if let Some(names) = names.as_deref_mut() {
            names.remove(&self.hashing, name);
        }
        target.remove_link(parent, name);
        self.watcher.tell(parent.ino);
    }
}

/// Locks the names of two directories in the order of their numbers; the second guard is
/// `None` if they are one.
pub(super) fn lock_two<'a>(a: &'a Inode, b: &'a Inode) -> (Names<'a>, Option<Names<'a>>) {
    if a.ino == b.ino {
        return (a.dir.write(), None);
    }
    if a.ino < b.ino {
        let first = a.dir.write();
        return (first, Some(b.dir.write()));
    }
    let second = b.dir.write();
    (a.dir.write(), Some(second))
}
