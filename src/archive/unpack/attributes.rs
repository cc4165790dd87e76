//! Owners, modes, xattrs, times and types of what is unpacked.
//!
//! What the filesystem does not let who loads set is kept in an override xattr (see
//! [`crate::layers::override_stat`]), which the mount shows in its place: owners, setuid, device
//! nodes, security xattrs. A symlink can have no such xattr: of root's, which nearly all are, it
//! is not needed (a symlink of such a layer is root's), any other is a regular file that says so.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Uid};

use super::left_out::What;
use super::{Entry, Errno, Error, FileType, Kind, Place, Result, Unpacker, sys};
use crate::archive::tar::Xattrs;
use crate::layers::override_stat::{OverrideStat, OverrideXattr, real_mode};
use crate::layers::private_xattr;
use crate::sys::{TimeChange, Timestamp};

/// What a directory is to have when all is unpacked.
#[derive(Clone, Debug)]
pub(super) struct DirAttributes {
    mode: u32,
    owner: (u32, u32),
    mtime: Timestamp,
    xattrs: Xattrs,
}

/// Of a directory that no layer lists: root's, 0755, 1970.
impl Default for DirAttributes {
    fn default() -> Self {
        let mtime = Timestamp { secs: 0, nanos: 0 };
        Self { mode: 0o755, owner: (0, 0), mtime, xattrs: Xattrs::default() }
    }
}

impl DirAttributes {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        }
    }
}

const KEPT: OverrideXattr = OverrideXattr::Containers;

impl Unpacker<'_> {
    pub(super) fn add_symlink(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let link = |at: &Place<'_>| rustix::fs::symlinkat(&entry.link[..], at.dir, at.name);
        at.io("link", self.make(at, link, false)?)?;
        let object = at.io("open", sys::open_at(at.dir, at.name, sys::O_PATH))?;
        let needs_xattr = (entry.uid, entry.gid) != (0, 0) || !entry.xattrs.is_empty();
        let has_owner = self.chown(at, object.as_fd(), (entry.uid, entry.gid))?;
        // Beside owners that are kept aside no real symlink tells its own.
        let is_known = has_owner && self.may_set_all;
        if !is_known && needs_xattr {
            at.io("replace", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()))?;
            return self.stand_in(at, entry, FileType::Symlink, 0);
        }
        self.has_overrides |= !has_owner;
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, object.as_fd(), FileType::Symlink, name, value)?;
        }
        self.set_mtime(at, object.as_fd(), entry.mtime)
    }

    pub(super) fn add_node(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let make = |at: &Place<'_>| {
            rustix::fs::mknodat(at.dir, at.name, kind, Mode::RUSR | Mode::WUSR, device)
        };
        match self.make(at, make, false)? {
            Err(Errno::PERM) => return self.stand_in(at, entry, kind, device),
            result => at.io("make node", result)?,
        }
        let object = at.io("open", sys::open_at(at.dir, at.name, sys::O_PATH))?;
        if !self.chown(at, object.as_fd(), (entry.uid, entry.gid))? {
            at.io("replace", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()))?;
            return self.stand_in(at, entry, kind, device);
        }
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, object.as_fd(), kind, name, value)?;
        }
        at.io("chmod", sys::chmod(object.as_fd(), entry.mode))?;
        self.set_mtime(at, object.as_fd(), entry.mtime)
    }

    /// Makes a regular file that says what it stands for.
    fn stand_in(&mut self, at: &Place<'_>, entry: &Entry, kind: FileType, rdev: u64) -> Result<()> {
        let mut file = self.create(at)?;
        if kind == FileType::Symlink {
            file.write_all(&entry.link).map_err(|e| Error::io("write", at.shown(), e))?;
        }
        let permissions = if kind == FileType::Symlink { 0o777 } else { entry.mode };
        let kept =
            OverrideStat { uid: entry.uid, gid: entry.gid, permissions, node: Some((kind, rdev)) };
        if !self.keep(file.as_fd(), FileType::RegularFile, &kept)? {
            // Nothing can say what it is: better none than an empty file.
            self.leave_out(at, What::Device)?;
            return at.io("remove", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()));
        }
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, file.as_fd(), FileType::RegularFile, name, value)?;
        }
        self.set_mtime(at, file.as_fd(), entry.mtime)
    }

    /// Owner, xattrs, mode, times of a file. (chown(2) drops capabilities, so it is first; an
    /// ordinary user cannot give a read-only file xattrs.)
    pub(super) fn set_attributes(
        &mut self,
        at: &Place<'_>,
        file: BorrowedFd<'_>,
        entry: &Entry,
    ) -> Result<()> {
        let attributes = DirAttributes::of(entry);
        self.set_all(at, file, FileType::RegularFile, &attributes)
    }

    fn set_all(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        kind: FileType,
        attributes: &DirAttributes,
    ) -> Result<()> {
        let DirAttributes { mode, owner, mtime, xattrs } = attributes;
        let has_owner = self.chown(at, object, *owner)?;
        for (name, value) in &**xattrs {
            self.set_xattr(at, object, kind, name, value)?;
        }
        let (uid, gid) = *owner;
        let kept = OverrideStat { uid, gid, permissions: *mode, node: None };
        // A mode may shut its owner out, who is to read it again and to remove it.
        let is_real = has_owner && (self.may_set_all || real_mode(*mode, kind) == *mode);
        if is_real || !self.keep(object, kind, &kept)? {
            match has_owner {
                true => at.io("chmod", sys::chmod(object, *mode))?,
                false => self.leave_out(at, What::Owner)?,
            }
        }
        self.set_mtime(at, object, *mtime)
    }

    /// Gives the object its owner; false if that is not allowed to who loads.
    fn chown(&self, at: &Place<'_>, object: BorrowedFd<'_>, owner: (u32, u32)) -> Result<bool> {
        let (user, group) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        match rustix::fs::chownat(object, c"", user, group, AtFlags::EMPTY_PATH) {
            Ok(()) => Ok(true),
            // EINVAL: an id that the user namespace does not map.
            Err(Errno::PERM | Errno::INVAL) => Ok(false),
            Err(errno) => at.io("chown", Err(errno)),
        }
    }

    /// Keeps owner, mode and type in an xattr; false if the filesystem has none. The real mode lets
    /// who loads use the file, and nobody be another by it.
    fn keep(
        &mut self,
        object: BorrowedFd<'_>,
        kind: FileType,
        kept: &OverrideStat,
    ) -> Result<bool> {
        let written = KEPT.write(object, kept);
        let chmod = sys::chmod(object, real_mode(kept.permissions, kind));
        chmod.map_err(|e| Error::io("chmod", "a file of the layer", e.into()))?;
        match written {
            Ok(()) => {
                self.has_overrides = true;
                Ok(true)
            }
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => Ok(false),
            Err(errno) => Err(Error::io("keep the owner of", "a file of the layer", errno.into())),
        }
    }

    fn set_xattr(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        kind: FileType,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if private_xattr::is_private(name) {
            let (path, name) = (at.shown(), name.escape_ascii());
            log::warn!("{path}: the layer's {name} is private to unions: left out"); // verify knows
            return Ok(());
        }
        match sys::set_xattr(object, name, value, 0) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            result => return at.io("set xattr of", result),
        }
        if KEPT.is_for(kind)
            && let Some(held) = KEPT.held_name(name)
            && sys::set_xattr(object, &held, value, 0).is_ok()
        {
            self.has_overrides = true;
            return Ok(());
        }
        self.leave_out(at, What::Xattr(name))
    }

    /// Sets what directories are to have, the deepest first.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.attributes.entry(Vec::new()).or_default();
        for (path, attributes) in std::mem::take(&mut self.attributes).iter().rev() {
            let fd = match sys::open_beneath(self.directories.root(), path, sys::O_PATH) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue, // replaced since
                result => result.map_err(|e| Error::io("open", path.escape_ascii(), e.into()))?,
            };
            let dir = rustix::io::dup(&fd).map_err(|e| Error::io("open", "/", e.into()))?;
            let at = Place { dir: dir.as_fd(), name: b"", path };
            self.set_all(&at, fd.as_fd(), FileType::Directory, attributes)?;
            if path.is_empty() && self.has_overrides {
                self.mark_root(fd.as_fd(), attributes)?;
            }
        }
        Ok(())
    }

    /// The root's xattr tells that others of the layer may have one.
    fn mark_root(&mut self, root: BorrowedFd<'_>, attributes: &DirAttributes) -> Result<()> {
        let (uid, gid) = attributes.owner;
        let kept = OverrideStat { uid, gid, permissions: attributes.mode, node: None };
        self.keep(root, FileType::Directory, &kept).map(drop)
    }

    fn set_mtime(&mut self, at: &Place<'_>, object: BorrowedFd<'_>, time: Timestamp) -> Result<()> {
        let change = Some(TimeChange::At(time));
        at.io("set times of", sys::set_times(object, change, change))?;
        // Far from now a filesystem gives the nearest that it can tell (utimensat(2)).
        let is_plain = i32::try_from(time.secs).is_ok();
        if is_plain || at.io("stat", sys::fstat(object))?.mtime == time {
            return Ok(());
        }
        self.leave_out(at, What::Time)
    }

    fn leave_out(&mut self, at: &Place<'_>, what: What<'_>) -> Result<()> {
        let noted = self.left_out.note(what, at.path);
        noted.map_err(|e| Error::io("note what is left out of", at.shown(), e))
    }
}
