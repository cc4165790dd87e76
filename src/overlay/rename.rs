//! rename, with RENAME_NOREPLACE and RENAME_EXCHANGE. Never EXDEV.
//!
//! What moves is upper's part, by one renameat2(2). A directory that has lower parts is
//! *settled* first. Where upper may hold pointers, that is a redirect: it says where the lower
//! parts lie. Else everything below it is copied up in place, which nobody can see, and then
//! it is made opaque. So the rename itself stays atomic, to every observer and to a crash, and
//! writes that go on meanwhile are not lost.
//!
//! Order: opaque marks on what is moved over a lower name, the whiteout at the old name,
//! the rename, and last the whiteout at the new name goes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::fs::RenameFlags;

use super::copy_up::{Wait, copy_times};
use super::error::{Context, Error, Result, best_effort};
use super::inode::Inode;
use super::listing::{Entry, LayerIndex, Listing, Name};
use super::lookup::Known;
use super::state;
use super::{Overlay, held_name};
use crate::layers::marks::{self, Meaning};
use crate::layers::number::Ino;
use crate::layers::redirect::Below;
use crate::layers::upper::Upper;
use crate::sys::{self, Errno, FileType};

/// What a rename does to an existing new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails with EEXIST (RENAME_NOREPLACE).
    NoReplace,
    /// Swaps the two (RENAME_EXCHANGE).
    Exchange,
}

/// One of the two names of a rename.
struct Place<'a> {
    parent: &'a Arc<Inode>,
    name: &'a [u8],
}

/// The locked names of the directories that a rename changes, by number.
type Locked<'a> = BTreeMap<Ino, RwLockWriteGuard<'a, Option<Box<Listing>>>>;

impl Overlay {
    /// Renames `name` in `parent` to `new_name` in `new_parent`.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let (name, new_name) = (&*held_name(name)?, &*held_name(new_name)?);
        let (parent, new_parent) = (self.inode(parent)?, self.inode(new_parent)?);
        let from = Place { parent: &parent, name };
        let to = Place { parent: &new_parent, name: new_name };
        let source = self.known(&parent, name)?;
        let target = match self.known(&new_parent, new_name) {
            Err(Error::NotFound) => None,
            result => Some(result?),
        };
        check_rename(&source, target.as_ref(), &from, &to, mode)?;
        if target.as_ref().is_some_and(|target| target.ino == source.ino) {
            return Ok(()); // two names of one file: rename(2) leaves both
        }
        if let Some(dir) = target.as_ref().filter(|target| target.is_dir())
            && mode == RenameMode::Replace
            && !self.listing(dir)?.is_empty()
        {
            return Err(Error::NotEmpty); // before anything is copied up
        }
        self.removable(&source)?;
        self.copy_up(&parent)?;
        self.copy_up(&new_parent)?;
        self.settle(&from, &source)?;
        match &target {
            Some(target) if mode == RenameMode::Exchange => {
                self.settle(&to, target)?;
                self.exchange(&from, &to, &source, target)
            }
            _ => self.replace(&from, &to, &source, target.as_deref()),
        }
    }

    /// What a rename of this name waits for.
    pub fn rename_waits_for(&self, parent: Ino, name: &[u8]) -> Wait {
        let waits_for = || -> Result<Wait> {
            let inode = self.known(&self.inode(parent)?, &held_name(name)?)?;
            Ok(match inode.kind {
                FileType::Directory if self.makes_pointers || is_pure_upper(&inode) => {
                    Wait::Nothing
                }
                FileType::Directory => Wait::Copy,
                _ => self.copy_up_waits_for(inode.ino),
            })
        };
        waits_for().unwrap_or(Wait::Nothing) // the rename itself meets the error
    }

    /// Moves `source` to its new name, over `target` if there is one.
    fn replace(
        &self,
        from: &Place<'_>,
        to: &Place<'_>,
        source: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
    ) -> Result<()> {
        let target_dir = target.filter(|target| target.is_dir());
        if let Some(dir) = target_dir {
            drop(self.listing(dir)?);
        }
        let mut locked = lock([Some(from.parent), Some(to.parent), target_dir]);
        let entry = self.entry_at(&locked, from, source)?;
        let replaced = match target {
            Some(target) => Some(self.entry_at(&locked, to, target)?),
            None if self.has_name(&locked, to) => return Err(Error::Exists),
            None => None,
        };
        if let Some(dir) = target_dir
            && locked.get(&dir.ino).and_then(|n| n.as_deref()).is_some_and(|n| !n.is_empty())
        {
            return Err(Error::NotEmpty);
        }
        let (from_dir, to_dir) = (self.upper_dir(from.parent)?, self.upper_dir(to.parent)?);
        let whiteout = self.prepare_name(to.parent, to_dir.as_fd(), to.name)?;
        let covers = whiteout || replaced.as_ref().is_some_and(Entry::needs_whiteout);
        if covers {
            self.cut_off(source)?;
        }
        let before = target.map(|target| self.removable(target)).transpose()?;
        let upper = self.upper()?;
        if entry.needs_whiteout() {
            upper.make_whiteout(from_dir.as_fd(), from.name).context("make whiteout", from.name)?;
        }
        let mut drop_whiteout = whiteout;
        if let (Some(target), Some(replaced)) = (target, &replaced) {
            if source.is_dir() != target.is_dir() {
                return Err(Error::Invalid("the types changed"));
            }
            self.hold_if_last(target, to.parent, replaced)?;
        }
        let mut moves = || {
            if let (Some(target), Some(true)) = (target_dir, replaced.as_ref().map(Entry::in_upper))
            {
                self.clear_marks(target, to, &to_dir, covers, &mut locked)?;
                drop_whiteout |= covers;
            }
            rustix::fs::renameat(&from_dir, from.name, &to_dir, to.name)
                .context("rename", from.name)
        };
        if let Err(error) = moves() {
            target.inspect(|target| target.let_go());
            return Err(error);
        }
        // It has happened: first of all memory agrees, for those who come by inode.
        self.move_entry(&mut locked, from, to, source, covers);
        if let (Some(target), Some(replaced), Some(before)) = (target, &replaced, &before) {
            target.remove_link(to.parent, to.name);
            self.count_out(target, replaced, before);
        }
        for changed in [from.parent, to.parent, source] {
            self.watcher.tell(changed.ino);
        }
        if drop_whiteout {
            // One that stays hides nothing of its own layer.
            best_effort("drop whiteout", upper.drop_whiteout(to_dir.as_fd(), to.name));
        }
        Ok(())
    }

    /// Swaps two names.
    fn exchange(
        &self,
        from: &Place<'_>,
        to: &Place<'_>,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        let mut locked = lock([Some(from.parent), Some(to.parent), None]);
        let entry = self.entry_at(&locked, from, source)?;
        let other = self.entry_at(&locked, to, target)?;
        if other.covers {
            self.cut_off(source)?;
        }
        if entry.covers {
            self.cut_off(target)?;
        }
        let (from_dir, to_dir) = (self.upper_dir(from.parent)?, self.upper_dir(to.parent)?);
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&from_dir, from.name, &to_dir, to.name, flags)
            .context("exchange", from.name)?;
        for (place, inode, covers) in [(from, target, entry.covers), (to, source, other.covers)] {
            let new = Entry::upper(place.name, inode.kind, covers);
            if let Some(names) = names_of(&mut locked, place.parent) {
                names.insert(&self.hashing, new);
            }
        }
        // Never without a name in between, for those who look for one.
        source.add_link(to.parent, &to.name.into());
        target.add_link(from.parent, &from.name.into());
        source.remove_link(from.parent, from.name);
        target.remove_link(to.parent, to.name);
        for changed in [from.parent, to.parent, source, target] {
            self.watcher.tell(changed.ino);
        }
        Ok(())
    }

    fn entry_at(&self, locked: &Locked<'_>, place: &Place<'_>, inode: &Inode) -> Result<Entry> {
        let names = locked.get(&place.parent.ino).ok_or(Error::Stale)?;
        self.checked_entry(names, inode, place.parent, place.name)
    }

    fn has_name(&self, locked: &Locked<'_>, place: &Place<'_>) -> bool {
        let names = locked.get(&place.parent.ino).and_then(|names| names.as_deref());
        names.is_some_and(|names| names.get(&self.hashing, place.name).is_some())
    }

    fn move_entry(
        &self,
        locked: &mut Locked<'_>,
        from: &Place<'_>,
        to: &Place<'_>,
        source: &Arc<Inode>,
        covers: bool,
    ) {
        if let Some(names) = names_of(locked, from.parent) {
            names.remove(&self.hashing, from.name);
        }
        if let Some(names) = names_of(locked, to.parent) {
            names.insert(&self.hashing, Entry::upper(to.name, source.kind, covers));
        }
        // Never without a name in between, for those who look for one.
        source.add_link(to.parent, &to.name.into());
        source.remove_link(from.parent, from.name);
    }

    /// Lets a directory show nothing of what lies below its new name. One that has lower parts
    /// has a redirect, which does that too.
    fn cut_off(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.is_dir() || !is_pure_upper(inode) {
            return Ok(());
        }
        let dir = self.upper_dir(inode)?;
        make_opaque_unseen(&dir)
    }

    /// Empties an upper directory that shows nothing, so that a rename can replace it.
    ///
    /// Its marks hide lower names; so first a whiteout beside it cuts it off from below. That
    /// stays if what follows fails: it is a directory of upper alone from then on.
    fn clear_marks(
        &self,
        target: &Arc<Inode>,
        at: &Place<'_>,
        parent: &OwnedFd,
        covers: bool,
        locked: &mut Locked<'_>,
    ) -> Result<()> {
        let name = at.name;
        if covers {
            self.upper()?.make_whiteout(parent.as_fd(), name).context("make whiteout", name)?;
        }
        if let Some(names) = names_of(locked, at.parent) {
            names.insert(&self.hashing, Entry::upper(name, target.kind, false));
        }
        let dir = self.upper_dir(target)?;
        // What is cut off under the directory's name is still there behind a redirect.
        if self.upper()?.is_rich() {
            self.namespace.drop_redirect(dir.as_fd()).context("drop redirect", name)?;
        }
        target.state.write().below = state::Below::default();
        for entry in sys::read_dir(dir.as_fd()).context("read directory", name)? {
            let is_device = entry.kind == FileType::CharacterDevice;
            if marks::meaning(&entry.name) == Meaning::Name && !is_device {
                return Err(Error::NotEmpty);
            }
            Upper::drop_mark(dir.as_fd(), &entry.name).context("drop mark", &entry.name)?;
        }
        Ok(())
    }

    /// Brings the inode into upper, so that one rename moves all that it is: a directory with
    /// a redirect, or with everything below it.
    fn settle(&self, at: &Place<'_>, inode: &Arc<Inode>) -> Result<()> {
        if !inode.is_dir() {
            return self.copy_up_name(at.parent, at.name, inode);
        }
        self.copy_up(inode)?;
        if is_pure_upper(inode) || self.point_to_parts(inode)? {
            return Ok(());
        }
        self.settle_deeply(inode)
    }

    /// Copies everything below a directory up in place and makes it opaque.
    pub(super) fn settle_deeply(&self, inode: &Arc<Inode>) -> Result<()> {
        let mut kept: Vec<Known<'_>> = Vec::new();
        let mut todo = vec![(Arc::clone(inode), false)];
        while let Some((dir, below_done)) = todo.pop() {
            let settled = self
                .copy_up(&dir)
                .and_then(|()| Ok(below_done && self.seal(&dir)? || is_pure_upper(&dir)));
            match settled {
                Ok(true) => continue,
                Ok(false) => {}
                // One that was removed since needs nothing.
                Err(_) if dir.ino != inode.ino && dir.any_link().is_none() => continue,
                Err(error) => return Err(error),
            }
            todo.push((Arc::clone(&dir), true));
            for name in self.lower_names(&dir)? {
                let child = match self.known(&dir, &name) {
                    Err(Error::NotFound) => {
                        let is_there = self.listing(&dir)?.get(&self.hashing, &name).is_some();
                        if is_there && below_done {
                            // A mountpoint inside a lower layer, which cannot be copied.
                            return Err(Errno::BUSY).context("copy a mountpoint", &name);
                        }
                        continue; // removed since
                    }
                    result => result?,
                };
                if child.is_dir() {
                    todo.push((Arc::clone(&child), false));
                    kept.push(child);
                } else {
                    match self.copy_up_name(&dir, &name, &child) {
                        Err(Error::NotFound) => {} // removed since
                        result => result?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes in the directory where its lower parts lie, if that is allowed. Under its old name
    /// nobody sees a difference.
    fn point_to_parts(&self, dir: &Arc<Inode>) -> Result<bool> {
        if !self.makes_pointers {
            return Ok(false);
        }
        let lowers = dir.state.read().lower_dirs();
        let parts: Vec<Below> = lowers
            .iter()
            .map(|dir| Below { depth: dir.layer, path: dir.path[..].into() })
            .collect();
        let upper = self.upper_dir(dir)?;
        let mode = sys::fstat(upper.as_fd()).context("stat", b"")?.mode;
        if parts.is_empty() || !self.may_point(mode) {
            return Ok(false);
        }
        // One that is too long for an xattr means that the directory is copied.
        let written = self.namespace.write_redirect(upper.as_fd(), &parts);
        Ok(written.inspect_err(|errno| log::debug!("no redirect: {errno}")).is_ok())
    }

    /// Names in which a lower layer has a part.
    fn lower_names(&self, dir: &Arc<Inode>) -> Result<Vec<Name>> {
        let listing = self.listing(dir)?;
        let lower = |source: LayerIndex| source != LayerIndex::Upper;
        Ok(listing
            .after(0)
            .filter(|(_, entry)| entry.sources.iter().any(lower))
            .map(|(_, entry)| entry.name.clone())
            .collect())
    }

    /// Makes a directory opaque whose names are all in upper, the directories among them
    /// sealed; false if a name is not.
    fn seal(&self, dir: &Arc<Inode>) -> Result<bool> {
        drop(self.listing(dir)?);
        let mut names = dir.dir.write();
        let names = names.as_deref_mut().ok_or(Error::Stale)?;
        if names.after(0).any(|(_, entry)| !entry.in_upper()) {
            return Ok(false);
        }
        let fd = self.upper_dir(dir)?;
        make_opaque_unseen(&fd)?;
        dir.state.write().below = state::Below::default();
        names.settle();
        Ok(true)
    }
}

/// Makes a directory opaque without a change of its times: nobody sees a difference.
fn make_opaque_unseen(dir: &OwnedFd) -> Result<()> {
    let before = sys::fstat(dir).context("stat", b"")?;
    Upper::make_opaque(dir.as_fd()).context("make opaque", b"")?;
    best_effort("restore a directory's times", copy_times(dir.as_fd(), &before));
    Ok(())
}

fn is_pure_upper(dir: &Inode) -> bool {
    dir.state.read().lower_dirs().is_empty()
}

fn names_of<'a>(locked: &'a mut Locked<'_>, dir: &Inode) -> Option<&'a mut Listing> {
    locked.get_mut(&dir.ino).and_then(|names| names.as_deref_mut())
}

/// Locks the names of up to three directories in the order of their numbers.
fn lock<'a>(dirs: [Option<&'a Arc<Inode>>; 3]) -> Locked<'a> {
    let mut dirs: Vec<&Arc<Inode>> = dirs.into_iter().flatten().collect();
    dirs.sort_by_key(|dir| dir.ino);
    dirs.dedup_by_key(|dir| dir.ino);
    dirs.into_iter().map(|dir| (dir.ino, dir.dir.write())).collect()
}

fn check_rename(
    source: &Known<'_>,
    target: Option<&Known<'_>>,
    from: &Place<'_>,
    to: &Place<'_>,
    mode: RenameMode,
) -> Result<()> {
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
        (RenameMode::Exchange, None) => return Err(Error::NotFound),
        (RenameMode::Replace, Some(target)) if source.is_dir() && !target.is_dir() => {
            return Err(Error::NotDirectory);
        }
        (RenameMode::Replace, Some(target)) if !source.is_dir() && target.is_dir() => {
            return Err(Error::IsDirectory);
        }
        _ => {}
    }
    if is_within(to.parent, source.ino) {
        return Err(Error::Invalid("a directory cannot be moved into itself"));
    }
    match target {
        Some(target) if is_within(from.parent, target.ino) => Err(match mode {
            RenameMode::Exchange => Error::Invalid("a directory cannot be moved into itself"),
            _ => Error::NotEmpty,
        }),
        _ => Ok(()),
    }
}

/// Whether `dir` is the directory `ancestor` or lies below it.
fn is_within(dir: &Arc<Inode>, ancestor: Ino) -> bool {
    let mut at = Arc::clone(dir);
    loop {
        if at.ino == ancestor {
            return true;
        }
        match at.any_link() {
            Some(link) => at = link.parent,
            None => return false,
        }
    }
}
