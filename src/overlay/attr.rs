//! Attributes: getattr, setattr, statfs.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Uid};

use super::Overlay;
use super::error::{Context, Error, Result};
use super::inode::Inode;
use super::real::Access;
use super::suidgid::SuidGid;
use crate::layers::number::Ino;
use crate::sys::{self, FileType, Stat, TimeChange};

/// An inode's attributes as the union shows them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Its number in the union.
    pub ino: Ino,
    /// Its type.
    pub kind: FileType,
    /// The real file's attributes, with what the union shows as link count, owner, permissions and
    /// type.
    pub stat: Stat,
}

/// Who a new file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The attributes to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<TimeChange>,
    /// Time of last change of the content.
    pub mtime: Option<TimeChange>,
    /// What a change of size does to setuid and setgid.
    pub suidgid: SuidGid,
}

impl SetAttr {
    /// Whether it asks for no attribute.
    pub fn names_nothing(&self) -> bool {
        self.size.is_none()
            && self.mode.or(self.uid).or(self.gid).is_none()
            && self.atime.or(self.mtime).is_none()
    }
}

/// Space and limits of the filesystem below.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Size in fragments.
    pub blocks: u64,
    /// Free fragments.
    pub blocks_free: u64,
    /// Free fragments for ordinary users.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    /// Fragment size in bytes.
    pub fragment_size: u32,
}

impl Overlay {
    /// Attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let _stable = inode.attrs.read();
        self.attr_of(&inode, None)
    }

    /// Attributes from `stat`, or from the real file if that is not at hand.
    pub(super) fn attr_of(&self, inode: &Arc<Inode>, stat: Option<Stat>) -> Result<Attr> {
        let stat = match stat {
            Some(stat) => stat,
            None => self.stat_real_object(inode)?,
        };
        let mut stat = self.shown(inode, stat)?;
        let left = self.upper.as_ref().and_then(|upper| upper.index().left(inode.ino));
        stat.nlink = self.nlink(inode, &stat, left.map(|left| left.names));
        stat.ctime = stat.ctime.max(left.map(|left| left.removed).unwrap_or_default());
        if let Some(data) = &inode.state.read().data {
            stat.blocks = data.blocks;
        }
        Ok(Attr { ino: inode.ino, kind: stat.kind(), stat })
    }

    /// The link count that the merged tree shows.
    ///
    /// A directory that several layers make has 1, as on the kernel's overlayfs: their
    /// subdirectories cannot be counted cheaply, and 1 tells find(1) not to rely on it.
    fn nlink(&self, inode: &Inode, stat: &Stat, left: Option<u32>) -> u32 {
        let (in_upper, linked, parts) = {
            let state = inode.state.read();
            let lowers = state.lower_dirs().len();
            let in_upper = state.upper.is_some();
            (in_upper, !state.links.is_empty(), lowers + usize::from(in_upper))
        };
        if inode.is_dir() {
            return match linked || inode.ino == Ino::ROOT {
                true if parts > 1 || self.static_nlink => 1,
                true => stat.nlink,
                false => 0,
            };
        }
        match (in_upper, left) {
            (true, Some(left)) if self.is_indexed(inode) => stat.nlink.saturating_sub(1) + left,
            (true, _) => stat.nlink,
            (false, Some(left)) => left,
            (false, None) if linked => stat.nlink,
            (false, None) => 0,
        }
    }

    pub(super) fn is_indexed(&self, inode: &Inode) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.index().is_linked(inode.ino))
    }

    /// Changes attributes; a lower file is copied up first.
    pub fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let inode = self.inode(ino)?;
        if let (true, SuidGid::AsCallerMay(caller)) = (change.names_nothing(), change.suidgid) {
            return self.change_nothing(ino, caller);
        }
        self.check_owner(&inode, change.uid, change.gid)?;
        let _open = match change {
            SetAttr { size: Some(size), .. } => {
                self.copy_up_to_write(&inode, Some(*size))?;
                None
            }
            SetAttr { mode: Some(mode), .. } => self.copy_up_for_mode(&inode, *mode)?,
            _ => self.copy_up_attributes(&inode)?,
        };
        let changed = self.change(&inode, change);
        if changed.is_err() {
            self.watcher.tell(ino); // a part of it may have been done
        }
        changed
    }

    fn change(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<Attr> {
        if let Some(size) = change.size {
            let fd = self.data(inode, Access::Write)?;
            self.drop_privileges(inode, fd.as_fd(), change.suidgid)?;
            rustix::fs::ftruncate(&fd, size).context("truncate", b"")?;
        }
        self.set_owner_and_mode(inode, change.uid, change.gid, change.mode)?;
        let _stable = inode.attrs.read();
        if change.atime.or(change.mtime).is_some() {
            let object = self.object(inode)?;
            sys::set_times(object.as_fd(), change.atime, change.mtime).context("set times", b"")?;
        }
        self.attr_of(inode, None)
    }

    /// Space of upper, or of the topmost lower where there is no upper.
    pub fn statfs(&self) -> Result<StatFs> {
        let root = match (&self.upper, self.lowers.first()) {
            (Some(upper), _) => upper.root(),
            (None, Some(lower)) => lower.root(),
            (None, None) => return Err(Error::ReadOnly),
        };
        let s = rustix::fs::fstatvfs(root).context("statfs", b"")?;
        Ok(StatFs {
            blocks: s.f_blocks,
            blocks_free: s.f_bfree,
            blocks_available: s.f_bavail,
            files: s.f_files,
            files_free: s.f_ffree,
            block_size: s.f_bsize as u32,
            fragment_size: s.f_frsize as u32,
        })
    }
}

/// The owner to give a file, or `None` for what it has already.
pub(super) fn owner_change(stat: &Stat, owner: Owner) -> Option<(Option<Uid>, Option<Gid>)> {
    let uid = (stat.uid != owner.uid).then(|| Uid::from_raw(owner.uid));
    let gid = (stat.gid != owner.gid).then(|| Gid::from_raw(owner.gid));
    (uid.is_some() || gid.is_some()).then_some((uid, gid))
}

/// chown(2) of an `O_PATH` descriptor, where it changes anything.
pub(super) fn chown(object: BorrowedFd<'_>, stat: &Stat, owner: Owner) -> sys::Result<()> {
    match owner_change(stat, owner) {
        Some((uid, gid)) => rustix::fs::chownat(object, c"", uid, gid, AtFlags::EMPTY_PATH),
        None => Ok(()),
    }
}
