//! From a name in a merged directory to its inode.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{MappedRwLockReadGuard, RwLockReadGuard};

use super::attr::Attr;
use super::error::{Context, Error, Result, best_effort};
use super::indexing::Merged;
use super::inode::Inode;
use super::listing::{Entry, LayerIndex, Listing};
use super::merge::Merge;
use super::state::{self, Link, Links, LowerData, LowerDir, LowerFile, State, UpperFile};
use super::{Overlay, held_name};
use crate::layers::index::Index;
use crate::layers::lower::{Lower, read_layer_dir};
use crate::layers::merged_index::{self, DirId};
use crate::layers::number::{Ino, Numbering};
use crate::layers::redirect::{self, Below, Metacopy};
use crate::layers::upper::Upper;
use crate::sys::{self, Errno, FileType, Stat};

/// An inode that an operation looked up for itself: its reference is taken back on drop.
pub(super) struct Known<'a> {
    overlay: &'a Overlay,
    inode: Arc<Inode>,
}

impl Deref for Known<'_> {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        let ino = self.inode.ino;
        // The table drops an inode when it has the last reference: let go of ours first.
        self.inode = Arc::clone(&self.overlay.root);
        self.overlay.forget(ino, 1);
    }
}

impl Overlay {
    pub(super) fn root_inode(
        lowers: &[Lower],
        upper: Option<&Upper>,
        numbering: &Numbering,
        merged: Option<&Merged>,
    ) -> std::result::Result<Inode, crate::layers::Error> {
        let mut state = State::default();
        // Devices are numbered in the order of the stack, so that numbers last.
        if let Some(upper) = upper {
            let stat = sys::fstat(upper.root())
                .map_err(crate::layers::Error::io("stat", std::path::Path::new("upper")))?;
            numbering.number(stat.dev, stat.ino);
            state.upper = Some(UpperFile::named(stat.ino));
        }
        for lower in lowers.iter() {
            numbering.number(lower.stat().dev, lower.stat().ino);
        }
        let merged = merged.map(|_| DirId::ROOT);
        let dirs = (0..lowers.len()).map(|n| LowerDir::new(n as u16, Arc::default(), merged));
        state.below = state::Below::Directories(dirs.collect::<Vec<_>>().into());
        Ok(Inode::new(Ino::ROOT, FileType::Directory, state))
    }

    /// Looks `name` up in the directory `parent` and counts a reference to what is found.
    ///
    /// # Errors
    /// `NotFound` if the merged directory has no such name.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let parent = self.inode(parent)?;
        self.lookup_held(&parent, &held_name(name)?)
    }

    /// As [`lookup`](Self::lookup), by the name that the layers hold.
    pub(super) fn lookup_held(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<Attr> {
        let (inode, stat) = self.lookup_in(parent, name)?;
        self.counted_attr(inode, stat)
    }

    /// The attributes of an inode that a reference was counted to, taken back on failure.
    pub(super) fn counted_attr(&self, inode: Arc<Inode>, stat: Option<Stat>) -> Result<Attr> {
        let result = self.attr_of(&inode, stat);
        if result.is_err() {
            let ino = inode.ino;
            drop(inode);
            self.forget(ino, 1);
        }
        result
    }

    /// Takes back `count` references to an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        let gone = self.inodes.forget(ino, count);
        for gone in &gone {
            let lowers = gone.state.read().lower_dirs();
            self.fds.forget(gone.ino, lowers.iter());
            if gone.kind == FileType::Symlink
                && let Some(upper) = &self.upper
            {
                best_effort("drop a spent link", upper.index().drop_spent(gone.ino));
            }
        }
        let count = gone.len();
        drop(gone);
        if count > 0 && self.inodes.has_shrunk_by(count) {
            sys::trim_memory();
        }
    }

    /// As [`lookup`](Self::lookup); `None` for the attributes if another layer than the
    /// entry's has them.
    pub(super) fn lookup_in(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
    ) -> Result<(Arc<Inode>, Option<Stat>)> {
        let listing = self.listing(parent)?;
        let entry = listing.get(&self.hashing, name).ok_or(Error::NotFound)?;
        self.instantiate(parent, entry)
    }

    /// As [`lookup_in`](Self::lookup_in), for the time of an operation.
    pub(super) fn known(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<Known<'_>> {
        let (inode, _) = self.lookup_in(parent, name)?;
        Ok(Known { overlay: self, inode })
    }

    /// The directory's names, read from the layers if they are not in memory.
    pub(super) fn listing<'a>(
        &self,
        dir: &'a Arc<Inode>,
    ) -> Result<MappedRwLockReadGuard<'a, Listing>> {
        if !dir.is_dir() {
            return Err(Error::NotDirectory);
        }
        loop {
            if let Ok(listing) = RwLockReadGuard::try_map(dir.dir.read(), |d| d.as_deref()) {
                return Ok(listing);
            }
            let mut names = dir.dir.write();
            if names.is_none() {
                *names = Some(Box::new(self.read_listing(dir)?));
            }
        }
    }

    /// Reads the directory in all its layers; those below an opaque one are cut off for good.
    pub(super) fn read_listing(&self, dir: &Arc<Inode>) -> Result<Listing> {
        let mut merge = Merge::default();
        let (in_upper, lowers) = {
            let state = dir.state.read();
            (state.upper.is_some(), state.lower_dirs())
        };
        let mut open = true;
        if in_upper {
            let fd = self.upper_dir(dir)?;
            let index = self.upper()?.index();
            let found = read_layer_dir(fd.as_fd(), &|stat| index.is_device(stat))
                .context("read upper directory", b"")?;
            open = merge.add(LayerIndex::Upper, found);
        }
        if let Some(entries) = open.then(|| self.merged_entries(&lowers)).flatten() {
            merge.add_merged(entries);
            return Ok(merge.finish(&self.hashing));
        }
        let mut used = 0;
        for lower in lowers.iter() {
            if !open {
                break;
            }
            let fd = self.lower_dir(lower)?;
            let found = read_layer_dir(fd.as_fd(), &|_| self.lower_devices)
                .context("read lower directory", &lower.path)?;
            open = merge.add(LayerIndex::Lower(lower.layer), found);
            used += 1;
        }
        if used < lowers.len() {
            dir.state.write().below = state::Below::Directories(lowers[..used].to_vec().into());
        }
        Ok(merge.finish(&self.hashing))
    }

    /// The inode of an entry, with a reference counted, and the attributes of its top layer.
    pub(super) fn instantiate(
        &self,
        parent: &Arc<Inode>,
        entry: &Entry,
    ) -> Result<(Arc<Inode>, Option<Stat>)> {
        let name = &*entry.name;
        let lower_dirs = parent.state.read().lower_dirs();
        let lower_dir =
            |layer: u16| lower_dirs.iter().find(|dir| dir.layer == layer).ok_or(Error::Stale);
        let merged = self.merged_entry(&lower_dirs, name);
        let mut state = State {
            links: Links::One(Link { parent: Arc::clone(parent), name: entry.name.clone() }),
            ..State::default()
        };
        let stat = match entry.sources.top() {
            LayerIndex::Upper => {
                let dir = self.upper_dir(parent)?;
                let stat = sys::statx_at(dir.as_fd(), name).context("stat upper", name)?;
                state.upper = Some(UpperFile::named(stat.ino));
                stat
            }
            LayerIndex::Lower(layer) => {
                let dir = lower_dir(layer)?;
                let stat = match &merged {
                    Some(merged) => self.stat_of(merged),
                    None => self.stat_lower(dir, entry)?,
                };
                if entry.kind != FileType::Directory {
                    let name = entry.name.clone();
                    state.below = state::Below::File(LowerFile { dir: Arc::clone(dir), name });
                }
                stat
            }
        };
        if entry.kind == FileType::Directory {
            let mut dirs: Vec<Arc<LowerDir>> = Vec::new();
            let below = merged.as_ref().and_then(merged_index::Entry::directory);
            for source in entry.sources.iter() {
                if let LayerIndex::Lower(layer) = source {
                    let part = lower_dir(layer)?.child(name, below, dirs.last());
                    dirs.push(part);
                }
                if !self.is_rich(source) {
                    continue;
                }
                let dir = self.layer_dir(parent, &lower_dirs, source)?;
                if let Some(parts) = self.redirect(source, dir.as_fd(), name)? {
                    dirs.extend(parts);
                    break;
                }
            }
            state.below = state::Below::Directories(dirs.into());
        } else if redirect::may_be_metacopy(&stat) && self.is_rich(entry.sources.top()) {
            let layer = entry.sources.top();
            let dir = self.layer_dir(parent, &lower_dirs, layer)?;
            state.data = self.metacopy(layer, dir.as_fd(), name)?;
        }
        let is_indexed = merged.is_some() && state.upper.is_none();
        let kind = match self.owners.overrides {
            None => stat.kind(),
            Some(_) if is_indexed => stat.kind(), // as it is shown
            Some(_) => {
                let dir = self.layer_dir(parent, &lower_dirs, entry.sources.top())?;
                self.owners.kind(dir.as_fd(), name, &stat)?
            }
        };
        let number = self.number(&stat, state.upper.is_some());
        let mut shown = Some(stat);
        if state.upper.is_none() && self.stands_in_upper(number) {
            state.upper = Some(UpperFile::named(self.indexed_inode(number)?));
            shown = None;
        }
        let in_upper = state.upper.is_some();
        let inode = self.inodes.intern(number, || Inode::new(number, kind, state));
        inode.add_link(parent, &entry.name);
        if !in_upper && inode.in_upper() {
            shown = None;
        }
        Ok((inode, shown))
    }

    /// A descriptor of a directory's part in a layer.
    fn layer_dir(
        &self,
        dir: &Arc<Inode>,
        parts: &[Arc<LowerDir>],
        layer: LayerIndex,
    ) -> Result<Arc<OwnedFd>> {
        match layer {
            LayerIndex::Upper => self.upper_dir(dir),
            LayerIndex::Lower(layer) => self.lower_dir(part_of(parts, layer)?),
        }
    }

    /// Looks at an entry in the layer that shows it.
    pub(super) fn stat_lower(&self, dir: &LowerDir, entry: &Entry) -> Result<Stat> {
        let fd = self.lower_dir(dir)?;
        if entry.kind == FileType::Directory && !self.lowers[usize::from(dir.layer)].is_private() {
            refuse_mountpoint(fd.as_fd(), &entry.name)?;
        }
        sys::statx_at(fd.as_fd(), &entry.name).context("stat lower", &entry.name)
    }

    /// Where the lower parts of a layer's directory `name` lie, if it says so.
    fn redirect(
        &self,
        layer: LayerIndex,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Option<Vec<Arc<LowerDir>>>> {
        let open = sys::open_at(dir, name, sys::O_DIRECTORY).context("open directory", name)?;
        let layers_below = self.lowers.len() - self.first_below(layer);
        let parts = self
            .namespace
            .read_redirect(open.as_fd(), layers_below)
            .context("read redirect", name)?;
        let Some(parts) = parts else { return Ok(None) };
        let place = |part: Below| {
            Ok(LowerDir::new(self.layer_below(layer, part.depth)?, part.path.into(), None))
        };
        parts.into_iter().map(place).collect::<Result<_>>().map(Some)
    }

    /// Where the data of a layer's file `name` lies, if not in itself.
    fn metacopy(
        &self,
        layer: LayerIndex,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Option<Arc<LowerData>>> {
        let open = sys::open_at(dir, name, sys::O_PATH).context("open file", name)?;
        let pointer = self.namespace.read_metacopy(open.as_fd()).context("read metacopy", name)?;
        let Some(Metacopy { file, blocks, size, mtime }) = pointer else { return Ok(None) };
        let file = LowerFile::at(self.layer_below(layer, file.depth)?, &file.path);
        Ok(Some(Arc::new(LowerData { file, blocks, size, mtime })))
    }

    fn is_rich(&self, layer: LayerIndex) -> bool {
        match layer {
            LayerIndex::Upper => self.upper.as_ref().is_some_and(Upper::is_rich),
            LayerIndex::Lower(layer) => self.lowers[usize::from(layer)].is_rich(),
        }
    }

    /// The place of the layer next below.
    fn first_below(&self, layer: LayerIndex) -> usize {
        match layer {
            LayerIndex::Upper => 0,
            LayerIndex::Lower(layer) => usize::from(layer) + 1,
        }
    }

    /// The layer `depth` layers below `layer`.
    fn layer_below(&self, layer: LayerIndex, depth: u16) -> Result<u16> {
        let place = self.first_below(layer) + usize::from(depth);
        let exists = place < self.lowers.len();
        u16::try_from(place).ok().filter(|_| exists).ok_or(Error::Io {
            op: "follow a pointer below the lowest layer",
            name: String::new(),
            errno: Errno::IO,
        })
    }

    /// The number of a file with these attributes.
    pub(super) fn number(&self, stat: &Stat, in_upper: bool) -> Ino {
        let origin = match &self.upper {
            Some(upper) if in_upper => upper.index().origin(stat),
            _ => None,
        };
        origin.unwrap_or_else(|| self.numbering.number(stat.dev, stat.ino))
    }

    /// Whether a lower file of several names was copied up under another of them.
    fn stands_in_upper(&self, number: Ino) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.index().is_linked(number))
    }

    fn indexed_inode(&self, number: Ino) -> Result<u64> {
        let name = Index::link_name(number);
        let stat =
            sys::statx_at(self.upper()?.index().dir(), &name).context("stat index", &name)?;
        Ok(stat.ino)
    }
}

/// A directory's part in a lower layer.
pub(super) fn part_of(parts: &[Arc<LowerDir>], layer: u16) -> Result<&Arc<LowerDir>> {
    parts.iter().find(|dir| dir.layer == layer).ok_or(Error::Stale)
}

/// A directory that something else is mounted on is not the layer's: it is not shown. To
/// look at it could ask the union itself, and wait for ever.
fn refuse_mountpoint(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match sys::open_beneath(dir, name, sys::O_PATH) {
        Err(Errno::XDEV) => Err(Error::NotFound),
        result => result.map(drop).context("open lower directory", name),
    }
}
