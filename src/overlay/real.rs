//! From an inode to the real file: descriptors of what lies in the layers.
//!
//! A lower path never changes. An upper path does, when a directory above is renamed, so
//! whatever is opened by it is verified by its inode number and tried again if another
//! file was met. The one place where lower files are opened; always read-only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;

use super::error::{Context, Error, Result, best_effort};
use super::fd_cache::FdKey;
use super::held::Held;
use super::inode::Inode;
use super::listing::Name;
use super::state::{Link, LowerDir, LowerFile, UpperFile};
use super::{Atime, Overlay};
use crate::layers::index::Index;
use crate::layers::number::Ino;
use crate::sys::{self, Errno, FileType, Stat, Timestamp};

/// How often a path is followed again because a rename crossed it: first at once, then with
/// a short sleep, some seconds in all.
const MAX_TRIES: u32 = 3000;
const QUICK_TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

fn wait_for_rename(tries: u32) {
    if tries < QUICK_TRIES {
        std::thread::yield_now();
    } else {
        std::thread::sleep(PAUSE);
    }
}

/// A file's data, open.
pub(super) struct OpenData {
    pub(super) fd: Arc<OwnedFd>,
    /// Whether it is upper's, not a lower layer's.
    pub(super) in_upper: bool,
}

/// What a file's data is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// In upper: the file must have been copied up.
    Write,
}

impl Overlay {
    /// A descriptor of a lower directory.
    pub(super) fn lower_dir(&self, dir: &LowerDir) -> Result<Arc<OwnedFd>> {
        let key = FdKey::LowerDir(dir.id);
        if let Some(fd) = self.fds.get(key) {
            return Ok(fd);
        }
        let root = self.lowers[usize::from(dir.layer)].root();
        let fd = sys::open_beneath(root, &dir.path, sys::O_DIRECTORY)
            .context("open lower directory", &dir.path)?;
        Ok(self.fds.put(key, fd))
    }

    /// A descriptor of a directory's part in upper; it has one (see `Inode::in_upper`).
    pub(super) fn upper_dir(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        for tries in 0..MAX_TRIES {
            match self.try_upper_dir(inode)? {
                Some(fd) => return Ok(fd),
                None => wait_for_rename(tries),
            }
        }
        Err(Error::Stale)
    }

    /// Opens the path from the nearest kept ancestor down; `None` if a rename crossed it.
    fn try_upper_dir(&self, inode: &Arc<Inode>) -> Result<Option<Arc<OwnedFd>>> {
        let mut missing: Vec<(Arc<Inode>, Name, u64)> = Vec::new();
        let mut at = Arc::clone(inode);
        let mut fd = loop {
            if let Some(fd) = self.fds.get(FdKey::UpperDir(at.ino)) {
                break fd;
            }
            let (link, upper) = {
                let state = at.state.read();
                (state.links.first().cloned(), state.upper.clone())
            };
            let upper = upper.ok_or(Error::Stale)?;
            if let Some(held) = &upper.held {
                break held.fd().context("open", b"")?;
            }
            if at.ino == Ino::ROOT {
                let root = sys::open_at(self.upper()?.root(), b".", sys::O_DIRECTORY)
                    .context("open upper", b".")?;
                break self.fds.put(FdKey::UpperDir(at.ino), root);
            }
            let Some(Link { parent, name }) = link else {
                return Ok(None); // between its removal and being held
            };
            missing.push((at, name, upper.ino));
            at = parent;
        };
        while let Some((dir, name, ino)) = missing.pop() {
            let opened = match sys::open_at(fd.as_fd(), &name, sys::O_DIRECTORY) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                result => result.context("open upper directory", &name)?,
            };
            if sys::fstat(&opened).context("stat", &name)?.ino != ino {
                return Ok(None);
            }
            fd = self.fds.put(FdKey::UpperDir(dir.ino), opened);
        }
        Ok(Some(fd))
    }

    /// A descriptor of the real file, `O_PATH` or open: upper's if there is one, else the lower one.
    pub(super) fn object(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        if inode.is_dir() {
            return self.directory_object(inode);
        }
        for tries in 0..MAX_TRIES {
            let upper = inode.state.read().upper.clone();
            let Some(upper) = upper else {
                return self.lower_object(inode);
            };
            if let Some(held) = &upper.held {
                return held.fd().context("open", b"");
            }
            if let Some(open) = self.fds.get(FdKey::Write(inode.ino)) {
                return Ok(open);
            }
            if let Some(fd) = self.find_in_upper(inode, &upper)? {
                return Ok(Arc::new(fd));
            }
            wait_for_rename(tries);
        }
        Err(Error::Stale)
    }

    /// As [`object`](Self::object), to read its xattrs, which takes fewer calls by a descriptor for data: so
    /// of a lower file it is one, if there may be. It is kept if the data is needed next, as `keeps` says.
    pub(super) fn object_to_read(&self, inode: &Arc<Inode>, keeps: bool) -> Result<Arc<OwnedFd>> {
        let lower = {
            let state = inode.state.read();
            let is_plain = inode.kind == FileType::RegularFile && state.data.is_none();
            state.lower().filter(|_| is_plain && state.upper.is_none())
        };
        let Some(lower) = lower else { return self.object(inode) };
        let key = FdKey::LowerData(inode.ino);
        if let Some(open) = self.fds.get(key) {
            return Ok(open);
        }
        let dir = self.lower_dir(&lower.dir)?;
        match sys::open_unmarked(dir.as_fd(), &lower.name, sys::O_READ) {
            Ok(fd) if keeps => Ok(self.fds.put(key, fd)),
            Ok(fd) => Ok(Arc::new(fd)),
            Err(_) => self.object(inode),
        }
    }

    fn directory_object(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        let lower = {
            let state = inode.state.read();
            match &state.upper {
                Some(_) => None,
                None => state.lower_dirs().first().cloned(),
            }
        };
        match lower {
            Some(dir) => self.lower_dir(&dir),
            None => self.upper_dir(inode),
        }
    }

    fn lower_object(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let lower = inode.state.read().lower().ok_or(Error::Stale)?;
        let dir = self.lower_dir(&lower.dir)?;
        let fd = sys::open_at(dir.as_fd(), &lower.name, sys::O_PATH)
            .context("open lower", &lower.name)?;
        Ok(Arc::new(fd))
    }

    /// Tries each known name of a file, then the index; `None` if none leads to it now.
    fn find_in_upper(&self, inode: &Inode, upper: &UpperFile) -> Result<Option<OwnedFd>> {
        // One at a time: a file may have 65,000.
        let link = |n: usize| inode.state.read().links.get(n).cloned();
        for Link { parent, name } in (0..).map_while(link) {
            if !parent.in_upper() {
                continue; // a hard link that is still the lower layer's
            }
            let Some(dir) = self.try_upper_dir(&parent)? else {
                continue;
            };
            if let Some(fd) = open_verified(dir.as_fd(), &name, upper.ino)? {
                return Ok(Some(fd));
            }
        }
        let index = self.upper()?.index();
        if index.is_linked(inode.ino) {
            return open_verified(index.dir(), &Index::link_name(inode.ino), upper.ino);
        }
        Ok(None)
    }

    /// What the real file holds: its attributes, owner and permissions out of its override xattr
    /// if it has one.
    pub(super) fn stat_object(&self, inode: &Arc<Inode>) -> Result<Stat> {
        let stat = self.stat_real_object(inode)?;
        match self.owners.overrides {
            Some(_) if !self.is_held_by_index(inode) => {
                self.owners.held(self.object(inode)?.as_fd(), stat)
            }
            _ => Ok(stat),
        }
    }

    /// Attributes of the real file; a link that holds it in workdir is not counted.
    pub(super) fn stat_real_object(&self, inode: &Arc<Inode>) -> Result<Stat> {
        if let Some(stat) = self.stat_by_index(inode) {
            return Ok(stat);
        }
        let mut stat = match self.stat_in_one(inode)? {
            Some(stat) => stat,
            None => sys::fstat(self.object(inode)?.as_fd()).context("stat", b"")?,
        };
        let state = inode.state.read();
        let held = state.upper.as_ref().and_then(|upper| upper.held.as_ref());
        stat.nlink = stat.nlink.saturating_sub(held.map_or(0, Held::own_links));
        Ok(stat)
    }

    /// The common cases in one call: it is open, or its first name leads to it.
    fn stat_in_one(&self, inode: &Arc<Inode>) -> Result<Option<Stat>> {
        let (link, upper, lower) = {
            let state = inode.state.read();
            (state.links.first().cloned(), state.upper.clone(), state.lower())
        };
        if inode.kind == FileType::RegularFile
            && upper.as_deref().is_some_and(|upper| upper.held.is_none())
            && let Some(open) = self.fds.get(FdKey::Write(inode.ino))
        {
            return sys::fstat(&open).map(Some).context("stat", b"");
        }
        match (upper.as_deref(), link, lower) {
            (Some(UpperFile { ino, held: None }), Some(link), _) if link.parent.in_upper() => {
                let Some(dir) = self.try_upper_dir(&link.parent)? else {
                    return Ok(None);
                };
                match sys::statx_at(dir.as_fd(), &link.name) {
                    Ok(stat) if stat.ino == *ino => Ok(Some(stat)),
                    Ok(_) | Err(Errno::NOENT) => Ok(None),
                    Err(errno) => Err(errno).context("stat", &link.name),
                }
            }
            (None, _, Some(lower)) => {
                let dir = self.lower_dir(&lower.dir)?;
                let stat = sys::statx_at(dir.as_fd(), &lower.name);
                stat.map(Some).context("stat", &lower.name)
            }
            _ => Ok(None),
        }
    }

    /// A descriptor of a regular file's data.
    pub(super) fn data(&self, inode: &Arc<Inode>, access: Access) -> Result<Arc<OwnedFd>> {
        Ok(self.open_data(inode, access)?.fd)
    }

    /// As [`data`](Self::data), and tells which layer it is.
    pub(super) fn open_data(&self, inode: &Arc<Inode>, access: Access) -> Result<OpenData> {
        match inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid("no data")),
        }
        let lower = {
            let state = inode.state.read();
            match (&state.data, &state.upper) {
                (Some(data), _) => Some((data.file.clone(), Some((data.size, data.mtime)))),
                (None, None) => state.lower().map(|file| (file, None)),
                (None, Some(_)) => None,
            }
        };
        match (lower, access) {
            (Some((file, known_by)), Access::Read) => {
                let fd = self.lower_data(inode, &file, known_by)?;
                Ok(OpenData { fd, in_upper: false })
            }
            (Some(_), Access::Write) => Err(Error::ReadOnly),
            (None, access) => Ok(OpenData { fd: self.upper_data(inode, access)?, in_upper: true }),
        }
    }

    fn lower_data(
        &self,
        inode: &Inode,
        file: &LowerFile,
        known_by: Option<(u64, Timestamp)>,
    ) -> Result<Arc<OwnedFd>> {
        let key = FdKey::LowerData(inode.ino);
        if let Some(fd) = self.fds.get(key) {
            return Ok(fd);
        }
        let dir = self.lower_dir(&file.dir)?;
        if let Some(known) = known_by {
            // Looked at before it is opened: to open a device does something.
            let stat = sys::statx_at(dir.as_fd(), &file.name).context("stat", &file.name)?;
            if stat.kind() != FileType::RegularFile || known != (stat.size, stat.mtime) {
                return Err(Errno::IO).context("find what a metacopy points to", &file.name);
            }
        }
        let fd =
            sys::open_unmarked(dir.as_fd(), &file.name, sys::O_READ).context("open", &file.name)?;
        Ok(self.fds.put(key, fd))
    }

    fn upper_data(&self, inode: &Arc<Inode>, access: Access) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.fds.get(FdKey::Write(inode.ino)) {
            return Ok(fd);
        }
        match access {
            Access::Read => {
                if let Some(fd) = self.fds.get(FdKey::Read(inode.ino)) {
                    return Ok(fd);
                }
                let flags = self.upper_flags(sys::O_READ);
                let fd = reopen(self.object(inode)?.as_fd(), flags).context("open", b"")?;
                Ok(self.fds.put(FdKey::Read(inode.ino), fd))
            }
            Access::Write => {
                let fd = self.open_for_writing(inode).context("open for writing", b"")?;
                Ok(self.fds.put(FdKey::Write(inode.ino), fd))
            }
        }
    }

    /// How a file of upper is opened for data.
    pub(super) fn upper_flags(&self, flags: OFlags) -> OFlags {
        match self.atime {
            Atime::Never => flags | OFlags::NOATIME,
            Atime::Relative | Atime::Always => flags,
        }
    }

    /// Has what is read by a descriptor that was made, and so could not be opened with
    /// [`upper_flags`](Self::upper_flags), be no access either. Not where the file is not the
    /// daemon's own.
    pub(super) fn mark_no_accesses(&self, made: &OwnedFd) {
        if self.atime == Atime::Never {
            let flags = rustix::fs::fcntl_getfl(made).map(|flags| flags | OFlags::NOATIME);
            let set = flags.and_then(|flags| rustix::fs::fcntl_setfl(made, flags));
            best_effort("read without an access", set);
        }
    }

    /// Opens an upper file for writing, also one whose mode forbids it to its own owner: whoever
    /// asks has opened it already, and the kernel has checked that (an ordinary user's daemon
    /// has no CAP_DAC_OVERRIDE).
    fn open_for_writing(&self, inode: &Arc<Inode>) -> sys::Result<OwnedFd> {
        let flags = self.upper_flags(sys::O_READWRITE);
        let object = self.object(inode).map_err(|error| error.errno())?;
        match reopen(object.as_fd(), flags) {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let _alone = inode.attrs.write();
        let mode = sys::fstat(&object)?.permissions();
        sys::chmod(object.as_fd(), mode | 0o600)?;
        let opened = reopen(object.as_fd(), flags);
        sys::chmod(object.as_fd(), mode)?;
        opened
    }

    /// Changes an upper directory whose mode may forbid that to its own owner: a copy-up into it
    /// is no change that its mode is about.
    pub(super) fn with_write_permission<T>(
        &self,
        inode: &Inode,
        dir: &OwnedFd,
        mut change: impl FnMut() -> sys::Result<T>,
    ) -> sys::Result<T> {
        match change() {
            Err(Errno::ACCESS) => {}
            result => return result,
        }
        let _alone = inode.attrs.write();
        sys::with_write_permission(dir.as_fd(), change)
    }
}

/// Opens `name` if it is the inode `ino`.
fn open_verified(dir: BorrowedFd<'_>, name: &[u8], ino: u64) -> Result<Option<OwnedFd>> {
    let fd = match sys::open_at(dir, name, sys::O_PATH) {
        Err(Errno::NOENT) => return Ok(None),
        result => result.context("open upper", name)?,
    };
    let stat = sys::fstat(&fd).context("stat", name)?;
    Ok((stat.ino == ino).then_some(fd))
}

/// As [`sys::reopen`]; only a file's owner may open it with `O_NOATIME`, so others do without.
fn reopen(object: BorrowedFd<'_>, flags: OFlags) -> sys::Result<OwnedFd> {
    match sys::reopen(object, flags) {
        Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => {
            sys::reopen(object, flags - OFlags::NOATIME)
        }
        result => result,
    }
}
