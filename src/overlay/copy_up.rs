//! Copy-up: giving a lower file its place in upper, at the first change.
//!
//! Where upper may hold pointers and only attributes change, a large file's data stays where
//! it is (see `metacopy.rs`); the first change of the data completes the copy.
//!
//! The copy is built in workdir, a file's without a name where that is possible, and published by
//! one link or rename, so a crash leaves the lower file or the whole copy. Order: data, owner,
//! xattrs, mode, times, sync, origin, link or rename (chown drops setuid and capabilities, so it
//! comes before the mode and the xattrs).
//! Only the copied inode's own `copy_up` lock is held while data moves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Mode;

use super::Overlay;
use super::attr::Owner;
use super::copy_ahead::ToCopy;
use super::error::{Context, Error, Result, best_effort};
use super::fd_cache::FdKey;
use super::held::Held;
use super::inode::Inode;
use super::listing::{LayerIndex, Listing, Sources};
use super::ownership::{read_target, write_target};
use super::real::Access;
use super::state::{Link, LowerData, UpperFile};
use crate::layers::number::Ino;
use crate::layers::upper::Temp;
use crate::sys::{self, AfterCopy, Errno, FileType, Stat, TimeChange, Timestamp};

/// A copy in workdir, not published yet.
#[derive(Debug)]
pub(super) struct Copy<'a> {
    /// Its name there, if it has one.
    temp: Option<Temp<'a>>,
    /// `O_PATH`, or open for data where it is a regular file.
    fd: OwnedFd,
    /// Its attributes before it was given those of the lower file.
    stat: Stat,
    /// Where the data is, if not in the copy.
    data: Option<Arc<LowerData>>,
    /// When the attributes that it has were looked at.
    begun: Timestamp,
}

/// While it lives, a new copy is open for writing; nobody could execute it in upper.
pub(super) struct OpenCopy<'a> {
    overlay: &'a Overlay,
    ino: Ino,
}

impl Drop for OpenCopy<'_> {
    fn drop(&mut self) {
        self.overlay.fds.remove(FdKey::Write(self.ino));
    }
}

/// Bytes whose copying takes milliseconds.
const LONG_COPY: u64 = 4 << 20;

/// What a copy has become.
#[derive(Debug, Default)]
struct Published {
    /// For its data, where it has some.
    open: Option<OwnedFd>,
    /// The files that somebody comes to next, probably.
    next: Vec<ToCopy>,
}

impl Copy<'_> {
    /// One that may be kept, for it takes no place: without a name, with its data.
    pub(super) fn nameless(self) -> Option<Copy<'static>> {
        let Self { temp: None, fd, stat, data: None, begun } = self else { return None };
        Some(Copy { temp: None, fd, stat, data: None, begun })
    }

    /// Gives it the times of a file that was read since it was made.
    pub(super) fn set_times(&self, lower: &Stat) -> sys::Result<()> {
        copy_times(self.fd.as_fd(), lower)
    }

    /// Gives it its name; one that had none in workdir replaces nothing. A directory that changes
    /// its parent must be writable, also one whose mode says no.
    fn publish(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        match &mut self.temp {
            None => sys::link_fd(self.fd.as_fd(), dir, name),
            Some(temp) if self.stat.kind() != FileType::Directory => temp.publish(dir, name),
            Some(temp) => sys::with_write_permission(self.fd.as_fd(), || temp.publish(dir, name)),
        }
    }
}

/// What an operation waits for at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Nothing that takes long.
    Nothing,
    /// A disk that syncs a file.
    Disk,
    /// A copy that takes milliseconds, or any number of them.
    Copy,
}

/// How much of a file an operation needs in upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Attributes,
    All,
    /// So many bytes from the beginning, or all there are, open for who is about to change them.
    ToWrite(u64),
}

impl Overlay {
    /// Gives the inode, and the directories above it, a place in upper.
    pub(super) fn copy_up(&self, inode: &Arc<Inode>) -> Result<()> {
        self.copy_up_extent(inode, Extent::All).map(drop)
    }

    /// As [`copy_up`](Self::copy_up), for who is about to change the data; but copies only the
    /// first `size` bytes, if it is about to be cut to that size.
    pub(super) fn copy_up_to_write(&self, inode: &Arc<Inode>, size: Option<u64>) -> Result<()> {
        self.copy_up_extent(inode, Extent::ToWrite(size.unwrap_or(u64::MAX))).map(drop)
    }

    /// As [`copy_up`](Self::copy_up), but the data may stay in the lower layer. A copy that it makes
    /// stays open as long as the caller holds what this returns, who is about to change it.
    pub(super) fn copy_up_attributes(&self, inode: &Arc<Inode>) -> Result<Option<OpenCopy<'_>>> {
        let is_open = self.copy_up_extent(inode, Extent::Attributes)?;
        Ok(is_open.then(|| OpenCopy { overlay: self, ino: inode.ino }))
    }

    /// What a change of this inode's data waits for.
    pub fn copy_up_waits_for(&self, ino: Ino) -> Wait {
        let Ok(inode) = self.inode(ino) else { return Wait::Nothing };
        if self.upper.is_none() || inode.kind != FileType::RegularFile || inode.has_data_in_upper()
        {
            return Wait::Nothing;
        }
        match self.stat_object(&inode) {
            Ok(stat) if stat.size >= LONG_COPY => Wait::Copy,
            _ => self.sync_waits_for(),
        }
    }

    /// What a sync waits for.
    pub fn sync_waits_for(&self) -> Wait {
        if self.volatile.is_none() { Wait::Disk } else { Wait::Nothing }
    }

    /// Whether it made a copy that is open now.
    fn copy_up_extent(&self, inode: &Arc<Inode>, extent: Extent) -> Result<bool> {
        self.upper()?;
        let mut is_open = false;
        if !is_enough(inode, extent) {
            if let Some(link) = inode.any_link() {
                self.copy_up_ancestors(&link.parent)?;
            }
            is_open = self.copy_up_one(inode, extent)?;
        }
        self.link_known_names(inode);
        Ok(is_open)
    }

    /// Makes all names upper's that are known of a changed lower file of several: which one the
    /// change came by cannot be told, and upper as a layer must have it.
    fn link_known_names(&self, inode: &Arc<Inode>) {
        // A name that comes to be known from here on takes it back.
        if inode.linked.swap(true, Ordering::AcqRel) || !self.is_indexed(inode) {
            return;
        }
        let link = |n: usize| inode.state.read().links.get(n).cloned();
        for Link { parent, name } in (0..).map_while(link) {
            match self.copy_up_name(&parent, &name, inode) {
                Ok(()) | Err(Error::NotFound) => {} // one that is removed or renamed since needs none
                Err(error) => {
                    log::warn!("copy up another name: {error}");
                    inode.linked.store(false, Ordering::Release);
                }
            }
        }
    }

    /// As [`copy_up`](Self::copy_up), and makes this very name upper's: a hard link that the
    /// lower layer still shows becomes one of the copy.
    pub(super) fn copy_up_name(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        inode: &Arc<Inode>,
    ) -> Result<()> {
        self.copy_up_attributes(inode)?;
        self.copy_up(parent)?;
        drop(self.listing(parent)?);
        let mut names = parent.dir.write();
        if self.checked_entry(&names, inode, parent, name)?.in_upper() {
            return Ok(());
        }
        let dir = self.upper_dir(parent)?;
        let before = sys::fstat(dir.as_fd()).context("stat", name)?;
        let object = self.object(inode)?;
        let link = || sys::link_fd(object.as_fd(), dir.as_fd(), name);
        self.with_write_permission(parent, &dir, link).context("link copy", name)?;
        best_effort("restore a directory's times", copy_times(dir.as_fd(), &before));
        note_in_upper(names.as_deref_mut(), self, name);
        best_effort("record links", self.upper()?.index().count_down(inode.ino, 1, None));
        Ok(())
    }

    fn copy_up_ancestors(&self, dir: &Arc<Inode>) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = Arc::clone(dir);
        while !at.in_upper() {
            let parent = at.any_link().ok_or(Error::NotFound)?.parent;
            missing.push(at);
            at = parent;
        }
        while let Some(dir) = missing.pop() {
            self.copy_up_one(&dir, Extent::All)?;
        }
        Ok(())
    }

    /// Copies up an inode whose parent is in upper, or completes a metacopy. Whether the copy is open
    /// now.
    fn copy_up_one(&self, inode: &Arc<Inode>, extent: Extent) -> Result<bool> {
        let _one_at_a_time = inode.copy_up.lock();
        if is_enough(inode, extent) {
            return Ok(false);
        }
        let begun = Timestamp::now();
        let stat = self.stat_object(inode)?;
        if stat.is_protected() {
            return Err(Errno::PERM).context("change a file that is immutable", b"");
        }
        let copy = match self.copies_ahead.take(inode.ino, &stat) {
            Some(made) => made,
            None => self.build_copy(inode, &stat, extent, begun)?,
        };
        let Published { open, next } = self.publish_copy(inode, &stat, copy)?;
        self.copies_ahead.ask_for(next);
        if inode.has_data_in_upper() {
            self.fds.remove(FdKey::LowerData(inode.ino)); // it is not needed any more
        }
        let open = open.filter(|_| extent != Extent::All);
        Ok(open.map(|open| self.fds.put(FdKey::Write(inode.ino), open)).is_some())
    }

    pub(super) fn build_copy(
        &self,
        inode: &Arc<Inode>,
        lower: &Stat,
        extent: Extent,
        begun: Timestamp,
    ) -> Result<Copy<'_>> {
        let (temp, fd, object, data) = match inode.kind {
            FileType::RegularFile => {
                let (temp, fd) = self.create_copy(inode, lower)?;
                let (object, data) = self.fill_copy(inode, lower, &fd, extent)?;
                (temp, fd, object, data)
            }
            kind => {
                let temp = self.upper()?.temp();
                let object = self.object(inode)?;
                let fd = self.build_node(kind, lower, &temp, &object)?;
                (Some(temp), fd, object, None)
            }
        };
        let stat = self.copy_attributes(object.as_fd(), fd.as_fd(), lower)?;
        if stat.kind() == FileType::RegularFile && !self.skips_sync()? {
            rustix::fs::fsync(&fd).context("sync copy", b"")?;
        }
        Ok(Copy { temp, fd, stat, data, begun })
    }

    /// Makes a regular file in workdir. One that takes the place of a metacopy needs a name.
    fn create_copy(&self, inode: &Inode, lower: &Stat) -> Result<(Option<Temp<'_>>, OwnedFd)> {
        let upper = self.upper()?;
        // With its mode at once, as a rule; who mounts may have to keep another one, and must be
        // able to set xattrs.
        let mode = if self.owners.overrides.is_some() { 0 } else { lower.mode & 0o777 } | 0o600;
        let nameless = match inode.in_upper() {
            true => None,
            false => upper.nameless_file(mode).context("create copy", b"")?,
        };
        let (temp, fd) = match nameless {
            Some(fd) => (None, fd),
            None => {
                let temp = upper.temp();
                let fd = temp.create_file_of_mode(mode).context("create copy", temp.name())?;
                (Some(temp), fd)
            }
        };
        self.mark_no_accesses(&fd);
        Ok((temp, fd))
    }

    /// Gives a copy its data, or a pointer to it. Returns that, and what the attributes are to be
    /// taken from.
    fn fill_copy(
        &self,
        inode: &Arc<Inode>,
        lower: &Stat,
        copy: &OwnedFd,
        extent: Extent,
    ) -> Result<(Arc<OwnedFd>, Option<Arc<LowerData>>)> {
        let wanted = match extent {
            Extent::Attributes => {
                if let Some(data) = self.point_to_data(inode, lower, copy.as_fd()) {
                    return Ok((self.object(inode)?, Some(data)));
                }
                lower.size
            }
            Extent::All => lower.size,
            // It stands for all names of the file as soon as the index has it, also if a crash comes.
            Extent::ToWrite(_) if lower.nlink > 1 => lower.size,
            Extent::ToWrite(size) => size.min(lower.size),
        };
        let from = self.data(inode, Access::Read)?;
        let after = match self.volatile {
            Some(_) => AfterCopy::NoSync,
            None => AfterCopy::Sync,
        };
        sys::copy_data(from.as_fd(), copy.as_fd(), wanted, after).context("copy up", b"")?;
        // A metacopy's attributes are not where its data is, whichever layer has it.
        let is_apart = inode.in_upper() || inode.state.read().data.is_some();
        let object = if is_apart { self.object(inode)? } else { from };
        Ok((object, None))
    }

    /// Makes a node that is no regular file in workdir, or a regular file that stands for it.
    fn build_node(
        &self,
        kind: FileType,
        lower: &Stat,
        temp: &Temp<'_>,
        object: &OwnedFd,
    ) -> Result<OwnedFd> {
        let (dir, name) = (temp.dir(), temp.name());
        let owner = Owner { uid: lower.uid, gid: lower.gid };
        let has_links = kind == FileType::Symlink && lower.nlink > 1;
        let is_stand_in = lower.kind() == FileType::RegularFile;
        if is_stand_in || self.needs_stand_in(kind, owner) || has_links && self.replaces_symlinks()
        {
            let fd = temp.create_file().context("create copy", name)?;
            if kind == FileType::Symlink {
                write_target(&fd, &read_target(object)?)?;
            }
            return Ok(fd);
        }
        match kind {
            FileType::Directory => rustix::fs::mkdirat(dir, name, Mode::RWXU),
            FileType::Symlink => rustix::fs::symlinkat(read_target(object)?, dir, name),
            kind => rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, lower.rdev),
        }
        .context("create copy", name)?;
        let copy = sys::open_at(dir, name, sys::O_PATH).context("open copy", name)?;
        if lower.is_whiteout_device() {
            let made = sys::fstat(&copy).context("stat copy", name)?;
            self.upper()?.index().record_device(&made).context("record a device", name)?;
        }
        Ok(copy)
    }

    /// Gives the copy the owner, mode, xattrs and times of the lower file. Returns its attributes of
    /// before.
    pub(super) fn copy_attributes(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        lower: &Stat,
    ) -> Result<Stat> {
        let made = self.owners.copy(from, to, lower)?;
        copy_times(to, lower).context("set times of copy", b"")?;
        Ok(made)
    }

    /// Makes the copy known in the index, and then in upper; in neither, if that fails.
    fn publish_copy(&self, inode: &Arc<Inode>, lower: &Stat, copy: Copy<'_>) -> Result<Published> {
        let index = self.upper()?.index();
        let ino = copy.stat.ino;
        // What may wait for a disk comes before a directory is locked.
        index.record_origin(&copy.stat, inode.ino).context("record origin", b"")?;
        let stands = self.stand_for(inode, lower, &copy)?;
        let published = self.publish_indexed(inode, lower, copy, stands);
        if published.is_err() {
            best_effort("drop a copy", index.drop_copy(ino, inode.ino, stands));
        }
        published
    }

    fn publish_indexed(
        &self,
        inode: &Arc<Inode>,
        lower: &Stat,
        mut copy: Copy<'_>,
        stands: bool,
    ) -> Result<Published> {
        let index = self.upper()?.index();
        let was = inode.state.read().upper.clone();
        loop {
            let Some(Link { parent, name }) = inode.any_link() else {
                self.keep_nameless(inode, lower, copy, stands)?;
                return Ok(Published::default());
            };
            self.copy_up_ancestors(&parent)?; // it may not be the link that the copy began for
            let mut names = parent.dir.write();
            if !inode.state.read().links.iter().any(|link| link.is(&parent, &name)) {
                continue; // removed or renamed since
            }
            let dir = self.upper_dir(&parent)?;
            let before = sys::fstat(dir.as_fd()).context("stat", &name)?;
            let alone = was.is_some().then(|| inode.attrs.write());
            if was.is_some() {
                self.mirror_attributes(inode, lower, copy.begun, &copy.fd)?;
            }
            self.with_write_permission(&parent, &dir, || copy.publish(dir.as_fd(), &name))
                .context("publish copy", &name)?;
            best_effort("restore a directory's times", copy_times(dir.as_fd(), &before));
            let has_data = inode.kind == FileType::RegularFile && copy.data.is_none();
            inode.set_upper(UpperFile::named(copy.stat.ino), copy.data);
            drop(alone);
            match was {
                Some(metacopy) => {
                    let forgotten = index.forget_origin(metacopy.ino, inode.ino);
                    best_effort("forget an inode", forgotten);
                }
                None => note_in_upper(names.as_deref_mut(), self, &name),
            }
            let next = match inode.kind {
                FileType::RegularFile => self.next_to_copy(&parent, names.as_deref_mut(), &name),
                _ => Vec::new(),
            };
            // Only when it is so: too many names lose nothing, too few would.
            if stands {
                inode.linked.store(false, Ordering::Release);
                best_effort("record links", index.count_down(inode.ino, lower.nlink, None));
            }
            return Ok(Published { open: has_data.then_some(copy.fd), next });
        }
    }

    /// Makes the copy stand for all names of a lower file, if it has several.
    fn stand_for(&self, inode: &Inode, lower: &Stat, copy: &Copy<'_>) -> Result<bool> {
        if lower.nlink <= 1 || inode.is_dir() {
            return Ok(false);
        }
        let index = self.upper()?.index();
        index.start_count(inode.ino, lower.nlink).context("record links", b"")?;
        // Else, after a crash of the machine, its names would be two files with one content.
        if !self.skips_sync()? {
            index.sync().context("sync the index", b"")?;
        }
        index.link(copy.fd.as_fd(), inode.ino).context("link into index", b"")?;
        Ok(true)
    }

    /// The file has lost all names that are known, or never had one: its copy lives on
    /// without one, and for names of it that are not known.
    fn keep_nameless(
        &self,
        inode: &Arc<Inode>,
        lower: &Stat,
        copy: Copy<'_>,
        stands: bool,
    ) -> Result<()> {
        if inode.is_dir() || inode.ino == Ino::ROOT {
            return Err(Error::NotFound);
        }
        let _alone = inode.attrs.write();
        if inode.in_upper() {
            self.mirror_attributes(inode, lower, copy.begun, &copy.fd)?;
        }
        let held = if self.held.has_room() {
            self.held.hold(Arc::new(copy.fd)) // and the guard removes the temporary's name
        } else {
            let upper = self.upper()?;
            let parked = match copy.temp {
                Some(temp) => upper.keep(temp),
                None => upper.park(copy.fd.as_fd()).context("park", b"")?,
            };
            Held::Parked(Arc::new(parked))
        };
        let upper = UpperFile { ino: copy.stat.ino, held: Some(held) };
        inode.set_upper(Arc::new(upper), copy.data);
        let index = self.upper()?.index();
        if !stands || index.left(inode.ino).is_none_or(|left| left.names == 0) {
            best_effort("drop a copy", index.drop_copy(copy.stat.ino, inode.ino, stands));
        }
        Ok(())
    }
}

/// Whether what is in upper is all that `extent` asks for.
fn is_enough(inode: &Inode, extent: Extent) -> bool {
    match extent {
        Extent::Attributes => inode.in_upper(),
        Extent::All | Extent::ToWrite(_) => inode.has_data_in_upper(),
    }
}

/// The name is upper's now, and covers the lower one.
fn note_in_upper(names: Option<&mut Listing>, overlay: &Overlay, name: &[u8]) {
    let Some(entry) = names.and_then(|names| names.get_mut(&overlay.hashing, name)) else {
        return;
    };
    entry.covers = true;
    if entry.kind == FileType::Directory {
        entry.sources.put_on_top(LayerIndex::Upper);
    } else {
        entry.sources = Sources::of(LayerIndex::Upper);
    }
}

/// Gives `to` the times of last access and change of the content that `from` has. A directory gets back
/// its own after a copy-up, which is no change of the directory that it happens in.
pub(super) fn copy_times(to: BorrowedFd<'_>, from: &Stat) -> sys::Result<()> {
    let at = |time| Some(TimeChange::At(time));
    sys::set_times(to, at(from.atime), at(from.mtime))
}
